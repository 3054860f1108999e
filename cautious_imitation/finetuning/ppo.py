"""Proximal policy optimisation of policies that keep a budget by construction: no penalty, exact charges.

**The price of a nat.** What is left of the budget is part of the state, and it changes by the exact charge of a
decision: a function of the policy's parameters, not of the action that was drawn. Policy gradients follow actions only
and do not see that spending now leaves less for later; alone they learn to spend everything at once. The missing term
of the gradient is that of the charge, times what the next state would be worth with one nat more. The critic knows it,
if episodes do not all begin with the same budget: its derivative with respect to what is left.

An update plays whole episodes, all of them from their beginning, and learns from what they were paid. So the state of
training between two updates is the weights, the optimisers and a number, and a run that is resumed is the run that was
not interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Protocol, TypeAlias

import torch

from cautious_imitation.finetuning.budgeted_mixture import Decision
from cautious_imitation.finetuning.training_state import read_training, write_training

Tensor = torch.Tensor

Observations: TypeAlias = Mapping[str, Tensor]
"""What is known in each of n contexts, tensors ``[n, ...]`` by name; ``left_nats [n]`` among them."""

_OVERSPENT = 1e-6


@dataclass(frozen=True)
class Step:
    """What one decision in each of n episodes led to.

    Attributes:
        observations: where the episodes stand now.
        rewards: ``[n]``, paid since the decision, the price of asking taken off.
        ended: ``[n]`` booleans, which episodes are over. Those that were over before stay so, and are paid nothing.
    """

    observations: Observations
    rewards: Tensor
    ended: Tensor


class Episodes(Protocol):
    """Episodes that go on side by side, a decision of the agent at a time; they keep the ledger of what is left."""

    def begin(self, generator: torch.Generator) -> Observations:
        """Start all episodes anew, with budgets that differ, so that the critic can tell what a nat is worth."""

    def step(self, outcomes: Tensor, charges_nats: Tensor) -> Step:
        """Do ``outcomes [n]``, actions or V for asking, and take ``charges_nats [n]`` off what is left."""


@dataclass(frozen=True)
class PPOSettings:
    """Settings of the paper's experiment, but for the number of steps an update, which is that of whole episodes.

    Attributes:
        clip: how far the probability of what was done may move in an update, as a ratio.
        epochs: passes over the steps of an update.
        minibatch: steps of a gradient.
        entropy: weight of the entropy of decisions, in reward a nat.
        max_gradient_norm: longer gradients are shortened to it.
        actor_rate, critic_rate: step sizes of Adam.
        discount: of rewards, a decision.
        trace: lambda of generalised advantage estimation.

    Raises:
        ValueError: if one is out of range.

    Source: Cohen, Hutter, Bengio, Russell 2024; Schulman et al. 2017 (PPO) and 2016 (advantages).
    """

    clip: float = 0.1
    epochs: int = 8
    minibatch: int = 8192
    entropy: float = 1e-4
    max_gradient_norm: float = 0.1
    actor_rate: float = 2e-5
    critic_rate: float = 1e-4
    discount: float = 1.0
    trace: float = 0.95

    def __post_init__(self) -> None:
        for name, low, high in (
            ("clip", 0, 1),
            ("entropy", -1e-300, float("inf")),
            ("max_gradient_norm", 0, float("inf")),
            ("actor_rate", 0, float("inf")),
            ("critic_rate", 0, float("inf")),
            ("discount", 0, 1 + 1e-15),
            ("trace", -1e-300, 1 + 1e-15),
        ):
            value = getattr(self, name)
            if not low < value < high:
                raise ValueError(f"{name} must be in its range, above {low:g} and below {high:g}, got {value!r}")
        for name in ("epochs", "minibatch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class UpdateReport:
    """What an update saw and did: means over its episodes, unless it says otherwise.

    Attributes:
        update: which one, from 0.
        reward: of an episode.
        charge_nats: of an episode, exact expectations given the states that were visited.
        largest_charge_nats: of any episode.
        questions: of an episode.
        decisions: of all episodes.
        entropy_nats: of a decision.
        price_of_a_nat: what one nat more would have been worth after a decision, in reward, as the critic says.
        divergence_nats: from the policy that played to the one that came out, estimated on what was done.
        clipped: share of decisions whose ratio was outside of the clip in the last epoch.
    """

    update: int
    reward: float
    charge_nats: float
    largest_charge_nats: float
    questions: float
    decisions: int
    entropy_nats: float
    price_of_a_nat: float
    divergence_nats: float
    clipped: float


@dataclass(frozen=True)
class _Moment:
    """One decision in each of n episodes."""

    observations: dict[str, Tensor]
    outcomes: Tensor
    log_probs: Tensor
    values: Tensor
    prices: Tensor
    rewards: Tensor
    running: Tensor


@dataclass(frozen=True)
class Played:
    """All decisions of all episodes, one a row.

    Attributes:
        observations: ``[N, ...]`` by name.
        outcomes: ``[N]``, what was done.
        log_probs: ``[N]``, its log-probability in nats.
        advantages: ``[N]``, how much better it went than expected, in reward.
        returns: ``[N]``, what the critic should have said.
        prices: ``[N]``, what one nat more would have been worth after the decision, in reward.
    """

    observations: dict[str, Tensor]
    outcomes: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    prices: Tensor


class PPO:
    """Trains a policy and a critic on episodes.

    Args:
        policy: a module from ``Observations`` to a ``Decision``, such as one around ``BudgetedMixtureHead``. Its
            decisions never cost more than ``left_nats``; one that does is an error.
        critic: a module from ``Observations`` to the value ``[n]`` of what is still to come.
        episodes: what is played.
        settings: of the optimisation.
        seed: of episodes and decisions; those of an update depend on the seed and its number only.

    Raises:
        ValueError: if ``seed`` is negative.
    """

    def __init__(
        self,
        policy: torch.nn.Module,
        critic: torch.nn.Module,
        episodes: Episodes,
        settings: PPOSettings | None = None,
        *,
        seed: int = 0,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed!r}")
        self.policy, self.critic, self.episodes = policy, critic, episodes
        self.settings = PPOSettings() if settings is None else settings
        self.seed, self.n_updates = seed, 0
        self.actor_optimizer = torch.optim.Adam(policy.parameters(), self.settings.actor_rate)
        self.critic_optimizer = torch.optim.Adam(critic.parameters(), self.settings.critic_rate)

    def update(self) -> UpdateReport:
        """Play all episodes once and learn from them.

        Raises:
            ValueError: if a decision costs more than is left, or a reward is not a number.
        """
        # A prime apart, so that nearby seeds do not share the numbers of nearby updates.
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.n_updates)
        played, report = self.play(generator)
        divergence, clipped = self._learn(played, generator)
        self.n_updates += 1
        return UpdateReport(**report, divergence_nats=divergence, clipped=clipped)

    def play(self, generator: torch.Generator) -> tuple[Played, dict[str, Any]]:
        """Play all episodes from their beginning to their end; nothing is learned.

        Returns:
            What was played, and what an ``UpdateReport`` says about it.

        Raises:
            ValueError: as ``update``.
        """
        with torch.no_grad():
            observations = self.episodes.begin(generator)
        n = len(observations["left_nats"])
        spent, paid, asked = torch.zeros(n, dtype=torch.float64), torch.zeros(n), torch.zeros(n)
        running = torch.ones(n, dtype=torch.bool)
        moments: list[_Moment] = []
        entropy = 0.0
        while bool(running.any()):
            # What follows may write over what was observed.
            here = {name: values.clone() for name, values in observations.items()}
            values, prices = self._judged(here)
            with torch.no_grad():
                decision: Decision = self.policy(here)
                outcomes = decision.sample(generator)
                self._check_charge(decision.charge_nats, here["left_nats"], running)
                charges = torch.where(running, decision.charge_nats, 0.0)
                step = self.episodes.step(outcomes, charges)
            if not bool(step.rewards.isfinite().all()):
                raise ValueError(f"rewards must be numbers, got {float(step.rewards[~step.rewards.isfinite()][0])}")
            log_probs = decision.log_prob(outcomes)
            moments.append(_Moment(here, outcomes, log_probs, values, prices, step.rewards, running.clone()))
            entropy += float(decision.entropy()[running].sum())
            spent += charges.double()
            paid += torch.where(running, step.rewards, 0.0)
            asked += running & (outcomes == decision.ask)
            running = ~step.ended
            observations = step.observations
        played = self._gathered(moments)
        return played, {
            "update": self.n_updates,
            "reward": float(paid.mean()),
            "charge_nats": float(spent.mean()),
            "largest_charge_nats": float(spent.max()),
            "questions": float(asked.mean()),
            "decisions": len(played.outcomes),
            "entropy_nats": entropy / len(played.outcomes),
            "price_of_a_nat": float(played.prices.mean()),
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write all there is to training between two updates to one file; see ``write_training``."""
        write_training(path, self._parts(), {**self._fixed(), "n_updates": self.n_updates})

    def load(self, path: str | PathLike[str]) -> None:
        """Take up what ``save`` wrote, for the same policy, critic, seed and settings; see ``read_training``."""
        self.n_updates = read_training(path, self._parts(), self._fixed())["n_updates"]

    def _parts(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        return {
            "policy": self.policy,
            "critic": self.critic,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
        }

    def _fixed(self) -> dict[str, Any]:
        return {"seed": self.seed, "settings": asdict(self.settings)}

    def _judged(self, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The critic's values ``[n]``, and their derivatives by what is left ``[n]``."""
        left = observations["left_nats"].detach().clone().requires_grad_(True)
        values = self.critic({**observations, "left_nats": left})
        (prices,) = torch.autograd.grad(values.sum(), left)
        return values.detach(), prices.to(values.dtype)

    def _check_charge(self, charges: Tensor, left: Tensor, running: Tensor) -> None:
        over = running & (charges > left * (1 + _OVERSPENT) + _OVERSPENT)
        if bool(over.any()):
            row = int(over.nonzero()[0])
            raise ValueError(
                f"a decision must cost at most the {float(left[row]):.6g} nats that are left, got "
                f"{float(charges[row]):.6g}; the policy has to keep the budget by itself"
            )

    def _gathered(self, moments: list[_Moment]) -> Played:
        """Advantages backwards along each episode; then all decisions that were made, in one row each."""
        settings = self.settings
        running = torch.stack([moment.running for moment in moments])
        values = torch.where(running, torch.stack([moment.values for moment in moments]), 0.0)
        rewards = torch.where(running, torch.stack([moment.rewards for moment in moments]), 0.0)
        prices = torch.where(running, torch.stack([moment.prices for moment in moments]), 0.0)
        nothing = torch.zeros_like(values[:1])
        # After its end an episode has neither value nor price, so nothing leaks back from there.
        errors = rewards + settings.discount * torch.cat([values[1:], nothing]) - values
        advantages, following = torch.zeros_like(values), nothing[0]
        for t in reversed(range(len(moments))):
            following = torch.where(running[t], errors[t] + settings.discount * settings.trace * following, 0.0)
            advantages[t] = following
        names = moments[0].observations
        return Played(
            {name: torch.cat([moment.observations[name][moment.running] for moment in moments]) for name in names},
            torch.cat([moment.outcomes[moment.running] for moment in moments]),
            torch.cat([moment.log_probs[moment.running] for moment in moments]),
            advantages[running],
            (advantages + values)[running],
            settings.discount * torch.cat([prices[1:], nothing])[running],
        )

    def _learn(self, played: Played, generator: torch.Generator) -> tuple[float, float]:
        """Clipped policy gradients and a regression of the returns; divergence and share clipped of the last epoch."""
        settings, n = self.settings, len(played.outcomes)
        scale = played.advantages.std(unbiased=False) + 1e-8
        advantages, prices = (played.advantages - played.advantages.mean()) / scale, played.prices / scale
        divergence = clipped = 0.0
        for _ in range(settings.epochs):
            order = torch.randperm(n, generator=generator)
            divergence = clipped = 0.0
            for rows in torch.split(order, settings.minibatch):
                some = {name: values[rows] for name, values in played.observations.items()}
                decision: Decision = self.policy(some)
                log_ratio = decision.log_prob(played.outcomes[rows]) - played.log_probs[rows]
                ratio = log_ratio.exp()
                gain = advantages[rows] * ratio
                held = advantages[rows] * ratio.clamp(1 - settings.clip, 1 + settings.clip)
                cost = prices[rows] * decision.charge_nats
                loss = (cost - torch.minimum(gain, held) - settings.entropy * decision.entropy()).mean()
                _descend(self.actor_optimizer, loss, settings.max_gradient_norm)
                _descend(
                    self.critic_optimizer,
                    (self.critic(some) - played.returns[rows]).square().mean(),
                    settings.max_gradient_norm,
                )
                with torch.no_grad():
                    share = len(rows) / n
                    divergence += share * float((ratio - 1 - log_ratio).mean())
                    clipped += share * float(((ratio - 1).abs() > settings.clip).float().mean())
        return divergence, clipped


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, max_gradient_norm: float) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    optimizer.step()


def mlp(n_inputs: int, width: int = 128) -> torch.nn.Sequential:
    """The paper's critic: two layers of tanh, and a value."""
    return torch.nn.Sequential(
        torch.nn.Linear(n_inputs, width),
        torch.nn.Tanh(),
        torch.nn.Linear(width, width),
        torch.nn.Tanh(),
        torch.nn.Linear(width, 1),
    )
