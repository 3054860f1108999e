"""How a question looks in the terminal. Nothing here depends on colour, or on more than forty columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from cautious_imitation.oracles.protocol import Answer, Decline, PlausibleAction, Query
from cautious_imitation.oracles.terminal.literal_text import literal
from cautious_imitation.oracles.words import AGENTS

NARROW = 64
"""Columns below which an action takes two lines."""

_MESSAGES, _CHARACTERS, _SYMBOLS = 12, 2_000, 60

HELP = (
    ("2", "the second of the listed actions"),
    ("2 5 1", "several, in this order"),
    ("=17 4", "actions by their own numbers, listed or not"),
    ("t words", "a reply in words to its end, or the rest of one that has begun"),
    ("t +ords", "the same, if the last word has begun too"),
    ("t", "a reply of several lines"),
    ("n", "nothing, or nothing more, is said: the turn ends"),
    ("s", "skip: leave the question to others, and to later"),
    ("d reason", "decline: the run gets no answer"),
    ("u", "undo the last answer, until the run has gone on with it"),
    ("c", "the whole context, from its beginning"),
    ("?", "this"),
    ("q", "quit; so do Ctrl-C and Ctrl-D"),
)


def question(query: Query, *, now: float, n_open: int | None = None, whole: bool = False) -> RenderableType:
    """A question as a person needs to see it: who asks, the context, and what may come next.

    Args:
        query: the question.
        now: seconds since 1970, for the time that is left.
        n_open: how many other questions are open, if that is known.
        whole: whether to show the context from its beginning.
    """
    title = literal(query.asker, "bold", one_line=True)
    if query.episode is not None:
        title.append(f", episode {query.episode}", "not bold")
    facts = [f"The imitator asks here with probability {percent(query.ask_probability)}"]
    if query.deadline is not None:
        facts.append(time_left(query.deadline - now))
    if n_open:
        facts.append(f"{n_open} more open")
    return Group(
        Rule(title, align="left", style="dim"),
        Text(", ".join(facts), "dim"),
        Text(),
        _context(query, whole),
        Text(),
        _Actions(query),
    )


def help_table() -> RenderableType:
    """What can be typed."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for typed, meaning in HELP:
        table.add_row(Text(typed), Text(meaning))
    return Padding(table, (0, 0, 1, 2))


def described(answer: Answer, query: Query) -> Text:
    """An answer in a line."""
    if isinstance(answer, Decline):
        kind = "independently of the answer" if answer.independent else "depending on the answer"
        return Text.assemble("declined ", kind, ": ", literal(answer.reason, "bold", one_line=True))
    if answer.text == "":
        return Text.assemble("a reply, ", ("nothing", "bold"))
    if answer.text is not None:
        return Text.assemble("a reply, ", literal(answer.text, "bold", one_line=True))
    texts = {action.action: action.text for action in query.plausible}
    return Text(", then ").join(
        Text.assemble(literal(text, "bold", one_line=True), f" (={action})")
        if (text := texts.get(action)) is not None
        else Text(f"={action}", "bold")
        for action in answer.actions
    )


def gist(query: Query) -> Text:
    """The end of the context in a line, as much as is needed to recognise it."""
    if query.messages:
        last = query.messages[-1]
        return Text.assemble(literal(last.role, "dim", one_line=True), " ", literal(last.content, one_line=True))
    if query.text is not None:
        return literal(query.text[-_CHARACTERS:], one_line=True)
    return Text(" ".join(map(str, query.context[-_SYMBOLS:])) or "(nothing yet)")


def outcome(answer: Answer) -> Text:
    """An answer as short as it goes, for tables."""
    if isinstance(answer, Decline):
        return literal(answer.reason, "dim", one_line=True)
    if answer.text is not None:
        return literal(answer.text, one_line=True) if answer.text else Text("nothing", "dim")
    return Text(" ".join(map(str, answer.actions)))


