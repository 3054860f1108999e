"""Pointwise minimum over a few rows of log-probabilities, and the probability of asking that it leaves.

Written for wide rows, such as the vocabulary of a language model: every row is read once, block by block, so that the
time is close to that of reading. ``baselines/finite_kernel.py`` measures it.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace
from numba import njit

from cautious_imitation.borrowed_arrays import borrowed
from cautious_imitation.types import Array, mass_tolerance

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 512
"""Symbols a block. Within one the sum is in float32, which is faster; a longer one would bias sums of equal terms."""


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
            to more than one beyond rounding (``mass_tolerance``).

    >>> log_min, log_ask = wide_minimum(np.log([[0.5, 0.5], [0.75, 0.25]]))
    >>> np.exp(log_min).round(6), float(np.exp(log_ask).round(6))
    (array([0.5 , 0.25]), 0.25)
    """
    shape = log_rows.shape
    if len(shape) < 2 or 0 in shape[-2:]:
        raise ValueError(f"log_rows must have shape [..., K, V] with K, V >= 1, got {tuple(shape)}")
    if plausible is not None and plausible.shape not in (shape[:-1], shape[-2:-1]):
        raise ValueError(
            f"plausible must have shape {tuple(shape[:-1])} or ({shape[-2]},) to go with log_rows, "
            f"got {tuple(plausible.shape)}"
        )
    return (_numpy_minimum if isinstance(log_rows, np.ndarray) else _torch_minimum)(log_rows, plausible)


def _numpy_minimum(log_rows: NDArray[Any], plausible: NDArray[np.bool_] | None) -> tuple[Array, Array]:
    if log_rows.dtype not in (np.float32, np.float64):
        raise TypeError(f"log_rows must be float32 or float64, got {log_rows.dtype}; convert them with astype")
    *groups, n_rows, n_symbols = log_rows.shape
    rows = np.ascontiguousarray(log_rows).reshape(-1, n_rows, n_symbols)
    mask = np.empty(log_rows.shape[:-1], dtype=np.bool_)
    mask[...] = True if plausible is None else plausible
    log_min = np.empty((len(rows), n_symbols), dtype=rows.dtype)
    masses, log_ask = np.empty(len(rows)), np.empty(len(rows), dtype=rows.dtype)
    none_plausible, found_nan = _minimum_into(rows, mask.reshape(-1, n_rows), log_min, masses)
    if none_plausible:
        raise ValueError(_NONE_PLAUSIBLE)
    if found_nan:
        raise ValueError(_NAN)
    if rows.dtype == np.float64:
        with np.errstate(over="ignore"):
            np.exp(log_min).sum(axis=-1, out=masses)  # the kernel's exp is float32
    _check_mass(_log_remainders_into(masses, log_ask), mass_tolerance(rows))
    return log_min.reshape(*groups, n_symbols), log_ask.reshape(groups)[()]


def _torch_minimum(log_rows: Array, plausible: Array | None) -> tuple[Array, Array]:
    xp = array_namespace(log_rows)
    if plausible is not None and not bool(plausible.any(-1).all()):
        raise ValueError(_NONE_PLAUSIBLE)
    considered = log_rows if plausible is None else xp.where(plausible[..., None], log_rows, inf)
    log_min = considered.amin(-2)
    log_mass = log_min.logsumexp(-1)
    if bool(xp.any(xp.isnan(log_mass))):
        raise ValueError(_NAN)
    _check_mass(float(log_mass.detach().exp().max()), mass_tolerance(log_rows))
    below_one = log_mass < 0
    # Selecting on both sides keeps log(0) out of the gradient.
    log_ask = xp.where(below_one, xp.log(-xp.expm1(xp.where(below_one, log_mass, -1.0))), -inf)
    return log_min, log_ask


_NONE_PLAUSIBLE = "plausible must leave at least one row in each group, got a group with none; lower alpha"
_NAN = "log_rows must hold no NaN in a plausible row; write -inf for probability 0"


def _check_mass(mass: float, tolerance: float) -> None:
    if mass > 1 + tolerance:
        raise ValueError(
            f"log_rows must be log-probabilities: their minimum sums to {mass:.9g}, more than 1; normalise each row"
        )


