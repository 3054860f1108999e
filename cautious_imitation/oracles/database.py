"""The file in which questions and answers are kept: SQLite with a write-ahead log, versioned, shared by processes.

A transaction that returned survives a kill, because it is the system's, and a power cut, because the write-ahead log
was synchronised. SQLite would do that while others wait for the lock; here it is done after the lock is given back, so
that processes synchronise together. What may be seen before it is on the disk is not acted on before: whoever takes an
answer synchronises too, and a log that is opened begins with it.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

from cautious_imitation.oracles.migrations import APPLICATION, MIGRATIONS

T = TypeVar("T")

IN_MEMORY = ":memory:"
"""The path of a database that is kept in memory, and is lost with the object."""

_OLDEST_SQLITE = (3, 37)
_synced: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


class LogError(OSError):
    """The file cannot be read or written; says which and what to do."""


class Database:
    """One file, opened by any number of threads and processes.

    Args:
        path: the file; made if there is none. Its folder has to exist. ``":memory:"`` keeps no file.
        busy_seconds: how long to wait while others write.

    Raises:
        LogError: if the file is no log, is damaged, is of a newer version, or cannot be opened or written.
        ValueError: if ``busy_seconds`` is negative.
    """

    def __init__(self, path: str | PathLike[str], busy_seconds: float = 30.0) -> None:
        if not busy_seconds >= 0:
            raise ValueError(f"busy_seconds must be at least 0, got {busy_seconds!r}; 0 does not wait")
        self.path = Path(path)
        # Absolute: the folder of the process may change, and SQLite reads "file:..." as a URI.
        self._file = None if str(path) == IN_MEMORY else self.path.absolute()
        self._busy_seconds = busy_seconds
        self._random = random.SystemRandom()
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._wal: int | None = None
        self._identity: tuple[int, int] | None = None
        with self.reading() as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0].splitlines()[-1]
            if found == "ok" and not _schema() <= _schema(connection):
                found = "its tables are not those that were made"
            if found != "ok":
                raise LogError(f"{self.path}: {found}; {_REMEDIES[sqlite3.SQLITE_CORRUPT]}")
        _OPEN.add(self)

    def close(self) -> None:
        """Close the file; it opens again when it is needed. What is in memory stays."""
        with self._lock:
            if self._file is not None:
                self._forget()

    def __del__(self) -> None:
        if hasattr(self, "_wal"):
            self._forget()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for statements that only read; what they see does not change meanwhile.

        Raises:
            LogError: if the file cannot be read.
        """
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction that has the file to itself: kept whole at the end, or nothing of it.

        Args:
            durable: whether it has to survive a power cut; it survives a kill in any case. It takes one wait for the
                disk, which a claim, say, is not worth.

        Raises:
            LogError: if the file cannot be written.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection
        if durable:
            self._sync()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            connection = self._opened()
            if connection.in_transaction:
                raise sqlite3.ProgrammingError("a transaction within a transaction")
            try:
                self._patiently(lambda: self._begin(connection, begin))
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error:
                # Whatever state the connection is in: the next call begins with a new one.
                self._roll_back(connection)
                self.close()
                raise
            except BaseException:
                self._roll_back(connection)
                raise

    def _begin(self, connection: sqlite3.Connection, begin: str) -> None:
        connection.execute(begin)
        try:
            # The first look at the file, so that one that is locked is waited for here; and it may have been migrated.
            if self._version(connection) != len(MIGRATIONS):
                raise LogError(f"{self.path} was emptied while it was open; what it held is in none but a copy")
        except BaseException:
            self._roll_back(connection)
            raise

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        # Closing rolls back as well, where this fails.
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _patiently(self, attempt: Callable[[], T]) -> T:
        began, mean = time.monotonic(), 0.001
        while True:
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                waited = time.monotonic() - began
                if _code(error) != sqlite3.SQLITE_BUSY or waited >= self._busy_seconds:
                    raise
            time.sleep(min(self._busy_seconds - waited, self._random.uniform(0, 2 * mean)))
            mean = _mean_pause(time.monotonic() - began)

    def _sync(self) -> None:
        with self._lock:
            if self._wal is not None:
                try:
                    _synced(self._wal)
                except OSError as error:
                    self.close()
                    raise LogError(f"{self.path}: {error}; {_REMEDIES[sqlite3.SQLITE_IOERR]}") from error

    def _opened(self) -> sqlite3.Connection:
        if self._file is not None and self._identity is not None and self._identity != _identity(self._file):
            # SQLite would go on with the file that has no name any more.
            self._forget()
            if not self._file.exists():
                raise LogError(f"{self.path} is gone; put it back, or begin a new log under another name")
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            needed = ".".join(map(str, _OLDEST_SQLITE))
            raise LogError(
                f"{self.path}: SQLite {needed} is needed, this Python has {sqlite3.sqlite_version}; upgrade it"
            )
        connection = sqlite3.connect(
            self._file or IN_MEMORY, timeout=0.0, isolation_level=None, check_same_thread=False
        )
        try:
            connection.row_factory = sqlite3.Row
            # Before anything is written: it may be another program's.
            migrated = self._patiently(lambda: self._looked_at(connection)) == len(MIGRATIONS)
            mode = self._patiently(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
            # Some network drives have no write-ahead log; SQLite does all there.
            connection.execute(f"PRAGMA synchronous = {'NORMAL' if mode == 'wal' else 'FULL'}")
            if not migrated:
                self._patiently(lambda: self._migrate(connection))
            if self._file is not None:
                self._identity = _identity(self._file)
                if mode == "wal":
                    self._wal = self._opened_wal()
        except BaseException:
            connection.close()
            raise
        return connection

    def _opened_wal(self) -> int:
        """The write-ahead log, which stays the same file as long as the connection is there; it is on the disk."""
        assert self._file is not None
        try:
            wal = os.open(f"{self._file}-wal", os.O_RDWR)
            try:
                _synced(wal)
                if os.name == "posix":
                    folder = os.open(self._file.parent, os.O_RDONLY)
                    try:
                        os.fsync(folder)
                    finally:
                        os.close(folder)
            except BaseException:
                os.close(wal)
                raise
        except OSError as error:
            # SQLite opens a file that may not be written without a word.
            code = sqlite3.SQLITE_READONLY if isinstance(error, PermissionError) else sqlite3.SQLITE_IOERR
            raise LogError(f"{self.path}: {error}; {_REMEDIES[code]}") from error
        return wal

    def _forget(self) -> None:
        connection, wal = self._connection, self._wal
        self._connection = self._wal = None
        if wal is not None:
            os.close(wal)
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _looked_at(self, connection: sqlite3.Connection) -> int:
        connection.execute("BEGIN")
        try:
            return self._version(connection)
        finally:
            self._roll_back(connection)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Looked at again: another process may have been quicker.
            _migrate(connection, self._version(connection))
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise

    def _version(self, connection: sqlite3.Connection) -> int:
        """The file's; in a transaction, since another process may be making it."""
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == len(MIGRATIONS) and connection is self._connection:
            return version
        owner: int = connection.execute("PRAGMA application_id").fetchone()[0]
        n_tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if owner != APPLICATION and (owner or version or n_tables):
            raise LogError(f"{self.path} is a database of another program; name a new file for the log")
        if not 0 <= version <= len(MIGRATIONS):
            raise LogError(
                f"{self.path} was written by a newer version of this library (format {version}, this one knows "
                f"{len(MIGRATIONS)}); upgrade cautious-imitation"
            )
        return version

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            # Misuse is a mistake of ours, not of the file's. Constraints hold unless the file is damaged.
            if isinstance(error, sqlite3.ProgrammingError):
                raise
            busy = (
                f"another process has kept it locked for {self._busy_seconds:g} s; see which one, or raise busy_seconds"
            )
            remedy = busy if _code(error) == sqlite3.SQLITE_BUSY else _REMEDIES.get(_code(error), _DAMAGED_OR_OTHERS)
            raise LogError(f"{self.path}: {error}; {remedy}") from error
        except UnicodeDecodeError as error:
            # Names and texts of a damaged file are in the messages about it.
            raise LogError(f"{self.path}: {error}; {_REMEDIES[sqlite3.SQLITE_CORRUPT]}") from error


_DAMAGED_OR_OTHERS = (
    "it is damaged, or another program has changed it: keep a copy, save what can be read with "
    "'sqlite3 FILE .recover', and begin a new file"
)
_REMEDIES = {
    sqlite3.SQLITE_READONLY: "make the file and its folder writable, or copy them to where they are",
    sqlite3.SQLITE_CANTOPEN: "it must be a file, and its folder must exist and be writable",
    sqlite3.SQLITE_FULL: "free some space; what was kept before is intact, and the same call may be repeated",
    sqlite3.SQLITE_NOTADB: "it is no log of questions; name another file",
    sqlite3.SQLITE_CORRUPT: "it is damaged: keep a copy, save what can be read with "
    "'sqlite3 FILE .recover', and begin a new file",
    sqlite3.SQLITE_IOERR: "see to the disk; what was kept before is intact, and the same call may be repeated",
    sqlite3.SQLITE_NOMEM: "free some memory; what was kept before is intact, and the same call may be repeated",
    sqlite3.SQLITE_PROTOCOL: "too many processes opened it at once; the same call may be repeated",
}


def _mean_pause(waited: float) -> float:
    """Between two looks at whether the lock is free, in seconds, for one who has waited for ``waited`` seconds.

    SQLite's own looks become rarer, so newcomers come first, and somebody waits for ten seconds where the mean is
    twenty milliseconds. These become more frequent: whoever has waited for long comes next. A lock that is not given
    back for a second is kept by somebody who does something else with the file.
    """
    return 0.02 / (1 + 250 * waited) if waited < 1 else 0.02


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    # Not executescript, which would end the transaction.
    for script in MIGRATIONS[version:]:
        for statement in script.split(";\n"):
            if statement.strip():
                connection.execute(statement)


def _schema(connection: sqlite3.Connection | None = None) -> set[tuple[str, str]]:
    """Names of tables and indexes and how they are made: in a file, or as they should be."""
    if connection is None:
        with closing(sqlite3.connect(IN_MEMORY, isolation_level=None)) as new:
            _migrate(new, 0)
            return _schema(new)
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%'")
    return {(name, sql) for name, sql in found}


def _identity(file: Path) -> tuple[int, int] | None:
    """Which file has the name."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_OPEN: WeakSet[Database] = WeakSet()
_AT_FORK = threading.local()


def _before_fork() -> None:
    # SQLite forbids that a child has its parent's connection, even to close it, and a lock that another thread holds
    # would never be free in the child. So no other thread is at a file while a process forks, and no file is open.
    _AT_FORK.held = sorted(_OPEN, key=id)
    for database in _AT_FORK.held:
        database._lock.acquire()
        if database._connection is not None and not database._connection.in_transaction:
            database.close()


def _after_fork() -> None:
    for database in _AT_FORK.held:
        database._lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
