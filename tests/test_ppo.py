"""PPO on bandits whose optimum is known, and the laws of an update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from cautious_imitation.finetuning import rollout
from cautious_imitation.finetuning.budgeted_mixture import BudgetedMixtureHead, Decision
from cautious_imitation.finetuning.charged_mixture import ChargedBase
from cautious_imitation.finetuning.ppo import PPO, PPOSettings, mlp
from cautious_imitation.finetuning.rollout import Observations, Step

BASE = np.array([0.5, 0.3, 0.15, 0.05])
REWARDS = np.array([0.1, 0.0, 0.6, 1.0])
FAST = PPOSettings(clip=0.2, epochs=8, minibatch=4096, actor_rate=0.03, critic_rate=0.01, max_gradient_norm=10.0)


class Bandits:
    """The same bandit again and again: ``length`` pulls an episode; budgets from a share ``least`` of the whole on."""

    def __init__(self, n: int, length: int, budget_nats: float, least: float = 0.7, ask_reward: float = 0.0) -> None:
        self.n, self.length, self.budget_nats, self.least = n, length, budget_nats, least
        self.n_all, self.first = n, 0
        self.rewards = torch.tensor([*REWARDS, ask_reward], dtype=torch.float32)

    def begin(self, generator: torch.Generator) -> Observations:
        share = self.least + (1 - self.least) * torch.rand(self.n, generator=generator, dtype=torch.float64)
        self.t, self.left = 0, self.budget_nats * share
        return self._seen()

    def step(self, outcomes: torch.Tensor, charges_nats: torch.Tensor) -> Step:
        self.t += 1
        self.left = (self.left - charges_nats).clamp(min=0)
        return Step(self._seen(), self.rewards[outcomes], torch.full((self.n,), self.t >= self.length))

    def _seen(self) -> Observations:
        place = torch.nn.functional.one_hot(torch.full((self.n,), min(self.t, self.length - 1)), self.length)
        return {"features": place.float(), "left_nats": self.left.clone()}


class Policy(torch.nn.Module):
    def __init__(self, n_features: int, mass: float = 1.0) -> None:
        super().__init__()
        self.head = BudgetedMixtureHead(n_features, len(BASE))
        self.minimum = torch.tensor(mass * BASE, dtype=torch.float64).log()

    def forward(self, observations: Observations) -> Decision:
        log_probs = self.minimum.expand(len(observations["left_nats"]), -1)
        return self.head(observations["features"], ChargedBase.of_minimum(log_probs), observations["left_nats"])


class Critic(torch.nn.Module):
    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.network = mlp(n_features + 1, 32)

    def forward(self, observations: Observations) -> torch.Tensor:
        known = torch.cat([observations["features"], observations["left_nats"][:, None].float()], dim=1)
        return self.network(known).squeeze(1)


def trainer(
    length: int = 1,
    n: int = 512,
    budget: float = 0.5,
    seed: int = 0,
    mass: float = 1.0,
    least: float = 0.7,
    **settings: Any,
) -> PPO:
    torch.manual_seed(0)
    fast = PPOSettings(**{**FAST.__dict__, **settings})
    return PPO(Policy(length, mass), Critic(length), Bandits(n, length, budget, least), fast, seed=seed)


def best_reward(budget: float) -> float:
    """The most that a distribution within KL ``budget`` of the base earns: an exponential tilt."""

    def tilted(price: float) -> np.ndarray:
        p = BASE * np.exp(REWARDS / price)
        return p / p.sum()

    def divergence(price: float) -> float:
        p = tilted(price)
        return float((p * np.log(p / BASE)).sum())

    price = brentq(lambda price: divergence(price) - budget, 0.02, 100)
    return float(tilted(price) @ REWARDS)


def earned(made: PPO) -> tuple[float, float]:
    """Expected reward and charge of an episode with the whole budget, exactly."""
    bandits: Any = made.episodes
    whole = Bandits(1, bandits.length, bandits.budget_nats, least=1.0)
    total, spent = 0.0, 0.0
    with torch.no_grad():
        observations = whole.begin(torch.Generator())
        for _ in range(whole.length):
            decision = made.policy(observations)
            total += float(decision.log_probs[0].exp() @ torch.tensor(REWARDS))
            spent += float(decision.charge_nats[0])
            observations = whole.step(torch.zeros(1, dtype=torch.long), decision.charge_nats).observations
    return total, spent


@pytest.mark.parametrize(("length", "budget", "n_updates"), [(1, 0.3, 60), (3, 0.6, 220)])
def test_it_finds_the_optimum_of_a_bandit(length: int, budget: float, n_updates: int) -> None:
    """Of several equal pulls the best is to spend the same on each, since what a nat earns falls."""
    made = trainer(length, budget=budget)
    reports = [made.update() for _ in range(n_updates)]
    base, best = length * float(BASE @ REWARDS), length * best_reward(budget / length)
    total, spent = earned(made)
    assert total <= best + 1e-6
    assert total - base >= 0.95 * (best - base)
    assert spent <= budget + 1e-9
    assert max(report.largest_charge_nats for report in reports) <= budget + 1e-9
    assert abs(reports[0].reward - base) < 0.1 * length
    assert [report.update for report in reports] == list(range(n_updates))


def test_without_the_price_of_a_nat_it_spends_everything_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason why the price is there: what the other test reaches is not reached."""
    monkeypatch.setattr(rollout, "_slopes", lambda values, left: torch.zeros_like(left))
    made = trainer(3, budget=0.6)
    for _ in range(100):
        made.update()
    base, best = 3 * float(BASE @ REWARDS), 3 * best_reward(0.2)
    assert earned(made)[0] - base < 0.8 * (best - base)
    with torch.no_grad():
        first = made.policy(Bandits(1, 3, 0.6, least=1.0).begin(torch.Generator()))
    assert float(first.spend_nats) > 0.9 * 0.6


