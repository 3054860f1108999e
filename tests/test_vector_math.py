"""The vector polynomials against NumPy's own exp and log."""

import numpy as np
import pytest
from numba import njit

from cautious_imitation.vector_math import padded, vector_exp, vector_log


@njit
def apply_exp(x):
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = vector_exp(x[i])
    return out


@njit
def apply_log(x):
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = vector_log(x[i])
    return out


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 30.0, 699.0])
@pytest.mark.parametrize("size", [1, 7, 8, 17, 1000])
def test_exp_is_within_four_units_in_the_last_place(scale, size):
    x = np.random.default_rng(0).uniform(-scale, scale, size)
    np.testing.assert_allclose(apply_exp(x), np.exp(x), rtol=4 * np.finfo(float).eps, atol=0)


def test_exp_at_its_ends():
    x = np.array([-np.inf, -701.0, -700.0, 0.0, 700.0, 1e9])
    np.testing.assert_allclose(apply_exp(x), [0, 0, np.exp(-700), 1, np.exp(700), np.exp(700)], rtol=1e-15)


@pytest.mark.parametrize("decades", [1, 12, 300])
@pytest.mark.parametrize("size", [1, 7, 8, 17, 1000])
def test_log_is_within_four_units_in_the_last_place(decades, size):
    x = 10 ** np.random.default_rng(1).uniform(-decades, decades, size)
    expected = np.log(x)
    tolerance = 4 * np.finfo(float).eps * np.maximum(np.abs(expected), 0.5)
    assert (np.abs(apply_log(x) - expected) <= tolerance).all()


def test_log_is_exact_at_powers_of_two_and_continuous_around_them():
    x = 2.0 ** np.arange(-1000, 1000)
    np.testing.assert_allclose(apply_log(x), np.log(x), rtol=4e-16, atol=0)
    around = np.concatenate([np.nextafter(x[900:1100], 0), np.nextafter(x[900:1100], np.inf)])
    np.testing.assert_allclose(apply_log(around), np.log(around), rtol=4e-16, atol=1e-16)


def test_padding_goes_to_whole_vectors():
    assert [padded(n) for n in (0, 1, 8, 9, 17)] == [0, 8, 8, 16, 24]
