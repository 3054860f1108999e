"""How often one client may do something: a bucket of permissions that fills up again."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

_MOST_CLIENTS = 4096


class RateLimit:
    """Permissions for each client, so many at once and so many a second in the long run.

    Args:
        at_once: how many a client may use up without waiting.
        per_second: how quickly they come back.
        clock: seconds, never going back.

    >>> now = 0.0
    >>> limit = RateLimit(at_once=2, per_second=0.5, clock=lambda: now)
    >>> [limit.wait("a") for _ in range(3)], limit.wait("b")
    ([0.0, 0.0, 2.0], 0.0)
    >>> now = 2.0
    >>> limit.wait("a")
    0.0
    """

    def __init__(self, at_once: int, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once, self._per_second, self._clock = at_once, per_second, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, client: str, spend: bool = True) -> float:
        """Use one permission up: 0.0, or the seconds until there is one if there is none now.

        Args:
            client: who it is.
            spend: False to look only.
        """
        with self._lock:
            now = self._clock()
            left, then = self._left.pop(client, (float(self._at_once), now))
            left = min(self._at_once, left + (now - then) * self._per_second)
            allowed = left >= 1
            self._left[client] = (left - 1 if allowed and spend else left, now)
            # Whoever came longest ago has all permissions again, or as good as.
            if len(self._left) > _MOST_CLIENTS:
                self._left.popitem(last=False)
            return 0.0 if allowed else (1 - left) / self._per_second
