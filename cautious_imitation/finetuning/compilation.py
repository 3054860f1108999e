"""Compile the solver's kernels in a second process, while this one does something else.

The first use on a machine compiles for several seconds, on one core. Compiled code is cached on disk, so another
process can do it in the meantime; where it is cached already, that process finds so and ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning.exact import ExactSolver
from cautious_imitation.finetuning.metrics import evaluate
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.regularizers import ExpectedBudget, Regularizer


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Compile the solver in another process until the block ends; then wait for it.

    Nothing depends on its success: what it did not compile is compiled at its first use.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import solve_smallest; solve_smallest()"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
        process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def solve_smallest() -> float:
    """Solve a world of one state, with all kernels that larger ones use; returns the reward.

    >>> solve_smallest() > 0
    True
    """
    world = FiniteWorld(
        next_state=np.zeros((1, 2), dtype=np.int64),
        reward=np.array([[0.0, 1.0]]),
        agent_turn=np.array([True]),
        environment_policy=np.full((1, 2), 0.5),
        demonstrator=np.full((1, 2), 0.5),
        start=0,
        horizon=1,
        contexts=np.zeros((1, 1), dtype=np.int64),
        turn_start=np.array([True]),
        end_of_turn=0,
    )
    references = PlausibleSet(np.log(np.full((1, 2, 2), 0.5)), np.array([[0.0, 0.1]]), np.array([[True, True]]))
    solution = ExactSolver().solve(world, references, Regularizer(ExpectedBudget(0.2)))
    return evaluate(world, solution, references).reward
