"""Episodes in which an imitator acts, asks and learns from the answers, and which survive whatever stops them.

The random numbers of an episode depend on the seed and on where it stands, and questions are called by run, episode and
position. What happens is therefore a function of the answers alone: a run that is repeated from its last saved state
comes to the same questions. Its state is saved whenever answers were taken, before anything follows from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cautious_imitation.demonstrations import Demonstrations, actor_codes
from cautious_imitation.imitators import AfterDecline, BayesianImitator, CautiousImitator, check_after_decline
from cautious_imitation.oracles.function import Answerer, Reply, as_answer
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import (
    Act,
    Answer,
    Decline,
    OracleError,
    Query,
    UnknownQuery,
    answers_at_hand,
)
from cautious_imitation.oracles.queued import Log, opened, queued
from cautious_imitation.oracles.replay import recorded
from cautious_imitation.questions import answered_by, in_actions, some_contexts
from cautious_imitation.run_state import Episode, RunState, Start, read_state, write_state
from cautious_imitation.sampling import CountedGenerator, draw, on_host
from cautious_imitation.types import Actor

Partner: TypeAlias = Callable[[tuple[int, ...], np.random.Generator], Sequence[int] | None]
"""What the other side says after the symbols so far: nothing if it is the imitator's turn, None to end the episode."""

_LOG = "questions.db"
_SAME_ASK = 1e-4


