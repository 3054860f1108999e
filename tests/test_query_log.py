"""``QueryLog`` against a model in plain Python, from one connection and from several, and what it promises in words."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.log import Entry, LogStatistics, QueryLog, Status
from cautious_imitation.oracles.protocol import (
    Act,
    Answer,
    AnswerConflict,
    Decline,
    OracleError,
    PlausibleAction,
    Query,
    UnknownQuery,
)

LEASE = 10.0
LATE = Decline("nobody answered before the deadline")


class Model:
    """A log as a dictionary: what it should be, said as plainly as possible. A call that raises changes nothing."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.stored_expired: set[str] = set()
        self.claimed_at: dict[str, float] = {}

    def status(self, id: str, now: float) -> Status:
        entry = self.entries[id]
        if entry.answer is not None:
            return Status.DECLINED if isinstance(entry.answer, Decline) else Status.ANSWERED
        if id in self.stored_expired or (entry.query.deadline is not None and entry.query.deadline <= now):
            return Status.EXPIRED
        return Status.CLAIMED if entry.lease_until is not None and entry.lease_until > now else Status.OPEN

    def entry(self, id: str, now: float) -> Entry:
        if id not in self.entries:
            raise UnknownQuery
        entry, status = self.entries[id], self.status(id, now)
        return replace(
            entry,
            status=status,
            claimed_by=None if status is Status.OPEN else entry.claimed_by,
            lease_until=entry.lease_until if status is Status.CLAIMED else None,
        )

    def expire(self, now: float) -> None:
        """Whoever changes the log settles what has expired, for good: a clock may go backwards."""
        for id in self.entries:
            if self.status(id, now) is Status.EXPIRED:
                self.stored_expired.add(id)
                self.set(id, lease_until=None)

    def set(self, id: str, **changes: object) -> None:
        self.entries[id] = replace(self.entries[id], **changes)

    def post(self, queries: list[Query], now: float) -> None:
        after = dict(self.entries)
        for query in queries:
            known = after.setdefault(query.id, Entry(query, Status.OPEN, now)).query
            if (known.context, known.asker, known.episode) != (query.context, query.asker, query.episode):
                raise AnswerConflict
        self.entries = after

    def check_free(self, id: str, by: str, now: float) -> None:
        entry = self.entry(id, now)
        if entry.status in (Status.ANSWERED, Status.DECLINED, Status.EXPIRED):
            raise AnswerConflict
        if entry.status is Status.CLAIMED and entry.claimed_by != by:
            raise AnswerConflict

    def claim(self, by: str, id: str | None, asker: str | None, skip: set[str], now: float) -> Query | None:
        self.expire(now)
        if id is None:
            free = [
                other
                for other, entry in self.entries.items()
                if self.status(other, now) is Status.OPEN and asker in (None, entry.query.asker) and other not in skip
            ]
            if not free:
                return None
            id = free[0]
        else:
            self.check_free(id, by, now)
        if self.status(id, now) is not Status.CLAIMED:
            self.claimed_at[id] = now
        self.set(id, claimed_by=by, lease_until=now + LEASE)
        return self.entries[id].query

    def release(self, id: str, by: str, now: float) -> None:
        self.expire(now)
        entry = self.entry(id, now)
        mine = self.entries[id].claimed_by == by and entry.answer is None and entry.status is not Status.EXPIRED
        if mine:
            self.set(id, claimed_by=None, lease_until=None)

    def answer(self, id: str, answer: Answer, by: str, now: float) -> bool:
        self.expire(now)
        entry = self.entry(id, now)
        if entry.answer == answer:
            return False
        if entry.status is not Status.EXPIRED or entry.taken_at is not None:
            self.check_free(id, by, now)
        began = self.claimed_at[id] if self.entries[id].claimed_by == by else entry.posted_at
        self.set(
            id,
            answer=answer,
            answered_by=by,
            answered_at=now,
            seconds=max(0.0, now - began),
            claimed_by=by,
            lease_until=None,
        )
        self.stored_expired.discard(id)
        return True

    def undo(self, id: str, by: str, now: float) -> None:
        self.expire(now)
        entry = self.entry(id, now)
        if entry.answer is None or entry.answered_by != by or entry.taken_at is not None:
            raise AnswerConflict
        self.claimed_at[id] = now
        self.set(
            id,
            answer=None,
            answered_by=None,
            answered_at=None,
            seconds=None,
            claimed_by=by,
            lease_until=now + LEASE,
        )

    def take(self, ids: list[str], now: float) -> dict[str, Answer]:
        entries = {id: self.entry(id, now) for id in ids}
        found = {id: entry.answer or LATE for id, entry in entries.items() if entry.answer or entry.status == "expired"}
        if any(entries[id].taken_at is None for id in found):
            self.expire(now)
        for id in found:
            if entries[id].taken_at is None:
                self.set(id, taken_at=now)
        return found

    def statistics(self, asker: str | None, now: float) -> LogStatistics:
        entries = [self.entry(id, now) for id, entry in self.entries.items() if asker in (None, entry.query.asker)]
        counts = {status: sum(entry.status is status for entry in entries) for status in Status}
        people = [entry.answered_by for entry in entries if entry.answered_by is not None]
        times = sorted(entry.seconds for entry in entries if entry.status is Status.ANSWERED)
        half = len(times) // 2
        dependent = [entry for entry in entries if entry.answer is not None and not entry.answer.independent]
        return LogStatistics(
            counts,
            {who: people.count(who) for who in people},
            None if not times else times[half] if len(times) % 2 else (times[half - 1] + times[half]) / 2,
            len(dependent) + counts[Status.EXPIRED],
        )


