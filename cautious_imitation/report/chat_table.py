"""The rows of a chat experiment as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from cautious_imitation.report.chat_contract import Record
from cautious_imitation.report.chat_rows import KL, Policies, check_chat_rows, gather
from cautious_imitation.report.findings import TOLERANCE_NATS
from cautious_imitation.report.wording import nats, percent, setting

WIDTH = 80
"""Columns of the narrowest terminal that the table fits."""

_SHORT = {"bayesian": "Bayesian", "cautious-pointwise": "pointwise", "cautious-minimax": "minimax"}


def chat_summary_table(rows: Sequence[Record]) -> Table:
    """One line for the policies of an anchor, budget, phase and length: means over seeds, at most 80 columns wide.

    ``KL`` is the distance to the demonstrator with its standard error: over seeds where there are several, else over
    episodes. It is red where it is more than the budget. ``empty`` is the share of all finished replies that are empty,
    with its 95 % Wilson interval.

    Raises:
        ValueError: if a row breaks the contract of ``results.json``.

    Example:
        ``rich.print(chat_summary_table(json.loads(Path("run/results.json").read_text())["rows"]))``
    """
    check_chat_rows(rows)
    table = Table(title="Chat experiment, nats an episode", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("anchor", no_wrap=True)
    table.add_column("budget", justify="right", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    for name in ("reward", "charge", "KL", "asks", "empty"):
        table.add_column(name, justify="right", no_wrap=True)
    anchor = None
    policies = gather(rows)
    for one in policies:
        if anchor not in (None, one.anchor):
            table.add_section()
        table.add_row(_SHORT[one.anchor] if one.anchor != anchor else "", *_values(one))
        anchor = one.anchor
    return table


def _values(one: Policies) -> tuple[str | Text, ...]:
    """The columns from ``budget`` on; a dash where nothing is known."""
    return (
        setting(one.budget_nats),
        one.phase,
        nats(one.mean("reward")),
        nats(one.mean("charge_nats")),
        _distance(one),
        percent(one.ask_rate),
        "–" if one.empty is None else str(one.empty),
    )


def _distance(one: Policies) -> Text:
    mean, error = one.mean(KL), one.error(KL, "kl_demonstrator_se")
    if mean is None:
        return Text("–")
    words = nats(mean) if error is None else f"{nats(mean)} ± {nats(error)}"
    return Text(words, "bold red" if mean > one.budget_nats + TOLERANCE_NATS else "")
