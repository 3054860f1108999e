"""Episodes played side by side by a policy that is judged by a critic, and what is to be learned from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from cautious_imitation.finetuning.budgeted_mixture import Decision

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
        acts: ``[n]`` booleans, in which the agent decides next; others wait, or are over. None: wherever it goes on.
    """

    observations: Observations
    rewards: Tensor
    ended: Tensor
    acts: Tensor | None = None


class Episodes(Protocol):
    """Episodes that go on side by side, a decision of the agent at a time; they keep the ledger of what is left."""

    @property
    def n_all(self) -> int:
        """How many episodes all processes play together."""

    @property
    def first(self) -> int:
        """The number of the first one that is played here; those of this process follow it."""

    def begin(self, generator: torch.Generator) -> Observations:
        """Start all episodes anew.

        The agent decides first in all of them. Random numbers are drawn for all ``n_all``, so that an episode is the
        same whichever process plays it.
        """

    def step(self, outcomes: Tensor, charges_nats: Tensor) -> Step:
        """Do ``outcomes [n]``, actions or V for asking, and take ``charges_nats [n]`` off what is left.

        Both count only where the agent decides.
        """


@dataclass(frozen=True)
class Weighing:
    """How rewards and charges weigh against each other, now and later.

    Attributes:
        discount: of rewards, a decision.
        trace: lambda of generalised advantage estimation.
        multiplier: reward that a nat costs; None where a budget is kept, so that its price is what it can still buy.
    """

    discount: float
    trace: float
    multiplier: float | None = None


@dataclass(frozen=True, eq=False)
class Played:
    """All decisions of all episodes of this process, one a row: episode by episode, in the order of time.

    Attributes:
        observations: ``[N, ...]`` by name.
        outcomes: ``[N]``, what was done.
        log_probs: ``[N]``, its log-probability in nats.
        charges: ``[N]`` nats.
        advantages: ``[N]``, how much better it went than expected, in reward.
        returns: ``[N]``, what the critic should have said.
        prices: ``[N]``, what one nat more would have been worth after the decision, in reward: unbiased, and noisy.
        episodes: ``[N]``, which of the n episodes it belongs to.
        entropies: ``[N]`` nats, of the decisions.
        rewards: ``[n]``, of each episode.
        charged: ``[n]`` nats, in each episode.
        questions: ``[n]``, in each episode.
    """

    observations: dict[str, Tensor]
    outcomes: Tensor
    log_probs: Tensor
    charges: Tensor
    advantages: Tensor
    returns: Tensor
    prices: Tensor
    episodes: Tensor
    entropies: Tensor
    rewards: Tensor
    charged: Tensor
    questions: Tensor


@dataclass(frozen=True, eq=False)
class _Moment:
    """The decisions of those episodes ``rows [m]`` that decide at the same time, and what all ``[n]`` were paid."""

    rows: Tensor
    observations: dict[str, Tensor]
    decided: dict[str, Tensor]
    rewards: Tensor


def play(
    policy: torch.nn.Module,
    critic: torch.nn.Module,
    episodes: Episodes,
    generator: torch.Generator,
    weighing: Weighing,
) -> Played:
    """Play all episodes from their beginning to their end; nothing is learned.

    Args:
        policy: from ``Observations`` to a ``Decision``.
        critic: from ``Observations`` to the value ``[n]`` of what is still to come.
        episodes: what is played.
        generator: source of all randomness, on the CPU.
        weighing: what advantages and returns are made of.

    Raises:
        ValueError: if a decision costs more than is left, or a reward is not a number.
    """
    with torch.no_grad():
        observations = episodes.begin(generator)
    n = len(observations["left_nats"])
    own = slice(episodes.first, episodes.first + n)
    acts, ended = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    moments: list[_Moment] = []
    while not bool(ended.all()):
        # A number for every episode of every process, whether it decides or not.
        uniforms = torch.rand(episodes.n_all, generator=generator, dtype=torch.float64)[own]
        rows = acts.nonzero().squeeze(1)
        # Indexing copies, so what follows may write over what was observed.
        here = {name: values[rows.to(values.device)] for name, values in observations.items()}
        decided = _decided(policy, critic, here, uniforms[rows], weighing) if len(rows) else {}
        outcomes, charges = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.float64)
        if len(rows):
            outcomes[rows], charges[rows] = decided["outcomes"].cpu(), decided["charges"].cpu().double()
        with torch.no_grad():
            step = episodes.step(outcomes, charges)
        rewards = torch.where(ended, 0.0, step.rewards)
        if not bool(rewards.isfinite().all()):
            raise ValueError(f"rewards must be numbers, got {float(rewards[~rewards.isfinite()][0])}")
        moments.append(_Moment(rows, here, decided, rewards))
        ended = ended | step.ended
        acts = ~ended if step.acts is None else step.acts & ~ended
        observations = step.observations
    return _gathered(moments, n, weighing)


