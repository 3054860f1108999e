"""Shares with their Wilson intervals, as people read them."""

from __future__ import annotations

from dataclasses import dataclass

from cautious_imitation.intervals import wilson_interval
from cautious_imitation.report.wording import percent

LEVEL = 0.95
"""Confidence of every interval on the page."""


@dataclass(frozen=True)
class Share:
    """A share of ``n`` with its Wilson interval; halves count where a tie is half a win."""

    successes: float
    n: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share itself."""
        return self.successes / self.n

    def above(self, other: Share) -> bool:
        """Whether the intervals are apart and this one is higher."""
        return self.low > other.high

    def __str__(self) -> str:
        return share_text(self.share, self.low, self.high)


def share_of(successes: float, n: int) -> Share | None:
    """``successes`` of ``n`` with the 95 % Wilson interval, None of none.

    >>> str(share_of(10, 40)), share_of(0, 0)
    ('25 % (14–40)', None)
    """
    if n == 0:
        return None
    low, high = wilson_interval(successes, n, level=LEVEL)
    return Share(successes, n, float(low), float(high))


def share_text(share: float, low: float, high: float) -> str:
    """A share in per cent, with its interval in brackets.

    >>> share_text(0.25, 0.142, 0.402), share_text(0.004, 0.001, 0.0123)
    ('25 % (14–40)', '0.4 % (0.1–1.2)')
    """
    digits = 1 if high < 0.0995 else 0
    return f"{percent(share)} ({100 * low:.{digits}f}–{100 * high:.{digits}f})"