def test_where_the_base_cannot_be_paid_for_it_asks() -> None:
    made = trainer(2, budget=0.2, mass=0.5)
    report = made.update()
    assert 0 < report.questions < 2
    assert report.largest_charge_nats <= 0.2 + 1e-9


def adjusted_trainer(**settings: Any) -> PPO:
    """One whose policy leaves the base, spends about a third a pull and heeds what is left."""
    made = trainer(3, n=200_000, least=1.0, **settings)
    with torch.no_grad():
        made.policy.head.adjustment.bias.copy_(torch.tensor([0.0, 0.0, 2.0, 3.0]))
        made.policy.head.budget_share.bias.fill_(2.0)
        made.policy.head.budget_share.weight.copy_(torch.tensor([[0.5, -0.5, 1.0]]))
    return made


@pytest.mark.parametrize("critic", [0.0, 0.3], ids=["critic-of-zeros", "wrong-critic"])
def test_the_price_is_the_derivative_of_the_value_whatever_the_critic_says(critic: float) -> None:
    """By differences of exact values: after the first pull, and after the second, which is before the last."""
    made = adjusted_trainer(trace=1.0)
    with torch.no_grad():
        for weights in made.critic.parameters():
            weights.mul_(critic)
    prices = made.play(torch.Generator().manual_seed(0)).prices.reshape(-1, 3).double()
    assert float(prices[:, 2].abs().max()) == 0

    def worth(begin: int, left: float) -> float:
        total, nats = 0.0, torch.tensor([left], dtype=torch.float64)
        with torch.no_grad():
            for t in range(begin, 3):
                place = torch.nn.functional.one_hot(torch.tensor([t]), 3).float()
                decision = made.policy({"features": place, "left_nats": nats})
                total += float(decision.log_probs[0].exp().double() @ torch.tensor(REWARDS))
                nats = nats - decision.charge_nats
        return total

    bandits: Any = made.episodes
    observations = Bandits(1, 3, bandits.budget_nats, least=1.0).begin(torch.Generator())
    for t in range(2):
        with torch.no_grad():
            charge = made.policy(observations).charge_nats
        assert float(charge) > 0.02
        left = float(observations["left_nats"] - charge)
        exact = (worth(t + 1, left + 1e-4) - worth(t + 1, left - 1e-4)) / 2e-4
        error = float(prices[:, t].std()) / len(prices) ** 0.5
        assert error < 0.02 * exact
        assert float(prices[:, t].mean()) == pytest.approx(exact, abs=4 * error)
        observations = {
            "features": torch.nn.functional.one_hot(torch.tensor([t + 1]), 3).float(),
            "left_nats": observations["left_nats"] - charge,
        }


class Unequal(Bandits):
    """Episodes of different lengths: the i-th ends after 1 + i mod 4 pulls, and is paid nonsense after that."""

    def step(self, outcomes: torch.Tensor, charges_nats: torch.Tensor) -> Step:
        step = super().step(outcomes, charges_nats)
        ended = self.t >= 1 + torch.arange(self.n) % 4
        nonsense = torch.where(self.t > 1 + torch.arange(self.n) % 4, 1e6, step.rewards)
        return Step(step.observations, nonsense, ended)


