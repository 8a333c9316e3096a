"""Checkpoints: training that goes on from one gives the bits of training that never stopped."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import threading
import time
import tracemalloc
from collections import namedtuple

import numpy as np
import pytest
from cases import ISAS, NUMBERS, THREADS, VARIANTS
from conftest import copied, on_reference, run_python, same_bits
from hostile import everything

import rmsprop_native as rms
from rmsprop_native import _core, reference
from rmsprop_native.tree import flatten

SUFFIXES = ["npz", "safetensors"]


def tree(rng, dtype=np.float32):
    """Parameters, or gradients: a matrix of each order, vectors, one number, an empty array."""
    normal = rng.standard_normal
    return {
        "w": normal((9, 5)).astype(dtype),
        "layers": [np.asfortranarray(normal((4, 6)).astype(dtype)), {"b": normal(7), "z": normal(6).view(complex)}],
        "scale": normal(()).astype(dtype)[...],
        "none": np.zeros((0, 2), dtype),
    }


def stopped_and_not(tmp_path, suffix, rng, *, steps=(3, 4), between=lambda: None, load=None, given=None, **options):
    """Train twice alike; one of them is saved after the first steps, and goes on from the file."""
    params = tree(rng)
    twin = copied(params)
    one, other = rms.init(params, **options), rms.init(twin, **options)
    path = tmp_path / f"state.{suffix}"
    all_grads = [tree(rng) for _ in range(sum(steps))]
    for i, grads in enumerate(all_grads):
        if i == 1:
            grads["w"] = None  # a leaf that has not been seen
        if i == 2:
            grads["layers"][1]["b"][0] = np.nan if options.get("on_nonfinite") == "skip" else 1.0
        if i == steps[0]:
            rms.save(path, other)
            del other
            between()
            other = rms.load(path, **(given or {}))
        rms.update_(params, grads, one)
        rms.update_(twin, grads, other)
    assert everything(params, one) == everything(twin, other)
    assert repr(one) == repr(other)
    return one, other


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant(tmp_path, rng, variant, suffix):
    stopped_and_not(tmp_path, suffix, rng, **VARIANTS[variant])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("number", NUMBERS)
def test_every_number(tmp_path, rng, number, suffix):
    stopped_and_not(tmp_path, suffix, rng, **{"lr": 0.03} | NUMBERS[number])


OPTIONS = {
    "accumulating": ({"accumulate": 4}, (5, 6)),
    "accumulating, with norms": ({"accumulate": 3, "clip_global_norm": 0.5, "momentum": 0.9}, (2, 6)),
    "averages": ({"ema": 0.9, "centered": True}, (3, 3)),
    "averages before the first step": ({"ema": 0.9, "accumulate": 3}, (2, 5)),
    "skipped": ({"on_nonfinite": "skip", "accumulate": 2}, (3, 4)),
    "overrides": ({"overrides": {"w": {"rho": 0.5, "lr": 0.3}, "layers.*": {"weight_decay": 0.1}}}, (3, 3)),
    "overrides of one another": ({"overrides": {"layers.*": {"lr": 0.5}, "layers.0": {"lr": 0.25}}}, (3, 3)),
    "rates": ({"overrides": {"w": {"lr": np.linspace(0, 1, 5)}, "layers.0": {"lr": np.ones((4, 1)) / 3}}}, (3, 3)),
    "everything": (
        {"momentum": 0.9, "nesterov": True, "centered": True, "weight_decay": 0.01, "accumulate": 3, "ema": 0.5,
         "bias_correction": True, "clip_norm": 0.5, "on_nonfinite": "skip", "overrides": {"w": {"lr": np.ones(5) / 7}}},
        (5, 7),
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", OPTIONS)
def test_in_the_middle_of_anything(tmp_path, rng, name, suffix):
    options, steps = OPTIONS[name]
    one, other = stopped_and_not(tmp_path, suffix, rng, steps=steps, **options)
    assert (one.skipped > 0) == (options.get("on_nonfinite") == "skip")
    assert other.square_avg["layers"][0].flags.f_contiguous


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("before", ISAS)
def test_on_another_instruction_set_and_number_of_threads(tmp_path, rng, before, isa, threads):
    def change():
        rms.use_isa(isa)
        rms.set_num_threads(threads)

    _core.set_grain(1)
    rms.use_isa(before)
    rms.set_num_threads(1)
    stopped_and_not(tmp_path, "npz", rng, between=change, momentum=0.9, centered=True, accumulate=2)


def test_in_another_process(tmp_path, rng):
    params, grads = tree(rng), tree(rng)
    state = rms.init(params, momentum=0.9, accumulate=2)
    rms.update_(params, grads, state)
    rms.save(tmp_path / "state.npz", state)
    leaves = flatten(params)[0], flatten(grads)[0]
    np.savez(tmp_path / "arrays.npz", *leaves[0], *leaves[1])
    code = """
