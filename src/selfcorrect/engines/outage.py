"""What is said while a server does not answer: a line when that begins or changes, and not one for each request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

QUIET_S = 10.0
"""Seconds between two lines about the same trouble."""


class Outage:
    """Counts the requests that wait for a server, and tells when it stops answering and when it answers again.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: set[int] = set()
        self._since = self._kind = ""
        self._began = self._said = float("-inf")

    def failed(self, request: int, error: Exception, *, busy: bool, next_s: float) -> None:
        """Note that a request failed and is sent again in ``next_s`` seconds; ``busy`` if the server itself said so."""
        now, kind = self._clock(), "is busy" if busy else "does not answer"
        if not self._waiting:
            self._began, self._since = now, time.strftime("%H:%M:%S")
        self._waiting.add(request)
        if kind == self._kind and now - self._said < QUIET_S:
            return
        self._kind, self._said = kind, now
        count = len(self._waiting)
        log.info(
            "the server %s since %s (%s); %d %s; the next try is in %.1f s",
            kind,
            self._since,
            error,
            count,
            "request waits" if count == 1 else "requests wait",
            next_s,
        )

    def ended(self, request: int, *, answered: bool) -> None:
        """Note that a request is over, for better or worse."""
        if request not in self._waiting:
            return
        self._waiting.discard(request)
        if answered and not self._waiting and self._kind:
            log.info("the server answers again, after %.0f s; no request waits", self._clock() - self._began)
            self._kind = ""
