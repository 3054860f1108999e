"""The grid of a comparison: which cells it has, what their rows say, and that a run can be stopped and go on."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cautious_imitation import CompareConfig, Comparison, compare
from cautious_imitation.comparison.cells import Cell, Experiment, _lowest, cells
from cautious_imitation.comparison.run_folder import RunFolder
from cautious_imitation.comparison.table import WIDTH, summary_caption, summary_tables
from cautious_imitation.config import CONTROLS
from cautious_imitation.report.grid import check_rows

ISSUE_KEYS = {
    *("anchor", "alpha", "accounting", "budget_nats", "n_demonstrations", "deployment", "horizon", "ask_price", "seed"),
    *("reward", "charge_nats", "kl_demonstrator_nats", "excess_nats", "coverage", "ask_rate", "asks_per_episode"),
    *("empty_reply_share", "seconds"),
}


def small(**grid: Any) -> CompareConfig:
    """One grid of quick cells."""
    quick = {"horizons": [8], "n_demonstrations": [1000], "budgets_nats": [0.5], "deployments": ["same"]}
    return CompareConfig.parse({"grids": {"only": quick | grid}, "world": {"depth": 2}})


EVERYTHING = small(
    anchors=[
        *("none", "bayesian", "cautious-pointwise", "cautious-minimax", "demonstrator", "always-ask"),
        *CONTROLS,
    ],
    accountings=["free", "forbidden", "outcome"],
    deployments=["same", "novel"],
    horizons=[16],
)


def timeless(rows: list[dict[str, Any]]) -> str:
    return json.dumps([{key: value for key, value in row.items() if key != "seconds"} for row in rows])


@pytest.fixture(scope="module")
def everything() -> Comparison:
    return compare(EVERYTHING)


# Cells


def test_cells_are_each_once_and_always_in_the_same_order() -> None:
    config = CompareConfig.load("dialogue-acts-full")
    listed = list(cells(config))
    assert len(set(listed)) == len(listed)
    assert list(cells(config)) == listed
    twice = CompareConfig.parse({"grids": {"a": {"seeds": [0, 0, 1]}, "b": {"seeds": [1, 0]}}})
    assert Counter(cells(twice)) == Counter(cells(CompareConfig.parse({"grids": {"a": {"seeds": [0, 1]}}})))


def test_settings_without_meaning_make_no_cells() -> None:
    many: dict[str, Any] = {
        "accountings": ["forbidden", "free", "outcome"],
        "budgets_nats": [1, 2],
        "n_demonstrations": [100, 200],
        "ask_prices": [0.01, 0.2],
        "log_inverse_alphas": [1, 5],
        "seeds": [0, 1],
    }

    def count(anchor: str) -> int:
        return len(list(cells(small(anchors=[anchor], **many))))

    assert count("none") == 1
    assert count("always-ask") == 2  # prices
    assert count("demonstrator") == 2  # budgets
    assert count("bayesian") == 2 * 2 * 2  # budgets, demonstrations, seeds
    assert count("cautious-pointwise") == 3 * 2**5
    assert count("cautious-minimax") == 2 * 2**5
    for control in CONTROLS:
        assert count(control) == 2**5


def test_default_preset_sweeps_cross_in_one_cell() -> None:
    listed = set(cells(CompareConfig.load()))
    for anchor in ("cautious-pointwise", "cautious-minimax"):
        for deployment in ("same", "novel"):
            common = Cell(anchor, 2.5, "free", 10.0, 10_000, deployment, 64, 0.05, 0)  # type: ignore[arg-type]
            assert common in listed
            for key, least in (("budget_nats", 5), ("n_demonstrations", 5), ("horizon", 3), ("ask_price", 3)):
                along = [c for c in listed if replace(c, **{key: getattr(common, key)}) == common]
                assert len(along) >= least, key


# Rows


def test_rows_have_every_key_and_are_drawable(everything: Comparison) -> None:
    check_rows(everything.rows)
    for row in everything.rows:
        assert set(row) >= ISSUE_KEYS
        assert row["seconds"] > 0
    found = json.loads(everything.to_json())
    assert found["schema"] == 1
    assert found["rows"] == everything.rows


def test_infeasible_cells_are_rows_that_say_what_would_do(everything: Comparison) -> None:
    infeasible = [row for row in everything.rows if row["status"] == "infeasible"]
    assert {row["accounting"] for row in infeasible} == {"forbidden"}
    for row in infeasible:
        assert row["reward"] is None
        assert row["least_charge_nats"] is None or row["least_charge_nats"] > row["budget_nats"]


def test_promises_hold_in_every_row(everything: Comparison) -> None:
    checked = 0
    for row in everything.rows:
        if row["status"] == "infeasible" or row["charge_nats"] is None:
            continue
        checked += 1
        assert row["kl_demonstrator_nats"] <= row["free_charge_nats"] + row["excess_nats"] + 1e-9
        assert row["duality_gap"] <= EVERYTHING.tolerance * max(1.0, abs(row["reward"]))
        if row["budget_nats"] is not None:
            assert row["charge_nats"] <= row["budget_nats"] + 1e-6
    assert checked > 15


def test_extremes_are_what_they_are_called(everything: Comparison) -> None:
    rows = {(row["anchor"], row["deployment"]): row for row in everything.rows if row["accounting"] == "free"}
    for deployment in ("same", "novel"):
        best, safest = rows["none", deployment], rows["always-ask", deployment]
        rewards = [row["reward"] or 0.0 for row in everything.rows if row["deployment"] == deployment]
        assert best["reward"] == max(rewards)
        assert best["charge_nats"] is None
        assert (safest["ask_rate"], safest["kl_demonstrator_nats"]) == (1.0, 0.0)
        for anchor in ("none", "bayesian", "demonstrator"):
            assert rows[anchor, deployment]["ask_rate"] == 0.0
        ideal = rows["demonstrator", deployment]
        assert ideal["kl_demonstrator_nats"] == pytest.approx(ideal["charge_nats"], abs=1e-9)


def test_controls_ask_as_often_as_the_minimax_anchor(everything: Comparison) -> None:
    for deployment in ("same", "novel"):
        rates = {
            row["anchor"]: row["ask_rate"]
            for row in everything.rows
            if row["deployment"] == deployment and row["accounting"] == "free"
        }
        assert rates["cautious-minimax"] > 0.05
        for control in CONTROLS:
            assert rates[control] == pytest.approx(rates["cautious-minimax"], abs=0.002)


def test_controls_are_matched_where_the_ask_rate_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    # With one round the search cannot end within the tolerance, so both sides are mixed.
    monkeypatch.setattr("cautious_imitation.comparison.cells._MATCH_ROUNDS", 1)
    monkeypatch.setattr("cautious_imitation.comparison.cells._MATCH_TOLERANCE", 0.0)
    experiment = Experiment(EVERYTHING)
    minimax = Cell("cautious-minimax", 5.0, "free", 0.5, 1000, "novel", 16, 0.05, 0)
    target = experiment.solve(minimax)[1].ask_rate
    for control in ("bayesian-asks-max-prob", "bayesian-asks-count"):
        solution, metrics = experiment.solve(replace(minimax, anchor=control))  # type: ignore[arg-type]
        assert metrics.ask_rate == pytest.approx(target, abs=1e-9)
        assert math.fsum(policy.weight for policy in solution.policies) == pytest.approx(1.0)
        assert metrics.charge_nats == pytest.approx(solution.charge_nats, abs=1e-9)
        assert metrics.charge_nats <= 0.5 + 1e-6


def test_gate_puts_the_share_on_the_lowest_scores() -> None:
    rng = np.random.default_rng(0)
    score, weight = rng.integers(0, 5, 40).astype(float), rng.random(40)
    for share in (0.0, 0.13, 0.5, 1.0):
        asked = _lowest(score, weight, share)
        assert (asked * weight).sum() / weight.sum() == pytest.approx(share)
        partly = np.unique(score[(asked > 0) & (asked < 1)])
        assert len(partly) <= 1
        assert not len(partly) or (score[asked == 1] < partly).all()
        for level in np.unique(score):
            assert np.ptp(asked[score == level]) == 0


# The Python function


def test_same_seed_same_rows_whatever_the_jobs(everything: Comparison) -> None:
    again = compare(EVERYTHING, jobs=1)
    assert timeless(again.rows) == timeless(everything.rows)
    assert again.episodes == everything.episodes
    assert timeless(compare(small(seeds=[1])).rows) != timeless(compare(small(seeds=[0])).rows)


def test_saved_results_are_read_and_drawn_again(everything: Comparison, tmp_path: Path) -> None:
    paths = everything.save(tmp_path / "first")
    loaded = Comparison.load(tmp_path / "first")
    assert loaded == everything
    for name, path in loaded.save(tmp_path / "second").items():
        assert path.read_bytes() == paths[name].read_bytes()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "results.json").write_text(everything.to_json(), encoding="utf-8")
    assert Comparison.load(tmp_path / "bare").rows == everything.rows


@pytest.mark.parametrize("text", ["{", '{"schema": 2, "rows": []}', "[]", '{"schema": 1}'])
def test_results_of_another_kind_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no results.json"):
        Comparison.load(tmp_path)
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="run the comparison again"):
        Comparison.load(tmp_path)


def test_nothing_is_saved_where_a_row_is_broken(everything: Comparison, tmp_path: Path) -> None:
    broken = Comparison([{**everything.rows[0], "status": "odd"}])
    with pytest.raises(ValueError, match="status"):
        broken.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        compare(small(), jobs=0)
    with pytest.raises(ValueError, match="grids must hold at least one cell"):
        compare(small(anchors=[]), out=tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; name a folder"):
        compare(small(), out=tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Stopping and going on

SLOW = {"horizons": [32], "seeds": list(range(60)), "anchors": ["bayesian", "cautious-minimax"]}


@pytest.fixture(scope="module")
def unbroken() -> Comparison:
    return compare(small(**SLOW))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def heed_interrupts() -> None:
    """A shell's background jobs ignore Ctrl-C, and so does what they start; a run that people start does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(config: CompareConfig, folder: Path) -> subprocess.Popen[str]:
    """A real run in a process of its own, some way into its cells."""
    settings = folder.with_suffix(".yaml")
    settings.write_text(config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "cautious_imitation", "compare", "--jobs", "1"]
    process = subprocess.Popen(
        [*command, "--config", str(settings), "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        preexec_fn=heed_interrupts if os.name == "posix" else None,
    )
    journal = folder / "cells.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        time.sleep(0.002)
    return process


def test_killed_run_goes_on_where_it_was(tmp_path: Path, unbroken: Comparison) -> None:
    process = start(small(**SLOW), tmp_path / "run")
    process.kill()
    process.communicate()
    before = (tmp_path / "run" / "cells.jsonl").read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    assert 3 <= whole.count(b"\n") < len(unbroken.rows)
    assert not (tmp_path / "run" / "results.json").exists()
    # As if the kill had come in the middle of a line.
    (tmp_path / "run" / "cells.jsonl").write_bytes(whole + b'{"cell": "[\\"bayes')
    resumed = compare(small(**SLOW), tmp_path / "run")
    assert timeless(resumed.rows) == timeless(unbroken.rows)
    journal = (tmp_path / "run" / "cells.jsonl").read_bytes()
    assert journal.startswith(whole)
    assert journal.count(b"\n") == len(unbroken.rows)
    assert resumed.episodes == unbroken.episodes


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C cannot be sent to a single process elsewhere")
def test_interrupted_run_says_how_to_go_on(tmp_path: Path, unbroken: Comparison) -> None:
    process = start(small(**SLOW), tmp_path / "run")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "run the same command again" in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""
    assert timeless(compare(small(**SLOW), tmp_path / "run").rows) == timeless(unbroken.rows)


def test_complete_run_is_not_touched_again(tmp_path: Path) -> None:
    first = compare(small(), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("[!.]*")}
    assert compare(small(), tmp_path / "run", jobs=2) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "results.json").write_text("{", encoding="utf-8")
    compare(small(), tmp_path / "run")
    assert Comparison.load(tmp_path / "run") == first
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_folder_of_another_run_is_left_as_it_is(tmp_path: Path) -> None:
    compare(small(anchors=["always-ask"]), tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"another comparison's results \(config.grids.only.anchors differ\)"):
        compare(small(anchors=["none"]), tmp_path / "run")
    assert contents(tmp_path / "run") == before
    (tmp_path / "run" / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"results but no settings.json"):
        compare(small(anchors=["always-ask"]), tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="another comparison's results"):
        compare(small(anchors=["always-ask"]), tmp_path / "run")


