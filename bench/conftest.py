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

from timing import hot


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def take_turns(benchmark):
    """Measure contenders in interleaved rounds: seconds a call in each round; their medians are saved in the JSON.

    More than one set of the same contenders is for arrays at other places in memory, taken in turn: which sets of the
    cache they share is random.
    """

    def run(*places, rounds=None, **info):
        rounds = rounds or (9 if QUICK else 25)
        rounds = -(-rounds // len(places)) * len(places)
        times = {name: [] for name in places[0]}
        sets = itertools.cycle(places)
        order = random.Random(7)

        def one_round():
            """Each contender once, after another one in each round: what that leaves in the caches is random too."""
            turns = list(next(sets).items())
            for name, turn in order.sample(turns, len(turns)):
                if THREADS > 1:
                    time.sleep(0.01)  # the threads of the one before stop spinning
                times[name].append(turn())

        benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=1)
        times = {name: values[1:] for name, values in times.items()}
        medians = {name: statistics.median(values) for name, values in times.items()}
        benchmark.extra_info.update(info, medians=medians, threads=THREADS)
        return times

    return run


@pytest.fixture
def interleave(take_turns):
    """Measure calls by turns of calls in a row, of about `seconds` each."""

    def run(*places, seconds=2e-3, **info):
        return take_turns(*[{name: hot(call, seconds) for name, call in calls.items()} for calls in places], **info)

    return run


def pytest_collection_modifyitems(items):
    """Small arrays first: the heap gives them neighbouring places, which later work scatters."""
    items.sort(key=lambda item: not any(word in item.name for word in ("many", "trees")))


def pytest_benchmark_update_machine_info(config, machine_info):
    """What the report says of the machine and of what was measured on it."""
    from importlib.metadata import PackageNotFoundError, version

    machine_info["config"] = rms.show_config("dicts")
    machine_info["versions"] = {}
    for name in ("numpy", "numexpr", "numba", "torch", "jax", "optax", "bitsandbytes"):
        try:
            machine_info["versions"][name] = version(name)
        except PackageNotFoundError:
            machine_info["versions"][name] = "missing"
