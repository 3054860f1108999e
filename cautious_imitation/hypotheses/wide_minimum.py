"""Pointwise minimum over a few rows of log-probabilities, and the probability of asking that it leaves.

Written for wide rows, such as the vocabulary of a language model: every row is read once, block by block, so that the
time is close to that of reading. ``baselines/finite_kernel.py`` measures it.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array
from numba import njit

from cautious_imitation.types import Array

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MASS_TOLERANCE = 1e-6
_BLOCK = 2048
"""Symbols a block: the running minimum of a block stays in the first-level cache while the rows stream by."""


def wide_minimum(log_rows: Array, plausible: Array | None = None) -> tuple[Array, Array]:
    """Least probability of each symbol over the plausible rows, and the probability of asking.

    Args:
        log_rows: ``[..., K, V]`` log-probabilities in nats, NumPy (float32 or float64) or torch.
        plausible: ``[..., K]`` or ``[K]`` booleans, at least one true in each group of rows; None for all rows.

    Returns:
        ``(log_min [..., V], log_ask [...])`` in nats, of the kind and precision that came in; exp of both sums to one.
        A probability of asking below about 1e-6 (float32; float64 1e-15) is the rounding of the rows.

    Raises:
        TypeError: if NumPy ``log_rows`` are neither float32 nor float64.
        ValueError: if shapes disagree, no row of a group is plausible, a plausible row holds NaN, or the minimum sums
            to more than 1 + 1e-6.

    >>> log_min, log_ask = wide_minimum(np.log([[0.5, 0.5], [0.75, 0.25]]))
    >>> np.exp(log_min).round(6), float(np.exp(log_ask).round(6))
    (array([0.5 , 0.25]), 0.25)
    """
    if log_rows.ndim < 2 or 0 in log_rows.shape[-2:]:
        raise ValueError(f"log_rows must have shape [..., K, V] with K, V >= 1, got {tuple(log_rows.shape)}")
    if plausible is not None and tuple(plausible.shape) not in {tuple(log_rows.shape[:-1]), log_rows.shape[-2:-1]}:
        raise ValueError(
            f"plausible must have shape {tuple(log_rows.shape[:-1])} or ({log_rows.shape[-2]},) to go with log_rows, "
            f"got {tuple(plausible.shape)}"
        )
    if plausible is not None and not bool(array_namespace(plausible).all(plausible.any(-1))):
        raise ValueError("plausible must leave at least one row in each group, got a group with none; lower alpha")
    return (_numpy_minimum if is_numpy_array(log_rows) else _torch_minimum)(log_rows, plausible)


def _numpy_minimum(log_rows: NDArray[Any], plausible: NDArray[np.bool_] | None) -> tuple[Array, Array]:
    if log_rows.dtype not in (np.float32, np.float64):
        raise TypeError(f"log_rows must be float32 or float64, got {log_rows.dtype}; convert them with astype")
    *groups, n_rows, n_symbols = log_rows.shape
    if plausible is None:
        plausible = np.ones(n_rows, dtype=np.bool_)
    rows = np.ascontiguousarray(log_rows).reshape(-1, n_rows, n_symbols)
    mask = np.broadcast_to(plausible, log_rows.shape[:-1]).reshape(-1, n_rows)
    log_min = np.empty((len(rows), n_symbols), dtype=rows.dtype)
    if _minimum_into(rows, np.ascontiguousarray(mask, dtype=np.bool_), log_min):
        raise ValueError(_NAN)
    # numba's own exp is scalar; NumPy's is vectorised in float64, ours in float32 on every machine.
    mass = _mass_float32(log_min) if rows.dtype == np.float32 else np.exp(log_min).sum(axis=-1)
    _check_mass(float(mass.max(initial=0.0)))
    with np.errstate(divide="ignore"):
        log_ask = np.log1p(-np.minimum(mass, 1.0)).astype(rows.dtype)
    return log_min.reshape(*groups, n_symbols), log_ask.reshape(groups)[()]


def _torch_minimum(log_rows: Array, plausible: Array | None) -> tuple[Array, Array]:
    xp = array_namespace(log_rows)
    considered = log_rows if plausible is None else xp.where(plausible[..., None], log_rows, inf)
    log_min = considered.amin(-2)
    log_mass = log_min.logsumexp(-1)
    if bool(xp.any(xp.isnan(log_mass))):
        raise ValueError(_NAN)
    _check_mass(float(log_mass.exp().max()))
    below_one = log_mass < 0
    # Selecting on both sides keeps log(0) out of the gradient.
    log_ask = xp.where(below_one, xp.log(-xp.expm1(xp.where(below_one, log_mass, -1.0))), -inf)
    return log_min, log_ask


_NAN = "log_rows must hold no NaN in a plausible row; write -inf for probability 0"


def _check_mass(mass: float) -> None:
    if mass > 1 + _MASS_TOLERANCE:
        raise ValueError(
            f"log_rows must be log-probabilities: their minimum sums to {mass:.9g}, more than 1; normalise each row"
        )


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _minimum_into(rows: Array, plausible: Array, out: Array) -> bool:
    """Write the minimum of the plausible rows of ``rows [B, K, V]`` to ``out [B, V]``; whether one of them has a NaN."""
    n_groups, n_rows, n_symbols = rows.shape
    chosen = np.empty(n_rows + 3, np.int64)
    found_nan = False
    for group in range(n_groups):
        n_chosen = 0
        for row in range(n_rows):
            if plausible[group, row]:
                chosen[n_chosen] = row
                n_chosen += 1
        # Rows are taken four at a time; repeating one to fill the last four does not change a minimum.
        while n_chosen % 4:
            chosen[n_chosen] = chosen[0]
            n_chosen += 1
        for start in range(0, n_symbols, _BLOCK):
            stop = min(start + _BLOCK, n_symbols)
            least = out[group, start:stop]
            for four in range(0, n_chosen, 4):
                a = rows[group, chosen[four], start:stop]
                b = rows[group, chosen[four + 1], start:stop]
                c = rows[group, chosen[four + 2], start:stop]
                d = rows[group, chosen[four + 3], start:stop]
                if four == 0:
                    least[:] = a
                found_nan |= _lower_to(least, a, b, c, d)
    return found_nan


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _lower_to(least: Array, a: Array, b: Array, c: Array, d: Array) -> bool:
    """Lower ``least [n]`` to four rows in one vectorised pass; whether one of them has a NaN, which < would lose."""
    found_nan = False
    for i in range(len(least)):
        w, x, y, z = a[i], b[i], c[i], d[i]
        found_nan |= (w != w) | (x != x) | (y != y) | (z != z)
        w = w if w < x else x
        y = y if y < z else z
        w = w if w < y else y
        least[i] = w if w < least[i] else least[i]
    return found_nan


_LOWEST = np.float32(-86)
_ONE = np.float32(1)
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_TO_INTEGER = np.float32(1.5 * 2**23)
_C2, _C3, _C4, _C5 = (np.float32(c) for c in (0.49999231495, 0.16667114651, 0.041890156793, 0.0083125200939))


@njit(cache=True, nogil=True, fastmath={"contract"})  # type: ignore[untyped-decorator]
def _exp_float32(x: Any) -> Any:
    """exp(x) for x <= 1 to 2e-7 of its value; 0 below -86 and for -inf. Without branches, so that it vectorises.

    x = n ln 2 + r with |r| <= ln(2) / 2; exp(r) is a minimax polynomial (ours, fitted for relative error), and n is
    added to the exponent of the result.
    """
    bounded = x if x < _ONE else _ONE
    # Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    shifted = bounded * _LOG2_E + _TO_INTEGER
    n = shifted - _TO_INTEGER
    r = (bounded - n * _LN2_HIGH) - n * _LN2_LOW
    p = ((_C5 * r + _C4) * r + _C3) * r + _C2
    p = p * (r * r) + r + _ONE
    bits = np.int32(np.float32(p).view(np.int32) + (np.float32(shifted).view(np.int32) << np.int32(23)))
    return bits.view(np.float32) if x > _LOWEST else np.float32(0)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})  # type: ignore[untyped-decorator]
def _mass_float32(log_probs: Array) -> Array:
    """Sum of exp(``log_probs [B, V]``) over the last axis, in float64: ``[B]``."""
    masses = np.zeros(len(log_probs))
    for group in range(len(log_probs)):
        row = log_probs[group]
        mass = 0.0
        for i in range(len(row)):
            mass += np.float64(_exp_float32(row[i]))
        masses[group] = mass
    return masses
