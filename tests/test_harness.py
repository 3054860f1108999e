"""One call from anchor to certified policy: its parts are those of the solver, the metrics and the certificate."""

from __future__ import annotations

import numpy as np
import pytest

from cautious_imitation.environments.dialogue_acts import STUDENT_ENDED, dialogue_acts_world, sample_demonstrations
from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning.exact import BudgetInfeasible, ExactSolver
from cautious_imitation.finetuning.harness import finetune
from cautious_imitation.finetuning.metrics import evaluate
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.imitators import BayesianImitator, CautiousImitator
from cautious_imitation.regularizers import ExpectedBudget, Penalty, Regularizer
from tests.random_worlds import distributions, random_world


@pytest.fixture(scope="module")
def world() -> FiniteWorld:
    return dialogue_acts_world(horizon=16)


@pytest.fixture(scope="module")
def tree(world: FiniteWorld) -> ContextTree:
    chats = sample_demonstrations(world, 5_000, np.random.default_rng(0))
    return ContextTree(9, 3, n_context_symbols=18, start_symbol=STUDENT_ENDED).fit(chats)


@pytest.mark.parametrize("caution", ["pointwise", "minimax"])
def test_a_run_is_solution_metrics_and_certificate(world: FiniteWorld, tree: ContextTree, caution: str) -> None:
    anchor = CautiousImitator(tree, np.exp(-5), caution)  # type: ignore[arg-type]
    regularizer = Regularizer(ExpectedBudget(1.0), ask_price=0.02)
    run = finetune(world, anchor, regularizer)
    references = anchor.references(world.contexts[world.agent_turn])
    by_hand = evaluate(world, ExactSolver().solve(world, references, regularizer), references)
    assert run.metrics.reward == by_hand.reward
    assert run.metrics.charge_nats == pytest.approx(1.0, abs=1e-6)
    assert run.certificate.charge_nats == run.metrics.free_charge_nats
    assert run.certificate.bound_nats == run.metrics.free_charge_nats + run.metrics.excess_nats
    assert run.metrics.kl_demonstrator_nats <= run.certificate.bound_nats
    assert (run.certificate.alpha, run.certificate.status) == (np.exp(-5), "measured")


def test_minimax_caution_earns_more_at_the_same_budget(world: FiniteWorld, tree: ContextTree) -> None:
    """The same guarantee, never a dearer one: what the pointwise anchor allows, the minimax anchor allows too."""
    regularizer = Regularizer(ExpectedBudget(1.0), ask_price=0.05)
    pointwise, minimax = (
        finetune(world, CautiousImitator(tree, np.exp(-5), caution), regularizer)
        for caution in ("pointwise", "minimax")
    )

    def value(run: object) -> float:
        return run.solution.reward - 0.05 * run.solution.asks  # type: ignore[attr-defined, no-any-return]

    assert value(minimax) >= value(pointwise)
    assert minimax.metrics.ask_rate < pointwise.metrics.ask_rate


def test_a_bayesian_imitator_never_asks(world: FiniteWorld, tree: ContextTree) -> None:
    run = finetune(world, BayesianImitator(tree), Regularizer(ExpectedBudget(2.0)))
    assert run.metrics.ask_rate == run.solution.asks == 0
    assert run.metrics.charge_nats == pytest.approx(2.0, abs=1e-6)
    assert run.certificate.alpha is None


def test_a_larger_budget_is_never_worth_less() -> None:
    rng = np.random.default_rng(0)
    world = random_world(rng, zeros=0.0)
    hypotheses = FiniteHypotheses([np.log(distributions(rng, (4, 3))) for _ in range(3)], start_symbol=0)
    anchor = CautiousImitator(hypotheses, 0.01, "minimax")
    rewards = [finetune(world, anchor, Regularizer(ExpectedBudget(b))).solution.reward for b in (0.0, 0.01, 0.1, 1, 9)]
    assert (np.diff(rewards) >= -1e-7).all()
    assert rewards[-1] > rewards[0] + 0.1


def test_defaults_and_penalties() -> None:
    rng = np.random.default_rng(0)
    world = random_world(rng, zeros=0.0)
    anchor = CautiousImitator(FiniteHypotheses([np.log(distributions(rng, (4, 3)))], start_symbol=0), 0.5)
    default, two_nats = finetune(world, anchor), finetune(world, anchor, Regularizer(ExpectedBudget(2.0)))
    assert default.solution.reward == two_nats.solution.reward
    assert finetune(world, anchor, optimizer=ExactSolver(1e-3)).solution.reward >= default.solution.reward - 2e-3
    assert finetune(world, anchor, Regularizer(Penalty(0.1))).solution.status == "penalty"


def test_an_infeasible_budget_is_told() -> None:
    rng = np.random.default_rng(0)
    world = random_world(rng, zeros=0.0)
    tables = [np.log(distributions(rng, (4, 3))) for _ in range(2)]
    anchor = CautiousImitator(FiniteHypotheses(tables, start_symbol=0), 0.01)
    with pytest.raises(BudgetInfeasible, match=r"nats=0\.0 is infeasible"):
        finetune(world, anchor, Regularizer(ExpectedBudget(0.0), accounting="forbidden"))
