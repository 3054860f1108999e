"""Oracles made of oracles: budgets, patience, retries, fallbacks, votes. Each takes whatever ``as_oracle`` takes."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from cautious_imitation.oracles.function import Answerer, as_oracle
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import Act, Answer, Decline, HelpNeeded, Oracle, Query, check_answers

Per: TypeAlias = Literal["run", "episode"]
OnFailure: TypeAlias = Literal["raise", "decline"]


def with_budget(oracle: Answerer, n: int, per: Per = "run", *, log: QueryLog | None = None) -> Oracle:
    """Asks at most ``n`` questions of a run or an episode, and declines the others.

    A question that is repeated counts once. Which questions are declined does not depend on what their answers would
    be, so these declines take nothing from a certificate.

    Args:
        oracle: who is asked.
        n: how many questions.
        per: ``"run"`` counts all questions of one asker together, ``"episode"`` those of each episode.
        log: where the run's answers are recorded: what was asked before it was resumed counts too.

    Raises:
        ValueError: if ``n`` is negative or ``per`` is neither.

    >>> thrifty = with_budget(lambda query: 0, 1)
    >>> [type(answer).__name__ for answer in thrifty.ask([Query((0,), 2), Query((1,), 2)])]
    ['Act', 'Decline']
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n!r}; it counts questions")
    if per not in get_args(Per):
        raise ValueError(f'per must be "run" or "episode", got {per!r}')
    return _Budgeted(as_oracle(oracle), n, per, log)


def with_timeout(oracle: Answerer, seconds: float) -> Oracle:
    """Waits ``seconds`` for the answers to one batch, and declines those questions that were not answered by then.

    The questions' ``deadline`` tells whoever answers. A function that is still at it goes on in a thread of its own;
    what it finds later is dropped.

    Raises:
        ValueError: if ``seconds`` is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds!r}")
    return _Timed(as_oracle(oracle), seconds)


def with_retry(
    oracle: Answerer,
    attempts: int = 3,
    *,
    on: type[Exception] | tuple[type[Exception], ...] = Exception,
    first_wait_seconds: float = 1.0,
    longest_wait_seconds: float = 60.0,
    on_failure: OnFailure = "raise",
) -> Oracle:
    """Asks again if asking fails, after a pause that doubles each time, with jitter.

    A batch is repeated as a whole; ``concurrent(with_retry(...))`` repeats single questions.

    Args:
        oracle: who is asked.
        attempts: how often in all.
        on: which exceptions count; ``HelpNeeded`` never does.
        first_wait_seconds: the first pause.
        longest_wait_seconds: no pause is longer.
        on_failure: what the last failure becomes: ``"raise"`` it, or ``"decline"`` the questions, so that ``first_of``
            goes on to the next oracle.

    Raises:
        ValueError: if ``attempts`` is below 1 or ``on_failure`` is neither.
    """
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, got {attempts!r}")
    if on_failure not in get_args(OnFailure):
        raise ValueError(f'on_failure must be "raise" or "decline", got {on_failure!r}')
    waits = wait_exponential_jitter(multiplier=first_wait_seconds, max=longest_wait_seconds, jitter=first_wait_seconds)
    return _Retried(as_oracle(oracle), attempts, on, waits, on_failure)


def first_of(*oracles: Answerer) -> Oracle:
    """Asks the first oracle; what it declines goes to the second, and so on. The last one's declines stand.

    Where a decline may have depended on the answer, so does that the next oracle is asked: its answer comes with
    ``independent=False``.

    Raises:
        ValueError: if there is no oracle.

    >>> cascade = first_of(lambda query: None, lambda query: 1)
    >>> cascade.ask([Query((0,), 2)])
    [Act((1,), independent=False)]
    """
    if not oracles:
        raise ValueError("first_of must be given at least one oracle, got none")
    return _Cascade([as_oracle(oracle) for oracle in oracles])


def majority_of(*oracles: Answerer, evidence: bool = False) -> Oracle:
    """Asks all oracles, and answers what more than half of them answer; without such an answer it declines.

    Args:
        *oracles: who is asked.
        evidence: whether the majority's answers may be learned from as the demonstrator's. Even if each oracle answers
            as the demonstrator does, the majority does not: it makes what is likely likelier still.

    Raises:
        ValueError: if there is no oracle.
    """
    if not oracles:
        raise ValueError("majority_of must be given at least one oracle, got none")
    return _Majority([as_oracle(oracle) for oracle in oracles], evidence)


def cached(oracle: Answerer, max_entries: int | None = None) -> Oracle:
    """Remembers answers by their context, and repeats them instead of asking again.

    An answer that is repeated is no new observation of the demonstrator: it comes with ``evidence=False``.

    Args:
        oracle: who is asked.
        max_entries: so many answers are remembered, those used last; None for all.

    Raises:
        ValueError: if ``max_entries`` is below 1.
    """
    if max_entries is not None and max_entries < 1:
        raise ValueError(f"max_entries must be at least 1, got {max_entries!r}; None remembers all")
    return _Cached(as_oracle(oracle), max_entries)


def concurrent(oracle: Answerer, limit: int) -> Oracle:
    """Asks each question of a batch by itself, up to ``limit`` at the same time, in threads.

    For oracles that wait: for a network, for a person.

    Raises:
        ValueError: if ``limit`` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit!r}")
    return _Concurrent(as_oracle(oracle), limit)


