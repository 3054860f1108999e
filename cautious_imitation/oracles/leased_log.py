"""What logs of questions and of pairs share: a file, and how long a claim keeps others away."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from cautious_imitation.oracles.database import Database


class LeasedLog:
    """Things in one file that people take one at a time, each for as long as a lease lasts.

    Args:
        path: the file; made if there is none. Its folder has to exist. ``":memory:"`` keeps no file.
        lease_seconds: how long a claim keeps others away.
        busy_seconds: how long to wait while others write.
        clock: seconds since 1970.

    Raises:
        LogError: if the file cannot be read or written.
        ValueError: if ``lease_seconds`` is not positive and finite, or ``busy_seconds`` negative.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        lease_seconds: float = 300.0,
        busy_seconds: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < lease_seconds < math.inf:
            raise ValueError(f"lease_seconds must be positive and finite, got {lease_seconds!r}")
        self.database = Database(path, busy_seconds)
        self.lease_seconds = lease_seconds
        self._clock = clock

    @property
    def path(self) -> Path:
        """The file."""
        return self.database.path

    def close(self) -> None:
        """Close the file; it opens again when it is needed."""
        self.database.close()
