"""Compiled scalar routines for one KL ball {theta: KL(p || theta) <= radius}: its extremes against one policy.

Each is a one-dimensional safeguarded Newton iteration in a logarithmic variable, so that roots below the smallest
double are found too. Formulas: docs/theory.md, "One ball".
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cautious_imitation.vector_math import exps, padded

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MAX_STEPS = 200


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def wilson_bound(p: float, radius: float) -> float:
    """The q below p with (p - q)^2 / (2 q (1 - q)) = radius: close to the least q with kl(p, q) <= radius."""
    return float(p * p / (p + radius + np.sqrt(radius * (radius + 2.0 * p * (1.0 - p)))))


@njit(cache=True, nogil=True, error_model="numpy")
def least_probability(p: float, radius: float) -> float:
    """Least theta_a over the ball, for an action with centre probability ``p``: the least q with kl(p, q) <= radius."""
    if p <= 0.0 or radius == np.inf:
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
        if abs(step) <= 1e-9:
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


@njit(cache=True, nogil=True, error_model="numpy")
def worst_kl_ball(log_p: Floats, p: Floats, radius: float, pi: Floats, ratio: Floats, theta: Floats) -> float:
    """max KL(pi || theta) over the ball, in nats; ``ratio [V]`` is scratch, ``theta [V]`` gets the maximiser's log.

    With mu > max pi/p the maximiser is theta = (mu p - pi)/(mu - 1); t = mu - max pi/p is solved for in log t.
    """
    n = p.shape[0]
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
    mass_at_top, spread = 0.0, 0.0
    limit = np.log(edge)
    for a in range(n):
        gap = top - ratio[a]
        spread += p[a] * (ratio[a] - 1.0) * (ratio[a] - 1.0)
        if gap <= 0.0:
            mass_at_top += p[a]
        elif p[a] > 0.0:
            limit -= p[a] * np.log(gap)
    # Two exact limits to start from: t small against every gap, and t large against every ratio.
    u = (limit - radius) / mass_at_top
    if u > np.log(edge):
        u = 0.5 * np.log(spread / (2.0 * radius))
    low, high = -np.inf, np.inf
    for _ in range(_MAX_STEPS):
        t = np.exp(u)
        excess = (np.log(t + edge) if u > -700.0 else np.log(edge)) - radius
        slope = t / (t + edge)
        for a in range(n):
            if p[a] > 0.0:
                gap = top - ratio[a]
                if gap <= 0.0:
                    excess -= p[a] * u
                    slope -= p[a]
                else:
                    excess -= p[a] * np.log(t + gap)
                    slope -= p[a] * t / (t + gap)
        if excess > 0.0:
            low = u
        else:
            high = u
        after = _guard(u, u - excess / slope if slope < 0.0 else np.nan, low, high)
        moved = abs(after - u)
        u = after
        if moved <= 1e-15 * (1.0 + abs(u)) or high - low <= 1e-15 * (1.0 + abs(u)):
            break
    t = np.exp(u)
    scale = np.log(t + edge)
    total = 0.0
    for a in range(n):
        gap = top - ratio[a]
        theta[a] = log_p[a] + (u if gap <= 0.0 else np.log(t + gap)) - scale
        if pi[a] > 0.0:
            total += pi[a] * (np.log(pi[a]) - theta[a])
    return total


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def best_response_point(
    log_p: Floats, gain: Floats, pi: Floats, logits: Floats, weights: Floats, bits: Ints
) -> tuple[float, float]:
    """max_pi [pi.gain - KL(pi || p)] for one (sub-)distribution; returns ``(value, charge in nats)`` and fills ``pi``.

    Scratch as in ``best_response_ball``; any ``gain``, ``-inf`` forbids an action.
    """
    n, best = log_p.shape[0], -np.inf
    for a in range(n):
        logits[a] = gain[a] + log_p[a]
    for a in range(n):
        best = max(best, logits[a])
    if best == -np.inf:
        return -np.inf, np.inf
    for a in range(n):
        logits[a] -= best
    exps(logits, padded(n), weights, bits, bits.view(np.float64))
    total, mean = 0.0, 0.0
    for a in range(n):
        total += weights[a]
        mean += weights[a] * gain[a] if weights[a] > 0.0 else 0.0
    value, scale = best + np.log(total), 1.0 / total
    for a in range(n):
        pi[a] = weights[a] * scale
    return value, max(mean * scale - value, 0.0)


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
    bits: Ints,
) -> tuple[float, float, float]:
    """max_pi min_theta [pi.gain - KL(pi || theta)] over one ball of finite radius; ``gain`` is Q / multiplier.

    ``gain`` must be at most 0 and 0 at its best allowed action; ``-inf`` forbids an action. Writes the policy to ``pi``
    and the log of the adversary's theta to ``nu``. Returns ``(value, charge in nats, log eta)``; ``start`` is a guess
    for log eta (theta is proportional to p / (e^gain + eta)). Value ``-inf``: no allowed action has support.
    ``logits``, ``weights`` and ``bits`` are scratch with room for ``padded(V)`` values, finite in the first two.
    """
    n = p.shape[0]
    if radius <= 0.0:
        for a in range(n):
            nu[a] = log_p[a]
        value, charge = best_response_point(log_p, gain, pi, logits, weights, bits)
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
    if smallest > -np.inf:
        inverse = 0.0
        for a in range(n):
            if p[a] > 0.0:
                inverse += p[a] * np.exp(smallest - gain[a])
        log_inverse = np.log(inverse) - smallest
        if radius >= mean + log_inverse:
            # Imitating the centre is optimal; theta = (p / w) / sum(p / w), spread until the radius is used up.
            for a in range(n):
                pi[a] = p[a]
                nu[a] = log_p[a] - radius
            return mean - radius, radius, start
    v, low, high = start, -np.inf, np.inf
    under, over, moment = 0.0, 0.0, 0.0
    for _ in range(_MAX_STEPS):
        excess, under, over, moment = -radius, 0.0, 0.0, 0.0
        for a in range(n):
            if p[a] > 0.0:
                x = gain[a] - v
                if x > 0.0:
                    e = np.exp(-x)
                    share = e / (1.0 + e)
                    excess += p[a] * (x + np.log1p(e))
                    over += p[a] / (1.0 + e)
                else:
                    e = np.exp(x)
                    share = 1.0 / (1.0 + e)
                    excess += p[a] * np.log1p(e)
                    over += p[a] * e / (1.0 + e)
                under += p[a] * share
                moment += p[a] * share * share
        excess += np.log(under)
        slope = under - moment / under
        if excess > 0.0:
            low = v
        else:
            high = v
        after = _guard(v, v - excess / slope if slope < 0.0 else np.nan, low, high)
        if abs(excess) <= 1e-15 * (1.0 + radius) or abs(after - v) <= 1e-15 * (1.0 + abs(v)):
            break
        v = after
    log_under, log_over = np.log(under), np.log(over)
    charge = log_under - log_over
    for a in range(n):
        pi[a] = 0.0
        nu[a] = -np.inf
        if p[a] > 0.0:
            x = gain[a] - v
            log_share = -np.log1p(np.exp(x)) if x <= 0.0 else -x - np.log1p(np.exp(-x))
            nu[a] = log_p[a] + log_share - log_under
            if gain[a] > -np.inf:
                pi[a] = np.exp(log_p[a] + log_share + x - log_over)
                charge += pi[a] * x
    return log_over + v - log_under, charge, v