_LOWEST = np.float32(-86)
_ONE = np.float32(1)
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_TO_INTEGER = np.float32(1.5 * 2**23)
_C2, _C3, _C4, _C5 = (np.float32(c) for c in (0.49999231495, 0.16667114651, 0.041890156793, 0.0083125200939))


@njit(cache=True, nogil=True, fastmath={"contract"})
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


@njit(cache=True, nogil=True)
def _minimum_into(rows: Array, plausible: Array, log_min: Array, masses: Array) -> tuple[bool, bool]:
    """Write the minimum of the plausible rows of ``rows [B, K, V]`` to ``log_min [B, V]``, its sum to ``masses [B]``.

    Returns whether a group has no plausible row, and whether a plausible row holds a NaN.
    """
    n_groups, n_rows, n_symbols = rows.shape
    chosen = np.empty(n_rows, np.int64)
    lowered = np.empty((2, min(_BLOCK, n_symbols)), rows.dtype)
    rows, log_min = borrowed(rows), borrowed(log_min)
    found_nan = False
    for group in range(n_groups):
        n_chosen = 0
        for row in range(n_rows):
            if plausible[group, row]:
                chosen[n_chosen] = row
                n_chosen += 1
        if n_chosen == 0:
            return True, found_nan
        masses[group] = 0.0
        for start in range(0, n_symbols, _BLOCK):
            stop = min(start + _BLOCK, n_symbols)
            # The minimum so far and seven more rows at a time; repeating the last row to fill them changes no minimum.
            # Each row is sliced from all three axes at once, which tells the compiler that it is contiguous.
            least = rows[group, chosen[0], start:stop]
            last, taken, passes = n_chosen - 1, 1, 0
            while passes == 0 or taken <= last:
                final = taken + 7 > last
                target = log_min[group, start:stop] if final else lowered[passes % 2, : stop - start]
                nan, mass = _least_of_eight(
                    target,
                    least,
                    rows[group, chosen[min(taken, last)], start:stop],
                    rows[group, chosen[min(taken + 1, last)], start:stop],
                    rows[group, chosen[min(taken + 2, last)], start:stop],
                    rows[group, chosen[min(taken + 3, last)], start:stop],
                    rows[group, chosen[min(taken + 4, last)], start:stop],
                    rows[group, chosen[min(taken + 5, last)], start:stop],
                    rows[group, chosen[min(taken + 6, last)], start:stop],
                )
                found_nan |= nan
                if final:
                    masses[group] += mass
                least = target
                taken += 7
                passes += 1
    return False, found_nan


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _least_of_eight(
    least: Array, a: Array, b: Array, c: Array, d: Array, e: Array, f: Array, g: Array, h: Array
) -> tuple[bool, float]:
    """Write the minimum of eight rows ``[n]`` to ``least [n]``; whether one has a NaN, and the sum of exp(least).

    One pass without branches, so that it vectorises and the exp hides behind the reading. A comparison with NaN is
    false and would lose it, hence the check.
    """
    found_nan = False
    mass = np.float32(0)
    for i in range(len(least)):
        s, t, u, v, w, x, y, z = a[i], b[i], c[i], d[i], e[i], f[i], g[i], h[i]
        total = ((s + t) + (u + v)) + ((w + x) + (y + z))
        found_nan |= total != total
        s = s if s < t else t
        u = u if u < v else v
        w = w if w < x else x
        y = y if y < z else z
        s = s if s < u else u
        w = w if w < y else y
        s = s if s < w else w
        least[i] = s
        mass += _exp_float32(np.float32(s))
    return found_nan, np.float64(mass)


@njit(cache=True, nogil=True)
def _log_remainders_into(masses: Array, log_ask: Array) -> float:
    """Write log(1 - mass) to ``log_ask [B]``, ``-inf`` where nothing is left; the largest of ``masses [B]``."""
    largest = 0.0
    for group in range(len(masses)):
        largest = max(largest, masses[group])
        log_ask[group] = np.log1p(-masses[group]) if masses[group] < 1 else -np.inf
    return largest
