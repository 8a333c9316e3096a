"""Threads that use one state at once, and floating-point flags that belong to a thread."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
from conftest import check_alike, on_reference, same_bits
from hostile import Code, Pair, everything, race

import rmsprop_native as rms
from rmsprop_native import _core, reference

pytestmark = pytest.mark.threads

# ---- steps in one state ----


B16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)


def strided(shape, dtype=float):
    return np.ones((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]


class Walked(dict):
    """A dict that is walked by its own code."""

    def __getitem__(self, key):
        return super().__getitem__(key)


RACES = {
    "dense": ({}, lambda shape: np.ones(shape)),
    "schedule": ({"lr": lambda steps: 0.5 / (1 + steps)}, lambda shape: np.ones(shape)),
    "strided": ({"momentum": 0.9}, strided),
    "rows": ({"centered": True}, lambda shape: rms.RowGrad([2, 0, 2], np.ones((3, *shape[1:])))),
    "rows by code": ({}, lambda shape: rms.RowGrad(Code([0, 2]), np.ones((2, *shape[1:])))),
    "accumulate": ({"accumulate": 3, "clip_norm": 0.1}, strided),
    "schedule and strided": ({"lr": lambda steps: 0.5 / (1 + steps), "on_nonfinite": "skip", "ema": 0.9}, strided),
}
BF16_AVG, ROUNDED = {"square_avg_dtype": "bfloat16", "seed": 5}, {"master_weights": False, "seed": 5}
# Likewise, of parameters of a dtype.
STORAGES = {
    "split": (B16, {"momentum": 0.9}, lambda shape: strided(shape, F32)),
    "split rows": (B16, {"ema": 0.9}, lambda shape: rms.RowGrad([2, 0, 2], np.ones((3, *shape[1:]), B16))),
    "split schedule": (B16, {"lr": lambda steps: 0.5 / (1 + steps)}, lambda shape: np.ones(shape, B16)),
    "rounded": (B16, {"accumulate": 3, "clip_norm": 0.1} | ROUNDED, lambda shape: strided(shape, B16)),
    "all bfloat16": (B16, {"centered": True} | ROUNDED | BF16_AVG, lambda shape: np.ones(shape, B16)),
    "bfloat16 square_avg": (F32, BF16_AVG, lambda shape: strided(shape, B16)),
}
RACES = {name: (np.dtype(float), *race) for name, race in RACES.items()} | STORAGES


@pytest.mark.parametrize("walked", [dict, Walked])
@pytest.mark.parametrize("name", RACES)
def test_two_threads_in_one_state_take_turns_or_are_refused(name, walked):
    dtype, options, make = RACES[name]
    options = {"lr": 0.1} | options
    pair = Pair(walked(w=np.ones((4, 3), dtype), v=np.ones((5, 2), dtype)), **options)
    grads = walked(v=make((5, 2)), w=make((4, 3)))

    def step():
        rms.update_(pair.params, grads, pair.state)

    calls = sum(race(step, step, seconds=0.3, calls=300))
    assert calls > 0
    for _ in range(calls):
        pair.ref_step({"w": make((4, 3)), "v": make((5, 2))})
    pair.check()


def test_per_call_numbers_of_one_thread_do_not_reach_the_other():
    """Steps of 0 beside steps of 0.25: the parameter has moved as often as it was asked to."""
    param = np.zeros(3)
    state = rms.init(param, rho=0.0, eps=0.0)  # each step moves by lr exactly
    moved, still = race(
        lambda: rms.update_(param, np.ones(3), state, lr=0.25),
        lambda: rms.update_(param, np.ones(3), state, lr=0.0, grad_scale=2.0),
        calls=500,
    )
    assert state.step == moved + still
    assert same_bits(param, np.full(3, -0.25 * moved))


def test_replace_with_overrides_beside_steps():
    """None of what is replaced makes a difference to the bits."""
    pair = Pair(
        {"a": np.ones((4, 3)), "b": np.ones(5), "c": np.ones(2)},
        overrides={"a": {"lr": 0.25}, "b": {"weight_decay": 0.1}, "[ab]": {"eps": 1e-3}}, lr=0.5,
    )  # fmt: skip
    grads = {"a": strided((4, 3)), "b": np.ones(5), "c": np.ones(2)}
    numbers = itertools.cycle([None, 1e6])

    def replace():
        pair.state.replace(clip_norm=next(numbers))

    calls, replaced = race(lambda: rms.update_(pair.params, grads, pair.state), replace)
    assert calls > 0
    assert replaced > 0
    for _ in range(calls):
        pair.ref_step(grads)
    pair.ref_state.options = pair.state.options
    pair.check()


def test_rates_replaced_beside_large_steps():
    """Arrays of the same rates in other shapes take each other's place: the bits stay those of one rate."""
    _core.set_grain(0)
    rms.set_num_threads(2)
    param, grad, expected = (np.ones((500, 64), np.float32) for _ in range(3))
    shapes = itertools.cycle([(500, 1), (500, 64), (64,), None])
    state, other = rms.init(param, lr=0.125), rms.init(expected, lr=0.125)

    def replace():
        shape = next(shapes)
        state.replace(overrides={} if shape is None else {"*": {"lr": np.full(shape, 0.125)}})

    calls, replaced = race(lambda: rms.update_(param, grad, state), replace, calls=500)
    assert calls > 0
    assert replaced > 0
    for _ in range(calls):
        rms.update_(expected, grad, other)
    assert same_bits(param, expected)


