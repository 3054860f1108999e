"""A thousand kills of a run that asks, and as many of one that imitates: nothing is lost, and nothing is there twice.

Three minutes or so.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.imitation_run import check_imitation
from tests.kill_harness import check_answers, check_run, kill_at_random

N_RUNS, N_KILLS = 10, 100


@pytest.mark.parametrize("seed", range(N_RUNS))
def test_nothing_is_lost_or_doubled(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture) -> None:
    n_kills = kill_at_random(tmp_path, n_kills=N_KILLS, seed=seed)
    assert n_kills >= N_KILLS
    found = check_answers(tmp_path)
    check_run(tmp_path, seed)
    with capsys.disabled():
        print(f"\n  {n_kills} kills, {found.n_questions} questions, {found.n_acknowledged} acknowledged", end="")  # noqa: T201


@pytest.mark.parametrize("seed", range(N_RUNS))
def test_an_imitation_loses_and_doubles_nothing(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture) -> None:
    learn = "learn" if seed % 2 else "frozen"
    run = ("tests.imitation_run:go_on", tmp_path, learn)
    n_kills = kill_at_random(tmp_path, n_kills=N_KILLS, seed=seed, run=run, mean_seconds=0.08)
    assert n_kills >= N_KILLS
    n_acknowledged = check_answers(tmp_path).n_acknowledged
    n_used = check_imitation(tmp_path, learn=learn == "learn")
    assert n_used > 0
    with capsys.disabled():
        print(f"\n  {n_kills} kills, {n_acknowledged} acknowledged, {n_used} used, {learn}", end="")  # noqa: T201