import sys
import numpy as np
import rmsprop_native as rms
from rmsprop_native.tree import flatten
state = rms.load(sys.argv[1])
leaves = list(np.load(sys.argv[2]).values())
params, grads = (state._structure.unflatten(iter(half)) for half in (leaves[:6], leaves[6:]))
rms.update_(params, grads, state)
rms.save(sys.argv[1], state)
print(b"".join(leaf.tobytes() for leaf in flatten(params)[0]).hex())
"""
    printed = run_python(code, tmp_path / "state.npz", tmp_path / "arrays.npz")
    rms.update_(params, grads, state)
    assert printed == b"".join(leaf.tobytes() for leaf in leaves[0]).hex()
    assert everything(params, rms.load(tmp_path / "state.npz")) == everything(params, state)


def test_beside_the_reference(tmp_path, rng):
    """Saved and loaded before each step."""
    params = {"w": rng.standard_normal((3, 4)), "b": rng.standard_normal(3)}
    options = {"momentum": 0.9, "centered": True, "accumulate": 2, "ema": 0.9}
    ref_params, ref_state = on_reference(params, options)
    rms.save(tmp_path / "state.npz", rms.init(params, **options))
    for _ in range(7):
        grads = {"w": rng.standard_normal((3, 4)), "b": rng.standard_normal(3)}
        state = rms.load(tmp_path / "state.npz")
        rms.update_(params, grads, state)
        rms.save(tmp_path / "state.npz", state)
        reference.update_(ref_params, grads, ref_state)
        assert all(same_bits(params[key], ref_params[key]) for key in params)


def test_a_diverged_run_is_a_run(tmp_path, rng):
    params = np.array([np.nan, 1.0, np.inf])
    state = rms.init(params, momentum=0.9)
    rms.update_(params, np.array([np.nan, -np.inf, 1.0]), state)
    rms.save(tmp_path / "a.npz", state)
    assert everything(params, rms.load(tmp_path / "a.npz")) == everything(params, state)


# ---- what is given again ----


def schedule(taken):
    return 0.5 / (1 + taken)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_schedule_is_given_again(tmp_path, rng, suffix):
    stopped_and_not(tmp_path, suffix, rng, lr=schedule, given={"lr": schedule})
    match = r"state\.\w+: the learning rate was a schedule, schedule, which is not saved: give it again, as lr=\.\.\."
    with pytest.raises(ValueError, match=match):
        rms.load(tmp_path / f"state.{suffix}")
    overrides = {"w": {"lr": schedule, "rho": 0.5}}
    stopped_and_not(tmp_path, suffix, rng, overrides=overrides, given={"overrides": overrides})
    with pytest.raises(ValueError, match=r"the learning rate of overrides\['w'\] was a schedule"):
        rms.load(tmp_path / f"state.{suffix}")


def test_a_learning_rate_may_be_given_in_place_of_the_saved_one(tmp_path):
    rms.save(tmp_path / "a.npz", rms.init([np.zeros(2)], lr=0.5, overrides={"0": {"rho": 0.5}}))
    assert rms.load(tmp_path / "a.npz", lr=0.25).options.lr == 0.25
    assert "overrides" not in repr(rms.load(tmp_path / "a.npz", overrides={}))
    for given, error, match in (
        ({"lr": "x"}, TypeError, "lr must be a number, got 'x'"),
        ({"lr": -1}, ValueError, "lr must be finite and >= 0"),
        ({"overrides": 5}, TypeError, "overrides must be a mapping"),
        ({"overrides": {"1": {}}}, ValueError, r"overrides\['1'\] matches none of '0'"),
        ({"like": [5]}, TypeError, "parameter '0'"),
        ({"like": [np.zeros(3)]}, ValueError, r"leaf '0' was saved with shape \(2,\)"),
    ):
        with pytest.raises(error, match=match):
            rms.load(tmp_path / "a.npz", **given)


@dataclasses.dataclass
class Net:
    w: object
    rest: object


Pair = namedtuple("Pair", ["a", "b"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_classes_of_containers_are_given_again(tmp_path, rng, suffix):
    def made():
        return Net(rng.standard_normal((3, 2)), Pair(rng.standard_normal(3), [rng.standard_normal(1)]))

    params = made()
    state = rms.init(params, overrides={"rest.a": {"lr": 0.5}})
    path = tmp_path / f"a.{suffix}"
    rms.save(path, state)
    like = Net(np.asfortranarray(params.w), params.rest)
    for loaded in (rms.load(path), rms.load(path, like=params), rms.load(path, like=like)):
        twin, one, grads = copied(params), state.copy(), made()
        rms.update_(twin, grads, loaded)
        ours = copied(params)
        rms.update_(ours, grads, one)
        assert everything(twin, loaded) == everything(ours, one)
    assert type(rms.load(path, like=params).square_avg.rest) is Pair
    assert rms.load(path, like=like).square_avg.w.flags.f_contiguous


# ---- one caller at a time ----


@pytest.mark.threads
def test_no_checkpoint_is_torn_by_a_step_in_another_thread(tmp_path):
    """All elements are alike at every step. Either call may be refused, and each is taken at times."""
    params, grads = np.ones(1 << 20, np.float32), np.ones(1 << 20, np.float32)
    state = rms.init(params, momentum=0.9)
    path = tmp_path / "a.npz"
    rms.save(path, state)
    refused, over = [], threading.Event()

    def step():
        while not over.is_set():
            try:
                rms.update_(params, grads, state)
                time.sleep(2e-3)  # the state is free most of the time, and in use for most of a save
            except RuntimeError as error:
                refused.append(str(error))

    thread = threading.Thread(target=step)
    thread.start()
    saved = 0
    try:
        while saved < 10 or not refused:
            try:
                rms.save(path, state)
            except RuntimeError as error:
                assert "this state is inside a step already" in str(error)
                continue
            saved += 1
            loaded = rms.load(path)
            assert np.unique(loaded.square_avg).size == np.unique(loaded.momentum_buffer).size == 1
    finally:
        over.set()
        thread.join()
    assert all("this state is inside a step already" in text for text in refused)
    assert os.listdir(tmp_path) == ["a.npz"]


def test_a_schedule_cannot_save_the_state_that_calls_it(tmp_path):
    def saves(taken):
        if taken:
            rms.save(tmp_path / "a.npz", state)
        return 0.5

    params = np.zeros(2)
    state = rms.init(params, lr=saves)
    rms.update_(params, np.ones(2), state)
    with pytest.raises(RuntimeError, match="this state is inside a step already"):
        rms.update_(params, np.ones(2), state)
    assert os.listdir(tmp_path) == []


# ---- refusals ----


def test_what_cannot_be_saved(tmp_path):
    path = tmp_path / "a.npz"
    rms.save(path, rms.init(np.zeros(1)))
    before = path.read_bytes()
    negative = rms.init({"w": np.zeros(2)})
    negative.square_avg["w"][1] = -1
    for state, error, match in (
        (rms.RMSProp(np.zeros(1)), TypeError, "state must be a State, got RMSProp; a RMSProp has one, as .state"),
        ({}, TypeError, "state must be a State, got dict"),
        (rms.init({b"w": np.zeros(1)}), ValueError, "a key of the dict '' is b'w': only str, int, bool"),
        (negative, ValueError, r"square_avg \(leaf 'w'\) has a negative mean square, -1.0"),
    ):
        with pytest.raises(error, match=match):
            rms.save(path, state)
        assert os.listdir(tmp_path) == ["a.npz"]
        assert path.read_bytes() == before


def test_what_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is no regular file"):
        rms.load(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        rms.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing.npz"):
        rms.load(tmp_path / "missing.npz")
    np.savez(tmp_path / "other.npz", w=np.zeros(3))
    np.savez_compressed(tmp_path / "compressed.npz", header=np.zeros(3, np.uint8))
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("x" * 1000)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "a.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    rms.save(tmp_path / "b.npz", rms.init(np.zeros(1)))
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "b.npz").read_bytes())
    for name, match in (
        ("other.npz", "it does not begin as an .npz checkpoint does, with a member of the name header"),
        ("compressed.npz", "its header would have 71 bytes, which is too little or too much"),
        ("empty.npz", "it does not begin as an .npz checkpoint does"),
        ("text.npz", "it does not begin as an .npz checkpoint does"),
        ("empty.safetensors", "it does not begin as a .safetensors checkpoint does"),
        ("a.safetensors", "it has no metadata"),
        ("b.safetensors", "it does not begin as a .safetensors checkpoint does"),
    ):
        with pytest.raises(ValueError, match=f"{re.escape(name)}: {match}"):
            rms.load(tmp_path / name)


# ---- memory ----


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory(tmp_path, suffix, order):
    """Saving takes a few chunks of memory, or where the order must change one array; loading takes one array besides
    the state.
    """
    one = 16 << 20
    params = [np.zeros((1 << 11, 1 << 10), order=order) for _ in range(4)]
    state = rms.init(params, momentum=0.9)
    copied_array = one if (order, suffix) == ("F", "safetensors") else 0
    path = tmp_path / f"a.{suffix}"
    rms.save(path, state)
    chunks = 6 << 20  # of 1 MiB: the file's buffer, what is written, what it is compared with
    loaded = rms.load(path)
    tracemalloc.start()
    try:
        rms.save(path, state)
        assert tracemalloc.get_traced_memory()[1] < copied_array + chunks
        tracemalloc.reset_peak()
        loaded = rms.load(path)
        assert 8 * one < tracemalloc.get_traced_memory()[1] < 8 * one + one + chunks
    finally:
        tracemalloc.stop()
    assert loaded.step == 0


# ---- progress ----


@pytest.mark.thread_unsafe
def test_progress(tmp_path, capsys, monkeypatch):
    state = rms.init(np.zeros(1 << 19), momentum=0.9)
    rms.save(tmp_path / "a.npz", state, progress=True)
    rms.load(tmp_path / "a.npz", progress=True)
    shown = capsys.readouterr()
    assert not shown.out
    for title in ("saving", "loading"):
        assert re.search(rf"{title}: 100%\|.*8\.00M/8\.00M", shown.err)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    rms.save(tmp_path / "a.npz", state, progress=True)
    rms.load(tmp_path / "a.npz", progress=True)
    shown = capsys.readouterr().err
    assert re.search("\rsaving: 12 %.*\rsaving: 100 %\n\rloading: 12 %.*\rloading: 100 %\n$", shown)
    rms.save(tmp_path / "a.npz", state)
    assert not capsys.readouterr().err
