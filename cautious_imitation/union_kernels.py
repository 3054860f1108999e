"""Compiled routines for a union of KL balls, the plausible set at one context: worst charge and best response.

The best response solves max_pi min_nu [pi.gain - KL(pi || nu)] with nu anywhere in the union. Where one member is
worst for its own best response, that is the saddle. Elsewhere the adversary is a geometric mixture of several worst
cases: they are found one by one (cutting planes) and weighted by minimising the convex function
log sum_a e^gain prod_j nu_j^u_j. For single distributions that is exact. For balls it stops after a few rounds: the
charge of the response is still the exact worst case over all members, and the bound that comes with it says how far
from the saddle it can be (docs/theory.md, "Minimax caution").
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cautious_imitation.ball_kernels import best_response_ball, best_response_point, least_probability, worst_kl_ball
from cautious_imitation.vector_math import padded, vector_exp

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MAX_CUTS = 24
"""Worst cases kept while refining one response."""

_FIRST_CUT = 13

_SADDLE_TOLERANCE, _BALL_TOLERANCE = 1e-10, 1e-7
_MAX_ROUNDS, _MAX_ROUNDS_BALLS = 24, 5
_MAX_TRANSFERS = 200


@njit(cache=True, nogil=True, error_model="numpy")
def copy(source: Floats, target: Floats) -> None:
    """Copy as much as both have room for; a slice assignment's check of shapes takes long to compile."""
    for a in range(min(source.shape[0], target.shape[0])):
        target[a] = source[a]


@njit(cache=True, nogil=True, error_model="numpy")
def union_minimum(p: Floats, radii: Floats, plausible: Bools, out: Floats) -> None:
    """Pointwise minimum over the union at one context, from centres ``p [M, V]``, into ``out [V]``."""
    for a in range(p.shape[1]):
        out[a] = np.inf
    for m in range(p.shape[0]):
        if plausible[m]:
            for a in range(p.shape[1]):
                # Data processing: no ball point is below this, so only possible improvements are solved for.
                q = p[m, a]
                if q <= 0.0 or radii[m] == np.inf:
                    out[a] = 0.0
                elif out[a] > 0.0:
                    low = out[a]
                    if radii[m] > 0.0 and low < q:
                        gap = q * np.log(q / low) + ((1.0 - q) * (np.log1p(-q) - np.log1p(-low)) if q < 1.0 else 0.0)
                        if gap > radii[m]:
                            continue
                    out[a] = min(low, least_probability(q, radii[m]))


@njit(cache=True, nogil=True, error_model="numpy")
def union_worst_kl(
    log_p: Floats, p: Floats, radii: Floats, plausible: Bools, pi: Floats, ratio: Floats, theta: Floats, worst: Floats
) -> float:
    """max KL(pi || nu) over the union at one context; ``worst [V]`` gets the log of the maximiser."""
    largest = -np.inf
    for m in range(p.shape[0]):
        if plausible[m]:
            charge = worst_kl_ball(log_p[m], p[m], radii[m], pi, ratio, theta)
            if charge > largest:
                largest = charge
                copy(theta, worst)
                if charge == np.inf:
                    break
    return largest


@njit(cache=True, nogil=True, error_model="numpy")
def _mixture_of_cuts(
    gain: Floats, cuts: Floats, n_cuts: np.int64, u: Floats, pi: Floats, means: Floats, work: Floats, tolerance: float
) -> float:
    """Minimise log sum_a exp(gain_a + sum_j u_j cuts_ja) over the simplex of u; returns the minimum, fills ``pi``.

    Weight moves between the pair of cuts that is farthest from optimal, by an exact line search each time, until no
    pair promises more than ``tolerance`` nats for each unit of weight. ``work [3, padded(V)]`` is scratch: ``-inf``
    beyond V in its first row, 0 in its second.
    """
    n = gain.shape[0]
    logits, change, weights = work[0], work[1], work[2]
    value = 0.0
    for _ in range(_MAX_TRANSFERS):
        for a in range(n):
            logits[a] = gain[a]
            if gain[a] > -np.inf:
                for j in range(n_cuts):
                    if u[j] > 0.0:
                        logits[a] += u[j] * cuts[j, a]
        best = _largest(logits, n)
        total = _weigh(logits, change, 0.0, n, weights)[0]
        value = best + np.log(total)
        for a in range(n):
            pi[a] = weights[a] / total
        give, take = -1, 0
        for j in range(n_cuts):
            means[j] = 0.0
            for a in range(n):
                if pi[a] > 0.0:
                    means[j] += pi[a] * cuts[j, a]
            if means[j] < means[take]:
                take = j
            if u[j] > 0.0 and (give < 0 or means[j] > means[give]):
                give = j
        if means[give] - means[take] <= tolerance:
            break
        for a in range(n):
            change[a] = cuts[take, a] - cuts[give, a] if gain[a] > -np.inf else 0.0
        low, high, step = 0.0, u[give], 0.0
        for _ in range(60):
            total, slope, curvature = _weigh(logits, change, step, n, weights)
            slope /= total
            curvature = curvature / total - slope * slope
            if slope < 0.0:
                low = step
            else:
                high = step
            after = step - slope / curvature if curvature > 0.0 else 0.5 * (low + high)
            if not (after > low and after < high):
                after = high if (slope < 0.0 and step < high and low == 0.0 and step == 0.0) else 0.5 * (low + high)
            if abs(after - step) <= 1e-15 or abs(slope) <= 1e-3 * tolerance:
                break
            step = after
        if step >= u[give]:
            step = u[give]
        u[give] -= step
        u[take] += step
    return value


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _largest(values: Floats, n: int) -> float:
    best = -np.inf
    for a in range(n):
        best = values[a] if values[a] > best else best
    return best


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True, fastmath={"reassoc", "contract"})
def _weigh(logits: Floats, change: Floats, step: float, n: int, weights: Floats) -> tuple[float, float, float]:
    """exp(logits + step change), up to a factor that makes the largest one 1, into ``weights``.

    Returns its sum and those of its products with ``change`` and ``change^2``.
    """
    best = -np.inf
    for a in range(n):
        x = logits[a] + step * change[a]
        best = x if x > best else best
    total, first, second = 0.0, 0.0, 0.0
    for a in range(padded(n)):
        w = vector_exp(logits[a] + step * change[a] - best)
        weights[a] = w
        total += w
        first += w * change[a]
        second += w * (change[a] * change[a])
    return total, first, second


