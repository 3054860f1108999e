"""People as oracles: questions wait in a log until somebody answers them in a console."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import TypeAlias

from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import Answer, HelpNeeded, Oracle, Query

Log: TypeAlias = "QueryLog | str | PathLike[str]"
"""A log, or the path of its file."""


def opened(log: Log) -> QueryLog:
    """The log itself; that of a path is opened, and made if it is not there."""
    return log if isinstance(log, QueryLog) else QueryLog(log)


def queued(
    log: Log, *, wait_seconds: float = 0.0, deadline_seconds: float | None = None, poll_seconds: float = 0.2
) -> Oracle:
    """Puts questions into a log, where people find them in a console, and takes their answers from there.

    Args:
        log: the log, or the path of its file.
        wait_seconds: how long ``ask`` waits for answers; after that, and by default at once, it raises ``HelpNeeded``,
            the questions stay in the log, and asking them again later finds the answers.
        deadline_seconds: how long people have; a question that nobody answered by then is declined. None for ever.
        poll_seconds: how often the log is looked at while waiting.

    Raises:
        ValueError: if a time is negative or ``poll_seconds`` or ``deadline_seconds`` not positive.
        LogError: if the file cannot be used.
    """
    if not wait_seconds >= 0:
        raise ValueError(f"wait_seconds must be at least 0, got {wait_seconds!r}; 0 does not wait")
    if deadline_seconds is not None and not deadline_seconds > 0:
        raise ValueError(f"deadline_seconds must be positive, got {deadline_seconds!r}; None sets no deadline")
    if not poll_seconds > 0:
        raise ValueError(f"poll_seconds must be positive, got {poll_seconds!r}")
    return _Queued(opened(log), wait_seconds, deadline_seconds, poll_seconds)


class _Queued:
    def __init__(self, log: QueryLog, wait_seconds: float, deadline_seconds: float | None, poll_seconds: float) -> None:
        self._log, self._wait_seconds, self._poll_seconds = log, wait_seconds, poll_seconds
        self._deadline_seconds = deadline_seconds

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        self._log.post(self._until(query) for query in queries)
        patience = time.monotonic() + self._wait_seconds
        while True:
            answers = self._log.take(query.id for query in queries)
            waiting = [query for query in queries if query.id not in answers]
            if not waiting:
                return [answers[query.id] for query in queries]
            left = patience - time.monotonic()
            if left <= 0:
                raise HelpNeeded(
                    waiting,
                    f"answer in a console (cautious-imitation oracle console {self._log.path}) and ask again",
                )
            time.sleep(min(left, self._poll_seconds))

    def _until(self, query: Query) -> Query:
        if self._deadline_seconds is None:
            return query
        deadline = time.time() + self._deadline_seconds
        return replace(query, deadline=deadline if query.deadline is None else min(deadline, query.deadline))
