"""A run of ``Imitation`` as a program, to be killed: ``python -m tests.imitation_run FOLDER [learn]``.

It goes on from wherever it was until its episodes have ended, or until there is a file ``stop`` and nothing waits.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.imitators import CautiousImitator
from cautious_imitation.online import Imitation, Partner
from cautious_imitation.oracles.function import Answerer
from tests.kill_harness import N_ACTIONS

N_EPISODES, HORIZON = 6, 10_000


def partner(symbols: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
    """Says a number after every third symbol."""
    return (int(rng.integers(N_ACTIONS)),) if len(symbols) % 4 == 3 else ()


def members() -> list[np.ndarray]:
    """Two of them agree on half of the probability, so that it asks every other time."""
    rng = np.random.default_rng(0)
    shared = rng.dirichlet(np.ones(N_ACTIONS))
    return [np.log(0.5 * shared + 0.5 * rng.dirichlet(np.full(N_ACTIONS, 0.05)) + 1e-12) for _ in range(2)]


def normalised(member: np.ndarray) -> np.ndarray:
    return member - np.logaddexp.reduce(member)


def imitation(folder: Path, *, learn: bool, oracle: Answerer | None = None, horizon: int = HORIZON) -> Imitation:
    """The run in ``folder``, as it is there."""
    hypotheses = FiniteHypotheses([normalised(member) for member in members()], switching_rate=0.05)
    asks: Partner = partner
    return Imitation(
        CautiousImitator(hypotheses, alpha=0.001),
        asks,
        n_episodes=N_EPISODES,
        horizon=horizon,
        seed=0,
        oracle=oracle,
        log=folder / "questions.db",
        folder=folder / "run",
        learn=learn,
        after_decline="act",
    )


def main(folder: Path, learn: bool) -> None:
    run = imitation(folder, learn=learn)
    while not run.advance():
        if (folder / "stop").exists():
            return
        time.sleep(0.002)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "learn" in sys.argv[2:])
