"""The command line: ``cautious-imitation compare``, and ``cautious-imitation oracle ...``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from cautious_imitation import __version__
from cautious_imitation.oracle_commands import oracle_app

if TYPE_CHECKING:
    from cautious_imitation.chat_config import ChatConfig
    from cautious_imitation.config import CompareConfig

app = typer.Typer(
    name="cautious-imitation",
    help="Bayesian and cautious imitators as anchors for RL fine-tuning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(oracle_app)

_OPEN, _USAGE, _INTERRUPTED = 1, 2, 130
_WIDTH = 80
"""Columns of the narrowest terminal that tables fit."""


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
    preset: Annotated[
        str,
        typer.Option(
            help="What to start from: dialogue-acts (exact), dialogue-acts-full, chat-tiny (fine-tuning), ..."
        ),
    ] = "dialogue-acts",
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="Settings laid over the preset; grids in it replace the preset's."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="One setting, for instance grids.main.seeds=[0,1]. Repeatable."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Presets of chats: your own model, a hub id, folder or GGUF file."),
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
        int | None,
        typer.Option(metavar="N", help="Cells or policies that are worked on at the same time. Default: one a core."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(help="Presets of chats: the same from beginning to end in small, with tiny random weights."),
    ] = False,
) -> None:
    """Compare what different anchors let a fine-tuned policy do, on real conversations.

    Presets dialogue-acts find the best policy exactly; presets chat-... train one, token by token.
    """
    errors = Console(stderr=True)
    folder = out if out is not None else Path("runs") / (f"{preset}-dry-run" if dry_run else preset)
    try:
        _compare(preset, config, list(set_ or ()), model, demonstrations, folder, jobs, dry_run, errors)
    except (ValueError, OSError, ImportError) as error:
        _tell(errors, str(error))
        raise typer.Exit(_USAGE) from None
    except KeyboardInterrupt:
        errors.print(f"interrupted; what is done is kept in {folder}, run the same command again to go on")
        raise typer.Exit(_INTERRUPTED) from None


def _compare(
    preset: str,
    config: Path | None,
    overrides: list[str],
    model: str | None,
    demonstrations: Path | None,
    folder: Path,
    jobs: int | None,
    dry_run: bool,
    errors: Console,
) -> None:
    began = time.monotonic()
    # Here, so that --help and --version load neither numba nor matplotlib.
    from cautious_imitation.chat_config import ChatConfig, load_config

    settings = load_config(preset, config, overrides, demonstrations, model)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    if isinstance(settings, ChatConfig):
        written = _compare_chats(settings.small() if dry_run else settings, folder, jobs, errors, console)
    elif dry_run:
        raise ValueError(f"--dry-run is for presets of chats, which take long; {preset} does not")
    else:
        written = _compare_exactly(settings, folder, jobs, errors, console)
    console.print(f"\n{written}, {time.monotonic() - began:.0f} s", highlight=False)
    for name, what in (("report.html", "figures, for people"), ("results.json", "all rows, for programs")):
        console.print(f"{folder / name}  {what}", soft_wrap=True, highlight=False, markup=False)


def _compare_exactly(settings: CompareConfig, folder: Path, jobs: int | None, errors: Console, console: Console) -> str:
    from cautious_imitation.comparison import compare as run
    from cautious_imitation.comparison.table import summary_caption, summary_tables

    comparison = run(settings, folder, jobs, errors)
    for table in summary_tables(comparison.rows):
        console.print(table)
    console.print(summary_caption(comparison.rows), highlight=False)
    return f"{len(comparison.rows)} policies"


def _compare_chats(settings: ChatConfig, folder: Path, jobs: int | None, errors: Console, console: Console) -> str:
    from cautious_imitation.comparison.chat_run import compare_chats
    from cautious_imitation.judging.protocol import JudgementsOpen
    from cautious_imitation.report.chat_table import chat_summary_table

    try:
        comparison = compare_chats(settings, folder, jobs, errors)
    except JudgementsOpen as still_open:
        _tell(
            errors,
            f"{str(still_open).rpartition('; compare again')[0]}; run the same command again to have the rest judged, "
            f"all other results are in {folder}",
        )
        raise typer.Exit(_OPEN) from None
    console.print(chat_summary_table(comparison.rows))
    return f"{len(comparison.curves)} policies"


def _tell(errors: Console, words: str) -> None:
    """What is wrong, in one line."""
    errors.print(Text.assemble(("error: ", "red"), " ".join(words.split())), soft_wrap=True)


def main() -> None:
    """Entry point of the console script."""
    app()
