"""The exact solver against an independent convex programme over occupancies, and against one-state worlds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.special import logsumexp

from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning.exact import BudgetInfeasible, ExactSolver, Solution
from cautious_imitation.finetuning.metrics import evaluate
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.imitators import BayesianImitator, CautiousImitator
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.regularizers import Accounting, ExpectedBudget, Penalty, Regularizer
from tests.random_worlds import Floats, distributions, random_references, random_world

KINDS = ("bayesian", "pointwise", "minimax")


class Programme:
    """The problem in occupancies: x [V] of acting and y of asking, at each time and agent's state."""

    def __init__(
        self,
        world: FiniteWorld,
        references: PlausibleSet,
        accounting: Accounting,
        *,
        ask_probability: Floats | None = None,
        may_ask: bool = True,
    ) -> None:
        states = np.flatnonzero(world.agent_turn)
        row = {int(s): r for r, s in enumerate(states)}
        members = np.exp(references.log_centres)
        n_actions, n_rows = world.n_actions, len(states)
        occupied: list[Any] = [float(s == world.start) for s in range(world.n_states)]
        reward, asks, charge = 0.0, 0.0, 0.0
        self.constraints: list[Any] = []
        for _ in range(world.horizon):
            x = cp.Variable((n_rows, n_actions), nonneg=True)
            y = cp.Variable(n_rows, nonneg=True)
            after: list[Any] = [0.0] * world.n_states
            for s in range(world.n_states):
                r = row.get(s)
                if r is None:
                    done = [occupied[s] * p for p in world.environment_policy[s]]
                else:
                    self.constraints.append(cp.sum(x[r]) + y[r] == occupied[s])
                    done = [x[r, a] + y[r] * world.demonstrator[s, a] for a in range(n_actions)]
                    charge += self._charge(x[r], y[r], members[r][references.plausible[r]], accounting)
                    if ask_probability is not None:
                        self.constraints.append(y[r] == ask_probability[r] * occupied[s])
                    elif accounting == "forbidden" or not may_ask:
                        self.constraints.append(y[r] == 0)
                for a in range(n_actions):
                    reward += world.reward[s, a] * done[a]
                    after[world.next_state[s, a]] += done[a]
            asks += cp.sum(y)
            occupied = after
        self.reward, self.asks, self.charge = reward, asks, charge

    def _charge(self, x: Any, y: Any, members: Floats, accounting: Accounting) -> Any:
        """Largest KL over the members times the probability of being here, as an epigraph."""
        if accounting == "outcome":
            [nu] = members
            members = np.concatenate([nu, [1 - nu.sum()]])[None]
            x = cp.hstack([x, y])
        total, largest = cp.sum(x), cp.Variable()
        for nu in members:
            if (nu <= 1e-14).any():
                self.constraints.append(x[nu <= 1e-14] == 0)
            used = nu > 1e-14
            self.constraints.append(cp.sum(cp.rel_entr(x[used], nu[used] * total)) <= largest)
        return largest

    def best(self, objective: Any, *limits: Any) -> float | None:
        """Maximum of ``objective``; None if the limits cannot be met."""
        problem = cp.Problem(cp.Maximize(objective), [*self.constraints, *limits])
        problem.solve(
            solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9, tol_infeas_abs=1e-9, max_iter=200
        )
        if problem.status == cp.INFEASIBLE:
            return None
        assert problem.status == cp.OPTIMAL, problem.status
        return float(problem.value)

    def least_charge(self, *limits: Any) -> float | None:
        """Least expected charge; None if the limits cannot be met or every charge is infinite."""
        value = self.best(-self.charge, *limits)
        return None if value is None else -value


@dataclass(frozen=True)
class Case:
    world: FiniteWorld
    references: PlausibleSet
    accounting: Accounting
    ask_price: float
    ask_budget: float | None


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % 3]
    accounting: Accounting = ("free", "forbidden", "outcome", "free")[seed % 4]
    if kind == "minimax" and accounting == "outcome":
        accounting = "free"
    n_states, n_actions, horizon = int(rng.integers(3, 5)), int(rng.integers(2, 4)), int(rng.integers(3, 5))
    world = random_world(rng, n_states, n_actions, horizon)
    references = random_references(
        rng, n_states - 1, n_actions, 3 if kind == "minimax" else 1, ask=kind == "pointwise", zeros=0.1
    )
    limited = accounting != "forbidden" and kind != "bayesian" and rng.random() < 0.5
    return Case(
        world,
        references,
        accounting,
        ask_price=float(rng.choice([0.0, 0.05, 0.3])),
        ask_budget=float(rng.uniform(0.2, 1.5)) if limited else None,
    )


