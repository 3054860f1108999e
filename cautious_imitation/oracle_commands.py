"""The command line of the oracles: ``cautious-imitation oracle ...``, for people who answer questions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

oracle_app = typer.Typer(
    name="oracle", help="Answer the questions of cautious imitators.", no_args_is_help=True, add_completion=False
)

_USAGE = 2

LogFile = Annotated[Path, typer.Argument(metavar="LOG", help="File of questions, as QueryLog(path) makes it.")]


@contextmanager
def _told() -> Iterator[None]:
    """Errors in a line, without a trace."""
    try:
        yield
    except (ValueError, OSError, LookupError) as error:
        text = error.args[0] if isinstance(error, LookupError) and error.args else error
        Console(stderr=True).print(Text.assemble(("error: ", "red"), " ".join(str(text).split())), soft_wrap=True)
        raise typer.Exit(_USAGE) from None
