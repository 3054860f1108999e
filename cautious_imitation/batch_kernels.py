"""The union routines over a batch of contexts: thin compiled loops."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cautious_imitation.borrowed_arrays import borrowed
from cautious_imitation.union_kernels import response_scratch, union_best_response, union_minimum, union_worst_kl
from cautious_imitation.vector_math import padded

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@njit(cache=True, nogil=True, error_model="numpy")
def batch_minimum(p: Floats, radii: Floats, plausible: Bools) -> Floats:
    """``p [N, M, V]`` -> pointwise minima ``[N, V]`` as probabilities."""
    out = np.empty((p.shape[0], p.shape[2]))
    p, radii, plausible = borrowed(p), borrowed(radii), borrowed(plausible)
    for i in range(p.shape[0]):
        union_minimum(p[i], radii[i], plausible[i], out[i])
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def batch_worst_kl(log_p: Floats, p: Floats, radii: Floats, plausible: Bools, pi: Floats) -> Floats:
    """Largest KL(pi || nu) over each union: ``[N]`` nats for policies ``pi [N, V]``."""
    scratch = np.empty((3, padded(p.shape[2])))
    out = np.empty(p.shape[0])
    log_p, p, radii = borrowed(log_p), borrowed(p), borrowed(radii)
    plausible, pi = borrowed(plausible), borrowed(pi)
    for i in range(p.shape[0]):
        out[i] = union_worst_kl(log_p[i], p[i], radii[i], plausible[i], pi[i], scratch[0], scratch[1], scratch[2])
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def batch_best_response(
    log_p: Floats, p: Floats, radii: Floats, plausible: Bools, gain: Floats
) -> tuple[Floats, Floats]:
    """Policies ``[N, V]`` and charges ``[N]`` of the saddle of pi.gain - worst KL; ``gain`` is overwritten."""
    n_contexts, n_members, n = p.shape
    policies, charges = np.zeros((n_contexts, n)), np.empty(n_contexts)
    start, scratch = np.zeros(n_members), response_scratch(n)
    log_p, p, radii = borrowed(log_p), borrowed(p), borrowed(radii)
    plausible, gain = borrowed(plausible), borrowed(gain)
    for i in range(n_contexts):
        for m in range(n_members):
            start[m] = 0.0
        _, charges[i] = union_best_response(
            log_p[i], p[i], radii[i], plausible[i], gain[i], start, policies[i], scratch
        )
        if charges[i] == np.inf:
            policies[i] = 0.0
    return policies, charges
