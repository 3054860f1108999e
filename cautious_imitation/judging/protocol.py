"""What is said of a pair of transcripts: `Ruling`, `Open`, and the one method of a `Judge`.

A pair is a ``TranscriptPair``, as people judge it in the console. A judge sees many and says of each which one it is,
as shown; who compares policies shuffles the order and translates back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from cautious_imitation.oracles.judgements import TranscriptPair, Verdict

if TYPE_CHECKING:
    from cautious_imitation.judging.verdicts import VerdictRecord


@dataclass(frozen=True)
class Ruling:
    """What a judge said of a pair.

    Attributes:
        verdict: about the pair's first and second; None if what was said cannot be read as a verdict.
        said: the answer as it was given, or why there is none that can be read; None if there are no words.
        reversed: whether the judge saw the pair's second before its first.
    """

    verdict: Verdict | None
    said: str | None = None
    reversed: bool = False


@dataclass(frozen=True)
class Open:
    """There is no answer yet; the same pair may be shown again later.

    Attributes:
        reason: why, and what helps.
    """

    reason: str


Response: TypeAlias = Ruling | Open


@runtime_checkable
class Judge(Protocol):
    """Whoever compares transcripts. ``as_judge`` makes one of functions, oracles, models and logs.

    Attributes:
        name: what the verdicts are filed under.
    """

    name: str

    def judge(self, pairs: Sequence[TranscriptPair]) -> Iterable[Response]:
        """One response a pair, in their order, as soon as it is known."""


class JudgeError(ValueError):
    """A judge's response is none, or there are not as many as pairs."""


class JudgementsOpen(Exception):
    """Some pairs have no verdict yet. Nothing is lost: compare again, with the generator in the same state.

    Attributes:
        pairs: those that are open, as they are shown.
        records: the verdicts that there are.
    """

    def __init__(self, pairs: Iterable[TranscriptPair], records: Iterable[VerdictRecord], reason: str) -> None:
        self.pairs, self.records = tuple(pairs), tuple(records)
        n = len(self.pairs) + len(self.records)
        super().__init__(
            f"{len(self.pairs)} of {n} pairs have no verdict yet: {reason}; compare again with the generator in the "
            "same state to go on"
        )


def responses(judge: Judge, pairs: Sequence[TranscriptPair]) -> Iterator[Response]:
    """What ``judge`` says of each of ``pairs``, checked.

    Raises:
        JudgeError: if a response is none, or there are too few or too many.
    """
    n = 0
    for response in judge.judge(pairs):
        if not isinstance(response, (Ruling, Open)):
            raise JudgeError(
                f"judge {judge.name!r} must give a Ruling or Open for each pair, got {response!r}; as_judge takes "
                'functions that return "first", "second" or "tie"'
            )
        if n < len(pairs):
            yield response
        n += 1
    if n != len(pairs):
        raise JudgeError(f"judge {judge.name!r} must give one response a pair, got {n} for {len(pairs)} pairs")
