"""Verdicts as records and files, and what they come to: wins, losses, ties and a share with its interval."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from cautious_imitation.atomic_files import write_bytes, write_text
from cautious_imitation.intervals import wilson_interval
from cautious_imitation.judging.transcripts import SCHEMA, WITHIN_GROUP, Side

Said: TypeAlias = Literal["first", "second", "tie", "unread"]
UNREAD: Final = "unread"
Name: TypeAlias = dict[str, str | int | float | None]
Group: TypeAlias = Name


class VerdictRecord(BaseModel):
    """What a judge said of two episodes.

    Attributes:
        question: its name, such as "better".
        judge: the judge's name.
        first: one episode's name.
        second: the other's.
        shown_first: which one the judge saw first.
        verdict: about ``first`` and ``second``, whichever was shown first; "unread" if the judge's answer could not be
            read, which is no tie.
        said: the answer as it was given, about A, shown first, and B; None if there are no words.
        id: of the pair as it was shown; None where it is not known.
    """

    model_config = ConfigDict(frozen=True)

    question: str
    judge: str
    first: Name
    second: Name
    shown_first: Side
    verdict: Said
    said: str | None = None
    id: str | None = None

    def row(self) -> dict[str, Any]:
        """As in ``judgements.json``, which does without ids."""
        return self.model_dump(exclude={"id"})


@dataclass(frozen=True)
class Summary:
    """What the verdicts on two groups come to.

    Attributes:
        question: its name.
        judge: the judge's name.
        first: what the names of one group's episodes share.
        second: the same of the other group.
        wins: verdicts for the first group.
        losses: verdicts for the second.
        ties: verdicts for neither.
        unread: answers that could not be read; they count nowhere else.
        for_shown_first: wins and losses that went to whichever was shown first. Far from half of them, the judge goes
            by the place.
    """

    question: str
    judge: str
    first: Group
    second: Group
    wins: int
    losses: int
    ties: int
    unread: int
    for_shown_first: int

    @property
    def n(self) -> int:
        """How many verdicts there are, without the unread."""
        return self.wins + self.losses + self.ties

    @property
    def share(self) -> float | None:
        """(wins + ties / 2) / n; None without verdicts."""
        return (self.wins + self.ties / 2) / self.n if self.n else None

    @property
    def low(self) -> float | None:
        """Where the 95 % interval of the share begins, by ``wilson_interval``; None without verdicts."""
        return wilson_interval(self.wins + self.ties / 2, self.n).low if self.n else None

    @property
    def high(self) -> float | None:
        """Where it ends."""
        return wilson_interval(self.wins + self.ties / 2, self.n).high if self.n else None


def summaries(records: Iterable[VerdictRecord]) -> list[Summary]:
    """One summary a question, judge and pair of groups, in the order in which they first occur.

    Groups are what episodes' names hold beside ``seed`` and ``episode``. Two groups that were compared both ways round
    are one pair.

    >>> names = {"first": {"anchor": "a", "episode": 0}, "second": {"anchor": "b", "episode": 0}}
    >>> won = VerdictRecord(question="better", judge="Ada", **names, shown_first="first", verdict="first")
    >>> [summary] = summaries([won] * 9 + [won.model_copy(update={"verdict": "tie"})])
    >>> summary.wins, summary.ties, summary.share, round(summary.low, 3)
    (9, 1, 0.95, 0.655)
    """
    found: dict[tuple[str, str, str, str], Counter[str]] = {}
    groups: dict[str, Group] = {}
    for record in records:
        names = []
        for group in (_group(record.first), _group(record.second)):
            names.append(json.dumps(group, sort_keys=True))
            groups[names[-1]] = group
        key = (record.question, record.judge, names[0], names[1])
        turned = (record.question, record.judge, names[1], names[0])
        other_way = key not in found and turned in found
        counts = found.setdefault(turned if other_way else key, Counter())
        counts[_TURNED.get(record.verdict, record.verdict) if other_way else record.verdict] += 1
        counts["for shown first"] += record.verdict == record.shown_first
    return [
        Summary(
            question,
            judge,
            groups[first],
            groups[second],
            wins=counts["first"],
            losses=counts["second"],
            ties=counts["tie"],
            unread=counts[UNREAD],
            for_shown_first=counts["for shown first"],
        )
        for (question, judge, first, second), counts in found.items()
    ]


def write_judgements(path: str | PathLike[str], records: Iterable[VerdictRecord]) -> None:
    """Write ``judgements.json``, replacing what is there in one step: ``verdicts``, and the ``unread`` beside them.

    Raises:
        OSError: if the folder does not exist or cannot be written to.
        ValueError: if a name holds a number that is not finite.
    """
    rows: dict[bool, list[str]] = {False: [], True: []}
    for record in records:
        rows[record.verdict == UNREAD].append(json.dumps(record.row(), allow_nan=False))
    verdicts, unread = (",\n".join(rows[which]) for which in (False, True))
    write_text(path, f'{{"schema": {SCHEMA}, "verdicts": [\n{verdicts}\n], "unread": [\n{unread}\n]}}\n')


def read_judgements(path: str | PathLike[str]) -> list[VerdictRecord]:
    """What a ``judgements.json`` holds, the unread last.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file of schema 1.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); write it again with write_judgements") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("verdicts"), list):
        raise ValueError(f"{path} must hold schema {SCHEMA} with verdicts; write it again with write_judgements")
    return [
        _record(row, f"{path}: {key}[{place}]")
        for key in ("verdicts", UNREAD)
        for place, row in enumerate(found.get(key, []))
    ]


def read_journal(path: str | PathLike[str]) -> list[VerdictRecord]:
    """The verdicts in a journal, a JSON object a line; none if there is no such file.

    A last line without its end was being written when the process was killed, and is taken out of the file.

    Raises:
        ValueError: if another line cannot be read; the message names path and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    if rest:
        write_bytes(path, b"".join(line + b"\n" for line in lines))
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError(f"{path}:{number} is not JSON; remove the line to judge that pair again") from None
        records.append(_record(row, f"{path}:{number}"))
    return records


_TURNED = {"first": "second", "second": "first"}


def _group(name: Name) -> Group:
    return {key: value for key, value in name.items() if key not in WITHIN_GROUP}


def _record(row: Any, where: str) -> VerdictRecord:
    try:
        return VerdictRecord.model_validate(row)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(f"{where}: {f'{place}: ' if place else ''}{fault['msg']}; it is no verdict") from error
