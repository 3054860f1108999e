"""A finite world for policies that learn: the same world as elsewhere, a budget that holds, and something to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cautious_imitation.environments.until_event import until_event_world
from cautious_imitation.finetuning.harness import finetune
from cautious_imitation.finetuning.ppo import PPO, PPOSettings
from cautious_imitation.finetuning.world_episodes import WorldCritic, WorldEpisodes, WorldPolicy
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.imitators import BayesianImitator, CautiousImitator
from cautious_imitation.regularizers import ExpectedBudget, Regularizer
from tests.random_worlds import random_world

BUDGET = 1.0
FAST = PPOSettings(clip=0.2, minibatch=4096, actor_rate=3e-3, critic_rate=1e-2, max_gradient_norm=10.0)


def anchor(world: Any, kind: str) -> Any:
    rng = np.random.default_rng(1)
    hypotheses = FiniteHypotheses([np.log(rng.dirichlet(np.full(world.n_actions, 3.0))) for _ in range(2)])
    return (
        BayesianImitator(hypotheses)
        if kind == "bayesian"
        else CautiousImitator(hypotheses, alpha=0.1, caution="pointwise")
    )


def trainer(world: Any, kind: str = "bayesian", n: int = 256, seed: int = 0, **settings: Any) -> PPO:
    torch.manual_seed(0)
    episodes = WorldEpisodes(world, n, BUDGET, **settings)
    return PPO(
        WorldPolicy(world, anchor(world, kind), BUDGET, 16), WorldCritic(world, BUDGET, 16), episodes, FAST, seed=seed
    )


@pytest.fixture(scope="module")
def world() -> Any:
    return random_world(np.random.default_rng(0), horizon=6)


def evaluated(made: PPO, world: Any, n: int = 20_000) -> dict[str, Any]:
    """What the policy does with the whole budget, in many episodes."""
    whole = PPO(made.policy, made.critic, WorldEpisodes(world, n, BUDGET, least_share=1.0), FAST)
    return whole._report(whole.play(torch.Generator().manual_seed(7)))


def exact_reward(world: Any, kind: str, budget: float) -> float:
    return finetune(world, anchor(world, kind), Regularizer(ExpectedBudget(budget))).metrics.reward


def test_it_begins_as_the_anchor_acts(world: Any) -> None:
    found = evaluated(trainer(world), world)
    assert found["reward"] == pytest.approx(exact_reward(world, "bayesian", 0.0), abs=0.03)
    assert found["charge_nats"] == pytest.approx(0, abs=1e-9)
    assert found["questions"] == 0


def test_it_learns_most_of_what_the_exact_solver_finds_and_never_more_than_that(world: Any) -> None:
    """The solver's budget holds in expectation, this one on every trajectory, so the solver may have a little more."""
    made = trainer(world)
    for _ in range(80):
        assert made.update().largest_charge_nats <= BUDGET + 1e-9
    found = evaluated(made, world)
    base, best = exact_reward(world, "bayesian", 0.0), exact_reward(world, "bayesian", BUDGET)
    assert found["largest_charge_nats"] <= BUDGET + 1e-9
    assert found["reward"] <= best + 0.03
    assert found["reward"] - base >= 0.9 * (best - base)


def test_a_cautious_anchor_is_asked_about_and_questions_cost(world: Any) -> None:
    free, dear = (trainer(world, "pointwise", n=4000, ask_price=price) for price in (0.0, 0.5))
    played = [made._report(made.play(torch.Generator().manual_seed(3))) for made in (free, dear)]
    assert played[0]["questions"] == played[1]["questions"] > 0.5
    assert played[0]["reward"] - played[1]["reward"] == pytest.approx(0.5 * played[0]["questions"], abs=1e-4)
    assert played[0]["largest_charge_nats"] <= BUDGET + 1e-9


def test_the_same_seed_gives_the_same_episodes(world: Any) -> None:
    first, second, other = (trainer(world, seed=seed) for seed in (0, 0, 1))
    reports = [[made.update() for _ in range(2)] for made in (first, second, other)]
    assert reports[0] == reports[1] != reports[2]


def test_budgets_begin_between_a_share_and_the_whole(world: Any) -> None:
    episodes = WorldEpisodes(world, 500, 2.0, least_share=0.25)
    left = episodes.begin(torch.Generator().manual_seed(0))["left_nats"]
    assert 0.5 <= float(left.min()) < 0.6
    assert 1.9 < float(left.max()) <= 2.0
    step = episodes.step(torch.zeros(500, dtype=torch.long), torch.full((500,), 0.125, dtype=torch.float64))
    torch.testing.assert_close(step.observations["left_nats"], left - 0.125)


def test_episodes_that_are_over_stay_over_and_are_paid_nothing() -> None:
    world = until_event_world(horizon=2, event_probability=1.0).world
    episodes = WorldEpisodes(world, 3, 1.0)
    episodes.begin(torch.Generator().manual_seed(0))
    ended, paid = [], []
    for _ in range(4):
        step = episodes.step(torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.float64))
        ended.append(step.ended.all().item())
        paid.append(float(step.rewards.sum()))
    assert ended[-2:] == [True, True]
    assert paid[-1] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget_nats": -1.0}, "budget_nats must be at least 0 and finite, got -1.0"),
        ({"budget_nats": float("inf")}, "budget_nats must be at least 0 and finite"),
        ({"budget_nats": 1.0, "ask_price": -1.0}, "ask_price must be at least 0"),
        ({"budget_nats": 1.0, "least_share": 1.5}, r"least_share must be in \[0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range_are_named(world: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldEpisodes(world, 2, **settings)


def test_a_critic_can_tell_every_number_of_symbols_left(world: Any) -> None:
    """What a nat is worth changes from one symbol to the next: at the end it is nothing."""
    torch.manual_seed(0)
    longer = world.with_horizon(32)
    critic = WorldCritic(longer, BUDGET, 32)
    left = torch.arange(33)
    seen = {
        "state": torch.zeros(33, dtype=torch.long),
        "share_left": (left / 32).float(),
        "left_nats": torch.ones(33, dtype=torch.float64),
    }
    sought = 1.0 - 2.0 * (left % 2)
    optimizer = torch.optim.Adam(critic.parameters(), 0.03)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (critic(seen) - sought).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01


def test_a_set_of_hypotheses_is_not_tabulated(world: Any) -> None:
    hypotheses = anchor(world, "bayesian").hypotheses
    with pytest.raises(ValueError, match="anchor must be Bayesian or pointwise to be tabulated, got caution 'minimax'"):
        WorldPolicy(world, CautiousImitator(hypotheses, 0.1, caution="minimax"), BUDGET)
