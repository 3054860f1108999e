"""The command line: ``cautious-imitation compare``, and ``cautious-imitation oracle ...``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from cautious_imitation import __version__
from cautious_imitation.oracle_commands import oracle_app

app = typer.Typer(
    name="cautious-imitation",
    help="Bayesian and cautious imitators as anchors for RL fine-tuning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(oracle_app)

_USAGE, _INTERRUPTED = 2, 130


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def compare(
    preset: Annotated[str, typer.Option(help="What to start from: dialogue-acts, or dialogue-acts-full for all.")] = (
        "dialogue-acts"
    ),
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="Settings laid over the preset; grids in it replace the preset's."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="One setting, for instance grids.main.seeds=[0,1]. Repeatable."),
    ] = None,
    demonstrations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl", help='Your own chats, {"messages": [{"role": ..., "content": ...}, ...]} a line.'
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the results; a stopped run goes on there. Default: runs/PRESET."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", help="Cells solved at the same time. Default: one a core.")
    ] = None,
) -> None:
    """Compare what different anchors let a fine-tuned policy do, on real conversations, by exact optimisation."""
    errors = Console(stderr=True)
    folder = out if out is not None else Path("runs") / preset
    try:
        _compare(preset, config, list(set_ or ()), demonstrations, folder, jobs, errors)
    except (ValueError, OSError) as error:
        message = Text.assemble(("error: ", "red"), " ".join(str(error).split()))
        errors.print(message, soft_wrap=True)
        raise typer.Exit(_USAGE) from None
    except KeyboardInterrupt:
        errors.print(f"interrupted; the cells that are done are kept in {folder}, run the same command again to go on")
        raise typer.Exit(_INTERRUPTED) from None


def _compare(
    preset: str,
    config: Path | None,
    overrides: list[str],
    demonstrations: Path | None,
    folder: Path,
    jobs: int | None,
    errors: Console,
) -> None:
    began = time.monotonic()
    # Here, so that --help and --version load neither numba nor matplotlib.
    from cautious_imitation.comparison import compare as run
    from cautious_imitation.comparison.results import REPORT
    from cautious_imitation.comparison.run_folder import RESULTS
    from cautious_imitation.comparison.table import WIDTH, summary_caption, summary_tables
    from cautious_imitation.config import CompareConfig

    comparison = run(CompareConfig.load(preset, config, overrides, demonstrations), folder, jobs, errors)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for table in summary_tables(comparison.rows):
        console.print(table)
    console.print(summary_caption(comparison.rows), highlight=False)
    console.print(f"\n{len(comparison.rows)} policies, {time.monotonic() - began:.0f} s", highlight=False)
    for name, what in ((REPORT, "figures, for people"), (RESULTS, "all rows, for programs")):
        console.print(f"{folder / name}  {what}", soft_wrap=True, highlight=False, markup=False)


def main() -> None:
    """Entry point of the console script."""
    app()
