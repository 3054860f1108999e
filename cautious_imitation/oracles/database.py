"""The file in which questions and answers are kept: SQLite with a write-ahead log, versioned, shared by processes."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

_APPLICATION = 0x43_49_51_4C
"""Marks the file as ours ("CIQL"), so that somebody else's database is not written to by mistake."""

_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE queries (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        asker TEXT NOT NULL,
        episode INTEGER,
        query TEXT NOT NULL,
        posted_at REAL NOT NULL,
        deadline REAL,
        status TEXT NOT NULL DEFAULT 'open'
            CHECK (status IN ('open', 'claimed', 'answered', 'declined', 'expired')),
        claimed_by TEXT,
        claimed_at REAL,
        lease_until REAL,
        answer TEXT,
        answered_by TEXT,
        answered_at REAL,
        seconds REAL,
        taken_at REAL,
        CHECK ((answer IS NULL) = (status NOT IN ('answered', 'declined')))
    ) STRICT;
    CREATE INDEX queries_by_status ON queries (status, seq);
    CREATE INDEX queries_by_asker ON queries (asker, episode, status);
    CREATE INDEX queries_by_deadline ON queries (deadline)
        WHERE deadline IS NOT NULL AND status IN ('open', 'claimed');
    """,
    """
    CREATE TABLE judgements (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        pair TEXT NOT NULL,
        posted_at REAL NOT NULL,
        verdict TEXT CHECK (verdict IN ('first', 'second', 'tie')),
        judged_by TEXT,
        judged_at REAL,
        seconds REAL,
        claimed_by TEXT,
        claimed_at REAL,
        lease_until REAL
    ) STRICT;
    CREATE INDEX judgements_by_verdict ON judgements (verdict, seq);
    """,
)
"""What makes a file of version n one of version n + 1. Never changed once released, only added to."""


class LogError(OSError):
    """The file cannot be read or written; says which and what to do."""


class Database:
    """One file, opened by any number of threads and processes.

    Args:
        path: the file; made if there is none. Its folder has to exist.
        busy_seconds: how long to wait while others write.

    Raises:
        LogError: if the file is no log, is damaged, is of a newer version, or cannot be opened or written.
    """

    def __init__(self, path: str | PathLike[str], busy_seconds: float = 30.0) -> None:
        self.path = Path(path)
        self._busy_seconds = busy_seconds
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._opened()

    def close(self) -> None:
        """Close the file; it opens again when it is needed."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one statement that only reads.

        Raises:
            LogError: if the file cannot be read.
        """
        with self._lock, self._translated():
            yield self._opened()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction that has the file to itself: kept whole at the end, or nothing of it.

        Raises:
            LogError: if the file cannot be written.
        """
        with self._lock, self._translated():
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _opened(self) -> sqlite3.Connection:
        # A connection must not be used by a forked child; the parent's is left to the parent.
        if self._connection is None or self._process != os.getpid():
            with self._translated():
                self._connection, self._process = self._open(), os.getpid()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            # An answer that was acknowledged survives a power cut as well as a kill.
            connection.execute("PRAGMA synchronous = FULL")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if self._version(connection) == len(_MIGRATIONS):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Looked at again: another process may have been quicker.
            for script in _MIGRATIONS[self._version(connection) :]:
                for statement in script.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _version(self, connection: sqlite3.Connection) -> int:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        owner: int = connection.execute("PRAGMA application_id").fetchone()[0]
        n_tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if n_tables and owner != _APPLICATION:
            raise LogError(f"{self.path} is a database of another program; name a new file for the log")
        if version > len(_MIGRATIONS):
            raise LogError(
                f"{self.path} was written by a newer version of this library (format {version}, this one knows "
                f"{len(_MIGRATIONS)}); upgrade cautious-imitation"
            )
        return version

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            # Misuse and broken constraints are mistakes of ours, not of the file's.
            if isinstance(error, (sqlite3.ProgrammingError, sqlite3.IntegrityError)):
                raise
            raise LogError(f"{self.path}: {error}; {self._remedy(error)}") from error

    def _remedy(self, error: sqlite3.DatabaseError) -> str:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        remedies = {
            sqlite3.SQLITE_BUSY: f"another process has kept it locked for {self._busy_seconds:g} s; see which one, or "
            "raise busy_seconds",
            sqlite3.SQLITE_READONLY: "make the file and its folder writable, or copy them to where they are",
            sqlite3.SQLITE_CANTOPEN: "the folder must exist and be writable",
            sqlite3.SQLITE_FULL: "free some space; what was kept before is intact, and the same call may be repeated",
            sqlite3.SQLITE_NOTADB: "it is no log of questions; name another file",
            sqlite3.SQLITE_CORRUPT: "it is damaged: keep a copy, save what can be read with 'sqlite3 FILE .recover', and "
            "begin a new file",
            sqlite3.SQLITE_IOERR: "the disk cannot be read or written",
        }
        return remedies.get(code, "see what else uses the file")
