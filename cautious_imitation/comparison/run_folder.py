"""The folder of a run: settings, a journal of the cells that are done, and a lock, so that a killed run can go on."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from filelock import FileLock, Timeout

from cautious_imitation.atomic_files import write_text
from cautious_imitation.comparison.cells import Row

SETTINGS = "settings.json"
JOURNAL = "cells.jsonl"
RESULTS = "results.json"
_LOCK = ".lock"


class RunFolder:
    """A folder held by one run at a time; a context manager.

    Every finished cell is appended to the journal at once. The lock is the operating system's, so it goes when the
    process does, however that ends.

    Args:
        path: the folder; made if there is none.
        settings: everything that the rows depend on, as JSON values. A folder that was begun with others is refused.

    Attributes:
        path: the folder.
        rows: rows by cell: those that an earlier run left, and those kept since.

    Raises:
        ValueError: on entering, if another process works in the folder, or it holds another comparison's results or a
            journal that cannot be read; nothing in it is changed then.
    """

    def __init__(self, path: str | PathLike[str], settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.settings = settings
        self.rows: dict[str, Row] = {}
        self._lock = FileLock(self.path / _LOCK)
        self._journal: TextIO | None = None

    def __enter__(self) -> RunFolder:
        """Take the lock and read what an earlier run of the same comparison left."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out={str(self.path)!r} is a file; name a folder")
        self._check_settings()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"out={str(self.path)!r} is in use by another process; wait for it or choose another folder"
            ) from None
        try:
            self._check_settings()
            self._read_journal()
            if not (self.path / SETTINGS).exists():
                write_text(self.path / SETTINGS, json.dumps(self.settings, indent=1) + "\n")
            self._journal = (self.path / JOURNAL).open("a", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the journal and let go of the lock."""
        if self._journal is not None:
            self._journal.close()
        self._lock.release()

    def keep(self, cell: str, row: Row) -> None:
        """Put the row of a finished cell into the journal."""
        assert self._journal is not None
        self._journal.write(json.dumps({"cell": cell, "row": row}, allow_nan=False) + "\n")
        self._journal.flush()
        self.rows[cell] = row

    def _check_settings(self) -> None:
        path = self.path / SETTINGS
        if path.exists():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                before = None
            if before != self.settings:
                differs = _difference(before, self.settings) if isinstance(before, dict) else "its settings"
                raise ValueError(
                    f"out={str(self.path)!r} holds another comparison's results ({differs} differ); choose another "
                    "folder with --out, or remove this one"
                )
        elif any((self.path / name).exists() for name in (JOURNAL, RESULTS)):
            raise ValueError(
                f"out={str(self.path)!r} holds results but no {SETTINGS}; choose another folder with --out, or remove "
                "this one"
            )

    def _read_journal(self) -> None:
        path = self.path / JOURNAL
        if not path.exists():
            return
        # A last line without its end, or one that makes no sense, was being written when the run was killed.
        lines = path.read_bytes().split(b"\n")
        whole = lines[:-1]
        for number, line in enumerate(whole, start=1):
            try:
                entry = json.loads(line)
                self.rows[entry["cell"]] = entry["row"]
            except (ValueError, KeyError, TypeError):
                if number < len(whole):
                    raise ValueError(
                        f"{path}:{number} cannot be read; remove the line to solve that cell again"
                    ) from None
                whole = whole[:-1]
        if len(whole) + 1 < len(lines) or lines[-1]:
            write_text(path, b"".join(line + b"\n" for line in whole).decode("utf-8"))


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Names of the settings that differ, down to the innermost."""
    names = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{key}.{name}" for name in _difference(old, new).split(", ") if name]
        elif old != new:
            names.append(key)
    return ", ".join(names)