def assert_consistent(case: Case, solution: Solution) -> None:
    """What the solver says of its policies is what they come to."""
    metrics = evaluate(case.world, solution, case.references, case.accounting)
    assert sum(p.weight for p in solution.policies) == pytest.approx(1, abs=1e-12)
    assert 1 <= len(solution.policies) <= 3
    assert metrics.reward == pytest.approx(solution.reward, abs=1e-9)
    assert metrics.charge_nats == pytest.approx(solution.charge_nats, abs=1e-9)
    assert metrics.asks_per_episode == pytest.approx(solution.asks, abs=1e-9)
    for policy in solution.policies:
        acts = policy.act_share > 0
        np.testing.assert_allclose(policy.probabilities.sum(axis=-1)[acts], 1, atol=1e-12)
        assert (policy.probabilities[~acts] == 0).all()


@pytest.mark.parametrize("seed", range(50))
def test_the_optimum_is_that_of_the_convex_programme(seed: int) -> None:
    case = random_case(seed)
    programme = Programme(case.world, case.references, case.accounting)
    limits = [] if case.ask_budget is None else [programme.asks <= case.ask_budget]
    least = programme.least_charge(*limits)
    settings: dict[str, Any] = {
        "accounting": case.accounting, "ask_price": case.ask_price, "ask_budget": case.ask_budget
    }  # fmt: skip
    if least is None:
        with pytest.raises(BudgetInfeasible) as caught:
            ExactSolver().solve(case.world, case.references, Regularizer(ExpectedBudget(1.0), **settings))
        assert caught.value.least_charge_nats == np.inf
        return
    budget = least + float(np.random.default_rng(seed).choice([0.01, 0.1, 0.3, 1.0, 4.0]))
    solution = ExactSolver().solve(case.world, case.references, Regularizer(ExpectedBudget(budget), **settings))
    objective = programme.reward - case.ask_price * programme.asks
    expected = programme.best(objective, programme.charge <= budget, *limits)
    assert expected is not None
    assert solution.reward - case.ask_price * solution.asks == pytest.approx(expected, abs=1e-6)
    assert -1e-9 <= solution.duality_gap <= 1e-6 * max(1.0, budget)
    assert solution.charge_nats <= budget + 1e-6
    assert case.ask_budget is None or solution.asks <= case.ask_budget + 1e-6
    binds = abs(solution.charge_nats - budget) <= 1e-6
    asks_bind = case.ask_budget is not None and abs(solution.asks - case.ask_budget) <= 1e-6
    assert binds or asks_bind or solution.status == "slack"
    assert_consistent(case, solution)


def test_the_random_cases_are_of_every_kind() -> None:
    """Or the agreement above would say little."""
    found = []
    for seed in range(50):
        case = random_case(seed)
        regularizer = Regularizer(ExpectedBudget(0.3), accounting=case.accounting, ask_budget=case.ask_budget)
        try:
            solution = ExactSolver().solve(case.world, case.references, regularizer)
        except BudgetInfeasible:
            found.append("infeasible")
        else:
            fractional = any(0 < p.weight < 1 for p in solution.policies)
            found += [solution.status, f"{len(solution.policies)} policies", f"fractional {fractional}"]
    kinds = {"infeasible", "slack", "optimal", "1 policies", "2 policies", "3 policies", "fractional True"}
    assert kinds <= set(found)


