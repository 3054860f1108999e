"""Oracles made of oracles, one law at a time; the oracles inside are real functions, threads and coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cautious_imitation.oracles.combinators import (
    cached,
    concurrent,
    first_of,
    majority_of,
    with_budget,
    with_callbacks,
    with_retry,
    with_timeout,
)
from cautious_imitation.oracles.function import AsyncFunctionOracle, FunctionOracle, as_oracle
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import Act, Decline, HelpNeeded, OracleError, Query

V = 4


def questions(*contexts: Sequence[int], episode: int | None = None, asker: str = "run") -> list[Query]:
    return [Query(tuple(context), V, episode=episode, asker=asker) for context in contexts]


def last(query: Query) -> int:
    return query.context[-1]


class Counting:
    """Answers with the last symbol; keeps what it was asked."""

    def __init__(self, reply: Any = last) -> None:
        self.reply, self.batches = reply, list[list[Query]]()

    def ask(self, queries: Sequence[Query]) -> list[Any]:
        self.batches.append(list(queries))
        return FunctionOracle(self.reply).ask(queries)


class Waiting:
    """Cannot answer the contexts that begin with 0 now."""

    def ask(self, queries: Sequence[Query]) -> list[Any]:
        open_now = [query for query in queries if query.context[0] == 0]
        if open_now:
            raise HelpNeeded(open_now)
        return [Act((1,)) for _ in queries]


COMBINATORS = {
    "with_budget": lambda oracle: with_budget(oracle, 100),
    "with_timeout": lambda oracle: with_timeout(oracle, 60),
    "with_retry": lambda oracle: with_retry(oracle, 2, first_wait_seconds=0),
    "first_of": lambda oracle: first_of(oracle, lambda query: 0),
    "majority_of": lambda oracle: majority_of(oracle, evidence=True),
    "cached": cached,
    "concurrent": lambda oracle: concurrent(oracle, 3),
    "with_callbacks": lambda oracle: with_callbacks(oracle, on_query=lambda query: None),
}


@pytest.mark.parametrize("name", COMBINATORS)
@given(contexts=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=3), unique_by=tuple, max_size=6))
def test_answers_come_in_order_and_go_through(name: str, contexts: list[list[int]]) -> None:
    oracle = COMBINATORS[name](last)
    assert oracle.ask(questions(*contexts)) == [Act((context[-1],)) for context in contexts]


@pytest.mark.parametrize("name", COMBINATORS)
@pytest.mark.parametrize("wrong", [lambda query: 4, lambda query: 1.5, lambda query: [], lambda query: True])
def test_an_answer_that_is_none_is_an_error_through_each(name: str, wrong: Any) -> None:
    with pytest.raises(OracleError, match="oracle must answer with"):
        COMBINATORS[name](wrong).ask(questions([0]))


@pytest.mark.parametrize("name", COMBINATORS)
def test_too_many_answers_are_an_error_through_each(name: str) -> None:
    class Double:
        def ask(self, queries: Sequence[Query]) -> list[Any]:
            return [Act((0,))] * (2 * len(queries))

    with pytest.raises(OracleError, match=r"must give a list of one answer a question, got (2|4) answers"):
        COMBINATORS[name](Double()).ask(questions([0], [1]))


@pytest.mark.parametrize("name", COMBINATORS)
def test_what_an_oracle_raises_goes_through_each(name: str) -> None:
    with pytest.raises(ZeroDivisionError):
        COMBINATORS[name](lambda query: 1 // 0).ask(questions([0]))


@pytest.mark.parametrize("name", COMBINATORS)
def test_questions_that_wait_go_through_each(name: str) -> None:
    queries = questions([0], [1], [0, 2])
    with pytest.raises(HelpNeeded) as caught:
        COMBINATORS[name](Waiting()).ask(queries)
    assert [query.id for query in caught.value.queries] == [queries[0].id, queries[2].id]


def test_a_budget_is_spent_once_and_says_so() -> None:
    inner = Counting()
    oracle = with_budget(inner, 2)
    first, second = questions([1], [2], [3]), questions([1])
    answers = oracle.ask(first)
    assert answers[:2] == [Act((1,)), Act((2,))]
    assert answers[2] == Decline("the budget of 2 questions per run is spent", independent=True)
    assert isinstance(oracle.ask(second)[0], Decline)
    assert oracle.ask(first[:2]) == answers[:2], "a question that is repeated counts once"
    assert oracle.ask(questions([1], asker="other")) == [Act((1,))]
    assert [len(batch) for batch in inner.batches] == [2, 2, 1]


def test_a_budget_per_episode_counts_each_episode() -> None:
    oracle = with_budget(last, 1, per="episode")
    answers = oracle.ask([*questions([1], [2], episode=0), *questions([3], episode=1)])
    assert [isinstance(answer, Act) for answer in answers] == [True, False, True]
    with pytest.raises(ValueError, match=r"query\.episode must be known"):
        oracle.ask(questions([1]))


def test_a_budget_counts_what_was_asked_before_the_run_was_resumed(tmp_path: Any) -> None:
    log = QueryLog(tmp_path / "questions.db")
    before = questions([1], [2], [3])
    log.post(before)
    for query, answer in zip(before, with_budget(last, 2).ask(before), strict=True):
        log.answer(query.id, answer, by="oracle")
    assert isinstance(with_budget(last, 3, log=log).ask(questions([0]))[0], Act)
    assert isinstance(with_budget(last, 2, log=log).ask(questions([0]))[0], Decline)
    assert isinstance(with_budget(last, 2).ask(questions([0]))[0], Act)


def test_what_comes_too_late_is_declined_and_dropped() -> None:
    release, asked = threading.Event(), list[Query]()

    def slow(query: Query) -> int:
        asked.append(query)
        release.wait(60)
        return 1

    answer = with_timeout(slow, 0.05).ask(questions([0]))[0]
    release.set()
    assert answer == Decline("no answer within 0.05 s")
    assert not answer.independent
    assert asked[0].deadline is not None


def test_the_earlier_deadline_counts() -> None:
    inner = Counting()
    with_timeout(with_timeout(inner, 1000), 50).ask(questions([0]))
    with_timeout(with_timeout(inner, 50), 1000).ask(questions([0]))
    (outer,), (nested,) = inner.batches
    assert outer.deadline is not None
    assert nested.deadline is not None
    assert abs(outer.deadline - nested.deadline) < 40


def test_a_failure_is_tried_again_so_often_and_no_more() -> None:
    calls = list[int]()

    def flaky(query: Query) -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("not yet")
        return 2

    assert with_retry(flaky, 3, first_wait_seconds=0).ask(questions([0])) == [Act((2,))]
    calls.clear()
    with pytest.raises(ConnectionError, match="not yet"):
        with_retry(flaky, 2, first_wait_seconds=0).ask(questions([0]))
    assert len(calls) == 2
    calls.clear()
    declined = with_retry(flaky, 2, first_wait_seconds=0, on_failure="decline").ask(questions([0], [1]))
    assert declined == [Decline("ConnectionError: not yet")] * 2
    calls.clear()
    with pytest.raises(ConnectionError):
        with_retry(flaky, 3, on=KeyError, first_wait_seconds=0).ask(questions([0]))
    assert len(calls) == 1


def test_a_question_that_waits_is_no_failure() -> None:
    asked = list[Query]()

    def waits(query: Query) -> int:
        asked.append(query)
        raise HelpNeeded(query)

    with pytest.raises(HelpNeeded):
        with_retry(waits, 3, first_wait_seconds=0, on_failure="decline").ask(questions([0]))
    assert len(asked) == 1


def test_a_decline_falls_to_the_next_and_is_remembered() -> None:
    inner = Counting()
    oracle = first_of(lambda query: 3 if query.context[0] == 1 else None, inner)
    assert oracle.ask(questions([1], [2], [0])) == [
        Act((3,)),
        Act((2,), independent=False),
        Act((0,), independent=False),
    ]
    assert [query.context for query in inner.batches[0]] == [(2,), (0,)]
    freely = first_of(with_budget(last, 1), last)
    assert freely.ask(questions([1], [2])) == [Act((1,)), Act((2,))]
    assert first_of(lambda query: None).ask(questions([1])) == [Decline("the oracle returned None")]
    refused = first_of(lambda query: None, lambda query: Decline("busy", independent=True)).ask(questions([1]))
    assert refused == [Decline("busy", independent=False)]


@given(votes=st.lists(st.sampled_from([0, 1, 2, None]), min_size=1, max_size=7))
def test_a_majority_is_more_than_half(votes: list[int | None]) -> None:
    (answer,) = majority_of(*((lambda query, vote=vote: vote) for vote in votes)).ask(questions([0]))
    winners = [vote for vote in set(votes) if vote is not None and 2 * votes.count(vote) > len(votes)]
    if winners:
        assert answer == Act((winners[0],), evidence=False)
    else:
        assert isinstance(answer, Decline)
        assert not answer.independent


def test_what_is_remembered_is_no_new_evidence() -> None:
    inner = Counting(lambda query: None if query.context == (3,) else last(query))
    oracle = cached(inner)
    assert oracle.ask(questions([1], [1], [2])) == [Act((1,)), Act((1,), evidence=False), Act((2,))]
    assert oracle.ask(questions([2])) == [Act((2,), evidence=False)]
    assert [len(batch) for batch in inner.batches] == [2]
    assert isinstance(oracle.ask(questions([3]))[0], Decline)
    assert isinstance(oracle.ask(questions([3]))[0], Decline)
    assert len(inner.batches) == 3, "a decline is asked again"


def test_what_was_used_longest_ago_is_forgotten() -> None:
    inner = Counting()
    oracle = cached(inner, max_entries=2)
    for context in ([0], [1], [0], [2], [0], [1]):
        oracle.ask(questions(context))
    assert [batch[0].context for batch in inner.batches] == [(0,), (1,), (2,), (1,)]


def test_so_many_at_once_and_no_more() -> None:
    running, most, lock, gate = [0], [0], threading.Lock(), threading.Barrier(3, timeout=60)

    def slow(query: Query) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        gate.wait()
        with lock:
            running[0] -= 1
        return query.context[0]

    assert concurrent(slow, 3).ask(questions([0], [1], [2], [3], [0], [1])) == [Act((a,)) for a in (0, 1, 2, 3, 0, 1)]
    assert most[0] == 3


def test_not_one_more_at_once() -> None:
    crowd = threading.Barrier(4)

    def slow(query: Query) -> int:
        with pytest.raises(threading.BrokenBarrierError):
            crowd.wait(0.2)
        return 0

    assert concurrent(slow, 3).ask(questions(*[[0]] * 6)) == [Act((0,))] * 6


def test_callbacks_see_every_question_and_answer_in_order() -> None:
    seen: list[Any] = []
    oracle = with_callbacks(last, on_query=seen.append, on_answer=lambda query, answer: seen.append((query, answer)))
    queries = questions([1], [2])
    oracle.ask(queries)
    assert seen == [*queries, (queries[0], Act((1,))), (queries[1], Act((2,)))]


def test_nothing_is_asked_of_an_oracle_that_has_nothing_to_do() -> None:
    inner = Counting()
    with_budget(inner, 0).ask(questions([0]))
    first_of(last, inner).ask(questions([0]))
    assert inner.batches == []


def test_coroutines_are_asked_at_the_same_time() -> None:
    async def colleague(query: Query) -> int:
        await asyncio.wait_for(all_here.wait_for_all(), 60)
        return query.context[0]

    class Meeting:
        def __init__(self, n: int) -> None:
            self.n, self.here = n, asyncio.Event()

        async def wait_for_all(self) -> None:
            self.n -= 1
            if self.n == 0:
                self.here.set()
            await self.here.wait()

    all_here = Meeting(3)
    oracle = as_oracle(colleague)
    assert isinstance(oracle, AsyncFunctionOracle)
    assert oracle.ask(questions([0], [1], [2])) == [Act((0,)), Act((1,)), Act((2,))]


def test_a_limit_of_coroutines_holds() -> None:
    running, most = [0], [0]

    async def colleague(query: Query) -> int:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0)
        running[0] -= 1
        return 0

    as_oracle(colleague, limit=2).ask(questions(*[[0]] * 6))
    assert most[0] == 2


def test_a_running_loop_is_no_obstacle() -> None:
    async def colleague(query: Query) -> int:
        await asyncio.sleep(0)
        return 3

    async def notebook() -> list[Any]:
        return list(as_oracle(colleague).ask(questions([0])))

    assert asyncio.run(notebook()) == [Act((3,))]


def test_an_object_that_is_called_asynchronously_is_asynchronous() -> None:
    class Colleague:
        async def __call__(self, query: Query) -> int:
            return 1

    assert as_oracle(Colleague()).ask(questions([0])) == [Act((1,))]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_budget(last, -1), "n must be at least 0, got -1"),
        (lambda: with_budget(last, 1, per="day"), 'per must be "run" or "episode", got \'day\''),
        (lambda: with_timeout(last, 0), "seconds must be positive, got 0"),
        (lambda: with_retry(last, 0), "attempts must be at least 1, got 0"),
        (lambda: with_retry(last, on_failure="shrug"), 'on_failure must be "raise" or "decline", got'),
        (lambda: first_of(), "first_of must be given at least one oracle"),
        (lambda: majority_of(), "majority_of must be given at least one oracle"),
        (lambda: cached(last, 0), "max_entries must be at least 1, got 0"),
        (lambda: concurrent(last, 0), "limit must be at least 1, got 0"),
        (lambda: AsyncFunctionOracle(last, 0), "limit must be at least 1, got 0"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_cannot_answer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"oracle must be a function, an object with ask\(queries\)"):
        as_oracle(3)
    with pytest.raises(TypeError, match="options go with what is made into an oracle, got limit"):
        as_oracle(Counting(), limit=2)
