"""The compiled library's module: the claim on a state, and the control of threads and instruction sets."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from cases import options_of
from conftest import run_together, stepped_alike

from rmsprop_native import _core

# ---- the claim on a state ----


def test_a_claim_is_taken_once():
    claim = _core.Claim(1)
    for _ in range(2):  # it can be taken again after its release
        with claim as taken:
            assert taken is claim
            with pytest.raises(RuntimeError, match="this state is inside a step already"), claim:
                pass
            with pytest.raises(RuntimeError, match="give each thread a state of its own"), claim:
                pass


def test_a_claim_is_released_by_an_error():
    claim = _core.Claim(1)
    with pytest.raises(KeyError), claim:
        raise KeyError
    with claim:
        pass


@pytest.mark.threads
def test_another_thread_is_refused():
    claim = _core.Claim(1)
    taken, leave = threading.Event(), threading.Event()

    def hold():
        with claim:
            taken.set()
            leave.wait()

    def try_to_take():
        taken.wait()
        try:
            with pytest.raises(RuntimeError, match="inside a step already, in another thread"), claim:
                pass
        finally:
            leave.set()

    run_together(hold, try_to_take)
    with claim:
        pass


@pytest.mark.threads
def test_one_thread_at_a_time_has_a_claim():
    claim = _core.Claim(1)
    inside = []

    def work():
        for _ in range(2000):
            with contextlib.suppress(RuntimeError), claim:
                inside.append(1)
                time.sleep(0)  # lets another thread run
                assert len(inside) == 1
                inside.pop()

    run_together(work, work, work)
    assert inside == []


def test_counts_of_a_claim():
    claim = _core.Claim(3)
    assert (claim.steps, claim.skipped, claim.accumulated, claim.seen) == (0, 0, 0, b"\0\0\0")
    claim.set_counts(2**53 - 1, 5, 2, b"\1\0\1")
    assert (claim.steps, claim.skipped, claim.accumulated, claim.seen) == (2**53 - 1, 5, 2, b"\1\0\1")
    with pytest.raises(ValueError, match="there are 3 leaves, not 2"):
        claim.set_counts(1, 1, 1, b"\0\0")
    assert claim.steps == 2**53 - 1


def test_a_claim_without_leaves():
    claim = _core.Claim(0)
    claim.set_counts(1, 0, 0, b"")
    assert (claim.steps, claim.seen) == (1, b"")


# ---- run-time control ----


@pytest.mark.thread_unsafe
def test_the_grain_decides_whether_the_gil_is_released_and_not_the_bits(rng):
    param, grad = rng.standard_normal(1000), rng.standard_normal(1000)
    assert _core.grain() == 32 << 10
    for grain in (0, 1000 * 8, 1 << 40):
        _core.set_grain(grain)
        assert _core.grain() == grain
        stepped_alike(options_of(), [param.copy()], [grad])


@pytest.mark.thread_unsafe
def test_number_of_threads():
    before = _core.num_threads()
    assert 1 <= before <= _core.MAX_THREADS
    _core.set_num_threads(0)
    assert _core.num_threads() == before
    assert [_core.set_num_threads(n) for n in (3, 5, 0)] == [0, 3, 5]  # what was allowed before


@pytest.mark.thread_unsafe
def test_use_isa_says_whether_there_is_one():
    names = _core.isas()
    assert _core.use_isa(names[-1]) is True
    assert _core.isa() == names[-1]
    assert _core.use_isa("sse9") is False
    assert _core.isa() == names[-1]
