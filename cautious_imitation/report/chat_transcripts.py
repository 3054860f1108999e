"""Transcripts chosen by a rule and made ready to be shown: turns of tokens, each with the shades of its numbers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from cautious_imitation.report.chat_contract import CHAT_ANCHORS
from cautious_imitation.report.chat_episodes import ChatEpisode

SHADES_NATS = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0)
"""Upper edges of the shades of a token; the last shade is open. One scale for charge and distance."""

SHADE_LABELS = ("under 0.001", "0.001–0.01", "0.01–0.1", "0.1–0.3", "0.3–1", "1–3", "3 or more")


@dataclass(frozen=True)
class Token:
    """One token: its text, who chose it, and numbers with their shades where the policy decided.

    Attributes:
        piece: its text.
        actor: who chose it.
        quiet: whether it is of the opening, a header or the student's.
        asked: whether it begins an answer that the policy asked for.
        charge_nats: None where the policy did not decide.
        charge_shade: index of its shade, None likewise.
        kl_nats: distance to the demonstrator, None likewise and where that is unknown.
        kl_shade: index of its shade.
    """

    piece: str
    actor: str
    quiet: bool
    asked: bool
    charge_nats: float | None
    charge_shade: int | None
    kl_nats: float | None
    kl_shade: int | None


@dataclass(frozen=True)
class ShownTurn:
    """One turn: ``speaker`` is ``opening``, ``teacher`` or ``student``; ``reward`` where a student's reply was paid."""

    speaker: str
    tokens: tuple[Token, ...]
    empty: bool
    cut: bool
    reward: float | None


@dataclass(frozen=True)
class ShownTranscript:
    """One episode of one anchor, and its turns."""

    episode: ChatEpisode
    turns: tuple[ShownTurn, ...]


@dataclass(frozen=True)
class Selection:
    """The transcripts that one rule chooses, an anchor at most one; ``missing`` are anchors without any."""

    name: str
    rule: str
    shown: tuple[ShownTranscript, ...]
    missing: tuple[str, ...]


def common_budget(episodes: Sequence[ChatEpisode]) -> float | None:
    """The largest of the budgets of which the most anchors have transcripts; None without transcripts."""
    anchors: dict[float, set[str]] = {}
    for one in episodes:
        anchors.setdefault(one.budget_nats, set()).add(one.anchor)
    return max(anchors, key=lambda budget: (len(anchors[budget]), budget), default=None)


def median_reward(episodes: Sequence[ChatEpisode]) -> ChatEpisode:
    """The episode with the median reward: the lower of the two middle ones; of equals the first."""
    return sorted(episodes, key=lambda one: (one.reward, one.seed, one.episode))[(len(episodes) - 1) // 2]


def most_empty(episodes: Sequence[ChatEpisode]) -> ChatEpisode | None:
    """The episode with the most empty replies, of equals that with the larger share of them, then the first."""
    found = [one for one in episodes if one.n_empty]
    return min(found, key=lambda one: (-one.n_empty, -(one.empty_share or 0.0), one.seed, one.episode), default=None)


def select(episodes: Sequence[ChatEpisode]) -> list[Selection]:
    """Transcripts by both rules, of ``episodes`` of one budget, phase and length."""
    anchors = [name for name in CHAT_ANCHORS if any(one.anchor == name for one in episodes)]
    by_anchor = {name: [one for one in episodes if one.anchor == name] for name in anchors}
    medians = {name: median_reward(own) for name, own in by_anchor.items()}
    emptiest = {name: most_empty(own) for name, own in by_anchor.items()}
    return [
        Selection(
            "Median reward",
            "Of the recorded episodes of each anchor, the one with the median reward.",
            tuple(shown_transcript(one) for one in medians.values()),
            (),
        ),
        Selection(
            "Most empty replies",
            "Of the recorded episodes of each anchor, the one with the most empty replies.",
            tuple(shown_transcript(one) for one in emptiest.values() if one is not None),
            tuple(name for name, one in emptiest.items() if one is None),
        ),
    ]


def shade(nats: float) -> int:
    """The index of the shade of ``nats``.

    >>> shade(0.0), shade(0.2), shade(30.0)
    (0, 3, 6)
    """
    return bisect_right(SHADES_NATS, nats)


def shown_transcript(episode: ChatEpisode) -> ShownTranscript:
    """``episode`` turn by turn."""
    decisions, questions = set(episode.decisions), set(episode.questions)
    turns = []
    for number, places in groupby(range(len(episode.pieces)), key=lambda place: episode.turns[place]):
        here = list(places)
        speech = episode.speakers[number] if 0 <= number < len(episode.speakers) else None
        # Of headers, which say whose turn it is, nothing is shown. A turn that a declined question broke off is the
        # teacher's, and not among the speakers.
        spoken = range(speech.begin, speech.end) if speech else ()
        words = [place for place in here if number < 0 or place in spoken or episode.actors[place] != "environment"]
        if not words:
            continue
        speaker = "opening" if number < 0 else "student" if speech and not speech.is_teacher else "teacher"
        paid = math.fsum(episode.rewards[place] for place in here)
        finished = speech is not None and speech.finished
        turns.append(
            ShownTurn(
                speaker,
                tuple(_token(episode, place, number < 0, decisions, questions) for place in words),
                speech is not None and speech.is_teacher and finished and speech.empty,
                number >= 0 and not finished,
                paid if speaker == "student" and (paid or finished) else None,
            )
        )
    return ShownTranscript(episode, tuple(turns))


def _token(episode: ChatEpisode, place: int, silent: bool, decisions: set[int], questions: set[int]) -> Token:
    decided = place in decisions
    charge = episode.charges[place] if decided else None
    kl = episode.kl_demonstrator[place] if decided and episode.kl_demonstrator is not None else None
    return Token(
        episode.pieces[place],
        episode.actors[place],
        silent or episode.actors[place] == "environment",
        place in questions,
        charge,
        None if charge is None else shade(charge),
        kl,
        None if kl is None else shade(kl),
    )
