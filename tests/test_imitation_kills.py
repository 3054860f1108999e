"""A run of ``Imitation`` and those who answer it, killed at random: nothing is lost and nothing happens twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.imitation_run import Recalling, check_imitation, imitation
from tests.kill_harness import check_answers, kill_at_random

N_KILLS = 25


@pytest.mark.parametrize("learn", [True, False], ids=["learning", "frozen"])
def test_twenty_five_kills_change_nothing(tmp_path: Path, learn: bool) -> None:
    asks = ("tests.imitation_run:go_on", tmp_path, "learn" if learn else "frozen")
    done = kill_at_random(tmp_path, n_kills=N_KILLS, seed=5, run=asks, mean_seconds=0.1)
    assert done >= N_KILLS
    assert check_answers(tmp_path).n_acknowledged > 0
    assert check_imitation(tmp_path, learn=learn) > 0
    if learn:
        return
    # Without learning the order in which answers came does not matter: an unbroken run with them does the same.
    broken = imitation(tmp_path, learn=False)
    (tmp_path / "unbroken").mkdir()
    unbroken = imitation(tmp_path / "unbroken", learn=False, oracle=Recalling(broken.log))
    unbroken.advance()
    for one, other in zip(broken.episodes, unbroken.episodes, strict=True):
        n = len(one.symbols)
        assert 0 < n <= len(other.symbols)
        assert one.symbols == other.symbols[:n]
        assert one.actors == other.actors[:n]
