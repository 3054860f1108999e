"""Trains and looks at every policy of a comparison in chats, some at the same time, and keeps what is done."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import connection
from os import PathLike, cpu_count
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cautious_imitation import __version__
from cautious_imitation.chat_config import ChatConfig
from cautious_imitation.comparison.chat_experiment import AFTER, ChatCell, ChatExperiment, chat_cells
from cautious_imitation.comparison.chat_judges import judgements
from cautious_imitation.comparison.chat_records import Record
from cautious_imitation.comparison.chat_results import ChatComparison
from cautious_imitation.comparison.run_folder import RESULTS, SETTINGS, RunFolder
from cautious_imitation.finetuning.chat_training import Point
from cautious_imitation.finetuning.processes import begin_processes, end_processes, n_processes, rank

_VERDICTS = "verdicts.jsonl"
_Told = Callable[[ChatCell, Point], None]


def compare_chats(
    config: ChatConfig,
    out: str | PathLike[str] | None = None,
    jobs: int | None = None,
    console: Console | None = None,
) -> ChatComparison:
    """Train every policy, look at it, have transcripts compared, and gather what was found.

    Args:
        config: what to compare.
        out: folder for results. Every policy's training is kept there as it goes on, so that a run that was stopped
            goes on where it was. None keeps nothing.
        jobs: how many policies are trained at the same time, each in a process of its own with one thread; default one
            a core, or one on a GPU. Under ``accelerate launch`` all processes train one policy together.
        console: where to show progress; None shows none.

    Raises:
        ValueError: if ``out`` holds the results of another comparison or is in use, ``jobs`` is below 1, or model,
            demonstrations or opening are unusable.
        JudgementsOpen: if the judge has left some pairs open; everything else is in ``out``, and the same call goes on.
        OSError: if something cannot be read or written, the judge's endpoint refuses, or a process was killed.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}; it is how many policies are trained at the same time")
    begin_processes()
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()) if out is None else out)
            return _compared(config, folder, jobs, console if rank() == 0 else None)
    finally:
        end_processes()


def _compared(config: ChatConfig, path: Path, jobs: int | None, console: Console | None) -> ChatComparison:
    cells = list(chat_cells(config))
    settings = _settings(config)
    if rank():
        # The first process writes; the others train with it.
        experiment = ChatExperiment(config, path)
        rows = [row for cell in cells for row in experiment.solve(cell)["rows"]]
        return ChatComparison([*rows, *_controls(experiment, cells, rows)], settings=settings)
    experiment, is_new = ChatExperiment(config, path), not (path / SETTINGS).exists()
    if is_new:
        # Whatever is wrong is told before there is a folder that a corrected run would be refused for.
        _say(console, "reading the model and the demonstrations")
        experiment.check()
    with RunFolder(path, settings) as folder:
        missing = [cell for cell in cells if cell.name not in folder.rows]
        if missing:
            _say(console, "learning from the demonstrations")
            if not is_new:
                experiment.check()
            # Once, before other processes want it.
            _ = experiment.hypotheses
        updates = config.training.ramp_updates + config.training.full_updates + config.training.longer_updates
        with _progress(console, cells, len(cells) - len(missing), updates) as (told, done):
            for cell, record in _trained(experiment, missing, jobs, told):
                folder.keep(cell.name, record)
                done(cell)
        found = [folder.rows[cell.name] for cell in cells]
        rows = [row for one in found for row in one["rows"]]
        comparison = ChatComparison(
            [*rows, *_controls(experiment, cells, rows)],
            [one["curve"] for one in found],
            [script for one in found for script in one["transcripts"]],
            [],
            settings,
        )
        if missing or not (path / RESULTS).exists():
            # A judge may take long, or be out of reach.
            comparison.save(path)
            _say(console, "comparing transcripts")
        try:
            for verdict in judgements(config, comparison.transcripts, lambda: experiment.reference, path / _VERDICTS):
                comparison.judgements.append(verdict)
        finally:
            comparison.save(path)
    return comparison


def _controls(experiment: ChatExperiment, cells: list[ChatCell], rows: list[Record]) -> list[Record]:
    """Rows of the Bayesian policies that ask at random, as often as the cautious ones of the same budget and seed do.

    A share of empty replies is to be compared at the same rate of asking, and a Bayesian anchor never asks by itself.
    """
    rates: dict[tuple[float, int], float] = {}
    for row in rows:
        # The later of the two kinds of caution is the one that asks less.
        if row["phase"] == AFTER and row["anchor"].startswith("cautious"):
            rates[row["budget_nats"], row["seed"]] = row["ask_rate"]
    bayesian = [cell for cell in cells if cell.anchor == "bayesian"]
    wanted = [(cell, rates.get((cell.budget_nats, cell.seed), 0.0)) for cell in bayesian]
    return [experiment.asking(cell, rate) for cell, rate in wanted if 0 < rate < 1]


