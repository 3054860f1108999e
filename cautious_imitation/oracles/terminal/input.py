"""What a person types in the terminal: lines as commands, and where the lines come from."""

from __future__ import annotations

import io
import os
import re
import select
import sys
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, Protocol

from rich.console import Console

from cautious_imitation.oracles.protocol import Act, Query
from cautious_imitation.oracles.terminal.literal_text import literal
from cautious_imitation.oracles.words import SILENCE, begun_reply, in_words, knows_silence


class Verb(StrEnum):
    """What a line asks for, by the letter that begins it."""

    ACT = "="
    TEXT = "t"
    SILENCE = "n"
    SKIP = "s"
    DECLINE = "d"
    UNDO = "u"
    CONTEXT = "c"
    AGAIN = "r"
    HELP = "?"
    QUIT = "q"
    NOTHING = ""


_WORDS = {
    "text": Verb.TEXT,
    "nothing": Verb.SILENCE,
    "skip": Verb.SKIP,
    "decline": Verb.DECLINE,
    "undo": Verb.UNDO,
    "help": Verb.HELP,
}
_WORDS |= {"h": Verb.HELP, "quit": Verb.QUIT, "exit": Verb.QUIT} | {verb.value: verb for verb in Verb}


@dataclass(frozen=True)
class Command:
    """A line that was understood.

    Attributes:
        verb: what to do.
        act: the answer, if it is complete.
        words: what follows the verb: the reason of a decline.
    """

    verb: Verb
    act: Act | None = None
    words: str = ""


def parse(line: str, query: Query) -> Command:
    """What a line means as an answer to ``query``.

    Raises:
        ValueError: if it is none, with what to type instead.

    >>> from cautious_imitation.oracles.protocol import PlausibleAction
    >>> query = Query((0,), n_actions=9, plausible=(PlausibleAction(4, 0.1, 0.2, 0.3), PlausibleAction(7, 0, 0.1, 0.2)))
    >>> parse("2 1", query).act, parse("=5", query).act
    (Act((7, 4)), Act((5,)))
    """
    first, rest = [*line.split(maxsplit=1), "", ""][:2]
    verb, rest = _WORDS.get(first.lower()), rest.strip()
    if verb in (Verb.SILENCE, Verb.SKIP, Verb.UNDO, Verb.CONTEXT, Verb.AGAIN, Verb.HELP, Verb.QUIT) and rest:
        raise ValueError(f"{first} takes nothing after it, got {rest!r}; t {line.strip()} would give that as a reply")
    if verb is Verb.SILENCE:
        if not knows_silence(query):
            raise ValueError("n says nothing in a conversation, and this is none; answer with an action, as in =0")
        return Command(verb, SILENCE)
    if verb is Verb.TEXT:
        return Command(verb, reply(rest, query) if rest else None)
    if verb is not None and verb is not Verb.ACT:
        return Command(verb, words=rest)
    return Command(Verb.ACT, Act(_actions(line, query)))


def reply(words: str, query: Query) -> Act:
    """A reply in words. It goes on where one of the agent is unfinished, with a new word unless it begins with +.

    Raises:
        ValueError: if nothing is written.

    >>> from cautious_imitation.demonstrations import Message
    >>> query = Query((0,), n_actions=9, messages=(Message(role="assistant", content="I like choco"),))
    >>> reply("of all kinds", query).text, reply("+late", query).text
    (' of all kinds', 'late')
    """
    words = words.strip()
    within = bool(begun_reply(query)) and words.startswith("+")
    words = words[1:] if within else words
    if not words.strip():
        raise ValueError("nothing was written, and nothing is recorded; n says nothing")
    return in_words(words, query, within_word=within)


def _actions(line: str, query: Query) -> tuple[int, ...]:
    raw = line.strip().startswith("=")
    if not raw and re.search(r"[0-9]\s*=", line):
        raise ValueError("a line holds either numbers from the list, or raw actions after a = at its beginning")
    numbers = [number for number in re.split(r"[\s,=]+" if raw else r"[\s,]+", line) if number]
    if not numbers:
        raise ValueError(f"= needs an action from 0 to {query.n_actions - 1}, as in =0")
    if not all(re.fullmatch(r"[0-9]{1,18}", number) for number in numbers):
        raise ValueError(f"{line.strip()!r} is no answer; type a number, t and a reply in words, or ? for help")
    values = tuple(map(int, numbers))
    if raw:
        for value in values:
            if value >= query.n_actions:
                raise ValueError(f"there is no action {value}; they go from 0 to {query.n_actions - 1}")
        return values
    for value in values:
        if not 1 <= value <= len(query.plausible):
            listed = f"the list goes from 1 to {len(query.plausible)}" if query.plausible else "nothing is listed"
            raise ValueError(
                f"there is no number {value}, {listed}; = takes actions by their own numbers, from 0 to "
                f"{query.n_actions - 1}"
            )
    return tuple(query.plausible[value - 1].action for value in values)


