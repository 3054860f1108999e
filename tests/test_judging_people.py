"""People as judges: pairs wait in a log, and verdicts given there are found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cautious_imitation.demonstrations import Message
from cautious_imitation.judging.comparison import compare_transcripts
from cautious_imitation.judging.function import as_judge
from cautious_imitation.judging.people import PeopleJudge
from cautious_imitation.judging.protocol import JudgementsOpen, Open, Ruling
from cautious_imitation.judging.transcripts import NamedTranscript
from cautious_imitation.judging.verdicts import VerdictRecord, read_journal
from cautious_imitation.judging.wording import BETTER
from cautious_imitation.oracles.judgements import JudgementLog, TranscriptPair
from cautious_imitation.oracles.protocol import AnswerConflict
from cautious_imitation.oracles.web.judgement_pages import verdict_of

N = 12


def group(anchor: str, said: str) -> list[NamedTranscript]:
    return [
        NamedTranscript({"anchor": anchor, "episode": i}, (Message(role="teacher", content=f"{said} {i}"),))
        for i in range(N)
    ]


def compared(judge: Any, **settings: Any) -> list[VerdictRecord]:
    return compare_transcripts(
        group("a", "hello"), group("b", "bye"), judge, n_pairs=N, rng=np.random.default_rng(0), **settings
    )


def test_pairs_wait_until_people_have_judged_them(tmp_path: Path) -> None:
    path, journal = tmp_path / "judgements.db", tmp_path / "verdicts.jsonl"
    with pytest.raises(JudgementsOpen, match=f"{N} of {N} pairs have no verdict yet: people judge .*judgements.db"):
        compared(path, journal=journal)
    log = JudgementLog(path)
    kinder = dict[str, str]()
    while len(kinder) < N - 2:
        pair = log.next("Ada")
        assert pair is not None
        assert pair.question == BETTER
        kinder[pair.id] = "first" if pair.first[0].content.startswith("hello") else "second"
        log.judge(pair.id, kinder[pair.id], "Ada")
    with pytest.raises(JudgementsOpen, match=f"2 of {N}") as told:
        compared(path, journal=journal)
    assert {one.id for one in read_journal(journal)} == set(kinder)
    for pair in told.value.pairs:
        log.judge(pair.id, "tie", "Grace")
    records = compared(path, journal=journal)
    assert [one.verdict for one in records if one.id in kinder] == ["first"] * (N - 2)
    assert [one.verdict for one in records if one.id not in kinder] == ["tie"] * 2
    assert {(one.judge, one.said) for one in records} == {("people", None)}
    assert compared(log) == records, "without a journal, all of it is found in the log"
    assert log.counts().by_person == {"Ada": N - 2, "Grace": 2}
    log.close()


def test_what_people_saw_first_is_recorded_though_the_console_shuffles_too(tmp_path: Path) -> None:
    log = JudgementLog(tmp_path / "judgements.db")
    with pytest.raises(JudgementsOpen) as told:
        compared(log)
    for pair in told.value.pairs:
        log.judge(pair.id, verdict_of(pair.id, "a"), "somebody who always takes A")
    records = compared(log)
    assert all(one.verdict == one.shown_first for one in records)
    assert {one.shown_first for one in records} == {"first", "second"}
    log.close()


def test_one_pair_at_a_time(tmp_path: Path) -> None:
    log = JudgementLog(tmp_path / "judgements.db")
    judge = as_judge(log, name="two of us")
    assert isinstance(judge, PeopleJudge)
    assert judge.name == "two of us"
    pairs = [TranscriptPair("?", (), (), id=str(i)) for i in range(2)]
    assert [type(response) for response in judge.judge(pairs)] == [Open, Open]
    log.judge("1", "second", "Ada")
    waiting, given = judge.judge(pairs)
    assert isinstance(waiting, Open)
    assert isinstance(given, Ruling)
    assert given.verdict == "second"
    with pytest.raises(AnswerConflict):
        list(judge.judge([TranscriptPair("another?", (), (), id="0")]))
    log.close()


def test_without_the_console_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cautious_imitation.judging.people.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"cautious-imitation\[oracle\]"):
        PeopleJudge(tmp_path / "judgements.db")
