"""Runs the grid in parallel and keeps what is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from joblib import Parallel, cpu_count, delayed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cautious_imitation import __version__
from cautious_imitation.comparison.cells import Cell, Experiment, Row, cells
from cautious_imitation.comparison.episodes import sample_episode
from cautious_imitation.comparison.results import FILES, Comparison
from cautious_imitation.comparison.run_folder import RunFolder
from cautious_imitation.config import CONTROLS, CompareConfig
from cautious_imitation.demonstrations import Demonstrations, actor_codes
from cautious_imitation.finetuning.compilation import compiling_ahead
from cautious_imitation.types import Actor

_SHOWN = ("bayesian", "cautious-pointwise", "cautious-minimax")
_Advance: TypeAlias = Callable[[], None]


def compare(
    config: CompareConfig | None = None,
    out: str | PathLike[str] | None = None,
    jobs: int | None = None,
    console: Console | None = None,
) -> Comparison:
    """Solve every cell of the grid and gather the rows.

    Args:
        config: what to compare; default the preset ``dialogue-acts``.
        out: folder for results; every finished cell is kept there at once, so that a run that was stopped goes on where
            it was. None keeps nothing.
        jobs: how many cells are solved at the same time; default one a core. Results do not depend on it.
        console: where to show progress; None shows none.

    Raises:
        ValueError: if ``out`` holds the results of another comparison or is in use, ``jobs`` is below 1, the grids hold
            no cell, or the demonstrations are unusable; ``out`` is left as it was then.

    >>> small = "grids={small: {horizons: [8], budgets_nats: [1], deployments: [same], n_demonstrations: [1000]}}"
    >>> [row["anchor"] for row in compare(CompareConfig.load(overrides=[small])).rows]
    ['none', 'bayesian', 'cautious-pointwise', 'cautious-minimax', 'demonstrator']
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}; it is how many cells are solved at the same time")
    config = config if config is not None else CompareConfig.load()
    todo = list(cells(config))
    if not todo:
        raise ValueError("grids must hold at least one cell, got none; name at least one anchor in some grid")
    experiment = Experiment(config)
    settings = _settings(config, experiment)
    if out is None:
        return Comparison(_solve_all(experiment, todo, jobs, console), _episodes(experiment, todo), settings)
    with RunFolder(out, settings) as folder:
        rows = _solve_all(experiment, todo, jobs, console, folder)
        before = _finished(folder, rows)
        if before is not None:
            return before
        comparison = Comparison(rows, _episodes(experiment, todo), settings)
        comparison.save(folder.path)
    return comparison


def _finished(folder: RunFolder, rows: list[Row]) -> Comparison | None:
    """What an earlier run wrote, if nothing is missing from it."""
    if not all((folder.path / name).exists() for name in FILES):
        return None
    try:
        before = Comparison.load(folder.path)
    except ValueError:
        return None
    return before if before.rows == rows else None


def _solve_all(
    experiment: Experiment, todo: list[Cell], jobs: int | None, console: Console | None, folder: RunFolder | None = None
) -> list[Row]:
    """Rows of all cells, in their order; those that ``folder`` has are not solved again."""
    done = {} if folder is None else folder.rows
    missing = sorted((cell for cell in todo if _key(cell) not in done), key=_order)
    if missing:
        with compiling_ahead():
            for deployment in dict.fromkeys(cell.deployment for cell in missing):
                experiment.world(deployment, 64)
    # Threads: the work is in compiled code that runs outside the interpreter's lock, and worlds are shared.
    work = Parallel(
        n_jobs=min(jobs or cpu_count(), len(missing) or 1), prefer="threads", return_as="generator_unordered"
    )
    with _progress(console, len(todo), len(todo) - len(missing)) as advance:
        for cell, row in work(delayed(_solve)(experiment, cell) for cell in missing):
            if folder is None:
                done[_key(cell)] = row
            else:
                folder.keep(_key(cell), row)
            advance()
    return [done[_key(cell)] for cell in todo]


def _solve(experiment: Experiment, cell: Cell) -> tuple[Cell, Row]:
    return cell, experiment.row(cell)


def _order(cell: Cell) -> tuple[int, int]:
    """Long ones first, so that no core is left with one; the controls after the anchor whose questions they match."""
    return -cell.horizon, (cell.anchor in CONTROLS) - (cell.anchor == "cautious-minimax")


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
        "conversations' SHA-256": _digest(chats),
        "version": __version__,
        "config": config.model_dump(mode="json", exclude={"world": {"demonstrations"}}),
    }


def _digest(chats: Demonstrations) -> str:
    hashed = hashlib.sha256()
    for sequence in chats.sequences:
        hashed.update(len(sequence).to_bytes(8, "little") + sequence.astype("<i8").tobytes())
    (imitator,) = actor_codes([Actor.IMITATOR])
    if any((codes == imitator).any() for codes in chats.actors):
        # Where everything of the agent's is the demonstrator's, symbols say whose they are.
        for codes in chats.actors:
            hashed.update(codes.tobytes())
    return hashed.hexdigest()


@contextmanager
def _progress(console: Console | None, total: int, done: int) -> Iterator[_Advance]:
    """A function to call for every cell that is done; a bar in a terminal, else a line every tenth of the way."""
    if console is None or not console.is_terminal:
        yield _lines(console, total, done)
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


def _lines(console: Console | None, total: int, done: int) -> _Advance:
    def advance() -> None:
        nonlocal done
        done += 1
        if console is not None and done * 10 // total > (done - 1) * 10 // total:
            console.print(f"solved {done} of {total} cells", highlight=False)

    return advance


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
