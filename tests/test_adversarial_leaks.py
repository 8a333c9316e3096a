"""Thousands of calls, good and refused, of every kind: no memory, reference or open file is left behind."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import pickle
import resource
import sys

import numpy as np
import pytest
from conftest import run_together

import rmsprop_native as rms
from rmsprop_native import _core
from rmsprop_native.tree import flatten

CALLS = int(os.environ.get("RMSP_CALLS", "100"))  # make hardening does more
FEW_BLOCKS = 10  # of a round of calls: what CPython and NumPy keep for themselves, which comes to an end
FEW_KIB = 4 << 10


class Setting:
    """Parameters, gradients and states that all calls share, and files."""

    def __init__(self, folder):
        self.params = {"w": np.ones((40, 50)), "b": [np.ones(7, np.float32), np.ones((2, 3), np.complex64).T]}
        self.grads = {"w": np.ones((40, 50)).T.copy().T, "b": [np.ones(7, np.float32), None]}
        self.options = {"momentum": 0.9, "ema": 0.5, "clip_norm": 0.5, "on_nonfinite": "raise"}
        self.state = rms.init(self.params, overrides={"w": {"lr": np.full((40, 1), 0.1)}}, **self.options)
        self.sums = rms.init(self.params, accumulate=3, centered=True)
        self.object = rms.RMSProp(self.params, lr=0.1)
        self.rows = self.with_w(rms.RowGrad(np.array([3, 1, 3]), np.ones((3, 50))))
        self.saved = self.state.state_dict()
        self.other = self.saved | {"step": -1}
        self.path, self.bad = folder / "a.npz", folder / "bad.npz"
        rms.save(self.path, self.state)
        data = bytearray(self.path.read_bytes())
        data[len(data) // 2] ^= 1
        self.bad.write_bytes(data)
        self.other_path = folder / "b.safetensors"

    def with_w(self, leaf):
        return self.grads | {"w": leaf}

    def step(self, grads=None, **per_call):
        rms.update_(self.params, self.grads if grads is None else grads, self.state, **per_call)


NUMBERS = {"lr": 0.1, "rho": 0.9, "eps": 1e-8}


def fails(steps):
    raise ZeroDivisionError


# Name: what is called, and the error that it raises or None.
GOOD = {
    "update_": lambda s: s.step(),
    "per call": lambda s: s.step(lr=0.5, grad_scale=0.5),
    "rows": lambda s: s.step(s.rows),
    "accumulate": lambda s: rms.update_(s.params, s.grads, s.sums),
    "update": lambda s: rms.update(s.params, s.grads, s.state),
    "RMSProp": lambda s: s.object.step(s.grads),
    "init": lambda s: rms.init(s.params, overrides={"b.*": {"lr": 0.5}}, **s.options),
    "other parameters": lambda s: rms.update_({"w": s.params["w"] + 1, "b": s.params["b"]}, s.grads, s.sums),
    "ufunc": lambda s: rms.rmsprop(s.params["w"], s.grads["w"], np.abs(s.params["w"]), **NUMBERS),
    "ufunc in place": lambda s: rms.rmsprop(*[np.ones(9) for _ in range(3)], **NUMBERS | {"lr": np.full(9, 0.1)}),
    "views": lambda s: s.state.square_avg["b"][0],
    "written": lambda s: s.state.momentum_buffer["w"].__setitem__(..., 0.5),
    "replace": lambda s: s.state.replace(lr=0.25, overrides={"w": {"lr": np.full((40, 1), 0.1)}}),
    "copy": lambda s: s.state.copy(),
    "pickle": lambda s: pickle.loads(pickle.dumps(s.sums)),
    "state_dict": lambda s: rms.from_state_dict(s.saved, like=s.params),
    "load_state_dict": lambda s: s.state.load_state_dict(s.saved),
    "save": lambda s: rms.save(s.other_path, s.state),
    "load": lambda s: rms.load(s.path, like=s.params),
    "settings": lambda s: (rms.set_num_threads(2), rms.use_isa("baseline"), rms.num_threads(), rms.isa()),
}
BAD = {
    "shape": (ValueError, lambda s: s.step(s.with_w(np.ones(3)))),
    "dtype": (TypeError, lambda s: s.step(s.with_w(np.ones((40, 50), np.int64)))),
    "no array": (TypeError, lambda s: s.step(s.with_w("w"))),
    "overlap": (ValueError, lambda s: s.step(s.with_w(s.params["w"]))),
    "structure": (ValueError, lambda s: s.step({"w": s.grads["w"]})),
    "rows outside": (IndexError, lambda s: s.step(s.with_w(rms.RowGrad([99], np.ones((1, 50)))))),
    "rows accumulated": (ValueError, lambda s: rms.update_(s.params, s.rows, s.sums)),
    "not finite": (FloatingPointError, lambda s: s.step(s.with_w(np.full((40, 50), np.nan)))),
    "lr": (ValueError, lambda s: s.step(lr=np.nan)),
    "schedule": (ZeroDivisionError, lambda s: rms.init(s.params, lr=fails)),
    "option": (ValueError, lambda s: rms.init(s.params, rho=2.0)),
    "overrides": (ValueError, lambda s: rms.init(s.params, overrides={"z": {"lr": 1.0}})),
    "read-only": (ValueError, lambda s: rms.init(np.broadcast_to(1.0, (3,)))),
    "twice": (ValueError, lambda s: rms.init([s.params["w"], s.params["w"]])),
    "replace": (ValueError, lambda s: s.state.replace(centered=True)),
    "ufunc": (TypeError, lambda s: rms.rmsprop(s.params["w"], "g", s.params["w"], **NUMBERS)),
    "state_dict": (ValueError, lambda s: rms.from_state_dict(s.other)),
    "load_state_dict": (ValueError, lambda s: s.sums.load_state_dict(s.other)),
    "load": (ValueError, lambda s: rms.load(s.bad)),
    "load nothing": (FileNotFoundError, lambda s: rms.load(s.path.parent / "none.npz")),
    "save nowhere": (FileNotFoundError, lambda s: rms.save(s.path.parent / "none" / "a.npz", s.state)),
    "save no state": (TypeError, lambda s: rms.save(s.other_path, s.params)),
}


def resident_kib():
    """The memory that the process has now; where the system does not say so, the most that it has had."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize() >> 10
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def left_behind(setting, call, rounds=1):
    """Blocks, KiB, open files and references after many calls, less those before: the least that was left by a round of
    them. The first calls fill caches; a leak is in every round.
    """
    leaves = [leaf for tree in (setting.params, setting.grads, setting.rows) for leaf in flatten(tree)[0]]
    held = [*leaves, setting.state, setting.sums, setting.saved, setting.options]

    # Attributes that C code looks up by a new string each time fill the cache of types with up to 4096 such strings.
    clear_type_cache = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache

    def counted():
        gc.collect()
        clear_type_cache()
        blocks, references = sys.getallocatedblocks(), sum(map(sys.getrefcount, held))
        files = len(os.listdir("/dev/fd"))
        return np.array([blocks, resident_kib(), files, references])

    counts = [counted()]
    for _ in range(rounds):
        for _ in range(CALLS):
            call(setting)
        counts.append(counted())
    return np.diff(counts, axis=0).min(axis=0)


