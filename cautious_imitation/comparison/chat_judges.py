"""Who compares the transcripts of a chat experiment, and which groups of them are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isclose
from pathlib import Path

import numpy as np
import torch

from cautious_imitation.chat_config import SMALL_GPT, SMOLLM2, ChatConfig, LanguageConfig
from cautious_imitation.comparison.chat_records import Record
from cautious_imitation.comparison.chat_sources import load_base
from cautious_imitation.demonstrations import Message, actor_codes
from cautious_imitation.environments.transcripts import Turn
from cautious_imitation.judging.comparison import compare_transcripts
from cautious_imitation.judging.complexity import complexity
from cautious_imitation.judging.endpoint import EndpointJudge
from cautious_imitation.judging.function import FunctionJudge, as_judge
from cautious_imitation.judging.protocol import Judge, JudgementsOpen, Response
from cautious_imitation.judging.transcripts import NamedTranscript
from cautious_imitation.judging.verdicts import VerdictRecord
from cautious_imitation.judging.wording import QUESTIONS
from cautious_imitation.language.chats import tokenized_chats
from cautious_imitation.language.loading import load_tokenizer
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.oracles.judgements import TranscriptPair
from cautious_imitation.types import Actor

AUTOMATIC = "automatic"
_TIE = 0.02
"""Automatic measures that differ by less than this share of the larger one are a tie."""

_NAME = ("anchor", "phase", "budget_nats", "seed", "length", "episode")

_SPEAKERS: dict[str | None, str] = {
    "assistant": "teacher",
    "Teacher": "teacher",
    "user": "student",
    "Student": "student",
}
_ROLES = {"teacher": "assistant", "student": "user", "system": "system"}

Group = tuple[str, float]


def judges_of(config: ChatConfig, reference: Callable[[], LanguageModel]) -> dict[str, Judge]:
    """The judge of each question; a model is loaded when there is something to judge.

    Args:
        config: ``evaluation.judge`` says who it is.
        reference: gives the demonstrator where it is known, else the base model; the automatic judge goes by it.

    Raises:
        OSError: if the judge is a model that is not here, and the hub cannot be reached.
        ValueError: if there cannot be such a judge.
    """
    judge = config.evaluation.judge.strip()
    if judge == AUTOMATIC:
        return {"better": _likelier(reference, config), "complex": FunctionJudge(_more_complex, "compressed bits")}
    if "://" in judge:
        url, _, model = judge.partition(" ")
        if not model.strip():
            raise ValueError(
                f"evaluation.judge must name a model after the URL of an endpoint, got {judge!r}; write 'URL MODEL'"
            )
        return dict.fromkeys(QUESTIONS, EndpointJudge(url, model.strip()))
    if not judge:
        raise ValueError(f"evaluation.judge must be {AUTOMATIC!r}, a model, or 'URL MODEL' of an endpoint, got ''")
    language = LanguageConfig(source=judge, device=config.language.device, dtype=config.language.dtype)
    return dict.fromkeys(QUESTIONS, _LoadedLater(judge, lambda: as_judge(load_base(language), name=judge)))


def check_judge(config: ChatConfig) -> None:
    """Raise now what ``judges_of`` and the first verdict would, rather than after hours of training."""
    judge = config.evaluation.judge.strip()
    if not config.evaluation.pairs or len(config.anchors) * len(config.budgets_nats) < 2:
        return
    judges_of(config, _nobody)
    if judge not in (AUTOMATIC, SMALL_GPT, SMOLLM2) and "://" not in judge:
        load_tokenizer(judge)


def judgements(
    config: ChatConfig, transcripts: Sequence[Record], reference: Callable[[], LanguageModel], journal: Path | None
) -> Iterator[VerdictRecord]:
    """Verdicts on all pairs of groups, those that ``journal`` has not asked for again.

    Args:
        config: settings.
        transcripts: as in ``transcripts.json``.
        reference: as in ``judges_of``.
        journal: a line a verdict; None keeps none.

    Raises:
        JudgementsOpen: if some have no verdict yet, once all others of the same groups and question are given.
        OSError, ValueError: as ``judges_of``.
    """
    groups: dict[Group, list[NamedTranscript]] = {}
    for row in transcripts:
        if row["phase"] == "after":
            name = {key: row[key] for key in _NAME}
            turns = [Turn(s["is_teacher"], s["begin"], s["end"], s["text"], s["finished"]) for s in row["speakers"]]
            group = (str(row["anchor"]), float(row["budget_nats"]))
            groups.setdefault(group, []).append(NamedTranscript.of(name, turns, _opening(config)))
    if not config.evaluation.pairs or len(groups) < 2:
        return
    judges = judges_of(config, reference)
    for number, (first, second) in enumerate(_compared(list(groups))):
        ours, theirs = groups[first], groups[second]
        n_pairs = min(config.evaluation.pairs, len(ours) * len(theirs))
        for place, (question, judge) in enumerate(judges.items()):
            rng = np.random.default_rng([number, place])
            try:
                yield from compare_transcripts(
                    ours, theirs, judge, n_pairs=n_pairs, rng=rng, question=question, journal=journal
                )
            except JudgementsOpen as still_open:
                yield from still_open.records
                raise


@dataclass
class _LoadedLater:
    """A judge that takes its memory when it is asked."""

    name: str
    make: Callable[[], Judge]

    def judge(self, pairs: Sequence[TranscriptPair]) -> Iterable[Response]:
        return self._made.judge(pairs)

    @cached_property
    def _made(self) -> Judge:
        return self.make()


def _nobody() -> LanguageModel:
    raise AssertionError("nobody is asked where judges are only checked")


def _opening(config: ChatConfig) -> list[Message]:
    """What was said before, for judges to know; an opening that is text is none of theirs."""
    opening = config.episodes.opening
    if isinstance(opening, str):
        return []
    speakers = {**_SPEAKERS, config.episodes.teacher: "teacher", config.episodes.student: "student"}
    return [Message(role=speakers.get(one["role"], one["role"]), content=one["content"]) for one in opening]


def _compared(groups: Sequence[Group]) -> Iterator[tuple[Group, Group]]:
    """Two anchors at one budget, and two budgets of one anchor."""
    for i, first in enumerate(groups):
        for second in groups[i + 1 :]:
            if (first[0] == second[0]) != (first[1] == second[1]):
                yield first, second


def _words(pair: TranscriptPair) -> tuple[str, str]:
    """What the two teachers said."""
    return tuple(" ".join(m.content for m in side if m.role == "teacher") for side in (pair.first, pair.second))  # type: ignore[return-value]


def _more_complex(pair: TranscriptPair) -> str:
    """The teacher's words that take more compressed bits, cut to the same number."""
    words = _words(pair)
    length = min(len(said.split()) for said in words)
    if not length:
        # Who says nothing says what is easiest to guess.
        return _verdict(*(float(len(said)) for said in words))
    return _verdict(*(complexity([said], length).bits_per_token or 0.0 for said in words))


