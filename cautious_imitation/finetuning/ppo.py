"""Proximal policy optimisation of policies that keep a budget by construction: no penalty, exact charges.

**The price of a nat.** What is left of the budget is part of the state, and it changes by the exact charge of a
decision: a function of the policy's parameters, not of the action that was drawn. Policy gradients follow actions only
and do not see that spending now leaves less for later; alone they learn to spend everything at once. The missing term
of the gradient is that of the charge, times what the next state would be worth with one nat more.

That price is the derivative of a value by what is left, and taken along what was played, by the same theorem as policy
gradients: a nat more changes what a policy does at once (its score by what is left, times the advantage), and what it
does not spend at once is left for later. In expectation that is the derivative exactly, whatever the critic says, with
far less noise than a critic's own derivative has: rewards differ by much more than what a nat is worth.

An update plays whole episodes, all of them from their beginning, and learns from what they were paid. So the state of
training between two updates is the weights, the optimisers and a number, and a run that is resumed is the run that was
not interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch

from cautious_imitation.finetuning.budgeted_mixture import Decision
from cautious_imitation.finetuning.processes import gathered, rank, sum_gradients, summed
from cautious_imitation.finetuning.rollout import Episodes, Played, Weighing, play
from cautious_imitation.finetuning.training_state import read_training, write_training
from cautious_imitation.regularizers import Multiplier

Tensor = torch.Tensor

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of episodes, as an ``UpdateReport`` has them."""

_MOST_NATS = 20.0
"""What was done and has become impossible is as far away as this, so that a mean says something about the others."""


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
    """What an update saw and did: means over its episodes, those of all processes, unless it says otherwise.

    Attributes:
        update: which one, from 0.
        reward: of an episode.
        reward_quantiles: of episodes, at ``QUANTILES``.
        charge_nats: of an episode, exact expectations given the states that were visited.
        charge_quantiles: of episodes, at ``QUANTILES``.
        largest_charge_nats: of any episode.
        questions: of an episode.
        decisions: of all episodes.
        entropy_nats: of a decision.
        price_of_a_nat: what one nat more would have been worth after a decision, in reward; under a penalty what one
            costs.
        divergence_nats: from the policy that played to the one that came out, estimated on what was done.
        clipped: share of decisions whose ratio was outside of the clip in the last epoch.
    """

    update: int
    reward: float
    reward_quantiles: tuple[float, ...]
    charge_nats: float
    charge_quantiles: tuple[float, ...]
    largest_charge_nats: float
    questions: float
    decisions: int
    entropy_nats: float
    price_of_a_nat: float
    divergence_nats: float
    clipped: float


