"""Many chats moved forward together: one forward pass a token for those that move, answers, and the student's words."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cautious_imitation.demonstrations import actor_codes
from cautious_imitation.environments.row_decoder import RowDecoder
from cautious_imitation.environments.transcripts import ENVIRONMENT, IMITATOR, ChatEpisode, Turn
from cautious_imitation.environments.turns import Turns
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.oracles.protocol import Act, Answer, Decline, Oracle, Query, check_answers
from cautious_imitation.oracles.vocabulary import as_vocabulary
from cautious_imitation.questions import answered_by

TOLERANCE_NATS = 1e-6
"""So much an episode's charges may exceed its budget, all together: what rounding does."""


@dataclass(frozen=True)
class Progress:
    """What a step has done.

    Attributes:
        first: the token that was added first to each episode that moved, and its actor's code.
        turns: the turns that ended, with the episodes that they are of.
    """

    first: dict[int, tuple[int, int]]
    turns: list[tuple[int, Turn]]


class ChatEpisodes:
    """N chats with one model.

    Args:
        model: reads all of them and writes the student's tokens.
        turns: how turns end, and the opening.
        n_episodes: N.
        hidden_layers: see ``RowDecoder``.
        temperature: of the student.
        oracle: answers questions.
        asker: the name in questions.
        plays_on: whether a step goes on until the teacher is to speak again; if not, it adds one token.
    """

    def __init__(
        self,
        model: LanguageModel,
        turns: Turns,
        n_episodes: int,
        *,
        hidden_layers: int,
        temperature: float,
        oracle: Oracle | None,
        asker: str,
        plays_on: bool,
    ) -> None:
        self.decoder = RowDecoder(model, turns.opening, n_episodes, hidden_layers)
        self.running: list[ChatEpisode] = []
        self._model, self._turns, self._temperature = model, turns, temperature
        self._oracle, self._asker, self.plays_on = oracle, asker, plays_on
        self._vocabulary = as_vocabulary(model.tokenizer)
        self._seeds, self._n_begun = [0] * n_episodes, [0] * n_episodes

    def seed(self, seeds: Sequence[int]) -> None:
        """Give each place a seed; its episodes are numbered anew."""
        self._seeds, self._n_begun = list(seeds), [0] * len(seeds)

    def begin(self, rows: Sequence[int], length: int, budgets_nats: NDArray[np.float64]) -> None:
        """Begin episodes anew, all of them the first time; ``budgets_nats [N]`` are those of all places."""
        for row in rows:
            # What a student says depends on nothing but this and what was said to it.
            stream = np.random.default_rng([self._seeds[row], self._n_begun[row]])
            episode = ChatEpisode(self._turns, length, float(budgets_nats[row]), stream)
            self._n_begun[row] += 1
            if row < len(self.running):
                self.running[row] = episode
            else:
                self.running.append(episode)
        self.decoder.begin(rows)

    @property
    def acts(self) -> NDArray[np.bool_]:
        """Where the agent chooses the next token, ``[N]``."""
        return np.array([episode.acts for episode in self.running])

    @property
    def budget_left(self) -> NDArray[np.float64]:
        """Nats, ``[N]``; below zero by no more than ``TOLERANCE_NATS``."""
        return np.array([episode.budget_nats - episode.spent_nats for episode in self.running])

    def checked_charges(self, charges: ArrayLike) -> NDArray[np.float64]:
        """Charges of the next actions in nats, ``[N]``, zero where no agent acts.

        Raises:
            ValueError: if one is negative, not finite, or more than is left, beyond rounding.
        """
        array, acts, left = np.asarray(charges), self.acts, self.budget_left
        is_number = np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)
        if array.shape != acts.shape or not is_number:
            raise ValueError(
                f"charges must be {len(acts)} numbers in nats, one for each episode, got {array.dtype} of shape "
                f"{list(array.shape)}"
            )
        # Exact divergences may come out below zero by what rounding does.
        wrong = acts & ~((array >= -TOLERANCE_NATS) & (array < np.inf))
        if wrong.any():
            raise ValueError(
                f"charges must be finite and at least 0 nats, got {array[wrong][0]}; charge a divergence, which is "
                "never negative, and nothing that is infinite"
            )
        amounts: NDArray[np.float64] = np.where(acts, np.maximum(array.astype(np.float64), 0.0), 0.0)
        over = np.flatnonzero((amounts > 0) & (amounts > left + TOLERANCE_NATS))
        if len(over):
            row = int(over[0])
            raise ValueError(
                f"charges must be at most what is left of the budget, {max(left[row], 0.0):g} nats, got "
                f"{amounts[row]:g} in episode {row}; the budget is hard: choose a distribution that costs less"
            )
        return amounts

    def charge(self, amounts: NDArray[np.float64]) -> None:
        """Take checked charges off the budgets."""
        for row in np.flatnonzero(self.acts):
            self.running[row].charged(float(amounts[row]))

    def ask(self, rows: Sequence[int]) -> dict[int, Answer]:
        """Answers to what the teacher would say next in each of ``rows``, in tokens; nothing changes.

        Raises:
            ValueError: if there is no oracle.
            HelpNeeded: if they cannot be answered now.
        """
        if not rows:
            return {}
        if self._oracle is None:
            raise ValueError(
                f"actions must be below {self._model.n_symbols}, which asks, where there is no oracle; pass oracle=... "
                "to the environment"
            )
        queries = [self._query(row) for row in rows]
        answers = check_answers(self._oracle.ask(queries), queries)
        return {row: self._in_tokens(answer) for row, answer in zip(rows, answers, strict=True)}

    def step(self, tokens: Sequence[int], answers: dict[int, Answer]) -> Progress:
        """Add a token to each episode that is not over, and the student's, if it is its turn.

        Args:
            tokens: ``[N]``; used where the episode's agent acts and has not asked.
            answers: of those that have asked.
        """
        for row, answer in answers.items():
            if isinstance(answer, Decline):
                self.running[row].declined = True
            else:
                (actor,) = actor_codes([answered_by(answer)])
                self.running[row].answered(answer.actions, int(actor))
        rows = [row for row, episode in enumerate(self.running) if not episode.over]
        added = first = self._next(rows, tokens)
        turns: list[tuple[int, Turn]] = []
        while added:
            for row, (token, actor) in added.items():
                ended = self.running[row].put(token, actor)
                turns += [] if ended is None else [(row, ended)]
            read = [row for row in added if not self.running[row].over]
            if read:
                self.decoder.append(read, [added[row][0] for row in read])
            on = [row for row in read if self.plays_on and self.running[row].plays_on]
            added = self._next(on, tokens)
        self.decoder.drop([row for row, episode in enumerate(self.running) if episode.over])
        return Progress(first, turns)

    def _next(self, rows: Collection[int], tokens: Sequence[int]) -> dict[int, tuple[int, int]]:
        """The next token of each of ``rows``, and whose it is."""
        added: dict[int, tuple[int, int]] = {}
        for row in rows:
            given = self.running[row].given()
            if given is not None:
                added[row] = given
            elif self.running[row].is_teachers:
                added[row] = (int(tokens[row]), IMITATOR)
        students = [row for row in rows if row not in added]
        added |= zip(students, ((token, ENVIRONMENT) for token in self._drawn(students)), strict=True)
        return added

    @torch.no_grad()
    def _drawn(self, rows: Sequence[int]) -> list[int]:
        """The student's next token in each of ``rows``: the distribution function, inverted at a uniform number."""
        if not rows:
            return []
        features = self.decoder.features[torch.tensor(rows, device=self.decoder.features.device)]
        logits = self._model.logits(features).double()
        cumulative = (logits / self._temperature).softmax(-1).cumsum(-1)
        uniforms = torch.tensor([self.running[row].stream.random() for row in rows], dtype=torch.float64)
        # Uniform numbers are below one, so that what is sought stays below the total after rounding.
        sought = uniforms.to(cumulative.device)[:, None] * cumulative[:, -1:]
        drawn: list[int] = torch.searchsorted(cumulative, sought, right=True)[:, 0].tolist()
        return drawn

    def _query(self, row: int) -> Query:
        context = tuple(self.running[row].context.tolist())
        number = self._n_begun[row] - 1
        # Another policy comes to other questions at the same place.
        digest = sha256(np.array(context, dtype="<i8").tobytes()).hexdigest()[:12]
        return Query(
            context,
            self._model.n_symbols,
            text=self._turns.text(context),
            messages=() if self._vocabulary is None else self._vocabulary.messages(context),
            id=f"{self._asker}/{self._seeds[row]}/{number}/{len(context)}/{digest}",
            asker=self._asker,
            episode=number,
        )

    def _in_tokens(self, answer: Answer) -> Answer:
        """Words as the tokens that say them and end the turn; words that cannot be said are no answer."""
        if isinstance(answer, Decline) or answer.text is None:
            return answer
        tokens = self._turns.reply(answer.text)
        outside = [token for token in tokens if token >= self._model.n_symbols]
        if outside:
            return Decline(f"the answer {answer.text[:200]!r} takes token {outside[0]}, which the model cannot say")
        return Act(tokens, evidence=answer.evidence, independent=answer.independent)