def _trained(
    experiment: ChatExperiment, cells: list[ChatCell], jobs: int | None, told: _Told
) -> Iterator[tuple[ChatCell, Record]]:
    """Each cell once it is done."""
    config, path = experiment.config, experiment.folder
    gpu = config.language.device is not None and config.language.device != "cpu"
    at_once = min(jobs or (1 if gpu else cpu_count() or 1), len(cells))
    if at_once <= 1 or n_processes() > 1:
        for cell in cells:
            yield cell, experiment.solve(cell, partial(told, cell))
        return
    # Threads of one process would share torch's, and a forked process cannot use them at all.
    context = multiprocessing.get_context("spawn")
    points = context.Queue()
    with ProcessPoolExecutor(at_once, context, _begin, (points,)) as pool:
        running: dict[Future[Record], ChatCell] = {}
        try:
            running |= {pool.submit(_solve, config, path, cell): cell for cell in cells}
            while running:
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                _tell(points, told)
                for future in finished:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"a process that trained a policy was killed, as happens when memory runs out, with jobs={at_once}; "
                "try fewer jobs, what is done is kept"
            ) from error
        finally:
            for future in running:
                future.cancel()


_points: Any = None
"""Where a process that trains says what it sees."""


def _begin(points: Any) -> None:
    """In each of the processes: one thread, the queue, and an end with the process that waits for the results.

    Whoever is left over when that one is killed would train on, and write beside the run that goes on.
    """
    global _points
    torch.set_num_threads(1)
    _points = points
    parent = multiprocessing.parent_process()
    assert parent is not None
    Thread(target=_leave_with, args=(parent.sentinel,), daemon=True).start()


def _leave_with(parent: int) -> None:
    connection.wait([parent])
    os._exit(1)


def _solve(config: ChatConfig, path: Path, cell: ChatCell) -> Record:
    return ChatExperiment(config, path).solve(cell, lambda point: _points.put((cell, point)))


def _tell(points: Any, told: _Told) -> None:
    while True:
        try:
            told(*points.get_nowait())
        except Empty:
            return


def _settings(config: ChatConfig) -> dict[str, Any]:
    """Everything that the results depend on, and on what they were found."""
    return {
        "experiment": "chat",
        "model": config.language.source,
        "demonstrations": config.demonstrations.source,
        "version": __version__,
        "device": _device(config),
        "torch": torch.__version__,
        "config": config.model_dump(mode="json"),
    }


def _device(config: ChatConfig) -> str:
    device = config.language.device or "cpu"
    # Where there is no such device, loading the model says so.
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if on_gpu else platform.machine()


def _say(console: Console | None, words: str) -> None:
    if console is not None:
        console.print(words, highlight=False)


@contextmanager
def _progress(
    console: Console | None, cells: list[ChatCell], n_done: int, updates: int
) -> Iterator[tuple[_Told, Callable[[ChatCell], None]]]:
    """What to call with the points of cells, and with cells that are done; bars in a terminal, else a line a cell."""
    if console is None or not console.is_terminal:
        count = n_done

        def line(cell: ChatCell) -> None:
            nonlocal count
            count += 1
            _say(console, f"trained {count} of {len(cells)} policies: {cell.name}")

        yield (lambda cell, point: None), line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[seen]}"),
    )
    with Progress(*columns, console=console) as bar:
        whole = bar.add_task("policies", total=len(cells), completed=n_done, seen="")
        tasks: dict[str, Any] = {}

        def told(cell: ChatCell, point: Point) -> None:
            if cell.name not in tasks:
                tasks[cell.name] = bar.add_task(cell.name, total=updates, seen="")
            seen = (
                f"reward {point['mean_reward']:.2f}, {point['mean_charge_nats']:.1f} nats, asks "
                f"{100 * point['ask_rate']:.0f} %"
            )
            bar.update(tasks[cell.name], completed=point["update"] + 1, seen=seen)

        def done(cell: ChatCell) -> None:
            bar.advance(whole)
            if cell.name in tasks:
                bar.remove_task(tasks.pop(cell.name))

        yield told, done
