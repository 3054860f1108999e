"""Exponential and logarithm of a handful of values, in loops that compile to vector instructions.

The C library's ``exp`` and ``log`` are called value by value; here a handful of values at a time share one polynomial.
Both are within 4 units in the last place of it. Powers of two go through the bits of a double: ``bits`` and ``doubles``
are two views of the same scratch memory, used in separate loops so that the compiler sees no overlap. ``out`` must not
be the array that is read, for the same reason.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_MAGIC = 6755399441055744.0
_MAGIC_BITS = 0x4338000000000000
_MANTISSA = 0x000FFFFFFFFFFFFF
_ONE_BITS = 0x3FF0000000000000
_SQRT_HALF_BITS = 0x3FE6A09E00000000


@njit(cache=True, nogil=True, forceinline=True, error_model="numpy")
def padded(n: int) -> int:
    """The next multiple of 8: whole vectors leave no remainder to be done value by value."""
    return (n + 7) // 8 * 8


@njit(cache=True, nogil=True, forceinline=True, error_model="numpy", fastmath={"contract"})
def exps(x: Floats, n: int, out: Floats, bits: Ints, doubles: Floats) -> None:
    """exp(x) of the first ``n`` values; 0 below -700, and values above 300 count as 300."""
    for i in range(n):
        doubles[i] = min(max(x[i], -700.0), 300.0) * _LOG2E + _MAGIC
    for i in range(n):
        k = doubles[i] - _MAGIC
        r = (min(max(x[i], -700.0), 300.0) - k * _LN2_HIGH) - k * _LN2_LOW
        p = 1.0 / 6227020800.0
        p = p * r + 1.0 / 479001600.0
        p = p * r + 1.0 / 39916800.0
        p = p * r + 1.0 / 3628800.0
        p = p * r + 1.0 / 362880.0
        p = p * r + 1.0 / 40320.0
        p = p * r + 1.0 / 5040.0
        p = p * r + 1.0 / 720.0
        p = p * r + 1.0 / 120.0
        p = p * r + 1.0 / 24.0
        p = p * r + 1.0 / 6.0
        p = p * r + 0.5
        p = p * r + 1.0
        out[i] = p * r + 1.0
    for i in range(n):
        bits[i] = (bits[i] - _MAGIC_BITS + 1023) << 52
    for i in range(n):
        out[i] = out[i] * doubles[i] if x[i] >= -700.0 else 0.0


@njit(cache=True, nogil=True, forceinline=True, error_model="numpy", fastmath={"contract"})
def logs(x: Floats, n: int, out: Floats, bits: Ints, doubles: Floats) -> None:
    """Natural logarithms of the first ``n`` values, positive and normal."""
    for i in range(n):
        doubles[i] = x[i]
    for i in range(n):
        # The exponent that leaves a mantissa in [sqrt(1/2), sqrt(2)).
        bits[i] = ((bits[i] - _SQRT_HALF_BITS) >> 52) + _MAGIC_BITS
    for i in range(n):
        out[i] = doubles[i] - _MAGIC
    for i in range(n):
        bits[i] = (1023 - (bits[i] - _MAGIC_BITS)) << 52
    for i in range(n):
        m = x[i] * doubles[i]
        s = (m - 1.0) / (m + 1.0)
        z = s * s
        p = 1.0 / 21.0
        p = p * z + 1.0 / 19.0
        p = p * z + 1.0 / 17.0
        p = p * z + 1.0 / 15.0
        p = p * z + 1.0 / 13.0
        p = p * z + 1.0 / 11.0
        p = p * z + 1.0 / 9.0
        p = p * z + 1.0 / 7.0
        p = p * z + 0.2
        p = p * z + 1.0 / 3.0
        p = p * z * s + s
        out[i] = out[i] * _LN2_HIGH + (2.0 * p + out[i] * _LN2_LOW)
