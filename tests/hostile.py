"""What the adversarial tests share: all that a step may write, refusals that leave it as it was, threads that race."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time

import numpy as np
import pytest
from conftest import TREES, check_alike, on_reference

import rmsprop_native as rms
from rmsprop_native import reference
from rmsprop_native.tree import flatten


def everything(params, state):
    """All that a step may write: the bytes of the parameters and of the state's arrays, and the counts.

    Arrays are read by ndarray's own methods, whatever a subclass says.
    """
    arrays = [leaf for leaf in flatten(params)[0] if issubclass(type(leaf), np.ndarray)]
    for name in TREES:
        tree = getattr(state, name)
        arrays += [] if tree is None else flatten(tree)[0]
    return (state.step, state.skipped, state.accumulated), [np.ndarray.tobytes(array) for array in arrays]


@contextlib.contextmanager
def refused(error, match, params, state):
    """The body raises, and nothing has been written."""
    before = everything(params, state)
    with pytest.raises(error, match=match):
        yield
    assert everything(params, state) == before


class Pair:
    """Parameters with a state, and copies of both that are stepped by the reference."""

    def __init__(self, params, overrides=None, **options):
        self.params = params
        self.ref_params, self.ref_state = on_reference(params, options, overrides)
        self.state = rms.init(params, overrides=overrides, **options)

    def step(self, grads, ref_grads=None, **per_call):
        rms.update_(self.params, grads, self.state, **per_call)
        self.ref_step(grads if ref_grads is None else ref_grads, **per_call)
        self.check()

    def ref_step(self, grads, **per_call):
        reference.update_(self.ref_params, grads, self.ref_state, **per_call)

    def check(self):
        check_alike(self.params, self.state, self.ref_params, self.ref_state)

    def refused(self, error, match, grads, **per_call):
        with refused(error, match, self.params, self.state):
            rms.update_(self.params, grads, self.state, **per_call)


@contextlib.contextmanager
def switching():
    """Let threads take turns as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def race(*functions, seconds=0.5, calls=400):
    """Call each function again and again in a thread of its own, until the time is over, or the first has returned so
    often and each of the others once.

    Returns
    -------
    list of int
        How often each returned; the other calls raised RuntimeError. Anything else that is raised is raised here.
    """
    returned, errors = [0] * len(functions), []
    end = time.monotonic() + seconds
    over = threading.Event()
    barrier = threading.Barrier(len(functions))

    def work(i):
        barrier.wait()
        try:
            while not over.is_set() and time.monotonic() < end:
                with contextlib.suppress(RuntimeError):
                    functions[i]()
                    returned[i] += 1
                    if min(returned) == 0:
                        time.sleep(1e-4)  # lets those in that were refused so far
                    elif i == 0 and returned[0] >= calls:
                        break
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the test
            errors.append(error)
        over.set()

    with switching():
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(functions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return returned


@contextlib.contextmanager
def garbage_collected_at(allocation, finalizer):
    """Run `finalizer` in the garbage collector, at this allocation of a container from here on; yields how often."""
    runs = []

    class Finalized:
        def __del__(self):
            runs.append(1)
            finalizer()

    threshold = gc.get_threshold()
    gc.disable()
    gc.freeze()  # the collector skips what exists already
    gc.collect()
    garbage = Finalized()
    garbage.itself = garbage
    del garbage
    gc.set_threshold(allocation, 1, 1)
    gc.enable()
    try:
        yield runs
    finally:
        gc.disable()
        gc.set_threshold(*threshold)
        gc.collect()  # where it was not reached
        gc.unfreeze()
        gc.enable()


class Code:
    """Rows whose conversion to an array runs a function first. They may be an array that other code holds."""

    def __init__(self, rows, run=lambda: None):
        self.rows, self.run = np.asarray(rows), run

    def __array__(self, dtype=None, copy=None):
        self.run()
        return self.rows
