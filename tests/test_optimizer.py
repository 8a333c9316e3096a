"""The optimizer as an object."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import same_bits

import rmsprop_native as rms


def test_the_class_gives_the_bits_of_update_(rng):
    one = rng.standard_normal(50)
    other = one.copy()
    opt = rms.RMSProp(one, lr=0.1, centered=True)
    state = rms.init(other, lr=0.1, centered=True)
    for _ in range(3):
        grad = rng.standard_normal(50)
        opt.step(grad, grad_scale=2.0)
        rms.update_(other, grad, state, grad_scale=2.0)
    assert same_bits(one, other)
    opt.lr = 0.01
    assert opt.lr == opt.state.options.lr == 0.01
    opt.step(grad)
    rms.update_(other, grad, state, lr=0.01)
    assert same_bits(one, other)
    with pytest.raises(ValueError, match="lr must be finite"):
        opt.lr = -1


def test_repr_shows_the_state():
    opt = rms.RMSProp([np.zeros(3)], lr=0.5)
    assert repr(opt) == f"RMSProp({opt.state!r})"


def test_options_presets_and_overrides_are_those_of_init():
    params = {"w": np.zeros(2), "b": np.zeros(2)}
    opt = rms.RMSProp(params, preset="keras", overrides={"b": {"lr": 0.0}})
    assert opt.params is params
    assert opt.state.options == rms.init(params, preset="keras").options
    opt.step({"w": np.ones(2), "b": np.ones(2)})
    assert params["w"].all()
    assert not params["b"].any()


def test_a_step_that_is_refused_writes_nothing():
    opt = rms.RMSProp(np.ones(3))
    with pytest.raises(ValueError, match=r"the gradient has shape \(4,\), its parameter has \(3,\)"):
        opt.step(np.ones(4))
    assert (opt.params == 1).all()
    assert opt.state.step == 0
