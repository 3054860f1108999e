"""Intervals of shares: as SciPy has them, and as what they are the solution of."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from cautious_imitation.intervals import wilson_interval


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_it_is_what_scipy_says(n: int, level: float) -> None:
    for successes in range(n + 1):
        theirs = binomtest(successes, n).proportion_ci(level, method="wilson")
        assert wilson_interval(successes, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, 2 * n).map(lambda k: k / 2), st.just(n))))
def test_the_ends_are_the_shares_that_are_just_compatible_with_what_was_seen(trial: tuple[float, int]) -> None:
    successes, n = trial
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    for end in (low, high):
        distance = (successes / n - end) ** 2
        if 0 < end < 1:
            assert distance == pytest.approx(norm.ppf(0.975) ** 2 * end * (1 - end) / n, rel=1e-6)
    mirrored = wilson_interval(n - successes, n)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=1e-12)


def test_nothing_and_everything_have_an_exact_end() -> None:
    assert wilson_interval(0, 40).low == 0.0
    assert wilson_interval(40, 40).high == 1.0
    assert wilson_interval(0, 10**9).high > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "n must be at least 1, got 0"),
        ((0, math.nan), "n must be at least 1"),
        ((4, 3), "successes must be in 0..3"),
        ((-1, 3), "successes must be in 0..3"),
        ((math.nan, 3), "successes must be"),
        ((1, 3, 1.0), "level must be in"),
        ((1, 3, 95), "level must be in"),
    ],
    ids=["none", "nan-trials", "too-many", "negative", "nan", "sure", "per-cent"],
)
def test_what_has_no_interval_is_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wilson_interval(*arguments)  # type: ignore[arg-type]
