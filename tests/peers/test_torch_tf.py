"""RMSpropTF: the bits of update_ with the "timm" preset, and timm's own class beside it."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
import torch
from beside import arrays_of
from conftest import same_bits
from frameworks import timm_class
from measure import LR, ULPS, Problem, assert_close, ulps
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


Peer = timm_class()
BESIDE = {name: theirs for name, (theirs, _) in OPTIONS.items()} | {
    "corrected decay": {"weight_decay": 0.25, "decoupled_decay": True, "corrected_weight_decay": True},
    "corrected, coupled": {"weight_decay": 0.25, "corrected_weight_decay": True},
    "caution": {"momentum": 0.9, "caution": True},
    "caution, lr outside": {"momentum": 0.9, "caution": True, "lr_in_momentum": False},
    "caution, no momentum": {"caution": True},
    "tensor lr": {"lr": torch.tensor(LR, dtype=torch.float64), "momentum": 0.9},
}


def test_signature():
    ours, theirs = (inspect.signature(of).parameters.values() for of in (RMSpropTF, Peer))
    ours = [(p.name, p.default, p.kind) for p in ours]
    assert ours[: len(theirs)] == [(p.name, p.default, p.kind) for p in theirs]
    further = {"square_avg_dtype": None, "master_weights": True, "seed": 0}
    assert ours[len(theirs) :] == [(name, default, inspect.Parameter.KEYWORD_ONLY) for name, default in further.items()]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_beside_timm(name, foreach):
    """Twelve steps in float64, with a learning rate that changes, and states that change places in the middle."""
    problem = Problem(np.float64)
    both = [[nn.Parameter(torch.tensor(p)) for p in problem.params] for _ in range(2)]
    options = {"lr": LR, "foreach": foreach, **BESIDE[name]}
    optimizers = [make(params, **options) for make, params in zip((RMSpropTF, Peer), both, strict=True)]
    for step in range(12):
        if step in (4, 10):
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = LR / 3 if step == 4 else LR / 2
        if step == 8:
            saved = [pickle.loads(pickle.dumps(optimizer.state_dict())) for optimizer in optimizers]
            for optimizer, state in zip(optimizers, reversed(saved), strict=True):
                optimizer.load_state_dict(state)
        for p, q, grad in zip(*both, problem.noise(), strict=True):
            p.grad, q.grad = torch.tensor(grad), torch.tensor(grad)
        for optimizer in optimizers:
            optimizer.step()
        ours, theirs = (arrays_of(optimizer, params) for optimizer, params in zip(optimizers, both, strict=True))
        assert ours.keys() == theirs.keys()
        for array, values in theirs.items():
            for mine, expected in zip(ours[array], values, strict=True):
                assert_close(mine, expected, f"{array} at step {step}")
    assert bool(optimizers[0].native) == ("caution" not in name)


@pytest.mark.parametrize("name", BESIDE)
def test_one_step_beside_timm(name):
    """In float32, from the same state; by the measure of test_peers.py."""
    problem = Problem(np.float32)
    ours, theirs = ([nn.Parameter(torch.tensor(p)) for p in problem.params] for _ in range(2))
    options = {"lr": LR, **BESIDE[name]}
    optimizer, peer = RMSpropTF(ours, **options), Peer(theirs, **options, foreach=False)
    worst = 0.0
    for step in range(50):
        before = arrays_of(peer, theirs) if step else {"param": [q.detach().numpy().copy() for q in theirs]}
        for p, q in zip(ours, theirs, strict=True):
            with torch.no_grad():
                p.copy_(q)
            for array in before.keys() - {"param"}:
                optimizer.state[p][array].copy_(peer.state[q][array])
        for p, q, grad in zip(ours, theirs, problem.noise(), strict=True):
            p.grad, q.grad = torch.tensor(grad), torch.tensor(grad)
        optimizer.step()
        peer.step()
        after = arrays_of(peer, theirs)
        if step == 0:
            before |= {
                array: [np.full_like(v, array == "square_avg") for v in after[array]]
                for array in after
                if array != "param"
            }
        for array, values in arrays_of(optimizer, ours).items():
            worst = max(worst, *(ulps(value, before, after, array, i) for i, value in enumerate(values)))
    assert 0 < worst <= ULPS


def test_groups_and_bad_arguments():
    p = nn.Parameter(torch.ones(2))
    optimizer = RMSpropTF([{"params": [p], "decoupled_decay": True, "weight_decay": 0.5}], lr=0.5)
    p.grad = torch.zeros(2)
    optimizer.step()
    assert p.tolist() == [0.75, 0.75]
    for make in (RMSpropTF, Peer):
        with pytest.raises(ValueError, match="Invalid learning rate: -1"):
            make([p], lr=-1)
        with pytest.raises(ValueError, match="positive"):
            make([p], lr=0.0, corrected_weight_decay=True)


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
