"""Intervals of confidence for shares."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """From where to where."""

    low: float
    high: float


def wilson_interval(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's interval for the share of successes in independent trials, without a correction for continuity.

    Shares of 0 and 1 have an interval of a length that makes sense, which the normal approximation does not give them.

    Args:
        successes: how many of the trials succeeded. Ties may count as half a success each: their variance is smaller
            than that of a trial, so the interval is too wide rather than too narrow.
        n: how many trials there were.
        level: how often, in the long run, the interval holds the true share; nearly so if ``n`` is small.

    Returns:
        Its two ends, within [0, 1].

    Raises:
        ValueError: if there is no trial, ``successes`` is not in 0..n or ``level`` not in (0, 1).

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.

    >>> low, high = wilson_interval(180, 300)
    >>> round(low, 4), round(high, 4)
    (0.5436, 0.6538)
    """
    if not n >= 1:
        raise ValueError(f"n must be at least 1, got {n!r}; without trials there is no share")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..{n}, the number of trials, got {successes!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}; 0.95 is usual")
    radius = NormalDist().inv_cdf((1 + level) / 2) ** 2 / (2 * n)
    return Interval(_low(successes / n, radius), 1 - _low((n - successes) / n, radius))


def _low(p: float, radius: float) -> float:
    """The q below p with (p - q)^2 / (2 q (1 - q)) = radius; written so that nothing cancels, and 0 stays 0."""
    return p * p / (p + radius + sqrt(radius * (radius + 2 * p * (1 - p))))
