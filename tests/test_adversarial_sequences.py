"""The public API in any order, on several states at once, each beside the reference: a state machine of Hypothesis."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from cases import ISAS, LAYOUTS, hard_numbers, option_sets
from conftest import check_alike, on_reference, run_together
from hostile import everything
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import rmsprop_native as rms
from rmsprop_native import _core, reference
from rmsprop_native.tree import flatten

# make hardening tries more.
MACHINES = int(os.environ.get("RMSP_MACHINES", "40"))
MOST_STATES = 3
SHAPES = [(), (0,), (7,), (3, 4), (2, 3, 2)]
CHANGES = {
    "lr": [0.0, 0.01, 0.5],
    "rho": [0.0, 0.9],
    "eps": [1e-8, 1e-3],
    "weight_decay": [0.0, 0.1],
    "decoupled_weight_decay": [False, True],
    "maximize": [False, True],
    "momentum": [0.0, 0.5],
    "nesterov": [False, True],
    "centered": [False, True],
    "clip_value": [None, 0.5],
    "clip_norm": [None, 0.5],
    "clip_global_norm": [None, 0.5],
    "accumulate": [1, 2],
    "on_nonfinite": ["propagate", "skip", "raise"],
    "bias_correction": [False, True],
    "square_avg_dtype": [None, "bfloat16"],
}
FAULTS = ["shape", "dtype", "structure", "masked", "lr", "scale", "own"]
SEEDS = st.integers(0, 2**32 - 1)
WHICH = st.integers(0, MOST_STATES - 1)


class Twins:
    """Parameters with a state, and copies of both that are stepped by the reference."""

    def __init__(self, params, state, ref_params, ref_state):
        self.params, self.state, self.ref_params, self.ref_state = params, state, ref_params, ref_state

    def copy(self, copied):
        return Twins(copy.deepcopy(self.params), copied, copy.deepcopy(self.ref_params), copy.deepcopy(self.ref_state))

    def step(self, pure, grads, **per_call):
        if pure:
            self.params, self.state = rms.update(self.params, grads, self.state, **per_call)
        else:
            rms.update_(self.params, grads, self.state, **per_call)

    def refused(self, error, call, *arguments, **keywords):
        before = everything(self.params, self.state), self.state.options
        with pytest.raises(error):
            call(*arguments, **keywords)
        assert (everything(self.params, self.state), self.state.options) == before


class AnyOrder(RuleBasedStateMachine):
    """All states have one tree; what is done to one of them leaves the others as they are."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.runtime = rms.isa(), _core.grain()

    def teardown(self):
        isa, grain = self.runtime
        rms.use_isa(isa)
        rms.set_num_threads(None)
        _core.set_grain(grain)
        shutil.rmtree(self.folder)

    @initialize(options=option_sets(), seed=SEEDS, storage=st.sampled_from([None, None, "bfloat16"]))
    def start(self, options, seed, storage):
        rng = np.random.default_rng(seed)
        dtypes = ["f4"] if storage else ["f4", "f8", "c8", "c16"]
        kinds = [(SHAPES[rng.integers(len(SHAPES))], np.dtype(rng.choice(dtypes))) for _ in range(3)]
        self.kinds = {"a": kinds[0], "b": kinds[1], "c": kinds[2]}
        params = self.tree({key: self.array(rng, key, finite=True) for key in self.kinds})
        rates = np.float64(0.01) + rng.random(self.kinds["a"][0])
        overrides = [None, {"a": {"lr": rates}}, {"b.*": {"weight_decay": 0.1, "lr": 0.25}}][rng.integers(3)]
        options |= {"square_avg_dtype": storage, "seed": int(rng.integers(100))} if storage else {}
        ref_params, ref_state = on_reference(params, options, overrides)
        self.states = [Twins(params, rms.init(params, overrides=overrides, **options), ref_params, ref_state)]

    def array(self, rng, key, *, finite):
        shape, dtype = self.kinds[key]
        real = np.empty(0, dtype).real.dtype
        reals = rng.standard_normal((*shape, 2)).astype(real) if finite else hard_numbers(rng, (*shape, 2), real)
        array = reals.view(dtype)[..., 0] if dtype.kind == "c" else np.ascontiguousarray(reals[..., 0])
        return LAYOUTS[rng.choice(sorted(LAYOUTS))](array)

    def tree(self, leaves):
        return {"a": leaves["a"], "b": [leaves["b"], (leaves["c"],)]}

    def of(self, which):
        return self.states[which % len(self.states)]

    def grads(self, seed, accumulate):
        rng = np.random.default_rng(seed)
        finite = rng.random() < 0.7
        leaves = {}
        for key, (shape, dtype) in self.kinds.items():
            leaves[key] = self.array(rng, key, finite=finite)
            kind = rng.choice(["dense", "dense", "dense", "none", "rows"])
            if kind == "rows" and shape and accumulate == 1:
                rows = rng.integers(0, shape[0], rng.integers(0, 4) if shape[0] else 0)
                leaves[key] = rms.RowGrad(rows, rng.standard_normal((len(rows), *shape[1:])).astype(dtype))
            elif kind == "none":
                leaves[key] = None
        return self.tree(leaves)

    # ---- steps ----

    @rule(
        which=WHICH,
        seed=SEEDS,
        pure=st.booleans(),
        per_call=st.sampled_from([{}, {}, {"lr": 0.5}, {"grad_scale": -2.0}, {"lr": 0.0, "grad_scale": 0.125}]),
        in_thread=st.booleans(),
    )
    def step(self, which, seed, pure, per_call, in_thread):
        twins = self.of(which)
        grads = self.grads(seed, twins.state.options.accumulate)
        try:
            reference.update_(twins.ref_params, grads, twins.ref_state, **per_call)
        except FloatingPointError:
            twins.refused(FloatingPointError, twins.step, pure, grads, **per_call)
            return
        if in_thread:
            run_together(lambda: twins.step(pure, grads, **per_call))
        else:
            twins.step(pure, grads, **per_call)

    @precondition(lambda self: len(self.states) > 1)
    @rule(seed=SEEDS)
    def step_two_states_at_once(self, seed):
        grads = [self.grads(seed + i, twins.state.options.accumulate) for i, twins in enumerate(self.states[:2])]
        errors = [None, None]

        def step(i):
            twins = self.states[i]
            try:
                twins.step(False, grads[i])
            except FloatingPointError as error:
                errors[i] = error

        run_together(lambda: step(0), lambda: step(1))
        for twins, of_twins, error in zip(self.states, grads, errors, strict=False):
            if error is None:
                reference.update_(twins.ref_params, of_twins, twins.ref_state)
            else:
                with pytest.raises(FloatingPointError):
                    reference.update_(twins.ref_params, of_twins, twins.ref_state)

    @rule(
        which=WHICH, seed=SEEDS, fault=st.sampled_from(["shape", "dtype", "structure", "masked", "lr", "scale", "own"])
    )
    def refused_step(self, which, seed, fault):
        twins = self.of(which)
        grads = self.grads(seed, 2)
        per_call = {"lr": {"lr": np.nan}, "scale": {"grad_scale": np.inf}}.get(fault, {})
        shape, dtype = self.kinds["a"]
        bad = {
            "shape": np.zeros((*shape, 9), dtype),
            "dtype": np.zeros(shape, np.float16),
            "masked": np.ma.zeros(shape, dtype),
            "own": twins.params["a"] if twins.params["a"].size else np.zeros((9, 9)),
        }
        if fault == "structure":
            del grads["b"]
        grads["a"] = bad.get(fault, grads["a"])
        twins.refused((TypeError, ValueError), twins.step, False, grads, **per_call)

    # ---- the same state again ----

    @rule(which=WHICH, how=st.sampled_from(["copy", "pickle", "deepcopy", "state_dict", "npz", "safetensors"]))
    def the_same_again(self, which, how):
        twins = self.of(which)
        twins.state = self.again(twins.state, how)

    @precondition(lambda self: len(self.states) < MOST_STATES)
    @rule(which=WHICH, how=st.sampled_from(["copy", "pickle", "npz"]))
    def branch(self, which, how):
        twins = self.of(which)
        self.states.append(twins.copy(self.again(twins.state, how)))

    def again(self, state, how):
        if how == "copy":
            return state.copy()
        if how == "pickle":
            return pickle.loads(pickle.dumps(state))
        if how == "deepcopy":
            return copy.deepcopy(state)
        if how == "state_dict":
            return rms.from_state_dict(state.state_dict())
        path = self.folder / f"state.{how}"
        rms.save(path, state)
        return rms.load(path)

    @precondition(lambda self: len(self.states) > 1)
    @rule()
    def take_over_another_state(self):
        one, other = self.states[:2]
        if one.ref_state.options.buffers != other.ref_state.options.buffers:
            return
        one.state.load_state_dict(other.state.state_dict())
        one.ref_state = copy.deepcopy(other.ref_state)

    @rule(which=WHICH, seed=SEEDS)
    def other_parameters(self, which, seed):
        """The same values elsewhere, in other layouts."""
        twins = self.of(which)
        rng = np.random.default_rng(seed)
        leaves, structure = flatten(twins.params)
        twins.params = structure.unflatten(iter([LAYOUTS[rng.choice(sorted(LAYOUTS))](leaf) for leaf in leaves]))

    # ---- numbers and settings ----

    @rule(which=WHICH, data=st.data(), names=st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=3))
    def replace(self, which, data, names):
        twins = self.of(which)
        changes = {name: data.draw(st.sampled_from(CHANGES[name]), label=name) for name in names}
        try:
            options = twins.ref_state.options.replace(**changes)
            possible = not (options.accumulate != twins.state.options.accumulate and twins.state.accumulated)
        except (TypeError, ValueError):
            possible = False
        if not possible:
            twins.refused((TypeError, ValueError), twins.state.replace, **changes)
            return
        twins.state.replace(**changes)
        twins.ref_state.options = options

    @rule(which=WHICH, overrides=st.sampled_from([{}, {"*": {"lr": 0.125}}, {"b.0": {"rho": 0.25}, "a": {"lr": 0.0}}]))
    def replace_overrides(self, which, overrides):
        twins = self.of(which)
        twins.state.replace(overrides=overrides)
        twins.ref_state.overrides = overrides

    @rule(which=WHICH, count=st.integers(0, 10**6))
    def set_step(self, which, count):
        twins = self.of(which)
        twins.state.step = twins.ref_state.step = count

    @rule(which=WHICH, value=st.sampled_from([0.0, 0.5]))
    def write_to_a_buffer(self, which, value):
        twins = self.of(which)
        twins.state.square_avg["a"][...] = value
        twins.ref_state.square_avg["a"][...] = value

    @rule(isa=st.sampled_from(sorted(ISAS)), threads=st.integers(1, 3), grain=st.sampled_from([0, 1 << 15]))
    def settings(self, isa, threads, grain):
        rms.use_isa(isa)
        rms.set_num_threads(threads)
        _core.set_grain(grain)

    @invariant()
    def all_are_as_the_reference_has_them(self):
        for twins in getattr(self, "states", []):
            check_alike(twins.params, twins.state, twins.ref_params, twins.ref_state)
            assert twins.state.options == twins.ref_state.options


AnyOrder.TestCase.settings = settings(max_examples=MACHINES, stateful_step_count=30, deadline=None)
TestAnyOrder = pytest.mark.threads(AnyOrder.TestCase)
