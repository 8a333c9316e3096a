"""How one contender is timed in one turn: hot, in a loop of calls, or one call after other work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]
Turn = Callable[[], float]  # seconds a call

WARM_UP = 5e-4  # seconds


def warm_up(call: Call) -> float:
    """Call for half a millisecond, until caches are filled and threads awake; seconds a call."""
    count, start, now = 0, time.perf_counter(), 0.0
    while now < start + WARM_UP:
        call()
        count, now = count + 1, time.perf_counter()
    return (now - start) / count


def hot(call: Call, seconds: float = 2e-3) -> Turn:
    """A turn of calls in a row, which take about `seconds`, after calls that are not timed."""
    call()
    repeats = range(max(1, int(seconds / warm_up(call))))

    def turn() -> float:
        warm_up(call)
        start = time.perf_counter()
        for _ in repeats:
            call()
        return (time.perf_counter() - start) / len(repeats)

    return turn


def after(work: Call, call: Call) -> Turn:
    """A turn of one call after `work`, which contains the timer's 50 ns.

    One, since the caches learn from calls that return after the same work: a turn of several would have no one state.
    """
    clock = time.perf_counter

    def turn() -> float:
        work()
        clock()  # so that the timer's own code is in the cache
        start = clock()
        call()
        return clock() - start

    return turn
