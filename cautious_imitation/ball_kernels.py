"""Compiled scalar routines for one KL ball {theta: KL(p || theta) <= radius}: its extremes against one policy.

Each is a one-dimensional safeguarded Newton iteration in a logarithmic variable, so that roots below the smallest
double are found too. Formulas: docs/theory.md, "One ball".
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cautious_imitation.vector_math import padded, vector_exp, vector_log

Floats = NDArray[np.float64]

_MAX_STEPS = 200
_STEP = 1e-10
"""Newton's last step: its error is about the square of it."""
_TINY = 1e-300
_DEEPEST = 745.0
"""exp(-745) is the smallest double."""
_LEAST_RADIUS = 1e-12
"""Smaller balls are taken for one of this radius: below it rounding would take over, and the charge is no less."""


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def wilson_bound(p: float, radius: float) -> float:
    """The q below p with (p - q)^2 / (2 q (1 - q)) = radius: close to the least q with kl(p, q) <= radius."""
    return float(p * (p / (p + radius + np.sqrt(radius * (radius + 2.0 * p * (1.0 - p))))))


@njit(cache=True, nogil=True, error_model="numpy")
def least_probability(p: float, radius: float) -> float:
    """Least theta_a over the ball, for an action with centre probability ``p``: the least q with kl(p, q) <= radius."""
    # kl(p, q) <= radius needs q >= p exp(-radius / p) only, which may be less than the smallest double.
    if p <= 0.0 or radius > _DEEPEST * p:
        return 0.0
    if radius <= 0.0:
        return p
    if p >= 1.0:
        return float(np.exp(-radius))
    log_p, rest = np.log(p), (1.0 - p) * np.log1p(-p)
    # kl(p, q) is about (p - q)^2 / (2 q (1 - q)), whose root is Wilson's bound. It is convex and decreasing in log q:
    # after one step Newton is left of the root and climbs to it.
    log_q = np.log(wilson_bound(p, radius))
    for _ in range(_MAX_STEPS):
        q = np.exp(log_q)
        excess = p * (log_p - log_q) + rest - (1.0 - p) * np.log1p(-q) - radius
        step = excess / (p - (1.0 - p) * q / (1.0 - q))
        log_q += step
        if abs(step) <= _STEP:
            break
    return min(float(np.exp(log_q)), p)


@njit(cache=True, nogil=True, error_model="numpy")
def _guard(x: float, newton: float, low: float, high: float) -> float:
    """The Newton point, or a safer one: inside the bracket, or a bounded step outward where one side is open."""
    reach = 4.0 * (1.0 + abs(x))
    if low > -np.inf and high < np.inf:
        return newton if low < newton < high else 0.5 * (low + high)
    if high < np.inf:
        return newton if high - reach < newton < high else high - reach
    return newton if low < newton < low + reach else low + reach


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True, fastmath={"reassoc", "contract"})
def _gap_sums(gaps: Floats, p: Floats, n: int, t: float, u: float) -> tuple[float, float]:
    """Sums of ``p log(t + gap)`` and ``p t / (t + gap)`` of the first ``n`` values, t = e^u, which may underflow."""
    mean_log, share = 0.0, 0.0
    for a in range(n):
        open_gap = gaps[a] > 0.0
        moved = t + gaps[a] if open_gap else 1.0
        mean_log += p[a] * (vector_log(moved) if open_gap else u)
        share += p[a] * (t / moved if open_gap else 1.0)
    return mean_log, share


