"""Files that are locked, full, read-only, damaged, somebody else's, of another version; forks and power cuts."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from cautious_imitation.oracles import database
from cautious_imitation.oracles.database import Database, LogError
from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.migrations import APPLICATION, MIGRATIONS
from cautious_imitation.oracles.protocol import Act, Decline, Query

ROOT = Path(__file__).parents[1]
NOBODY = 65534


def questions(n: int, length: int = 20) -> list[Query]:
    return [Query(tuple(range(length)), n_actions=length, id=f"q{i}", text=f"question {i}") for i in range(n)]


def refused(path: Path, *words: str, busy_seconds: float = 0.05) -> None:
    """It is said that the log cannot be opened: of which file, and with which words."""
    with pytest.raises(LogError) as caught:
        QueryLog(path, busy_seconds=busy_seconds)
    for word in (str(path), *words):
        assert word in str(caught.value)


def python(script: str, *arguments: object, **options: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **options,
    )


@contextmanager
def as_nobody(folder: Path, may_write_there: bool = False) -> Iterator[None]:
    """As a user who may read what is in ``folder``. Permissions do not keep out the superuser, who becomes one."""
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o777 if may_write_there else 0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


ALL = [f"q{i}" for i in range(6)]


def make_log(path: Path, n: int = 4) -> Path:
    """A closed log of ``n`` questions, of which the first are answered and declined."""
    log = QueryLog(path, clock=lambda: 1000.0)
    log.post(questions(n))
    log.answer("q0", Act((1, 2)), by="Ada")
    log.answer("q1", Decline("no idea"), by="Grace")
    log.take(["q0"])
    log.close()
    return path


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""


def test_a_file_that_another_process_writes_for_long_is_said_to_be_locked(tmp_path: Path) -> None:
    path = make_log(tmp_path / "q.db")
    other = python(LOCK, path, "SELECT 1")
    assert other.stdout.readline() == "locked\n"
    log = QueryLog(path, busy_seconds=0.05)
    with pytest.raises(
        LogError, match=r"q\.db: database is locked; another process has kept it locked for 0\.05 s; .*"
    ):
        log.claim("Ada")
    assert len(log.entries()) == 4, "reading has no need to wait"
    other.communicate("done\n")
    assert log.claim("Ada").id == "q2"
    log.close()


def test_a_file_that_another_process_keeps_for_itself_cannot_be_opened(tmp_path: Path) -> None:
    path = make_log(tmp_path / "q.db")
    other = python(LOCK, path, "PRAGMA locking_mode = EXCLUSIVE")
    assert other.stdout.readline() == "locked\n"
    refused(path, "another process has kept it locked for 0.05 s", "busy_seconds")
    other.communicate("done\n")
    QueryLog(path).close()


def test_who_waits_comes_in_when_the_lock_is_given_back(tmp_path: Path) -> None:
    path = make_log(tmp_path / "q.db")
    other = python(LOCK, path, "SELECT 1")
    assert other.stdout.readline() == "locked\n"
    log = QueryLog(path, busy_seconds=60)
    found = []
    thread = threading.Thread(target=lambda: found.append(log.claim("Ada").id))
    thread.start()
    other.communicate("done\n")
    thread.join()
    assert found == ["q2"]
    log.close()


def test_a_file_that_may_not_be_written(open_folder: Path) -> None:
    path = make_log(open_folder / "q.db")
    with as_nobody(open_folder):
        refused(path, "writable")
        refused(open_folder / "new.db", "writable")
    assert not (open_folder / "new.db").exists()


def test_a_file_that_may_not_be_written_in_a_folder_that_may(open_folder: Path) -> None:
    path = make_log(open_folder / "q.db")
    with as_nobody(open_folder, may_write_there=True):
        refused(path, "make the file and its folder writable")


def test_a_full_database_loses_nothing(tmp_path: Path) -> None:
    log = QueryLog(make_log(tmp_path / "q.db"))
    before = log.entries()
    with log.database.reading() as connection:
        connection.execute("PRAGMA max_page_count = 1")
    many = [Query((0,), n_actions=2, id=f"long{i}", text="x" * 1000) for i in range(100)]
    with pytest.raises(
        LogError, match=r"q\.db: database or disk is full; free some space; what was kept before is intact"
    ):
        log.post(many)
    assert log.entries() == before
    log.post(many)
    assert len(log.entries()) == len(before) + len(many)
    log.close()


def test_a_disk_that_takes_no_more_loses_nothing(tmp_path: Path) -> None:
    path = make_log(tmp_path / "q.db")
    log = QueryLog(path)
    before = log.entries()
    many = [Query((0,), n_actions=2, id=f"long{i}", text="x" * 1000) for i in range(500)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            LogError, match=r"q\.db: .*; (see to the disk|free some space); what was kept before is intact"
        ):
            log.post(many)
        assert log.entries() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.post(many)
    assert len(log.entries()) == len(before) + len(many)
    log.close()


def damaged(data: bytes, rng: Random) -> bytes:
    """A file with a few bytes or bits that are others, a page of zeros, two pages in each other's place, or cut off."""
    changed, page = bytearray(data), 4096
    kind = rng.choice(["bytes", "bits", "bits", "zeros", "swap", "cut"])
    if kind == "cut":
        return data[: rng.randrange(1, len(data))]
    if kind == "swap":
        one, other = (page * i for i in rng.sample(range(len(data) // page), 2))
        changed[one : one + page], changed[other : other + page] = data[other : other + page], data[one : one + page]
    elif kind == "zeros":
        begin = page * rng.randrange(len(data) // page)
        changed[begin : begin + page] = bytes(page)
    else:
        # Most of a page of this file is empty, so damage is put where something is.
        used = [i for i, byte in enumerate(data) if byte]
        for _ in range(rng.randint(1, 8)):
            place = rng.choice(used)
            changed[place] = rng.randrange(256) if kind == "bytes" else changed[place] ^ 1 << rng.randrange(8)
    return bytes(changed)


def everything(path: Path) -> list[object]:
    """All questions and answers, as the log gives them to whoever reads and writes it."""
    log = QueryLog(path, clock=lambda: 1000.0)
    try:
        log.statistics()
        log.askers()
        log.entries(search="QUESTION 3")
        claimed = log.claim("Alan")
        log.answer("q2", Act((0,)), by="Alan")
        log.post(questions(6))
        found = [(entry.query, entry.answer, entry.answered_by) for entry in log.entries()]
        assert [(entry.query, entry.answer, entry.answered_by) for entry in map(log.entry, ALL)] == found
        return [found, claimed, log.take(ALL), log.claim("Alan", id="q3")]
    finally:
        log.close()


def is_sound(path: Path) -> bool:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return False
    finally:
        connection.close()


def test_damage_is_told_or_has_no_consequence(tmp_path: Path) -> None:
    path = make_log(tmp_path / "q.db")
    data = path.read_bytes()
    expected = everything(path)
    rng, n_trials, told = Random(0), 1000, 0
    for trial in range(n_trials):
        for leftover in tmp_path.iterdir():
            leftover.unlink()
        path.write_bytes(damaged(data, rng))
        try:
            assert everything(path) == expected, trial
        except LogError as error:
            told += str(path) in str(error)
            continue
        assert is_sound(path), trial
        told += 1
    assert told == n_trials


def test_words_that_the_disk_has_changed_are_not_read(tmp_path: Path) -> None:
    # SQLite would not know: they are words as well.
    for old, new in (
        (b"question 2", b"question 7"),
        (b"[1,2]", b"[1,3]"),
        (b"no idea", b"An idea"),
        (b"Grace", b"Alice"),
    ):
        path = make_log(tmp_path / "q.db")
        path.write_bytes(path.read_bytes().replace(old, new))
        assert is_sound(path)
        log = QueryLog(path)
        with pytest.raises(
            LogError, match=r"q\.db is damaged: what it has of question 'q\d' .* not the one that was kept"
        ):
            log.entries()
        log.close()
        path.unlink()


def test_an_older_question_that_the_disk_has_changed_is_told_where_it_makes_no_sense(tmp_path: Path) -> None:
    # Those have no sums.
    of_version(tmp_path / "old.db", 1)
    connection = sqlite3.connect(tmp_path / "old.db")
    connection.execute("UPDATE queries SET query = replace(query, '[0]', '[O]'), answer = replace(answer, '2', '')")
    connection.commit()
    connection.close()
    log = QueryLog(tmp_path / "old.db")
    for call in (lambda: log.claim("Ada"), lambda: log.entry("q1"), lambda: log.take(["q1"]), log.entries):
        with pytest.raises(LogError, match=r"old\.db is damaged: what it has of question 'q\d' cannot be read"):
            call()
    log.close()


def test_what_is_no_log(tmp_path: Path) -> None:
    text = tmp_path / "notes.db"
    text.write_text("Dear diary, " * 1000)
    refused(text, "is no log of questions; name another file")
    assert text.read_text() == "Dear diary, " * 1000
    refused(tmp_path, "it must be a file")
    refused(tmp_path / "nowhere" / "q.db", "its folder must exist")
    noise = tmp_path / "noise.db"
    noise.write_bytes(Random(0).randbytes(10_000))
    refused(noise, "is no log of questions")


@pytest.mark.parametrize(
    "script", ["CREATE TABLE songs (title TEXT)", "PRAGMA user_version = 1", "PRAGMA application_id = 7"]
)
def test_a_database_of_another_program_is_left_as_it_is(tmp_path: Path, script: str) -> None:
    path = tmp_path / "songs.db"
    connection = sqlite3.connect(path)
    connection.execute(script)
    connection.close()
    before = path.read_bytes()
    refused(path, "is a database of another program; name a new file for the log")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_log_of_a_newer_version_is_left_as_it_is(tmp_path: Path) -> None:
    path = make_log(tmp_path / "q.db")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    refused(path, "newer version of this library (format 99, this one knows", "upgrade cautious-imitation")
    assert path.read_bytes() == before


def test_a_log_that_a_newer_version_takes_over_meanwhile_is_left_alone(tmp_path: Path) -> None:
    log = QueryLog(make_log(tmp_path / "q.db"))
    connection = sqlite3.connect(log.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(LogError, match="upgrade cautious-imitation"):
        log.claim("Ada")
    log.close()


def test_an_empty_file_becomes_a_log(tmp_path: Path) -> None:
    (tmp_path / "q.db").touch()
    assert QueryLog(tmp_path / "q.db").entries() == []


def of_version(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.executescript("".join(MIGRATIONS[:version]))
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.executemany(
        "INSERT INTO queries (id, asker, query, posted_at, status, answer, answered_by, answered_at) "
        "VALUES (?, 'run', ?, 1.0, ?, ?, ?, ?)",
        [
            (
                f"q{i}",
                f'{{"context": [{i}], "n_actions": 3, "id": "q{i}", "asker": "run"}}',
                "answered" if i else "open",
                '{"actions": [2], "text": null, "evidence": true}' if i else None,
                "Ada" if i else None,
                2.0 if i else None,
            )
            for i in range(3)
        ],
    )
    connection.commit()
    connection.close()


def schema(path: Path) -> set[tuple]:
    connection = sqlite3.connect(path)
    found = set(connection.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%'"))
    connection.close()
    return found


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_an_older_log_is_brought_up_to_date(tmp_path: Path, version: int) -> None:
    of_version(tmp_path / "old.db", version)
    log = QueryLog(tmp_path / "old.db")
    assert [(entry.query.context, entry.status) for entry in log.entries()] == [
        ((0,), Status.OPEN),
        ((1,), Status.ANSWERED),
        ((2,), Status.ANSWERED),
    ]
    assert log.take(["q1"]) == {"q1": Act((2,))}
    assert log.claim("Ada", asker="run").id == "q0"
    log.close()
    make_log(tmp_path / "new.db")
    assert schema(tmp_path / "old.db") == schema(tmp_path / "new.db")
    assert is_sound(tmp_path / "old.db")


OPEN = """
import sys
from cautious_imitation.oracles.database import Database
print("ready", flush=True)
sys.stdin.readline()
Database(sys.argv[1]).close()
"""


@pytest.mark.parametrize("version", [0, 1])
def test_processes_may_make_or_migrate_a_file_at_once(tmp_path: Path, version: int) -> None:
    path = tmp_path / "q.db"
    others = [python(OPEN, path) for _ in range(4)]
    assert all(other.stdout.readline() == "ready\n" for other in others)
    if version:
        of_version(path, version)
    for other in others:
        other.stdin.write("go\n")
        other.stdin.flush()
    for other in others:
        other.communicate()
    assert [other.returncode for other in others] == [0] * 4
    assert len(QueryLog(path).entries()) == (3 if version else 0)


def test_a_file_that_another_process_makes_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, waiting = sqlite3.connect, [tmp_path / "q.db"]

    class Interrupted(sqlite3.Connection):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            done = super().execute(sql, *values)
            if sql == "PRAGMA application_id" and waiting:
                done = [done.fetchone()]
                # Kept out, or too late to be half seen.
                with suppress(LogError):
                    Database(waiting.pop(), busy_seconds=0).close()
                return type("Done", (), {"fetchone": done.pop})
            return done

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Interrupted))
    with Database(tmp_path / "q.db").reading() as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
    assert not waiting


KILLED = """
import os, signal, sys
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import Act, Query
log = QueryLog(sys.argv[1])
log.post(Query((i,), n_actions=3, id=f"q{i}") for i in range(3))
log.answer("q1", Act((2,)), by="Ada")
with log.database.writing() as connection:
    connection.execute("UPDATE queries SET answer = '{}', status = 'answered'")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_behind_is_whole(tmp_path: Path) -> None:
    other = python(KILLED, tmp_path / "q.db")
    assert other.wait() == -signal.SIGKILL
    other.communicate()
    assert (tmp_path / "q.db-wal").stat().st_size > 0
    log = QueryLog(tmp_path / "q.db")
    assert log.take(["q0", "q1", "q2"]) == {"q1": Act((2,))}
    log.close()


def test_a_write_ahead_log_that_was_cut_off_gives_an_earlier_state(tmp_path: Path) -> None:
    # As a power cut leaves it where the disk did not keep its word.
    log = QueryLog(tmp_path / "q.db")
    log.post(questions(1))
    log.close()
    for i in range(3):
        log.answer("q0", Act((i,)), by="Ada")
        log.undo("q0", by="Ada")
    shutil.copy(tmp_path / "q.db", tmp_path / "cut.db")
    data = (tmp_path / "q.db-wal").read_bytes()
    log.close()
    rng, seen = Random(0), set()
    for _ in range(30):
        (tmp_path / "cut.db-shm").unlink(missing_ok=True)
        (tmp_path / "cut.db-wal").write_bytes(data[: rng.randrange(len(data))])
        shutil.copy(tmp_path / "cut.db", tmp_path / "try.db")
        shutil.move(tmp_path / "cut.db-wal", tmp_path / "try.db-wal")
        log = QueryLog(tmp_path / "try.db")
        entry = log.entry("q0")
        assert entry.status in (Status.OPEN, Status.CLAIMED, Status.ANSWERED)
        seen.add(entry.answer)
        log.close()
    assert {Act((0,)), Act((1,)), Act((2,)), None} >= seen
    assert len(seen) > 1


FORK = """
import os, sys, threading
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import Act, Query
log = QueryLog(sys.argv[1])
log.post(Query((i,), n_actions=3, id=f"q{i}") for i in range(40))
log.claim("parent")
copies = [QueryLog(sys.argv[1]) for _ in range(3)]
begun, over = threading.Event(), threading.Event()

def busy():
    while not over.is_set():
        log.claim("thread", id="q0")
        begun.set()

def work(name):
    while (query := log.claim(name)) is not None:
        log.answer(query.id, Act((1,)), by=name)

log.release("q0", "parent")
thread = threading.Thread(target=busy)
thread.start()
begun.wait()
children = []
for i in range(3):
    child = os.fork()
    if not child:
        if sys.platform == "linux":
            names = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)]
            assert not any("q.db" in name for name in names), names
        work(f"child{i}")
        sys.exit()
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
over.set()
thread.join()
log.answer("q0", Act((2,)), by="thread")
assert statuses == [0, 0, 0], statuses
print({str(status): n for status, n in log.statistics().counts.items() if n})
"""


def test_a_child_goes_on_with_its_parents_log(tmp_path: Path) -> None:
    # While another thread is at the file, whose lock the child would wait for in vain.
    other = python(FORK, tmp_path / "q.db")
    assert other.communicate()[0] == "{'answered': 40}\n"
    assert other.returncode == 0
    assert is_sound(tmp_path / "q.db")


@pytest.mark.parametrize(
    "name", ["two words.db", "\u00fcber \u6587\u4ef6 \U0001f600.db", "file:q.db?mode=memory", "100%20.db", "q#.db"]
)
def test_names_that_other_programs_stumble_over(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = QueryLog(name)
    log.post(questions(1))
    # A log stays where it is when the process goes elsewhere.
    monkeypatch.chdir("/")
    log.close()
    assert log.entry("q0").status is Status.OPEN
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_that_is_taken_away_is_missed(tmp_path: Path) -> None:
    log = QueryLog(make_log(tmp_path / "q.db"))
    for leftover in tmp_path.iterdir():
        leftover.rename(tmp_path / f"moved-{leftover.name}")
    for _ in range(2):
        with pytest.raises(LogError, match=r"q\.db is gone; put it back"):
            log.answer("q2", Act((1,)), by="Ada")
    assert not log.path.exists()
    for leftover in list(tmp_path.iterdir()):
        leftover.rename(tmp_path / leftover.name.removeprefix("moved-"))
    assert log.answer("q2", Act((1,)), by="Ada")
    log.close()


def test_a_file_that_is_put_in_the_place_of_another_is_read(tmp_path: Path) -> None:
    log = QueryLog(make_log(tmp_path / "q.db"))
    log.close()
    os.replace(make_log(tmp_path / "other.db", n=7), log.path)
    assert len(log.entries()) == 7
    log.close()


def test_what_is_said_to_be_kept_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = QueryLog(make_log(tmp_path / "q.db"))
    real, synced = database._synced, []

    def counted(descriptor: int) -> None:
        real(descriptor)
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}") if sys.platform == "linux" else "q.db-wal")

    monkeypatch.setattr(database, "_synced", counted)
    for call, wanted in (
        (lambda: log.post(questions(5)), True),
        (lambda: log.claim("Ada"), False),
        (lambda: log.answer("q2", Act((1,)), by="Ada"), True),
        # Whoever answered first may have been killed before it came that far.
        (lambda: log.answer("q2", Act((1,)), by="Ada"), True),
        (lambda: log.undo("q2", by="Ada"), True),
        (lambda: log.release("q2", by="Ada"), False),
        (lambda: log.take(["q1"]), True),
        (lambda: log.take(["q1"]), False),
        (lambda: log.entries(), False),
        (lambda: (log.close(), log.take(["q1"])), True),
    ):
        synced.clear()
        call()
        assert [Path(path).name for path in synced] == ["q.db-wal"] * wanted
    log.close()


def test_a_disk_that_fails_to_keep_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = QueryLog(make_log(tmp_path / "q.db"))

    def fails(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(database, "_synced", fails)
        with pytest.raises(LogError, match=r"q\.db: .*Input/output error; see to the disk"):
            log.answer("q2", Act((1,)), by="Ada")
    # It may have been kept or not. The same call is right in both cases.
    log.answer("q2", Act((1,)), by="Ada")
    assert log.entry("q2").answer == Act((1,))
    log.close()


def test_a_transaction_that_fails_leaves_nothing_and_harms_no_other(tmp_path: Path) -> None:
    kept = Database(tmp_path / "q.db")
    with suppress(KeyError), kept.writing() as connection:
        connection.execute("INSERT INTO judgements (id, pair, posted_at) VALUES ('a', '', 0)")
        raise KeyError
    with kept.writing(), pytest.raises(sqlite3.ProgrammingError, match="within a transaction"):
        kept.reading().__enter__()
    with kept.writing() as connection:
        assert connection.execute("SELECT count(*) FROM judgements").fetchone()[0] == 0
    kept.close()


def test_a_log_in_memory_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = QueryLog(":memory:")
    log.post(questions(1))
    log.close()
    assert log.entry("q0").status is Status.OPEN
    assert list(tmp_path.iterdir()) == []


def test_an_old_sqlite_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    refused(tmp_path / "q.db", "SQLite 3.37 is needed")


def test_patience_is_not_negative(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="busy_seconds must be at least 0, got -1"):
        Database(tmp_path / "q.db", busy_seconds=-1)
