"""The queue of pairs: who may judge what, once, and what survives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.judgements import JudgementLog, TranscriptPair, Verdict
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import AnswerConflict, Query, UnknownQuery

HELLO = (Message(role="agent", content="Hello"),)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(tmp_path: Path, clock: Clock) -> Iterator[JudgementLog]:
    log = JudgementLog(tmp_path / "questions.db", lease_seconds=60.0, clock=clock)
    yield log
    log.close()


def pair(id: str, question: str = "Which is better?") -> TranscriptPair:
    return TranscriptPair(question, HELLO, (), id=id)


def test_pairs_come_back_as_they_were_posted(log: JudgementLog) -> None:
    posted = TranscriptPair("Welche?\x00\n", (*HELLO, Message(role="user", content="\u202e")), (), id="ä/ \x00")
    log.post([posted])
    assert log.entry("ä/ \x00").pair == posted
    assert log.next("Ada") == posted


def test_posting_again_is_nothing_and_another_pair_of_that_id_is_refused_with_all_of_its_company(
    log: JudgementLog,
) -> None:
    log.post([pair("a")])
    log.post([pair("a")])
    log.post([])
    with pytest.raises(AnswerConflict, match="'a'"):
        log.post([pair("b"), pair("a", "Another question?")])
    assert log.counts().open == 1
    with pytest.raises(UnknownQuery):
        log.entry("b")


def test_a_pair_is_for_one_person_until_the_lease_runs_out(log: JudgementLog, clock: Clock) -> None:
    log.post([pair("a"), pair("b")])
    assert [log.next("Ada").id, log.next("Grace").id, log.next("Alan")] == ["a", "b", None]  # type: ignore[union-attr]
    with pytest.raises(AnswerConflict, match="'Ada', for 60 s more"):
        log.claim("a", "Grace")
    with pytest.raises(AnswerConflict, match="'Ada'"):
        log.judge("a", "first", "Grace")
    clock.now += 59
    log.claim("a", "Ada")
    clock.now += 2
    assert log.entry("b").claimed_by is None
    assert log.entry("a").claimed_by == "Ada"
    found = log.next("Alan")
    assert found is not None
    assert found.id == "b"


def test_release_gives_back_only_what_one_has(log: JudgementLog) -> None:
    log.post([pair("a")])
    log.next("Ada")
    log.release("a", "Grace")
    assert log.next("Grace") is None
    log.release("a", "Ada")
    assert log.next("Grace") == pair("a")


def test_skipped_pairs_are_left_to_others(log: JudgementLog) -> None:
    log.post([pair("a"), pair("b")])
    assert log.next("Ada", skip=["a"]) == pair("b")
    assert log.next("Ada", skip=["a", "b"]) is None


def test_a_verdict_is_given_once(log: JudgementLog, clock: Clock) -> None:
    log.post([pair("a")])
    log.next("Ada")
    clock.now += 7
    assert log.judge("a", "second", "Ada")
    assert not log.judge("a", Verdict.SECOND, "Grace"), "the same verdict again changes nothing"
    entry = log.entry("a")
    assert (entry.verdict, entry.judged_by, entry.judged_at, entry.seconds) == (Verdict.SECOND, "Ada", 1007.0, 7.0)
    assert (entry.claimed_by, entry.lease_until) == (None, None), "nobody is at it any more"
    with pytest.raises(AnswerConflict, match="'second' already, by 'Ada'"):
        log.judge("a", "tie", "Ada")
    with pytest.raises(AnswerConflict):
        log.claim("a", "Ada")
    assert log.next("Ada") is None
    with pytest.raises(ValueError, match="best"):
        log.judge("a", "best", "Ada")


def test_only_who_gave_a_verdict_can_undo_it(log: JudgementLog) -> None:
    log.post([pair("a")])
    with pytest.raises(AnswerConflict):
        log.undo("a", "Ada")
    log.judge("a", "first", "Ada")
    with pytest.raises(AnswerConflict, match="'Grace'"):
        log.undo("a", "Grace")
    log.undo("a", "Ada")
    entry = log.entry("a")
    assert (entry.verdict, entry.claimed_by, entry.seconds) == (None, "Ada", None)
    assert log.judge("a", "tie", "Ada")


@pytest.mark.parametrize("call", ["claim", "release", "undo"])
def test_ids_that_nobody_posted_are_refused(log: JudgementLog, call: str) -> None:
    with pytest.raises(UnknownQuery, match="'nobody'"):
        getattr(log, call)("nobody", "Ada")
    with pytest.raises(UnknownQuery):
        log.judge("nobody", "tie", "Ada")


def test_results_in_two_orders(log: JudgementLog, clock: Clock) -> None:
    log.post([pair(id) for id in "abc"])
    for id, verdict, by in (("c", "first", "Ada"), ("a", "tie", "Grace")):
        clock.now += 1
        log.judge(id, verdict, by)
    assert [(one.pair.id, one.verdict) for one in log.results()] == [("a", "tie"), ("c", "first")]
    assert [one.pair.id for one in log.results(limit=1, newest_first=True)] == ["a"]
    counts = log.counts()
    assert (counts.open, counts.judged, counts.by_person) == (1, 2, {"Ada": 1, "Grace": 1})


def test_questions_and_pairs_share_a_file(log: JudgementLog) -> None:
    questions = QueryLog(log.path)
    questions.post([Query((0,), n_actions=2, id="a")])
    log.post([pair("a")])
    log.judge("a", "tie", "Ada")
    assert questions.entry("a").answer is None
    questions.close()


def test_many_judges_at_once_get_a_pair_each(log: JudgementLog) -> None:
    log.post([pair(str(number)) for number in range(24)])
    won = list[str]()

    def judge(name: str) -> None:
        own = JudgementLog(log.path)
        while (found := own.next(name)) is not None:
            if own.judge(found.id, "first", name):
                won.append(found.id)
        own.close()

    threads = [threading.Thread(target=judge, args=(name,)) for name in ("Ada", "Grace", "Alan")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won, key=int) == [str(number) for number in range(24)]


def test_a_lease_takes_time(tmp_path: Path) -> None:
    for seconds in (0, float("inf")):
        with pytest.raises(ValueError, match=f"lease_seconds must be positive and finite, got {seconds}"):
            JudgementLog(tmp_path / "questions.db", lease_seconds=seconds)


@given(st.text(max_size=20))
def test_what_is_seen_as_a_and_b_is_translated_back(id: str) -> None:
    from cautious_imitation.oracles.web.judgement_pages import choice_of, verdict_of

    for choice in ("a", "b", "tie"):
        assert choice_of(id, verdict_of(id, choice)) == choice
    assert {verdict_of(id, choice) for choice in ("a", "b", "tie")} == set(Verdict)