@njit(cache=True, nogil=True, error_model="numpy")
def worst_kl_ball(log_p: Floats, p: Floats, radius: float, pi: Floats, ratio: Floats, theta: Floats) -> float:
    """max KL(pi || theta) over the ball, in nats; ``theta`` gets the maximiser's log.

    With mu > max pi/p the maximiser is theta = (mu p - pi)/(mu - 1); t = mu - max pi/p is solved for in log t.
    ``theta`` and ``ratio``, which is scratch, have room for ``padded(V)`` values.
    """
    n = p.shape[0]
    radius = max(radius, _LEAST_RADIUS) if radius > 0.0 else 0.0
    if radius <= 0.0:
        total = 0.0
        for a in range(n):
            theta[a] = log_p[a]
            if pi[a] > 0.0:
                if p[a] <= 0.0:
                    return np.inf
                total += pi[a] * (np.log(pi[a]) - log_p[a])
        return total
    top = 1.0
    for a in range(n):
        ratio[a] = 0.0
        if pi[a] > 0.0:
            if p[a] <= 0.0 or radius == np.inf:
                return np.inf
            ratio[a] = pi[a] / p[a]
            top = max(top, ratio[a])
    if radius == np.inf:
        return np.inf
    edge = top - 1.0
    if edge <= 1e-13:
        for a in range(n):
            theta[a] = log_p[a] - radius
        return radius
    # KL(p || theta) = log(t + edge) - sum_a p_a log(t + gap_a), gap_a = top - ratio_a, decreasing in t.
    spread = 0.0
    for a in range(n):
        spread += p[a] * (ratio[a] - 1.0) * (ratio[a] - 1.0)
    # From here on ``ratio`` holds the gaps and ``theta`` the centre, both padded.
    for a in range(padded(n)):
        ratio[a] = top - ratio[a] if a < n else 1.0
        theta[a] = p[a] if a < n else 0.0
    # Two exact limits to start from: t small against every gap, and t large against every ratio.
    log_edge = np.log(edge)
    mean_log, mass_at_top = _gap_sums(ratio, theta, padded(n), 0.0, 0.0)
    u = (log_edge - mean_log - radius) / mass_at_top
    if u > log_edge:
        u = 0.5 * np.log(spread / (2.0 * radius))
    low, high = -np.inf, np.inf
    for _ in range(_MAX_STEPS):
        t = np.exp(u)
        mean_log, share = _gap_sums(ratio, theta, padded(n), t, u)
        excess = np.log(t + edge) - mean_log - radius
        slope = t / (t + edge) - share
        if excess > 0.0:
            low = u
        else:
            high = u
        after = _guard(u, u - excess / slope if slope < 0.0 else np.nan, low, high)
        moved = abs(after - u)
        u = after
        if moved <= _STEP * (1.0 + abs(u)):
            break
    t = np.exp(u)
    for a in range(padded(n)):
        gap = ratio[a]
        theta[a] = vector_log(t + gap) if gap > 0.0 else u
    scale = np.log(t + edge)
    total = 0.0
    for a in range(n):
        theta[a] += log_p[a] - scale
        charged = pi[a] * (vector_log(max(pi[a], _TINY)) - theta[a])
        total += charged if pi[a] > 0.0 else 0.0
    return total


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def best_response_point(
    log_p: Floats, gain: Floats, pi: Floats, logits: Floats, weights: Floats
) -> tuple[float, float]:
    """max_pi [pi.gain - KL(pi || p)] for one (sub-)distribution; returns ``(value, charge in nats)`` and fills ``pi``.

    Scratch as in ``best_response_ball``; any ``gain``, ``-inf`` forbids an action.
    """
    n, best = log_p.shape[0], -np.inf
    for a in range(n):
        logits[a] = gain[a] + log_p[a]
        best = logits[a] if logits[a] > best else best
    if best == -np.inf:
        return -np.inf, np.inf
    for a in range(padded(n)):
        weights[a] = vector_exp(logits[a] - best)
    total, mean = 0.0, 0.0
    for a in range(n):
        gained = weights[a] * gain[a]
        total += weights[a]
        mean += gained if weights[a] > 0.0 else 0.0
    value, scale = best + vector_log(total), 1.0 / total
    for a in range(n):
        pi[a] = weights[a] * scale
    return value, max(mean * scale - value, 0.0)


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True, fastmath={"reassoc", "contract"})
def _adversary_sums(gain: Floats, p: Floats, n: int, v: float) -> tuple[float, float, float, float]:
    """Sums over theta proportional to p share, share = e^v / (e^gain + e^v), of the first ``n`` values.

    Returns those of ``-p log share``, ``p share``, ``p (1 - share)`` and ``p share^2``.
    """
    spread, under, over, moment = 0.0, 0.0, 0.0, 0.0
    for a in range(n):
        x = gain[a] - v
        e = vector_exp(x)
        share = 1.0 / (1.0 + e)
        spread += p[a] * (x if x > 40.0 else vector_log(1.0 + e))
        under += p[a] * share
        over += p[a] * (e * share)
        moment += p[a] * (share * share)
    return spread, under, over, moment


