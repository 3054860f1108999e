from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import logsumexp

from cautious_imitation.hypotheses.wide_minimum import _exp_float32, wide_minimum
from cautious_imitation.types import Prediction

BLOCK = 512


def random_rows(shape: tuple[int, ...], seed: int, dtype: Any = np.float64, scale: float = 3.0) -> NDArray[Any]:
    """Normalised rows with some zeros, none of them a whole row."""
    generator = np.random.default_rng(seed)
    rows = scale * generator.normal(size=shape)
    rows[generator.random(shape) < 0.1] = -np.inf
    rows[..., 0] = 0.0
    return (rows - logsumexp(rows, axis=-1, keepdims=True)).astype(dtype)


def plain(rows: NDArray[Any], plausible: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The obvious expression: ``(minimum, ask probability)``."""
    minimum = np.where(plausible[..., None], rows, np.inf).min(axis=-2)
    return minimum, 1 - np.exp(minimum.astype(np.float64)).sum(axis=-1)


@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 18),
    st.integers(1, 20),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32),
)
def test_it_is_the_plain_expression(groups: list[int], n_rows: int, n_symbols: int, dtype: Any, seed: int) -> None:
    rows = random_rows((*groups, n_rows, n_symbols), seed, dtype)
    generator = np.random.default_rng(seed)
    plausible = generator.random((*groups, n_rows)) < 0.6
    plausible[..., generator.integers(n_rows)] = True
    log_min, log_ask = wide_minimum(rows, plausible)
    minimum, ask = plain(rows, plausible)
    np.testing.assert_array_equal(log_min, minimum)
    np.testing.assert_allclose(np.exp(log_ask), ask, atol=5e-7 if dtype == np.float32 else 1e-14)
    assert log_min.dtype == log_ask.dtype == dtype
    Prediction(log_min, log_ask)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_rows", [1, 7, 8, 9, 15, 16, 22, 23])
@pytest.mark.parametrize("n_symbols", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
def test_every_row_and_every_block_counts(n_symbols: int, n_rows: int, dtype: Any) -> None:
    rows = random_rows((n_rows, n_symbols), n_rows, dtype)
    log_min, log_ask = wide_minimum(rows)
    minimum, ask = plain(rows, np.ones(n_rows, dtype=bool))
    np.testing.assert_array_equal(log_min, minimum)
    np.testing.assert_allclose(np.exp(log_ask), ask, atol=5e-7 if dtype == np.float32 else 1e-14)


def test_a_mask_of_rows_holds_for_every_group() -> None:
    rows = random_rows((4, 5, 6), 0)
    mask = np.array([True, False, True, False, False])
    np.testing.assert_array_equal(wide_minimum(rows, mask)[0], wide_minimum(rows[:, [0, 2]])[0])


def test_the_layout_in_memory_does_not_matter() -> None:
    rows = random_rows((3, 40), 1)
    for same in (np.asfortranarray(rows), np.repeat(rows, 2, axis=1)[:, ::2]):
        assert not same.flags.c_contiguous
        np.testing.assert_array_equal(wide_minimum(same)[0], rows.min(0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_symbols", [100, 3000, 9554, 32_000, 50_000, 151_936, 256_000])
def test_equal_wide_rows_leave_nothing_to_ask(n_symbols: int, dtype: Any) -> None:
    rows = np.full((8, n_symbols), -np.log(n_symbols), dtype=dtype)
    assert np.exp(wide_minimum(rows)[1]) < 1e-6


def test_no_mass_at_all_asks_for_certain() -> None:
    rows = np.log(np.eye(2) + 1e-300)
    rows[rows < -600] = -np.inf
    for dtype in (np.float32, np.float64):
        log_min, log_ask = wide_minimum(rows.astype(dtype))
        assert (log_min == -np.inf).all()
        assert log_ask == 0


def test_the_float32_exponential_is_good_to_2e_7() -> None:
    x = np.linspace(-85.99, 1, 200_001).astype(np.float32)
    found = np.array([_exp_float32(value) for value in x])
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=2e-7)
    for value in (-86.5, -1e4, -np.inf):
        assert _exp_float32(np.float32(value)) == 0
    assert _exp_float32(np.float32(0)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_tensors_stay_torch_and_agree(dtype: torch.dtype) -> None:
    rows = random_rows((2, 5, 30), 3)
    plausible = np.random.default_rng(3).random((2, 5)) < 0.7
    plausible[:, 0] = True
    log_min, log_ask = wide_minimum(torch.from_numpy(rows).to(dtype), torch.from_numpy(plausible))
    assert isinstance(log_min, torch.Tensor)
    assert isinstance(log_ask, torch.Tensor)
    assert log_min.dtype == log_ask.dtype == dtype
    expected_min, expected_ask = wide_minimum(rows, plausible)
    np.testing.assert_allclose(log_min.numpy(), expected_min, rtol=1e-6)
    np.testing.assert_allclose(log_ask.numpy(), expected_ask, rtol=1e-5)
    assert wide_minimum(torch.zeros((3, 1), dtype=dtype))[1] == -np.inf


def test_torch_gradients_flow() -> None:
    rows = torch.from_numpy(random_rows((3, 6), 4)).clamp(min=-30).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: wide_minimum(r.log_softmax(-1)), rows)


BAD_NUMPY = [
    (np.zeros(3), None, "log_rows must have shape"),
    (np.zeros((0, 3)), None, "log_rows must have shape"),
    (np.log(np.full((2, 2), 0.5)), np.array([False, False]), "at least one row"),
    (np.log(np.full((2, 2), 0.5)), np.array([True]), "plausible must have shape"),
    (np.log(np.full((2, 2), 0.6)), None, r"sums to 1\.\d+, more than 1"),
    (np.full((2, 2), 1000.0), None, "more than 1"),
    (np.full((2, 2), np.inf), None, "more than 1"),
    (np.array([[np.nan, 0.0], [0.0, -np.inf]]), None, "no NaN"),
    (np.array([[0.0, -np.inf], [0.0, np.nan]]), None, "no NaN"),
]


@pytest.mark.parametrize("kind", ["float32", "float64", "torch"])
@pytest.mark.parametrize(("rows", "plausible", "message"), BAD_NUMPY)
def test_bad_input_is_named(rows: Any, plausible: Any, message: str, kind: str) -> None:
    rows = torch.from_numpy(rows) if kind == "torch" else rows.astype(kind)
    if kind == "torch" and plausible is not None:
        plausible = torch.from_numpy(plausible)
    with pytest.raises(ValueError, match=message):
        wide_minimum(rows, plausible)


def test_a_nan_in_an_implausible_row_is_nobodys_business() -> None:
    rows = np.array([[0.0, -np.inf], [np.nan, np.nan]])
    np.testing.assert_array_equal(wide_minimum(rows, np.array([True, False]))[0], rows[0])


@pytest.mark.parametrize(("n_rows", "position"), [(n, i) for n in (8, 15) for i in range(n)])
def test_a_nan_is_found_in_every_row(n_rows: int, position: int) -> None:
    rows = random_rows((n_rows, 100), 5, np.float32)
    rows[position, 57] = np.nan
    with pytest.raises(ValueError, match="no NaN"):
        wide_minimum(rows)


def test_other_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match="float32 or float64, got int64"):
        wide_minimum(np.zeros((1, 1), dtype=np.int64))
