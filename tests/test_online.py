"""Runs of episodes: what they do, ask and learn, and that stopping and resuming changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cautious_imitation.environments.dialogue_acts import STUDENT_ENDED, dialogue_acts_world
from cautious_imitation.environments.partner import FiniteWorldPartner
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.imitators import BayesianImitator, CautiousImitator
from cautious_imitation.online import Imitation
from cautious_imitation.oracles.combinators import first_of, with_budget
from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import (
    Act,
    Answer,
    AnswerConflict,
    Decline,
    HelpNeeded,
    OracleError,
    Query,
    UnknownQuery,
)
from cautious_imitation.types import Actor

V = 3
ENVIRONMENT = 3


def partner(symbols: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...] | None:
    """Says one of its two symbols after each action; leaves after two zeros in a row."""
    if symbols[-3:] == (0, ENVIRONMENT, 0):
        return None
    return (ENVIRONMENT + int(rng.integers(2)),) if symbols and symbols[-1] < ENVIRONMENT else ()


def teacher(query: Query) -> Sequence[int] | int:
    total = sum((i + 1) * symbol for i, symbol in enumerate(query.context))
    return [total % V, (total + 1) % V] if total % 4 == 0 else total % V


def imitator(**settings: Any) -> CautiousImitator:
    tree = ContextTree(V, depth=2, n_context_symbols=V + 2)
    sequences = [[0, 3, 1, 3, 2, 4, 0, 4, 1] * 3, [2, 3, 1, 4, 0, 3] * 4]
    return CautiousImitator(tree, alpha=0.02, **settings).fit(sequences)


def run(folder: Path | None = None, *, make: Any = imitator, **settings: Any) -> Imitation:
    return Imitation(make(), partner, **{"n_episodes": 5, "horizon": 14, "seed": 3, "folder": folder, **settings})


def transcript(done: Imitation) -> list[Any]:
    return [(e.symbols, [str(a) for a in e.actors], e.questions, e.declines, e.ended) for e in done.episodes]


def tree_of(done: Imitation) -> list[float]:
    return np.asarray(done.imitator.hypotheses.mixture(np.array([[a, b] for a in range(5) for b in range(5)]))).tolist()


def one_by_one(seed: int = 3, n_episodes: int = 5, horizon: int = 14) -> list[Any]:
    """The same without learning, each episode for itself, in a loop that knows no batches."""
    asker, found = imitator(), []
    for row in range(n_episodes):
        uniforms = np.random.default_rng([seed, 0, row]).random(horizon)
        symbols, actors, reply, questions, ended = list[int](), list[str](), list[int](), 0, None
        while ended is None:
            key = np.random.SeedSequence((seed, 1)).generate_state(2, np.uint64)
            counter = [0, 0, len(symbols), row]
            said = partner(tuple(symbols), np.random.Generator(np.random.Philox(key=key, counter=counter)))
            if said is None:
                ended = "partner"
                break
            if said:
                reply = []
                symbols += said
                actors += ["environment"] * len(said)
            if len(symbols) >= horizon:
                ended = "horizon"
                break
            prediction = asker.predict(np.array(symbols, dtype=np.int64))
            p = np.exp(prediction.log_probs)
            if not reply and uniforms[len(symbols)] * (p.sum() + prediction.ask_probability) >= p.sum():
                answer = teacher(Query(tuple(symbols), V))
                reply, questions = [answer] if isinstance(answer, int) else list(answer), questions + 1
                actors.append("demonstrator")
            else:
                actors.append("demonstrator" if reply else "imitator")
            symbols.append(reply.pop(0) if reply else int((np.cumsum(p) <= uniforms[len(symbols)]).sum()))
            if len(symbols) >= horizon:
                ended = "horizon"
        found.append((symbols, actors, questions, 0, ended))
    return found


def test_it_does_what_a_loop_over_single_episodes_does() -> None:
    done = run(oracle=teacher, learn=False)
    assert done.advance()
    assert transcript(done) == one_by_one()
    assert {e.ended for e in done.episodes} == {"partner", "horizon"}
    assert sum(e.questions for e in done.episodes) > 10


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    first, second, other = (run(oracle=teacher, seed=seed) for seed in (1, 1, 2))
    assert [r.advance() for r in (first, second, other)] == [True] * 3
    assert transcript(first) == transcript(second) != transcript(other)


def test_questions_of_all_episodes_are_asked_together() -> None:
    batches = list[int]()

    class Together:
        def ask(self, queries: Sequence[Query]) -> list[Answer]:
            batches.append(len(queries))
            return [Act((1,)) for _ in queries]

    done = run(oracle=Together())
    assert done.advance()
    assert sum(batches) == sum(e.questions for e in done.episodes)
    assert batches[0] == 5
    assert len(batches) < sum(batches) / 2


def test_what_is_answered_is_learned_and_what_it_did_itself_is_not() -> None:
    done = run(oracle=teacher)
    assert done.advance()
    expected = imitator()
    for row, position in done._learned:
        episode = done.episodes[row]
        expected.hypotheses.update(np.array(episode.symbols[:position], dtype=np.int64), episode.symbols[position])
    np.testing.assert_array_equal(tree_of(done), tree_of(Imitation(expected, partner, n_episodes=1, horizon=1, seed=0)))
    learned = {(row, position) for row, position in done._learned}
    by_demonstrator = {
        (row, position)
        for row, e in enumerate(done.episodes)
        for position, actor in enumerate(e.actors)
        if actor is Actor.DEMONSTRATOR
    }
    assert learned == by_demonstrator != set()
    assert done.demonstrations().n_learned() == len(learned)


def test_under_evidence_all_its_own_actions_are_learned_too() -> None:
    done = run(make=lambda: imitator(evidence="all"), oracle=teacher)
    assert done.advance()
    n_agent = sum(symbol < ENVIRONMENT for e in done.episodes for symbol in e.symbols)
    assert len(done._learned) == n_agent


def test_an_answer_that_is_no_evidence_is_done_but_not_learned() -> None:
    done = run(oracle=lambda query: Act((1,), evidence=False))
    assert done.advance()
    assert done._learned == []
    actors = {actor for e in done.episodes for actor in e.actors}
    assert actors == {Actor.ORACLE, Actor.IMITATOR, Actor.ENVIRONMENT}
    assert done.demonstrations().n_learned("all") == sum(a is Actor.IMITATOR for e in done.episodes for a in e.actors)


def test_without_learning_nothing_is_learned() -> None:
    done = run(oracle=teacher, learn=False)
    before = tree_of(done)
    assert done.advance()
    assert tree_of(done) == before


def test_a_run_waits_is_answered_in_part_and_goes_on() -> None:
    waiting = run()
    assert not waiting.advance()
    first = waiting.pending()
    assert [query.id for query in first] == [query.id for query in waiting.remaining()]
    assert len(first) == 5
    assert [query.episode for query in first] == [0, 1, 2, 3, 4]
    waiting.answer(first[1].id, teacher(first[1]), by="Ada")
    assert len(waiting.remaining()) == 4
    assert len(waiting.pending()) == 5, "the run has not gone on yet"
    assert not waiting.advance()
    assert {query.id for query in waiting.pending()} >= {query.id for query in first} - {first[1].id}
    assert waiting.episodes[1].questions == 1
    assert waiting.log.entry(first[1].id).answered_by == "Ada"
    while not waiting.advance():
        for query in waiting.remaining():
            waiting.answer(query.id, teacher(query))
    assert waiting.finished


def test_answers_in_batches_are_those_of_a_function() -> None:
    waiting, direct = run(), run(oracle=teacher)
    direct.advance()
    while not waiting.advance():
        for query in waiting.remaining():
            waiting.answer(query.id, teacher(query))
    assert transcript(waiting) == transcript(direct)
    assert tree_of(waiting) == tree_of(direct)


def test_an_unknown_id_is_an_error_an_equal_answer_nothing_and_another_one_a_conflict() -> None:
    waiting = run()
    waiting.advance()
    query = waiting.pending()[0]
    with pytest.raises(UnknownQuery, match="no question 'run/9/9'"):
        waiting.answer("run/9/9", 1)
    waiting.answer(query.id, 1)
    waiting.answer(query.id, [1])
    with pytest.raises(AnswerConflict, match="has another answer already"):
        waiting.answer(query.id, 2)
    waiting.advance()
    waiting.answer(query.id, 1)
    with pytest.raises(AnswerConflict):
        waiting.answer(query.id, None)


def test_a_question_of_another_run_is_not_answered_here(tmp_path: Path) -> None:
    log = QueryLog(tmp_path / "shared.db")
    one, other = run(log=log, name="one"), run(log=log, name="other")
    one.advance()
    other.advance()
    with pytest.raises(UnknownQuery, match=r"is one of 'other', not of this run, 'one'"):
        one.answer(other.pending()[0].id, 1)


@pytest.mark.parametrize("wrong", [3, -1, [0, 7], 1.5, True])
def test_an_answer_that_is_none_is_refused_and_nothing_is_lost(wrong: Any) -> None:
    waiting = run()
    waiting.advance()
    query = waiting.pending()[0]
    with pytest.raises(OracleError, match="must answer with"):
        waiting.answer(query.id, wrong)
    assert len(waiting.remaining()) == 5
    waiting.answer(query.id, 0)
    assert len(waiting.remaining()) == 4


def test_words_are_read_by_the_vocabulary_or_refused() -> None:
    named = run(make=lambda: imitator(vocabulary=["stop", "go", "wait", "red", "green"]))
    named.advance()
    query = named.pending()[0]
    assert {action.text for action in query.plausible} == {"stop", "go", "wait"}
    with pytest.raises(OracleError, match="jump"):
        named.answer(query.id, "jump")
    named.answer(query.id, "go, wait")
    named.advance()
    assert named.episodes[0].symbols[:1] == [1]
    nameless = run()
    nameless.advance()
    with pytest.raises(OracleError, match="has no vocabulary"):
        nameless.answer(nameless.pending()[0].id, "go")


def test_words_in_the_log_that_cannot_be_read_are_a_decline_that_depends_on_the_answer() -> None:
    waiting = run(after_decline="act")
    waiting.advance()
    for query in waiting.pending():
        waiting.log.answer(query.id, Act(text="jump"), by="Ada")
    waiting.advance()
    assert all(e.declines >= 1 and e.dependent >= 1 for e in waiting.episodes)


def test_after_a_decline_the_episode_ends_or_the_imitator_acts() -> None:
    stopped = run(oracle=lambda query: None)
    assert stopped.advance()
    assert {e.ended for e in stopped.episodes} == {"declined"}
    assert {e.declines for e in stopped.episodes} == {1}
    alone = run(oracle=lambda query: None, after_decline="act")
    assert alone.advance()
    assert {e.ended for e in alone.episodes} <= {"horizon", "partner", "declined"}
    assert sum(e.declines for e in alone.episodes) > 5
    assert {actor for e in alone.episodes for actor in e.actors} == {Actor.IMITATOR, Actor.ENVIRONMENT}


def test_what_is_done_after_a_decline_has_the_frequencies_of_acting() -> None:
    members = [np.log([0.5, 0.3, 0.2]), np.log([0.2, 0.3, 0.5])]
    asker = CautiousImitator(FiniteHypotheses(members), alpha=0.1)
    n = 4_000
    alone = Imitation(
        asker, lambda symbols, rng: (), n_episodes=n, horizon=1, seed=0, oracle=lambda query: None, after_decline="act"
    )
    assert alone.advance()
    acting = np.exp(asker.predict([]).log_probs)
    counts = np.bincount([e.symbols[0] for e in alone.episodes if e.declines], minlength=3)
    expected = counts.sum() * acting / acting.sum()
    assert counts.sum() > 800
    assert (np.abs(counts - expected) <= 4 * np.sqrt(expected)).all()


def test_declines_that_depend_on_the_answer_are_counted() -> None:
    budgeted = run(oracle=with_budget(teacher, 3), after_decline="act")
    budgeted.advance()
    assert sum(e.declines for e in budgeted.episodes) > 0
    assert sum(e.dependent for e in budgeted.episodes) == 0
    passed_on = run(oracle=first_of(lambda query: None, teacher))
    passed_on.advance()
    assert sum(e.declines for e in passed_on.episodes) == 0
    assert sum(e.dependent for e in passed_on.episodes) == sum(e.questions for e in passed_on.episodes) > 0
    for counted in (budgeted, passed_on):
        assert counted.log.statistics().dependent_answers == sum(e.dependent for e in counted.episodes)


def test_an_oracle_that_fails_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    failures = [ConnectionError("down"), OracleError("nonsense"), KeyboardInterrupt()]

    def flaky(query: Query) -> Any:
        if failures and len(query.context) > 2:
            raise failures.pop()
        return teacher(query)

    broken = run(tmp_path / "run", oracle=flaky)
    for kind in (KeyboardInterrupt, OracleError, ConnectionError):
        with pytest.raises(kind):
            broken.advance()
    assert broken.advance()
    direct = run(oracle=teacher)
    direct.advance()
    assert transcript(broken) == transcript(direct)


class Killed(Exception):
    """Stands for the end of the process: whatever was in memory is gone."""


@pytest.mark.parametrize("learn", [True, False])
def test_a_run_that_is_stopped_anywhere_goes_on_as_if_it_had_not_been(tmp_path: Path, learn: bool) -> None:
    unbroken = run(oracle=teacher, learn=learn)
    unbroken.advance()
    n_questions = sum(e.questions for e in unbroken.episodes)
    asked = list[str]()

    def until(limit: int) -> Any:
        def oracle(query: Query) -> Any:
            if len(asked) >= limit:
                raise Killed
            asked.append(query.id)
            return teacher(query)

        return oracle

    for limit in range(1, n_questions + 1, 2):
        with pytest.raises(Killed):
            run(tmp_path / "run", oracle=until(limit), learn=learn).advance()
    resumed = run(tmp_path / "run", oracle=until(10**9), learn=learn)
    assert resumed.advance()
    assert transcript(resumed) == transcript(unbroken)
    assert tree_of(resumed) == tree_of(unbroken)
    assert resumed.log.statistics().counts[Status.ANSWERED] == n_questions
    again = run(tmp_path / "run", oracle=until(0), learn=learn)
    assert again.advance(), "what has ended stays ended"
    assert tree_of(again) == tree_of(unbroken)


def test_an_answer_is_recorded_once_and_the_question_asked_once_more_at_most(tmp_path: Path) -> None:
    asked = list[str]()

    def oracle(query: Query) -> Any:
        asked.append(query.id)
        return teacher(query)

    for _ in range(3):
        partial = run(tmp_path / "run", oracle=oracle)
        partial.advance()
    assert len(asked) == len(set(asked))


def test_people_resume_a_run_that_died(tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    first.advance()
    ids = [query.id for query in first.pending()]
    del first
    log = QueryLog(tmp_path / "run" / "questions.db")
    log.answer(ids[0], Act((1,)), by="Ada")
    second = run(tmp_path / "run")
    assert [query.id for query in second.pending()] == ids
    assert [query.id for query in second.remaining()] == ids[1:]
    second.advance()
    assert second.episodes[0].symbols[0] == 1
    assert second.episodes[1].symbols == []


def test_the_partner_is_not_called_again_for_what_is_saved(tmp_path: Path) -> None:
    calls = list[tuple[int, ...]]()

    def listening(symbols: tuple[int, ...], rng: np.random.Generator) -> Any:
        calls.append(symbols)
        return partner(symbols, rng)

    settings: Any = {"n_episodes": 1, "horizon": 8, "seed": 0, "folder": tmp_path / "run"}
    while True:
        part = Imitation(imitator(), listening, **settings)
        if part.advance():
            break
        for query in part.remaining():
            part.answer(query.id, teacher(query))
    assert len(calls) == len(set(calls))


def test_state_is_written_before_anything_follows_from_an_answer(tmp_path: Path) -> None:
    """Answers taken in one process, and others in the next after a kill, must not lead to one id with two contexts."""

    class Looking:
        given = 0
        batches = 0

        def ask(self, queries: Sequence[Query]) -> list[Answer]:
            on_disk = json.loads((tmp_path / "run.json").read_text())["episodes"] if self.given else []
            assert sum(episode["questions"] for episode in on_disk) == self.given
            self.given += len(queries)
            self.batches += 1
            return [Act((1,)) for _ in queries]

    looking = Looking()
    assert run(tmp_path, oracle=looking).advance()
    assert looking.batches > 3


def test_a_run_goes_on_from_a_copy_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run(folder)
    first.advance()
    first.answer(first.pending()[0].id, 1)
    first.advance()
    first.log.close()
    shutil.copytree(folder, tmp_path / "copy")
    ends = []
    for where in (folder, tmp_path / "copy"):
        later = run(where)
        while not later.advance():
            for query in later.remaining():
                later.answer(query.id, teacher(query))
        ends.append(transcript(later))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed must be 3 to go on with the run in .*, got 4; name another folder"),
        ({"horizon": 15}, "horizon must be 14"),
        ({"n_episodes": 6}, "n_episodes must be 5"),
        ({"learn": False}, "learn must be True"),
        ({"name": "other"}, "name must be 'run'"),
    ],
)
def test_other_settings_are_another_run(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run(tmp_path, oracle=teacher).advance()
    with pytest.raises(ValueError, match=message):
        run(tmp_path, oracle=teacher, **change)


def test_another_imitator_is_noticed(tmp_path: Path) -> None:
    run(tmp_path, oracle=teacher).advance()
    with pytest.raises(ValueError, match="imitator must be as it was at the beginning of the run"):
        run(tmp_path, oracle=teacher, make=lambda: CautiousImitator(ContextTree(V, 2, n_context_symbols=5), 0.02))


@pytest.mark.parametrize("damage", ["", "{}", '{"schema": 2}', "nonsense"])
def test_a_damaged_state_is_named(tmp_path: Path, damage: str) -> None:
    run(tmp_path, oracle=teacher).advance()
    (tmp_path / "run.json").write_text(damage)
    with pytest.raises(ValueError, match=r"run\.json is no run of this version"):
        run(tmp_path, oracle=teacher)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_episodes": 0}, "n_episodes must be an integer of at least 1, got 0"),
        ({"horizon": 1.5}, "horizon must be an integer of at least 1, got 1.5"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"after_decline": "sulk"}, 'after_decline must be "stop" or "act", got \'sulk\''),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**settings)


def test_a_bayesian_imitator_needs_nobody() -> None:
    tree = ContextTree(V, depth=1, n_context_symbols=5)
    done = Imitation(BayesianImitator(tree), partner, n_episodes=3, horizon=6, seed=0)
    assert done.advance()
    assert done.pending() == []


def test_an_oracle_that_waits_makes_the_run_wait() -> None:
    class Later:
        ready = False

        def ask(self, queries: Sequence[Query]) -> list[Answer]:
            if not self.ready:
                raise HelpNeeded([query for query in queries if query.episode != 2] or queries)
            return [Act((0,)) for _ in queries]

    later = Later()
    waiting = run(oracle=later)
    assert not waiting.advance()
    assert len(waiting.pending()) == 5
    later.ready = True
    assert waiting.advance()


def test_the_student_of_the_real_chats_is_a_partner() -> None:
    world = dialogue_acts_world(horizon=24)
    chats = ContextTree(9, depth=2, n_context_symbols=18, start_symbol=STUDENT_ENDED).fit([[0, 9] * 30])
    asker = CautiousImitator(chats, alpha=0.05)
    rng = np.random.default_rng(0)
    done = Imitation(
        asker, FiniteWorldPartner(world), n_episodes=3, horizon=24, seed=1, oracle=lambda query: int(rng.integers(9))
    )
    assert done.advance()
    assert {e.ended for e in done.episodes} == {"horizon"}
    for e in done.episodes:
        assert all(
            (symbol >= 9) == (actor is Actor.ENVIRONMENT) for symbol, actor in zip(e.symbols, e.actors, strict=True)
        )
        assert any(actor is Actor.ENVIRONMENT for actor in e.actors)


def test_run_waits_for_whoever_answers(tmp_path: Path) -> None:
    """Somebody answers from another connection while the run polls."""
    import threading

    path = tmp_path / "questions.db"
    waiting, stop = run(log=path), threading.Event()

    def person() -> None:
        log = QueryLog(path)
        while not stop.is_set():
            query = log.claim("Ada")
            if query is not None:
                log.answer(query.id, Act((1,)), by="Ada")

    thread = threading.Thread(target=person)
    thread.start()
    try:
        assert waiting.run(progress=False, poll_seconds=0.01).finished
    finally:
        stop.set()
        thread.join()
    assert waiting.log.statistics().by_person == {"Ada": sum(e.questions for e in waiting.episodes)}


def test_an_interrupted_run_says_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def impatient(query: Query) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, oracle=impatient).run(progress=False)
    told = " ".join(capsys.readouterr().err.split())
    assert f"interrupted; 0 of 5 episodes, 0 questions, 5 waiting, kept in {tmp_path}" in told
    assert run(tmp_path, oracle=teacher).run(progress=True).finished
    told = " ".join(capsys.readouterr().err.split())
    assert (
        f"5 of 5 episodes, {told.rpartition(' questions')[0].split()[-1]} questions, 0 waiting, kept in {tmp_path}"
        in told
    )


def test_a_decline_says_why() -> None:
    refused = run(oracle=lambda query: Decline("private", independent=True))
    refused.advance()
    (entry, *_) = refused.log.entries(Status.DECLINED)
    assert entry.answer == Decline("private", independent=True)
    assert refused.log.statistics().dependent_answers == 0


def test_a_partner_that_goes_on_and_on_is_cut_at_the_horizon() -> None:
    done = run(oracle=teacher)
    done.partner = lambda symbols, rng: (ENVIRONMENT,) * 10 if symbols and symbols[-1] < ENVIRONMENT else ()
    assert done.advance()
    assert {len(e.symbols) for e in done.episodes} == {14}
    assert {e.ended for e in done.episodes} == {"horizon"}
