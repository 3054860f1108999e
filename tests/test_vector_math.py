"""The vector polynomials against NumPy's own exp and log."""

import numpy as np
import pytest
from numba import njit

from cautious_imitation.vector_math import exps, logs, padded


@njit
def apply_exps(x, out, bits, doubles):
    exps(x, x.shape[0], out, bits, doubles)


@njit
def apply_logs(x, out, bits, doubles):
    logs(x, x.shape[0], out, bits, doubles)


def evaluate(function, x):
    bits = np.empty(len(x), dtype=np.int64)
    out = np.empty(len(x))
    function(x, out, bits, bits.view(np.float64))
    return out


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 30.0, 299.0])
@pytest.mark.parametrize("size", [1, 7, 8, 17, 1000])
def test_exp_is_within_four_units_in_the_last_place(scale, size):
    x = np.random.default_rng(0).uniform(-scale, scale, size)
    np.testing.assert_allclose(evaluate(apply_exps, x), np.exp(x), rtol=4 * np.finfo(float).eps, atol=0)


def test_exp_at_its_ends():
    x = np.array([-np.inf, -701.0, -700.0, 0.0, 300.0, 1e9])
    np.testing.assert_allclose(evaluate(apply_exps, x), [0, 0, np.exp(-700), 1, np.exp(300), np.exp(300)], rtol=1e-15)


@pytest.mark.parametrize("decades", [1, 12, 300])
@pytest.mark.parametrize("size", [1, 7, 8, 17, 1000])
def test_log_is_within_four_units_in_the_last_place(decades, size):
    x = 10 ** np.random.default_rng(1).uniform(-decades, decades, size)
    expected = np.log(x)
    tolerance = 4 * np.finfo(float).eps * np.maximum(np.abs(expected), 0.5)
    assert (np.abs(evaluate(apply_logs, x) - expected) <= tolerance).all()


def test_log_is_exact_at_powers_of_two_and_continuous_around_them():
    x = 2.0 ** np.arange(-1000, 1000)
    np.testing.assert_allclose(evaluate(apply_logs, x), np.log(x), rtol=4e-16, atol=0)
    around = np.concatenate([np.nextafter(x[900:1100], 0), np.nextafter(x[900:1100], np.inf)])
    np.testing.assert_allclose(evaluate(apply_logs, around), np.log(around), rtol=4e-16, atol=1e-16)


def test_padding_goes_to_whole_vectors():
    assert [padded(n) for n in (0, 1, 8, 9, 17)] == [0, 8, 8, 16, 24]
