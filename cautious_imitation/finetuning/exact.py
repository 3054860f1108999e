"""Exact optimisation in finite worlds: the best policy within a budget, with a certificate of how close to optimal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning import sweep_kernels as kernels
from cautious_imitation.finetuning.mixtures import (
    LARGEST_PRICE,
    SMALLEST_MULTIPLIER,
    Column,
    best_mixture,
    best_pair,
    next_multiplier,
)
from cautious_imitation.imitators import BasePolicy
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.regularizers import ExpectedBudget, Penalty, Regularizer

Floats: TypeAlias = NDArray[np.float64]
Status: TypeAlias = Literal["optimal", "near-optimal", "slack", "penalty"]

_MAX_SWEEPS = 80


class BudgetInfeasible(ValueError):
    """No policy meets the budget.

    Attributes:
        least_charge_nats: the smallest expected charge found of any policy that keeps to the ask budget, infinite if
            none is finite; exact but for references of several balls.
    """

    def __init__(self, budget: ExpectedBudget, ask_budget: float | None, least_charge_nats: float) -> None:
        asks = "" if ask_budget is None else f" with at most {ask_budget} questions"
        super().__init__(
            f"nats={budget.nats} is infeasible{asks}: the least expected charge found is "
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
        status: ``"optimal"`` (the budget binds, and the duality gap is within the tolerance), ``"near-optimal"`` (the
            gap is larger: the adversary of several balls is approximate), ``"slack"`` (the budget does not bind) or
            ``"penalty"`` (no budget was asked for).
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
class ExactSolver:
    """Maximise E[reward] - ask_price E[asks] with E[charge] <= budget (and E[asks] <= ask budget), exactly.

    The problem is convex in occupancies. At fixed prices of nats and questions it is a dynamic programme; the prices
    minimise the convex dual, by cutting planes, until the mixture of the policies found so far is within
    ``tolerance`` of the dual bound. At a kink of the dual (the charge jumps there) the mixture of the policies on both
    sides meets the budget exactly.

    Args:
        tolerance: largest duality gap, relative to max(1, |value|), where value is reward less asking costs.

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
            regularizer: expected budget or penalty, accounting, ask price and ask budget.
            ask_probability: ``[rows]`` forced probability of asking at each of the agent's states; then asking is not
                the policy's choice.
            may_ask: False for anchors that never ask.

        Raises:
            BudgetInfeasible: if no policy meets the budget.
            ValueError: if the controller is neither ``ExpectedBudget`` nor ``Penalty``, accounting ``"outcome"`` meets
                a set of several references, which has no ask probability, or settings contradict each other: questions
                forced under ``"forbidden"``, an ask budget with a penalty.
        """
        controller = regularizer.controller
        if not isinstance(controller, ExpectedBudget | Penalty):
            raise ValueError(
                f"controller must be an ExpectedBudget or a Penalty to be solved exactly, got {controller!r}; an "
                "ExpectedBudget has the multiplier that a Lagrangian looks for"
            )
        problem = _Problem.build(world, anchor, regularizer, ask_probability, may_ask)
        if isinstance(controller, Penalty):
            if regularizer.ask_budget is not None:
                raise ValueError(
                    f"ask_budget must be None with a Penalty, which keeps to no budget, got {regularizer.ask_budget}; "
                    "raise ask_price, or use an ExpectedBudget"
                )
            column = problem.sweep(1.0, controller.multiplier, regularizer.ask_price)
            gap = column.bound - (column.reward - column.ask_price * column.asks - column.multiplier * column.charge)
            return self._solution(problem, [column], np.ones(1), column, "penalty", gap, 1)
        return self._meet(problem, controller, regularizer)

    def _meet(self, problem: _Problem, budget: ExpectedBudget, regularizer: Regularizer) -> Solution:
        price, limit = regularizer.ask_price, regularizer.ask_budget
        columns: list[Column] = []
        if limit is not None:
            # They make up the least charge within the ask budget, so some mixture is feasible from the start.
            least, columns = _least_charged(problem, limit)
            if least > budget.nats + 1e-9 * max(1.0, budget.nats):
                raise BudgetInfeasible(budget, limit, least)
            columns.append(problem.sweep(1.0, SMALLEST_MULTIPLIER, price))
        bound, cheapest = np.inf, len(columns) > 0
        mix = best_mixture(columns, price, budget.nats, limit)
        while len(columns) < _MAX_SWEEPS:
            multiplier = next_multiplier(columns, mix, budget.nats) if limit is None else mix.multiplier
            multiplier = min(max(multiplier, SMALLEST_MULTIPLIER), LARGEST_PRICE)
            column = problem.sweep(1.0, multiplier, price + mix.extra)
            columns.append(column)
            bound = min(bound, column.bound + multiplier * budget.nats + mix.extra * (limit or 0.0))
            dual = column.reward - (price + mix.extra) * column.asks - multiplier * (column.charge - budget.nats)
            dual += mix.extra * (limit or 0.0)
            mix = best_mixture(columns, price, budget.nats, limit)
            if mix.missing > 1e-9 * max(1.0, budget.nats):
                if multiplier < LARGEST_PRICE:
                    continue
                if cheapest:
                    break
                columns.append(problem.sweep(0.0, 1.0, 0.0))
                cheapest = True
                mix = best_mixture(columns, price, budget.nats, limit)
            elif dual - mix.value <= self.tolerance * max(1.0, abs(mix.value)):
                break
        if mix.missing > 1e-9 * max(1.0, budget.nats):
            raise BudgetInfeasible(budget, limit, budget.nats + mix.missing)
        slack = mix.multiplier <= 0.0 and mix.extra <= 0.0
        at = Column(1.0, columns[-1].multiplier, price + mix.extra, bound, 0.0, 0.0, 0.0)
        closed = bound - mix.value <= 2 * self.tolerance * max(1.0, abs(mix.value))
        status: Status = "slack" if slack else "optimal" if closed else "near-optimal"
        return self._solution(problem, columns, mix.weights, at, status, bound - mix.value, len(columns))

    @staticmethod
    def _solution(
        problem: _Problem,
        columns: list[Column],
        weights: Floats,
        at: Column,
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


def _least_charged(problem: _Problem, limit: float) -> tuple[float, list[Column]]:
    """Least expected charge within the ask budget, infinite if none is finite, and policies whose mixture has it."""
    columns = [problem.sweep(0.0, 1.0, 0.0), problem.sweep(0.0, SMALLEST_MULTIPLIER, 1.0)]
    if columns[1].asks > limit + 1e-9 or not np.isfinite(columns[1].charge):
        return np.inf, columns
    if columns[0].asks <= limit:
        return columns[0].charge, columns
    while True:
        charge, asks = np.array([(c.charge, c.asks) for c in columns]).T
        weights, extra = best_pair(-charge, asks, max(limit, columns[1].asks))
        column = problem.sweep(0.0, 1.0, extra)
        least = float(charge @ weights)
        if len(columns) == _MAX_SWEEPS or column.charge + extra * (column.asks - limit) >= least - 1e-9:
            return least, columns
        columns.append(column)


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
                    'accounting must be "free" or "forbidden" for a set of several references, got "outcome"; '
                    "a set has no ask probability of its own"
                )
            with np.errstate(divide="ignore"):
                log_ask = np.log(np.maximum(1 - p[:, 0].sum(axis=1), 0.0))
        gate = np.full(len(states), np.nan if may_ask and regularizer.accounting != "forbidden" else 0.0)
        if ask_probability is not None:
            if regularizer.accounting == "forbidden" and np.any(ask_probability):
                raise ValueError('accounting must be "free" or "outcome" with ask_probability, got "forbidden"')
            if ask_probability.shape != gate.shape or not ((ask_probability >= 0) & (ask_probability <= 1)).all():
                raise ValueError(f"ask_probability must hold {len(states)} values in [0, 1], got {ask_probability!r}")
            gate = np.ascontiguousarray(ask_probability, dtype=np.float64)
        return cls(world, states, row, (log_p, p, radii, plausible), log_ask, gate, outcome)

    def sweep(self, reward_weight: float, multiplier: float, ask_price: float) -> Column:
        empty = np.empty((0, 0, 0)), np.empty((0, 0)), np.empty((0, 0))
        found = self._run(reward_weight, multiplier, ask_price, *empty)
        return Column(reward_weight, multiplier, ask_price, *found)

    def policy(self, column: Column, weight: float) -> TimedPolicy:
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
