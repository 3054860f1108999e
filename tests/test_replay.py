"""Answers that wait in a log, are kept there, and are given again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cautious_imitation.oracles.function import as_oracle
from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import Act, Answer, AnswerConflict, Decline, HelpNeeded, Query, UnknownQuery
from cautious_imitation.oracles.queued import queued
from cautious_imitation.oracles.replay import recorded, replay

V = 4


def question(*context: int, id: str = "a", **settings: Any) -> Query:
    return Query(context, V, id=id, **settings)


@pytest.fixture
def log(tmp_path: Path) -> QueryLog:
    return QueryLog(tmp_path / "questions.db")


def test_questions_wait_in_the_log_until_somebody_answers(log: QueryLog) -> None:
    oracle, queries = queued(log), [question(1), question(2, id="b")]
    for _ in range(2):
        with pytest.raises(HelpNeeded, match=r"oracle console .*questions\.db") as caught:
            oracle.ask(queries)
        assert [query.id for query in caught.value.queries] == ["a", "b"]
    log.answer("b", Act((3,)), by="Ada")
    with pytest.raises(HelpNeeded) as caught:
        oracle.ask(queries)
    assert [query.id for query in caught.value.queries] == ["a"]
    log.answer("a", Decline("no idea"), by="Ada")
    assert oracle.ask(queries) == [Decline("no idea"), Act((3,))]


def test_a_path_is_a_queue(tmp_path: Path) -> None:
    oracle = as_oracle(str(tmp_path / "questions.db"))
    with pytest.raises(HelpNeeded):
        oracle.ask([question(1)])
    assert QueryLog(tmp_path / "questions.db").entry("a").status is Status.OPEN


def test_waiting_ends_when_the_answer_comes(log: QueryLog) -> None:
    colleague = threading.Thread(target=answer_when_asked, args=(log.path,))
    colleague.start()
    assert queued(log, wait_seconds=60, poll_seconds=0.01).ask([question(1)]) == [Act((2,))]
    colleague.join()


def answer_when_asked(path: Path) -> None:
    log = QueryLog(path)
    while (query := log.claim("Ada")) is None:
        pass
    log.answer(query.id, Act((2,)), by="Ada")


def test_waiting_ends_when_patience_does(log: QueryLog) -> None:
    with pytest.raises(HelpNeeded):
        queued(log, wait_seconds=0.05, poll_seconds=0.01).ask([question(1)])


def test_a_question_that_nobody_answers_in_time_is_declined_for_good(log: QueryLog) -> None:
    oracle = queued(log, deadline_seconds=0.02, wait_seconds=60, poll_seconds=0.01)
    (answer,) = oracle.ask([question(1)])
    assert answer == Decline("nobody answered before the deadline")
    with pytest.raises(AnswerConflict, match="has expired"):
        log.answer("a", Act((1,)), by="Ada")
    assert oracle.ask([question(1)]) == [answer]


def test_the_question_s_own_deadline_counts_if_it_is_earlier(log: QueryLog) -> None:
    (answer,) = queued(log, deadline_seconds=1000, wait_seconds=60).ask([question(1, deadline=1.0)])
    assert isinstance(answer, Decline)


def test_what_is_recorded_is_not_asked_again(log: QueryLog) -> None:
    asked: list[list[str]] = []

    class Counting:
        def ask(self, queries: Sequence[Query]) -> list[Answer]:
            asked.append([query.id for query in queries])
            return [Act((query.context[0],)) if query.context[0] else Decline("why not") for query in queries]

    queries = [question(1), question(0, id="b"), question(2, id="c")]
    first = recorded(Counting(), log, by="bot").ask(queries[:2])
    assert first == [Act((1,)), Decline("why not")]
    assert recorded(Counting(), QueryLog(log.path), by="bot").ask(queries) == [*first, Act((2,))]
    assert asked == [["a", "b"], ["c"]]
    assert {log.entry(id).answered_by for id in "abc"} == {"bot"}
    assert all(log.entry(id).taken_at is not None for id in "abc")


def test_somebody_who_is_quicker_counts(log: QueryLog) -> None:
    def slow(query: Query) -> int:
        log.answer(query.id, Act((3,)), by="Ada")
        return 1

    assert recorded(slow, log).ask([question(1)]) == [Act((3,))]


def test_somebody_who_is_at_it_is_not_overruled(log: QueryLog) -> None:
    log.post([question(1)])
    log.claim("Ada")
    with pytest.raises(AnswerConflict, match="is being answered by 'Ada'"):
        recorded(lambda query: 1, log).ask([question(1)])


def test_one_id_is_one_question(log: QueryLog) -> None:
    oracle = recorded(lambda query: 1, log)
    oracle.ask([question(1)])
    with pytest.raises(AnswerConflict, match="with another context"):
        oracle.ask([question(2)])


def test_an_oracle_that_fails_leaves_the_question_open(log: QueryLog) -> None:
    with pytest.raises(ZeroDivisionError):
        recorded(lambda query: 1 // 0, log).ask([question(1)])
    assert log.entry("a").status is Status.OPEN
    assert recorded(lambda query: 2, log).ask([question(1)]) == [Act((2,))]


def test_a_replay_by_id_repeats_a_run(log: QueryLog) -> None:
    recorded(lambda query: 2, log).ask([question(1)])
    log.post([question(3, id="open")])
    oracle = replay(log)
    assert oracle.ask([question(1)]) == [Act((2,))]
    with pytest.raises(HelpNeeded, match="it was never answered in"):
        oracle.ask([question(1), question(3, id="open")])
    with pytest.raises(UnknownQuery, match="no question 'z'"):
        oracle.ask([question(1, id="z")])


def test_a_replay_by_context_serves_others_and_is_no_evidence(log: QueryLog) -> None:
    recorded(lambda query: None if query.context == (0,) else query.context[0], log).ask(
        [question(1), question(0, id="b")]
    )
    recorded(lambda query: 3, log).ask([question(1, id="later")])
    oracle = replay(log.path, match="context")
    assert oracle.ask([question(1, id="new")]) == [Act((1,), evidence=False)]
    assert oracle.ask([question(0, id="other")]) == [Decline("the oracle returned None")]
    with pytest.raises(UnknownQuery, match=r"no answer at context \(3,\)"):
        oracle.ask([question(3)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda log: queued(log, wait_seconds=-1), "wait_seconds must be at least 0, got -1"),
        (lambda log: queued(log, deadline_seconds=0), "deadline_seconds must be positive, got 0"),
        (lambda log: queued(log, poll_seconds=0), "poll_seconds must be positive, got 0"),
        (lambda log: replay(log, match="mood"), 'match must be "id" or "context", got \'mood\''),
    ],
)
def test_settings_out_of_range_are_named(log: QueryLog, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(log)
