"""How one contender is timed in one turn: hot, in a loop of calls, or one call after other work."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Call = Callable[[], Any]
Turn = Callable[[], float]  # seconds a call

WARM_UP = 5e-4, 3  # seconds, and calls

# Of <malloc.h> of glibc: from which size on free memory at the end of the heap is given back, and how many arrays may
# be mapped by themselves.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEPT = {M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_MAX: 0}
DEFAULT = {M_TRIM_THRESHOLD: 128 * 1024, M_MMAP_MAX: 65536}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let glibc's malloc give no memory back, so that all who make arrays in a step are as fast as they can be.

    By default a large temporary array may be new pages at each step, which take as long as the arithmetic or longer;
    whether it is depends on what was freed before.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)
    for option, value in KEPT.items():
        set_option(option, value)
    try:
        yield
    finally:
        for option, value in DEFAULT.items():
            set_option(option, value)


def warm_up(call: Call) -> float:
    """Call until caches and the heap are filled and threads awake; seconds a call."""
    count, start, now = 0, time.perf_counter(), 0.0
    while now < start + WARM_UP[0] or count < WARM_UP[1]:
        call()
        count, now = count + 1, time.perf_counter()
    return (now - start) / count


def hot(call: Call, seconds: float = 2e-3) -> Turn:
    """A turn of calls in a row, which take about `seconds`, after calls that are not timed."""
    with kept_memory():
        repeats = range(max(1, int(seconds / warm_up(call))))

    def turn() -> float:
        with kept_memory():
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