@pytest.mark.parametrize("seed", range(12))
def test_an_infeasible_budget_says_what_the_least_charge_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = random_world(rng, zeros=0.0)
    references = random_references(rng, 3, 3, 1 + 2 * (seed % 2), ask=True, zeros=0.0)
    accounting: Accounting = "forbidden" if seed % 3 else "free"
    ask_budget = None if accounting == "forbidden" else 0.4
    programme = Programme(world, references, accounting)
    limits = [] if ask_budget is None else [programme.asks <= ask_budget]
    least = programme.least_charge(*limits)
    assert least is not None
    assert least > 0
    for budget in (0.0, 0.5 * least):
        with pytest.raises(BudgetInfeasible, match=f"nats={budget} is infeasible.*raise the budget") as caught:
            ExactSolver().solve(
                world, references, Regularizer(ExpectedBudget(budget), accounting=accounting, ask_budget=ask_budget)
            )
        assert caught.value.least_charge_nats == pytest.approx(least, abs=1e-6)
    enough = Regularizer(ExpectedBudget(least + 1e-4), accounting=accounting, ask_budget=ask_budget)
    assert ExactSolver().solve(world, references, enough).charge_nats <= least + 1e-4 + 1e-6


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("room", [1e-3, 0.03])
def test_a_budget_just_above_the_least_charge_is_feasible_with_few_questions(seed: int, room: float) -> None:
    rng = np.random.default_rng(seed)
    world, references = random_world(rng, zeros=0.0), random_references(rng, 3, 3, ask=True, zeros=0.0)
    ask_budget = float(rng.uniform(0.1, 1.5))
    programme = Programme(world, references, "free")
    limit = programme.asks <= ask_budget
    least = programme.least_charge(limit)
    assert least is not None
    solution = ExactSolver().solve(world, references, Regularizer(ExpectedBudget(least + room), ask_budget=ask_budget))
    expected = programme.best(programme.reward, programme.charge <= least + room, limit)
    assert solution.reward == pytest.approx(expected, abs=1e-5)
    assert solution.charge_nats <= least + room + 1e-6
    assert solution.asks <= ask_budget + 1e-6


def test_no_finite_charge_at_all() -> None:
    world = bandit([0.0, 1.0], [0.5, 0.5])
    nowhere = PlausibleSet(np.log([[[0.5, 0.5]]]), np.array([[np.inf]]), np.array([[True]]))
    with pytest.raises(BudgetInfeasible, match="least expected charge found is inf") as caught:
        ExactSolver().solve(world, nowhere, Regularizer(ExpectedBudget(10.0), accounting="forbidden"))
    assert caught.value.least_charge_nats == np.inf
    asking = ExactSolver().solve(world, nowhere, Regularizer(ExpectedBudget(0.0)))
    assert (asking.asks, asking.reward, asking.charge_nats) == (1.0, 0.5, 0.0)


def test_an_ask_budget_below_what_is_forced_is_infeasible_whatever_the_charge() -> None:
    world = bandit([0.0, 1.0], [0.5, 0.5])
    references = PlausibleSet.points(np.log([[[0.5, 0.5]]]))
    with pytest.raises(BudgetInfeasible) as caught:
        ExactSolver().solve(
            world, references, Regularizer(ExpectedBudget(1.0), ask_budget=0.2), ask_probability=np.array([0.5])
        )
    assert caught.value.least_charge_nats == np.inf


def bandit(rewards: list[float], demonstrator: list[float]) -> FiniteWorld:
    """One state, one step."""
    n = len(rewards)
    return FiniteWorld(
        next_state=np.zeros((1, n), dtype=np.int64),
        reward=np.array([rewards]),
        agent_turn=np.array([True]),
        environment_policy=np.zeros((1, n)),
        demonstrator=np.array([demonstrator]),
        start=0,
        horizon=1,
        contexts=np.zeros((1, 1), dtype=np.int64),
        turn_start=np.array([True]),
    )


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_at_a_kink_two_policies_meet_the_budget_exactly(share: float) -> None:
    """Asking is worth 0.6; below some price of a nat it pays to act, and the charge jumps from 0 to that policy's."""
    rewards, tau, nu = np.array([0.0, 0.3, 1.0]), np.array([0.2, 0.2, 0.6]), np.array([0.5, 0.3, 0.1])
    ask_value = float(tau @ rewards) - 0.06
    kink = brentq(lambda price: price * logsumexp(rewards / price, b=nu) - ask_value, 1e-2, 10.0, xtol=1e-15)
    pi = nu * np.exp(rewards / kink)
    pi /= pi.sum()
    jump = float(pi @ np.log(pi / nu))
    references = PlausibleSet.points(np.log(nu)[None, None])
    regularizer = Regularizer(ExpectedBudget(share * jump), ask_price=0.06)
    solution = ExactSolver().solve(bandit(rewards.tolist(), tau.tolist()), references, regularizer)
    assert solution.status == "optimal"
    assert solution.multiplier == pytest.approx(kink, rel=1e-6)
    assert solution.charge_nats == pytest.approx(share * jump, abs=1e-9)
    act_shares = {float(p.act_share[0, 0]): p.weight for p in solution.policies}
    assert act_shares == pytest.approx({0.0: 1 - share, 1.0: share}, abs=1e-4)
    value = share * float(pi @ rewards) + (1 - share) * ask_value
    assert solution.reward - 0.06 * solution.asks == pytest.approx(value, abs=1e-7)
    assert abs(solution.duality_gap) <= 1e-7


