"""The command line as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cautious_imitation
from cautious_imitation.cli import app
from cautious_imitation.comparison.run_folder import RunFolder

TINY = (
    "grids={tiny: {anchors: [bayesian, cautious-minimax], horizons: [8], n_demonstrations: [500], budgets_nats: [1]}}"
)


def typed(*arguments: str | Path) -> Result:
    """Run a command in this process; anything but an exit is a bug and comes through."""
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def shell(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(Path(cautious_imitation.__file__).parents[1])}
    command = [sys.executable, "-m", "cautious_imitation", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


def assert_told(result: Result, *words: str) -> None:
    """One clear line on stderr, nothing on stdout, exit code 2."""
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_first_run_and_again(tmp_path: Path) -> None:
    first = shell("compare", "--set", TINY, "--jobs", "1", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "runs" / "dialogue-acts"
    results = (folder / "results.json").read_bytes()
    found = json.loads(results)
    assert found["schema"] == 1
    assert [row["anchor"] for row in found["rows"]] == ["bayesian"] * 2 + ["cautious-minimax"] * 2
    assert max(len(line) for line in first.stdout.splitlines()) <= 80
    for words in ("cautious-minimax", "4 policies,", "report.html", "results.json"):
        assert words in first.stdout
    assert "solved 4 of 4 cells" in first.stderr
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")

    again = shell("compare", "--set", TINY, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert (folder / "results.json").read_bytes() == results


def test_version_and_help(tmp_path: Path) -> None:
    run = shell("--version", folder=tmp_path)
    assert (run.returncode, run.stdout.strip()) == (0, cautious_imitation.__version__)
    assert "compare" in typed("--help").stdout
    usage = typed("compare", "--help").stdout
    for option in ("--preset", "--config", "--set", "--demonstrations", "--out", "--jobs"):
        assert option in usage
    assert list(tmp_path.iterdir()) == []


def test_config_file_then_set(tmp_path: Path) -> None:
    settings = tmp_path / "mine.yaml"
    settings.write_text(
        "world: {depth: 2}\ngrids: {g: {anchors: [always-ask], horizons: [8], deployments: [same]}}\n", encoding="utf-8"
    )
    result = typed("compare", "--config", settings, "--set", "grids.g.ask_prices=[0.5]", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert (row["anchor"], row["horizon"], row["ask_price"]) == ("always-ask", 8, 0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "dialog-acts"], ["did you mean 'dialogue-acts'"]),
        (["--set", "grids.main.sedes=[1]"], ["grids.main.sedes", "did you mean 'seeds'"]),
        (["--set", "grids.main.seeds=1"], ["must be a list, got 1; write [1]"]),
        (["--set", "seeds[/red]"], ["got 'seeds[/red]'"]),
        (["--config", "none.yaml"], ["no settings file at none.yaml"]),
        (["--demonstrations", "none.jsonl"], ["no file of demonstrations at none.jsonl"]),
        (["--jobs", "0"], ["jobs must be at least 1, got 0"]),
        (["--set", "grids={g: {anchors: []}}"], ["at least one cell"]),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_told(typed("compare", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "told"), [("world:\n  depth: [1\n", "mine.yaml:3"), ("a: \x07", "mine.yaml is not")])
def test_bad_yaml_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert_told(typed("compare", "--config", tmp_path / "mine.yaml", "--out", tmp_path / "run"), told)
    assert not (tmp_path / "run").exists()


def test_folder_with_other_results_is_refused(tmp_path: Path) -> None:
    assert typed("compare", "--set", TINY, "--out", tmp_path / "run").exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    other = typed("compare", "--set", TINY, "--set", "world.depth=2", "--out", tmp_path / "run")
    assert_told(other, "another comparison's results", "config.world.depth", "--out")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    assert typed("compare", "--set", TINY, "--out", tmp_path / "run").exit_code == 0
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    with RunFolder(tmp_path / "run", settings):
        refused = shell("compare", "--set", TINY, "--out", "run", folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "error: out='run' is in use by another process; wait for it or choose another folder"
    ]


def test_unknown_option_is_a_usage_error() -> None:
    result = typed("compare", "--job", "1")
    assert result.exit_code == 2
    assert "--job" in result.stderr
