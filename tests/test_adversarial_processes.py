"""Processes: those that fork, spawn, end or are interrupted while threads are inside steps."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import check_alike, on_reference, run_python

import rmsprop_native as rms
from rmsprop_native import reference

pytestmark = pytest.mark.threads

WORK = """
import multiprocessing, os, sys, threading, time
import numpy as np
import rmsprop_native as rms
from rmsprop_native import _core

grain = _core.grain()
_core.set_grain(0)  # every worker does its share, whatever the cores
rms.set_num_threads(2)


def work(seed, spans=3):
    param = np.full(spans * _core.SPAN, float(seed))
    state = rms.init(param, momentum=0.9)
    for _ in range(3):
        rms.update_(param, np.ones_like(param), state)
    return param.tobytes()


def steps_without_end():
    param = np.ones(64 * _core.SPAN)
    state, grad = rms.init(param), np.ones_like(param)
    while True:
        rms.update_(param, grad, state)


def start():
    threading.Thread(target=steps_without_end, daemon=True).start()
    time.sleep(0.05)


"""


def run(*arguments):
    """Run Python. Threads that end with their process are no leak to a thread sanitizer."""
    environment = os.environ | {"TSAN_OPTIONS": f"{os.environ.get('TSAN_OPTIONS', '')} report_thread_leaks=0"}
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_beside_threads(method, tmp_path):
    """Workers of the parent are active when the children start; parent and children have the same bits."""
    script = tmp_path / "script.py"
    script.write_text(
        WORK
        + """
if __name__ == "__main__":
    start()
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        made = pool.map(work, range(8))
    print(made == [work(seed) for seed in range(8)])
"""
    )
    done = run(script, method)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


# How a process ends while a thread is inside a step with its workers, and with which status.
EXITS = {
    "the end": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "os._exit": ("os._exit(4)", 4),
    "SIGTERM": ("import signal; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -15),
    "a fork": ("os.fork() or os._exit(0); os.wait()", 0),
    "a step at exit": ("import atexit; atexit.register(work, 1)", 0),
    "a step of a finalizer": (
        """
class Last:
    def __del__(self, work=work):
        work(1)
_last = Last()  # such names are cleared before the others of a module
""",
        0,
    ),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("how", EXITS)
def test_exit_while_workers_run(how):
    code, status = EXITS[how]
    done = run("-c", f"{WORK}start()\nstart()\n{code}")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


# In the child of a process with several threads a sanitizer's own locks may stay taken.
FORKS = 3 if "san.so" in os.environ.get("LD_PRELOAD", "") else int(os.environ.get("RMSP_FORKS", "20"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forks_at_any_moment_of_a_step():
    """Workers are inside a chunk, asleep, or being woken; a child steps with threads of its own, and has the bits."""
    code = f"""
import signal
expected = work(5)
start()

def steps_with_breaks():
    while True:
        work(1, 64)
        time.sleep(2e-4)

threading.Thread(target=steps_with_breaks, daemon=True).start()
for i in range({FORKS}):
    time.sleep(i % 7 * 1e-4)  # longer and shorter than workers spin
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # a child that waits for a thread of its parent would wait for good
        os._exit(work(5) != expected)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, i
print(work(5) == expected)
"""
    done = run("-c", WORK + code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


# The thread sanitizer's own data does not fit into 64 KiB.
STACKS = {"too large to be had": 1 << 46, "small": 1 << 20 if "tsan" in os.environ.get("LD_PRELOAD", "") else 64 << 10}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the default size of a stack is set by a call of glibc")
@pytest.mark.parametrize("stack", STACKS)
def test_stacks_of_workers(stack):
    """Where the system gives no thread the caller works alone; small stacks are enough, whatever the kind of step."""
    code = """
import ctypes
from rmsprop_native import reference

def kinds():
    rng = np.random.default_rng(1)
    wide = rng.standard_normal((40, 2 * _core.SPAN))
    yield wide[:, ::2], wide[::-1, 1::2], {"momentum": 0.9, "centered": True, "ema": 0.5, "clip_global_norm": 1.0}
    yield wide[:, ::2].astype("f4"), wide[:, 1::2].astype("f4").T.copy().T, {"square_avg_dtype": "bfloat16"}
    yield wide, wide[::-1].copy(), {"overrides": {"*": {"lr": rng.random(wide.shape)}}}

libc = ctypes.CDLL(None)
attributes = ctypes.create_string_buffer(256)
assert libc.pthread_attr_init(attributes) == 0
assert libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(int(sys.argv[1]))) == 0
assert libc.pthread_setattr_default_np(attributes) == 0
tasks = len(os.listdir("/proc/self/task"))
for param, grad, options in kinds():
    other = param.copy()
    state, ref_state = rms.init(param, **options), reference.init(other, **options)
    for _ in range(2):
        rms.update_(param, grad, state)
        reference.update_(other, grad, ref_state)
    assert (param == other).all()
print(len(os.listdir("/proc/self/task")) - tasks)
"""
    assert run_python(WORK + code, STACKS[stack]) == ("1" if stack == "small" else "0")


@pytest.mark.parametrize("size", [128 << 10, 1 << 20])
def test_callers_of_small_stacks(size):
    code = """
threading.stack_size(int(sys.argv[1]))
expected, made = work(3), []
threads = [threading.Thread(target=lambda: made.append(work(3))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(made == [expected] * 4)
"""
    assert run_python(WORK + code, size) == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_as_many_threads_as_cores_whatever_was_set():
    code = """
import signal

def left():
    return os.sched_getaffinity(0), signal.pthread_sigmask(signal.SIG_BLOCK, ())

signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1,))
tasks, before = len(os.listdir("/proc/self/task")), left()
rms.set_num_threads(4096)
_core.set_grain(grain)
work(1, 64)
more = len(os.listdir("/proc/self/task")) - tasks
print(rms.num_threads(), more < len(before[0]), left() == before)
"""
    assert run_python(WORK + code) == "4096 True True"


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is that of Linux")
def test_one_core_has_no_workers():
    """Restricted before the import, and after it."""
    code = (
        """
import os
core = {min(os.sched_getaffinity(0))}
if BEFORE:
    os.sched_setaffinity(0, core)
"""
        + WORK
        + """
os.sched_setaffinity(0, core)
_core.set_grain(grain)
tasks = len(os.listdir("/proc/self/task"))
work(1, 64)
print(len(os.listdir("/proc/self/task")) - tasks)
"""
    )
    for before in ("True", "False"):
        assert run_python(code.replace("BEFORE", before)) == "0"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_an_interrupt_leaves_whole_steps(rng):
    """Ctrl-C at any moment of a loop: each step was taken as a whole and counted, or not at all."""
    param = rng.standard_normal(50_000)
    grad = rng.standard_normal(50_000)
    state, caught = rms.init(param, momentum=0.9), 0
    ref_param, ref_state = on_reference(param, {"momentum": 0.9})
    for delay in np.linspace(1e-4, 5e-3, 12):
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, delay)
            while True:
                rms.update_(param, grad, state)
        except KeyboardInterrupt:
            caught += 1
        finally:
            signal.signal(signal.SIGALRM, before)
    assert caught == 12
    while ref_state.step < state.step:
        reference.update_(ref_param, grad, ref_state)
    check_alike(param, state, ref_param, ref_state)