def test_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    settings = {"a": 1}
    with RunFolder(tmp_path / "run", settings) as held:
        held.keep("x", {"reward": 1.0})
        before = contents(tmp_path / "run")
        assert json.loads(before["cells.jsonl"])["cell"] == "x"
        with pytest.raises(ValueError, match="in use by another process"), RunFolder(tmp_path / "run", settings):
            raise AssertionError("two runs hold one folder")
        assert contents(tmp_path / "run") == before
    with RunFolder(tmp_path / "run", settings) as again:
        assert again.rows == {"x": {"reward": 1.0}}


@pytest.mark.parametrize("torn", [b"", b'{"cell"', b'{"cell": "y"}\n', b"\x00\x00\n", b"\n", b"\xff"])
def test_torn_last_line_of_the_journal_is_dropped(tmp_path: Path, torn: bytes) -> None:
    with RunFolder(tmp_path, {}) as folder:
        folder.keep("x", {"reward": 1.0})
    whole = (tmp_path / "cells.jsonl").read_bytes()
    (tmp_path / "cells.jsonl").write_bytes(whole + torn)
    with RunFolder(tmp_path, {}) as folder:
        assert list(folder.rows) == ["x"]
        folder.keep("z", {"reward": 2.0})
    assert [json.loads(line)["cell"] for line in (tmp_path / "cells.jsonl").read_text().splitlines()] == ["x", "z"]


