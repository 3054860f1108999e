"""The command line of the oracles: ``cautious-imitation oracle ...``, for people who answer questions."""

from __future__ import annotations

import getpass
import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from cautious_imitation.oracles.log import QueryLog

oracle_app = typer.Typer(
    name="oracle", help="Answer the questions of cautious imitators.", no_args_is_help=True, add_completion=False
)

_USAGE, _INTERRUPTED = 2, 130
_BUSY_SECONDS = 10.0
_WIDTH = 120

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


def _existing(path: Path) -> QueryLog:
    """The log in a file that is there: a misspelt name must not make one, in which nothing is ever asked."""
    from cautious_imitation.oracles.log import QueryLog

    if not path.is_file():
        raise FileNotFoundError(f"no log of questions at {path}; the run that asks makes it, see which name it uses")
    # People wait less patiently than runs.
    return QueryLog(path, busy_seconds=_BUSY_SECONDS)


@oracle_app.command()
def console(
    log: LogFile,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Who answers. Default: your login.")] = None,
    asker: Annotated[str | None, typer.Option(metavar="RUN", help="Only the questions of this run.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait for more when no question is open, or leave.")] = True,
) -> None:
    """Answer questions here, in the terminal. With a pipe as input, a line is what a person would type."""
    with _told():
        from cautious_imitation.oracles.terminal.console import TerminalConsole

        try:
            TerminalConsole(_existing(log), name if name is not None else _login(), asker=asker, wait=wait).run()
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        raise ValueError("nobody is logged in under a name; say who answers with --name") from None


@oracle_app.command("list")
def list_(
    log: LogFile,
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help="open, claimed, answered, declined or expired.")
    ] = None,
    asker: Annotated[str | None, typer.Option(metavar="RUN", help="Only the questions of this run.")] = None,
    search: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Only those with these words in id, text or conversation.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most so many. Default: all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="All that is known, as a JSON array.")] = False,
) -> None:
    """List the questions of a log, in the order in which they were asked."""
    with _told():
        from cautious_imitation.oracles.log import Status
        from cautious_imitation.oracles.terminal.tables import entries_json, entries_table

        if status is not None and status not in set(Status):
            raise ValueError(f"--status must be one of {', '.join(Status)}, got {status!r}")
        entries = _existing(log).entries(status, asker=asker, search=search, limit=limit)
        if json:
            typer.echo(entries_json(entries))
        else:
            _output().print(entries_table(entries, time.time()) if entries else "No such question.")


@oracle_app.command()
def stats(
    log: LogFile,
    asker: Annotated[str | None, typer.Option(metavar="RUN", help="Only the questions of this run.")] = None,
    json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
) -> None:
    """Count the questions of a log, and who answered how many."""
    with _told():
        from cautious_imitation.oracles.terminal.tables import statistics_json, statistics_table

        statistics = _existing(log).statistics(asker)
        if json:
            typer.echo(statistics_json(statistics))
        else:
            _output().print(statistics_table(statistics))


@oracle_app.command()
def export(
    log: LogFile,
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Where to; what is there is replaced.")],
    asker: Annotated[str | None, typer.Option(metavar="RUN", help="Only the questions of this run.")] = None,
    declined: Annotated[bool, typer.Option(help="Also questions that were declined; nothing is learned of them.")] = (
        False
    ),
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Folder or hub id of the asking language model, to write its tokens."),
    ] = None,
) -> None:
    """Write the answers as chats, one a line, to fit an imitator on."""
    with _told():
        from cautious_imitation.oracles.chat_files import export_chats

        vocabulary = None
        if tokenizer is not None:
            from transformers import AutoTokenizer

            vocabulary = AutoTokenizer.from_pretrained(tokenizer)
        n_lines = export_chats(_existing(log), file, asker=asker, vocabulary=vocabulary, declined=declined)
        typer.echo(f"{n_lines} answer{'' if n_lines == 1 else 's'} in {file}")


@oracle_app.command("import")
def import_(
    log: LogFile,
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Answers, as export wrote them.")],
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who the answers are by. Default: whoever the file names.")
    ] = None,
) -> None:
    """Read exported answers into a log, which is made if there is none."""
    with _told():
        from cautious_imitation.oracles.chat_files import import_chats
        from cautious_imitation.oracles.log import QueryLog

        if not file.is_file():
            raise FileNotFoundError(f"no file of answers at {file}; 'oracle export LOG FILE.jsonl' writes one")
        n_new = import_chats(QueryLog(log, busy_seconds=_BUSY_SECONDS), file, by=by)
        typer.echo(f"{n_new} new answer{'' if n_new == 1 else 's'} in {log}")


def _output() -> Console:
    """Standard output; wide where it is no terminal, so that less of a question is cut off."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)


@oracle_app.command()
def serve(
    log: LogFile,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Where to listen; others than this machine's own can be reached from elsewhere."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes a free one.")] = 8642,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name under which browsers may address the server. Repeatable."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            envvar="CAUTIOUS_IMITATION_TOKEN",
            help="What lets in, the same after every start. Default: a new one.",
            show_envvar=True,
        ),
    ] = None,
) -> None:
    """Answer questions in a browser: serve the pages until Ctrl-C."""
    with _told():
        questions = _existing(log)
        try:
            from cautious_imitation.oracles.web.server import serve as serve_console
        except ModuleNotFoundError as error:
            raise ValueError(f"the web console needs {error.name}: pip install 'cautious-imitation[oracle]'") from None
        from cautious_imitation.oracles.judgements import JudgementLog

        serve_console(
            questions,
            JudgementLog(log, busy_seconds=_BUSY_SECONDS),
            host=host,
            port=port,
            host_names=allow_host or (),
            token=token,
            console=_output(),
        )
