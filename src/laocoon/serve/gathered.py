"""Work of many requests, done in groups by one worker thread: batches for a model, lines for a log."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Gathered(Generic[Item, Result]):
    """While one group is being worked on, the next one gathers; nothing waits for a group to fill.

    An exception of `work` goes to whoever asked. A group that fails is done again item by item, so that one request
    cannot spoil its neighbours.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Sequence[Result]], pool: Executor, *, most: int,
        weight: Callable[[Item], int] = lambda _: 1,
    ) -> None:
        self.work, self.pool, self.most, self.weight = work, pool, most, weight
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, item: Item) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        while group := self._next():
            error = await self._done(group)
            for item, future in group if error is not None else ():
                alone = error if len(group) == 1 or future.done() else await self._done([(item, future)])
                if alone is not None and not future.done():
                    future.set_exception(alone)

    def _next(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        """The longest waiting, up to `most` by weight but at least one; those who gave up are left out."""
        group: list[tuple[Item, asyncio.Future[Result]]] = []
        total = 0
        while self._waiting:
            item, future = self._waiting[0]
            weight = 0 if future.done() else self.weight(item)
            if group and total + weight > self.most:
                break
            self._waiting.popleft()
            if not future.done():
                group.append((item, future))
                total += weight
        return group

    async def _done(self, group: Sequence[tuple[Item, asyncio.Future[Result]]]) -> BaseException | None:
        """Work on a group; what went wrong, or nothing and all have their results."""
        running = asyncio.get_running_loop().run_in_executor(self.pool, self._checked, [item for item, _ in group])
        await asyncio.wait([running])
        error = running.exception()
        if error is None:
            for (_, future), result in zip(group, running.result(), strict=True):
                if not future.done():
                    future.set_result(result)
        return error

    def _checked(self, items: Sequence[Item]) -> Sequence[Result]:
        results = self.work(items)
        if len(results) != len(items):  # or a neighbour's result would be handed out
            raise RuntimeError(f"{len(results)} results for {len(items)} items")
        return results