def test_journal_broken_in_the_middle_names_the_line(tmp_path: Path) -> None:
    with RunFolder(tmp_path, {}) as folder:
        folder.keep("x", {"reward": 1.0})
    whole = (tmp_path / "cells.jsonl").read_bytes()
    (tmp_path / "cells.jsonl").write_bytes(b"oops\n" + whole)
    with pytest.raises(ValueError, match=r"cells.jsonl:1 cannot be read"), RunFolder(tmp_path, {}):
        pass
    assert (tmp_path / "cells.jsonl").read_bytes() == b"oops\n" + whole


def test_numbers_that_are_none_in_json_are_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path, {}) as folder, pytest.raises(ValueError, match="JSON"):
        folder.keep("x", {"reward": math.inf})
    assert (tmp_path / "cells.jsonl").read_bytes() == b""


# What the terminal shows


def test_table_fits_a_narrow_terminal_in_whole(everything: Comparison) -> None:
    console = Console(width=WIDTH, file=StringIO(), color_system=None)
    for table in summary_tables(everything.rows):
        console.print(table)
    assert max(map(len, summary_caption(everything.rows).splitlines())) <= WIDTH
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= WIDTH
    for heading in ("budget", "anchor", "KL", "kept", "reward", "asks", "empty"):
        assert heading in shown


