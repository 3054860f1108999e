"""What is in a log of questions, as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cautious_imitation.oracles.log import Entry, LogStatistics, Status
from cautious_imitation.oracles.terminal.literal_text import literal
from cautious_imitation.oracles.terminal.view import duration, gist, outcome

_ENTRIES = TypeAdapter(list[Entry])
_COLOURS = {Status.OPEN: "yellow", Status.CLAIMED: "cyan", Status.ANSWERED: "green", Status.DECLINED: "magenta"}


def entries_table(entries: Sequence[Entry], now: float) -> Table:
    """Questions, one a line.

    Args:
        entries: from ``QueryLog.entries``.
        now: seconds since 1970, for how long ago they were asked.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("status", no_wrap=True, min_width=8)
    table.add_column("ago", no_wrap=True, justify="right", min_width=5)
    table.add_column("asker", overflow="ellipsis", no_wrap=True, max_width=16)
    table.add_column("question", overflow="ellipsis", no_wrap=True, ratio=3)
    table.add_column("answer", overflow="ellipsis", no_wrap=True, ratio=2)
    table.add_column("by", overflow="ellipsis", no_wrap=True, max_width=12)
    table.expand = True
    for entry in entries:
        query = entry.query
        asker = literal(query.asker, one_line=True)
        who = entry.answered_by if entry.answer is not None else entry.claimed_by
        table.add_row(
            Text(entry.status, _COLOURS.get(entry.status, "dim")),
            duration(now - entry.posted_at),
            asker if query.episode is None else asker.append(f"/{query.episode}"),
            gist(query),
            outcome(entry.answer) if entry.answer is not None else Text(),
            literal(who or "", one_line=True),
        )
    return table


def entries_json(entries: Sequence[Entry]) -> str:
    """Questions as a JSON array, with all that is known of each. ASCII, so that it is harmless in a terminal too."""
    return _ascii_json(_ENTRIES.dump_python(list(entries), mode="json"))


def statistics_table(statistics: LogStatistics) -> RenderableType:
    """Counts, people and times."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for status, count in statistics.counts.items():
        table.add_row(Text(status, _COLOURS.get(status, "dim")), f"{count:,}")
    table.add_row()
    table.add_row("answers, declines, expired that may depend on the answer", f"{statistics.dependent_answers:,}")
    if statistics.median_seconds is not None:
        table.add_row("half of the answers take at most", duration(statistics.median_seconds))
    if not statistics.by_person:
        return table
    people = Table.grid(padding=(0, 2))
    people.add_column()
    people.add_column(justify="right")
    for name, count in statistics.by_person.items():
        people.add_row(literal(name, one_line=True), f"{count:,}")
    return Group(table, Text("\nanswers and declines of", "dim"), people)


def statistics_json(statistics: LogStatistics) -> str:
    """Counts, people and times as a JSON object."""
    return _ascii_json(asdict(statistics))


def _ascii_json(value: Any) -> str:
    return json.dumps(value, indent=2)
