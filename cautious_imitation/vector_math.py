"""Exponential and logarithm without branches, so that a loop over them compiles to vector instructions.

The C library's ``exp`` and ``log`` are called value by value; these are polynomials, evaluated pairwise for a short
chain of dependent operations. Both are within 4 units in the last place of the library's. A short loop is as quick as
a whole vector only if it has no remainder to be done value by value: give it ``padded(n)`` values.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_ROUNDING = 6755399441055744.0
"""1.5 * 2^52: adding it rounds to an integer and leaves that in the low bits."""
_ROUNDING_BITS = 0x4338000000000000
_ONE_BITS, _SQRT_HALF_BITS = 0x3FF0000000000000, 0x3FE6A09E00000000


@njit(cache=True, nogil=True, forceinline=True, error_model="numpy")
def padded(n: int) -> int:
    """The next multiple of 8."""
    return (n + 7) // 8 * 8


@njit(cache=True, nogil=True, forceinline=True, error_model="numpy", fastmath={"contract"})
def vector_exp(x: float) -> float:
    """exp(x); 0 below -700, and values above 700 count as 700."""
    y = min(max(x, -700.0), 700.0)
    shifted = y * _LOG2E + _ROUNDING
    k = shifted - _ROUNDING
    r = (y - k * _LN2_HIGH) - k * _LN2_LOW
    r2 = r * r
    r4 = r2 * r2
    low = (1.0 + r) + r2 * (0.5 + r * (1.0 / 6.0))
    middle = (1.0 / 24.0 + r * (1.0 / 120.0)) + r2 * (1.0 / 720.0 + r * (1.0 / 5040.0))
    high = (1.0 / 40320.0 + r * (1.0 / 362880.0)) + r2 * (1.0 / 3628800.0 + r * (1.0 / 39916800.0))
    top = 1.0 / 479001600.0 + r * (1.0 / 6227020800.0)
    power = np.int64((np.float64(shifted).view(np.int64) - _ROUNDING_BITS + 1023) << 52).view(np.float64)
    return float(((low + r4 * middle) + (r4 * r4) * (high + r4 * top)) * power if x >= -700.0 else 0.0)


@njit(cache=True, nogil=True, forceinline=True, error_model="numpy", fastmath={"contract"})
def vector_log(x: float) -> float:
    """Natural logarithm of a positive, normal number."""
    bits = np.float64(x).view(np.int64)
    # The exponent, plus 1023, that leaves a mantissa in [sqrt(1/2), sqrt(2)).
    exponent = (bits + (_ONE_BITS - _SQRT_HALF_BITS)) >> 52
    k = np.int64(exponent + _ROUNDING_BITS).view(np.float64) - (_ROUNDING + 1023.0)
    m = np.int64(bits - ((exponent - 1023) << 52)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    z2 = z * z
    z4 = z2 * z2
    low = (1.0 / 3.0 + z * 0.2) + z2 * (1.0 / 7.0 + z * (1.0 / 9.0))
    high = (1.0 / 11.0 + z * (1.0 / 13.0)) + z2 * (1.0 / 15.0 + z * (1.0 / 17.0))
    top = 1.0 / 19.0 + z * (1.0 / 21.0)
    p = s * (z * (low + z4 * (high + z4 * top))) + s
    return float(k * _LN2_HIGH + (2.0 * p + k * _LN2_LOW))
