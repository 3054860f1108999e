"""Exact optimisation in finite worlds: the best policy within a budget, with a certificate of how close to optimal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning import sweep_kernels as kernels
from cautious_imitation.imitators import BasePolicy
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.regularizers import ExpectedBudget, Penalty, Regularizer

Floats: TypeAlias = NDArray[np.float64]
Status: TypeAlias = Literal["optimal", "slack", "penalty"]

_SMALLEST_MULTIPLIER = 1e-6
_LARGEST_PRICE = 1e5
_FIRST_MULTIPLIER = 0.1
_STEP_OUT = 4.0
_MAX_SWEEPS = 80


class BudgetInfeasible(ValueError):
    """No policy meets the budget.

    Attributes:
        least_charge_nats: the smallest expected charge of any policy that keeps to the ask budget, infinite if none is
            finite.
    """

    def __init__(self, budget: ExpectedBudget, ask_budget: float | None, least_charge_nats: float) -> None:
        asks = "" if ask_budget is None else f" with at most {ask_budget} questions"
        super().__init__(
            f"nats={budget.nats} is infeasible{asks}: the least expected charge of any policy is "
            f"{least_charge_nats:.6g} nats an episode; raise the budget or let the policy ask"
        )
        self.least_charge_nats = least_charge_nats


@dataclass(frozen=True)
class TimedPolicy:
    """A policy of a finite world, time by time.

    Attributes:
        states: ``[rows]`` the agent's states that the rows stand for.
        probabilities: ``[T, rows, V]`` what it does when it acts.
        act_share: ``[T, rows]`` probability of acting rather than asking.
        act_charge: ``[T, rows]`` its charge when it acts, in nats.
        weight: probability of being the one that is followed; drawn once an episode.
    """

    states: NDArray[np.int64]
    probabilities: Floats
    act_share: Floats
    act_charge: Floats
    weight: float


@dataclass(frozen=True)
class Solution:
    """An optimal policy: a mixture of at most three, drawn from once an episode.

    Attributes:
        policies: the mixture.
        status: ``"optimal"`` (the budget binds), ``"slack"`` (it does not) or ``"penalty"`` (no budget was asked for).
        multiplier: price of a nat in reward at the optimum.
        ask_price: price of a question, the ask budget's share included.
        reward: expected reward of an episode.
        charge_nats: expected charge of an episode under the regularizer's accounting.
        asks: expected questions of an episode.
        duality_gap: no policy within the budget has a larger reward less asking costs by more than this.
        sweeps: how many backward sweeps it took.
    """

    policies: tuple[TimedPolicy, ...]
    status: Status
    multiplier: float
    ask_price: float
    reward: float
    charge_nats: float
    asks: float
    duality_gap: float
    sweeps: int


@dataclass(frozen=True)
class _Column:
    """One deterministic policy, found by a sweep: the prices it is best at and what it comes to."""

    reward_weight: float
    multiplier: float
    ask_price: float
    bound: float
    reward: float
    charge: float
    asks: float


@dataclass(frozen=True)
class ExactSolver:
    """Maximise E[reward] - ask_price E[asks] with E[charge] <= budget (and E[asks] <= ask budget), exactly.

    The problem is convex in occupancies. At fixed prices of nats and questions it is a dynamic programme; the prices
    minimise the convex dual, by cutting planes, until the mixture of the policies found so far is within
    ``tolerance`` of the dual bound. At a kink of the dual (the charge jumps there) the mixture of the policies on both
    sides meets the budget exactly.

    Args:
        tolerance: largest duality gap, in units of reward.

    Source: docs/theory.md, "Exact optimisation".
    """

    tolerance: float = 1e-7

    def solve(
        self,
        world: FiniteWorld,
        anchor: BasePolicy | PlausibleSet,
        regularizer: Regularizer,
        *,
        ask_probability: Floats | None = None,
        may_ask: bool = True,
    ) -> Solution:
        """Find the optimal policy.

        Args:
            world: the finite world.
            anchor: a base policy, or its references at the agent's states (``world.contexts[world.agent_turn]``).
            regularizer: budget or penalty, accounting, ask price and ask budget.
            ask_probability: ``[rows]`` forced probability of asking at each of the agent's states; then asking is not
                the policy's choice.
            may_ask: False for anchors that never ask.

        Raises:
            BudgetInfeasible: if no policy meets the budget.
            ValueError: if accounting ``"outcome"`` meets a set of several references, which has no ask probability.
        """
        problem = _Problem.build(world, anchor, regularizer, ask_probability, may_ask)
        controller = regularizer.controller
        if isinstance(controller, Penalty):
            column = problem.sweep(1.0, controller.multiplier, regularizer.ask_price)
            gap = column.bound - (column.reward - column.ask_price * column.asks - column.multiplier * column.charge)
            return self._solution(problem, [column], np.ones(1), column, "penalty", gap, 1)
        return self._meet(problem, controller, regularizer)

    def _meet(self, problem: _Problem, budget: ExpectedBudget, regularizer: Regularizer) -> Solution:
        price, limit = regularizer.ask_price, regularizer.ask_budget
        columns: list[_Column] = []
        if limit is not None:
            # Corners: the best, the least charged and the least asking policy.
            columns = [problem.sweep(1.0, _SMALLEST_MULTIPLIER, price), problem.sweep(0.0, 1.0, 0.0)]
            columns.append(problem.sweep(0.0, _SMALLEST_MULTIPLIER, 1.0))
        bound, cheapest = np.inf, len(columns) > 0
        mix = _master(columns, price, budget.nats, limit)
        while len(columns) < _MAX_SWEEPS:
            multiplier = _next_multiplier(columns, mix, budget.nats) if limit is None else mix.multiplier
            multiplier = min(max(multiplier, _SMALLEST_MULTIPLIER), _LARGEST_PRICE)
            column = problem.sweep(1.0, multiplier, price + mix.extra)
            columns.append(column)
            bound = min(bound, column.bound + multiplier * budget.nats + mix.extra * (limit or 0.0))
            dual = column.reward - (price + mix.extra) * column.asks - multiplier * (column.charge - budget.nats)
            dual += mix.extra * (limit or 0.0)
            mix = _master(columns, price, budget.nats, limit)
            if mix.missing > 0.0:
                if multiplier < _LARGEST_PRICE:
                    continue
                if cheapest:
                    break
                columns.append(problem.sweep(0.0, 1.0, 0.0))
                cheapest = True
                mix = _master(columns, price, budget.nats, limit)
            elif dual - mix.value <= self.tolerance * max(1.0, abs(mix.value)):
                break
        if mix.missing > 1e-9 * max(1.0, budget.nats):
            raise BudgetInfeasible(budget, limit, budget.nats + mix.missing)
        slack = mix.multiplier <= 0.0 and mix.extra <= 0.0
        at = _Column(1.0, columns[-1].multiplier, price + mix.extra, bound, 0.0, 0.0, 0.0)
        status: Status = "slack" if slack else "optimal"
        return self._solution(problem, columns, mix.weights, at, status, bound - mix.value, len(columns))

    @staticmethod
    def _solution(
        problem: _Problem,
        columns: list[_Column],
        weights: Floats,
        at: _Column,
        status: Status,
        gap: float,
        sweeps: int,
    ) -> Solution:
        used = [(column, float(w)) for column, w in zip(columns, weights, strict=True) if w > 0]
        return Solution(
            policies=tuple(problem.policy(column, w) for column, w in used),
            status=status,
            multiplier=at.multiplier,
            ask_price=at.ask_price,
            reward=sum(w * c.reward for c, w in used),
            charge_nats=sum(w * c.charge for c, w in used),
            asks=sum(w * c.asks for c, w in used),
            duality_gap=gap,
            sweeps=sweeps,
        )


@dataclass(frozen=True)
class _Mix:
    """Best mixture of the policies found so far, its value, its prices, and the nats that it lacks to be feasible."""

    weights: Floats
    value: float
    multiplier: float
    extra: float
    missing: float


def _next_multiplier(columns: list[_Column], mix: _Mix, budget: float) -> float:
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


def _master(columns: list[_Column], price: float, budget: float, limit: float | None) -> _Mix:
    """The best mixture within the budgets; where there is none, the one that comes closest, at prohibitive prices."""
    weights = np.zeros(len(columns))
    finite = [i for i, c in enumerate(columns) if np.isfinite(c.charge) and np.isfinite(c.reward)]
    if not finite:
        return _Mix(weights, -np.inf, _LARGEST_PRICE, 0.0, np.inf)
    gain = np.array([columns[i].reward - price * columns[i].asks for i in finite])
    charge = np.array([columns[i].charge for i in finite])
    if limit is None:
        chosen, multiplier = _best_pair(gain, charge, budget)
        missing = max(float(charge.min()) - budget, 0.0)
        extra = 0.0
    else:
        asks = np.array([columns[i].asks for i in finite])
        chosen, multiplier, extra, missing = _linear_programme(gain, charge, asks, budget, limit)
    weights[finite] = chosen
    return _Mix(weights, float(gain @ chosen), multiplier, extra, missing)


def _best_pair(gain: Floats, charge: Floats, budget: float) -> tuple[Floats, float]:
    """Best mixture of at most two policies with expected charge within ``budget``, and the price of a nat there."""
    weights = np.zeros(len(gain))
    under = np.flatnonzero(charge <= budget)
    if not len(under):
        weights[charge.argmin()] = 1.0
        return weights, _LARGEST_PRICE
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
        np.concatenate([-gain, [_LARGEST_PRICE, _LARGEST_PRICE]]),
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


@dataclass(frozen=True)
class _Problem:
    """A world and an anchor's references in the form that the compiled sweep reads."""

    world: FiniteWorld
    states: NDArray[np.int64]
    row: NDArray[np.int64]
    references: tuple[Floats, Floats, Floats, NDArray[np.bool_]]
    log_ask: Floats
    gate: Floats
    outcome: bool

    @classmethod
    def build(
        cls,
        world: FiniteWorld,
        anchor: BasePolicy | PlausibleSet,
        regularizer: Regularizer,
        ask_probability: Floats | None,
        may_ask: bool,
    ) -> _Problem:
        states = np.flatnonzero(world.agent_turn)
        row = np.full(world.n_states, -1)
        row[states] = np.arange(len(states))
        if isinstance(anchor, BasePolicy):
            anchor = anchor.references(world.contexts[states])
        log_p, p, radii, plausible = _compact(*anchor.flat())
        if len(log_p) != len(states):
            raise ValueError(f"anchor must have references for {len(states)} agent's states, got {len(log_p)}")
        outcome = regularizer.accounting == "outcome"
        log_ask = np.full(len(states), -np.inf)
        if outcome:
            if p.shape[1] != 1 or (radii > 0).any():
                raise ValueError(
                    'accounting must be "free" or "forbidden" for a set of several references, got "outcome"; a set has '
                    "no ask probability of its own"
                )
            with np.errstate(divide="ignore"):
                log_ask = np.log(np.maximum(1 - p[:, 0].sum(axis=1), 0.0))
        gate = np.full(len(states), np.nan if may_ask and regularizer.accounting != "forbidden" else 0.0)
        if ask_probability is not None:
            if ask_probability.shape != gate.shape or not ((ask_probability >= 0) & (ask_probability <= 1)).all():
                raise ValueError(f"ask_probability must hold {len(states)} values in [0, 1], got {ask_probability!r}")
            gate = np.ascontiguousarray(ask_probability, dtype=np.float64)
        return cls(world, states, row, (log_p, p, radii, plausible), log_ask, gate, outcome)

    def sweep(self, reward_weight: float, multiplier: float, ask_price: float) -> _Column:
        empty = np.empty((0, 0, 0)), np.empty((0, 0)), np.empty((0, 0))
        found = self._run(reward_weight, multiplier, ask_price, *empty)
        return _Column(reward_weight, multiplier, ask_price, *found)

    def policy(self, column: _Column, weight: float) -> TimedPolicy:
        shape = (self.world.horizon, len(self.states))
        tables = np.empty((*shape, self.world.n_actions)), np.empty(shape), np.empty(shape)
        self._run(column.reward_weight, column.multiplier, column.ask_price, *tables)
        return TimedPolicy(self.states, *tables, weight)

    def _run(
        self,
        reward_weight: float,
        multiplier: float,
        ask_price: float,
        policies: Floats,
        act_share: Floats,
        act_charge: Floats,
    ) -> tuple[float, float, float, float]:
        world = self.world
        found: tuple[float, float, float, float] = kernels.sweep(
            world.next_state,
            world.reward,
            self.row,
            world.environment_policy,
            world.demonstrator,
            world.start,
            world.horizon,
            *self.references,
            self.log_ask,
            self.gate,
            reward_weight,
            multiplier,
            ask_price,
            self.outcome,
            policies,
            act_share,
            act_charge,
        )
        return found


def _compact(
    log_p: Floats, p: Floats, radii: Floats, plausible: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Plausible members first, and no more columns than some state needs."""
    order = np.argsort(~plausible, axis=1, kind="stable")[:, : max(1, int(plausible.sum(axis=1).max()))]
    rows = np.arange(len(p))[:, None]
    return (
        np.ascontiguousarray(log_p[rows, order]),
        np.ascontiguousarray(p[rows, order]),
        np.ascontiguousarray(radii[rows, order]),
        np.ascontiguousarray(plausible[rows, order]),
    )
