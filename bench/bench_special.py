"""Where it may hurt: subnormal numbers, cold caches, misaligned starts, another OpenMP at work, import, the wheel."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, THREADS

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
def test_cold(benchmark, rng, n):
    """Nothing of the arrays in any cache, against everything: each call timed alone."""
    param, grad = (rng.standard_normal(n).astype("float32") for _ in range(2))
    state = rms.init(param)
    flush = np.ones(2**26, np.uint8)
    times = {"warm": [], "cold": []}

    def one_round():
        for name, values in times.items():
            rms.update_(param, grad, state)
            if name == "cold":
                flush[...] += 1
            start = time.perf_counter()
            rms.update_(param, grad, state)
            values.append(time.perf_counter() - start)

    benchmark.pedantic(one_round, rounds=15 if QUICK else 41)
    medians = {name: statistics.median(values) for name, values in times.items()}
    benchmark.extra_info.update(kind="cold", n=n, threads=THREADS, medians=medians)


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


def test_beside_torch(benchmark, rng):
    """Steps of ours between products of torch on two threads: two OpenMP runtimes in one process, neither to lose."""
    torch = pytest.importorskip("torch")
    if THREADS == 1:
        pytest.skip("for two threads")
    torch.set_num_threads(THREADS)
    param, grad = (rng.standard_normal(2**20).astype("float32") for _ in range(2))
    state = rms.init(param)
    matrix = torch.randn(512, 512)

    def timed(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def ours():
        rms.update_(param, grad, state)

    def theirs():
        torch.mm(matrix, matrix)

    times = {"ours alone": [], "torch alone": [], "ours between": [], "torch between": []}

    def one_round():
        for name, call in (("ours alone", ours), ("torch alone", theirs)):
            call()
            times[name].append(statistics.median(timed(call) for _ in range(9)))
        pairs = [(timed(theirs), timed(ours)) for _ in range(10)][1:]
        times["torch between"].append(statistics.median(a for a, _ in pairs))
        times["ours between"].append(statistics.median(b for _, b in pairs))

    benchmark.pedantic(one_round, rounds=15 if QUICK else 41)
    medians = {name: statistics.median(values) for name, values in times.items()}
    benchmark.extra_info.update(kind="beside torch", threads=THREADS, medians=medians)


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