def test_a_budget_that_does_not_bind_is_slack() -> None:
    references = PlausibleSet.points(np.log([[[0.5, 0.3, 0.2]]]))
    world = bandit([0.0, 0.3, 1.0], [0.2, 0.2, 0.6])
    solution = ExactSolver().solve(world, references, Regularizer(ExpectedBudget(2.0)))
    assert solution.status == "slack"
    assert solution.reward == pytest.approx(1, abs=1e-6)
    assert solution.charge_nats == pytest.approx(np.log(5), abs=1e-4)
    assert 0 <= solution.duality_gap <= 1e-5
    at_limit = ExactSolver().solve(world, references, Regularizer(ExpectedBudget(2.0), ask_budget=0.0))
    assert at_limit.status == "slack"


@pytest.mark.parametrize("seed", range(4))
def test_may_ask_false_is_a_policy_that_never_asks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world, references = random_world(rng, zeros=0.0), random_references(rng, 3, 3, 2, zeros=0.0)
    programme = Programme(world, references, "free", may_ask=False)
    expected = programme.best(programme.reward, programme.charge <= 0.8)
    assert expected is not None
    solution = ExactSolver().solve(world, references, Regularizer(ExpectedBudget(0.8)), may_ask=False)
    forbidden = ExactSolver().solve(world, references, Regularizer(ExpectedBudget(0.8), accounting="forbidden"))
    assert solution.reward == pytest.approx(expected, abs=1e-6)
    assert forbidden.reward == pytest.approx(expected, abs=1e-6)
    assert solution.asks == forbidden.asks == 0
    assert all((p.act_share == 1).all() for p in (*solution.policies, *forbidden.policies))


@pytest.mark.parametrize("multiplier", [1e-6, 0.1])
def test_an_anchor_that_may_not_ask_does_not_under_outcome_accounting_either(multiplier: float) -> None:
    references = PlausibleSet.points(np.log([[[0.6, 0.3]]]))
    world = bandit([0.0, 0.5], [0.1, 0.9])
    regularizer = Regularizer(Penalty(multiplier), accounting="outcome")
    assert ExactSolver().solve(world, references, regularizer, may_ask=False).asks == 0


@pytest.mark.parametrize("seed", range(6))
def test_asking_that_is_forced_happens_at_its_probability(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world, references = random_world(rng, zeros=0.0), random_references(rng, 3, 3, 2, zeros=0.0)
    asked = np.array([0.0, 1.0, rng.uniform()])
    programme = Programme(world, references, "free", ask_probability=asked)
    least = programme.least_charge()
    assert least is not None
    budget = least + 0.1
    expected = programme.best(programme.reward - 0.1 * programme.asks, programme.charge <= budget)
    assert expected is not None
    regularizer = Regularizer(ExpectedBudget(budget), ask_price=0.1)
    solution = ExactSolver().solve(world, references, regularizer, ask_probability=asked)
    assert solution.reward - 0.1 * solution.asks == pytest.approx(expected, abs=1e-6)
    for policy in solution.policies:
        np.testing.assert_array_equal(policy.act_share, np.tile(1 - asked, (world.horizon, 1)))


@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("multiplier", [0.03, 0.5])
def test_a_penalty_maximises_the_lagrangian(seed: int, multiplier: float) -> None:
    case = replace(random_case(seed), ask_budget=None)
    programme = Programme(case.world, case.references, case.accounting)
    expected = programme.best(programme.reward - case.ask_price * programme.asks - multiplier * programme.charge)
    regularizer = Regularizer(Penalty(multiplier), accounting=case.accounting, ask_price=case.ask_price)
    solution = ExactSolver().solve(case.world, case.references, regularizer)
    value = solution.reward - case.ask_price * solution.asks - multiplier * solution.charge_nats
    assert value == pytest.approx(expected, abs=1e-6)
    assert (solution.status, solution.multiplier, solution.ask_price) == ("penalty", multiplier, case.ask_price)
    assert_consistent(case, solution)


def ball_case(seed: int, n_members: int) -> tuple[FiniteWorld, PlausibleSet, Floats]:
    rng = np.random.default_rng(seed)
    rewards = rng.uniform(0, 1, 3)
    # Members near one another, as the leaves along one context path are.
    centres = rng.dirichlet(20 * rng.dirichlet(np.full(3, 3.0)) + 1, (1, n_members))
    radii = rng.uniform(0.01, 0.1, (1, n_members))
    references = PlausibleSet(np.log(centres), radii, np.ones((1, n_members), dtype=np.bool_))
    return bandit(rewards.tolist(), distributions(rng, (3,)).tolist()), references, rewards


def brute_force_best(references: PlausibleSet, rewards: Floats, budget: float) -> float:
    """Largest pi.reward with worst KL <= budget over three actions: along every ray from the least charged policy."""

    def charge(pi: Floats) -> float:
        with np.errstate(divide="ignore"):
            return float(references.worst_kl(np.log(np.maximum(pi, 0.0))[None])[0])

    def from_logits(z: Floats) -> Floats:
        return np.exp(np.append(z, 0.0) - logsumexp(np.append(z, 0.0)))

    start = minimize(lambda z: charge(from_logits(z)), np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-10})
    inner = from_logits(start.x)
    assert charge(inner) < budget, "choose a feasible budget"

    def reached(angle: float) -> float:
        """Minus the reward at the farthest point of the ray that the budget allows; the set is convex."""
        direction = np.cos(angle) * np.array([1.0, -1.0, 0.0]) + np.sin(angle) * np.array([1.0, 1.0, -2.0]) / 3**0.5
        edge = min(-p / d for p, d in zip(inner, direction, strict=True) if d < 0) * (1 - 1e-13)
        if charge(inner + edge * direction) > budget:
            edge = brentq(lambda step: charge(inner + step * direction) - budget, 0.0, edge, xtol=1e-15)
        return -float((inner + edge * direction) @ rewards)

    angles = np.linspace(0, 2 * np.pi, 121)
    best = int(np.argmin([reached(a) for a in angles]))
    low, high = angles[best] - 0.06, angles[best] + 0.06
    for _ in range(60):
        third = (high - low) / 3
        if reached(low + third) < reached(high - third):
            high -= third
        else:
            low += third
    return -reached((low + high) / 2)


