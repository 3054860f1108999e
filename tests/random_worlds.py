"""Tiny random worlds, references and policies, and sums over every episode by brute force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning.exact import Solution, TimedPolicy
from cautious_imitation.plausible_sets import PlausibleSet

Floats = NDArray[np.float64]


def random_world(
    rng: np.random.Generator, n_states: int = 4, n_actions: int = 3, horizon: int = 3, *, zeros: float = 0.2
) -> FiniteWorld:
    """A world that starts with the agent and has one state of the environment; ``zeros`` thins both speakers' rows."""
    agent_turn = np.ones(n_states, dtype=np.bool_)
    agent_turn[-1] = False
    return FiniteWorld(
        next_state=rng.integers(n_states, size=(n_states, n_actions)),
        reward=rng.uniform(0, 1, (n_states, n_actions)),
        agent_turn=agent_turn,
        environment_policy=distributions(rng, (n_states, n_actions), zeros),
        demonstrator=distributions(rng, (n_states, n_actions), zeros),
        start=0,
        horizon=horizon,
        contexts=np.arange(n_states)[:, None],
        turn_start=agent_turn & (np.arange(n_states) % 2 == 0),
        end_of_turn=0,
    )


def distributions(rng: np.random.Generator, shape: tuple[int, ...], zeros: float = 0.0) -> Floats:
    """Rows of probabilities, some entries exactly 0."""
    rows = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    rows *= rng.random(shape) >= zeros
    rows[rows.sum(axis=-1) == 0, 0] = 1.0
    normalised: Floats = rows / rows.sum(axis=-1, keepdims=True)
    return normalised


def random_references(
    rng: np.random.Generator, n_rows: int, n_actions: int, n_members: int = 1, *, ask: bool = False, zeros: float = 0.1
) -> PlausibleSet:
    """Single distributions, scaled down to leave mass to asking if ``ask``; member 0 always belongs, others may not."""
    p = distributions(rng, (n_rows, n_members, n_actions), zeros)
    if ask:
        p *= rng.uniform(0.3, 0.95, (n_rows, n_members, 1))
    mask = rng.random((n_rows, n_members)) < 0.8
    mask[:, 0] = True
    with np.errstate(divide="ignore"):
        return PlausibleSet.points(np.log(p), mask)


def random_policy(
    rng: np.random.Generator,
    world: FiniteWorld,
    references: PlausibleSet,
    weight: float = 1.0,
    *,
    asks: bool = True,
    zeros: float = 0.2,
) -> TimedPolicy:
    """Any policy at all, charged its worst KL; it asks where that is infinite."""
    states = np.flatnonzero(world.agent_turn)
    probabilities = distributions(rng, (world.horizon, len(states), world.n_actions), zeros)
    act_share = rng.uniform(0, 1, (world.horizon, len(states))) if asks else np.ones((world.horizon, len(states)))
    act_share[rng.random(act_share.shape) < 0.2] = 1.0
    with np.errstate(divide="ignore"):
        act_charge = np.stack([references.worst_kl(np.log(now)) for now in probabilities])
    if asks:
        act_share[~np.isfinite(act_charge)] = 0.0
    act_charge[act_share == 0] = 0.0
    return TimedPolicy(states, probabilities, act_share, act_charge, weight)


def mixture(*policies: TimedPolicy) -> Solution:
    """The policies as a solver would hand them over; its figures are not used."""
    return Solution(policies, "penalty", 1.0, 0.0, np.nan, np.nan, np.nan, np.nan, 0)


@dataclass(frozen=True)
class Episode:
    """One string of symbols: its probability under the policy and with the demonstrator in its place, its states."""

    symbols: tuple[int, ...]
    states: tuple[int, ...]
    probability: float
    demonstrator_probability: float
    reward: float


def episodes(world: FiniteWorld, policy: TimedPolicy) -> Iterator[Episode]:
    """Every string of ``horizon`` symbols that has positive probability under the policy or the demonstrator."""
    row = {int(s): r for r, s in enumerate(policy.states)}
    for symbols in product(range(world.n_actions), repeat=world.horizon):
        state, probability, demonstrator, reward, states = world.start, 1.0, 1.0, 0.0, []
        for t, symbol in enumerate(symbols):
            states.append(state)
            if world.agent_turn[state]:
                q, pi = policy.act_share[t, row[state]], policy.probabilities[t, row[state]]
                probability *= q * pi[symbol] + (1 - q) * world.demonstrator[state, symbol]
                demonstrator *= world.demonstrator[state, symbol]
            else:
                probability *= world.environment_policy[state, symbol]
                demonstrator *= world.environment_policy[state, symbol]
            reward += world.reward[state, symbol]
            state = int(world.next_state[state, symbol])
        if probability > 0 or demonstrator > 0:
            yield Episode(symbols, tuple(states), float(probability), float(demonstrator), float(reward))
