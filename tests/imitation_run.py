"""A run of ``Imitation`` that is to be killed, and what has to hold of it afterwards.

It goes on from wherever it was until its episodes have ended, or until there is a file ``stop`` and nothing waits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.imitators import CautiousImitator
from cautious_imitation.online import Imitation, Partner
from cautious_imitation.oracles.function import Answerer
from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import Act, Answer, Decline, HelpNeeded, Query
from cautious_imitation.types import Actor
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


def go_on(folder: str, learn: str) -> None:
    """Until it is told to stop and has used an answer, however slow the machine, or the episodes have ended."""
    run = imitation(Path(folder), learn=learn == "learn")
    while not run.advance():
        if (Path(folder) / "stop").exists() and any(episode.questions for episode in run.episodes):
            return
        time.sleep(0.002)


class Recalling:
    """Answers what a log has answers to, and nothing else."""

    def __init__(self, log: QueryLog) -> None:
        self._answers = {entry.query.id: entry.answer for entry in log.entries() if entry.answer is not None}

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        waiting = [query for query in queries if query.id not in self._answers]
        if waiting:
            raise HelpNeeded(waiting)
        return [self._answers[query.id] for query in queries]


def check_imitation(folder: Path, *, learn: bool) -> int:
    """Hold what the run did against the log; how many questions it had answers to."""
    log = QueryLog(folder / "questions.db")
    entries = {entry.query.id: entry for entry in log.entries()}
    run = imitation(folder, learn=learn)
    by_demonstrator = declined = 0
    for entry in entries.values():
        episode = run.episodes[entry.query.episode or 0]
        position = len(entry.query.context)
        assert tuple(episode.symbols[:position]) == entry.query.context, "the question was asked where the run was not"
        if entry.taken_at is None:
            assert episode.waiting == entry.query.id
            continue
        assert entry.status in (Status.ANSWERED, Status.DECLINED)
        if episode.waiting == entry.query.id:
            # Taken, and killed before the state was written: it is taken again.
            continue
        if isinstance(entry.answer, Act):
            by_demonstrator += 1
            if len(episode.symbols) > position:
                assert (episode.symbols[position], episode.actors[position]) == (
                    entry.answer.actions[0],
                    Actor.DEMONSTRATOR,
                )
            else:
                assert episode.reply == [(entry.answer.actions[0], Actor.DEMONSTRATOR)]
        else:
            assert isinstance(entry.answer, Decline)
            declined += 1
    assert sum(e.questions for e in run.episodes) == by_demonstrator + declined
    assert sum(e.declines for e in run.episodes) == declined
    played = sum(actor is Actor.DEMONSTRATOR for e in run.episodes for actor in e.actors)
    assert played + sum(len(e.reply) for e in run.episodes if e.reply and e.reply[0][1] is Actor.DEMONSTRATOR) == (
        by_demonstrator
    )
    learned = json.loads((folder / "run" / "run.json").read_text())["learned"]
    assert len({tuple(place) for place in learned}) == len(learned) == (played if learn else 0)
    return by_demonstrator + declined