class PPO:
    """Trains a policy and a critic on episodes.

    Where several processes were started together, each plays its own episodes, and all learn the same from all of them:
    what one process would learn from all, but for the order of sums.

    Args:
        policy: a module from ``Observations`` to a ``Decision``, such as one around ``BudgetedMixtureHead``. Its
            decisions never cost more than ``left_nats``; one that does is an error.
        critic: a module from ``Observations`` to the value ``[n]`` of what is still to come.
        episodes: what is played.
        settings: of the optimisation.
        penalty: what a nat costs in reward, where no budget is kept; it may change from update to update. None: the
            policy keeps a budget, and a nat costs what it could still buy.
        seed: of episodes and decisions; those of an update depend on the seed and its number only.
        rows_at_once: decisions that are looked at together while learning: more take more memory, and nothing else
            changes but the order of sums.

    Raises:
        ValueError: if ``seed`` is negative or ``rows_at_once`` is not positive.
    """

    def __init__(
        self,
        policy: torch.nn.Module,
        critic: torch.nn.Module,
        episodes: Episodes,
        settings: PPOSettings | None = None,
        *,
        penalty: Multiplier | None = None,
        seed: int = 0,
        rows_at_once: int = 1024,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed!r}")
        if rows_at_once < 1:
            raise ValueError(f"rows_at_once must be at least 1, got {rows_at_once!r}")
        self.policy, self.critic, self.episodes = policy, critic, episodes
        self.settings = PPOSettings() if settings is None else settings
        self.penalty, self.multiplier = penalty, None if penalty is None else penalty.begin()
        self.seed, self.n_updates, self.rows_at_once = seed, 0, rows_at_once
        self._actor = [weights for weights in policy.parameters() if weights.requires_grad]
        self.actor_optimizer = torch.optim.Adam(self._actor, self.settings.actor_rate)
        self.critic_optimizer = torch.optim.Adam(critic.parameters(), self.settings.critic_rate)

    def update(self) -> UpdateReport:
        """Play all episodes once and learn from them.

        Raises:
            ValueError: if a decision costs more than is left, or a reward is not a number.
        """
        # A prime apart, so that nearby seeds do not share the numbers of nearby updates.
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.n_updates)
        # How many numbers a process draws while it plays is its own affair; what they learn in, they share.
        order = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        played = self.play(generator)
        report = self._report(played)
        divergence, clipped = self._learn(played, order)
        if self.penalty is not None and self.multiplier is not None:
            self.multiplier = self.penalty.after(self.multiplier, report["charge_nats"])
        self.n_updates += 1
        return UpdateReport(**report, divergence_nats=divergence, clipped=clipped)

    def play(self, generator: torch.Generator) -> Played:
        """Play all episodes from their beginning to their end; nothing is learned. Errors as for ``update``."""
        weighing = Weighing(self.settings.discount, self.settings.trace, self.multiplier)
        return play(self.policy, self.critic, self.episodes, generator, weighing)

    def save(self, path: str | PathLike[str], beside: Mapping[str, Any] | None = None) -> None:
        """Write all there is to training between two updates to one file, and ``beside`` it what JSON can hold.

        Raises:
            OSError: if it cannot be written; what was there stays.
        """
        changing = {"n_updates": self.n_updates, "multiplier": self.multiplier, "beside": dict(beside or {})}
        write_training(path, self._parts(), {**self._fixed(), **changing})

    def load(self, path: str | PathLike[str]) -> dict[str, Any]:
        """Take up what ``save`` wrote, for the same policy, critic, seed and settings; returns what was ``beside``.

        Raises:
            FileNotFoundError, ValueError: as ``read_training``; nothing has changed then.
        """
        state = read_training(path, self._parts(), self._fixed())
        self.n_updates, self.multiplier = state["n_updates"], state["multiplier"]
        beside: dict[str, Any] = state["beside"]
        return beside

    def _parts(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        return {
            "policy": self.policy,
            "critic": self.critic,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
        }

    def _fixed(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "settings": asdict(self.settings),
            "penalty": None if self.penalty is None else repr(self.penalty),
        }

    def _report(self, played: Played) -> dict[str, Any]:
        """What an ``UpdateReport`` says about what was played."""
        rewards, charged, questions = map(gathered, (played.rewards, played.charged, played.questions))
        of_decisions = torch.stack([played.entropies.double().sum(), played.prices.double().sum()]).cpu()
        n = int(summed(torch.tensor(len(played.outcomes))))
        entropy, price = (summed(of_decisions) / n).tolist()
        return {
            "update": self.n_updates,
            "reward": float(rewards.mean()),
            "reward_quantiles": _quantiles(rewards),
            "charge_nats": float(charged.mean()),
            "charge_quantiles": _quantiles(charged),
            "largest_charge_nats": float(charged.max()),
            "questions": float(questions.mean()),
            "decisions": n,
            "entropy_nats": entropy,
            "price_of_a_nat": price,
        }

    def _learn(self, played: Played, generator: torch.Generator) -> tuple[float, float]:
        """Clipped policy gradients and a regression of the returns; divergence and share clipped of the last epoch."""
        settings = self.settings
        scale, mean, n = _spread(played.advantages)
        advantages, prices = (played.advantages - mean) / scale, played.prices / scale
        begin = int(_counts(len(played.outcomes))[: rank()].sum())
        told = torch.zeros(2)
        for _ in range(settings.epochs):
            order = torch.randperm(n, generator=generator)
            told = torch.zeros(2)
            for rows in torch.split(order, settings.minibatch):
                self.actor_optimizer.zero_grad()
                self.critic_optimizer.zero_grad()
                for own in self._pieces(rows - begin, len(played.outcomes)):
                    told += self._add_gradients(played, own, advantages[own], prices[own], len(rows)).cpu() / n
                _descend(self.actor_optimizer, self._actor, settings.max_gradient_norm)
                _descend(self.critic_optimizer, list(self.critic.parameters()), settings.max_gradient_norm)
        divergence, clipped = summed(told).tolist()
        return divergence, clipped

    def _pieces(self, rows: Tensor, n: int) -> Iterator[Tensor]:
        """Those of ``rows`` that this process has, some at a time."""
        own = rows[(rows >= 0) & (rows < n)]
        return iter(torch.split(own, self.rows_at_once)) if len(own) else iter(())

    def _add_gradients(self, played: Played, rows: Tensor, advantages: Tensor, prices: Tensor, n: int) -> Tensor:
        """Add what ``rows`` contribute to the gradients of a mean over n; sums of divergence and of those clipped."""
        clip = self.settings.clip
        rows = rows.to(played.outcomes.device)
        some = {name: values[rows] for name, values in played.observations.items()}
        decision: Decision = self.policy(some)
        log_ratio = decision.log_prob(played.outcomes[rows]) - played.log_probs[rows]
        ratio = log_ratio.exp()
        gain = torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip))
        cost = prices * decision.charge_nats
        loss = (cost - gain - self.settings.entropy * decision.entropy()).sum() / n
        loss = loss + (self.critic(some) - played.returns[rows]).square().sum() / n
        loss.backward()
        with torch.no_grad():
            apart = ratio - 1 - log_ratio.clamp(min=-_MOST_NATS)
            return torch.stack([apart.sum(), ((ratio - 1).abs() > clip).sum()])


def _counts(n: int) -> Tensor:
    """How many decisions each process has, by rank."""
    return gathered(torch.tensor([n]))


def _spread(values: Tensor) -> tuple[float, float, int]:
    """Standard deviation, mean and number of the values of all processes."""
    here = values.double()
    n, total = summed(torch.stack([torch.tensor(len(here), dtype=torch.float64), here.sum().cpu()])).tolist()
    mean = total / n
    variance = float(summed((here - mean).square().sum().cpu())) / n
    return variance**0.5 + 1e-8, mean, int(n)


def _quantiles(values: Tensor) -> tuple[float, ...]:
    found: list[float] = values.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return tuple(found)


def _descend(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], max_gradient_norm: float) -> None:
    sum_gradients(weights)
    torch.nn.utils.clip_grad_norm_(weights, max_gradient_norm)
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
