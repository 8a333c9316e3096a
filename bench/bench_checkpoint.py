"""Checkpoints beside NumPy's own files: a state of 1 GiB to disk and back, with what other memory that takes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, THREADS

import rmsprop_native as rms

pytestmark = pytest.mark.skipif(THREADS != 1, reason="files are written and read by one thread")

LEAVES = 8  # so that an array is a sixteenth of the state: square_avg and momentum_buffer
SIZE = 2**27 if QUICK else 2**30  # bytes


@pytest.fixture(scope="module")
def state():
    rng = np.random.default_rng(7)
    state = rms.init([np.zeros(SIZE // LEAVES // 8, np.float32) for _ in range(LEAVES)], momentum=0.9)
    for array in (*state.square_avg, *state.momentum_buffer):
        array[...] = rng.random(array.size, np.float32)
    return state


def resident():
    """Bytes of memory of this process that are in use, without the pages of files."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_of(call):
    """The largest `resident` during a call, over that before it."""
    before, largest, over = resident(), [0], threading.Event()

    def watch():
        while not over.is_set():
            largest[0] = max(largest[0], resident())
            time.sleep(1e-3)

    thread = threading.Thread(target=watch)
    thread.start()
    call()
    over.set()
    thread.join()
    return largest[0] - before


def once(call):
    def turn():
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return turn


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_checkpoint(take_turns, benchmark, tmp_path, state, suffix):
    path, peer = tmp_path / f"ours.{suffix}", tmp_path / "numpy.npz"
    arrays = state.state_dict()["arrays"]

    def savez():
        with open(peer, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())

    def load():
        with np.load(peer) as found:
            return [found[name] for name in found]

    contenders = {
        "save": lambda: rms.save(path, state),
        "np.savez and fsync": savez,
        "load": lambda: rms.load(path),
        "np.load": load,
    }
    for call in contenders.values():
        call()
    take_turns({name: once(call) for name, call in contenders.items()}, rounds=5, kind="checkpoint", other=suffix)
    one_array = SIZE / LEAVES / 2
    benchmark.extra_info.update(
        save_memory=peak_of(contenders["save"]) / one_array,
        load_memory=(peak_of(contenders["load"]) - SIZE) / one_array,
    )
    path.unlink()
    peer.unlink()