def check(setting, call):
    blocks, kib, files, references = left_behind(setting, call, rounds=4)
    assert blocks < FEW_BLOCKS
    assert kib < FEW_KIB
    assert files == references == 0


@pytest.mark.parametrize("name", GOOD)
def test_calls_leave_nothing(name, tmp_path):
    check(Setting(tmp_path), GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_refused_calls_leave_nothing(name, tmp_path):
    error, call = BAD[name]

    def refused(setting):
        with contextlib.suppress(error):
            call(setting)
            raise AssertionError("it was not refused")

    check(Setting(tmp_path), refused)


@pytest.mark.threads
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_workers_leave_nothing(threads, tmp_path):
    """Each call in threads of their own, on states of their own, with workers awake at each step."""
    _core.set_grain(0)
    rms.set_num_threads(2)

    def call(setting):
        if getattr(setting, "second", None) is None:
            setting.second = rms.init(setting.object.state.square_avg["w"] + 1)
        own = np.ones((40, 50))
        calls = [setting.step, lambda: rms.update_(own, setting.grads["w"], setting.second)]
        run_together(*calls[:threads])

    check(Setting(tmp_path), call)


def new_memory(size):
    """Memory of the system's, where malloc may have some left of what ran before."""
    memory = mmap.mmap(-1, size)
    memory.write(bytes(size))
    return memory


def test_a_leak_is_found(tmp_path):
    """Of a block, of memory, of a reference and of a file, each once in ten calls."""
    kept = []

    def leaks(make):
        calls = iter(range(10**6))

        def call(setting):
            if next(calls) % 10 == 0:
                kept.append(make(setting))

        return call

    setting = Setting(tmp_path)
    assert left_behind(setting, leaks(lambda s: object()))[0] >= CALLS // 10
    assert left_behind(setting, leaks(lambda s: new_memory(1 << 19)))[1] >= 32 * CALLS
    assert left_behind(setting, leaks(lambda s: os.dup(0)))[2] == CALLS // 10
    assert left_behind(setting, leaks(lambda s: s.params["w"]))[3] == CALLS // 10
    for each in kept:
        if isinstance(each, int):
            os.close(each)
