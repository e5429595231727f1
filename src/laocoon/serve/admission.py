"""How many requests are taken at a time: a few at work, a few that wait, and a clear word to the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from laocoon.serve.metrics import Metrics
from laocoon.serve.refusal import Refused


class Admission:
    """Memory is bounded by `places` bodies: a waiting request has not been read yet."""

    def __init__(self, places: int, queue: int, metrics: Metrics) -> None:
        self._places, self._queue, self._metrics = asyncio.Semaphore(places), queue, metrics
        self._waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Refused (503) at once where the queue is full."""
        if self._places.locked() and self._waiting >= self._queue:
            raise Refused(503, f"{self._waiting} requests are waiting already.", headers={"retry-after": "1"})
        self._waiting += 1
        self._metrics.waiting.set(self._waiting)
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
            self._metrics.waiting.set(self._waiting)
        self._metrics.busy.inc()
        try:
            yield
        finally:
            self._metrics.busy.dec()
            self._places.release()
