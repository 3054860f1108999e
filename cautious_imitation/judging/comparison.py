"""Two groups of transcripts compared: pairs are drawn, shown to a judge, and its verdicts kept as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path

import numpy as np

from cautious_imitation.judging.function import Judging, as_judge
from cautious_imitation.judging.protocol import Judge, JudgementsOpen, Open, Ruling, responses
from cautious_imitation.judging.transcripts import DrawnPair, NamedTranscript, Side, draw_pairs
from cautious_imitation.judging.verdicts import UNREAD, Said, VerdictRecord, read_journal
from cautious_imitation.judging.wording import QUESTIONS
from cautious_imitation.oracles.judgements import TranscriptPair, Verdict


def compare_transcripts(
    first: Sequence[NamedTranscript],
    second: Sequence[NamedTranscript],
    judge: Judging,
    *,
    n_pairs: int,
    rng: np.random.Generator,
    question: str = "better",
    wording: str | None = None,
    journal: str | PathLike[str] | None = None,
) -> list[VerdictRecord]:
    """Ask a judge about pairs of transcripts of two groups, as ``draw_pairs`` draws them.

    Args:
        first: transcripts of one policy.
        second: those of another.
        judge: what ``as_judge`` takes.
        n_pairs: how many pairs.
        rng: draws them, and the order in which each is shown.
        question: its name; "better" and "complex" have a wording, ``wording.QUESTIONS``.
        wording: the question in words; needed for other names.
        journal: a file, a line a verdict, that every verdict is appended to as soon as it is known. Pairs that are
            there already are not shown to a judge of that name again, so a comparison that was cut off goes on where it
            was, and one with more pairs begins with those that were judged. Other comparisons may share the file.

    Returns:
        One record a pair, in the order in which they were drawn; answers that could not be read among them.

    Raises:
        JudgementsOpen: if some pairs have no verdict yet; the others are in the journal and the exception.
        ValueError: if pairs cannot be drawn, the question has no wording, or the journal cannot be read.
        JudgeError: if the judge's responses are none.

    >>> groups = [[NamedTranscript({"policy": p, "episode": i}, ()) for i in range(3)] for p in "ab"]
    >>> records = compare_transcripts(*groups, lambda pair: "tie", n_pairs=3, rng=np.random.default_rng(0))
    >>> [record.verdict for record in records]
    ['tie', 'tie', 'tie']
    """
    words = QUESTIONS.get(question) if wording is None else wording
    if words is None:
        raise ValueError(f"question must be one of {', '.join(QUESTIONS)}, or come with wording=..., got {question!r}")
    return judged(draw_pairs(first, second, words, n_pairs, rng), as_judge(judge), question, journal)


def judged(
    drawn: Sequence[DrawnPair], judge: Judge, question: str, journal: str | PathLike[str] | None = None
) -> list[VerdictRecord]:
    """Ask a judge about pairs that were drawn; arguments, result and errors as for ``compare_transcripts``."""
    before = [] if journal is None else read_journal(journal)
    known = {record.id: record for record in before if (record.judge, record.question) == (judge.name, question)}
    waiting = [one for one in drawn if one.pair.id not in known]
    open_pairs: list[TranscriptPair] = []
    reason = ""
    with ExitStack() as stack:
        lines = None if journal is None else stack.enter_context(Path(journal).open("a", encoding="utf-8"))
        answers = responses(judge, [one.pair for one in waiting]) if waiting else iter(())
        for one, response in zip(waiting, answers, strict=True):
            if isinstance(response, Open):
                open_pairs.append(one.pair)
                reason = reason or response.reason
                continue
            record = known[one.pair.id] = _record(one, response, judge.name, question)
            if lines is not None:
                lines.write(json.dumps(record.model_dump(), allow_nan=False) + "\n")
                lines.flush()
    records = [known[one.pair.id] for one in drawn if one.pair.id in known]
    if open_pairs:
        raise JudgementsOpen(open_pairs, records, reason)
    return records


def _record(drawn: DrawnPair, ruling: Ruling, judge: str, question: str) -> VerdictRecord:
    """The verdict on the pair as it was shown, translated to the two groups."""
    names: tuple[Side, Side] = ("first", "second")
    shown = names if drawn.shown_first == "first" else names[::-1]
    meant: dict[Verdict | None, Said] = {
        None: UNREAD,
        Verdict.TIE: "tie",
        Verdict.FIRST: shown[0],
        Verdict.SECOND: shown[1],
    }
    return VerdictRecord(
        question=question,
        judge=judge,
        first=dict(drawn.first),
        second=dict(drawn.second),
        shown_first=shown[1] if ruling.reversed else shown[0],
        verdict=meant[ruling.verdict],
        said=ruling.said,
        id=drawn.pair.id,
    )
