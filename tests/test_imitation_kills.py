"""A run of ``Imitation`` and those who answer it, killed at random: nothing is lost and nothing happens twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import Act, Decline
from cautious_imitation.oracles.replay import replay
from cautious_imitation.types import Actor
from tests.imitation_run import imitation
from tests.kill_harness import check_answers, kill_at_random

N_KILLS = 25


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


@pytest.mark.parametrize("learn", [True, False], ids=["learning", "frozen"])
def test_twenty_five_kills_change_nothing(tmp_path: Path, learn: bool) -> None:
    command = [sys.executable, "-m", "tests.imitation_run", str(tmp_path), *(["learn"] if learn else [])]
    # It takes a second to start: kills should come after that too.
    done = kill_at_random(tmp_path, n_kills=N_KILLS, seed=5, run=command, mean_seconds=0.1)
    assert done >= N_KILLS
    assert check_answers(tmp_path).n_acknowledged > 0
    assert check_imitation(tmp_path, learn=learn) > 0
    if learn:
        return
    # Without learning the order in which answers came does not matter: an unbroken run with them does the same.
    unbroken = imitation(tmp_path / "unbroken", learn=False, oracle=None)
    unbroken._oracle = replay(QueryLog(tmp_path / "questions.db"))
    broken = imitation(tmp_path, learn=False)
    unbroken.advance()
    for one, other in zip(broken.episodes, unbroken.episodes, strict=True):
        n = min(len(one.symbols), len(other.symbols))
        assert n > 0
        np.testing.assert_array_equal(one.symbols[:n], other.symbols[:n])
        assert one.actors[:n] == other.actors[:n]
