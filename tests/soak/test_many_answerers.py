"""Fifty people at one queue of ten thousand questions: each is answered once, and nobody waits for the file.

Less than a minute on two cores. Times depend on what else the machine does; "make soak" prints them.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import Act, PlausibleAction, Query

N_ANSWERERS, N_QUESTIONS, N_ACTIONS = 50, 10_000, 50
MOST_MS = 50.0
ROOT = Path(__file__).parents[2]


def answer_all(path: Path, name: str, think_seconds: float) -> None:
    """One answerer, as a process: claims and answers until nothing is open, and prints how long each took."""
    rng, times = random.Random(name), list[tuple[float, float]]()
    log = QueryLog(path)
    print("ready", flush=True)  # noqa: T201 -- to whoever waits for it
    sys.stdin.readline()
    # People do not sit down at the same moment.
    time.sleep(rng.uniform(0, 2 * think_seconds))
    while True:
        began = time.perf_counter()
        query = log.claim(name)
        claimed = time.perf_counter()
        if query is None:
            break
        time.sleep(rng.expovariate(1 / think_seconds) if think_seconds else 0)
        thought = time.perf_counter()
        assert log.answer(query.id, Act((query.context[0] % N_ACTIONS,)), by=name)
        times.append((claimed - began, time.perf_counter() - thought))
    print(json.dumps(times))  # noqa: T201


def told(name: str, seconds: list[float]) -> float:
    """The 95th percentile in ms, which is printed with others."""
    ordered = sorted(seconds)
    at = {share: 1000 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95, 0.99, 1.0)}
    print(f"    {name:17} " + ", ".join(f"{share:.0%} {ms:.1f} ms" for share, ms in at.items()))  # noqa: T201
    return at[0.95]


@pytest.mark.parametrize("think_seconds", [0.0, 0.1], ids=["without thinking", "0.1 s each"])
def test_fifty_answerers(tmp_path: Path, think_seconds: float, capsys: pytest.CaptureFixture) -> None:
    log = QueryLog(tmp_path / "questions.db")
    plausible = tuple(PlausibleAction(action, 0.1, 0.2, 0.3, text="some word") for action in range(5))
    log.post(
        Query(
            (i, *range(30)), n_actions=N_QUESTIONS, id=f"run/{i}", asker="run", plausible=plausible, text="words " * 20
        )
        for i in range(N_QUESTIONS)
    )
    log.close()
    answerers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.soak.test_many_answerers", log.path, f"p{i}", str(think_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(N_ANSWERERS)
    ]
    assert all(answerer.stdout.readline() == "ready\n" for answerer in answerers)
    began = time.perf_counter()
    for answerer in answerers:
        answerer.stdin.write("go\n")
        answerer.stdin.flush()
    times = [pair for answerer in answerers for pair in json.loads(answerer.communicate()[0])]
    wall_seconds = time.perf_counter() - began
    assert all(answerer.returncode == 0 for answerer in answerers)

    assert len(times) == N_QUESTIONS
    entries = log.entries()
    assert len(entries) == N_QUESTIONS
    for i, entry in enumerate(entries):
        assert entry.query.context[0] == i
        assert entry.answer == Act((i % N_ACTIONS,))
    assert sum(log.statistics().by_person.values()) == N_QUESTIONS
    log.close()
    connection = sqlite3.connect(log.path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()

    claims, answers = ([pair[i] for pair in times] for i in range(2))
    with capsys.disabled():
        print(  # noqa: T201
            f"\n  {N_ANSWERERS} who think for {think_seconds:g} s, {N_QUESTIONS} questions: {wall_seconds:.1f} s,"
            f" {2 * N_QUESTIONS / wall_seconds:.0f} operations/s; load of the machine {os.getloadavg()[1]:.1f}"
        )
        told("claim", claims)
        told("answer", answers)
        p95 = told("either", claims + answers)
    # Without thinking all fifty stand in line all the time, so that this is the speed of the machine.
    assert p95 < MOST_MS or not think_seconds


if __name__ == "__main__":
    answer_all(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