@njit(cache=True, nogil=True, error_model="numpy")
def _dot(pi: Floats, gain: Floats) -> float:
    """pi.gain, where what is never done may gain ``-inf``."""
    total = 0.0
    for a in range(gain.shape[0]):
        if pi[a] > 0.0:
            total += pi[a] * gain[a]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def response_scratch(n_symbols: int) -> Floats:
    """Memory for ``union_best_response`` at contexts with ``n_symbols`` actions."""
    return np.zeros((_FIRST_CUT + MAX_CUTS, padded(max(n_symbols, MAX_CUTS))))


@njit(cache=True, nogil=True, error_model="numpy")
def union_best_response(
    log_p: Floats,
    p: Floats,
    radii: Floats,
    plausible: Bools,
    gain: Floats,
    start: Floats,
    pi: Floats,
    scratch: Floats,
) -> tuple[float, float]:
    """Saddle of pi.gain - KL(pi || nu) over the union at one context; writes ``pi [V]``.

    Args:
        log_p, p: ``[M, V]`` log-centres and centres; ``radii``, ``plausible``: ``[M]``.
        gain: ``[V]``, action values divided by the multiplier; overwritten (shifted to a maximum of 0).
        start: ``[M]`` guesses for the adversaries' log eta, updated for the next call at the same context.
        scratch: from ``response_scratch(V)``.

    Returns:
        ``(bound, charge in nats)``: no policy has a larger ``pi.gain - worst KL`` than ``bound`` (for the gain as
        passed in), and ``pi`` reaches it up to the gap described above; ``charge`` is the worst KL of ``pi`` itself.
        ``(-inf, inf)`` where every policy has an infinite charge.
    """
    n_members, n = p.shape
    if n_members == 1 and radii[0] <= 0.0 and plausible[0]:
        return best_response_point(log_p[0], gain, pi, scratch[5], scratch[6])
    trial, nu, ratio, theta = scratch[0], scratch[1], scratch[2], scratch[3]
    worst, logits, weights = scratch[4], scratch[5], scratch[6]
    count, shift, balls = 0, -np.inf, False
    for m in range(n_members):
        if plausible[m]:
            count += 1
            balls = balls or radii[m] > 0.0
            if radii[m] == np.inf:
                return -np.inf, np.inf
            for a in range(n):
                if p[m, a] <= 0.0:
                    gain[a] = -np.inf
    for a in range(n):
        shift = max(shift, gain[a])
    if count == 0 or shift == -np.inf:
        return -np.inf, np.inf
    for a in range(n):
        gain[a] -= shift
    best, charge = np.inf, np.inf
    for m in range(n_members):
        if plausible[m]:
            value, own, start[m] = best_response_ball(
                log_p[m], p[m], radii[m], gain, start[m], trial, nu, logits, weights
            )
            if value < best:
                best, charge = value, own
                copy(trial, pi)
                copy(nu, worst)
    if count == 1:
        return shift + best, charge
    honest = union_worst_kl(log_p, p, radii, plausible, pi, ratio, theta, trial)
    if honest - charge <= _SADDLE_TOLERANCE * (1.0 + charge):
        return shift + best, max(honest, charge)
    work, answer, u, means, cuts = scratch[7:10], scratch[10], scratch[11], scratch[12], scratch[_FIRST_CUT:]
    for a in range(n, padded(n)):
        work[0, a] = -np.inf
    for j in range(MAX_CUTS):
        u[j] = 0.0
    copy(worst, cuts[0])
    copy(trial, cuts[1])
    u[0], n_cuts = 1.0, np.int64(2)
    top, top_charge = _dot(pi, gain) - honest, honest
    copy(pi, answer)
    tolerance = _BALL_TOLERANCE if balls else 0.1 * _SADDLE_TOLERANCE
    for _ in range(_MAX_ROUNDS_BALLS if balls else _MAX_ROUNDS):
        best = min(best, _mixture_of_cuts(gain, cuts, n_cuts, u, pi, means, work, tolerance))
        honest = union_worst_kl(log_p, p, radii, plausible, pi, ratio, theta, trial)
        reached = _dot(pi, gain) - honest
        if reached > top:
            top, top_charge = reached, honest
            copy(pi, answer)
        if best - top <= _SADDLE_TOLERANCE * (1.0 + top_charge):
            break
        if n_cuts == MAX_CUTS:
            kept = np.int64(0)
            for j in range(n_cuts):
                if u[j] > 0.0 and kept < MAX_CUTS - 1:
                    copy(cuts[j], cuts[kept])
                    u[kept] = u[j]
                    kept += 1
            n_cuts, total = kept, 0.0
            for j in range(kept):
                total += u[j]
            for j in range(MAX_CUTS):
                u[j] = u[j] / total if j < kept else 0.0
        copy(trial, cuts[n_cuts])
        u[n_cuts] = 0.0
        n_cuts += 1
    copy(answer, pi)
    return shift + best, top_charge
