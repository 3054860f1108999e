"""A thousand kills, in ten runs: nothing is lost and nothing is there twice. A minute or so."""

from __future__ import annotations

from pathlib import Path

import pytest

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