def test_rows_changed_by_another_thread():
    """Whatever they are at the look, they are checked and used as that; no row outside is ever written."""
    n = 200
    memory = np.zeros((3 * n, 2))
    param = memory[n : 2 * n]
    rows = np.arange(n // 2)
    values = np.ones((n // 2, 2))
    state = rms.init(param)
    kinds = set()

    def spoil():
        rows[:] = np.arange(n // 2) + n - 50
        rows[:] = -5
        rows[:] = np.arange(n // 2)[::-1] * 2

    def step():
        try:
            rms.update_(param, rms.RowGrad(rows, values), state)
            kinds.add("stepped")
        except IndexError:
            kinds.add("refused")

    race(step, spoil)
    assert kinds
    assert not memory[:n].any()
    assert not memory[2 * n :].any()


@pytest.mark.parametrize("aliased", [False, True], ids=["array", "__array__"])
def test_rows_changed_by_another_thread_during_a_large_step(aliased):
    """The GIL is released there."""
    rms.set_num_threads(1)
    n = 1 << 16
    memory = np.zeros((3 * n, 4))
    param = memory[n : 2 * n]
    rows, values = np.arange(n), np.ones((n, 4))
    given = Code(rows) if aliased else rows
    state = rms.init(param)
    steps = 0

    def spoil():
        rows[n // 2 :] += n
        rows[n // 2 :] -= n

    def step():
        nonlocal steps
        try:
            rms.update_(param, rms.RowGrad(given, values), state)
            steps += 1
        except IndexError:
            return

    race(step, spoil, seconds=0.4, calls=10**6)
    assert state.step == steps
    assert not memory[:n].any()
    assert not memory[2 * n :].any()


def test_lists_and_metadata_changed_by_another_thread():
    """Arrays are described and bound without another thread between; what is refused has moved nothing."""
    pair = Pair([np.ones((4, 3)) for _ in range(20)])
    grads = [np.ones((4, 3)) for _ in range(20)]
    params = pair.params

    def spoil():
        grads[3] = strided((4, 3))
        grads[3] = np.ones((4, 3))
        grads[7] = None
        grads[7] = np.ones((4, 3))
        grads[9].flags.writeable = not grads[9].flags.writeable
        grads.append(None)
        grads.pop()

    def step():
        try:
            rms.update_(params, grads, pair.state)
        except ValueError as error:
            assert "gradients are 21" in str(error)
        else:
            with_7 = not same_bits(params[7], seen[0])
            seen[0] = params[7].copy()
            ones = [np.ones((4, 3)) for _ in range(20)]
            ones[7] = ones[7] if with_7 else None
            pair.ref_step(ones)

    seen = [params[7].copy()]
    race(step, spoil, calls=200)
    pair.check()


def test_dicts_changed_by_another_thread():
    """A key that is missing, or one too many, is refused; else each leaf is one that the dict held at some moment."""
    pair = Pair({"net": {key: np.ones((4, 3)) for key in "abcdef"}, "z": np.ones(2)})
    grads = {"z": np.ones(2), "net": {key: np.ones((4, 3)) for key in "fedcba"}}
    net = grads["net"]

    def spoil():
        net["c"] = strided((4, 3))
        del net["e"]
        net["e"] = np.ones((4, 3))
        net[0] = None
        del net[0]
        grads["net"] = dict(net)
        grads["net"] = net

    def step():
        try:
            rms.update_(pair.params, grads, pair.state)
        except ValueError as error:
            assert "gradient" in str(error)
        else:
            pair.ref_step({"z": np.ones(2), "net": {key: np.ones((4, 3)) for key in "abcdef"}})

    race(step, spoil, calls=200)
    pair.check()


def test_everything_at_once():
    """Two threads in one state and two with states of their own, while another one changes what all of them use."""
    shared = Pair({"w": np.ones((4, 3)), "v": np.ones(2 * _core.SPAN, np.float32)}, momentum=0.9, lr=0.1)
    own = [Pair([np.ones(_core.SPAN + 1), strided((5, 2))], centered=True)]
    own += [Pair([np.ones(_core.SPAN + 3, B16), strided((5, 2), F32)], square_avg_dtype="bfloat16", seed=1)]
    of_shared = {"v": np.ones(2 * _core.SPAN, np.float32), "w": strided((4, 3))}
    settings = itertools.cycle(itertools.product(_core.isas(), (1, 2, 3), (1, 1 << 15, 1 << 20)))

    def change():
        isa, threads, grain = next(settings)
        rms.use_isa(isa)
        rms.set_num_threads(threads)
        _core.set_grain(grain)
        shared.state.replace(clip_norm=None if threads == 1 else 1e6)

    def step_shared():
        rms.update_(shared.params, of_shared, shared.state)

    def step_own(pair):
        rms.update_(pair.params, [np.ones_like(param) for param in pair.params], pair.state)

    *calls, changes = race(
        step_shared, step_shared, lambda: step_own(own[0]), lambda: step_own(own[1]), change, calls=50
    )
    assert changes > 0
    for pair, count in zip(own, calls[2:], strict=True):
        assert count > 0
        for _ in range(count):
            pair.ref_step([np.ones_like(param) for param in pair.params])
        pair.check()
    for _ in range(calls[0] + calls[1]):
        shared.ref_step(of_shared)
    shared.ref_state.options = shared.state.options
    shared.check()


# ---- copies while another thread steps ----


COPIES = {
    "copy": lambda params, grads, state: state.copy(),
    "copy.copy": lambda params, grads, state: copy.copy(state),
    "deepcopy": lambda params, grads, state: copy.deepcopy(state),
    "pickle": lambda params, grads, state: pickle.loads(pickle.dumps(state)),
    "update": lambda params, grads, state: rms.update(params, grads, state),
    "replace": lambda params, grads, state: state.replace(lr=0.1),
    "load_state_dict": lambda params, grads, state: state.load_state_dict(saved_of(params)),
}


def saved_of(params):
    return rms.init(params, lr=0.1, momentum=0.9).state_dict()


@pytest.mark.parametrize("how", COPIES)
def test_no_copy_is_torn_by_a_step_in_another_thread(how):
    """All elements are alike at every step: a copy that holds two values, or those of another step, is torn."""
    rms.set_num_threads(1)
    params, grads = {"w": np.ones(1 << 17, np.float32)}, {"w": np.ones(1 << 17, np.float32)}
    state = rms.init(params, lr=0.1, momentum=0.9)
    small, ref_state = on_reference(np.ones(1, np.float32), {"lr": 0.1, "momentum": 0.9})
    after = [(1.0, 0.0, 0.0)]
    copies = []

    def step():
        rms.update_(params, grads, state)

    def take():
        made = COPIES[how](params, grads, state)
        if how == "update":
            new, made = made
            copies.append((made.step, [new["w"], made.square_avg["w"], made.momentum_buffer["w"]]))
        elif made is not None:
            copies.append((made.step, [made.square_avg["w"], made.momentum_buffer["w"]]))
        if len(copies) > 20:
            del copies[0]

    steps, taken = race(step, take, seconds=0.4, calls=300)
    assert steps > 0
    assert np.unique(state.square_avg["w"]).size == 1
    assert state.step == steps or how == "load_state_dict"  # which sets it back
    for _ in range(steps + 1):
        reference.update_(small, np.ones(1, np.float32), ref_state)
        after.append((small[0], ref_state.square_avg[0], ref_state.momentum_buffer[0]))
    assert taken > 0 or not copies
    for count, arrays in copies:
        for array, value in zip(arrays[::-1], after[count][::-1], strict=False):
            assert (array == value).all()


def test_master_beside_steps():
    """Of one moment: all elements are alike at every step, and those of a step of the reference."""
    rms.set_num_threads(1)
    param, grad = np.ones(1 << 17, B16), np.ones(1 << 17, B16)
    state = rms.init(param, lr=0.01)
    small, ref_state = on_reference(np.ones(1, B16), {"lr": 0.01})
    masters = []

    def look():
        masters.append(state.master(param))
        del masters[:-20]

    steps, looks = race(lambda: rms.update_(param, grad, state), look, seconds=0.4, calls=200)
    assert steps > 0
    assert looks > 0
    expected = {1.0}
    for _ in range(steps):
        reference.update_(small, np.ones(1, B16), ref_state)
        expected.add(float(reference.join_halves(small, ref_state.low_half)[0]))
    for master in masters:
        assert set(np.unique(master).tolist()) <= expected
        assert np.unique(master).size == 1


def test_low_halves_written_by_another_thread():
    """Whatever they are when a step reads them, they are halves of numbers: nothing becomes NaN or infinite."""
    rms.set_num_threads(1)
    param, grad = np.ones(1 << 16, B16), np.ones(1 << 16, B16)
    state = rms.init(param, lr=1e-4)
    halves = state.low_half
    fillings = itertools.cycle([0, 0xFFFF, 0x8000, 0x7FFF])
    steps, _ = race(lambda: rms.update_(param, grad, state), lambda: halves.fill(next(fillings)), calls=200)
    assert state.step == steps > 0
    assert np.isfinite(state.master(param)).all()
    assert np.isfinite(state.square_avg).all()


def test_a_state_that_becomes_another_one_keeps_its_claim():
    """Whoever found the claim before load_state_dict and takes it afterwards has the state that it has become."""
    params = np.ones(3)
    state = rms.init(params, lr=0.1)
    claim = state._claim
    state.load_state_dict(saved_of(params))
    before = everything(params, state)
    with claim, pytest.raises(RuntimeError, match="this state is inside a step already"):
        rms.update_(params, np.ones(3), state)
    assert everything(params, state) == before
    rms.update_(params, np.ones(3), state)
    assert (claim.steps, state.step) == (1, 1)


def test_every_use_during_a_large_step_is_refused_and_the_step_goes_on():
    """One thread is held inside a step by rows that wait, so that the others surely meet it there."""
    inside, go_on = threading.Event(), threading.Event()

    def wait():
        inside.set()
        assert go_on.wait(20)

    pair = Pair({"w": np.ones((4, 2)), "v": np.ones(3)}, momentum=0.9)
    slow = {"w": rms.RowGrad(Code([0, 2], wait), np.ones((2, 2))), "v": np.ones(3)}
    thread = threading.Thread(target=rms.update_, args=(pair.params, slow, pair.state))
    thread.start()
    try:
        assert inside.wait(20)
        before = everything(pair.params, pair.state)
        saved = saved_of(pair.params)
        uses = [
            lambda use=use: use(pair.params, {"w": np.ones((4, 2)), "v": np.ones(3)}, pair.state)
            for use in COPIES.values()
        ]
        uses += [
            lambda: rms.update_(pair.params, {"w": np.ones((4, 2)), "v": np.ones(3)}, pair.state),
            lambda: rms.update_(pair.params, {"w": np.ones((4, 2)), "v": np.ones(3)}, pair.state, lr=0.5),
            lambda: setattr(pair.state, "step", 3),
            lambda: pair.state.load_state_dict(saved),
        ]
        for use in uses:
            with pytest.raises(RuntimeError, match="this state is inside a step already"):
                use()
        assert everything(pair.params, pair.state) == before
    finally:
        go_on.set()
        thread.join()
    pair.ref_step({"w": rms.RowGrad([0, 2], np.ones((2, 2))), "v": np.ones(3)})
    pair.check()
    pair.step({"w": np.ones((4, 2)), "v": np.ones(3)})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_forked_inside_a_step_is_refused_there_and_has_other_states():
    """The thread that was inside does not live in the child: the state may be half written, and stays refused."""
    inside, go_on = threading.Event(), threading.Event()

    def wait():
        inside.set()
        assert go_on.wait(20)

    pair = Pair(np.ones((4, 2)))
    slow = rms.RowGrad(Code([0, 2], wait), np.ones((2, 2)))
    thread = threading.Thread(target=rms.update_, args=(pair.params, slow, pair.state))
    thread.start()
    try:
        assert inside.wait(20)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                rms.update_(pair.params, np.ones((4, 2)), pair.state)
            except RuntimeError:
                other = np.ones(3)
                rms.update_(other, np.ones(3), rms.init(other))
                code = 0 if (other < 1).all() else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        go_on.set()
        thread.join()
    pair.ref_step(rms.RowGrad([0, 2], np.ones((2, 2))))
    pair.check()


def test_update_copies_a_dict_that_another_thread_orders_anew():
    """Without a GIL the keys and the arrays of a dict may be of different moments, unless they are read at once."""
    params = {"a": np.ones(2), "b": np.full(2, 2.0), "c": np.full(2, 3.0)}
    expected = {key: array[0] for key, array in params.items()}
    grads = {key: np.ones(2) for key in params}
    state = rms.init(params)
    seen = 0

    def turn():
        for key in expected:
            params[key] = params.pop(key)

    def step():
        nonlocal seen
        try:
            new, _ = rms.update(params, grads, state, lr=0.0)
        except (KeyError, ValueError):  # a key is missing just now
            return
        assert {key: array[0] for key, array in new.items()} == expected
        seen += 1

    race(step, turn, calls=10**5)
    assert seen > 0


def test_buffers_seen_while_other_ones_are_loaded():
    """A state with a momentum buffer takes the place of one without: it is seen whole or not at all."""
    params = np.ones(1000)
    state = rms.init(params)
    without, with_momentum = state.state_dict(), rms.init(params, momentum=0.9).state_dict()
    with_momentum["arrays"]["momentum_buffer/0"][...] = 2.0
    saved = itertools.cycle([with_momentum, without])
    seen = set()

    def look():
        buffer = state.momentum_buffer
        seen.add(None if buffer is None else tuple(np.unique(buffer)))

    race(lambda: state.load_state_dict(next(saved)), look, look, calls=500)
    assert seen <= {None, (2.0,)}


def test_init_of_the_same_parameters_in_two_threads_beside_a_step():
    params = [np.ones((4, 3)) for _ in range(5)]
    state = rms.init(params)
    made = []
    race(
        lambda: rms.update_(params, [np.ones((4, 3))] * 5, state),
        lambda: made.append(rms.init(params, momentum=0.9)),
        lambda: made.append(rms.init(params[:3])),
        seconds=0.3,
        calls=100,
    )
    assert made
    assert all(same_bits(array, np.zeros((4, 3))) for one in made for array in one.square_avg)


# ---- floating-point flags ----

NUMBERS = {"lr": 1.0, "rho": 0.5, "momentum": 0.5, "eps": 0.0, "eps_inside": 0.0}
ARRAYS = {
    "rmsprop": ("param", "grad", "square_avg"),
    "rmsprop_momentum": ("param", "grad", "square_avg", "momentum_buffer"),
    "rmsprop_centered": ("param", "grad", "square_avg", "grad_avg"),
    "rmsprop_centered_momentum": ("param", "grad", "square_avg", "momentum_buffer", "grad_avg"),
}


def operands(name, dtype, grad, square_avg, n=4):
    values = {"param": 0.0, "grad": grad, "square_avg": square_avg, "momentum_buffer": 0.0, "grad_avg": -grad}
    arrays = [np.full(n, values[array], dtype) for array in ARRAYS[name]]
    return arrays, {key: value for key, value in NUMBERS.items() if key != "momentum" or "momentum" in name}


def call(name, dtype, grad, square_avg, in_place, n=4):
    arrays, numbers = operands(name, dtype, grad, square_avg, n)
    out = (
        {"out": tuple(a for a, array in zip(arrays, ARRAYS[name], strict=True) if array != "grad")} if in_place else {}
    )
    getattr(rms, name)(*arrays, **numbers, **out)


KINDS = {
    "divide": (lambda info: (1, -1), "divide by zero"),
    "over": (lambda info: (info.max, 1), "overflow"),
    "under": (lambda info: (info.tiny, 1), "underflow"),
    "invalid": (lambda info: (np.inf, np.inf), "invalid value"),
}


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ARRAYS)
def test_each_flag_is_reported_under_the_name_of_its_ufunc(name, dtype, kind, in_place):
    values, text = KINDS[kind]
    grad, square_avg = values(np.finfo(dtype))
    sizes = (4, 100_000) if in_place else (4,)
    for n in sizes:
        with (
            np.errstate(all="ignore", **{kind: "raise"}),
            pytest.raises(FloatingPointError, match=f"{text} encountered in {name}$"),
        ):
            call(name, dtype, grad, square_avg, in_place, n)
        others = {other: "raise" for other in KINDS if other != kind}
        if kind != "divide":  # numbers that a division by zero makes are infinite, and 0 * inf invalid in some ufuncs
            with np.errstate(**{kind: "ignore"}, **others):
                call(name, dtype, grad, square_avg, in_place, n)
        with np.errstate(all="raise"):
            call(name, dtype, 1.0, 1.0, in_place, n)


def test_clean_calls_beside_calls_that_raise_flags():
    """150 thousand clean calls, of which none may be reported; and each of the others is."""
    clean, numbers = operands("rmsprop", np.float32, 0.0, 1.0)
    dirty, _ = operands("rmsprop", np.float32, np.inf, np.inf)
    numbers["rho"] = 1.0 - 2**-20
    clean_out, dirty_out = (clean[0], clean[2]), (dirty[0], dirty[2])
    dirty_numbers = numbers | {"rho": 0.5}
    reported = wrong = 0

    def run_clean():
        with np.errstate(all="raise"):
            for _ in range(250):
                rms.rmsprop(*clean, **numbers, out=clean_out)
                rms.rmsprop.ufunc(*clean, *numbers.values())

    def run_dirty():
        nonlocal reported, wrong
        with np.errstate(all="raise"):
            for _ in range(100):
                try:
                    rms.rmsprop(*dirty, **dirty_numbers, out=dirty_out)
                except FloatingPointError:
                    reported += 1
                else:
                    wrong += 1

    done, _ = race(run_clean, run_dirty, seconds=20, calls=300)
    assert done >= 300
    assert reported > 0
    assert wrong == 0


def test_flags_of_large_calls_are_those_of_their_own_thread():
    """These release the GIL, and share their work among threads."""
    _core.set_grain(0)
    rms.set_num_threads(2)
    n = 5 * _core.SPAN
    counts = {"clean": 0, "dirty": 0}

    def run(name, grad, square_avg):
        def once():
            with np.errstate(all="raise"):
                try:
                    call("rmsprop_momentum", np.float64, grad, square_avg, True, n)
                except FloatingPointError as error:
                    assert "invalid value" in str(error)
                    assert name == "dirty"
                    counts[name] += 1
                else:
                    assert name == "clean"
                    counts[name] += 1

        return once

    race(run("clean", 1.0, 1.0), run("dirty", np.inf, np.inf), calls=300)
    assert min(counts.values()) > 0


def test_a_callback_of_errstate_may_call_the_ufunc_again():
    calls = []

    def again(kind, flag):
        calls.append(kind)
        if len(calls) < 3:
            call("rmsprop", np.float64, np.inf, np.inf, True)

    with np.errstate(all="call", call=again):
        call("rmsprop", np.float64, np.inf, np.inf, True)
    assert calls == ["invalid value"] * 3


def test_steps_neither_report_nor_leave_flags():
    param = np.ones(4)
    state = rms.init(param, eps=0.0)
    with np.errstate(all="raise"):
        rms.update_(param, np.array([np.inf, 1e300, 1e-300, 0.0]), state)
        np.add(np.ones(3), 1.0)
    ref_param, ref_state = on_reference(np.ones(4), {"eps": 0.0})
    reference.update_(ref_param, np.array([np.inf, 1e300, 1e-300, 0.0]), ref_state)
    check_alike(param, state, ref_param, ref_state)
