"""Transcripts of a chat experiment as they are read from ``transcripts.json``: checked, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from cautious_imitation.report.chat_contract import (
    CHAT_ANCHORS,
    PHASES,
    Record,
    entries,
    flag,
    integer,
    number,
    numbers,
    text,
    value_of,
    word,
)

ACTORS = ("environment", "imitator", "demonstrator", "oracle")
"""Who chose a token; ``imitator`` is the policy."""


@dataclass(frozen=True)
class Speech:
    """One speaker's turn, the tokens ``begin`` to ``end``."""

    is_teacher: bool
    begin: int
    end: int
    finished: bool
    empty: bool
    text: str


@dataclass(frozen=True, eq=False)
class ChatEpisode:
    """One episode of one policy; the attributes are the keys of ``transcripts.json``."""

    anchor: str
    phase: str
    budget_nats: float
    seed: int
    length: int
    episode: int
    given: int
    pieces: tuple[str, ...]
    actors: tuple[str, ...]
    turns: tuple[int, ...]
    speakers: tuple[Speech, ...]
    charges: tuple[float, ...]
    kl_demonstrator: tuple[float, ...] | None
    rewards: tuple[float, ...]
    questions: tuple[int, ...]

    @cached_property
    def reward(self) -> float:
        """What the episode earned."""
        return math.fsum(self.rewards)

    @cached_property
    def charge_nats(self) -> float:
        """What the episode was charged."""
        return math.fsum(self.charges)

    @cached_property
    def decisions(self) -> tuple[int, ...]:
        """The tokens at which the policy decided: it chose them, or asked."""
        asked = set(self.questions)
        return tuple(place for place, actor in enumerate(self.actors) if actor == "imitator" or place in asked)

    @cached_property
    def replies(self) -> tuple[Speech, ...]:
        """The teacher's replies that were finished."""
        return tuple(speech for speech in self.speakers if speech.is_teacher and speech.finished)

    @property
    def n_empty(self) -> int:
        """How many of those say nothing."""
        return sum(speech.empty for speech in self.replies)

    @property
    def empty_share(self) -> float | None:
        """Share of the finished replies that say nothing, None without replies."""
        return self.n_empty / len(self.replies) if self.replies else None

    def is_own(self, speech: Speech) -> bool:
        """Whether nobody else put a token into ``speech``."""
        return all(actor == "imitator" for actor in self.actors[speech.begin : speech.end])

    def cost(self, begin: int, end: int) -> float:
        """Nats charged for the tokens ``begin`` to ``end``."""
        return math.fsum(self.charges[begin:end])


def read_chat_episodes(transcripts: Sequence[Record]) -> list[ChatEpisode]:
    """Check ``transcripts`` and put them in the order of anchors, budgets, phases, lengths, seeds and episodes.

    Raises:
        ValueError: naming the transcript and the key that break the contract.
    """
    found = [_read(record, f"transcripts[{index}]") for index, record in enumerate(transcripts)]
    return sorted(
        found,
        key=lambda one: (
            CHAT_ANCHORS.index(one.anchor),
            one.budget_nats,
            PHASES.index(one.phase),
            one.length,
            one.seed,
            one.episode,
        ),
    )


def _read(record: Record, where: str) -> ChatEpisode:
    pieces = entries(record, "pieces", where)
    n = len(pieces)
    if not all(isinstance(piece, str) for piece in pieces):
        raise ValueError(
            f"{where} pieces must hold texts alone, got {next(p for p in pieces if not isinstance(p, str))!r}"
        )
    speakers = [
        _speech(speech, f"{where} speakers[{place}]", n)
        for place, speech in enumerate(entries(record, "speakers", where))
    ]
    for place, (one, other) in enumerate(pairwise(speakers), start=1):
        if other.begin < one.end:
            raise ValueError(
                f"{where} speakers[{place}] begin must be at least {one.end}, where one ends, got {other.begin}"
            )
    actors = entries(record, "actors", where, length=n)
    turns = entries(record, "turns", where, length=n)
    for place, (actor, turn) in enumerate(zip(actors, turns, strict=True)):
        if actor not in ACTORS:
            raise ValueError(f"{where} actors[{place}] must be one of {', '.join(ACTORS)}, got {actor!r}")
        # The last header may belong to a turn of which nothing was said any more.
        if type(turn) is not int or turn not in range(-1, len(speakers) + 1):
            raise ValueError(f"{where} turns[{place}] must be in -1..{len(speakers)}, got {turn!r}; -1 is the opening")
    questions = entries(record, "questions", where)
    for place, question in enumerate(questions):
        if type(question) is not int or question not in range(n):
            raise ValueError(f"{where} questions[{place}] must be the index of a token, 0..{n - 1}, got {question!r}")
    given = integer(record, "given", where, low=0)
    if given > n:
        raise ValueError(f"{where} given must be at most {n}, the number of tokens, got {given}")
    known = value_of(record, "kl_demonstrator", where) is not None
    return ChatEpisode(
        anchor=word(record, "anchor", where, CHAT_ANCHORS),
        phase=word(record, "phase", where, PHASES),
        budget_nats=number(record, "budget_nats", where, low=0),
        seed=integer(record, "seed", where),
        length=integer(record, "length", where, low=1),
        episode=integer(record, "episode", where, low=0),
        given=given,
        pieces=tuple(pieces),
        actors=tuple(actors),
        turns=tuple(turns),
        speakers=tuple(speakers),
        charges=tuple(numbers(record, "charges", where, length=n, low=0)),
        kl_demonstrator=tuple(numbers(record, "kl_demonstrator", where, length=n, low=0)) if known else None,
        rewards=tuple(numbers(record, "rewards", where, length=n)),
        questions=tuple(questions),
    )


def _speech(record: Record, where: str, n: int) -> Speech:
    begin, end = integer(record, "begin", where, low=0), integer(record, "end", where, low=0)
    if not begin <= end <= n:
        raise ValueError(f"{where} end must be in {begin}..{n}, got {end}; begin and end are indices of tokens")
    return Speech(
        is_teacher=flag(record, "is_teacher", where),
        begin=begin,
        end=end,
        finished=flag(record, "finished", where),
        empty=flag(record, "empty", where),
        text=text(record, "text", where),
    )
