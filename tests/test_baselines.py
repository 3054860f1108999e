"""The benchmarks run as a user types them, on tiny sizes; how fast things are is for ``make bench`` to say."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cautious_imitation import CompareConfig
from cautious_imitation.divergences import kl
from cautious_imitation.environments.dialogue_acts import dialogue_acts_world
from tests.tiny_folders import write_folder

ROOT = Path(__file__).parents[1]


def figures(name: str, *arguments: str) -> dict[str, Any]:
    """What the benchmark says in its last line."""
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    run = subprocess.run(
        [sys.executable, str(ROOT / "baselines" / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert run.returncode == 0, run.stderr
    *table, last = run.stdout.splitlines()
    assert len(table) > 3
    found: dict[str, Any] = json.loads(last)
    assert found["benchmark"] == name
    return found


@pytest.mark.skipif(os.name != "posix", reason="the memory of a child process is known on POSIX systems only")
def test_compare_speed() -> None:
    settings = ["--set", "grids.main.budgets_nats=[1]", "--set", "grids.main.horizons=[4]"]
    for name in CompareConfig.load().grids:
        settings += ["--set", f"grids.{name}.anchors={'[demonstrator]' if name == 'main' else '[]'}"]
    found = figures("compare_speed", "--repeats", "1", "--kernel-cache", os.environ["NUMBA_CACHE_DIR"], *settings)
    assert [run["kernels"] for run in found["compare"]] == ["in the cache given", "compiled before"]
    assert found["compare"][0]["target_seconds"] == 60
    for run in found["compare"]:
        assert run["seconds"] > 0
        assert 1e7 < run["peak_bytes"] < 1e10
    alone, everything = found["import"]
    assert alone["target_seconds"] == 1
    assert 0 < alone["seconds"] < everything["seconds"]
    assert "numba" in everything["packages"]
    assert "torch" not in alone["packages"] + everything["packages"]


def test_compare_speed_passes_on_what_compare_says() -> None:
    command = [sys.executable, str(ROOT / "baselines" / "compare_speed.py"), "--preset", "dialog"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 1
    assert "preset must be one of" in run.stderr


def test_frontier(tmp_path: Path) -> None:
    size = ["--numbers", "300", "--seeds", "2", "--horizon", "4", "--out", str(tmp_path)]
    found = figures("frontier", *size)
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    rows = {(row["class"], row["anchor"], row["deployment"]): row for row in found["rows"]}
    assert len(rows) == 2 * (3 + 3 + 2)
    for (name, anchor, deployment), row in rows.items():
        assert 0 <= row["ask_rate"] <= 1
        if anchor == "cautious-pointwise" and name != "DirichletTree":
            assert rows[name, "cautious-minimax", deployment]["ask_rate"] <= row["ask_rate"] + 1e-6
    assert {row["class"] for row in found["coverage"]} == {name for name, _, _ in rows}
    assert all(row["uncovered"] == 0 for row in found["coverage"] if row["class"] == "ContextTree, anytime")
    assert figures("frontier", *size) == found, "a second run reads what the first one wrote"


def test_proven_asks() -> None:
    rows = figures("proven_asks", "--number", "500", "--seeds", "2", "--horizon", "4")["rows"]
    assert len(rows) == 3 * 2 * 2
    asks = {(row["rule"], row["deployment"], row["seed"]): row["ask_rate"] for row in rows}
    for (rule, deployment, seed), rate in asks.items():
        assert 0 <= rate <= asks["library", deployment, seed] + 1e-6
        if rule == "known":
            assert asks["known, one context", deployment, seed] < rate
    assert all((row["coverage"], row["excess_nats"]) == (1, 0) for row in rows if row["rule"] == "library")


def test_proven_asks_are_of_likelihood_ratios() -> None:
    sys.path.insert(0, str(ROOT / "baselines"))
    try:
        import proven_asks as bound  # type: ignore[import-not-found,unused-ignore]
    finally:
        sys.path.pop(0)
    chats, world = bound.demonstrations(500, 0), dialogue_acts_world()
    found, start = bound.sets(chats, world), world.contexts[world.start].tolist()
    states = np.flatnonzero(world.agent_turn)
    said: dict[tuple[int, ...], list[int]] = {}
    for sequence in chats.sequences:
        history = start + sequence.tolist()
        for t, symbol in enumerate(sequence.tolist()):
            if symbol < world.n_actions:
                said.setdefault(tuple(history[t : t + 3]), []).append(symbol)
    theta = np.random.default_rng(0).dirichlet(np.ones(world.n_actions), len(states))
    inside = 0
    for row, (state, other) in enumerate(zip(states, theta, strict=True)):
        seen = said.get(tuple(world.contexts[state].tolist()), [])
        ratio = sum(np.log(world.demonstrator[state, a] / other[a]) for a in seen)
        plausible = found["known, one context"]
        radius, centre = plausible.radii_nats[row, -1], plausible.log_centres[row, -1]
        contained = bool(kl(centre, np.log(other)) <= radius)
        assert contained == (ratio <= -np.log(0.05)), "a set holds what the data are not 20 times less probable under"
        inside += contained
        if seen:
            place = list(said).index(tuple(world.contexts[state].tolist())) + 1
            share = 1.5 * np.log(100 + place) - 0.5 * np.log(100) + np.log(2)
            assert found["known"].radii_nats[row, -1] == pytest.approx(radius + share / len(seen))
    assert 10 < inside < len(states) - 10


def test_solver_speed() -> None:
    found = figures("solver_speed", "--horizon", "8", "--demonstrations", "500", "--depth", "2", "--repeats", "1")
    assert [(row["world"], row["caution"]) for row in found["rows"]] == [
        ("every context", "pointwise"),
        ("every context", "minimax"),
        ("real chats", "pointwise"),
        ("real chats", "minimax"),
    ]
    assert [row["target_seconds"] for row in found["rows"]] == [1.5, 6, 1.5, 6]
    for row in found["rows"]:
        assert row["states"] <= 18**2
        assert row["charge_nats"] <= 2 + 1e-6
        assert row["seconds"] > 0
        assert row["sweeps"] >= 1
        assert math.isfinite(row["duality_gap"])
    assert found["rows"][0]["states"] == 18**2


def test_tree_throughput() -> None:
    sizes = ("--symbols", "3000", "--wide-symbols", "1000", "--bayesml-symbols", "300", "--repeats", "1")
    rows = figures("tree_throughput", *sizes)["rows"]
    contenders = ["ContextTree kt", "ContextTree profile", "bayesml", "vlmc (batch)"]
    assert [row["what"] for row in rows] == contenders * 2
    assert [row["target"] for row in rows] == [1.5e6, 0.75e6, None, None, 0.5e6, 0.25e6, None, None]
    assert [row["symbols"] for row in rows] == [3000, 3000, 300, 3000, 1000, 1000, 300, 1000]
    for row in rows:
        assert row["symbols_per_second"] > 0
    for kt, bayesml in ((rows[0], rows[2]), (rows[4], rows[6])):
        assert kt["log_loss_difference_nats"] < 1e-6, "kt leaves and bayesml must learn the same model"
        assert kt["times_bayesml"] == pytest.approx(kt["symbols_per_second"] / bayesml["symbols_per_second"])


def test_decode_speed(tmp_path: Path) -> None:
    write_folder(tmp_path)
    sizes = ("--batch", "2", "--context", "6", "--steps", "2", "--heads", "2", "--rank", "2", "--support", "20")
    rows = figures("decode_speed", "--model", str(tmp_path), *sizes)["rows"]
    cautions = [f"{kind} {caution}" for kind in ("low-rank", "gaussian") for caution in ("pointwise", "minimax")]
    assert [row["what"] for row in rows] == ["plain", *cautions]
    for row in rows:
        assert row["milliseconds"] > 0
        assert row["time_ratio"] > 0


def test_help_quality(tmp_path: Path) -> None:
    sizes = ("--tokens", "4000", "--texts", "6", "--length", "96", "--every", "8", "--cache", str(tmp_path))
    found = figures("help_quality", "--model", "small-gpt", "--classes", "gaussian recent,events", *sizes)
    names = [(row["class"], row["score"]) for row in found["rows"]]
    assert names[:5] == [
        ("network", "max-prob"),
        ("network", "entropy"),
        ("gaussian recent", "ask"),
        ("gaussian recent", "charge"),
        ("gaussian recent", "radius"),
    ]
    for row in found["rows"]:
        assert all(0 <= share <= 1 for share in row["auroc"].values())
    asks = {row["class"]: row["mean"]["held out"] for row in found["rows"] if row["score"] == "ask"}
    assert all(0 < rate < 0.3 for rate in asks.values())
    silence = found["silence"]["events"]
    assert silence["never_cheaper"] == 1
    assert len(silence["bayesian_nats"]) == 10
