"""What transcripts say beyond the rows: charges token by token, the cost of silence, repeated words, line breaks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cautious_imitation.report.chat_episodes import ChatEpisode
from cautious_imitation.report.chat_shares import Share, share_of

MIN_QUARTILES = 5
"""Fewest values that quartiles are shown of; of fewer, every value is."""

MIN_APPEARANCES = 3
"""How often an n-gram has to appear in an episode to be counted."""

SMALLEST_NATS = 1e-6
"""Charges below this are drawn as nothing."""

_STEPS_A_DECADE = 4
_LINE_BREAKS = re.compile(r"\n+")
_SPACES = re.compile(r"(?<=\S) +(?=\S)")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of ``values``; ``at`` is which empty reply or appearance they belong to, from 1."""

    at: int
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def quartiles(self) -> tuple[float, float, float] | None:
        """25, 50 and 75 % quantiles, None of fewer than ``MIN_QUARTILES`` values."""
        if self.n < MIN_QUARTILES:
            return None
        low, median, high = np.quantile(self.values, (0.25, 0.5, 0.75))
        return float(low), float(median), float(high)


@dataclass(frozen=True)
class Histogram:
    """Charges of decisions: the share that is nothing, and the share in each bin of a logarithmic axis."""

    n: int
    nothing: float
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    median: float


def decision_charges(episodes: Sequence[ChatEpisode]) -> list[float]:
    """The charge of every decision, in nats."""
    return [one.charges[place] for one in episodes for place in one.decisions]


def charge_histogram(charges: Sequence[float]) -> Histogram | None:
    """How ``charges`` are spread, in bins of a quarter of a decade; None without charges."""
    if not charges:
        return None
    values = np.asarray(charges)
    top = math.ceil(math.log10(max(values.max(), 1.0)) + 1e-9)
    edges = np.logspace(math.log10(SMALLEST_NATS), top, round(_STEPS_A_DECADE * (top - math.log10(SMALLEST_NATS))) + 1)
    counts, _ = np.histogram(values, edges)
    return Histogram(
        len(values),
        float(np.mean(values < SMALLEST_NATS)),
        tuple(map(float, edges)),
        tuple(float(count) / len(values) for count in counts),
        float(np.median(values)),
    )


def empty_costs(episodes: Sequence[ChatEpisode]) -> list[list[float]]:
    """For each episode, what each of its empty replies was charged in turn; those that somebody else gave left out."""
    return [
        [one.cost(reply.begin, reply.end) for reply in one.replies if reply.empty and one.is_own(reply)]
        for one in episodes
    ]


def by_place(sequences: Sequence[Sequence[float]]) -> list[Spread]:
    """First values, second values and so on, of all sequences that have one."""
    longest = max(map(len, sequences), default=0)
    return [Spread(place + 1, tuple(one[place] for one in sequences if len(one) > place)) for place in range(longest)]


def cheaper_at_last(costs: Sequence[Sequence[float]]) -> Share | None:
    """Of the episodes with two empty replies or more, those whose last was cheaper than their first."""
    several = [one for one in costs if len(one) > 1]
    return share_of(sum(one[-1] < one[0] for one in several), len(several))


def ngram_costs(episodes: Sequence[ChatEpisode], n: int) -> list[list[float]]:
    """What each appearance of an n-gram was charged in turn, for every n-gram of every episode that appears often.

    An n-gram is ``n`` tokens in a row that the policy chose within one of the teacher's turns. Appearances may overlap.
    """
    found = []
    for one in episodes:
        costs: dict[tuple[str, ...], list[float]] = {}
        for speech in one.speakers:
            if not speech.is_teacher:
                continue
            for begin in range(speech.begin, speech.end - n + 1):
                if all(actor == "imitator" for actor in one.actors[begin : begin + n]):
                    costs.setdefault(one.pieces[begin : begin + n], []).append(one.cost(begin, begin + n))
        found += [charges for charges in costs.values() if len(charges) >= MIN_APPEARANCES]
    return found


@dataclass(frozen=True)
class Silence:
    """Episodes in which at least half of the replies are empty, beside the others: how many, reward and charge."""

    n: int
    reward: float
    charge_nats: float
    n_others: int
    reward_others: float | None
    charge_others: float | None


def silence(episodes: Sequence[ChatEpisode]) -> Silence | None:
    """What silent episodes earn and cost on average, None if there is none."""
    with_replies = [one for one in episodes if one.replies]
    silent = [one for one in with_replies if 2 * one.n_empty >= len(one.replies)]
    others = [one for one in with_replies if 2 * one.n_empty < len(one.replies)]
    if not silent:
        return None
    return Silence(
        len(silent),
        _mean([one.reward for one in silent]),
        _mean([one.charge_nats for one in silent]),
        len(others),
        _mean([one.reward for one in others]) if others else None,
        _mean([one.charge_nats for one in others]) if others else None,
    )


def blank_lines(episodes: Sequence[ChatEpisode]) -> Share | None:
    """Of the places where the policy broke lines, those where it left a line blank."""
    breaks = [found for words in _own_words(episodes) for found in _LINE_BREAKS.findall(words)]
    return share_of(sum(len(found) > 1 for found in breaks), len(breaks))


def double_spaces(episodes: Sequence[ChatEpisode]) -> Share | None:
    """Of the places where the policy put spaces between words, those where it put more than one."""
    gaps = [found for words in _own_words(episodes) for found in _SPACES.findall(words)]
    return share_of(sum(len(found) > 1 for found in gaps), len(gaps))


def _own_words(episodes: Sequence[ChatEpisode]) -> list[str]:
    """What the policy wrote in each of the teacher's turns, other actors' tokens left out."""
    return [
        "".join(one.pieces[place] for place in range(speech.begin, speech.end) if one.actors[place] == "imitator")
        for one in episodes
        for speech in one.speakers
        if speech.is_teacher
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
