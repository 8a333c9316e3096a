"""How everything is measured: contenders in interleaved rounds, medians, in one process of 1 or 2 threads.

Each contender begins its part of a round with calls that are not timed, after a pause where there are two threads, so
that it finds its own data in the caches, its own threads awake, and those of others asleep.

RMSP_BENCH_THREADS=1 pins the whole process to one core before any library has counted them. RMSP_BENCH_QUICK=1 takes
fewer sizes and rounds. What a round takes is pytest-benchmark's own figure; the medians are in its extra_info.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import sys
import time

THREADS = int(os.environ.get("RMSP_BENCH_THREADS", "1"))
QUICK = os.environ.get("RMSP_BENCH_QUICK") == "1"
WARM_UP = 5e-4  # seconds
PLACES = 5  # in memory, for arrays that a cache holds
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "NUMEXPR_MAX_THREADS"):
    os.environ[variable] = str(THREADS)

import numpy as np
import pytest

import rmsprop_native as rms

sys.path.insert(0, os.path.dirname(__file__))
rms.set_num_threads(THREADS)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def warm_up(call):
    """Call for half a millisecond, until caches are filled and threads awake; seconds a call."""
    count, start, now = 0, time.perf_counter(), 0.0
    while now < start + WARM_UP:
        call()
        count, now = count + 1, time.perf_counter()
    return (now - start) / count


@pytest.fixture
def interleave(benchmark):
    """Measure contenders in interleaved rounds: seconds a call in each round; their medians are saved in the JSON.

    More than one set of the same contenders is for arrays at other places in memory, taken in turn: which sets of the
    cache they share is random.
    """

    def run(*places, rounds=None, seconds=2e-3, **info):
        rounds = rounds or (9 if QUICK else 25)
        rounds = -(-rounds // len(places)) * len(places)
        numbers = {}
        for name, call in places[0].items():
            call()
            numbers[name] = max(1, int(seconds / warm_up(call)))
        times = {name: [] for name in numbers}
        turns = itertools.cycle(places)
        order = random.Random(7)

        def one_round():
            """Each contender once, after another one in each round: what that leaves in the caches is random too."""
            calls = list(next(turns).items())
            for name, call in order.sample(calls, len(calls)):
                if THREADS > 1:
                    time.sleep(0.01)  # the threads of the one before stop spinning
                warm_up(call)
                repeats = range(numbers[name])
                start = time.perf_counter()
                for _ in repeats:
                    call()
                times[name].append((time.perf_counter() - start) / numbers[name])

        benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=1)
        times = {name: values[1:] for name, values in times.items()}
        medians = {name: statistics.median(values) for name, values in times.items()}
        benchmark.extra_info.update(info, medians=medians, threads=THREADS)
        return times

    return run


def pytest_collection_modifyitems(items):
    """Small arrays first: the heap gives them neighbouring places, which later work scatters."""
    items.sort(key=lambda item: not any(word in item.name for word in ("many", "lone", "trees", "options")))


def pytest_benchmark_update_machine_info(config, machine_info):
    """What the report says of the machine and of what was measured on it."""
    from importlib.metadata import PackageNotFoundError, version

    machine_info["config"] = rms.show_config("dicts")
    machine_info["versions"] = {}
    for name in ("numpy", "numexpr", "numba", "torch", "jax", "optax"):
        try:
            machine_info["versions"][name] = version(name)
        except PackageNotFoundError:
            machine_info["versions"][name] = "missing"
