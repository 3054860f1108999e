"""Verdicts on pairs of transcripts: checked, and counted for each question, judge and pair of groups of policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cautious_imitation.report.chat_contract import (
    CHAT_ANCHORS,
    PHASES,
    Record,
    integer,
    number,
    text,
    value_of,
    word,
)
from cautious_imitation.report.chat_shares import Share, share_of

QUESTIONS = ("better", "complex")
"""Which transcript is better; which is more complex or unpredictable."""

Group: TypeAlias = tuple[str, str, float, int]
"""Anchor, phase, budget and length of the policies that transcripts are from."""

_SIDES = ("first", "second")


@dataclass(frozen=True)
class Verdict:
    """One verdict; ``group`` is the one that comes first in the order of groups, and ``for_group`` 1, 0.5 or 0."""

    question: str
    judge: str
    group: Group
    other: Group
    for_group: float
    for_shown_first: float


@dataclass(frozen=True)
class Tally:
    """The verdicts of one judge on one question about two groups."""

    question: str
    judge: str
    group: Group
    other: Group
    wins: int
    losses: int
    ties: int
    share: Share

    @property
    def differs_in_one(self) -> bool:
        """Whether the groups differ in a single setting."""
        return sum(one != other for one, other in zip(self.group, self.other, strict=True)) == 1


def order_of(group: Group) -> tuple[float, int, int, int]:
    """Smaller budgets first, then anchors, phases and lengths: of a pair, the group that shares are told of."""
    anchor, phase, budget, length = group
    return budget, CHAT_ANCHORS.index(anchor), PHASES.index(phase), length


def read_verdicts(verdicts: Sequence[Record]) -> list[Verdict]:
    """Check ``verdicts``.

    Raises:
        ValueError: naming the verdict and the key that break the contract.
    """
    return [_read(record, f"verdicts[{index}]") for index, record in enumerate(verdicts)]


def tallies(verdicts: Sequence[Verdict]) -> list[Tally]:
    """Count ``verdicts``; those between transcripts of one and the same group compare nothing and are left out."""
    grouped: dict[tuple[str, str, Group, Group], list[float]] = {}
    for one in verdicts:
        if one.group != one.other:
            grouped.setdefault((one.question, one.judge, one.group, one.other), []).append(one.for_group)
    ordered = sorted(grouped, key=lambda key: (QUESTIONS.index(key[0]), order_of(key[2]), order_of(key[3]), key[1]))
    return [_tally(*key, grouped[key]) for key in ordered]


def smaller_preferred(verdicts: Sequence[Verdict], question: str, anchor: str) -> Share | None:
    """How often transcripts from a smaller budget were preferred to those of a larger one, nothing else different."""
    scores = [
        one.for_group
        for one in verdicts
        if one.question == question
        and one.group[0] == one.other[0] == anchor
        and (one.group[1], one.group[3]) == (one.other[1], one.other[3])
        and one.group[2] < one.other[2]
    ]
    return share_of(sum(scores), len(scores))


def shown_first_preferred(verdicts: Sequence[Verdict], question: str) -> Share | None:
    """How often the transcript that was shown first was preferred; far from half, judges look at the place."""
    scores = [one.for_shown_first for one in verdicts if one.question == question]
    return share_of(sum(scores), len(scores))


def _tally(question: str, judge: str, group: Group, other: Group, scores: Sequence[float]) -> Tally:
    share = share_of(sum(scores), len(scores))
    if share is None:
        raise ValueError("scores must hold at least one verdict, got none")
    return Tally(question, judge, group, other, scores.count(1.0), scores.count(0.0), scores.count(0.5), share)


def _read(record: Record, where: str) -> Verdict:
    first, second = (_group(value_of(record, side, where), f"{where} {side}") for side in _SIDES)
    shown_first = word(record, "shown_first", where, _SIDES)
    verdict = word(record, "verdict", where, (*_SIDES, "tie"))
    if value_of(record, "said", where) is not None:
        text(record, "said", where)
    swapped = order_of(second) < order_of(first)
    group, other = (second, first) if swapped else (first, second)
    for_first = {"first": 1.0, "second": 0.0, "tie": 0.5}[verdict]
    return Verdict(
        word(record, "question", where, QUESTIONS),
        text(record, "judge", where),
        group,
        other,
        1.0 - for_first if swapped else for_first,
        for_first if shown_first == "first" else 1.0 - for_first,
    )


def _group(record: Record, where: str) -> Group:
    for key in ("seed", "episode"):
        integer(record, key, where)
    return (
        word(record, "anchor", where, CHAT_ANCHORS),
        word(record, "phase", where, PHASES),
        number(record, "budget_nats", where, low=0),
        integer(record, "length", where, low=1),
    )