class Lines(Protocol):
    """Where lines come from."""

    def read(self, prompt: str) -> str:
        """The next line, without its end. Bytes that are no UTF-8 become lone surrogates.

        Raises:
            EOFError: if there is none.
        """

    def pressed(self, keys: str, seconds: float) -> str | None:
        """Wait for so long, or for one of ``keys`` while nothing is asked; None if there was none.

        Raises:
            EOFError: if nothing can come any more.
        """

    def forget(self) -> bool:
        """Drop what was typed before the question was there to be read; whether there was a line of it."""


class TerminalLines:
    """Lines that a person types, with editing and history where Python has readline.

    Args:
        console: where a line is ended that the person left.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        if sys.platform != "win32":
            try:
                import readline  # input() uses it once it is loaded
            except ImportError:
                return
            # Several lines that are pasted after t are one reply, not a reply and answers to the questions after it.
            readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self, prompt: str) -> str:
        """See ``Lines``."""
        try:
            return input(prompt)
        except UnicodeDecodeError:
            return "\udc80"
        except EOFError:
            self._console.print()
            raise

    def pressed(self, keys: str, seconds: float) -> str | None:
        """See ``Lines``. Keys count at once, without Enter."""
        if sys.platform == "win32":
            time.sleep(seconds)
            return None
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        try:
            tty.setcbreak(descriptor, termios.TCSADRAIN)
            if not select.select([descriptor], [], [], seconds)[0]:
                return None
            typed = os.read(descriptor, 64).decode("ascii", "replace").lower()
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        if not typed or "\x04" in typed:
            raise EOFError
        # Arrows and the like arrive as a sequence that may hold any letter.
        return None if "\x1b" in typed else next((key for key in typed if key in keys), None)

    def forget(self) -> bool:
        """See ``Lines``."""
        if sys.platform == "win32":
            return False
        import termios

        typed = bool(select.select([sys.stdin.fileno()], [], [], 0)[0])
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
        return typed


class StreamLines:
    """Lines of a pipe or a file, repeated on the console so that its output reads like a session.

    Args:
        stream: where they come from.
        console: where they are repeated.
    """

    def __init__(self, stream: IO[str], console: Console) -> None:
        self._stream, self._console = stream, console
        self._ready: deque[str] = deque()
        self._rest = b""
        self._ended = False
        try:
            self._descriptor: int | None = stream.fileno()
        except (AttributeError, io.UnsupportedOperation):
            self._descriptor = None

    def read(self, prompt: str) -> str:
        """See ``Lines``."""
        self._console.print(prompt, end="", markup=False)
        while not self._ready:
            if self._ended:
                self._console.print()
                raise EOFError
            self._fill()
        line = self._ready.popleft()
        self._console.print(literal(line, one_line=True), soft_wrap=True)
        return line

    def pressed(self, keys: str, seconds: float) -> str | None:
        """See ``Lines``. Other lines stay where they are, for the next question."""
        ends = time.monotonic() + seconds
        while not self._ready and not self._ended and self._arrives(ends - time.monotonic()):
            self._fill()
        if self._ready and self._ready[0].strip().lower() in set(keys):
            return self._ready.popleft().strip().lower()
        if self._ended and not self._ready:
            raise EOFError
        time.sleep(max(0.0, ends - time.monotonic()))
        return None

    def forget(self) -> bool:
        """See ``Lines``. A script is written before; nothing is dropped."""
        return False

    def _arrives(self, seconds: float) -> bool:
        if self._descriptor is None or sys.platform == "win32":
            return True
        return bool(select.select([self._descriptor], [], [], max(0.0, seconds))[0])

    def _fill(self) -> None:
        if self._descriptor is None:
            line = self._stream.readline()
            self._ended = not line
            if line:
                self._ready.append(line.rstrip("\r\n"))
            return
        # Past Python's own buffer, into which one cannot look without waiting.
        more = os.read(self._descriptor, 1 << 16)
        self._ended = not more
        *lines, self._rest = (self._rest + more).split(b"\n")
        if self._ended and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        self._ready.extend(line.rstrip(b"\r").decode("utf-8", "surrogateescape") for line in lines)