def with_callbacks(
    oracle: Answerer,
    *,
    on_query: Callable[[Query], object] | None = None,
    on_answer: Callable[[Query, Answer], object] | None = None,
) -> Oracle:
    """Tells of every question before it is asked, and of every answer.

    >>> seen = []
    >>> _ = with_callbacks(lambda query: 1, on_query=seen.append).ask([Query((0,), 2)])
    >>> seen[0].context
    (0,)
    """
    return _Watched(as_oracle(oracle), on_query, on_answer)


_BUDGET = "the budget of"


class _Budgeted:
    def __init__(self, oracle: Oracle, n: int, per: Per, log: QueryLog | None) -> None:
        self._oracle, self._n, self._per, self._log = oracle, n, per, log
        self._reason = f"{_BUDGET} {n} question{'' if n == 1 else 's'} per {per} is spent"
        self._asked: dict[tuple[str, int | None], set[str]] = {}

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        within = []
        for query in queries:
            asked = self._of(query)
            if query.id in asked or len(asked) < self._n:
                asked.add(query.id)
                within.append(query)
        answers = dict(zip((query.id for query in within), _ask(self._oracle, within), strict=True))
        return [answers.get(query.id, Decline(self._reason, independent=True)) for query in queries]

    def _of(self, query: Query) -> set[str]:
        """Ids of what was asked in the query's run or episode."""
        if self._per == "episode" and query.episode is None:
            raise ValueError(
                f'query.episode must be known to count questions per="episode", got None from {query.asker!r}; count '
                'per="run", or let Imitation or generate ask'
            )
        key = (query.asker, query.episode if self._per == "episode" else None)
        if key not in self._asked:
            self._asked[key] = set() if self._log is None else self._before(self._log, *key)
        return self._asked[key]

    def _before(self, log: QueryLog, asker: str, episode: int | None) -> set[str]:
        return {
            entry.query.id
            for entry in log.entries(asker=asker)
            if (self._per == "run" or entry.query.episode == episode)
            and entry.answer is not None
            and not (isinstance(entry.answer, Decline) and entry.answer.reason.startswith(_BUDGET))
        }


class _Timed:
    def __init__(self, oracle: Oracle, seconds: float) -> None:
        self._oracle, self._seconds = oracle, seconds

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        deadline = time.time() + self._seconds
        told = [
            replace(query, deadline=deadline if query.deadline is None else min(deadline, query.deadline))
            for query in queries
        ]
        outcome = _Outcome()
        # Not a pool: its threads are waited for when the interpreter ends, however long they take.
        threading.Thread(target=outcome.of, args=(self._oracle, told), daemon=True).start()
        if not outcome.done.wait(self._seconds):
            return [Decline(f"no answer within {self._seconds:g} s") for _ in queries]
        if outcome.error is not None:
            raise outcome.error
        return outcome.answers


