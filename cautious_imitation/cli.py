"""The command line: ``cautious-imitation compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cautious_imitation import __version__

app = typer.Typer(
    name="cautious-imitation",
    help="Bayesian and cautious imitators as anchors for RL fine-tuning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def compare(
    preset: Annotated[str, typer.Option(help="Preset to start from: dialogue-acts, dialogue-acts-full.")] = (
        "dialogue-acts"
    ),
    config: Annotated[Path | None, typer.Option(help="YAML file of settings, laid over the preset.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, for instance grids.main.seeds=[0,1].")
    ] = None,
    demonstrations: Annotated[
        Path | None, typer.Option(help='Your own chats: JSONL, {"messages": [{"role", "content"}, ...]} a line.')
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; a killed run goes on there. Default: runs/<preset>.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells solved at the same time. Default: one a core.")] = None,
) -> None:
    """Compare what different anchors let a fine-tuned policy do, on real conversations, by exact optimisation."""
    from cautious_imitation.comparison import compare as run
    from cautious_imitation.comparison.table import summary_table
    from cautious_imitation.config import CompareConfig

    console, errors = Console(), Console(stderr=True)
    try:
        overrides = list(set_ or [])
        if demonstrations is not None:
            overrides.append(f"world.demonstrations={str(demonstrations)!r}")
        settings = CompareConfig.load(preset, config, overrides)
        folder = out if out is not None else Path("runs") / preset
        comparison = run(settings, folder, jobs, errors)
    except (ValueError, OSError) as error:
        errors.print(f"[red]error:[/red] {error}", soft_wrap=True, highlight=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        errors.print("interrupted; what is done is kept, run the same command again to go on")
        raise typer.Exit(130) from None
    console.print(summary_table(comparison.rows))
    for name in ("results.json", "report.html"):
        console.print(f"wrote {folder / name}", soft_wrap=True, highlight=False)


def main() -> None:
    """Entry point of the console script."""
    app()
