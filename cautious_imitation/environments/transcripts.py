"""Transcripts of a teacher and a student: every token with its actor, turn, charge and reward; and how they grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cautious_imitation.demonstrations import actor_codes
from cautious_imitation.environments.turns import Turns
from cautious_imitation.types import Actor

Tensor = torch.Tensor

ENVIRONMENT, IMITATOR = (int(code) for code in actor_codes([Actor.ENVIRONMENT, Actor.IMITATOR]))


@dataclass(frozen=True)
class Turn:
    """One speaker's turn after the opening.

    Attributes:
        is_teacher: whose it is.
        begin: index of its first token; a header that the environment wrote before it is not part of it.
        end: index after its last one, which ended it.
        text: the words, without what ended the turn; in the first one with those that the opening had begun.
        finished: whether it ended before the episode did.
    """

    is_teacher: bool
    begin: int
    end: int
    text: str
    finished: bool

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said, in so many words: turns may be of white space alone."""
        return not self.text


@dataclass(frozen=True, eq=False)
class Transcript:
    """One episode.

    Attributes:
        tokens: ``[L]`` int64, the opening among them.
        actors: ``[L]`` uint8, who chose each, as ``actor_codes`` writes them; the opening is the environment's.
        turns: ``[L]`` int64, the number of the turn that each belongs to, its header included; -1 in the opening.
        spoken: the turns, in order; the first one is the teacher's.
        charges: ``[L]``, nats that were charged where the token was chosen or asked for.
        rewards: ``[L]``, what was paid, at the token with which a student's reply was over.
        n_given: tokens of the opening.
        questions: indices of the tokens that answers begin with.
        text: all of it as text.
    """

    tokens: NDArray[np.int64]
    actors: NDArray[np.uint8]
    turns: NDArray[np.int64]
    spoken: tuple[Turn, ...]
    charges: NDArray[np.float64]
    rewards: NDArray[np.float64]
    n_given: int
    questions: tuple[int, ...]
    text: str

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_replies(self) -> int:
        """How many replies the teacher has finished."""
        return sum(turn.is_teacher and turn.finished for turn in self.spoken)

    @property
    def n_empty_replies(self) -> int:
        """How many of those said nothing."""
        return sum(turn.is_teacher and turn.finished and turn.is_empty for turn in self.spoken)


class ChatEpisode:
    """A transcript that grows by a token at a time.

    Args:
        turns: how turns end, and the opening.
        length: tokens of the whole episode.
        budget_nats: what may be charged.
        stream: the student's randomness.
    """

    def __init__(self, turns: Turns, length: int, budget_nats: float, stream: np.random.Generator) -> None:
        self.length, self.budget_nats, self.stream = length, budget_nats, stream
        self.n_tokens = len(turns.opening)
        # A tensor of its own, so that contexts that were handed out stay as they are.
        self._tokens = torch.zeros(length, dtype=torch.long)
        self._tokens[: self.n_tokens] = torch.tensor(turns.opening)
        self._actors = np.full(length, ENVIRONMENT, dtype=np.uint8)
        self._numbers = np.full(length, -1, dtype=np.int64)
        self._charges, self._rewards = np.zeros((2, length))
        self._turns, self._n_given = turns, self.n_tokens
        self._spoken: list[Turn] = []
        self._questions: list[int] = []
        self._said: list[int] = []
        self._header: deque[int] = deque()
        self._answer: deque[tuple[int, int]] = deque()
        self._begin = self.n_tokens
        self.is_teachers, self.declined, self.spent_nats = True, False, 0.0

    @property
    def over(self) -> bool:
        """Whether it has all its tokens, or was broken off by a question that was declined."""
        return self.declined or self.n_tokens == self.length

    @property
    def acts(self) -> bool:
        """Whether the agent chooses the next token."""
        return self.is_teachers and not (self.over or self._header or self._answer)

    @property
    def plays_on(self) -> bool:
        """Whether the next token is the environment's: the student's, or of a header."""
        return not self.over and (bool(self._header) or not self.is_teachers)

    @property
    def context(self) -> Tensor:
        """The tokens so far, ``[L]``."""
        return self._tokens[: self.n_tokens]

    def given(self) -> tuple[int, int] | None:
        """The next token and its actor, if it is known already: of a header, or of an answer."""
        if self._header:
            return self._header[0], ENVIRONMENT
        return self._answer[0] if self._answer else None

    def answered(self, tokens: Sequence[int], actor: int) -> None:
        """Tokens of an answer come next."""
        self._questions.append(self.n_tokens)
        self._answer.extend((token, actor) for token in tokens)

    def charged(self, nats: float) -> None:
        """The next token is charged."""
        self._charges[self.n_tokens] += nats
        self.spent_nats += nats

    def paid(self, position: int, reward: float) -> None:
        """The reply that ended with the token at ``position`` is paid."""
        self._rewards[position] = reward

    def put(self, token: int, actor: int) -> Turn | None:
        """Add a token; returns the turn that ends with it, if one does. The end of the episode ends the last one."""
        place, self.n_tokens = self.n_tokens, self.n_tokens + 1
        self._tokens[place], self._actors[place], self._numbers[place] = token, actor, len(self._spoken)
        if self._header:
            self._header.popleft()
            self._begin = self.n_tokens
            return None
        if self._answer:
            self._answer.popleft()
        self._said.append(token)
        found = self._turns.ended(self.is_teachers, self._said, first=not self._spoken)
        if found is None:
            return self._cut() if self.over else None
        words, header = found
        turn = self._spoke(words, finished=True)
        # What an answer says after the end of its turn is not used.
        self._answer.clear()
        self._header.extend(header)
        self._said.clear()
        self._begin, self.is_teachers = self.n_tokens, not self.is_teachers
        return turn

    def transcript(self) -> Transcript:
        """The episode so far."""
        n = self.n_tokens
        arrays = (self._actors[:n].copy(), self._numbers[:n].copy())
        spoken = tuple(self._spoken)
        if self._said and not self.over:
            spoken = (*spoken, Turn(self.is_teachers, self._begin, self.n_tokens, self._words(), finished=False))
        return Transcript(
            self.context.numpy().copy(),
            *arrays,
            spoken,
            self._charges[:n].copy(),
            self._rewards[:n].copy(),
            self._n_given,
            tuple(place for place in self._questions if place < n),
            self._turns.text(self.context.tolist()),
        )

    def _cut(self) -> Turn | None:
        """The turn that is cut by the episode's end; None if it has no token."""
        return self._spoke(self._words(), finished=False) if self._said else None

    def _spoke(self, words: str, *, finished: bool) -> Turn:
        self._spoken.append(Turn(self.is_teachers, self._begin, self.n_tokens, words, finished))
        return self._spoken[-1]

    def _words(self) -> str:
        return self._turns.words(self._said, first=not self._spoken)