def _decided(
    policy: torch.nn.Module,
    critic: torch.nn.Module,
    here: dict[str, Tensor],
    uniforms: Tensor,
    weighing: Weighing,
) -> dict[str, Tensor]:
    """What is done in each of m contexts, what it costs, and what the critic says."""
    keeps_budget = weighing.multiplier is None
    left = here["left_nats"].detach().clone().requires_grad_(keeps_budget)
    with torch.set_grad_enabled(keeps_budget):
        decision: Decision = policy({**here, "left_nats": left})
        outcomes = decision.sample(uniforms.to(decision.log_act.device))
        log_probs, charges = decision.log_prob(outcomes), decision.charge_nats
    of_log_prob, of_charge = _slopes(log_probs, left), _slopes(charges, left)
    with torch.no_grad():
        over = charges > left * (1 + _OVERSPENT) + _OVERSPENT
        if bool(over.any()):
            row = int(over.nonzero()[0])
            raise ValueError(
                f"a decision must cost at most the {float(left[row]):.6g} nats that are left, got "
                f"{float(charges[row]):.6g}; the policy has to keep the budget by itself"
            )
        return {
            "outcomes": outcomes,
            "log_probs": log_probs.detach(),
            "charges": charges.detach(),
            "entropies": decision.entropy().detach(),
            "asks": outcomes == decision.ask,
            "values": critic(here),
            "of_log_prob": of_log_prob,
            "of_charge": of_charge,
        }


def _slopes(values: Tensor, left: Tensor) -> Tensor:
    """Derivatives ``[m]`` of ``values [m]`` by what is left; 0 where they do not depend on it."""
    if not values.requires_grad or not left.requires_grad:
        return torch.zeros_like(left)
    (found,) = torch.autograd.grad(values.sum(), left, retain_graph=True, allow_unused=True, materialize_grads=True)
    return found


def _gathered(moments: list[_Moment], n: int, weighing: Weighing) -> Played:
    """Advantages backwards along each episode; then all decisions, in one row each."""
    discount = weighing.discount
    # What stands after the end of an episode: nothing, so nothing leaks back from there.
    value, advantage, price, paid = torch.zeros((4, n))
    rewards, charged, questions = torch.zeros(n), torch.zeros(n, dtype=torch.float64), torch.zeros(n)
    found: list[dict[str, Tensor]] = []
    for moment in reversed(moments):
        rows, decided = moment.rows, moment.decided
        rewards += moment.rewards
        # What is paid between two decisions is due to the first.
        paid += moment.rewards
        if not len(rows):
            continue
        values, charges = decided["values"].cpu().float(), decided["charges"].cpu().double()
        earned = paid[rows]
        if weighing.multiplier is not None:
            earned = earned - weighing.multiplier * charges.float()
        error = earned + discount * value[rows] - values
        here = error + discount * weighing.trace * advantage[rows]
        # With a budget, what follows is what a nat can still buy; a penalty is due at once.
        later = discount * price[rows]
        prices = later if weighing.multiplier is None else torch.full_like(later, weighing.multiplier)
        found.append({"advantages": here, "returns": here + values, "prices": prices})
        value[rows], advantage[rows] = values, here
        # A nat more changes what is done here, and all of it that is not spent here is left for later.
        of_log_prob, of_charge = decided["of_log_prob"].cpu().float(), decided["of_charge"].cpu().float()
        price[rows] = of_log_prob * here + (1 - of_charge) * later
        paid[rows] = 0.0
        charged[rows] += charges
        questions[rows] += decided["asks"].cpu().float()
    found.reverse()
    deciding = [moment for moment in moments if len(moment.rows)]
    episodes = torch.cat([moment.rows for moment in deciding])
    order = episodes.argsort(stable=True)

    def rows_of(parts: list[Tensor]) -> Tensor:
        together = torch.cat(parts)
        return together[order.to(together.device)]

    def told(name: str) -> Tensor:
        return rows_of([moment.decided[name] for moment in deciding])

    device = deciding[0].decided["log_probs"].device
    learned = {name: rows_of([one[name] for one in found]).to(device) for name in ("advantages", "returns", "prices")}
    names = deciding[0].observations
    return Played(
        observations={name: rows_of([moment.observations[name] for moment in deciding]) for name in names},
        outcomes=told("outcomes"),
        log_probs=told("log_probs"),
        charges=told("charges"),
        entropies=told("entropies"),
        episodes=episodes[order],
        rewards=rewards,
        charged=charged,
        questions=questions,
        **learned,
    )
