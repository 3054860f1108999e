"""Mixtures of policies within budgets: which of those found so far to mix, and which prices to try next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

Floats: TypeAlias = NDArray[np.float64]

SMALLEST_MULTIPLIER = 1e-6
LARGEST_PRICE = 1e5
_FIRST_MULTIPLIER = 0.1
_STEP_OUT = 4.0


@dataclass(frozen=True)
class Column:
    """One deterministic policy, found by a sweep: the prices it is best at and what it comes to."""

    reward_weight: float
    multiplier: float
    ask_price: float
    bound: float
    reward: float
    charge: float
    asks: float


@dataclass(frozen=True)
class Mix:
    """Best mixture of the policies found so far, its value, its prices, and the nats that it lacks to be feasible."""

    weights: Floats
    value: float
    multiplier: float
    extra: float
    missing: float


def next_multiplier(columns: list[Column], mix: Mix, budget: float) -> float:
    """Price of a nat to try next: outward until the budget is bracketed, then in turn a secant and a cutting plane.

    The secant is quick where the charge is a smooth function of the price, the cutting plane where it jumps.
    """
    priced = [c for c in columns if c.reward_weight > 0]
    if not priced:
        return _FIRST_MULTIPLIER
    over = [c for c in priced if c.charge > budget]
    under = [c for c in priced if c.charge <= budget]
    if not under:
        return _STEP_OUT * max(c.multiplier for c in over)
    if not over:
        return min(c.multiplier for c in under) / _STEP_OUT
    low, high = max(over, key=lambda c: c.multiplier), min(under, key=lambda c: c.multiplier)
    if len(priced) % 2 == 0 and 0 < high.charge < budget and np.isfinite(low.charge):
        share = np.log(low.charge / budget) / np.log(low.charge / high.charge)
        return float(low.multiplier * (high.multiplier / low.multiplier) ** share)
    inside = low.multiplier < mix.multiplier < high.multiplier
    return mix.multiplier if inside else float(np.sqrt(low.multiplier * high.multiplier))


def best_mixture(columns: list[Column], price: float, budget: float, limit: float | None) -> Mix:
    """The best mixture within the budgets; where there is none, the one that comes closest, at prohibitive prices."""
    weights = np.zeros(len(columns))
    finite = [i for i, c in enumerate(columns) if np.isfinite(c.charge) and np.isfinite(c.reward)]
    if not finite:
        return Mix(weights, -np.inf, LARGEST_PRICE, 0.0, np.inf)
    gain = np.array([columns[i].reward - price * columns[i].asks for i in finite])
    charge = np.array([columns[i].charge for i in finite])
    if limit is None:
        chosen, multiplier = best_pair(gain, charge, budget)
        missing = max(float(charge.min()) - budget, 0.0)
        extra = 0.0
    else:
        asks = np.array([columns[i].asks for i in finite])
        chosen, multiplier, extra, missing = _linear_programme(gain, charge, asks, budget, limit)
    weights[finite] = chosen
    return Mix(weights, float(gain @ chosen), multiplier, extra, missing)


def best_pair(gain: Floats, charge: Floats, budget: float) -> tuple[Floats, float]:
    """Best mixture of at most two policies with expected charge within ``budget``, and the price of a nat there."""
    weights = np.zeros(len(gain))
    under = np.flatnonzero(charge <= budget)
    if not len(under):
        weights[charge.argmin()] = 1.0
        return weights, LARGEST_PRICE
    i = int(under[gain[under].argmax()])
    over = np.flatnonzero((charge > budget) & (gain > gain[i]))
    if not len(over):
        weights[i] = 1.0
        return weights, 0.0
    share = (budget - charge[under])[:, None] / (charge[over][None, :] - charge[under][:, None])
    value = gain[under][:, None] + share * (gain[over][None, :] - gain[under][:, None])
    a, b = np.unravel_index(int(value.argmax()), value.shape)
    weights[under[a]], weights[over[b]] = 1.0 - share[a, b], share[a, b]
    return weights, float((gain[over[b]] - gain[under[a]]) / (charge[over[b]] - charge[under[a]]))


def _linear_programme(
    gain: Floats, charge: Floats, asks: Floats, budget: float, limit: float
) -> tuple[Floats, float, float, float]:
    """Best mixture within both budgets: ``(weights, price of a nat, price of a question, missing)``."""
    result = linprog(
        np.concatenate([-gain, [LARGEST_PRICE, LARGEST_PRICE]]),
        A_ub=np.array([[*charge, -1.0, 0.0], [*asks, 0.0, -1.0]]),
        b_ub=np.array([budget, limit]),
        A_eq=np.array([[1.0] * len(gain) + [0.0, 0.0]]),
        b_eq=np.array([1.0]),
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if result.status != 0:
        raise RuntimeError(f"the master programme failed: {result.message}")
    weights = np.where(result.x[:-2] > 1e-12, result.x[:-2], 0.0)
    prices = -result.ineqlin.marginals
    return weights / weights.sum(), float(prices[0]), float(prices[1]), float(result.x[-2:].sum())
