"""How long one exact solve takes: the best policy within a budget of 2 nats, to the kink of the dual.

    python baselines/solver_speed.py [--horizon N] [--demonstrations N] [--depth N] [--repeats N]

Two worlds, both with 9 acts of two speakers:

- "every context": a state for each of the 18^3 contexts of three symbols, all of which occur, and random speakers who
  look at three symbols.
- "real chats": the dialogue acts that ``compare`` uses, with only the contexts that occur there.

Each imitator learns 10,000 acts of the world's demonstrator at log(1/alpha) = 5. A solve begins with the imitator and
ends with the policy; asking costs 0.05. Medians on one thread, after a first solve to compile.
"cpu" is the share of the wall time that the processor worked on it: well below 1, the machine had other things to do.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from math import exp
from statistics import median
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

from cautious_imitation import CautiousImitator, ContextTree, ExactSolver, ExpectedBudget, Regularizer
from cautious_imitation.environments.dialogue_acts import (
    N_ACTS,
    N_SYMBOLS,
    STUDENT_ENDED,
    dialogue_acts_world,
    sample_demonstrations,
)
from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.imitators import Caution

ALPHA = exp(-5)
BUDGET_NATS = 2.0
ASK_PRICE = 0.05
TARGETS_SECONDS: dict[Caution, float] = {"pointwise": 1.5, "minimax": 6.0}


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    world: str
    states: int
    caution: Caution
    status: str
    sweeps: int
    duality_gap: float
    reward: float
    charge_nats: float
    seconds: float
    cpu_share: float
    target_seconds: float


def every_context(depth: int, horizon: int, rng: np.random.Generator) -> FiniteWorld:
    """Two random speakers, and a state for every string of ``depth`` symbols of either.

    Whose turn it is depends on the whole string, so that every string occurs. Recent symbols matter more to a speaker
    than old ones; the other speaker's first act pays, depending on what was said before.
    """
    index = np.arange(N_SYMBOLS**depth)
    contexts = np.stack([index // N_SYMBOLS**j % N_SYMBOLS for j in range(depth - 1, -1, -1)], axis=1)
    agent_turn = rng.random(len(index)) < 0.5
    reward = np.zeros((len(index), N_ACTS))
    reward[~agent_turn, 0] = rng.random(N_SYMBOLS)[contexts[~agent_turn, -1]]
    symbol = np.arange(N_ACTS) + np.where(agent_turn, 0, N_ACTS)[:, None]
    world = FiniteWorld(
        next_state=(index * N_SYMBOLS % len(index))[:, None] + symbol,
        reward=reward,
        agent_turn=agent_turn,
        environment_policy=speaker(index, depth, rng),
        demonstrator=speaker(index, depth, rng),
        start=len(index) - 1,
        horizon=horizon,
        contexts=contexts,
        turn_start=np.zeros(len(index), dtype=np.bool_),
    )
    missing = world.n_states - world.reachable()[0].n_states
    if missing:
        raise ValueError(f"depth must be at least 2 for every context to occur, got {depth}, where {missing} do not")
    return world


def speaker(index: NDArray[np.int64], depth: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random policy in every context: an average over what follows its last 1, 2, ... symbols."""
    parts = [
        rng.dirichlet(np.full(N_ACTS, 0.3), N_SYMBOLS**d)[index % N_SYMBOLS**d] / 2**d for d in range(1, depth + 1)
    ]
    policy: NDArray[np.float64] = np.sum(parts, axis=0)
    policy /= policy.sum(axis=1, keepdims=True)
    return policy


def measure(name: str, world: FiniteWorld, tree: ContextTree, caution: Caution, repeats: int) -> Figure:
    """Solve with one imitator, again and again."""
    imitator = CautiousImitator(tree, ALPHA, caution)
    regularizer = Regularizer(ExpectedBudget(BUDGET_NATS), ask_price=ASK_PRICE)
    solution = ExactSolver().solve(world.with_horizon(2), imitator, regularizer)
    wall, cpu = [], []
    for _ in range(repeats):
        began, worked = perf_counter(), process_time()
        solution = ExactSolver().solve(world, imitator, regularizer)
        wall.append(perf_counter() - began)
        cpu.append(process_time() - worked)
    return Figure(
        name,
        world.n_states,
        caution,
        solution.status,
        solution.sweeps,
        solution.duality_gap,
        solution.reward,
        solution.charge_nats,
        median(wall),
        median(cpu) / median(wall),
        TARGETS_SECONDS[caution],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds of one exact solve, pointwise and minimax")
    parser.add_argument("--horizon", type=int, default=128, help="symbols in an episode")
    parser.add_argument("--demonstrations", type=int, default=10_000, help="acts that the imitators learn from")
    parser.add_argument("--depth", type=int, default=3, help="symbols that speakers and hypotheses look at")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    depth, horizon = arguments.depth, arguments.horizon
    worlds = {
        "every context": every_context(depth, horizon, np.random.default_rng(0)),
        "real chats": dialogue_acts_world(horizon=horizon, depth=depth),
    }
    print(f"{horizon} symbols, budget {BUDGET_NATS} nats, one thread, median of {arguments.repeats}")
    print(
        f"{'':15}{'states':>7}  {'caution':11}{'status':9}{'sweeps':>6}{'gap':>10}{'reward':>9}{'charge':>9}"
        f"{'seconds':>9}{'cpu':>6}{'target':>8}"
    )
    figures = []
    for name, world in worlds.items():
        tree = ContextTree(N_ACTS, depth, n_context_symbols=N_SYMBOLS, start_symbol=STUDENT_ENDED)
        tree.fit(sample_demonstrations(world, arguments.demonstrations, np.random.default_rng(0)))
        for caution in TARGETS_SECONDS:
            figure = measure(name, world, tree, caution, arguments.repeats)
            figures.append(figure)
            print(
                f"{figure.world:15}{figure.states:7,}  {figure.caution:11}{figure.status:9}{figure.sweeps:6}"
                f"{figure.duality_gap:10.1e}{figure.reward:9.4f}{figure.charge_nats:9.4f}"
                f"{figure.seconds:9.3f}{figure.cpu_share:6.2f}{figure.target_seconds:8.1f}"
            )
    print(json.dumps({"benchmark": "solver_speed", "rows": [asdict(figure) for figure in figures]}))


if __name__ == "__main__":
    main()
