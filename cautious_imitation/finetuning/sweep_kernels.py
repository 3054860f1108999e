"""Compiled dynamic programming over a finite world: one backward sweep at fixed prices, and exact expectations.

Rows of references and policies are those of the agent's states only: ``row[s]`` is the row of state s, -1 elsewhere.
``gate [rows]`` is the probability of asking that is forced on the agent, NaN where asking is its own choice.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cautious_imitation.borrowed_arrays import borrowed
from cautious_imitation.union_kernels import response_scratch, union_best_response

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

REWARD, CHARGE, ASKS, DECISIONS, KL, EXCESS, COVERED, EMPTY, TURNS, FREE_CHARGE = range(10)
"""Entries of the vector of expectations."""

N_EXPECTATIONS = 10


@njit(cache=True, nogil=True, error_model="numpy")
def sweep(
    next_state: Ints,
    reward: Floats,
    row: Ints,
    environment_policy: Floats,
    demonstrator: Floats,
    start: int,
    horizon: int,
    log_p: Floats,
    p: Floats,
    radii: Floats,
    plausible: Bools,
    log_ask: Floats,
    gate: Floats,
    reward_weight: float,
    multiplier: float,
    ask_price: float,
    outcome: bool,
    policies: Floats,
    act_share: Floats,
    act_charge: Floats,
) -> tuple[float, float, float, float]:
    """Maximise E[reward_weight * reward - multiplier * charge - ask_price * asks] by backward induction.

    Args:
        log_p, p, radii, plausible: references ``[rows, M, V]``, ``[rows, M]``.
        log_ask: ``[rows]`` log of the reference's own ask probability, for ``outcome``: asking is one more symbol.
        policies, act_share, act_charge: ``[T, rows, V]``, ``[T, rows]``, ``[T, rows]``: the maximiser given that it
            acts, the probability of acting, and the former's worst KL in nats; not written where they have no rows.

    Returns:
        ``(upper bound on the objective, E[reward], E[charge] in nats, E[asks])`` from the start.
    """
    n_states, n = reward.shape
    keep = policies.shape[0] > 0
    # Per state, for the rest of the episode: bound on the objective, reward, charge, questions.
    later, now = np.zeros((n_states, 4)), np.zeros((n_states, 4))
    q_values, gain, pi, done = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    scratch_memory, warm_memory = response_scratch(n), np.zeros(radii.shape)
    scratch, warm = borrowed(scratch_memory), borrowed(warm_memory)
    log_p, p, radii, plausible = borrowed(log_p), borrowed(p), borrowed(radii), borrowed(plausible)
    for back in range(horizon):
        t = horizon - 1 - back
        for s in range(n_states):
            r = row[s]
            for a in range(n):
                q_values[a] = reward_weight * reward[s, a] + later[next_state[s, a], 0]
            if r < 0:
                value = 0.0
                for a in range(n):
                    done[a] = environment_policy[s, a]
                    gained = done[a] * q_values[a]
                    value += gained if done[a] > 0.0 else 0.0
                now[s, 0] = value
                _follow(s, done, 0.0, 0.0, reward, next_state, later, now)
                continue
            ask_value = -ask_price
            for a in range(n):
                gained = demonstrator[s, a] * q_values[a]
                ask_value += gained if demonstrator[s, a] > 0.0 else 0.0
            act_value, charge, act = -np.inf, np.inf, 0.0
            if not gate[r] >= 1.0:
                for a in range(n):
                    gain[a] = q_values[a] / multiplier
                act_value, charge = union_best_response(
                    log_p[r], p[r], radii[r], plausible[r], gain, warm[r], pi, scratch
                )
                act_value *= multiplier
            cost = 0.0
            if outcome and np.isnan(gate[r]):
                ask_weight = log_ask[r] + ask_value / multiplier
                top = max(act_value / multiplier, ask_weight)
                if top > -np.inf:
                    total = top + np.log(np.exp(act_value / multiplier - top) + np.exp(ask_weight - top))
                    act = np.exp(act_value / multiplier - total)
                    now[s, 0] = multiplier * total
                    cost = _outcome_charge(act, charge, log_ask[r])
                else:
                    now[s, 0] = -np.inf
            elif np.isnan(gate[r]):
                act = 1.0 if act_value >= ask_value and charge < np.inf else 0.0
                now[s, 0] = max(act_value, ask_value)
            else:
                act = 1.0 - gate[r]
                now[s, 0] = (act * act_value if act > 0.0 else 0.0) + (gate[r] * ask_value if gate[r] > 0.0 else 0.0)
            if act <= 0.0:
                charge = 0.0
            if not outcome:
                cost = act * charge
            elif not np.isnan(gate[r]):
                cost = _outcome_charge(act, charge, log_ask[r])
                now[s, 0] -= multiplier * (cost - (act * charge if act > 0.0 else 0.0))
            for a in range(n):
                done[a] = (1.0 - act) * demonstrator[s, a] + (act * pi[a] if act > 0.0 else 0.0)
            _follow(s, done, cost, 1.0 - act, reward, next_state, later, now)
            if keep:
                act_share[t, r] = act
                act_charge[t, r] = charge
                for a in range(n):
                    policies[t, r, a] = pi[a] if act > 0.0 else 0.0
        later, now = now, later
    # The memory behind the borrowed views lives until its last use.
    scratch_memory[0, 0] = warm_memory[0, 0] = 0.0
    return later[start, 0], later[start, 1], later[start, 2], later[start, 3]


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _follow(
    s: int, done: Floats, cost: float, ask: float, reward: Floats, next_state: Ints, later: Floats, now: Floats
) -> None:
    """Expected reward, charge and questions from state ``s`` on, where ``done [V]`` is what happens there."""
    gained = 0.0
    for a in range(done.shape[0]):
        share, after = done[a], next_state[s, a]
        gain, charge, asks = share * (reward[s, a] + later[after, 1]), share * later[after, 2], share * later[after, 3]
        # What never happens may be infinitely dear.
        gained += gain if share > 0.0 else 0.0
        cost += charge if share > 0.0 else 0.0
        ask += asks if share > 0.0 else 0.0
    now[s, 1], now[s, 2], now[s, 3] = gained, cost, ask


@njit(cache=True, nogil=True, error_model="numpy")
def _outcome_charge(act: float, charge: float, log_ask: float) -> float:
    """KL of (act * pi, ask) from (nu, theta): asking accounted as one more symbol, in nats."""
    total = 0.0
    if act > 0.0:
        total += act * (charge + np.log(act))
    if act < 1.0:
        total += (1.0 - act) * (np.log1p(-act) - log_ask)
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def expectations(
    next_state: Ints,
    reward: Floats,
    row: Ints,
    environment_policy: Floats,
    demonstrator: Floats,
    start: int,
    turn_start: Bools,
    end_of_turn: int,
    covered: Bools,
    log_ask: Floats,
    outcome: bool,
    policies: Floats,
    act_share: Floats,
    act_charge: Floats,
    visits: Floats,
) -> Floats:
    """Exact expected sums over an episode under one policy: a vector indexed by the names above.

    ``visits [rows]`` gets the expected number of decisions at each of the agent's states.
    """
    n_states, n = reward.shape
    out, here, after = np.zeros(N_EXPECTATIONS), np.zeros(n_states), np.zeros(n_states)
    done = np.empty(n)
    here[start] = 1.0
    for t in range(policies.shape[0]):
        after[:] = 0.0
        for s in range(n_states):
            weight = here[s]
            if weight <= 0.0:
                continue
            r = row[s]
            if r < 0:
                for a in range(n):
                    done[a] = environment_policy[s, a]
            else:
                act = act_share[t, r]
                kl_acting, kl_done = 0.0, 0.0
                for a in range(n):
                    x, tau = policies[t, r, a], demonstrator[s, a]
                    done[a] = act * x + (1.0 - act) * tau
                    if act > 0.0 and x > 0.0:
                        kl_acting += x * (np.log(x) - np.log(tau)) if tau > 0.0 else np.inf
                    if done[a] > 0.0:
                        kl_done += done[a] * (np.log(done[a]) - np.log(tau)) if tau > 0.0 else np.inf
                free = act * act_charge[t, r] if act > 0.0 else 0.0
                out[DECISIONS] += weight
                visits[r] += weight
                out[ASKS] += weight * (1.0 - act)
                out[FREE_CHARGE] += weight * free
                out[CHARGE] += weight * (_outcome_charge(act, act_charge[t, r], log_ask[r]) if outcome else free)
                out[KL] += weight * max(kl_done, 0.0)
                if act > 0.0 and kl_acting > act_charge[t, r]:
                    out[EXCESS] += weight * act * (kl_acting - act_charge[t, r])
                if covered[r]:
                    out[COVERED] += weight
                if turn_start[s]:
                    out[TURNS] += weight
                    if end_of_turn >= 0:
                        out[EMPTY] += weight * done[end_of_turn]
            for a in range(n):
                if done[a] > 0.0:
                    out[REWARD] += weight * done[a] * reward[s, a]
                    after[next_state[s, a]] += weight * done[a]
        here, after = after, here
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def largest_charge(
    next_state: Ints,
    row: Ints,
    environment_policy: Floats,
    demonstrator: Floats,
    start: int,
    log_ask: Floats,
    outcome: bool,
    policies: Floats,
    act_share: Floats,
    act_charge: Floats,
) -> float:
    """Largest sum of charges, in nats, of any trajectory that has positive probability under one policy."""
    n_states, n = next_state.shape
    later, now = np.zeros(n_states), np.zeros(n_states)
    for back in range(policies.shape[0]):
        t = policies.shape[0] - 1 - back
        for s in range(n_states):
            r, act, cost, best = row[s], 0.0, 0.0, 0.0
            if r >= 0:
                act = act_share[t, r]
                if outcome:
                    cost = _outcome_charge(act, act_charge[t, r], log_ask[r])
                elif act > 0.0:
                    cost = act * act_charge[t, r]
            first = True
            for a in range(n):
                if r < 0:
                    possible = environment_policy[s, a] > 0.0
                else:
                    possible = (act > 0.0 and policies[t, r, a] > 0.0) or (act < 1.0 and demonstrator[s, a] > 0.0)
                if possible and (first or later[next_state[s, a]] > best):
                    best, first = later[next_state[s, a]], False
            now[s] = cost + best
        later, now = now, later
    return float(later[start])