def test_advantages_are_those_of_a_loop_over_single_episodes() -> None:
    made = trainer(4, n=8, discount=0.9, trace=0.8)
    made.episodes = Unequal(8, 4, 0.5)
    with torch.no_grad():
        made.policy.head.adjustment.bias[3] = 2.0
    played = made.play(torch.Generator().manual_seed(0))
    report = made._report(played)
    assert report["decisions"] == len(played.outcomes) == 2 * (1 + 2 + 3 + 4)
    place = played.observations["features"].argmax(1)
    with torch.no_grad():
        values = made.critic(played.observations)
    rewards = torch.tensor([*REWARDS, 0.0], dtype=torch.float32)[played.outcomes]
    left = played.observations["left_nats"].clone().requires_grad_(True)
    decision = made.policy({**played.observations, "left_nats": left})
    (of_log_prob,) = torch.autograd.grad(decision.log_prob(played.outcomes).sum(), left, retain_graph=True)
    (of_charge,) = torch.autograd.grad(decision.charge_nats.sum(), left)
    # Rows come episode by episode, and within an episode step by step.
    rows_of: dict[int, list[int]] = {}
    row = 0
    for i in range(8):
        rows_of[i] = list(range(row, row + 1 + i % 4))
        assert place[rows_of[i]].tolist() == list(range(1 + i % 4))
        assert played.episodes[rows_of[i]].tolist() == [i] * (1 + i % 4)
        row += 1 + i % 4
    for rows in rows_of.values():
        advantage = price = 0.0
        for k in reversed(range(len(rows))):
            last = k == len(rows) - 1
            following = 0.0 if last else float(values[rows[k + 1]])
            error = float(rewards[rows[k]]) + 0.9 * following - float(values[rows[k]])
            advantage = error + 0.9 * 0.8 * (0.0 if last else advantage)
            assert float(played.advantages[rows[k]]) == pytest.approx(advantage, abs=1e-5)
            assert float(played.returns[rows[k]]) == pytest.approx(advantage + float(values[rows[k]]), abs=1e-5)
            assert float(played.prices[rows[k]]) == pytest.approx(0.9 * price, abs=1e-5)
            price = float(of_log_prob[rows[k]]) * advantage + (1 - float(of_charge[rows[k]])) * 0.9 * price
    assert report["reward"] == pytest.approx(float(rewards.sum()) / 8, abs=1e-5)
    with torch.no_grad():
        charges = made.policy(played.observations).charge_nats
    assert report["charge_nats"] > 0.01
    assert report["charge_nats"] == pytest.approx(float(charges.sum()) / 8)


def weights(made: PPO) -> list[torch.Tensor]:
    return [p.detach().clone() for module in (made.policy, made.critic) for p in module.parameters()]


def test_training_that_is_resumed_is_training_that_was_not_interrupted(tmp_path: Path) -> None:
    whole, first, second = trainer(2), trainer(2), trainer(2)
    reports = [whole.update() for _ in range(6)]
    assert [first.update() for _ in range(3)] == reports[:3]
    first.save(tmp_path / "training.safetensors")
    second.load(tmp_path / "training.safetensors")
    assert [second.update() for _ in range(3)] == reports[3:]
    for one, other in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(one, other)


def test_another_seed_is_another_run() -> None:
    assert trainer(2, seed=1).update() != trainer(2).update() == trainer(2).update()


def test_a_checkpoint_of_something_else_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path, made = tmp_path / "training.safetensors", trainer(2)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        made.load(path)
    made.update()
    made.save(path)
    before = weights(made)
    for other, told in (
        (trainer(2, seed=1), "with seed = 0, this one has 1"),
        (trainer(2, clip=0.3), "with settings = "),
        (trainer(3), r"policy\.head\.adjustment\.weight must have shape \(4, 3\), got \(4, 2\)"),
    ):
        kept = weights(other)
        with pytest.raises(ValueError, match=told):
            other.load(path)
        assert all(torch.equal(one, two) for one, two in zip(kept, weights(other), strict=True))
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-50] ^= 1
    for damaged in (
        b"",
        data[:100],
        data[:-40],
        b"x" + data[1:],
        bytes(flipped),
        data.replace(b"n_updates", b"n_opdates"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            made.load(path)
    assert all(torch.equal(one, two) for one, two in zip(before, weights(made), strict=True))


def test_a_decision_that_costs_more_than_is_left_is_an_error() -> None:
    made = trainer(1)

    class Spendthrift(Policy):
        def forward(self, observations: Observations) -> Decision:
            return super().forward({**observations, "left_nats": observations["left_nats"] * 50})

    made.policy = Spendthrift(1)
    with torch.no_grad():
        made.policy.head.adjustment.bias[3] = 9.0
    with pytest.raises(ValueError, match=r"a decision must cost at most the .* nats that are left, got"):
        made.update()


def test_a_reward_that_is_no_number_is_an_error() -> None:
    made = trainer(1)
    made.episodes.rewards[0] = torch.nan  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="rewards must be numbers, got nan"):
        made.update()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 0.0}, "clip must be in its range"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"minibatch": 0}, "minibatch must be at least 1"),
        ({"discount": 1.1}, "discount must be in its range"),
        ({"trace": -0.1}, "trace must be in its range"),
        ({"actor_rate": float("nan")}, "actor_rate must be in its range"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOSettings(**settings)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        trainer(1, seed=-1)