def test_table_keeps_one_order_and_says_which_budgets_held(everything: Comparison) -> None:
    console = Console(width=WIDTH, file=StringIO(), color_system=None)
    tables = summary_tables(everything.rows)
    assert [str(table.title).split(":")[0] for table in tables] == ["same", "novel"]
    for table, deployment in zip(tables, ("same", "novel"), strict=True):
        console.print(table)
        columns = [[str(cell) for cell in column.cells] for column in table.columns]
        assert columns[1] == [
            *("none", "always-ask", "bayesian", "cautious-pointwise", "cautious-minimax", "demonstrator"),
            *CONTROLS,
        ]
        rows = {
            row["anchor"]: row
            for row in everything.rows
            if row["deployment"] == deployment and row["accounting"] == "free"
        }
        for anchor, kept in zip(columns[1], columns[3], strict=True):
            row = rows[anchor]
            if row["budget_nats"] is None:
                assert kept == "–"
            else:
                assert kept == ("yes" if row["kl_demonstrator_nats"] <= row["budget_nats"] + 1e-5 else "no")


def test_progress_is_lines_where_there_is_no_terminal() -> None:
    console = Console(file=StringIO(), width=WIDTH)
    compare(small(anchors=["always-ask"], ask_prices=[0.01 * i for i in range(20)]), console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [f"solved {done} of 20 cells" for done in range(2, 21, 2)]


def test_progress_is_a_bar_in_a_terminal() -> None:
    console = Console(file=StringIO(), width=WIDTH, force_terminal=True)
    compare(small(anchors=["always-ask"]), console=console)
    assert "1/1" in console.file.getvalue()  # type: ignore[attr-defined]
