"""How everything is measured: contenders in interleaved rounds, medians, in one process of 1 or 2 threads.

Each contender begins its part of a round with one call that is not timed, after a pause where there are two threads, so
that it finds its own data in the caches and nobody else's threads spinning.

RMSP_BENCH_THREADS=1 pins the whole process to one core before any library has counted them. RMSP_BENCH_QUICK=1 takes
fewer sizes and rounds. What a round takes is pytest-benchmark's own figure; the medians are in its extra_info.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

THREADS = int(os.environ.get("RMSP_BENCH_THREADS", "1"))
QUICK = os.environ.get("RMSP_BENCH_QUICK") == "1"
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


@pytest.fixture
def interleave(benchmark):
    """Measure contenders in interleaved rounds: seconds a call, medians, also kept in the saved JSON."""

    def run(contenders, *, rounds=None, seconds=2e-3, **info):
        rounds = rounds or (9 if QUICK else 25)
        numbers = {}
        for name, call in contenders.items():
            call()
            start = time.perf_counter()
            call()
            numbers[name] = max(1, int(seconds / max(time.perf_counter() - start, 1e-9)))
        times = {name: [] for name in contenders}

        def one_round():
            for name, call in contenders.items():
                if THREADS > 1:
                    time.sleep(0.005)  # the threads of the one before stop looking for work
                call()
                repeats = range(numbers[name])
                start = time.perf_counter()
                for _ in repeats:
                    call()
                times[name].append((time.perf_counter() - start) / numbers[name])

        benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=1)
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        benchmark.extra_info.update(info, medians=medians, threads=THREADS)
        return medians

    return run


def pytest_collection_modifyitems(items):
    """Small arrays first: they lie where the heap has room, which other work scatters."""
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