def _likelier(reference: Callable[[], LanguageModel], config: ChatConfig) -> FunctionJudge:
    """The teacher's words that a model would sooner say: mean log-probability a token, ends of turns included."""
    known = config.demonstrations.demonstrator is not None
    (demonstrator,) = actor_codes([Actor.DEMONSTRATOR])

    def score(side: Sequence[Message]) -> float:
        model = reference()
        # Where no special token ends a turn a line break does, so there is none within one.
        said = [
            message.model_copy(update={"role": _ROLES[message.role], "content": message.content.replace("\n", " ")})
            for message in side
        ]
        written = tokenized_chats([{"messages": said}], model.tokenizer)
        tokens = torch.from_numpy(written.sequences[0][: model.max_length].copy())
        ours = torch.from_numpy(written.actors[0][: model.max_length] == demonstrator)
        features, _ = model.features(tokens[None])
        log_probs = model.log_probs(features[0, :-1])
        found = log_probs.gather(1, tokens[1:, None].to(log_probs.device))[:, 0]
        chosen = found[ours[1:].to(found.device)]
        # A teacher who was cut off before the first word has said nothing that could be likely.
        return float(chosen.mean()) if len(chosen) else -inf

    def judge(pair: TranscriptPair) -> str:
        # Closer to 0 is likelier, so the measure is turned round.
        return _verdict(*(1 / max(1e-6, -score(side)) for side in (pair.first, pair.second)))

    return FunctionJudge(judge, f"{'demonstrator' if known else 'base model'}'s likelihood")


def _verdict(first: float, second: float) -> str:
    if isclose(first, second, rel_tol=_TIE):
        return "tie"
    return "first" if first > second else "second"