@pytest.mark.parametrize("seed", range(6))
def test_one_ball_is_solved_exactly(seed: int) -> None:
    world, references, rewards = ball_case(seed, 1)
    budget = float(references.radii_nats[0, 0]) + 0.1
    regularizer = Regularizer(ExpectedBudget(budget), accounting="forbidden")
    solution = ExactSolver().solve(world, references, regularizer)
    assert solution.reward == pytest.approx(brute_force_best(references, rewards, budget), abs=1e-6)
    assert abs(solution.duality_gap) <= 1e-6
    assert solution.charge_nats == pytest.approx(budget, abs=1e-6)


def test_the_gap_of_several_balls_bounds_what_is_lost() -> None:
    gaps, lost = [], []
    for seed in range(8):
        world, references, rewards = ball_case(seed, 3)
        with pytest.raises(BudgetInfeasible) as caught:
            ExactSolver().solve(world, references, Regularizer(ExpectedBudget(0.0), accounting="forbidden"))
        assert caught.value.least_charge_nats >= least_ball_charge(references) - 1e-9
        budget = 0.05 + caught.value.least_charge_nats
        regularizer = Regularizer(ExpectedBudget(budget), accounting="forbidden")
        solution = ExactSolver().solve(world, references, regularizer)
        assert solution.charge_nats <= budget + 1e-6
        metrics = evaluate(world, solution, references, "forbidden")
        assert metrics.charge_nats == pytest.approx(solution.charge_nats, abs=1e-9)
        gaps.append(solution.duality_gap)
        lost.append(brute_force_best(references, rewards, budget) - solution.reward)
    assert (np.array(lost) <= np.array(gaps) + 1e-6).all(), (lost, gaps)
    assert max(lost) > 2e-5, "every case was solved exactly: the bound was not tried"


def least_ball_charge(references: PlausibleSet) -> float:
    def charge(z: Floats) -> float:
        log_pi = np.append(z, 0.0) - logsumexp(np.append(z, 0.0))
        return float(references.worst_kl(log_pi[None])[0])

    starts = np.random.default_rng(0).normal(size=(5, 2))
    return float(min(minimize(charge, z, method="Nelder-Mead", options={"xatol": 1e-10}).fun for z in starts))


