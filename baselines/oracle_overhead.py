"""What it costs a decision that does not ask that there is somebody to ask.

The chain of combinators around an oracle is built once, when it is assigned, and is not touched by a decision that does
not ask. What is left is to see that nothing is asked. Both are measured with an imitator that never asks, against its
prediction and the drawing of an action: single decisions through ``act``, and whole runs through ``Imitation``, whose
bookkeeping (episodes, actors, learning, state) counts as part of the oracle's path.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cautious_imitation import BayesianImitator, ContextTree, Demonstrations, Imitation, QueryLog
from cautious_imitation.environments.dialogue_acts import STUDENT_ENDED
from cautious_imitation.oracles.combinators import cached, first_of, with_budget, with_retry, with_timeout
from cautious_imitation.oracles.function import Answerer
from cautious_imitation.oracles.protocol import Query
from cautious_imitation.oracles.replay import recorded
from cautious_imitation.sampling import draw

N_DECISIONS, ROUNDS = 300, 41
N_EPISODES, HORIZON = 64, 128
TARGET = "(target: at most +20)"


def answer(query: Query) -> int:
    return query.context[-1] % query.n_actions


def chain(log: QueryLog) -> Answerer:
    return recorded(cached(first_of(with_retry(with_timeout(with_budget(answer, 10**9), 60)), answer)), log)


def paired(first: Callable[[], object], second: Callable[[], object], n: int) -> tuple[float, float]:
    """Median microseconds for one of ``n``: of the first, and by how much the second takes longer, in turns."""
    times = np.empty((ROUNDS, 2))
    for row in times:
        for column, work in enumerate((first, second)):
            began = time.perf_counter()
            work()
            row[column] = 1e6 * (time.perf_counter() - began) / n
    return float(np.median(times[:, 0])), float(np.median(times[:, 1] - times[:, 0]))


def main() -> None:
    chats = Demonstrations.dialogue_acts()
    tree = ContextTree(9, depth=3, n_context_symbols=18, start_symbol=STUDENT_ENDED).fit(chats)
    contexts = list(np.random.default_rng(0).integers(18, size=(N_DECISIONS, 3)))
    with tempfile.TemporaryDirectory() as folder:
        log = QueryLog(Path(folder) / "questions.db")
        imitator = BayesianImitator(tree, oracle=chain(log))
        rng = np.random.default_rng(0)

        def predicts_and_draws() -> None:
            for context in contexts:
                draw(imitator.predict(context), rng.random(1))

        def acts() -> None:
            for context in contexts:
                imitator.act(context, rng)

        alone, more = paired(predicts_and_draws, acts, N_DECISIONS)
        print(f"act: {alone:.1f} microseconds to predict and draw, {more:+.1f} with a chain of oracles {TARGET}")

        def predicts_and_draws_in_batches() -> None:
            symbols = np.zeros((N_EPISODES, HORIZON), dtype=np.int64)
            for position in range(HORIZON):
                symbols[:, position] = draw(imitator.predict(symbols[:, :position]), rng.random(N_EPISODES)).symbols

        def runs() -> None:
            run = Imitation(
                imitator, lambda symbols, rng: (), n_episodes=N_EPISODES, horizon=HORIZON, seed=0, log=log, learn=False
            )
            assert run.advance()

        alone, more = paired(predicts_and_draws_in_batches, runs, N_EPISODES * HORIZON)
        print(f"Imitation: {alone:.1f} microseconds to predict and draw {N_EPISODES} at a time, {more:+.1f} {TARGET}")


if __name__ == "__main__":
    main()
