"""Runs the grid in parallel, keeps what is done, and writes results that can be read by people and programs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cautious_imitation import __version__
from cautious_imitation.atomic_files import write_text
from cautious_imitation.comparison.cells import Cell, Experiment, Row, cells
from cautious_imitation.comparison.episodes import sample_episode
from cautious_imitation.config import CompareConfig
from cautious_imitation.report import write_report

SCHEMA = 1
_PARTIAL = "cells.jsonl"
_SETTINGS = "settings.json"
_SHOWN = ("bayesian", "cautious-pointwise", "cautious-minimax")


@dataclass(frozen=True)
class Comparison:
    """Results of a comparison.

    Attributes:
        rows: one dict a cell, in the order of the grid; keys as in ``results.json``.
        episodes: one sampled episode of each main anchor at one setting.
        settings: what was compared, with the provenance of the data.
    """

    rows: list[Row]
    episodes: list[dict[str, Any]]
    settings: dict[str, Any]

    def to_json(self) -> str:
        """``{"schema": 1, "rows": [...]}``, as in ``results.json``."""
        return json.dumps({"schema": SCHEMA, "rows": self.rows}, indent=1) + "\n"

    def save(self, folder: str | PathLike[str]) -> dict[str, Path]:
        """Write ``results.json``, ``episodes.json`` and ``report.html``; returns their paths by name."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = {name: folder / name for name in ("results.json", "episodes.json", "report.html")}
        write_text(paths["results.json"], self.to_json())
        write_text(paths["episodes.json"], json.dumps(self.episodes) + "\n")
        write_report(paths["report.html"], self.rows, self.episodes, self.settings)
        return paths


def compare(
    config: CompareConfig | None = None,
    out: str | PathLike[str] | None = None,
    jobs: int | None = None,
    console: Console | None = None,
) -> Comparison:
    """Solve every cell of the grid and gather the rows.

    Args:
        config: what to compare; default the preset ``dialogue-acts``.
        out: folder for results; every finished cell is kept there at once, so that a killed run goes on where it was.
            None keeps nothing.
        jobs: how many cells are solved at the same time; default one a core. Results do not depend on it.
        console: where to show a progress bar; None shows none.

    Raises:
        ValueError: if ``out`` holds the results of another comparison, ``jobs`` is below 1, or the demonstrations are
            unusable.

    >>> config = CompareConfig.load(overrides=["grids={small: {horizons: [8], budgets_nats: [1], deployments: [same]}}"])
    >>> [row["anchor"] for row in compare(config).rows]
    ['none', 'bayesian', 'cautious-pointwise', 'cautious-minimax', 'demonstrator']
    """
    config = config if config is not None else CompareConfig.load()
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}; it is how many cells are solved at the same time")
    folder = None if out is None else Path(out)
    todo = list(cells(config))
    experiment = Experiment(config)
    settings = _settings(config, experiment)
    done = {} if folder is None else _resume(folder, settings)
    for deployment in dict.fromkeys(cell.deployment for cell in todo):
        experiment.world(deployment, 64)
    missing = [cell for cell in todo if _key(cell) not in done]
    # Threads: the work is in compiled code that runs outside the interpreter's lock, and worlds are shared.
    work = Parallel(n_jobs=jobs or os.cpu_count(), prefer="threads", return_as="generator_unordered")
    with _progress(console, len(todo), len(todo) - len(missing)) as advance, _journal(folder) as keep:
        for cell, row in work(delayed(_solve)(experiment, cell) for cell in _longest_first(missing)):
            done[_key(cell)] = row
            keep({"cell": _key(cell), "row": row})
            advance()
    comparison = Comparison([done[_key(cell)] for cell in todo], _episodes(experiment, todo), settings)
    if folder is not None:
        comparison.save(folder)
    return comparison


def _solve(experiment: Experiment, cell: Cell) -> tuple[Cell, Row]:
    return cell, experiment.row(cell)


def _longest_first(todo: list[Cell]) -> list[Cell]:
    return sorted(todo, key=lambda cell: (-cell.horizon, not cell.anchor.startswith("bayesian-asks")))


def _key(cell: Cell) -> str:
    return json.dumps(list(asdict(cell).values()))


def _settings(config: CompareConfig, experiment: Experiment) -> dict[str, Any]:
    """Everything that the rows depend on."""
    source = config.world.demonstrations
    chats = experiment.chats
    return {
        "world": "dialogue acts of real conversations" if source is None else f"dialogue acts of {source.name}",
        "demonstrations": "chitchat-dataset (MIT)" if source is None else source.name,
        "conversations": len(chats),
        "demonstrator's acts": chats.n_learned(),
        "conversations' SHA-256": _digest(chats.sequences),
        "version": __version__,
        "config": json.loads(config.model_dump_json(exclude={"world": {"demonstrations"}})),
    }


def _digest(sequences: tuple[np.ndarray, ...]) -> str:
    hashed = hashlib.sha256()
    for sequence in sequences:
        hashed.update(len(sequence).to_bytes(8, "little") + sequence.astype("<i8").tobytes())
    return hashed.hexdigest()


def _resume(folder: Path, settings: dict[str, Any]) -> dict[str, Row]:
    """Rows that an earlier run of the same comparison left in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _SETTINGS
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != settings:
            raise ValueError(
                f"out={str(folder)!r} holds another comparison's results; choose another folder or remove it"
            )
    elif any((folder / name).exists() for name in (_PARTIAL, "results.json")):
        raise ValueError(f"out={str(folder)!r} holds results without {_SETTINGS}; choose another folder or remove it")
    else:
        write_text(path, json.dumps(settings, indent=1) + "\n")
    done: dict[str, Row] = {}
    journal = folder / _PARTIAL
    if journal.exists():
        whole, _, torn = journal.read_text(encoding="utf-8").rpartition("\n")
        for line in whole.splitlines():
            entry = json.loads(line)
            done[entry["cell"]] = entry["row"]
        if torn:
            write_text(journal, whole + "\n" if whole else "")
    return done


@contextmanager
def _journal(folder: Path | None) -> Iterator[Any]:
    """A function that appends one finished cell to the journal; a line that was cut short is dropped on resume."""
    if folder is None:
        yield lambda entry: None
        return
    with (folder / _PARTIAL).open("a", encoding="utf-8") as file:

        def keep(entry: dict[str, Any]) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        yield keep


@contextmanager
def _progress(console: Console | None, total: int, done: int) -> Iterator[Any]:
    if console is None:
        yield lambda: None
        return
    columns = (
        TextColumn("solving cells"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("cells", total=total, completed=done)
        yield lambda: bar.advance(task)


def _episodes(experiment: Experiment, todo: list[Cell]) -> list[dict[str, Any]]:
    """An episode of each main anchor where the contrast is largest: the last deployment, the largest budget."""
    shown = [cell for cell in todo if cell.anchor in _SHOWN and cell.accounting == "free"]
    if not shown:
        return []
    horizon, deployment = shown[0].horizon, [cell.deployment for cell in shown][-1]
    n = shown[0].n_demonstrations
    shown = [c for c in shown if (c.horizon, c.deployment, c.n_demonstrations) == (horizon, deployment, n)]
    budget = max(cell.budget_nats or 0.0 for cell in shown)
    episodes = []
    for anchor in _SHOWN:
        cell = next((c for c in shown if c.anchor == anchor and c.budget_nats == budget), None)
        if cell is not None:
            solution, _ = experiment.solve(cell)
            steps = sample_episode(experiment.world(deployment, horizon), solution, np.random.default_rng(0))
            episodes.append({**asdict(cell), "steps": steps})
    return episodes
