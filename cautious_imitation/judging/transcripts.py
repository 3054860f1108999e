"""Transcripts with the name of the episode that each is, and the pairs that are drawn from two groups of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import lcm
from os import PathLike
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
from pydantic import BaseModel, ValidationError

from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.judgements import TranscriptPair

Side: TypeAlias = Literal["first", "second"]
EpisodeName: TypeAlias = Mapping[str, str | int | float | None]
"""Which episode it is, of which policy: ``anchor``, ``phase``, ``budget_nats``, ``seed``, ``length``, ``episode``."""

WITHIN_GROUP = ("seed", "episode")
"""What tells episodes of one group apart; everything else in their names is the group's."""

SCHEMA = 1


class SpokenTurn(Protocol):
    """A turn of an episode, such as ``environments.transcripts.Turn``."""

    @property
    def is_teacher(self) -> bool:
        """Whose it is."""

    @property
    def text(self) -> str:
        """The words."""

    @property
    def finished(self) -> bool:
        """Whether it ended before the episode did."""


@dataclass(frozen=True)
class NamedTranscript:
    """What was said in one episode.

    Attributes:
        name: which one it is; plain JSON values.
        messages: oldest first.
    """

    name: EpisodeName
    messages: tuple[Message, ...]

    @classmethod
    def of(cls, name: EpisodeName, turns: Iterable[SpokenTurn], opening: Sequence[Message] = ()) -> NamedTranscript:
        """A transcript of a teacher and a student.

        Args:
            name: which one it is.
            turns: in order, such as ``Transcript.spoken``.
            opening: what was said before the first turn, if judges should know.

        >>> from cautious_imitation.environments.transcripts import Turn
        >>> NamedTranscript.of({"episode": 0}, [Turn(True, 5, 8, "hello", True)]).messages[0].role
        'teacher'
        """
        said = [
            Message(role="teacher" if turn.is_teacher else "student", content=turn.text, unfinished=not turn.finished)
            for turn in turns
        ]
        return cls(dict(name), (*opening, *said))


class _Speaker(BaseModel):
    is_teacher: bool
    text: str
    finished: bool


class _Row(BaseModel):
    anchor: str
    phase: str
    budget_nats: float
    seed: int
    length: int
    episode: int
    speakers: list[_Speaker]


class _File(BaseModel):
    schema_: Literal[1]
    transcripts: list[_Row]

    model_config = {"alias_generator": lambda name: name.rstrip("_")}


def read_transcripts(path: str | PathLike[str], opening: Sequence[Message] = ()) -> list[NamedTranscript]:
    """The transcripts of a run, from its ``transcripts.json``.

    Args:
        path: the file.
        opening: what was said before the first turn, if judges should know.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file of schema 1; the message names path and place.
    """
    path = Path(path)
    try:
        rows = _File.model_validate_json(path.read_bytes()).transcripts
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(f"{path}: {f'{place}: ' if place else ''}{fault['msg']}; run the experiment again") from error
    return [NamedTranscript.of(row.model_dump(exclude={"speakers"}), row.speakers, opening) for row in rows]


@dataclass(frozen=True)
class DrawnPair:
    """Two transcripts of two groups, and how they are shown.

    Attributes:
        pair: as shown, so that its first may be the second group's.
        first: name of the first group's transcript.
        second: that of the second's.
        shown_first: which of these two comes first in ``pair``.
    """

    pair: TranscriptPair
    first: EpisodeName
    second: EpisodeName
    shown_first: Side


def draw_pairs(
    first: Sequence[NamedTranscript],
    second: Sequence[NamedTranscript],
    question: str,
    n_pairs: int,
    rng: np.random.Generator,
) -> list[DrawnPair]:
    """Pair transcripts of two groups at random, each shown in an order that a coin decides.

    No transcript is used again while others of its group are left, and no two are paired twice. Drawing more pairs
    with a generator in the same state begins with the same ones. A pair has the same id whenever the same transcripts
    are drawn in the same order for the same question.

    Args:
        first: one group.
        second: the other.
        question: in words.
        n_pairs: how many. Verdicts are independent given the policies as long as no transcript is used twice.
        rng: shuffles both groups and tosses the coins.

    Raises:
        ValueError: if a group is empty, a name occurs twice, or there are fewer pairs than ``n_pairs``.

    >>> groups = [[NamedTranscript({"policy": p, "episode": i}, ()) for i in range(2)] for p in "ab"]
    >>> drawn = draw_pairs(*groups, "Which is better?", 2, np.random.default_rng(0))
    >>> sorted(one.first["episode"] for one in drawn), sorted(one.second["episode"] for one in drawn)
    ([0, 1], [0, 1])
    """
    n, m = len(first), len(second)
    if not n or not m:
        raise ValueError(f"first and second must hold a transcript each, got {n} and {m}")
    if isinstance(n_pairs, bool) or not 1 <= n_pairs <= n * m:
        raise ValueError(f"n_pairs must be in 1..{n * m}, the pairs of {n} and {m} transcripts, got {n_pairs!r}")
    names = [_written(one.name) for one in (*first, *second)]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if twice:
        raise ValueError(f"every transcript must have a name of its own, got {min(twice)} twice")
    ours, theirs, coins = rng.permutation(n), rng.permutation(m), rng.random(n_pairs) < 0.5
    drawn = []
    for k in range(n_pairs):
        # Round both groups at once; where that would begin again with the same pair, one group falls back by one.
        one, other = first[ours[k % n]], second[theirs[(k + k // lcm(n, m)) % m]]
        drawn.append(_drawn(one, other, question, "first" if coins[k] else "second"))
    return drawn


def _drawn(first: NamedTranscript, second: NamedTranscript, question: str, shown_first: Side) -> DrawnPair:
    a, b = (first, second) if shown_first == "first" else (second, first)
    said = [[name, [message.model_dump() for message in one.messages]] for one in (a, b) for name in [dict(one.name)]]
    id = sha256(_written([question, said]).encode()).hexdigest()[:32]
    return DrawnPair(TranscriptPair(question, a.messages, b.messages, id), first.name, second.name, shown_first)


def _written(value: object) -> str:
    plain = dict(value) if isinstance(value, Mapping) else value
    return json.dumps(plain, sort_keys=True, allow_nan=False)