PICKS = st.integers(0, 999)
NAMES, DAYS = ("Ada", "Grace", "Alan"), ("monday", "tuesday")
PEOPLE, ASKERS = st.sampled_from(NAMES), st.sampled_from(DAYS)
ANSWERS = st.one_of(
    st.builds(Act, st.lists(st.integers(0, 2), min_size=1, max_size=2).map(tuple), evidence=st.booleans()),
    st.builds(Act, text=st.sampled_from(["I don't know.", "", 'a "quoted" \u00e9']), independent=st.booleans()),
    st.builds(Decline, st.sampled_from(["no idea", "no money"]), st.booleans()),
)


class Machine(RuleBasedStateMachine):
    """The same calls to both; each through one of several connections to the file."""

    n_connections = 1

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.now, self.model = 1000.0, Model()
        self.logs = [
            QueryLog(Path(self.folder.name, "q.db"), lease_seconds=LEASE, clock=lambda: self.now)
            for _ in range(self.n_connections)
        ]
        self.n_calls = 0
        self.final: dict[str, Answer] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for log in self.logs:
                log.close()
            self.folder.cleanup()

    def both(self, name: str, *arguments: object, **named: object) -> object:
        """What the log and the model return, which is the same, or raise."""
        self.n_calls += 1
        log = self.logs[self.n_calls % len(self.logs)]
        results = []
        before = {key: value.copy() for key, value in vars(self.model).items()}
        for call in (
            lambda: getattr(log, name)(*arguments, **named),
            lambda: getattr(self.model, name)(*arguments, *named.values(), self.now),
        ):
            try:
                results.append(call())
            except (AnswerConflict, UnknownQuery) as error:
                results.append(type(error))
        if isinstance(results[-1], type):
            vars(self.model).update(before)
        assert results[0] == results[1]
        return results[0]

    def picked(self, pick: int) -> str:
        """Mostly a question that is not settled yet; now and then any, or one that nobody asked."""
        everything = [*self.model.entries, "nobody's"]
        live = [id for id, entry in self.model.entries.items() if entry.taken_at is None]
        pool = live if live and pick % 10 else everything
        return pool[pick // 10 % len(pool)]

    @rule(
        n_new=st.integers(0, 2),
        again=st.none() | PICKS,
        asker=ASKERS,
        patience=st.none() | st.sampled_from([-1, 5, 20]),
    )
    def post(self, n_new: int, again: int | None, asker: str, patience: int | None) -> None:
        n = len(self.model.entries)
        # Later ids are not always greater.
        ids = [f"q{(n + i) * 7 % 101}" for i in range(n_new)]
        if again is not None and (id := self.picked(again)) in self.model.entries:
            ids.append(id)
        deadline = None if patience is None else self.now + patience
        context = {id: tuple(map(ord, id)) for id in ids}
        self.both("post", [Query(context[id], n_actions=3, id=id, asker=asker, deadline=deadline) for id in ids])

    @rule(by=PEOPLE, asker=st.none() | ASKERS, skip=st.lists(PICKS, max_size=2))
    def claim_the_oldest(self, by: str, asker: str | None, skip: list[int]) -> None:
        self.both("claim", by, id=None, asker=asker, skip={self.picked(pick) for pick in skip})

    @rule(by=PEOPLE, pick=PICKS)
    def claim(self, by: str, pick: int) -> None:
        self.both("claim", by, id=self.picked(pick), asker=None, skip=set())

    @rule(pick=PICKS, by=PEOPLE)
    def release(self, pick: int, by: str) -> None:
        self.both("release", self.picked(pick), by)

    @rule(pick=PICKS, answer=ANSWERS, by=PEOPLE)
    def answer(self, pick: int, answer: Answer, by: str) -> None:
        self.both("answer", self.picked(pick), answer, by)

    @rule(pick=PICKS, by=PEOPLE)
    def undo(self, pick: int, by: str) -> None:
        self.both("undo", self.picked(pick), by)

    @rule(picks=st.lists(PICKS, max_size=2))
    def take(self, picks: list[int]) -> None:
        ids = [self.picked(pick) for pick in picks]
        taken = self.both("take", ids)
        if isinstance(taken, dict):
            assert list(taken) == [id for id in dict.fromkeys(ids) if id in taken]
            for id, answer in taken.items():
                assert self.final.setdefault(id, answer) == answer

    @rule(seconds=st.sampled_from([1, 3, 9, 10, 11, -1, -11]))
    def wait(self, seconds: int) -> None:
        # Backwards too, as clocks are set.
        self.now += seconds

    @precondition(lambda self: self.n_calls > 3)
    @rule()
    def come_back(self) -> None:
        for log in self.logs:
            log.close()

    @invariant()
    def looks_the_same(self) -> None:
        expected = [self.model.entry(id, self.now) for id in self.model.entries]
        for log in self.logs:
            assert log.entries() == expected
        log = self.logs[0]
        for status in Status:
            assert log.entries(status) == [entry for entry in expected if entry.status is status]
        for asker in (None, *DAYS):
            statistics = log.statistics(asker)
            assert statistics == self.model.statistics(asker, self.now)
            assert (
                log.entries(Status.OPEN, asker=asker, limit=2, offset=1)
                == [entry for entry in expected if entry.status is Status.OPEN and asker in (None, entry.query.asker)][
                    1:3
                ]
            )
        assert log.askers() == sorted({entry.query.asker for entry in expected})

    @invariant()
    def keeps_its_promises(self) -> None:
        # Said again without the model, which could be wrong in the same way.
        for entry in self.logs[0].entries():
            assert (entry.answer is not None) == (entry.status in (Status.ANSWERED, Status.DECLINED))
            assert (entry.lease_until is not None) == (entry.status is Status.CLAIMED)
            if entry.query.id in self.final:
                assert self.final[entry.query.id] == (entry.answer or LATE)
                assert entry.taken_at is not None


class SharedMachine(Machine):
    n_connections = 3


TestOneConnection = Machine.TestCase
TestOneConnection.settings = settings(max_examples=40, stateful_step_count=30)
TestSeveralConnections = SharedMachine.TestCase
TestSeveralConnections.settings = settings(max_examples=20, stateful_step_count=30)


@pytest.mark.parametrize("machine", [Machine, SharedMachine])
@pytest.mark.parametrize("seed", range(4))
def test_a_busy_day(machine: type[Machine], seed: int) -> None:
    # Hypothesis looks for short stories; in long ones more comes together.
    rng, day = Random(seed), machine()
    day.begin()

    def pick() -> int:
        return rng.randrange(1000)

    def answer() -> Answer:
        return rng.choice([Act((rng.randrange(3),)), Decline("no idea"), Decline("no money", independent=True)])

    calls = {
        "post": lambda: (rng.randrange(2), rng.choice([None, pick()]), rng.choice(DAYS), rng.choice([None, -1, 5, 20])),
        "claim_the_oldest": lambda: (rng.choice(NAMES), rng.choice([None, *DAYS]), [pick()] * rng.randrange(2)),
        "claim": lambda: (rng.choice(NAMES), pick()),
        "release": lambda: (pick(), rng.choice(NAMES)),
        "answer": lambda: (pick(), answer(), rng.choice(NAMES)),
        "undo": lambda: (pick(), rng.choice(NAMES)),
        "take": lambda: ([pick()] * rng.randrange(2),),
        "wait": lambda: (rng.choice([1, 3, 9, 10, -1, -11]),),
    }
    for _ in range(150):
        name = rng.choice([*calls, "post", "claim_the_oldest", "answer"])
        getattr(day, name)(*calls[name]())
        day.looks_the_same()
        day.keeps_its_promises()
    day.teardown()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[QueryLog]:
    log = QueryLog(tmp_path / "questions.db")
    yield log
    log.close()


def test_an_answer_that_is_undone_while_it_is_taken_is_not_taken(
    log: QueryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # take looks first and locks then; in between somebody else may come.
    log.post([Query((0,), n_actions=3, id="a"), Query((1,), n_actions=3, id="b")])
    for id in "ab":
        log.answer(id, Act((1,)), by="Ada")
    other, writing = QueryLog(log.path), log.database.writing

    def late(**options: bool) -> object:
        other.undo("a", by="Ada")
        return writing(**options)

    monkeypatch.setattr(log.database, "writing", late)
    assert log.take(["a", "b"]) == {"b": Act((1,))}
    assert log.entry("a").taken_at is None
    other.close()


def test_threads_share_a_log_and_nobody_answers_what_another_has(log: QueryLog) -> None:
    n_questions = 60
    log.post(Query((i,), n_actions=3, id=f"q{i}") for i in range(n_questions))
    answered: list[str] = []

    def work(name: str) -> None:
        while query := log.claim(name):
            assert log.answer(query.id, Decline(name), by=name)
            answered.append(query.id)

    threads = [threading.Thread(target=work, args=(f"p{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answered) == sorted(f"q{i}" for i in range(n_questions))


def test_a_question_comes_back_as_it_was_asked(log: QueryLog) -> None:
    query = Query(
        (3, 1),
        n_actions=5,
        ask_probability=1e-300,
        plausible=(
            PlausibleAction(1, 0.1, 1 / 3, 0.5),
            PlausibleAction(2, 0.0, 0.2, 1.0, text="\u2028\x00\u00e9\U0001f600"),
        ),
        text='"quoted" \\ and\nlines',
        messages=(Message(role="user", content="na\u00efve"), Message(role="assistant", content="")),
        id="a/0",
        asker="tuesday",
        episode=2**40,
        deadline=4e9,
    )
    log.post([query])
    assert log.claim("Ada") == query
    assert log.entry("a/0").query == query


@pytest.mark.parametrize(
    "change",
    [
        {"ask_probability": math.nan},
        {"plausible": (PlausibleAction(0, math.nan, 0.5, 1.0),)},
        {"text": "half of a character: \ud83d"},
    ],
)
def test_what_could_not_be_read_again_is_refused(log: QueryLog, change: dict) -> None:
    # In the file it would stop everybody who claims the oldest question.
    log.post([Query((0,), n_actions=2, id="good")])
    with pytest.raises(ValueError, match="question 'bad' cannot be kept"):
        log.post([Query((0,), n_actions=2, id="fine"), replace(Query((0,), n_actions=2, id="bad"), **change)])
    assert [entry.query.id for entry in log.entries()] == ["good"]


def test_an_answer_that_could_not_be_read_again_is_refused(log: QueryLog) -> None:
    log.post([Query((0,), n_actions=2, id="a")])
    with pytest.raises(OracleError, match="cannot be kept"):
        log.answer("a", Act(text="\ud83d"), by="Ada")
    with pytest.raises(OracleError, match=r"0\.\.1"):
        log.answer("a", Act((2,)), by="Ada")
    assert log.entry("a").status is Status.OPEN


def test_one_bad_question_keeps_the_others_out(log: QueryLog) -> None:
    log.post([Query((0,), n_actions=2, id="a")])
    with pytest.raises(AnswerConflict, match=r"'a'.*name this run differently"):
        log.post([Query((1,), n_actions=2, id="b"), Query((1,), n_actions=2, id="a")])
    assert [entry.query.id for entry in log.entries()] == ["a"]


def test_search_reads_what_people_read(log: QueryLog) -> None:
    log.post(
        [
            Query((0,), n_actions=2, id="tuesday/1", text='She said "100% \u00dcber_all"'),
            Query((1,), n_actions=2, id="b", messages=(Message(role="user", content="Where?\nThere."),)),
            Query((2,), n_actions=2, id="c", plausible=(PlausibleAction(0, 0.0, 0.0, 1.0, text="hidden"),)),
        ]
    )

    def found(search: str) -> list[str]:
        return [entry.query.id for entry in log.entries(search=search)]

    assert found("\u00fcBER_ALL") == found('"100%') == found("TUESDAY") == ["tuesday/1"]
    assert found("where?\nthere") == ["b"]
    # Neither patterns, nor the names of what a question is made of, nor what it does not say.
    assert found("100_") == found("n_actions") == found("user") == found("hidden") == []
    assert len(found("")) == 3


def test_pages_are_cut_in_order(log: QueryLog) -> None:
    log.post(Query((i,), n_actions=2, id=f"q{i}") for i in range(7))
    pages = [[entry.query.id for entry in log.entries(limit=3, offset=offset)] for offset in (0, 3, 6, 9)]
    assert pages == [["q0", "q1", "q2"], ["q3", "q4", "q5"], ["q6"], []]
    with pytest.raises(ValueError, match="limit and offset must be at least 0, got -1 and 0"):
        log.entries(limit=-1)
    with pytest.raises(ValueError, match="'done'"):
        log.entries("done")


def test_any_number_of_questions_can_be_left_to_others(log: QueryLog) -> None:
    log.post([Query((0,), n_actions=2, id="a"), Query((1,), n_actions=2, id="b")])
    query = log.claim("Ada", skip=["a", *(f"other{i}" for i in range(40_000))])
    assert query is not None
    assert query.id == "b"


def test_the_time_that_an_answer_takes_begins_with_the_claim(tmp_path: Path) -> None:
    now = [1000.0]
    log = QueryLog(tmp_path / "questions.db", lease_seconds=60, clock=lambda: now[0])
    log.post(Query((0,), n_actions=2, id=id) for id in "abcd")

    def seconds(id: str, *claims: float) -> float | None:
        for wait in claims:
            log.claim("Ada", id=id)
            now[0] += wait
        log.answer(id, Act((1,)), by="Ada")
        return log.entry(id).seconds

    assert seconds("a", 50, 30) == 80, "a claim that is renewed is the same claim"
    assert seconds("b", 100, 30) == 30, "one that ran out is not"
    assert seconds("c", 100) == 100
    assert seconds("d") == 310, "without a claim it begins with the question"
    log.close()


def test_a_late_answer_counts_until_the_run_goes_on_without(tmp_path: Path) -> None:
    now = [1000.0]
    log = QueryLog(tmp_path / "questions.db", lease_seconds=60, clock=lambda: now[0])
    log.post([Query((0,), n_actions=2, id=id, deadline=1010.0) for id in "abc"])
    log.post([Query((0,), n_actions=2, id="d", deadline=1000.0)])
    assert log.entry("d").status is Status.EXPIRED
    log.claim("Ada", id="a")
    log.answer("b", Act((1,)), by="Ada")
    now[0] = 1010.0
    assert log.claim("Alan") is None
    with pytest.raises(AnswerConflict, match="'c' has expired; take another one"):
        log.claim("Alan", id="c")
    # Ada had the question, but nobody keeps others away from one that nearly was lost.
    assert log.answer("a", Act((1,)), by="Grace")
    log.undo("b", by="Ada")
    assert log.entry("b").status is Status.EXPIRED
    assert log.take(["a", "b", "c"]) == {"a": Act((1,)), "b": LATE, "c": LATE}
    for id in "bc":
        with pytest.raises(AnswerConflict, match=f"'{id}' has expired, and the run went on without an answer"):
            log.answer(id, Act((0,)), by="Ada")
    assert log.take(["a", "b", "c"]) == {"a": Act((1,)), "b": LATE, "c": LATE}
    log.close()


def test_each_mistake_says_what_to_do(log: QueryLog) -> None:
    log.post([Query((0,), n_actions=2, id="a"), Query((0,), n_actions=2, id="b")])
    with pytest.raises(UnknownQuery, match=r"no question 'x' in .*questions\.db; ids are"):
        log.take(["a", "x"])
    log.claim("Ada", id="a")
    with pytest.raises(AnswerConflict, match="'a' is being answered by 'Ada', for 300 s more; take another one"):
        log.claim("Grace", id="a")
    log.answer("a", Act((1,)), by="Ada")
    with pytest.raises(AnswerConflict, match="has another answer already, by 'Ada'; it can be undone until"):
        log.answer("a", Act((0,)), by="Grace")
    with pytest.raises(AnswerConflict, match="no answer of 'Grace' that could be undone"):
        log.undo("a", by="Grace")
    log.take(["a"])
    with pytest.raises(AnswerConflict, match="by 'Ada', and the run has gone on"):
        log.answer("a", Act((0,)), by="Grace")
    with pytest.raises(AnswerConflict, match="cannot be undone: the run has gone on"):
        log.undo("a", by="Ada")
    with pytest.raises(ValueError, match="lease_seconds must be positive and finite, got 0"):
        QueryLog(log.path, lease_seconds=0)
