"""One sampled episode of an optimised policy, step by step, for people to read."""

from __future__ import annotations

from typing import Any

import numpy as np

from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning.exact import Solution
from cautious_imitation.types import Actor


def sample_episode(world: FiniteWorld, solution: Solution, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Steps of one episode: ``speaker``, ``act``, ``actor``, ``charge_nats`` and ``ask_probability`` of each.

    The charge is the step's exact expected charge with asking free, nats; 0 for the student's acts.
    """
    weights = np.array([policy.weight for policy in solution.policies])
    policy = solution.policies[int(rng.choice(len(weights), p=weights / weights.sum()))]
    row = {int(state): i for i, state in enumerate(policy.states)}
    names = world.symbol_names or tuple(str(a) for a in range(world.n_actions))
    state, steps = world.start, []
    for t in range(world.horizon):
        if not world.agent_turn[state]:
            probabilities, actor, charge, ask = world.environment_policy[state], Actor.ENVIRONMENT, 0.0, 0.0
        else:
            r = row[state]
            act = float(policy.act_share[t, r])
            acts = rng.random() < act
            probabilities = policy.probabilities[t, r] if acts else world.demonstrator[state]
            actor = Actor.IMITATOR if acts else Actor.DEMONSTRATOR
            charge, ask = (act * float(policy.act_charge[t, r]) if act > 0 else 0.0), 1.0 - act
        action = int(rng.choice(world.n_actions, p=probabilities / probabilities.sum()))
        steps.append(
            {
                "speaker": "agent" if world.agent_turn[state] else "student",
                "act": names[action],
                "actor": actor.value,
                "charge_nats": charge,
                "ask_probability": ask,
            }
        )
        state = int(world.next_state[state, action])
    return steps
