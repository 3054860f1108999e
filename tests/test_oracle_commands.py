"""The commands about questions, as a user types them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cautious_imitation
from cautious_imitation.cli import app
from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import Act, Decline, PlausibleAction, Query

TALK = Query(
    (3, 1),
    n_actions=9,
    plausible=(PlausibleAction(4, 0.1, 0.2, 0.3, "tea"), PlausibleAction(7, 0.0, 0.1, 0.5, "milk")),
    messages=(Message(role="user", content='Tea or "milk"?\x1b[2J'),),
    id="tuesday/2/2",
    asker="tuesday",
    episode=2,
)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[QueryLog]:
    """Four questions: one open, one claimed, one answered, one declined."""
    log = QueryLog(tmp_path / "questions.db")
    log.post([TALK, *(Query((n,), n_actions=9, id=f"acts/{n}", asker="acts") for n in range(3))])
    log.claim("Grace", id="acts/0")
    log.answer("acts/1", Act((8, 8)), by="Alan")
    log.answer("acts/2", Decline("too hard\x1b"), by="Alan")
    yield log
    log.close()


def typed(*arguments: str | Path, keys: str = "") -> Result:
    """Run a command in this process, with ``keys`` as standard input; a bug comes through."""
    return CliRunner().invoke(app, ["oracle", *map(str, arguments)], input=keys, catch_exceptions=False)


def process(*arguments: str | Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a command in a process of its own, between pipes."""
    home = {"PYTHONPATH": str(Path(cautious_imitation.__file__).parents[1])}
    command = [sys.executable, "-m", "cautious_imitation", "oracle", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, **home, **environment}, **pipes)  # type: ignore[call-overload]


def assert_told(result: Result, *words: str) -> None:
    """One clear line on stderr, exit code 2."""
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def listed(*arguments: str | Path) -> list[str]:
    """Ids that ``oracle list --json`` tells."""
    result = typed("list", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return [entry["query"]["id"] for entry in json.loads(result.stdout)]


def test_list_is_a_table_of_all_questions(log: QueryLog) -> None:
    result = typed("list", log.path)
    assert result.exit_code == 0
    heading, *rows = (line.split() for line in result.stdout.splitlines())
    assert heading == ["status", "ago", "asker", "question", "answer", "by"]
    assert [row[0] for row in rows] == ["open", "claimed", "answered", "declined"]
    assert "tuesday/2" in rows[0]
    assert rows[1][-1] == "Grace"
    assert rows[2][-3:] == ["8", "8", "Alan"]
    assert rows[3][-3:] == ["too", "hard␛", "Alan"]
    assert 'user Tea or "milk"?␛[2J' in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ([], ["tuesday/2/2", "acts/0", "acts/1", "acts/2"]),
        (["--status", "open"], ["tuesday/2/2"]),
        (["--asker", "acts"], ["acts/0", "acts/1", "acts/2"]),
        (["--asker", "acts", "--status", "declined"], ["acts/2"]),
        (["--search", 'or "MILK"'], ["tuesday/2/2"]),
        (["--search", "acts/1"], ["acts/1"]),
        (["--limit", "2"], ["tuesday/2/2", "acts/0"]),
        (["--asker", "nobody"], []),
    ],
)
def test_list_filters(log: QueryLog, filters: list[str], ids: list[str]) -> None:
    assert listed(log.path, *filters) == ids
    table = typed("list", log.path, *filters).stdout
    assert len(table.splitlines()) == 1 + len(ids) if ids else table == "No such question.\n"


def test_list_as_json_says_all_and_nothing_that_a_terminal_obeys(log: QueryLog) -> None:
    log.post([Query((), n_actions=2, id="e", text="\x7f\x9b2J\u202e")])
    output = typed("list", log.path, "--json").stdout
    assert re.fullmatch(r"[\n -~]*", output)
    first, _, third, fourth, last = json.loads(output)
    assert first["query"]["messages"][0]["content"] == 'Tea or "milk"?\x1b[2J'
    assert (third["answer"]["actions"], third["answered_by"], third["status"]) == ([8, 8], "Alan", "answered")
    assert (fourth["answer"]["reason"], fourth["answer"]["independent"]) == ("too hard\x1b", False)
    assert last["query"]["text"] == "\x7f\x9b2J\u202e"


def test_list_draws_what_the_output_can_take(log: QueryLog) -> None:
    with process("list", log.path, PYTHONIOENCODING="ascii") as running:
        output, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (0, b"")
    assert rb"\u241b[2J" in output
    assert re.fullmatch(rb"[\n -~]*", output)


