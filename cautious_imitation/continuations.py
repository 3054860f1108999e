"""Contexts that an imitator continues token by token: whose token each is, what was asked, and why a text ended.

How features are computed is not known here, so every way of decoding makes the same choices from the same features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cautious_imitation.demonstrations import Demonstrations, actor_codes
from cautious_imitation.imitators import AfterDecline, BayesianImitator, CautiousImitator
from cautious_imitation.language.model import Reading
from cautious_imitation.oracles.protocol import Act, Answer, Decline, HelpNeeded, Oracle, Query, answers_at_hand
from cautious_imitation.questions import answered_by, in_actions, some_contexts
from cautious_imitation.types import Actor

Tensor = torch.Tensor

Ending: TypeAlias = Literal["stop", "length", "window", "question", "declined"]
"""Why a text ended: a stop token, enough tokens, a full window, a question too many, or one that was declined."""

_IMITATOR, _ENVIRONMENT = actor_codes([Actor.IMITATOR, Actor.ENVIRONMENT])
_UNIFORMS_AT_ONCE = 64


@dataclass(frozen=True)
class Question:
    """A question that was asked and answered or declined; its context is everything before ``position``.

    Attributes:
        position: index of the generated token that the answer begins with.
        answer: the tokens of the whole reply, those that come after the text's end and were not used among them; empty
            if it was declined.
        declined: why there is no answer; None if there is one.
    """

    position: int
    answer: tuple[int, ...]
    declined: Decline | None = None


@dataclass(frozen=True, eq=False)
class Generated:
    """What followed one context.

    Attributes:
        tokens: ``[L]`` int64, the continuation without its context.
        actors: ``[L]`` uint8, who chose each token, as ``actor_codes`` writes them.
        log_probs: ``[L]``, log-probability in nats that the imitator gave to the token, whoever chose it. The rest up
            to one is other tokens and asking.
        log_ask: ``[L]``, log-probability in nats of asking before the token.
        questions: what was asked and answered, in order.
        ended: why the text ended: ``"stop"`` (its last token is a stop token), ``"length"``, ``"window"``,
            ``"question"`` or ``"declined"``.
        open_question: what the imitator would have asked next, where it ended with ``"question"``, or was refused an
            answer to, where it ended with ``"declined"``; else None.
    """

    tokens: NDArray[np.int64]
    actors: NDArray[np.uint8]
    log_probs: NDArray[np.float64]
    log_ask: NDArray[np.float64]
    questions: tuple[Question, ...]
    ended: Ending
    open_question: Query | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def finished(self) -> bool:
        """Whether it ended with a stop token, as a text does that is complete."""
        return self.ended == "stop"


def as_demonstrations(contexts: Sequence[ArrayLike], generated: Sequence[Generated]) -> Demonstrations:
    """Contexts with what followed them, as something to learn from: each answer is the demonstrator's doing.

    Args:
        contexts: one sequence of tokens ``[L]`` each. They count as the environment's, so nothing is learned from them.
        generated: what followed each.

    Raises:
        ValueError: if there are not as many of both, or there are none.

    >>> text = Generated(np.array([3, 1]), actor_codes(["imitator", "demonstrator"]), *np.zeros((2, 2)), (), "length")
    >>> as_demonstrations([[5, 6]], [text])
    Demonstrations(1 sequence, 4 symbols: 1 demonstrator, 1 imitator, 2 environment)
    """
    if len(contexts) != len(generated):
        raise ValueError(f"generated must hold one text a context, got {len(generated)} for {len(contexts)} contexts")
    sequences, actors = [], []
    for context, text in zip(contexts, generated, strict=True):
        tokens = np.asarray(context)
        sequences.append(np.concatenate([tokens, text.tokens]) if tokens.size else text.tokens)
        actors.append(np.concatenate([np.full(tokens.shape, _ENVIRONMENT), text.actors]))
    return Demonstrations(tuple(sequences), tuple(actors))


class Continuations:
    """Texts that grow by a token a step, all at once, until each has ended.

    Every text draws from a stream of random numbers of its own, one number a token. What it says depends on the seed
    and its place in the list, not on the other texts, and not on how long it may become.

    Args:
        imitator: whose predictions decide.
        contexts: N of them, ``[L]`` long on the host.
        generator: gives the streams their seed.
        stop_tokens: tokens that end a text, whoever says them.
        oracle: answers questions; with None nobody does.
        after_decline: what follows where the oracle declines: the text ends, or the imitator acts on its own.
        run: the asker's name in questions; None for one that follows from the generator's state.
        max_questions: questions a text; it ends where it would ask once more. None for any number.
        max_length: longest context with its continuation; None for any length.
    """

    def __init__(
        self,
        imitator: BayesianImitator | CautiousImitator,
        contexts: Sequence[Tensor],
        *,
        generator: torch.Generator,
        stop_tokens: Collection[int],
        oracle: Oracle | None,
        after_decline: AfterDecline,
        run: str | None,
        max_questions: int | None,
        max_length: int | None,
    ) -> None:
        self._imitator, self._oracle, self._after_decline = imitator, oracle, after_decline
        self._stop_tokens, self._max_questions = frozenset(stop_tokens), max_questions
        longest = max((len(context) for context in contexts), default=0)
        self._pads = [longest - len(context) for context in contexts]
        self._history = torch.zeros((len(contexts), longest), dtype=torch.long)
        for row, context in enumerate(contexts):
            self._history[row, self._pads[row] :] = context
        self._room = [None if max_length is None else max_length - len(context) for context in contexts]
        self._endings: list[Ending | None] = [
            "window" if room is not None and room <= 0 else None for room in self._room
        ]
        self._lengths = [0] * len(contexts)
        self._questions: list[list[Question]] = [[] for _ in contexts]
        self._open: list[Query | None] = [None] * len(contexts)
        self._waiting: dict[int, Query] = {}
        self._pending: list[deque[tuple[int, np.uint8]]] = [deque() for _ in contexts]
        self._steps: list[tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]] = []
        seed = torch.randint(2**63 - 1, (2,), generator=generator, device=generator.device).tolist()
        self._run = run or f"generate-{seed[0]:016x}"
        self._streams = [np.random.default_rng([*seed, row]) for row in range(len(contexts))]
        self._uniforms = np.empty((len(contexts), 0))

    @property
    def n_steps(self) -> int:
        """How many tokens each text has that has not ended."""
        return len(self._steps)

    def growing(self) -> NDArray[np.int64]:
        """Which texts have not ended."""
        return np.flatnonzero([ending is None for ending in self._endings])

    def padded(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Contexts with continuations of ``rows [R]``, which have not ended: tokens and presence, ``[R, L]`` each.

        Padding is on the left, no more of it than needed; presence is false there.
        """
        pads = torch.tensor([self._pads[row] for row in rows])
        least = int(pads.min())
        present = torch.arange(least, self._history.shape[1]) >= pads[:, None]
        return self._history[torch.from_numpy(rows), least:], present

    @torch.no_grad()
    def grow(self, features: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Choose the next token of every text that has not ended.

        Args:
            features: ``[R, d]``, what the output head reads at the end of each of ``rows``.
            rows: ``[R]``, all texts that have not ended, and maybe some that have.

        Returns:
            ``[R]`` long on the host, the token of each; 0 where the text has ended.

        A text whose question cannot be answered now ends there, and ``generated`` raises ``HelpNeeded`` in the end.

        Raises:
            OracleError: if an answer is not one or more actions.
        """
        places = np.flatnonzero([self._endings[row] is None for row in rows])
        chosen = torch.zeros(len(rows), dtype=torch.long)
        if not len(places):
            return chosen
        live = rows[places]
        here = features if len(live) == len(rows) else features[torch.from_numpy(places).to(features.device)]
        reading = Reading([self._history[row, self._pads[row] :] for row in live], here)
        prediction = self._imitator.predict(reading)
        log_probs, log_ask = torch.as_tensor(prediction.log_probs), torch.as_tensor(prediction.log_ask)
        drawn, shares = self._draw(log_probs, log_ask, live)
        asking = [i for i, row in enumerate(live) if drawn[i] < 0 and not self._pending[row]]
        if asking:
            alone = self._after_decline == "act"
            instead = {i: _inverse(log_probs[i].exp(), shares[i]) for i in asking} if alone else {}
            for i in self._ask(reading, asking, live, log_ask, instead):
                drawn[i] = instead[i]
        tokens, actors = np.zeros(len(live), np.int64), np.zeros(len(self._pads), np.uint8)
        for i, row in enumerate(live):
            if self._endings[row] is None:
                answered = self._pending[row]
                tokens[i], actors[row] = answered.popleft() if answered else (drawn[i], _IMITATOR)
        picked = log_probs.gather(1, torch.from_numpy(tokens).to(log_probs.device)[:, None]).squeeze(1)
        self._record(live, tokens, actors, picked.double().cpu().numpy(), log_ask.double().cpu().numpy())
        chosen[torch.from_numpy(places)] = torch.from_numpy(tokens)
        return chosen

    def generated(self) -> list[Generated]:
        """All texts as they are now; one that has not ended counts as ended by its length.

        Raises:
            HelpNeeded: if questions wait for an answer; carries the open one of each text.
        """
        if self._waiting:
            raise HelpNeeded(self._waiting.values(), None if self._oracle is None else _AGAIN)
        first = self._history.shape[1] - self.n_steps
        nothing = (np.empty((0, len(self._pads)), np.uint8), *np.empty((2, 0, len(self._pads))))
        actors, log_probs, log_ask = map(np.stack, zip(*self._steps, strict=True)) if self._steps else nothing
        return [
            Generated(
                self._history[row, first : first + length].numpy().copy(),
                actors[:length, row].copy(),
                log_probs[:length, row].copy(),
                log_ask[:length, row].copy(),
                tuple(self._questions[row]),
                self._endings[row] or "length",
                self._open[row],
            )
            for row, length in enumerate(self._lengths)
        ]

    def _draw(
        self, log_probs: Tensor, log_ask: Tensor, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Invert the distribution function at one uniform number a row: a token, or -1 to ask, ``[R]``.

        Also, for rows that ask, where in the probability of asking the number fell, ``[R]``: uniform as well.
        """
        place = self.n_steps % _UNIFORMS_AT_ONCE
        if place == 0:
            self._uniforms = np.stack([stream.random(_UNIFORMS_AT_ONCE) for stream in self._streams])
        uniforms = torch.from_numpy(self._uniforms[rows, place]).to(log_probs.device)
        cumulative = torch.cat([log_ask[:, None], log_probs], 1).exp_().cumsum(1, dtype=torch.float64)
        # Uniform numbers are multiples of 2^-53 below one, so that the product stays below the total after rounding.
        sought = uniforms[:, None] * cumulative[:, -1:]
        reached = torch.searchsorted(cumulative, sought, right=True)
        drawn: NDArray[np.int64] = reached.squeeze(1).cpu().numpy() - 1
        shares: NDArray[np.float64] = (sought / cumulative[:, :1]).squeeze(1).cpu().numpy()
        return drawn, shares

    def _ask(
        self,
        reading: Reading,
        asking: Sequence[int],
        live: NDArray[np.int64],
        log_ask: Tensor,
        instead: Mapping[int, int],
    ) -> list[int]:
        """Answers of this step's questions become pending; texts that have no question left, or no answer, end.

        Args:
            reading: the contexts of ``live``.
            asking: which of them ask.
            live: ``[R]``, the texts that have not ended.
            log_ask: ``[R]``, in nats.
            instead: the token of each that goes on without an answer; V if there is none.

        Returns:
            Those of ``asking`` that go on without an answer.
        """
        rows = {i: int(live[i]) for i in asking}
        names = [
            {"id": f"{self._run}/{row}/{self.n_steps}", "asker": self._run, "episode": row} for row in rows.values()
        ]
        contexts = some_contexts(reading, asking)
        queries = dict(zip(asking, self._imitator.questions(contexts, log_ask[list(asking)].exp(), names), strict=True))
        for i in asking:
            row = rows[i]
            if self._max_questions is not None and len(self._questions[row]) >= self._max_questions:
                self._endings[row], self._open[row] = "question", queries.pop(i)
        alone = []
        for i, answer in self._answers(queries).items():
            row = rows[i]
            if isinstance(answer, Act):
                (actor,) = actor_codes([answered_by(answer)])
                self._pending[row].extend((action, actor) for action in answer.actions)
                self._questions[row].append(Question(self.n_steps, answer.actions))
                continue
            self._questions[row].append(Question(self.n_steps, (), answer))
            if instead.get(i, self._imitator.n_symbols) < self._imitator.n_symbols:
                alone.append(i)
            else:
                self._endings[row], self._open[row] = "declined", queries[i]
        for i in queries:
            if self._endings[rows[i]] is None and not self._pending[rows[i]] and i not in alone:
                self._endings[rows[i]], self._waiting[rows[i]] = "question", queries[i]
        return alone

    def _answers(self, queries: dict[int, Query]) -> dict[int, Answer]:
        """Answers to those that can be answered now."""
        if self._oracle is None:
            return {}
        found = answers_at_hand(self._oracle, list(queries.values()))
        vocabulary = self._imitator.vocabulary
        return {i: in_actions(found[query.id], query, vocabulary) for i, query in queries.items() if query.id in found}

    def _record(
        self,
        rows: NDArray[np.int64],
        tokens: NDArray[np.int64],
        actors: NDArray[np.uint8],
        log_probs: NDArray[np.float64],
        log_ask: NDArray[np.float64],
    ) -> None:
        column = torch.zeros((len(self._pads), 1), dtype=torch.long)
        spread = np.zeros((2, len(self._pads)))
        spread[0, rows], spread[1, rows] = log_probs, log_ask
        self._steps.append((actors, spread[0], spread[1]))
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            if self._endings[row] is not None:
                continue
            column[row] = token
            self._lengths[row] = length = self.n_steps
            if token in self._stop_tokens:
                self._endings[row] = "stop"
            elif self._room[row] == length:
                self._endings[row] = "window"
        self._history = torch.cat([self._history, column], 1)


_AGAIN = "the same call, with the generator as it was, goes on from there once they are answered"


def _inverse(probabilities: Tensor, share: float) -> int:
    """The token at which a ``share`` of the probabilities ``[V]`` is reached; V if all are zero."""
    cumulative = probabilities.cumsum(0, dtype=torch.float64)
    return int(torch.searchsorted(cumulative, share * cumulative[-1], right=True))
