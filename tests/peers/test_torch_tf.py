"""RMSpropTF: the bits of update_ with the "timm" preset, timm's signature, and caution, written out."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
import torch
from conftest import same_bits
from measure import LR, Problem
from torch import nn

import rmsprop_native as rms
from rmsprop_native.interop.torch import RMSpropTF

# Its options as ours: timm, optim/rmsprop_tf.py.
OPTIONS = {
    "plain": ({}, {}),
    "momentum": ({"momentum": 0.9}, {"momentum": 0.9}),
    "lr outside": ({"momentum": 0.9, "lr_in_momentum": False}, {"momentum": 0.9, "lr_in_momentum": False}),
    "L2": ({"weight_decay": 0.25}, {"weight_decay": 0.25}),
    "decoupled": (
        {"weight_decay": 0.25, "decoupled_decay": True},
        {"weight_decay": 0.25, "decoupled_weight_decay": True},
    ),
    "centered": ({"centered": True, "momentum": 0.5}, {"centered": True, "momentum": 0.5}),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIONS)
def test_bits_of_the_preset(name, dtype):
    theirs, ours = OPTIONS[name]
    problem = Problem(dtype)
    params = [nn.Parameter(torch.tensor(p)) for p in problem.params]
    optimizer = RMSpropTF(params, lr=LR, **theirs)
    arrays = [p.copy() for p in problem.params]
    state = rms.init(arrays, preset="timm", lr=LR, **ours)
    for step in range(6):
        if step == 3:
            optimizer.param_groups[0]["lr"] = LR / 2
            state.replace(lr=LR / 2)
            saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
            optimizer = RMSpropTF(params, lr=LR, **theirs)
            optimizer.load_state_dict(saved)
        grads = problem.noise()
        for p, grad in zip(params, grads, strict=True):
            p.grad = torch.tensor(grad)
        optimizer.step()
        rms.update_(arrays, grads, state)
        assert optimizer.native
        assert all(same_bits(p.detach().numpy(), array) for p, array in zip(params, arrays, strict=True))


def test_signature_and_groups():
    """Those of timm 1.0.31."""
    parameters = inspect.signature(RMSpropTF).parameters
    assert {name: p.default for name, p in list(parameters.items())[1:]} == {
        "lr": 1e-2, "alpha": 0.9, "eps": 1e-10, "weight_decay": 0, "momentum": 0.0, "centered": False,
        "decoupled_decay": False, "lr_in_momentum": True, "caution": False,
    }  # fmt: skip
    p = nn.Parameter(torch.ones(2))
    optimizer = RMSpropTF([{"params": [p], "decoupled_decay": True, "weight_decay": 0.5}], lr=0.5)
    p.grad = torch.zeros(2)
    optimizer.step()
    assert p.tolist() == [0.75, 0.75]
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        RMSpropTF([p], lr=-1)


@pytest.mark.parametrize("inside", [True, False])
def test_caution(inside):
    """Step only where the buffer and the gradient have the same sign, the more; the buffer itself is not changed."""
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = RMSpropTF([p], lr=0.5, alpha=0.75, eps=0.0, momentum=0.5, lr_in_momentum=inside, caution=True)
    buffer, v, expected = np.zeros(4), np.ones(4), np.zeros(4)
    for grad in ([1.0, 2.0, -1.0, 4.0], [-0.125, 2.0, 0.25, 1.0]):
        g = np.array(grad)
        p.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.step()
        v = 0.75 * v + 0.25 * g * g
        buffer = 0.5 * buffer + (0.5 if inside else 1.0) * g / np.sqrt(v)
        mask = (buffer * g > 0).astype(float)
        expected = expected - (1.0 if inside else 0.5) * buffer * (mask / max(mask.mean(), 1e-3))
        np.testing.assert_array_max_ulp(p.detach().numpy(), expected, 4)
        np.testing.assert_array_max_ulp(optimizer.state[p]["momentum_buffer"].numpy(), buffer, 4)
    assert 0 < mask.sum() < 4
    assert "caution=True" in optimizer.native.reasons[0, 0]
