"""A person answers the questions of a log, in a terminal or through a pipe."""

from __future__ import annotations

import io
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType

from rich.console import Console
from rich.text import Text

from cautious_imitation.oracles.database import LogError
from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import Act, Answer, AnswerConflict, Decline, Query, UnknownQuery
from cautious_imitation.oracles.terminal import view
from cautious_imitation.oracles.terminal.input import Command, Lines, StreamLines, TerminalLines, Verb, parse, reply
from cautious_imitation.oracles.terminal.literal_text import literal
from cautious_imitation.oracles.terminal.renewal import Renewal, renewed
from cautious_imitation.oracles.words import knows_words

PROMPT = "answer> "
_MORE = "...... "
_LOOKS_A_COUNT = 5
"""While waiting: counting a large log takes longer than looking for a question."""
_KEYS = f"{Verb.UNDO}{Verb.AGAIN}{Verb.HELP}{Verb.QUIT}"


class _Quit(Exception):
    """The person wants to leave."""


class TerminalConsole:
    """Shows the open questions of a log one by one, and records what a person types.

    A question is claimed while it is shown, and given back however the session ends.

    Args:
        log: where the questions are.
        by: who answers.
        asker: only questions of this run.
        wait: whether to wait for more when no question is open.
        console: where to write. By default the terminal.
        lines: where to read. By default standard input.
        poll_seconds: how often to look for new questions while waiting.

    Raises:
        ValueError: if nobody is named.

    >>> import tempfile, io
    >>> from pathlib import Path
    >>> folder = tempfile.TemporaryDirectory()
    >>> log = QueryLog(Path(folder.name, "questions.db"))
    >>> log.post([Query((0, 1), n_actions=3, id="a")])
    >>> quiet = Console(file=io.StringIO())
    >>> TerminalConsole(log, "Ada", wait=False, console=quiet, lines=StreamLines(io.StringIO("=2"), quiet)).run()
    >>> log.entry("a").answer
    Act((2,))
    >>> log.close(); folder.cleanup()
    """

    def __init__(
        self,
        log: QueryLog,
        by: str,
        *,
        asker: str | None = None,
        wait: bool = True,
        console: Console | None = None,
        lines: Lines | None = None,
        poll_seconds: float = 1.0,
    ) -> None:
        if not by.strip():
            raise ValueError(f"name must say who answers, got {by!r}; every answer is kept with it")
        self._log, self._by, self._asker, self._wait = log, by, asker, wait
        self._console = console if console is not None else Console(highlight=False)
        self._lines = lines if lines is not None else _standard_input(self._console)
        self._poll_seconds = poll_seconds
        self._skipped: dict[str, None] = {}
        self._given: list[str] = []
        self._at_hand: Query | None = None
        self._n_given = 0

    def run(self) -> None:
        """Ask until the person quits, the input ends, or nothing is open and there is no waiting.

        Raises:
            KeyboardInterrupt: if the person presses Ctrl-C; the question has been given back by then.
            LogError: if the log cannot be read or written when the input has ended.
        """
        _draw_what_it_can(self._console)
        with _ended_by_hangup():
            try:
                self._console.print(f"Questions: {self._counts()}. Type ? for help, q to quit.")
                while (query := self._next()) is not None:
                    self._ask(query)
            except (EOFError, _Quit):
                pass
            except KeyboardInterrupt:
                self._console.print()
                self._say_goodbye()
                raise
            finally:
                if self._at_hand is not None:
                    self._give_back(self._at_hand)
            self._say_goodbye()

    def _next(self) -> Query | None:
        """The next question, claimed; None if there is none and nobody waits."""
        while True:
            if self._at_hand is not None:
                query, self._at_hand = self._at_hand, None
                return query
            try:
                self._at_hand = self._log.claim(self._by, asker=self._asker, skip=self._skipped)
                if self._at_hand is None:
                    if not self._wait:
                        return None
                    self._await()
            except LogError as error:
                self._complain(error)
                try:
                    typed = self._lines.read("Enter tries again, q quits> ")
                except EOFError:
                    raise error from None
                if typed.strip().lower() == Verb.QUIT:
                    raise error from None

    def _await(self) -> None:
        """Wait until there may be a question; meanwhile the person may undo, go back to what was skipped, or quit."""
        self._console.print()
        waiting = self._waiting()
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            self._console.print(waiting)
        spinner = "line" if self._console.options.ascii_only else "dots"
        with self._console.status(waiting, spinner=spinner, spinner_style="cyan") as status:
            for n_looks in count(1):
                key = self._lines.pressed(_KEYS, self._poll_seconds)
                if key == Verb.QUIT:
                    raise _Quit
                if key == Verb.HELP:
                    self._console.print(view.help_table())
                elif key == Verb.AGAIN:
                    self._skipped.clear()
                elif key == Verb.UNDO and self._undo():
                    return
                self._at_hand = self._log.claim(self._by, asker=self._asker, skip=self._skipped)
                if self._at_hand is not None:
                    return
                if n_looks % _LOOKS_A_COUNT == 0:
                    status.update(self._waiting())

    def _ask(self, query: Query) -> None:
        """One question, until it is settled or left; it is given back if it is not settled."""
        settled = False
        try:
            with renewed(self._log, query, self._by) as renewal:
                settled = self._settled(query, renewal)
        finally:
            if not settled:
                self._give_back(query)

    def _settled(self, query: Query, renewal: Renewal) -> bool:
        """Read commands until the question needs no more of them; whether it is no longer this person's."""
        self._show(query)
        unsaved: Answer | None = None
        while True:
            if (lost := renewal.told()) is not None:
                self._complain(lost)
            try:
                command = parse(self._read(PROMPT), query)
                if command.verb is Verb.NOTHING and unsaved is not None:
                    answer: Answer | None = unsaved
                else:
                    answer = self._answer(command, query)
            except ValueError as error:
                self._complain(error)
                continue
            if answer is None:
                if command.verb is Verb.SKIP:
                    self._skipped[query.id] = None
                    self._console.print(Text("Skipped; others may answer it.", "dim"))
                    return False
                if command.verb is Verb.UNDO and self._undo():
                    return False
                continue
            try:
                self._log.answer(query.id, answer, self._by)
            except (AnswerConflict, UnknownQuery) as error:
                self._complain(error)
                self._console.print(Text.assemble("Not recorded: ", view.described(answer, query)))
                return True
            except LogError as error:
                self._complain(error)
                self._console.print(Text.assemble("Not recorded yet: ", view.described(answer, query)))
                self._console.print("Enter tries again; another answer replaces it.")
                unsaved = answer
                continue
            self._given.append(query.id)
            self._n_given += 1
            self._console.print(
                Text.assemble(("Recorded: ", "green"), view.described(answer, query), (" (u undoes it)", "dim"))
            )
            return True

    def _answer(self, command: Command, query: Query) -> Answer | None:
        """The answer that a command gives, or None after having done what it wants."""
        if command.verb is Verb.QUIT:
            raise _Quit
        if command.verb is Verb.TEXT:
            if not knows_words(query):
                raise ValueError("this run knows no words, only numbers; answer with actions, as in =0")
            return command.act if command.act is not None else self._reply(query)
        if command.verb is Verb.DECLINE:
            return self._decline(command.words)
        if command.verb is Verb.HELP:
            self._console.print(view.help_table())
        elif command.verb is Verb.CONTEXT:
            self._show(query, whole=True)
        elif command.verb is Verb.AGAIN:
            self._skipped.clear()
            self._console.print("What you skipped will come again.")
        elif command.verb is Verb.NOTHING:
            self._console.print(Text("Type the number of an action, or ? for help.", "dim"))
        return command.act

    def _reply(self, query: Query) -> Act:
        """A reply of several lines."""
        self._console.print(Text("Write the reply; a line with only a . ends it.", "dim"))
        written: list[str] = []
        try:
            while (line := self._read(_MORE)).strip() != ".":
                written.append(line)
        except EOFError:
            self._console.print(Text.assemble("Not recorded: ", literal(" ".join(written), one_line=True)))
            raise
        return reply("\n".join(written), query)

    def _decline(self, reason: str) -> Decline | None:
        while not reason:
            reason = self._read("reason> ").strip()
        self._console.print(
            "Was it decided without regard to what the answer would be? (For lack of time or budget: y. Because the "
            "answer is hard, or delicate: n.)"
        )
        while True:
            typed = self._read("y, n, or b to go back> ").strip().lower()
            if typed in ("y", "yes", "n", "no"):
                return Decline(reason, independent=typed.startswith("y"))
            if typed in ("b", "back"):
                return None

    def _read(self, prompt: str) -> str:
        """A line that can be kept."""
        while True:
            line = self._lines.read(prompt)
            if not any("\ud800" <= character <= "\udfff" for character in line):
                return line
            self._complain("that line is not UTF-8; set the terminal to it, and type the line again")

    def _undo(self) -> bool:
        """Take back the last answer of this session that still can be; whether there was one."""
        if not self._given:
            self._complain("you have given no answer in this session that could be undone")
            return False
        id = self._given.pop()
        try:
            self._log.undo(id, self._by)
            self._at_hand = self._log.entry(id).query
        except (AnswerConflict, UnknownQuery) as error:
            self._complain(error)
            return False
        except LogError as error:
            self._given.append(id)
            self._complain(error)
            return False
        self._n_given -= 1
        self._console.print("Taken back; here it is again.")
        return True

    def _show(self, query: Query, *, whole: bool = False) -> None:
        try:
            n_open: int | None = self._log.statistics(self._asker).counts[Status.OPEN]
        except LogError:
            n_open = None  # Only told in passing; whatever needs the log will say what is wrong.
        self._console.print()
        self._console.print(view.question(query, now=time.time(), n_open=n_open, whole=whole))
        self._console.print()
        # What was typed before the question could be read is no answer to it.
        if self._lines.forget():
            self._complain("more was typed before this question was shown; it is dropped")

    def _counts(self) -> str:
        counts = self._log.statistics(self._asker).counts
        done = counts[Status.ANSWERED] + counts[Status.DECLINED]
        return f"{counts[Status.OPEN]} open, {counts[Status.CLAIMED]} with others, {done} done"

    def _waiting(self) -> Text:
        keys = "q quits"
        if self._given:
            keys = "u undoes, " + keys
        if self._skipped:
            keys = "r repeats what you skipped, " + keys
        return Text(f"Waiting for questions: {self._counts()} ({keys})")

    def _say_goodbye(self) -> None:
        answers = "1 answer" if self._n_given == 1 else f"{self._n_given} answers"
        self._console.print(f"Left after {answers}. Questions: {self._counts()}.")

    def _give_back(self, query: Query) -> None:
        try:
            self._log.release(query.id, self._by)
        except (LogError, UnknownQuery) as error:
            self._complain(f"the question could not be given back, and is free when its claim runs out: {error}")

    def _complain(self, error: Exception | str) -> None:
        text = str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
        self._console.print(Text.assemble(("! ", "bold red"), literal(" ".join(text.split()))))


@contextmanager
def _ended_by_hangup() -> Iterator[None]:
    """A closed terminal ends the session in an orderly way, so that the question is given back at once."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGHUP", "SIGTERM") if hasattr(signal, name)]
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _standard_input(console: Console) -> Lines:
    if sys.stdin is None:
        return StreamLines(io.StringIO(), console)
    if sys.stdin.isatty() and sys.stdout.isatty():
        return TerminalLines(console)
    return StreamLines(sys.stdin, console)


def _draw_what_it_can(console: Console) -> None:
    """Have characters that the terminal does not know drawn as escapes, not end the session."""
    if isinstance(console.file, io.TextIOWrapper):
        console.file.reconfigure(errors="backslashreplace")
