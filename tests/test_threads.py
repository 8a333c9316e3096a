"""The worker pool: the same bits from any number of threads, callers at the same time, forks, rounding modes."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform

import numpy as np
import pytest
from cases import DTYPES, VARIANTS, hard_numbers, options_of
from conftest import check_alike, on_reference, run_python, run_together, same_bits, stepped_alike

import rmsprop_native as rms
from rmsprop_native import _core, reference

pytestmark = pytest.mark.threads


@pytest.mark.parametrize("variant", ["plain", "nesterov_centered_l2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_divide_any_tree_alike(dtype, variant, rng):
    lengths = [5, 3 * _core.SPAN + 5, 0, 1, _core.SPAN, 17, 2 * _core.SPAN - 1]
    params = [hard_numbers(rng, n, DTYPES[dtype]) for n in lengths]
    grads = [hard_numbers(rng, n, DTYPES[dtype]) for n in lengths]
    grads[4] = None
    _core.set_grain(0)
    for threads in (1, 2, 3, 7):
        rms.set_num_threads(threads)
        stepped_alike(options_of(VARIANTS[variant]), [p.copy() for p in params], grads)


def test_two_states_at_once(rng):
    """There is one worker pool. A caller that finds it in use works alone, with the same bits."""
    _core.set_grain(0)
    rms.set_num_threads(2)
    params = [hard_numbers(rng, 5 * _core.SPAN + 3, np.float32) for _ in range(2)]
    grads = [hard_numbers(rng, p.size, np.float32) for p in params]
    twins = [on_reference(p, rms.Options()) for p in params]
    states = [rms.init(p) for p in params]

    def work(i):
        for _ in range(200):
            rms.update_(params[i], grads[i], states[i])

    run_together(lambda: work(0), lambda: work(1))
    for i, (ref_param, ref_state) in enumerate(twins):
        for _ in range(200):
            reference.update_(ref_param, grads[i], ref_state)
        check_alike(params[i], states[i], ref_param, ref_state)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the number of FE_UPWARD is known for these"
)
def test_threads_round_as_their_caller_does(rng):
    """Each thread has a rounding mode of its own; workers take that of their caller, so that the bits are the same."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    upward = {"x86_64": 0x800, "aarch64": 0x400000}[platform.machine()]
    grad = rng.standard_normal(6 * _core.SPAN)
    results = {}
    _core.set_grain(0)
    for mode, threads in ((0, 2), (upward, 1), (upward, 2), (0, 1)):
        rms.set_num_threads(threads)
        param = np.ones(grad.size)
        state = rms.init(param)
        assert libm.fesetround(mode) == 0
        try:
            rms.update_(param, grad, state)
        finally:
            libm.fesetround(0)
        results[mode, threads] = param
    assert same_bits(results[upward, 1], results[upward, 2])
    assert same_bits(results[0, 1], results[0, 2])
    assert (results[upward, 1] != results[0, 1])[-_core.SPAN :].any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_has_threads_of_its_own():
    """The workers of the parent do not exist in the child, and are not waited for."""
    code = """
import os, sys
import numpy as np
import rmsprop_native as rms
from rmsprop_native import _core

def tasks():
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0

_core.set_grain(int(sys.argv[1]))
rms.set_num_threads(2)
param = np.ones(1 << 20, np.float32)
state = rms.init(param)
rms.update_(param, param.copy(), state)
pid = os.fork()
if pid == 0:
    before = tasks()
    rms.update_(param, param.copy(), state)
    os._exit(0 if tasks() == before + (sys.platform == "linux") and rms.num_threads() == 2 else 3)
rms.update_(param, param.copy(), state)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    for grain in (0, _core.grain()):  # every worker does its share, or those that come in time
        run_python(code, grain)
