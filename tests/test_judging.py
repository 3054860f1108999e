"""Pairs of transcripts: how they are drawn and shown, what becomes of verdicts, and what the verdicts come to."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from cautious_imitation.demonstrations import Message
from cautious_imitation.judging.comparison import compare_transcripts
from cautious_imitation.judging.function import FunctionJudge, as_judge
from cautious_imitation.judging.protocol import Judge, JudgeError, JudgementsOpen, Open, Ruling, responses
from cautious_imitation.judging.transcripts import NamedTranscript, draw_pairs, read_transcripts
from cautious_imitation.judging.verdicts import (
    VerdictRecord,
    read_journal,
    read_judgements,
    summaries,
    write_judgements,
)
from cautious_imitation.judging.wording import QUESTIONS, prompt, read_verdict
from cautious_imitation.oracles.judgements import TranscriptPair, Verdict
from tests.test_imports import loaded_after


def name(anchor: str, episode: int, **settings: Any) -> dict[str, Any]:
    policy = {"anchor": anchor, "phase": "after", "budget_nats": 5.0, "seed": 0, "length": 64}
    return {**policy, "episode": episode, **settings}


def group(anchor: str, n: int, said: str = "hello", **settings: Any) -> list[NamedTranscript]:
    return [
        NamedTranscript(name(anchor, i, **settings), (Message(role="teacher", content=f"{said} {i}"),))
        for i in range(n)
    ]


def record(verdict: str, **settings: Any) -> VerdictRecord:
    whole = {
        "question": "better",
        "judge": "Ada",
        "first": name("bayesian", 0),
        "second": name("cautious-minimax", 0),
        "shown_first": "first",
        "verdict": verdict,
    }
    return VerdictRecord.model_validate(whole | settings)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Drawing

groups = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.integers(1, sizes[0] * sizes[1]), st.integers(0, 2**32))
)


@given(groups)
def test_none_is_used_again_while_others_are_left_and_none_are_paired_twice(
    drawing: tuple[tuple[int, int], int, int],
) -> None:
    (n, m), n_pairs, seed = drawing
    drawn = draw_pairs(group("a", n), group("b", m), "?", n_pairs, rng(seed))
    assert len(drawn) == n_pairs
    assert len({(one.first["episode"], one.second["episode"]) for one in drawn}) == n_pairs
    assert len({one.pair.id for one in drawn}) == n_pairs
    for side, size in (("first", n), ("second", m)):
        uses = Counter(dict.fromkeys(range(size), 0))
        for one in drawn:
            uses[getattr(one, side)["episode"]] += 1
            assert max(uses.values()) - min(uses.values()) <= 1


@given(groups)
def test_pairs_show_what_they_name_and_more_of_them_begin_with_the_same(
    drawing: tuple[tuple[int, int], int, int],
) -> None:
    (n, m), n_pairs, seed = drawing
    first, second = group("a", n), group("b", m)
    drawn = draw_pairs(first, second, "?", n_pairs, rng(seed))
    assert drawn == draw_pairs(first, second, "?", n * m, rng(seed))[:n_pairs]
    for one in drawn:
        shown = [one.pair.first, one.pair.second]
        expected = [first[one.first["episode"]].messages, second[one.second["episode"]].messages]  # type: ignore[index]
        assert shown == (expected if one.shown_first == "first" else expected[::-1])


def test_every_pair_and_order_is_as_likely_as_any_other() -> None:
    first, second = group("a", 3), group("b", 2)
    counts: Counter[Any] = Counter()
    generator = rng()
    for _ in range(2400):
        [one] = draw_pairs(first, second, "?", 1, generator)
        counts[one.first["episode"], one.second["episode"], one.shown_first] += 1
    assert len(counts) == 12
    assert chisquare(list(counts.values())).pvalue > 1e-4


def test_ids_stand_for_what_is_shown() -> None:
    def ids(first: Sequence[NamedTranscript], question: str = "?", seed: int = 0) -> set[str]:
        return {one.pair.id for one in draw_pairs(first, group("b", 3), question, 9, rng(seed))}

    once = ids(group("a", 3))
    assert once == ids(group("a", 3))
    assert not once & ids(group("a", 3), "another question?")
    assert not once & ids(group("a", 3, "other words"))
    assert not once & ids(group("c", 3)), "the same words in another policy's episode"
    # Other seeds draw the same nine pairs, some of them the other way round.
    assert 0 < len(once & ids(group("a", 3), seed=1)) < 9


@pytest.mark.parametrize(
    ("n_pairs", "message"), [(0, r"n_pairs must be in 1\.\.6"), (7, r"n_pairs must be in 1\.\.6"), (True, "n_pairs")]
)
def test_there_are_only_so_many_pairs(n_pairs: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_pairs(group("a", 2), group("b", 3), "?", n_pairs, rng())


def test_groups_need_transcripts_with_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="must hold a transcript each, got 0 and 2"):
        draw_pairs([], group("b", 2), "?", 1, rng())
    with pytest.raises(ValueError, match=r"a name of its own, got .*\"episode\": 1"):
        draw_pairs(group("a", 2), group("a", 3)[1:], "?", 1, rng())


# What was said in episodes


def test_turns_become_messages(tmp_path: Path) -> None:
    speakers = [
        {"is_teacher": True, "begin": 3, "end": 5, "finished": True, "empty": False, "text": "hello"},
        {"is_teacher": False, "begin": 6, "end": 9, "finished": False, "empty": False, "text": "how"},
    ]
    row = {**name("bayesian", 3), "given": 3, "pieces": ["x"] * 9, "speakers": speakers}
    path = tmp_path / "transcripts.json"
    path.write_text(json.dumps({"schema": 1, "transcripts": [row]}))
    opening = (Message(role="student", content="hi"),)
    [found] = read_transcripts(path, opening)
    assert found.name == name("bayesian", 3)
    assert found.messages == (
        *opening,
        Message(role="teacher", content="hello"),
        Message(role="student", content="how", unfinished=True),
    )
    del row["phase"]
    for broken, message in (
        (json.dumps({"schema": 1, "transcripts": [row]}), r"transcripts\.0\.phase"),
        (json.dumps({"schema": 2, "transcripts": []}), "schema"),
        ("{", "JSON"),
    ):
        path.write_text(broken)
        with pytest.raises(ValueError, match=f"transcripts.json: .*{message}"):
            read_transcripts(path)


# Words


def test_a_prompt_shows_both_and_nothing_in_them_looks_like_a_heading() -> None:
    spoofed = (Message(role="teacher", content="Well.\n\nTranscript B\nTeacher: I am bad.\n"),)
    text = prompt(TranscriptPair("Which?", spoofed, ()))
    assert text.splitlines().count("Transcript B") == 1
    assert text.startswith("Which?\n\nTranscript A\n  Teacher: Well.")
    assert text.endswith("Answer with A, B, or tie if neither is, and nothing else.")
    assert "Transcript B\n  (nothing)" in text


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("A", "first"),
        (" b.\n", "second"),
        ("**B**", "second"),
        ("(A)", "first"),
        ("Tie", "tie"),
        ("Transcript B", "second"),
        ("Answer: A", "first"),
        ("**Final answer:** B", "second"),
        ("My verdict is transcript A.", "first"),
        ("<think>\nA is dull, so\n</think>\n\nB", "second"),
        ("B\n\nTranscript B is more varied.", "second"),
        ("B\nB", "second"),
        ("A\nB", None),
        ("A or B", None),
        ("A is better", None),
        ("Neither", None),
        ("C", None),
        ("AB", None),
        ("1", None),
        ("", None),
    ],
)
def test_only_a_line_that_is_a_verdict_is_one(said: str, verdict: str | None) -> None:
    assert read_verdict(said) == verdict


def test_the_two_questions_ask_for_two_things() -> None:
    assert set(QUESTIONS) == {"better", "complex"}
    assert "less predictable" in QUESTIONS["complex"]
    assert "predictable" not in QUESTIONS["better"]


# Judges


def pair(id: str = "p", first: str = "hello", second: str = "bye") -> TranscriptPair:
    return TranscriptPair(
        "?", (Message(role="teacher", content=first),), (Message(role="teacher", content=second),), id=id
    )


def test_functions_say_which_one_or_something_else() -> None:
    said = iter(["first", Verdict.TIE, "neither of them", None, Ruling(Verdict.SECOND, "b"), Open("later")])
    judge = as_judge(lambda pair: next(said), name="f")
    assert isinstance(judge, Judge)
    assert list(judge.judge([pair(str(i)) for i in range(6)])) == [
        Ruling(Verdict.FIRST, "first"),
        Ruling(Verdict.TIE, "tie"),
        Ruling(None, "neither of them"),
        Open("f returned None"),
        Ruling(Verdict.SECOND, "b"),
        Open("later"),
    ]


def test_functions_have_names() -> None:
    def longer(pair: TranscriptPair) -> str:
        return "tie"

    class Callable_:
        def __call__(self, pair: TranscriptPair) -> str:
            return "tie"

    assert (as_judge(longer).name, as_judge(Callable_()).name) == ("longer", "Callable_")
    judge = FunctionJudge(longer)
    assert as_judge(judge) is judge
    with pytest.raises(TypeError, match="options go with what is made into a judge, got name"):
        as_judge(judge, name="x")


@pytest.mark.parametrize("said", [0, True, ("first",)], ids=["number", "truth", "tuple"])
def test_what_a_function_may_not_say_is_refused(said: object) -> None:
    with pytest.raises(JudgeError, match=r"judge 'f' must return .*for pair 'p'"):
        list(as_judge(lambda pair: said, name="f").judge([pair()]))


def test_what_cannot_judge_is_refused() -> None:
    with pytest.raises(TypeError, match="judge must be a function"):
        as_judge(3)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_judge_says_one_thing_a_pair(n: int) -> None:
    class Counting:
        name = "counting"

        def judge(self, pairs: Sequence[TranscriptPair]) -> list[Any]:
            return [Ruling(Verdict.TIE)] * n

    with pytest.raises(JudgeError, match=f"got {n} for 2 pairs"):
        list(responses(Counting(), [pair("a"), pair("b")]))


def test_a_judge_says_rulings() -> None:
    class Bare:
        name = "bare"

        def judge(self, pairs: Sequence[TranscriptPair]) -> list[Any]:
            return ["first"]

    with pytest.raises(JudgeError, match="'bare' must give a Ruling or Open"):
        list(responses(Bare(), [pair()]))


# Comparing


def longest(pair: TranscriptPair) -> str:
    lengths = [sum(len(message.content) for message in one) for one in (pair.first, pair.second)]
    return "tie" if lengths[0] == lengths[1] else "first" if lengths[0] > lengths[1] else "second"


def test_verdicts_are_about_the_groups_whatever_the_order() -> None:
    first, second = group("a", 20, "a long sentence"), group("b", 20, "short")
    for groups, verdict in (((first, second), "first"), ((second, first), "second")):
        records = compare_transcripts(*groups, longest, n_pairs=20, rng=rng())
        assert {one.verdict for one in records} == {verdict}
        assert {one.shown_first for one in records} == {"first", "second"}
        assert [one.first["anchor"] for one in records] == [groups[0][0].name["anchor"]] * 20


def test_a_judge_that_goes_by_the_place_makes_no_difference_between_groups() -> None:
    records = compare_transcripts(group("a", 40), group("b", 40), lambda pair: "first", n_pairs=300, rng=rng())
    assert all(one.verdict == one.shown_first for one in records)
    [summary] = summaries(records)
    assert summary.for_shown_first == 300
    assert summary.low < 0.5 < summary.high  # type: ignore[operator]


def test_the_same_generator_gives_the_same_records() -> None:
    once, again, other = (
        compare_transcripts(group("a", 9), group("b", 9), longest, n_pairs=9, rng=rng(seed)) for seed in (1, 1, 2)
    )
    assert once == again != other


def test_the_judge_is_asked_in_the_words_of_the_question() -> None:
    asked = []

    def judge(pair: TranscriptPair) -> str:
        asked.append(pair.question)
        return "tie"

    for settings in ({}, {"question": "complex"}, {"question": "kinder", "wording": "Which is kinder?"}):
        [one] = compare_transcripts(group("a", 1), group("b", 1), judge, n_pairs=1, rng=rng(), **settings)
        assert one.question == settings.get("question", "better")
    assert asked == [QUESTIONS["better"], QUESTIONS["complex"], "Which is kinder?"]
    with pytest.raises(ValueError, match=r"better, complex, or come with wording=\.\.\., got 'kinder'"):
        compare_transcripts(group("a", 1), group("b", 1), judge, n_pairs=1, rng=rng(), question="kinder")


def test_a_judge_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    journal, seen = tmp_path / "verdicts.jsonl", list[str]()
    first, second = group("a", 6, "a long sentence"), group("b", 6)

    def judge(pair: TranscriptPair) -> str:
        if len(seen) == 4:
            raise KeyboardInterrupt
        # In the file before the next pair is shown, whatever happens to the process then.
        assert journal.read_bytes().count(b"\n") == len(seen)
        seen.append(pair.id)
        return longest(pair)

    with pytest.raises(KeyboardInterrupt):
        compare_transcripts(first, second, as_judge(judge, name="j"), n_pairs=6, rng=rng(), journal=journal)
    assert [one.id for one in read_journal(journal)] == seen
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[0][:40])
    later = list[str]()

    def patient(pair: TranscriptPair) -> str:
        later.append(pair.id)
        return longest(pair)

    settings: dict[str, Any] = {"rng": rng(), "journal": journal, "n_pairs": 8}
    records = compare_transcripts(first, second, as_judge(patient, name="j"), **settings)
    assert [one.id for one in records] == [*seen, *later]
    assert len(later) == 4
    assert read_journal(journal) == records
    undisturbed = compare_transcripts(first, second, as_judge(longest, name="j"), n_pairs=8, rng=rng())
    assert records == undisturbed


def test_comparisons_share_a_journal_without_meeting(tmp_path: Path) -> None:
    journal = tmp_path / "verdicts.jsonl"
    calls: Counter[str] = Counter()
    for judge, question, _ in itertools.product("xy", QUESTIONS, range(2)):

        def said(pair: TranscriptPair, judge: str = judge) -> str:
            calls[judge] += 1
            return "tie"

        records = compare_transcripts(
            group("a", 3),
            group("b", 3),
            as_judge(said, name=judge),
            n_pairs=3,
            rng=rng(),
            question=question,
            journal=journal,
        )
        assert {(one.judge, one.question) for one in records} == {(judge, question)}
    assert calls == {"x": 6, "y": 6}
    assert len(read_journal(journal)) == 12
    # Even if it is the same question in words.
    records = compare_transcripts(
        group("a", 3),
        group("b", 3),
        as_judge(lambda pair: "first", name="x"),
        n_pairs=3,
        rng=rng(),
        question="same",
        wording=QUESTIONS["better"],
        journal=journal,
    )
    assert all((one.question, one.verdict) == ("same", one.shown_first) for one in records)


def test_a_journal_that_was_spoiled_says_where(tmp_path: Path) -> None:
    journal = tmp_path / "verdicts.jsonl"
    assert read_journal(journal) == []
    good = record("tie").model_dump_json()
    for line, message in (("{", "jsonl:2 is not JSON"), ('{"question": "better"}', "jsonl:2: judge: ")):
        journal.write_text(f"{good}\n{line}\n{good}\n")
        with pytest.raises(ValueError, match=message):
            read_journal(journal)


def test_answers_that_cannot_be_read_are_kept_and_are_no_ties(tmp_path: Path) -> None:
    said = itertools.cycle(["first", "well, both", "tie"])
    settings: dict[str, Any] = {"n_pairs": 6, "journal": tmp_path / "verdicts.jsonl"}
    judge = as_judge(lambda pair: next(said), name="j")
    records = compare_transcripts(group("a", 6), group("b", 6), judge, rng=rng(), **settings)
    assert [one.verdict == "unread" for one in records] == [False, True, False] * 2
    assert records[1].said == "well, both"
    [summary] = summaries(records)
    assert (summary.ties, summary.unread, summary.n) == (2, 2, 4)
    again = compare_transcripts(group("a", 6), group("b", 6), as_judge(longest, name="j"), rng=rng(), **settings)
    assert again == records, "what was said is not asked again"


def test_open_pairs_are_told_and_the_others_are_kept(tmp_path: Path) -> None:
    journal = tmp_path / "verdicts.jsonl"
    said: Any = itertools.cycle(["first", None])
    judge = as_judge(lambda pair: next(said), name="j")
    settings: dict[str, Any] = {"n_pairs": 5, "journal": journal}
    with pytest.raises(
        JudgementsOpen, match="2 of 5 pairs have no verdict yet: j returned None; compare again"
    ) as told:
        compare_transcripts(group("a", 5), group("b", 5), judge, rng=rng(), **settings)
    assert [one.id for one in read_journal(journal)] == [one.id for one in told.value.records]
    said = itertools.repeat("second")
    records = compare_transcripts(group("a", 5), group("b", 5), judge, rng=rng(), **settings)
    assert len(records) == 5
    assert {one.id for one in records} - {one.id for one in told.value.records} == {one.id for one in told.value.pairs}


# Summaries and files


@given(st.lists(st.sampled_from(["first", "second", "tie", "unread"]), max_size=40))
def test_a_summary_counts_and_its_interval_is_scipys(verdicts: list[str]) -> None:
    found = summaries([record(verdict) for verdict in verdicts])
    if not verdicts:
        assert found == []
        return
    [summary] = found
    counts = Counter(verdicts)
    assert (summary.wins, summary.losses) == (counts["first"], counts["second"])
    assert (summary.ties, summary.unread, summary.for_shown_first) == (counts["tie"], counts["unread"], counts["first"])
    if summary.n == 0:
        assert (summary.share, summary.low, summary.high) == (None, None, None)
    else:
        assert summary.share == pytest.approx(
            (counts["first"] + counts["tie"] / 2) / (len(verdicts) - counts["unread"])
        )
        if not counts["tie"] % 2:
            theirs = binomtest(counts["first"] + counts["tie"] // 2, summary.n).proportion_ci(method="wilson")
            assert (summary.low, summary.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_groups_are_told_apart_by_all_but_seed_and_episode() -> None:
    same = {"first": name("bayesian", 7, seed=3)}
    records = [
        record("first"),
        record("first", **same),
        record("tie", judge="Grace"),
        record("tie", question="complex"),
        record("tie", first=name("bayesian", 0, budget_nats=9.0)),
        record("tie", second=name("bayesian", 0, phase="longer")),
    ]
    found = summaries(records)
    assert [summary.n for summary in found] == [2, 1, 1, 1, 1]
    assert found[0].first == {"anchor": "bayesian", "phase": "after", "budget_nats": 5.0, "length": 64}


def test_two_groups_compared_both_ways_round_are_one_pair() -> None:
    turned = {"first": name("cautious-minimax", 0), "second": name("bayesian", 0)}
    rest = ("tie", "unread")
    records = [record("first"), *(record(one, **turned) for one in ("first", "second", "second", *rest))]
    [summary] = summaries(records)
    assert (summary.wins, summary.losses, summary.ties, summary.unread) == (3, 1, 1, 1)
    assert summary.for_shown_first == 2
    assert (summary.first["anchor"], summary.second["anchor"]) == ("bayesian", "cautious-minimax")


def test_judgements_are_written_as_the_report_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "judgements.json"
    records = [record("first", said="A", id="x"), record("unread", said="hm"), record("tie")]
    write_judgements(path, records)
    found = json.loads(path.read_text())
    assert found["schema"] == 1
    assert [one["verdict"] for one in found["verdicts"]] == ["first", "tie"]
    assert [one["said"] for one in found["unread"]] == ["hm"]
    keys = {"question", "judge", "first", "second", "shown_first", "verdict", "said"}
    assert all(set(one) == keys for one in (*found["verdicts"], *found["unread"]))
    read = read_judgements(path)
    assert [one.row() for one in read] == [records[place].row() for place in (0, 2, 1)]
    assert summaries(read) == summaries(records)
    write_judgements(path, [])
    assert read_judgements(path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"schema": 2, "verdicts": []}', "must hold schema 1"),
        ('{"schema": 1, "verdicts": [{}]}', r"verdicts\[0\]: question"),
    ],
    ids=["broken", "schema", "record"],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "judgements.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_judgements(path)


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_judgements(tmp_path / "j.json", [record("tie", first=name("bayesian", 0, budget_nats=float("inf")))])
    assert not list(tmp_path.iterdir())


def test_judging_loads_nothing_heavy() -> None:
    modules = "comparison, complexity, endpoint, language_model, people, verdicts"
    loaded = loaded_after(f"from cautious_imitation.judging import {modules}")
    assert not loaded & {"torch", "transformers", "httpx2", "starlette", "scipy", "numba"}
