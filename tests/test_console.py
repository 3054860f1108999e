"""The terminal console: what is typed, what is recorded, and what is drawn."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType

import cautious_imitation
from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.database import LogError
from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import Act, Answer, Decline, PlausibleAction, Query
from cautious_imitation.oracles.terminal.console import TerminalConsole
from cautious_imitation.oracles.terminal.input import Lines, StreamLines, Verb, parse
from cautious_imitation.oracles.terminal.literal_text import literal
from cautious_imitation.oracles.terminal.tables import entries_json, entries_table, statistics_json, statistics_table
from cautious_imitation.oracles.terminal.view import bar, described, question

LISTED = (
    PlausibleAction(4, 0.1, 0.2, 0.3, " tea"),
    PlausibleAction(7, 0.0, 0.1, 0.5, " milk"),
    PlausibleAction(0, 0.0, 0.0, 0.1, "\n"),
)
TALK = Query(
    (3, 1),
    n_actions=9,
    ask_probability=0.61,
    plausible=LISTED,
    messages=(Message(role="user", content="Tea or milk?"), Message(role="assistant", content="I would say")),
    id="talk",
    asker="tuesday",
    episode=2,
)
NUMBERS = Query((1, 2), n_actions=9, id="numbers", asker="acts")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[QueryLog]:
    log = QueryLog(tmp_path / "questions.db", busy_seconds=0.05)
    log.post([TALK, NUMBERS])
    yield log
    log.close()


class Typist:
    """Types lines; a callable among them is something that happens before the next line."""

    def __init__(self, *script: str | Callable[[], object]) -> None:
        self.script = list(script)

    def read(self, prompt: str) -> str:
        while self.script:
            item = self.script.pop(0)
            if isinstance(item, str):
                return item
            item()
        raise EOFError

    def pressed(self, keys: str, seconds: float) -> str | None:
        key = self.read("")
        assert key in keys
        return key or None

    def forget(self) -> bool:
        return False


def session(log: QueryLog, *script: str | Callable[[], object], wait: bool = False, asker: str | None = None) -> str:
    """What Ada sees while she types ``script``."""
    console = Console(file=io.StringIO(), width=80, highlight=False)
    TerminalConsole(log, "Ada", wait=wait, asker=asker, console=console, lines=Typist(*script)).run()
    return shown(console)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn(what: RenderableType, width: int = 80, **options: object) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)  # type: ignore[arg-type]
    console.print(what)
    return shown(console)


def pressed_ctrl_c() -> None:
    raise KeyboardInterrupt


# What is typed


@pytest.mark.parametrize(
    ("line", "act"),
    [
        ("2", Act((7,))),
        (" 2  1 3 ", Act((7, 4, 0))),
        ("2, 1,1", Act((7, 4, 4))),
        ("=8", Act((8,))),
        ("= 8 4", Act((8, 4))),
        ("=8 =4", Act((8, 4))),
        ("t milk, =2 ", Act(text=" milk, =2")),
        ("T  two\nlines ", Act(text=" two\nlines")),
        ("t , milk", Act(text=", milk")),
        ("t +ing", Act(text="ing")),
        ("t 牛乳", Act(text="牛乳")),
        ("n", Act(text="")),
        ("nothing", Act(text="")),
    ],
)
def test_a_line_is_an_answer(line: str, act: Act) -> None:
    assert parse(line, TALK).act == act


def test_a_reply_that_nobody_has_begun_is_as_it_is_written() -> None:
    begun = replace(TALK, messages=(TALK.messages[0],))
    for line, text in (("t milk", "milk"), ("t +1", "+1")):
        assert parse(line, begun).act == Act(text=text)
    blank = replace(TALK, messages=(Message(role="assistant", content="Well, "),))
    assert parse("t milk", blank).act == Act(text="milk")


@pytest.mark.parametrize(
    ("line", "verb", "words"),
    [
        ("", Verb.NOTHING, ""),
        ("  ", Verb.NOTHING, ""),
        ("s", Verb.SKIP, ""),
        ("Skip", Verb.SKIP, ""),
        ("d not  now ", Verb.DECLINE, "not  now"),
        ("t", Verb.TEXT, ""),
        ("u", Verb.UNDO, ""),
        ("?", Verb.HELP, ""),
        ("quit", Verb.QUIT, ""),
    ],
)
def test_a_line_is_a_command(line: str, verb: Verb, words: str) -> None:
    command = parse(line, TALK)
    assert (command.verb, command.act, command.words) == (verb, None, words)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("4", "no number 4, the list goes from 1 to 3"),
        ("0", "no number 0"),
        ("-1", "'-1' is no answer"),
        ("1.5", "is no answer"),
        ("²", "is no answer"),
        ("1" * 5000, "is no answer"),
        ("=9", "no action 9; they go from 0 to 8"),
        ("=", "needs an action from 0 to 8"),
        ("=x", "is no answer"),
        ("2 =7", "either numbers from the list, or raw actions"),
        ("yes please", "type a number, t and a reply in words, or ? for help"),
        ("s 2", "takes nothing after it"),
        ("quit now", "takes nothing after it"),
    ],
)
def test_what_is_no_answer_is_told(line: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        parse(line, TALK)


def test_without_a_list_numbers_point_to_raw_actions() -> None:
    with pytest.raises(ValueError, match="nothing is listed; = takes actions by their own numbers, from 0 to 8"):
        parse("1", NUMBERS)


# What is recorded


@pytest.mark.parametrize(
    ("script", "answer", "line"),
    [
        (["2 1"], Act((7, 4)), "Recorded: ␣milk (=7), then ␣tea (=4) (u undoes it)"),
        (["=8"], Act((8,)), "Recorded: =8 (u"),
        (["t Milk."], Act(text=" Milk."), "Recorded: a reply, ␣Milk. (u"),
        (["t", "Milk,", "", "then tea.", "."], Act(text=" Milk,\n\nthen tea."), "␣Milk,␊␊then tea."),
        (["d no time", "y"], Decline("no time", independent=True), "declined independently of the answer: no time (u"),
        (["d", "", "too hard", "?", "N"], Decline("too hard"), "declined depending on the answer: too hard (u"),
    ],
)
def test_an_answer_is_recorded_and_told(log: QueryLog, script: list[str], answer: Answer, line: str) -> None:
    seen = session(log, *script)
    entry = log.entry("talk")
    assert (entry.answer, entry.answered_by) == (answer, "Ada")
    assert line in seen
    assert "Left after 1 answer. Questions: 1 open, 0 with others, 1 done." in seen


@pytest.mark.parametrize(
    "script",
    [
        ["9", "=99", "what?", ""],
        ["?", "c"],
        ["t", " ", "."],
        ["t +"],
        ["d no", "b"],
        ["t bytes \udcff"],
        ["t", "bytes \udcff", "."],
    ],
)
def test_after_anything_else_the_question_stays(log: QueryLog, script: list[str]) -> None:
    def still_asked() -> None:
        assert (log.entry("talk").status, log.entry("talk").claimed_by) == (Status.CLAIMED, "Ada")

    session(log, *script, still_asked, "1")
    assert log.entry("talk").answer == Act((4,))
    assert log.entry("numbers").status is Status.OPEN


def test_saying_nothing_is_an_answer_in_a_conversation(log: QueryLog) -> None:
    seen = session(log, "n", "n", "=6")
    assert "Recorded: a reply, nothing" in seen
    assert log.entry("talk").answer == Act(text="")
    assert "n says nothing in a conversation, and this is none" in seen
    assert log.entry("numbers").answer == Act((6,))


def test_a_run_without_words_gets_none(log: QueryLog) -> None:
    seen = session(log, "t six", "=6", asker="acts")
    assert "knows no words" in seen
    assert log.entry("numbers").answer == Act((6,))
    assert log.entry("talk").status is Status.OPEN


@pytest.mark.parametrize("script", [["q"], [], ["s", "q"], ["t", "half a reply"], ["d too hard"], ["t half", "u"]])
def test_whoever_leaves_gives_the_question_back(log: QueryLog, script: list[str]) -> None:
    session(log, *script)
    assert log.statistics().counts[Status.CLAIMED] == 0
    assert log.entry("numbers").status is Status.OPEN


def test_an_unfinished_reply_is_shown_when_the_input_ends(log: QueryLog) -> None:
    assert "Not recorded: half a reply that" in session(log, "t", "half a reply", "that")[-200:].replace("␊", " ")


def test_ctrl_c_gives_the_question_back(log: QueryLog) -> None:
    with pytest.raises(KeyboardInterrupt):
        session(log, pressed_ctrl_c)
    assert log.entry("talk").status is Status.OPEN


def test_undo_goes_back_one_answer_after_another(log: QueryLog) -> None:
    seen = session(log, "u", "2", "u", "1", "=3", "u", "u", "3", "=5", wait=True)
    assert "no answer in this session that could be undone" in seen
    assert (log.entry("talk").answer, log.entry("numbers").answer) == (Act((0,)), Act((5,)))


def test_undo_can_be_tried_again_when_the_log_is_free(log: QueryLog) -> None:
    other = sqlite3.connect(log.path, isolation_level=None)
    session(log, "2", lambda: other.execute("BEGIN IMMEDIATE"), "u", lambda: other.execute("ROLLBACK"), "u", "1")
    assert log.entry("talk").answer == Act((4,))
    other.close()


def test_a_question_at_hand_is_given_back_too(tmp_path: Path) -> None:
    class Interrupted(QueryLog):
        def release(self, id: str, by: str) -> None:
            super().release(id, by)
            if id == "numbers":
                pressed_ctrl_c()

    log = Interrupted(tmp_path / "questions.db")
    log.post([TALK, NUMBERS])
    with pytest.raises(KeyboardInterrupt):
        session(log, "2", "u")
    assert (log.entry("talk").status, log.entry("numbers").status) == (Status.OPEN, Status.OPEN)
    log.close()


def test_undo_ends_where_the_run_has_gone_on(log: QueryLog) -> None:
    seen = session(log, "2", lambda: log.take(["talk"]), "u", "u", "=5")
    assert "cannot be undone: the run has gone on with it" in " ".join(seen.split())
    assert (log.entry("talk").answer, log.entry("numbers").answer) == (Act((7,)), Act((5,)))


def test_skipped_questions_come_last_and_only_when_wanted(log: QueryLog) -> None:
    seen = session(log, "s", "=1", "", "r", "2", "q", wait=True)
    assert "Skipped; others may answer it." in seen
    assert (log.entry("talk").answer, log.entry("numbers").answer) == (Act((7,)), Act((1,)))
    others = QueryLog(log.path)
    others.post([replace(TALK, id="more")])
    session(log, "s")
    assert others.entry("more").status is Status.OPEN
    others.close()


# What others do meanwhile


def later(log: QueryLog, seconds: float = 10_000.0) -> QueryLog:
    return QueryLog(log.path, clock=lambda: time.time() + seconds)


def test_an_answer_to_a_question_that_somebody_else_has_is_not_lost_silently(log: QueryLog) -> None:
    future = later(log)
    seen = " ".join(session(log, lambda: future.claim("Grace"), "t My words.", "=3").split())
    assert "is being answered by 'Grace'" in seen
    assert "Not recorded: a reply, ␣My words." in seen
    assert (log.entry("talk").claimed_by, log.entry("talk").answer) == ("Grace", None)
    assert log.entry("numbers").answer == Act((3,))
    future.close()


def test_a_late_answer_counts_until_the_run_goes_on(log: QueryLog) -> None:
    future = later(log)
    log.post([replace(TALK, id="late", asker="hasty", deadline=time.time() + 100)])
    passed = lambda: future.claim("Grace", asker="hasty")  # noqa: E731
    session(log, passed, "1", asker="hasty")
    assert (log.entry("late").answer, log.entry("late").answered_by) == (Act((4,)), "Ada")

    log.post([replace(TALK, id="too late", asker="hasty", deadline=time.time() + 100)])
    seen = session(log, passed, lambda: future.take(["too late"]), "1", asker="hasty")
    assert "has expired, and the run went on without an answer" in " ".join(seen.split())
    assert log.entry("too late").answer is None
    future.close()


class Watched(QueryLog):
    """Tells when a claim is about to be renewed, and what was left of it."""

    def __init__(self, path: Path, lease_seconds: float) -> None:
        super().__init__(path, lease_seconds=lease_seconds)
        self.renewing, self.renewed = threading.Event(), threading.Event()
        self.before: list[Status] = []
        self.delay_seconds = 0.0

    def claim(self, by: str, *, id: str | None = None, **others: object) -> Query | None:  # type: ignore[override]
        if id is None:
            return super().claim(by, **others)  # type: ignore[arg-type]
        self.before.append(self.entry(id).status)
        self.renewing.set()
        threading.Event().wait(self.delay_seconds)
        query = super().claim(by, id=id)
        self.renewed.set()
        return query


def test_a_claim_lasts_while_the_person_thinks(tmp_path: Path) -> None:
    log = Watched(tmp_path / "questions.db", lease_seconds=3.0)
    log.post([TALK])
    ends: list[float | None] = [None]

    def think() -> None:
        ends[0] = log.entry("talk").lease_until
        assert log.renewed.wait(20)
        ends.append(log.entry("talk").lease_until)

    session(log, think, "s")
    assert None not in ends
    assert ends == sorted(set(ends), key=lambda end: end or 0.0)
    assert log.before[0] is Status.CLAIMED
    log.close()


def test_a_question_that_is_given_back_is_not_claimed_again(tmp_path: Path) -> None:
    log = Watched(tmp_path / "questions.db", lease_seconds=0.3)
    log.post([TALK])
    log.delay_seconds = 0.2
    session(log, lambda: log.renewing.wait(20), "s")
    assert not [thread for thread in threading.enumerate() if thread.name == "claim"]
    assert log.renewed.is_set()
    assert log.entry("talk").status is Status.OPEN
    log.close()


def test_a_claim_that_was_lost_is_told(tmp_path: Path) -> None:
    log = QueryLog(tmp_path / "questions.db", lease_seconds=0.6)
    future = later(log)
    log.post([TALK])

    def find_out() -> None:
        for thread in threading.enumerate():
            if thread.name == "claim":
                thread.join(20)
                assert not thread.is_alive()

    seen = session(log, lambda: future.claim("Grace"), find_out, "?", "q")
    assert "is being answered by 'Grace'" in " ".join(seen.split())
    assert log.entry("talk").claimed_by == "Grace"
    log.close()
    future.close()


def test_an_answer_waits_until_the_log_can_be_written(log: QueryLog) -> None:
    other = sqlite3.connect(log.path, isolation_level=None)
    seen = session(
        log,
        lambda: other.execute("BEGIN IMMEDIATE"),
        "2",
        "?",
        "",
        lambda: other.execute("ROLLBACK"),
        "",
        "=3",
    )
    assert seen.count("Not recorded yet: ␣milk (=7)") == 2
    assert "another process has kept it locked" in " ".join(seen.split())
    assert (log.entry("talk").answer, log.entry("numbers").answer) == (Act((7,)), Act((3,)))
    other.close()


def test_another_answer_replaces_one_that_could_not_be_kept(log: QueryLog) -> None:
    other = sqlite3.connect(log.path, isolation_level=None)
    session(log, lambda: other.execute("BEGIN IMMEDIATE"), "2", lambda: other.execute("ROLLBACK"), "1")
    assert log.entry("talk").answer == Act((4,))
    other.close()


@pytest.mark.parametrize("leaving", [["q"], []])
def test_whoever_leaves_a_log_that_cannot_be_read_is_told_why(log: QueryLog, leaving: list[str]) -> None:
    other = sqlite3.connect(log.path, isolation_level=None)
    console = Console(file=io.StringIO(), width=80)
    # Read before the session begins, locked before the first question.
    script: list[str | Callable[[], object]] = ["1", lambda: other.execute("BEGIN IMMEDIATE"), "s", "", *leaving]
    with pytest.raises(LogError, match="kept it locked"):
        TerminalConsole(log, "Ada", console=console, lines=Typist(*script)).run()
    other.execute("ROLLBACK")
    assert "the question could not be given back" in " ".join(shown(console).split())
    assert log.entry("talk").answer == Act((4,))
    other.close()


def test_nobody_answers_without_a_name(log: QueryLog) -> None:
    with pytest.raises(ValueError, match="name must say who answers, got ' '"):
        TerminalConsole(log, " ")


# Lines of a pipe


def test_lines_of_a_pipe_wait_for_their_question(log: QueryLog) -> None:
    out = Console(file=io.StringIO(), width=80)
    read, write = os.pipe()
    with os.fdopen(read) as stream, os.fdopen(write, "wb", 0) as typed:
        lines: Lines = StreamLines(stream, out)
        assert lines.pressed("uq", 0.0) is None
        typed.write(b"2\r\nu\n\xff")
        assert lines.pressed("uq", 0.05) is None
        assert lines.read("> ") == "2"
        assert lines.pressed("uq", 10.0) == "u"
        typed.write("ü".encode())
        typed.close()
        assert lines.read("> ") == "\udcffü"
        with pytest.raises(EOFError):
            lines.pressed("uq", 10.0)
        with pytest.raises(EOFError):
            lines.read("> ")
    assert shown(out) == "> 2\n> \\udcffü\n> \n"


# What is drawn


def test_a_question_shows_what_a_person_needs() -> None:
    seen = drawn(question(replace(TALK, deadline=1_000.0), now=700.0, n_open=3))
    for words in (
        "tuesday, episode 2",
        "with probability 61 %, 5 min left, 3 more open",
        "user  Tea or milk?",
        "assistant  I would say ...",
        "◆ mixture",
    ):
        assert words in seen
    assert re.search(r"2 ␣milk +=7 ━━◆━━━━━━━━··········· +0 % +10 % +50 %", seen)


def test_a_question_without_words_shows_its_last_symbols() -> None:
    long = replace(NUMBERS, context=tuple(range(100, 200)))
    seen = drawn(question(long, now=0.0))
    assert "(40 earlier symbols not shown, c shows them)" in seen
    assert "139" not in seen
    assert "140 141" in seen
    assert "199" in seen
    assert "they go from =0 to =8" in seen
    assert "100 101" in drawn(question(long, now=0.0, whole=True))
    assert "Nothing has happened yet." in drawn(question(replace(NUMBERS, context=()), now=0.0))


def test_a_long_conversation_shows_its_end() -> None:
    messages = tuple(Message(role="user", content=f"message {n}") for n in range(30))
    seen = drawn(question(replace(TALK, messages=messages), now=0.0))
    assert "(18 earlier messages not shown, c shows them)" in seen
    assert "message 17" not in seen
    assert "message 18" in seen
    assert "message 0" in drawn(question(replace(TALK, messages=messages), now=0.0, whole=True))


@given(
    st.tuples(*[st.floats(0, 1)] * 3).map(sorted),
    st.floats(0, 1),
    st.integers(2, 40),
)
def test_a_bar_spans_low_to_high_and_marks_the_mixture(values: list[float], mixture: float, width: int) -> None:
    low, _, high = values
    cells = bar(PlausibleAction(0, low, mixture, high), width, ascii_only=True).plain
    assert len(cells) == width
    assert cells.index("#") == round(mixture * (width - 1))
    begin, end = round(low * (width - 1)), round(high * (width - 1))
    assert all(cells[i] in ("=#" if begin <= i <= end else ".#") for i in range(width))


HOSTILE = st.text(
    st.one_of(
        st.sampled_from("\x1b[]0;m\x07\x08\r\n\t\x7f\x9b\x9d\x90\x1f\u202e\u2066\u200b\u200d\ufeff\u2028\xad a日é[/]:"),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=40,
)
TOLD = st.builds(
    Query,
    st.just((1, 2)),
    st.just(9),
    plausible=st.lists(
        st.builds(PlausibleAction, st.integers(0, 8), st.just(0.1), st.just(0.2), st.just(0.3), st.none() | HOSTILE),
        max_size=3,
    ).map(tuple),
    text=st.none() | HOSTILE,
    messages=st.lists(st.builds(Message, role=HOSTILE, content=HOSTILE), max_size=2).map(tuple),
    id=HOSTILE,
    asker=HOSTILE,
)  # fmt: skip
SGR = re.compile(r"\x1b\[[0-9;]*m")
SGR_BYTES = re.compile(SGR.pattern.encode())


def assert_harmless(output: str) -> None:
    """Nothing but what is seen, ends of lines, spaces, and joiners, which only join."""
    for character in output:
        assert literal(character).plain == character or character in "\u200c\u200d", f"{character!r} in {output!r}"


@settings(max_examples=80)
@given(TOLD, st.integers(30, 100))
def test_no_text_controls_the_terminal(query: Query, width: int) -> None:
    page = question(query, now=0.0, whole=True)
    plain = drawn(page, width, force_terminal=True, color_system=None)
    assert_harmless(plain)
    assert SGR.sub("", drawn(page, width, force_terminal=True, color_system="truecolor")) == plain


# Every example is a file that is safely on the disk; to shrink one would take minutes.
@settings(max_examples=25, phases=[Phase.generate])
@given(TOLD, HOSTILE, HOSTILE)
def test_no_session_and_no_table_controls_the_terminal(query: Query, typed: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = QueryLog(Path(folder, "questions.db"))
        log.post([query, replace(query, id="second " + query.id)])
        out = io.StringIO()
        console = Console(file=out, width=60, force_terminal=True, color_system=None, highlight=False)
        script = [typed, f"t {typed}", f"d {typed}!", "y", "u", f"=3 {typed}", "?", "=3", "=4", "=5", "c", "q"]
        lines = StreamLines(
            io.StringIO("\n".join(line.replace("\n", " ").replace("\r", " ") for line in script)), console
        )
        TerminalConsole(log, name.strip() or "Ada", console=console, lines=lines, wait=False).run()
        entries = log.entries()
        console.print(entries_table(entries, 0.0))
        console.print(statistics_table(log.statistics()))
        console.print(described(Decline(typed), query))
        assert_harmless(out.getvalue())
        assert_harmless(entries_json(entries) + statistics_json(log.statistics()))
        log.close()


@given(HOSTILE, st.booleans())
def test_what_can_be_seen_stays_as_it_is_and_in_order(text: str, one_line: bool) -> None:
    kept = iter(literal(text, one_line=one_line).plain)
    assert all(character in kept for character in text if character.isprintable() and character != " ")
    if text.isprintable() and text == text.strip(" "):
        assert literal(text, one_line=one_line).plain == text


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("query", [TALK, NUMBERS, replace(TALK, messages=(), text="word " * 50 + "x" * 200)])
def test_every_line_fits(query: Query, width: int) -> None:
    seen = drawn(question(query, now=0.0), width)
    assert max(map(len, seen.splitlines())) <= width
    for action in query.plausible:
        assert f"={action.action}" in seen


# A real terminal


class Terminal:
    """The command in a process of its own, with a terminal of ours."""

    def __init__(self, *arguments: str | Path, columns: int = 80, **environment: str) -> None:
        self.master, slave = os.openpty()
        # The process gets it as its controlling terminal, so that Ctrl-C is a signal and closing it a hangup.
        begin = (
            "import fcntl, os, sys, termios\n"
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'cautious_imitation', *sys.argv[1:]])"
        )
        settings = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "50", "NO_COLOR": "", **environment}
        home = {"PYTHONPATH": str(Path(cautious_imitation.__file__).parents[1])}
        self.process = subprocess.Popen(
            [sys.executable, "-c", begin, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, **settings, **home},
        )
        os.close(slave)
        self.output = b""
        self.read = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.master >= 0:
            os.close(self.master)

    def see(self, words: str, after: str = "") -> None:
        """Wait until ``words`` are written, after what was seen before, whatever their colour.

        ``after`` is typed before, and again if nothing happens: a signal that comes while readline is at work is
        noticed with the next one only.
        """
        end = time.monotonic() + 60
        self.type(after)
        while (found := SGR_BYTES.sub(b"", self.output).find(words.encode(), self.read)) < 0:
            if not select.select([self.master], [], [], 1)[0]:
                assert time.monotonic() < end, f"{words!r} is not in {self.output[-2000:]!r}"
                self.type(after)
                continue
            try:
                more = os.read(self.master, 1 << 16)
            except OSError:  # What Linux says when the process is gone.
                more = b""
            assert more, f"{words!r} is not in {self.output[-2000:]!r}"
            self.output += more
        self.read = found + len(words.encode())

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def close(self) -> None:
        os.close(self.master)
        self.master = -1

    def left(self) -> int:
        return self.process.wait(60)


def test_a_session_in_a_terminal(tmp_path: Path) -> None:
    log = QueryLog(tmp_path / "questions.db")
    with Terminal("oracle", "console", log.path, "--name", "Ada") as terminal:
        terminal.see("0 open, 0 with others, 0 done")
        terminal.see("Waiting for questions")
        hostile = "\x1b]0;title\x07 \x1b[2J \x9b2J \u202e"
        log.post([replace(TALK, asker="run " + hostile, messages=(Message(role="user", content=hostile),))])
        terminal.see("run ␛]0;title␇ ␛[2J \\x9b2J \\u202e")
        terminal.see("answer> ")
        assert log.entry("talk").claimed_by == "Ada"
        terminal.type("what?\r")
        terminal.see("is no answer")
        terminal.see("answer> ")
        terminal.type("9\x7f2\r")
        terminal.see("Recorded")
        terminal.see("Waiting for questions")
        assert log.entry("talk").answer == Act((7,))
        terminal.type("u")
        terminal.see("Taken back")
        terminal.see("answer> ")
        # Several lines pasted at once are one reply: terminals mark what is pasted, if they are asked to.
        assert b"\x1b[?2004h" in terminal.output
        terminal.type("\x1b[200~t two\rlines\r=4\x1b[201~\r")
        terminal.see("a reply, ")
        terminal.see("Waiting for questions")
        assert log.entry("talk").answer == Act(text="two\nlines\n=4")
        terminal.type("q")
        terminal.see("Left after 1 answer.")
        assert terminal.left() == 0
    for control in (b"\x1b]", b"\x1b[2J", b"\x9b2J", "\u202e".encode()):
        assert control not in terminal.output.replace(b"\xc2\x9b", b"\x9b")
    log.close()


def test_lines_typed_before_a_question_are_no_answer_to_it(log: QueryLog) -> None:
    with Terminal("oracle", "console", log.path, "--name", "Ada", columns=40) as terminal:
        terminal.see("answer> ")
        terminal.type("1\r=1\r=2\r")
        terminal.see("is dropped")
        terminal.see("answer> ")
        terminal.type("=5\r")
        terminal.see("Waiting")
        terminal.type("\x04")
        assert terminal.left() == 0
    assert (log.entry("talk").answer, log.entry("numbers").answer) == (Act((4,)), Act((5,)))


@pytest.mark.parametrize(("keys", "status"), [("\x04", 0), ("\x03", 130)])
def test_ctrl_d_and_ctrl_c_leave_and_give_back(log: QueryLog, keys: str, status: int) -> None:
    with Terminal("oracle", "console", log.path, "--name", "Ada", NO_COLOR="1", columns=40) as terminal:
        terminal.see("answer> ")
        assert log.entry("talk").status is Status.CLAIMED
        if status:
            terminal.type("half")
            terminal.see("half")
        terminal.see("Left after 0 answers.", after=keys)
        assert terminal.left() == status
    assert log.entry("talk").status is Status.OPEN
    colours = re.findall(rb"\x1b\[([0-9;]*)m", terminal.output)
    assert not [code for code in colours if re.search(rb"(^|;)[349]", code)]


def test_a_closed_terminal_gives_back(log: QueryLog) -> None:
    with Terminal("oracle", "console", log.path, "--name", "Ada") as terminal:
        terminal.see("answer> ")
        terminal.close()
        assert terminal.left() == 128 + signal.SIGHUP
    assert log.entry("talk").status is Status.OPEN
