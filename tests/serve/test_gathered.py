"""Groups: bounded, in order, each with its own result, whoever gives up or fails."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from laocoon.serve.gathered import Gathered


def run(work, items, *, most=4, weight=lambda _: 1):
    async def main():
        with ThreadPoolExecutor(1) as pool:
            gathered = Gathered(work, pool, most=most, weight=weight)
            return await asyncio.gather(*(gathered.ask(k) for k in items), return_exceptions=True)
    return asyncio.run(main())


def test_groups_are_bounded_and_results_belong():
    groups = []
    assert run(lambda k: groups.append(list(k)) or [v * 10 for v in k], range(11)) == [v * 10 for v in range(11)]
    assert max(map(len, groups)) <= 4 and [v for g in groups for v in g] == list(range(11)) and len(groups) < 11


def test_weights_count():
    groups = []
    run(lambda k: groups.append(list(k)) or k, [3, 3, 1, 9, 1], most=4, weight=lambda v: v)
    assert groups == [[3], [3, 1], [9], [1]]  # what is too heavy goes alone


def test_the_one_that_fails_fails_alone():
    def work(items):
        if 3 in items:
            raise ZeroDivisionError(str(len(items)))
        return items
    results = run(work, range(6), most=10)
    assert [r for r in results if not isinstance(r, Exception)] == [0, 1, 2, 4, 5]
    assert isinstance(results[3], ZeroDivisionError)


def test_too_few_results_are_nobodys():
    assert all(isinstance(r, RuntimeError) for r in run(lambda k: [], range(5)))
    assert all(isinstance(r, RuntimeError) for r in run(lambda k: [*k, 0], range(5)))


def test_who_gave_up_is_left_out():
    seen, go = [], threading.Event()

    def work(items):
        go.wait(5)
        seen.extend(items)
        return items

    async def main():
        with ThreadPoolExecutor(1) as pool:
            gathered = Gathered(work, pool, most=4)
            first = asyncio.create_task(gathered.ask(0))
            await asyncio.sleep(0.01)
            gone, last = asyncio.create_task(gathered.ask(1)), asyncio.create_task(gathered.ask(2))
            await asyncio.sleep(0.01)
            gone.cancel()
            await asyncio.sleep(0)
            go.set()
            with pytest.raises(asyncio.CancelledError):
                await gone
            return await first, await last
    assert asyncio.run(main()) == (0, 2) and seen == [0, 2]