def percent(probability: float) -> str:
    """A probability as people read it.

    >>> percent(0.614), percent(0.0834), percent(1e-6), percent(0.0), percent(1.0)
    ('61 %', '8.3 %', '<0.1 %', '0 %', '100 %')
    """
    value = 100 * probability
    if value <= 0 or value >= 99.5:
        return "0 %" if value <= 0 else "100 %" if value >= 100 else ">99 %"
    if value < 0.05:
        return "<0.1 %"
    return f"{value:.1f} %" if value < 9.95 else f"{value:.0f} %"


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(4.2), duration(90), duration(7200), duration(400_000)
    ('4 s', '1 min', '2 h', '4 days')
    """
    for unit, length, most in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{max(0, int(seconds // length))} {unit}"
    return f"{int(seconds // 86_400)} days"


def time_left(seconds: float) -> str:
    """What a deadline leaves."""
    return f"{duration(seconds)} left" if seconds > 0 else f"{duration(-seconds)} too late"


def bar(action: PlausibleAction, width: int, *, ascii_only: bool = False) -> Text:
    """A scale from 0 to 1 of ``width`` cells: from the least to the largest plausible probability, the mixture marked.

    >>> bar(PlausibleAction(0, 0.25, 0.5, 1.0), 9).plain
    '··━━◆━━━━'
    """
    rest, span, mark = _marks(ascii_only)
    low, mixture, high = (round(min(max(p, 0.0), 1.0) * (width - 1)) for p in (action.low, action.mixture, action.high))
    drawn = Text()
    for cell in range(width):
        if cell == mixture:
            drawn.append(mark, "bold yellow")
        elif low <= cell <= high:
            drawn.append(span, "cyan")
        else:
            drawn.append(rest, "dim")
    return drawn


def _marks(ascii_only: bool) -> tuple[str, str, str]:
    """What a bar is drawn with: the rest, the span, the mixture."""
    return (".", "=", "#") if ascii_only else ("·", "━", "◆")


class _Actions:
    """The plausible actions, numbered."""

    def __init__(self, query: Query) -> None:
        self._query = query

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        query = self._query
        if not query.plausible:
            yield Text(f"No action is listed; they go from =0 to ={query.n_actions - 1}.", "dim")
            return
        yield self._narrow(options) if options.max_width < NARROW else self._wide(options)

    def _wide(self, options: ConsoleOptions) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=True, header_style="dim")
        table.add_column(width=3, justify="right")
        table.add_column("next", ratio=1, overflow="fold")
        table.add_column("", justify="right", style="dim", no_wrap=True)
        table.add_column(Text("0 %" + " " * 14 + "100 %"), width=22, no_wrap=True)
        for heading in ("least", f"{_marks(options.ascii_only)[2]} mixture", "most"):
            table.add_column(heading, justify="right", no_wrap=True)
        for number, label, action in self._rows():
            table.add_row(
                number,
                label,
                f"={action.action}" if action.text is not None else "",
                bar(action, 22, ascii_only=options.ascii_only),
                *map(percent, (action.low, action.mixture, action.high)),
            )
        return table

    def _narrow(self, options: ConsoleOptions) -> Table:
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=3, justify="right")
        table.add_column(overflow="fold")
        for number, label, action in self._rows():
            if action.text is not None:
                label.append(f" ={action.action}", "dim")
            low, mixture, high = map(percent, (action.low, action.mixture, action.high))
            table.add_row(number, label)
            table.add_row("", bar(action, min(30, options.max_width - 6), ascii_only=options.ascii_only))
            table.add_row("", Text(f"{low} to {high}, mixture {mixture}"))
        return table

    def _rows(self) -> Iterator[tuple[Text, Text, PlausibleAction]]:
        for number, action in enumerate(self._query.plausible, 1):
            label = Text(f"={action.action}") if action.text is None else literal(action.text, one_line=True)
            yield Text(str(number), "bold"), label if label.plain else Text('""', "dim"), action


def _context(query: Query, whole: bool) -> RenderableType:
    if query.messages:
        return _Conversation(query, whole)
    if query.text is not None:
        hidden = 0 if whole else max(0, len(query.text) - _CHARACTERS)
        return Group(*_hidden(hidden, "characters"), Padding(literal(query.text[hidden:]), (0, 0, 0, 2)))
    if not query.context:
        return Padding(Text("Nothing has happened yet.", "dim"), (0, 0, 0, 2))
    hidden = 0 if whole else max(0, len(query.context) - _SYMBOLS)
    symbols = Text(" ".join(map(str, query.context[hidden:])))
    return Group(*_hidden(hidden, "symbols"), Padding(symbols, (0, 0, 0, 2)))


class _Conversation:
    """The conversation: roles beside what was said, or above it if there is little room."""

    def __init__(self, query: Query, whole: bool) -> None:
        self._query, self._whole = query, whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        messages = self._query.messages
        hidden = 0 if self._whole else max(0, len(messages) - _MESSAGES)
        yield from _hidden(hidden, "messages")
        table = Table.grid(padding=(0, 2, 0, 0))
        if options.max_width >= NARROW:
            table.add_column(justify="right", width=11, overflow="fold")
        table.add_column(overflow="fold")
        for index, message in enumerate(messages[hidden:], hidden + 1):
            role = literal(message.role, "bold cyan" if message.role in AGENTS else "cyan", one_line=True)
            content = literal(message.content)
            if index == len(messages) and message.role in AGENTS:
                content.append(" ..." if content.plain and not content.plain.endswith((" ", "\n")) else "...", "yellow")
            if options.max_width >= NARROW:
                table.add_row(role, content)
            else:
                table.add_row(role)
                table.add_row(Padding(content, (0, 0, 0, 2)))
        yield table


def _hidden(n_hidden: int, what: str) -> list[Text]:
    return [Text(f"  ({n_hidden:,} earlier {what} not shown, c shows them)", "dim")] if n_hidden else []
