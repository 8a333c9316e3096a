"""Cases that may be slow: subnormal numbers, cold caches, misaligned starts, busy threads; import and the wheel."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import zipfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, THREADS
from precision import calls_of
from threadpoolctl import threadpool_limits
from timing import after

import rmsprop_native as rms

ROOT = Path(__file__).parent.parent


def test_subnormal(interleave, rng):
    n = 2**16
    contenders = {}
    for name, square, size in (("normal", 1e-4, 1e-2), ("subnormal square_avg", 1e-40, 0.0), ("all zero", 0.0, 0.0)):
        param, grad = rng.standard_normal(n).astype("float32"), np.full(n, size, np.float32)
        state = rms.init(param, rho=0.999)
        state.square_avg[...] = square

        def step(param=param, grad=grad, state=state, square=square):
            rms.update_(param, grad, state)

        contenders[name] = step
    interleave(contenders, kind="subnormal", rounds=9)


@pytest.mark.parametrize("n", [2**12, 2**16, 2**18])
def test_cold(take_turns, rng, n):
    """Nothing of the arrays in any cache, against everything: each call timed alone."""
    param, grad = (rng.standard_normal(n).astype("float32") for _ in range(2))
    state = rms.init(param)
    other = np.ones(2**26, np.uint8)
    step, flush = partial(rms.update_, param, grad, state), partial(np.add, other, 1, out=other)
    take_turns({"warm": after(step, step), "cold": after(flush, step)}, kind="cold", n=n, rounds=15 if QUICK else 41)


def test_misaligned(interleave, rng):
    """Starts within a cache line, in bytes, of parameter and gradient; and parameter on the page of square_avg."""
    n = 2**16
    contenders = {}
    for start in (0, 4, 16, 32, 1088):
        arrays = []
        for _ in range(2):
            memory = np.empty(4 * n + 8192, np.uint8)
            first = -memory.ctypes.data % 4096 + start
            arrays.append(memory[first : first + 4 * n].view(np.float32))
            arrays[-1][...] = rng.standard_normal(n)
        state = rms.init(arrays[0])
        contenders[f"{start} bytes"] = lambda arrays=arrays, state=state: rms.update_(*arrays, state)
    interleave(contenders, kind="misaligned")


@pytest.mark.parametrize("n", [2**16, 2**24])
def test_storage(interleave, n):
    """Storage in bfloat16 over float32, and the step of torch on bfloat16."""
    interleave(calls_of(n, with_torch=find_spec("torch") is not None), kind="storage", n=n)


@pytest.mark.parametrize("other", ["torch", "numpy"])
def test_beside(benchmark, rng, other):
    """Steps between matrix products of torch's OpenMP or NumPy's BLAS, whose threads go on spinning.

    Neither is to be slowed down. The same products on one thread leave the caches as cold, and no thread spinning.
    """
    if THREADS == 1:
        pytest.skip("for two threads")
    param, grad = (rng.standard_normal(2**20).astype("float32") for _ in range(2))
    state = rms.init(param)
    matrix = rng.standard_normal((512, 512)).astype("float32")
    product, allow = partial(np.matmul, matrix, matrix), partial(threadpool_limits, user_api="blas")
    if other == "torch":
        torch = pytest.importorskip("torch")
        product, allow = partial(torch.mm, *[torch.from_numpy(matrix)] * 2), torch.set_num_threads
    times = {}

    def note(**calls):
        """The medians of ten calls in turn, without the first."""
        taken = {name: [] for name in calls}
        for _ in range(10):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - start)
        for name, values in taken.items():
            times.setdefault(name.replace("_", " "), []).append(statistics.median(values[1:]))

    step = partial(rms.update_, param, grad, state)

    def one_round():
        allow(THREADS)
        note(theirs_alone=product)
        note(theirs=product, ours=step)
        allow(1)
        time.sleep(0.1)  # their threads stop spinning
        note(ours_in_a_row=step)
        note(theirs_on_one_thread=product, ours_between_those=step)

    benchmark.pedantic(one_round, rounds=15 if QUICK else 41)
    allow(THREADS)
    medians = {name: statistics.median(values) for name, values in times.items()}
    benchmark.extra_info.update(kind="beside", other=other, threads=THREADS, medians=medians)


once = pytest.mark.skipif(THREADS != 1, reason="measured with one thread")


@once
def test_import(benchmark):
    """Import over that of NumPy, in processes of their own."""
    code = "import time, numpy; t = time.perf_counter(); import rmsprop_native; print(time.perf_counter() - t)"

    def run():
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    run()
    times = [run() for _ in range(9)]
    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(kind="import", threads=THREADS, medians={"import": statistics.median(times)})


@once
def test_wheel(benchmark, tmp_path):
    """The size of the wheel."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        ROOT,
    ]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=1)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    sizes = {"wheel": wheel.stat().st_size, "largest file": largest.file_size}
    benchmark.extra_info.update(kind="wheel", threads=THREADS, medians=sizes)