class Imitation:
    """A run of episodes in which an imitator acts, asks and learns.

    All episodes go on until each has ended or waits with a question; then all questions are asked together. Those that
    cannot be answered now stay pending, while the other episodes go on.

    Args:
        imitator: as it is at the beginning of the run; it learns from answers while the run goes on.
        partner: the other side. Where a run was killed it is called once more with what was said since the state was
            last saved; where it was stopped between two calls of ``advance``, nothing is repeated.
        n_episodes: how many.
        horizon: longest episode in symbols, both sides together.
        seed: of all random numbers.
        name: of the run, for those who answer; ids of questions begin with it.
        oracle: answers questions; default the imitator's. Without one people do, through the log.
        log: where questions and answers are kept; default ``questions.db`` in the folder, or in memory without one.
        folder: where the run is kept, made if it is not there. The same call with the same folder goes on with a run
            that was stopped, however it was. None keeps nothing.
        learn: whether answers, and under ``evidence="all"`` its own actions, are learned from as they are made.
        after_decline: what follows where the oracle declines: the episode ends, or the imitator acts on its own.

    Raises:
        ValueError: if a number is out of range, or the folder has a run with other settings or of another imitator.
        LogError: if the log cannot be used.

    >>> from cautious_imitation.hypotheses.context_tree import ContextTree
    >>> imitator = CautiousImitator(ContextTree(2, depth=1), alpha=0.01)
    >>> run = Imitation(imitator, lambda symbols, rng: (), n_episodes=2, horizon=3, seed=0)
    >>> run.advance(), len(run.pending())
    (False, 2)
    >>> while not run.advance():
    ...     for query in run.remaining():
    ...         run.answer(query.id, 1, by="Ada")
    >>> [episode.ended for episode in run.episodes]
    ['horizon', 'horizon']
    """

    def __init__(
        self,
        imitator: BayesianImitator | CautiousImitator,
        partner: Partner,
        *,
        n_episodes: int,
        horizon: int,
        seed: int,
        name: str = "run",
        oracle: Answerer | None = None,
        log: Log | None = None,
        folder: str | PathLike[str] | None = None,
        learn: bool = True,
        after_decline: AfterDecline = "stop",
    ) -> None:
        for what, number, least in (("n_episodes", n_episodes, 1), ("horizon", horizon, 1), ("seed", seed, 0)):
            if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or number < least:
                raise ValueError(f"{what} must be an integer of at least {least}, got {number!r}")
        check_after_decline(after_decline)
        self.imitator, self.partner = imitator, partner
        self.folder = None if folder is None else Path(folder)
        self._settings = {
            "name": name,
            "n_episodes": int(n_episodes),
            "horizon": int(horizon),
            "seed": int(seed),
            "learn": learn,
            "after_decline": after_decline,
            "evidence": imitator.evidence,
        }
        self.name, self._horizon, self._seed, self._learn = name, int(horizon), int(seed), learn
        self._after_decline = after_decline
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        default_log = ":memory:" if self.folder is None else self.folder / _LOG
        self.log: QueryLog = opened(default_log if log is None else log)
        oracle = imitator.oracle if oracle is None else oracle
        self._oracle = queued(self.log) if oracle is None else recorded(oracle, self.log)
        self._uniforms = np.stack([np.random.default_rng([seed, 0, row]).random(horizon) for row in range(n_episodes)])
        self.episodes = [Episode() for _ in range(n_episodes)]
        self._dice = CountedGenerator(int(seed), 1)
        self._learned: list[tuple[int, int]] = []
        # Whatever reads with a language model takes contexts of different lengths at once.
        self._reads = callable(getattr(getattr(imitator.hypotheses, "model", None), "read", None))
        self._first: Start | None = None
        self._queries: dict[str, Query] = {}
        self._resume()

    @property
    def finished(self) -> bool:
        """Whether every episode has ended."""
        return all(episode.ended is not None for episode in self.episodes)

    def advance(self) -> bool:
        """Go on as far as the answers at hand allow; returns whether every episode has ended.

        Raises:
            OracleError, or what the oracle raises: the run stays as it was, and may go on.
        """
        for _ in self._rounds():
            pass
        return self.finished

    def run(self, *, progress: bool = True, poll_seconds: float = 1.0) -> Imitation:
        """Go on until every episode has ended, waiting for whoever answers; returns self.

        Interrupting it loses nothing: what was kept where is said, and ``advance`` or ``run`` goes on.

        Args:
            progress: show a progress bar on standard error, and at the end what is kept where.
            poll_seconds: how often answers are looked for while questions wait.
        """
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*columns, console=console, disable=not progress)
        task = bar.add_task(self.name, total=len(self.episodes))
        try:
            with bar:
                while not self.finished:
                    for _ in self._rounds():
                        bar.update(task, completed=self._n_ended(), description=f"{self.name}: {self._where()}")
                    if not self.finished:
                        time.sleep(poll_seconds)
        except KeyboardInterrupt:
            console.print(f"interrupted; {self._where()}, kept in {self.folder or 'memory'}", soft_wrap=True)
            raise
        if progress:
            console.print(f"{self._where()}, kept in {self.folder or 'memory'}", soft_wrap=True)
        return self

    def pending(self) -> list[Query]:
        """The questions that episodes wait with, answered ones too until the run goes on."""
        return [self._query(episode.waiting) for episode in self.episodes if episode.waiting is not None]

    def remaining(self) -> list[Query]:
        """Those of the pending questions that nobody has answered or declined."""
        return [query for query in self.pending() if self.log.entry(query.id).answer is None]

    def answer(self, id: str, reply: Reply, by: str = "") -> None:
        """Answer a question of this run; the same answer twice is one.

        Args:
            id: the question's.
            reply: an action, several in a row, a whole reply in words, an ``Act``, a ``Decline``, or None to decline.
            by: who answers.

        Raises:
            UnknownQuery: if this run asks no question of that id.
            AnswerConflict: if it has another answer, or somebody else is at it.
            OracleError: if the reply is none, or cannot be written in the imitator's symbols.
        """
        entry = self.log.entry(id)
        if entry.query.asker != self.name:
            raise UnknownQuery(f"question {id!r} is one of {entry.query.asker!r}, not of this run, {self.name!r}")
        answer = as_answer(reply, entry.query)
        found = in_actions(answer, entry.query, self.imitator.vocabulary)
        if isinstance(found, Decline) and not isinstance(answer, Decline):
            raise OracleError(found.reason)
        self.log.answer(id, answer, by)

    def demonstrations(self) -> Demonstrations:
        """What was done, by whom, to learn from."""
        return Demonstrations(
            tuple(np.array(episode.symbols, dtype=np.int64) for episode in self.episodes),
            tuple(actor_codes(episode.actors) for episode in self.episodes),
        )

    def _rounds(self) -> Iterator[None]:
        """Go on as far as possible, one action of each episode that moves, or one batch of answers, at a time."""
        try:
            while True:
                moving = [row for row, e in enumerate(self.episodes) if e.ended is None and e.waiting is None]
                if moving:
                    self._step(moving)
                elif not self._take_answers():
                    return
                yield
        finally:
            self._save()

    def _step(self, rows: Sequence[int]) -> None:
        """Every one of ``rows`` does one action, or comes to a question or to its end."""
        acting = [row for row in rows if self._partner_moves(row)]
        contexts = {row: self.episodes[row].symbols for row in acting if not self.episodes[row].reply}
        moves = self._moves(contexts)
        for row in acting:
            episode = self.episodes[row]
            if episode.reply:
                symbol, actor = episode.reply.pop(0)
                self._act(row, symbol, actor)
                continue
            symbol, query = moves[row]
            if query is None:
                self._act(row, symbol, Actor.IMITATOR)
            else:
                episode.waiting, episode.instead = query.id, symbol
                self._queries[query.id] = query

    def _moves(self, contexts: dict[int, list[int]]) -> dict[int, tuple[int, Query | None]]:
        """An action for each context by its row, and the question where the imitator asks."""
        found: dict[int, tuple[int, Query | None]] = {}
        for rows in self._batches(contexts):
            batch: Any = [np.array(contexts[row], dtype=np.int64) for row in rows]
            if not self._reads:
                batch = np.stack(batch)
            prediction = self.imitator.predict(batch)
            asking_probability = np.exp(on_host(prediction.log_ask).reshape(-1))
            self._remember_start(contexts[rows[0]], float(asking_probability[0]))
            drawn = draw(prediction, np.array([self._uniforms[row, len(contexts[row])] for row in rows]))
            asking = np.flatnonzero(drawn.asks).tolist()
            names = [
                {"id": f"{self.name}/{rows[i]}/{len(contexts[rows[i]])}", "asker": self.name, "episode": rows[i]}
                for i in asking
            ]
            asked = self.imitator.questions(some_contexts(batch, asking), asking_probability[asking], names)
            queries = dict(zip(asking, asked, strict=True))
            found |= {row: (int(drawn.symbols[i]), queries.get(i)) for i, row in enumerate(rows)}
        return found

    def _batches(self, contexts: dict[int, list[int]]) -> list[list[int]]:
        """Rows that can be predicted together: language models read contexts of any lengths, others of one."""
        if self._reads:
            return [list(contexts)] if contexts else []
        by_length: dict[int, list[int]] = {}
        for row, context in contexts.items():
            by_length.setdefault(len(context), []).append(row)
        return list(by_length.values())

    def _partner_moves(self, row: int) -> bool:
        """Let the partner speak; whether it is the imitator's turn then."""
        episode = self.episodes[row]
        if episode.listened:
            return True
        episode.listened = True
        said = self.partner(tuple(episode.symbols), self._dice.at(row, len(episode.symbols)))
        if said is None:
            episode.ended = "partner"
            return False
        said = [int(symbol) for symbol in said][: self._horizon - len(episode.symbols)]
        if said:
            # What is left of an answer was meant for what was said before.
            episode.reply = []
        episode.symbols += said
        episode.actors += [Actor.ENVIRONMENT] * len(said)
        return not self._at_horizon(episode)

    def _act(self, row: int, symbol: int, actor: Actor) -> None:
        episode = self.episodes[row]
        if (
            self._learn
            and actor is not Actor.ORACLE
            and (actor is Actor.DEMONSTRATOR or self.imitator.evidence == "all")
        ):
            self._observe(episode, len(episode.symbols), symbol, actor)
            self._learned.append((row, len(episode.symbols)))
        episode.symbols.append(symbol)
        episode.actors.append(actor)
        episode.listened = False
        self._at_horizon(episode)

    def _observe(self, episode: Episode, position: int, symbol: int, actor: Actor) -> None:
        self.imitator.observe(np.array(episode.symbols[:position], dtype=np.int64), symbol, actor)

    def _at_horizon(self, episode: Episode) -> bool:
        if len(episode.symbols) >= self._horizon:
            episode.ended = "horizon"
        return episode.ended is not None

    def _take_answers(self) -> bool:
        """Ask what the episodes wait with; whether there was an answer."""
        waiting = {row: e.waiting for row, e in enumerate(self.episodes) if e.waiting is not None}
        answers = answers_at_hand(self._oracle, [self._query(id) for id in waiting.values()])
        for row, id in waiting.items():
            if id in answers:
                self._apply(row, in_actions(answers[id], self._query(id), self.imitator.vocabulary))
        # Before anything follows from these answers, so that no other answers can ever have come here in their place.
        self._save()
        return bool(answers)

    def _apply(self, row: int, answer: Answer) -> None:
        episode = self.episodes[row]
        query = self._query(episode.waiting)
        del self._queries[query.id]
        episode.waiting = None
        episode.questions += 1
        episode.dependent += not answer.independent
        if isinstance(answer, Act):
            episode.reply = [(action, answered_by(answer)) for action in answer.actions]
            return
        episode.declines += 1
        if self._after_decline == "act" and episode.instead is not None and episode.instead < self.imitator.n_symbols:
            episode.reply = [(episode.instead, Actor.IMITATOR)]
        else:
            episode.ended = "declined"

    def _query(self, id: str | None) -> Query:
        """A question that is waited with; that of a run that was resumed is in the log."""
        assert id is not None
        if id not in self._queries:
            self._queries[id] = self.log.entry(id).query
        return self._queries[id]

    def _n_ended(self) -> int:
        return sum(episode.ended is not None for episode in self.episodes)

    def _where(self) -> str:
        asked = sum(episode.questions for episode in self.episodes)
        waiting = sum(episode.waiting is not None for episode in self.episodes)
        return f"{self._n_ended()} of {len(self.episodes)} episodes, {asked} questions, {waiting} waiting"

    def _remember_start(self, context: list[int], ask_probability: float) -> None:
        if self._first is None:
            self._first = Start(list(context), ask_probability)

    def _save(self) -> None:
        if self.folder is not None:
            write_state(self.folder, RunState(1, self._settings, self._first, self.episodes, self._learned))

    def _resume(self) -> None:
        """Take up what the folder has, if it has something."""
        state = None if self.folder is None else read_state(self.folder, self._settings)
        if state is None:
            return
        if state.first is not None:
            self._check_start(state.first)
        self.episodes, self._first, self._learned = state.episodes, state.first, state.learned
        for row, position in self._learned:
            episode = self.episodes[row]
            self._observe(episode, position, episode.symbols[position], episode.actors[position])

    def _check_start(self, first: Start) -> None:
        context: Any = np.array(first.context, dtype=np.int64)[None]
        now = float(np.exp(on_host(self.imitator.predict(list(context) if self._reads else context).log_ask)).item())
        if abs(now - first.ask_probability) > _SAME_ASK:
            raise ValueError(
                f"imitator must be as it was at the beginning of the run in {self.folder}: it asked with probability "
                f"{first.ask_probability:.6g} at {first.context}, this one does with {now:.6g}; the run learns "
                "its answers again by itself"
            )