@njit(cache=True, nogil=True, error_model="numpy")
def best_response_ball(
    log_p: Floats,
    p: Floats,
    radius: float,
    gain: Floats,
    start: float,
    pi: Floats,
    nu: Floats,
    logits: Floats,
    weights: Floats,
) -> tuple[float, float, float]:
    """max_pi min_theta [pi.gain - KL(pi || theta)] over one ball of finite radius; ``gain`` is Q / multiplier.

    ``gain`` must be at most 0 and 0 at its best allowed action; ``-inf`` forbids an action. Writes the policy to ``pi``
    and the log of the adversary's theta to ``nu``. Returns ``(value, charge in nats, log eta)``; ``start`` is a guess
    for log eta (theta is proportional to p / (e^gain + eta)). Value ``-inf``: no allowed action has support.
    ``logits`` and ``weights`` are scratch with room for ``padded(V)`` finite values.
    """
    n = p.shape[0]
    radius = max(radius, _LEAST_RADIUS) if radius > 0.0 else 0.0
    if radius <= 0.0:
        for a in range(n):
            nu[a] = log_p[a]
        value, charge = best_response_point(log_p, gain, pi, logits, weights)
        return value, charge, start
    mean, smallest, reachable = 0.0, 0.0, False
    for a in range(n):
        if p[a] > 0.0:
            mean += p[a] * gain[a]
            smallest = min(smallest, gain[a])
            reachable = reachable or gain[a] > -np.inf
    if not reachable:
        for a in range(n):
            pi[a] = 0.0
        return -np.inf, np.inf, start
    for a in range(n):
        logits[a], weights[a] = gain[a], p[a]
    for a in range(n, padded(n)):
        logits[a], weights[a] = 0.0, 0.0
    if smallest > -np.inf:
        log_inverse = np.log(_mean_inverse(logits, weights, padded(n), smallest)) - smallest
        if radius >= mean + log_inverse:
            # Imitating the centre is optimal; theta = (p / w) / sum(p / w), spread until the radius is used up.
            for a in range(n):
                pi[a] = p[a]
                nu[a] = log_p[a] - radius
            return mean - radius, radius, start
    v, low, high = start, -np.inf, np.inf
    for _ in range(_MAX_STEPS):
        spread, under, over, moment = _adversary_sums(logits, weights, padded(n), v)
        excess = spread + np.log(under) - radius
        slope = under - moment / under
        if excess > 0.0:
            low = v
        else:
            high = v
        after = _guard(v, v - excess / slope if slope < 0.0 else np.nan, low, high)
        moved = abs(after - v)
        v = after
        if moved <= _STEP * (1.0 + abs(v)):
            break
    spread, under, over, moment = _adversary_sums(logits, weights, padded(n), v)
    log_under, log_over, scale = np.log(under), np.log(over), 1.0 / over
    for a in range(padded(n)):
        x = logits[a] - v
        e = vector_exp(x)
        share = 1.0 / (1.0 + e)
        weights[a] = weights[a] * (e * share) * scale
        logits[a] = x if x > 40.0 else vector_log(1.0 + e)
    charge = log_under - log_over
    for a in range(n):
        pi[a] = weights[a]
        nu[a] = log_p[a] - logits[a] - log_under
        gained = pi[a] * (gain[a] - v)
        charge += gained if pi[a] > 0.0 else 0.0
    return log_over + v - log_under, charge, v


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True, fastmath={"reassoc", "contract"})
def _mean_inverse(gain: Floats, p: Floats, n: int, smallest: float) -> float:
    """Sum of ``p exp(smallest - gain)`` over the first ``n`` values."""
    total = 0.0
    for a in range(n):
        total += p[a] * vector_exp(smallest - gain[a])
    return total
