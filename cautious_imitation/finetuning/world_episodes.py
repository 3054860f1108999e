"""A finite world for policies that learn by trial: the one that the exact solver solves, state by state."""

from __future__ import annotations

import numpy as np
import torch

from cautious_imitation.environments.episodes import Episodes
from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning.budgeted_mixture import BudgetedMixtureHead, Decision
from cautious_imitation.finetuning.charged_mixture import ChargedBase
from cautious_imitation.finetuning.rollout import Observations, Step
from cautious_imitation.imitators import BasePolicy, CautiousImitator

Tensor = torch.Tensor


class WorldEpisodes:
    """Episodes of a finite world side by side, each with a budget that no trajectory exceeds.

    Observations are ``state [n]``, ``share_left [n]`` (of the horizon) and ``left_nats [n]``.

    Args:
        world: the world.
        n: number of episodes.
        budget_nats: the whole budget of an episode.
        ask_price: taken off the reward for each question; the demonstrator acts then.
        least_share: budgets begin uniformly between this share of the whole and the whole.

    Raises:
        ValueError: if a number is out of range.

    >>> from cautious_imitation.environments.until_event import until_event_world
    >>> episodes = WorldEpisodes(until_event_world(horizon=4, event_probability=1.0).world, n=3, budget_nats=2.0)
    >>> episodes.begin(torch.Generator().manual_seed(0))["share_left"]
    tensor([0.7500, 0.7500, 0.7500])
    """

    def __init__(
        self, world: FiniteWorld, n: int, budget_nats: float, *, ask_price: float = 0.0, least_share: float = 0.5
    ) -> None:
        if not 0 <= budget_nats < float("inf"):
            raise ValueError(f"budget_nats must be at least 0 and finite, got {budget_nats!r}")
        if not ask_price >= 0:
            raise ValueError(f"ask_price must be at least 0, got {ask_price!r}")
        if not 0 <= least_share <= 1:
            raise ValueError(f"least_share must be in [0, 1], got {least_share!r}; 1 begins with the whole budget")
        self.world, self.n, self.budget_nats = world, n, float(budget_nats)
        self.ask_price, self.least_share = float(ask_price), float(least_share)
        self._episodes = Episodes(world, n)
        self.n_all, self.first = n, 0

    def begin(self, generator: torch.Generator) -> Observations:
        """Start all episodes anew and play them up to the agent's first turn."""
        share = self.least_share + (1 - self.least_share) * torch.rand(self.n, generator=generator, dtype=torch.float64)
        self._left = self.budget_nats * share
        self._rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        self._episodes.begin(np.arange(self.n), self._rng)
        return self._seen()

    def step(self, outcomes: Tensor, charges_nats: Tensor) -> Step:
        """Act, or ask with V, and play on to the agent's next turn."""
        running = np.flatnonzero(self._episodes.left > 0)
        done = self._episodes.step(running, outcomes.numpy(), self._rng)
        self._left = (self._left - charges_nats).clamp(min=0)
        rewards = torch.from_numpy(done.reward - self.ask_price * done.asked).float()
        return Step(self._seen(), rewards, torch.from_numpy(self._episodes.left == 0))

    def _seen(self) -> Observations:
        return {
            "state": torch.from_numpy(self._episodes.state.copy()),
            "share_left": torch.from_numpy(self._episodes.left / self.world.horizon).float(),
            "left_nats": self._left.clone(),
        }


class _Features(torch.nn.Module):
    """The symbols that an imitator sees and how many are left, as indicators, and what is left of the budget."""

    def __init__(self, world: FiniteWorld, budget_nats: float, width: int) -> None:
        super().__init__()
        n_symbols = int(world.contexts.max()) + 1
        context = torch.nn.functional.one_hot(torch.from_numpy(world.contexts), n_symbols).flatten(1).float()
        self.context: Tensor
        self.register_buffer("context", context, persistent=False)
        self.scale, self.horizon = max(budget_nats, 1e-9), world.horizon
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(context.shape[1] + 1 + (world.horizon + 1) + 1, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, width),
            torch.nn.Tanh(),
        )

    def forward(self, observations: Observations) -> Tensor:
        share_left, budget_left = observations["share_left"], observations["left_nats"] / self.scale
        n_left = (share_left * self.horizon).round().long()
        known = [
            self.context[observations["state"]],
            share_left[:, None],
            # The last decision that still pays may spend all that is left; a step earlier that would be a mistake.
            torch.nn.functional.one_hot(n_left, self.horizon + 1).float(),
            budget_left[:, None].float(),
        ]
        features: Tensor = self.layers(torch.cat(known, dim=1))
        return features


class WorldPolicy(torch.nn.Module):
    """A ``BudgetedMixtureHead`` over what is known in a finite world; begins as the anchor acts.

    Args:
        world: the world.
        anchor: a Bayesian imitator, or a cautious one with pointwise caution.
        budget_nats: the whole budget, for scale.
        width: of the layers.

    Raises:
        ValueError: if the anchor is charged by a set, which changes from state to state.
    """

    def __init__(self, world: FiniteWorld, anchor: BasePolicy, budget_nats: float, width: int = 64) -> None:
        super().__init__()
        if isinstance(anchor, CautiousImitator) and anchor.caution != "pointwise":
            raise ValueError(
                f"anchor must be Bayesian or pointwise to be tabulated, got caution {anchor.caution!r}; "
                "ExactSolver takes minimax anchors"
            )
        # States of the environment are not asked about; what the anchor says there has no meaning.
        minimum = torch.from_numpy(np.ascontiguousarray(anchor.predict(world.contexts).log_probs))
        base = ChargedBase.of_minimum(minimum)
        self.log_base: Tensor
        self.base_nats: Tensor
        self.register_buffer("log_base", base.log_probs, persistent=False)
        self.register_buffer("base_nats", base.base_nats, persistent=False)
        self.features = _Features(world, budget_nats, width)
        self.head = BudgetedMixtureHead(width, world.n_actions)

    def forward(self, observations: Observations) -> Decision:
        """Decide at ``observations``."""
        state = observations["state"]
        base = ChargedBase(self.log_base[state], self.base_nats[state])
        decision: Decision = self.head(self.features(observations), base, observations["left_nats"])
        return decision


class WorldCritic(torch.nn.Module):
    """The value of what is still to come, from the same as the policy knows; arguments as there."""

    def __init__(self, world: FiniteWorld, budget_nats: float, width: int = 128) -> None:
        super().__init__()
        self.features = _Features(world, budget_nats, width)
        self.value = torch.nn.Linear(width, 1)

    def forward(self, observations: Observations) -> Tensor:
        """Values ``[n]``."""
        value: Tensor = self.value(self.features(observations)).squeeze(1)
        return value
