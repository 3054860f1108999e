"""Processes are killed between question and answer; afterwards nothing is lost and nothing is there twice.

``tests/soak`` does the same a thousand times.
"""

from __future__ import annotations

from pathlib import Path

from tests.kill_harness import check_answers, check_run, kill_at_random

N_KILLS = 25


def test_nothing_is_lost_or_doubled_when_everybody_is_killed(tmp_path: Path) -> None:
    assert kill_at_random(tmp_path, n_kills=N_KILLS, seed=0) >= N_KILLS
    found = check_answers(tmp_path)
    check_run(tmp_path, seed=0)
    assert found.n_questions > 0
    assert found.n_acknowledged > 0