def test_a_penalty_over_several_balls_reports_its_gap() -> None:
    lost = []
    for seed in range(6):
        world, references, rewards = ball_case(seed, 3)
        solution = ExactSolver().solve(world, references, Regularizer(Penalty(0.3), accounting="forbidden"))

        def value(z: Floats, references: PlausibleSet = references, rewards: Floats = rewards) -> float:
            log_pi = np.append(z, 0.0) - logsumexp(np.append(z, 0.0))
            return float(0.3 * references.worst_kl(log_pi[None])[0] - np.exp(log_pi) @ rewards)

        starts = np.random.default_rng(seed).normal(size=(5, 2))
        best = max(-minimize(value, z, method="Nelder-Mead", options={"xatol": 1e-10}).fun for z in starts)
        lost.append(best - (solution.reward - 0.3 * solution.charge_nats))
        assert lost[-1] <= solution.duality_gap + 1e-6
    assert max(lost) > 2e-5, "every case was solved exactly: the bound was not tried"


def test_an_anchor_is_the_same_as_its_references() -> None:
    rng = np.random.default_rng(3)
    world = random_world(rng, zeros=0.0)
    tables = [np.log(distributions(rng, (4, 3))) for _ in range(3)]
    hypotheses = FiniteHypotheses(tables, start_symbol=3).fit([[0, 1, 2, 0, 1]])
    for anchor in (BayesianImitator(hypotheses), CautiousImitator(hypotheses, 0.1, "minimax")):
        by_anchor = ExactSolver().solve(world, anchor, Regularizer())
        by_references = ExactSolver().solve(world, anchor.references(world.contexts[world.agent_turn]), Regularizer())
        assert by_anchor.reward == by_references.reward
        assert by_anchor.charge_nats == by_references.charge_nats


def test_solving_twice_gives_the_same_bytes() -> None:
    case = random_case(6)
    first, second = (ExactSolver().solve(case.world, case.references, Regularizer(ExpectedBudget(0.2))) for _ in "ab")
    for one, other in zip(first.policies, second.policies, strict=True):
        for name in ("probabilities", "act_share", "act_charge"):
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert (first.reward, first.duality_gap, first.sweeps) == (second.reward, second.duality_gap, second.sweeps)


def test_bad_arguments_are_named() -> None:
    rng = np.random.default_rng(0)
    world = random_world(rng)
    with pytest.raises(ValueError, match="anchor must have references for 3 agent's states, got 2"):
        ExactSolver().solve(world, random_references(rng, 2, 3), Regularizer())
    members = PlausibleSet.points(np.log(distributions(rng, (3, 2, 3))))
    with pytest.raises(ValueError, match='accounting must be "free" or "forbidden" for a set of several'):
        ExactSolver().solve(world, members, Regularizer(accounting="outcome"))
    references = random_references(rng, 3, 3)
    for wrong in (np.zeros(2), np.full(3, 1.5), np.full(3, np.nan)):
        with pytest.raises(ValueError, match=r"ask_probability must hold 3 values in \[0, 1\]"):
            ExactSolver().solve(world, references, Regularizer(), ask_probability=wrong)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("multiplier", [0.05, 0.5])
def test_forced_asking_under_outcome_accounting(seed: int, multiplier: float) -> None:
    rng = np.random.default_rng(seed)
    world, references = random_world(rng, zeros=0.0), random_references(rng, 3, 3, ask=True, zeros=0.0)
    asked = np.array([0.0, 1.0, rng.uniform()])
    programme = Programme(world, references, "outcome", ask_probability=asked)
    expected = programme.best(programme.reward - 0.1 * programme.asks - multiplier * programme.charge)
    regularizer = Regularizer(Penalty(multiplier), accounting="outcome", ask_price=0.1)
    solution = ExactSolver().solve(world, references, regularizer, ask_probability=asked)
    value = solution.reward - 0.1 * solution.asks - multiplier * solution.charge_nats
    assert value == pytest.approx(expected, abs=1e-6)
    assert abs(solution.duality_gap) <= 1e-9
    assert_consistent(Case(world, references, "outcome", 0.1, None), solution)


def test_questions_cannot_be_forced_where_they_are_forbidden() -> None:
    rng = np.random.default_rng(0)
    world, references = random_world(rng), random_references(rng, 3, 3)
    regularizer = Regularizer(accounting="forbidden")
    with pytest.raises(ValueError, match="accounting"):
        ExactSolver().solve(world, references, regularizer, ask_probability=np.full(3, 0.5))


def test_a_penalty_keeps_to_no_ask_budget_and_says_so() -> None:
    rng = np.random.default_rng(0)
    world, references = random_world(rng), random_references(rng, 3, 3)
    with pytest.raises(ValueError, match="ask_budget"):
        ExactSolver().solve(world, references, Regularizer(Penalty(0.1), ask_budget=0.0))