def test_stats_counts(log: QueryLog) -> None:
    output = typed("stats", log.path).stdout
    for pattern in (r"open +1", r"claimed +1", r"answered +1", r"expired +0", r"may depend .* +1", r"Alan +2"):
        assert re.search(pattern, output), pattern
    found = json.loads(typed("stats", log.path, "--json").stdout)
    assert found["counts"] == {"open": 1, "claimed": 1, "answered": 1, "declined": 1, "expired": 0}
    assert (found["by_person"], found["dependent_answers"]) == ({"Alan": 2}, 1)
    assert json.loads(typed("stats", log.path, "--asker", "tuesday", "--json").stdout)["counts"]["open"] == 1
    assert "Alan" not in typed("stats", log.path, "--asker", "tuesday").stdout


def test_console_takes_a_script(log: QueryLog) -> None:
    result = typed("console", log.path, "--name", "Ada", "--no-wait", keys="3\n2\n")
    assert result.exit_code == 0
    assert "! there is no number 3, the list goes from 1 to 2" in result.stdout
    assert "answer> 2\nRecorded: milk (=7)" in result.stdout
    assert (log.entry("tuesday/2/2").answer, log.entry("tuesday/2/2").answered_by) == (Act((7,)), "Ada")
    assert log.entry("acts/0").claimed_by == "Grace"
    assert "Left after 1 answer. Questions: 0 open, 1 with others, 3 done." in result.stdout


def test_console_asks_the_questions_of_one_run(log: QueryLog) -> None:
    log.post([Query((), n_actions=9, id="acts/9", asker="acts")])
    assert typed("console", log.path, "--asker", "acts", "--no-wait", keys="=1").exit_code == 0
    assert log.entry("acts/9").answer == Act((1,))
    assert log.entry("tuesday/2/2").status is Status.OPEN


def test_console_answers_under_the_login(log: QueryLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    assert typed("console", log.path, "--no-wait", keys="1").exit_code == 0
    assert log.entry("tuesday/2/2").answered_by == "ada"


def test_console_waits_between_pipes(tmp_path: Path) -> None:
    log = QueryLog(tmp_path / "questions.db")
    with process("console", log.path, "--name", "Ada", PYTHONIOENCODING="ascii") as running:
        assert running.stdin is not None
        assert running.stdout is not None
        seen = b""
        while b"Waiting for questions: 0 open" not in seen:
            seen += (line := running.stdout.readline())
            assert line
        log.post([TALK])
        rest, errors = running.communicate(b"t J\xc3\xbcrgen\nu\n1\n", timeout=60)
    assert (running.returncode, errors) == (0, b"")
    assert log.entry(TALK.id).answer == Act((4,))
    seen += rest
    for words in (b"#", rb"user  Tea or ", b"a reply, J\\xfcrgen", b"Taken back", b"Left after 1 answer."):
        assert words in seen
    assert re.fullmatch(rb"[\n -~]*", seen)
    log.close()


def test_console_leaves_when_nobody_reads_what_it_writes(log: QueryLog) -> None:
    with process("console", log.path, "--name", "Ada") as running:
        assert running.stdout is not None
        assert running.stdin is not None
        assert running.stdout.readline()
        running.stdout.close()
        running.stdin.write(b"?\n" * 10)
        running.stdin.flush()
        assert running.wait(60) != 0
    assert log.entry("tuesday/2/2").status is Status.OPEN


@pytest.mark.parametrize("command", ["console", "list", "stats"])
def test_mistakes_are_told_in_one_line(command: str, tmp_path: Path) -> None:
    assert_told(typed(command, tmp_path / "none.db"), "no log of questions at", "none.db")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").write_text("These are no questions.\n" * 100, encoding="utf-8")
    assert_told(typed(command, tmp_path / "notes.txt"), "notes.txt", "name another file")
    damaged = tmp_path / "damaged.db"
    log = QueryLog(damaged)
    log.post([TALK])
    log.close()
    content = bytearray(damaged.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    damaged.write_bytes(content)
    assert_told(typed(command, damaged), "damaged.db", "it is damaged")


def test_wrong_options_are_told(log: QueryLog) -> None:
    assert_told(typed("list", log.path, "--status", "[red]"), "open, claimed, answered, declined, expired, got '[red]'")
    assert_told(typed("console", log.path, "--name", " "), "name must say who answers")
    assert typed("list", log.path, "--limit", "0").exit_code == 2


def test_help_names_the_commands() -> None:
    output = typed("--help").stdout
    for command in ("console", "list", "stats"):
        assert command in output
    assert "oracle" in CliRunner().invoke(app, ["--help"]).stdout


def test_the_session_in_the_documentation_is_a_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[1] / "docs" / "how-to" / "terminal-console.md"
    blocks = re.findall(r"```(python|text)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    questions = next(code for kind, code in blocks if kind == "python")
    shown = next(text for kind, text in blocks if kind == "text")
    monkeypatch.chdir(tmp_path)
    names: dict[str, QueryLog] = {}
    exec(questions, names)
    keys = re.findall(r"> (.*)\n", shown)
    result = typed("console", "questions.db", "--name", "Ada", "--no-wait", keys="\n".join(keys))
    names["log"].close()
    assert [line.rstrip() for line in result.stdout.strip().splitlines()] == shown.strip().splitlines()