class _Outcome:
    """What came of asking in another thread."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answers: list[Answer] = []
        self.error: BaseException | None = None

    def of(self, oracle: Oracle, queries: Sequence[Query]) -> None:
        try:
            self.answers = _ask(oracle, queries)
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that waits
            self.error = error
        finally:
            self.done.set()


class _Retried:
    def __init__(
        self,
        oracle: Oracle,
        attempts: int,
        on: type[Exception] | tuple[type[Exception], ...],
        waits: Callable[[RetryCallState], float],
        on_failure: OnFailure,
    ) -> None:
        self._oracle, self._on, self._on_failure = oracle, on, on_failure
        self._retrying = Retrying(
            stop=stop_after_attempt(attempts), wait=waits, retry=retry_if_exception(self._counts), reraise=True
        )

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        try:
            return self._retrying(_ask, self._oracle, queries)
        except self._on as error:
            if self._on_failure == "raise" or isinstance(error, HelpNeeded):
                raise
            return [Decline(f"{type(error).__name__}: {error}") for _ in queries]

    def _counts(self, error: BaseException) -> bool:
        return isinstance(error, self._on) and not isinstance(error, HelpNeeded)


class _Cascade:
    def __init__(self, oracles: Sequence[Oracle]) -> None:
        self._oracles = oracles

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        answers = _ask(self._oracles[0], queries)
        for oracle in self._oracles[1:]:
            left = [i for i, answer in enumerate(answers) if isinstance(answer, Decline)]
            if not left:
                break
            for i, answer in zip(left, _ask(oracle, [queries[i] for i in left]), strict=True):
                free = answers[i].independent and answer.independent
                answers[i] = replace(answer, independent=free)
        return answers


class _Majority:
    def __init__(self, oracles: Sequence[Oracle], evidence: bool) -> None:
        self._oracles, self._evidence = oracles, evidence

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        return [self._winner(votes) for votes in zip(*(_ask(oracle, queries) for oracle in self._oracles), strict=True)]

    def _winner(self, votes: Sequence[Answer]) -> Answer:
        acts = Counter(replace(vote, evidence=self._evidence) for vote in votes if isinstance(vote, Act))
        for act, count in acts.most_common(1):
            if 2 * count > len(votes):
                return act
        most = max(acts.values(), default=0)
        return Decline(f"no majority: the most frequent answer has {most} of {len(votes)} votes")


class _Cached:
    def __init__(self, oracle: Oracle, max_entries: int | None) -> None:
        self._oracle, self._max_entries = oracle, max_entries
        self._known: OrderedDict[tuple[tuple[int, ...], int], Act] = OrderedDict()

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        keys = [(query.context, query.n_actions) for query in queries]
        new: dict[tuple[tuple[int, ...], int], Query] = {}
        for key, query in zip(keys, queries, strict=True):
            if key not in self._known:
                new.setdefault(key, query)
        answers: dict[tuple[tuple[int, ...], int], Answer] = dict(
            zip(new, _ask(self._oracle, list(new.values())), strict=True)
        )
        found: list[Answer] = []
        for key, query in zip(keys, queries, strict=True):
            if key in new and new[key] is query:
                found.append(answers[key])
            else:
                answer = self._known.get(key, answers.get(key))
                found.append(replace(answer, evidence=False) if isinstance(answer, Act) else answers[key])
        for key in keys:
            answer = answers.get(key)
            if isinstance(answer, Act):
                self._known[key] = answer
            if key in self._known:
                self._known.move_to_end(key)
        while self._max_entries is not None and len(self._known) > self._max_entries:
            self._known.popitem(last=False)
        return found


class _Concurrent:
    def __init__(self, oracle: Oracle, limit: int) -> None:
        self._oracle, self._limit = oracle, limit

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        if len(queries) <= 1:
            return _ask(self._oracle, queries)
        with ThreadPoolExecutor(max_workers=min(self._limit, len(queries))) as pool:
            asked = [pool.submit(_ask, self._oracle, [query]) for query in queries]
        errors = [future.exception() for future in asked]
        waiting = [query for error in errors if isinstance(error, HelpNeeded) for query in error.queries]
        for error in errors:
            if error is not None and not isinstance(error, HelpNeeded):
                raise error
        if waiting:
            raise HelpNeeded(waiting)
        return [future.result()[0] for future in asked]


@dataclass(frozen=True)
class _Watched:
    oracle: Oracle
    on_query: Callable[[Query], object] | None
    on_answer: Callable[[Query, Answer], object] | None

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        if self.on_query is not None:
            for query in queries:
                self.on_query(query)
        answers = _ask(self.oracle, queries)
        if self.on_answer is not None:
            for query, answer in zip(queries, answers, strict=True):
                self.on_answer(query, answer)
        return answers


def _ask(oracle: Oracle, queries: Sequence[Query]) -> list[Answer]:
    """The answers, checked, so that the oracle that is wrong is the one that is named; nothing asks it nothing."""
    return check_answers(oracle.ask(queries), queries) if queries else []
