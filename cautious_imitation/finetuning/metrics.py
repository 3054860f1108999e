"""Exact metrics of an optimised policy in a finite world, under the true demonstrator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning import sweep_kernels as kernels
from cautious_imitation.finetuning.exact import Solution, TimedPolicy
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.regularizers import Accounting


@dataclass(frozen=True)
class Metrics:
    """What a policy comes to, per episode; expectations are exact.

    Attributes:
        reward: expected reward.
        charge_nats: expected charge under the accounting.
        free_charge_nats: expected charge with asking free of charge: the certified KL, whatever the accounting.
        kl_demonstrator_nats: KL(law of what is done || law of the demonstrator), given which policy of the mixture was
            drawn; at most that much without knowing it.
        excess_nats: expected sum of max(0, KL(pi || tau) - charge) over the steps that act: what the charge missed.
        coverage: share of the agent's decisions at which the charge bounds KL(pi || tau) for every pi.
        ask_rate: share of the agent's decisions that are questions.
        asks_per_episode: expected questions.
        empty_reply_share: share of the agent's turns that are empty; None if no turn can be.
        largest_charge_nats: largest sum of charges of any trajectory of positive probability.
        visits: ``[rows]`` expected decisions at each of the agent's states.

    ``kl_demonstrator_nats <= free_charge_nats + excess_nats`` always holds.
    """

    reward: float
    charge_nats: float
    free_charge_nats: float
    kl_demonstrator_nats: float
    excess_nats: float
    coverage: float
    ask_rate: float
    asks_per_episode: float
    empty_reply_share: float | None
    largest_charge_nats: float
    visits: NDArray[np.float64]


def evaluate(
    world: FiniteWorld, solution: Solution, references: PlausibleSet, accounting: Accounting = "free"
) -> Metrics:
    """Metrics of ``solution`` in ``world``.

    Args:
        world: the world; its demonstrator is the truth. Any environment over the same states.
        solution: the optimised policy.
        references: what it was charged against, at ``world.contexts[world.agent_turn]``.
        accounting: how asking was charged.

    Raises:
        ValueError: if the policies were made for other states or another horizon.
    """
    states = np.flatnonzero(world.agent_turn)
    with np.errstate(divide="ignore"):
        covered = references.covers(np.log(world.demonstrator[states]))
        log_ask = np.log(np.maximum(1 - np.exp(references.minimum()).sum(axis=-1), 0.0))
    total, visits, largest = np.zeros(kernels.N_EXPECTATIONS), np.zeros(len(states)), 0.0
    for policy in solution.policies:
        _check(policy, world, states)
        out, seen = _expectations(world, policy, covered, log_ask, accounting)
        total += policy.weight * out
        visits += policy.weight * seen
        largest = max(largest, _largest_charge(world, policy, log_ask, accounting))
    decisions, turns = total[kernels.DECISIONS], total[kernels.TURNS]
    return Metrics(
        reward=float(total[kernels.REWARD]),
        charge_nats=float(total[kernels.CHARGE]),
        free_charge_nats=float(total[kernels.FREE_CHARGE]),
        kl_demonstrator_nats=float(total[kernels.KL]),
        excess_nats=float(total[kernels.EXCESS]),
        coverage=float(total[kernels.COVERED] / decisions),
        ask_rate=float(total[kernels.ASKS] / decisions),
        asks_per_episode=float(total[kernels.ASKS]),
        empty_reply_share=float(total[kernels.EMPTY] / turns) if turns > 0 and world.end_of_turn is not None else None,
        largest_charge_nats=largest,
        visits=visits,
    )


def _expectations(
    world: FiniteWorld,
    policy: TimedPolicy,
    covered: NDArray[np.bool_],
    log_ask: NDArray[np.float64],
    accounting: Accounting,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    visits = np.zeros(len(policy.states))
    out = kernels.expectations(
        world.next_state,
        world.reward,
        _rows(world),
        world.environment_policy,
        world.demonstrator,
        world.start,
        world.turn_start,
        -1 if world.end_of_turn is None else world.end_of_turn,
        covered,
        log_ask,
        accounting == "outcome",
        policy.probabilities,
        policy.act_share,
        policy.act_charge,
        visits,
    )
    return out, visits


def _largest_charge(
    world: FiniteWorld, policy: TimedPolicy, log_ask: NDArray[np.float64], accounting: Accounting
) -> float:
    return float(
        kernels.largest_charge(
            world.next_state,
            _rows(world),
            world.environment_policy,
            world.demonstrator,
            world.start,
            log_ask,
            accounting == "outcome",
            policy.probabilities,
            policy.act_share,
            policy.act_charge,
        )
    )


def _rows(world: FiniteWorld) -> NDArray[np.int64]:
    return np.where(world.agent_turn, np.cumsum(world.agent_turn) - 1, -1)


def _check(policy: TimedPolicy, world: FiniteWorld, states: NDArray[np.int64]) -> None:
    if not np.array_equal(policy.states, states):
        raise ValueError(f"solution must be for the world's {len(states)} agent's states, got {len(policy.states)}")
    if len(policy.act_share) != world.horizon:
        raise ValueError(f"solution must be for horizon {world.horizon}, got {len(policy.act_share)}")
