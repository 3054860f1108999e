"""Claims that last while somebody thinks."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cautious_imitation.oracles.database import LogError
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import AnswerConflict, Query, UnknownQuery


class Renewal:
    """Makes a claim last while the person thinks, from a thread of its own.

    Args:
        log: where the question is.
        query: the question.
        by: who has it.
    """

    def __init__(self, log: QueryLog, query: Query, by: str) -> None:
        self._log, self._query, self._by = log, query, by
        self._lost: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="claim", daemon=True)

    def told(self) -> str | None:
        """Why the claim was lost, if it was; once."""
        lost, self._lost = self._lost, None
        return lost

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Renew no more. Waits for it: a question that is given back must not be claimed again."""
        self._over.set()
        self._thread.join()

    def _renew(self) -> None:
        if sys.platform != "win32":
            # They are for the thread that reads lines, which would not notice them here.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        # Three chances a lease.
        while not self._over.wait(self._log.lease_seconds / 3):
            try:
                self._log.claim(self._by, id=self._query.id)
            except (AnswerConflict, UnknownQuery) as error:
                self._lost = str(error.args[0])
                return
            except LogError:
                continue  # Told when the person answers, if it is still so then.


@contextmanager
def renewed(log: QueryLog, query: Query, by: str) -> Iterator[Renewal]:
    """A claim that lasts as long as the block.

    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = tempfile.TemporaryDirectory()
    >>> log = QueryLog(Path(folder.name, "questions.db"), lease_seconds=300)
    >>> log.post([Query((0, 1), n_actions=3, id="a")])
    >>> with renewed(log, log.claim("Ada"), "Ada") as renewal:
    ...     log.entry("a").claimed_by, renewal.told()
    ('Ada', None)
    >>> log.close(); folder.cleanup()
    """
    renewal = Renewal(log, query, by)
    renewal.start()
    try:
        yield renewal
    finally:
        renewal.stop()
