"""from_state_dict and to_state_dict: training goes on in NumPy and again in torch, the same; what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from conftest import same_bits
from frameworks import sb3, timm_class
from measure import LR, Problem, assert_close
from torch import nn

import rmsprop_native as rms
from rmsprop_native.interop.torch import RMSprop, RMSpropTF, from_state_dict, to_state_dict

OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "all": {"momentum": 0.9, "centered": True, "weight_decay": 0.25, "maximize": True, "eps": 1e-3, "alpha": 0.75},
}
OWN = {
    "keras": {"preset": "keras", "lr": LR, "weight_decay": 0.25, "momentum": 0.9},
    "adam": {"bias_correction": True},
    "ema": {"ema": 0.75, "clip_norm": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True, "clip_global_norm": 0.5},
}
TF = {
    "plain": {},
    "all": {"momentum": 0.9, "centered": True, "weight_decay": 0.25, "decoupled_decay": True, "lr_in_momentum": False},
}
CLASSES = [
    *(("torch", torch.optim.RMSprop, options) for options in OPTIONS.values()),
    *(("torch", RMSprop, options) for options in OPTIONS.values()),
    *(("native", RMSprop, options) for options in OWN.values()),
    *(("timm", RMSpropTF, options) for options in TF.values()),
    *(("timm", timm_class(), options) for options in TF.values()),
]


def parameters(problem):
    return [nn.Parameter(torch.tensor(p)) for p in problem.params]


def arrays_of(params):
    return [p.detach().numpy().copy() for p in params]


def step(optimizer, params, grads):
    for p, grad in zip(params, grads, strict=True):
        p.grad = torch.tensor(grad)
    optimizer.step()


def through_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize(("kind", "make", "options"), CLASSES)
def test_training_goes_on(kind, make, options, dtype):
    """Three steps there, three in NumPy, three there again; beside nine steps there, of the same class."""
    if dtype == "complex64" and make not in (RMSprop, RMSpropTF):
        dtype = "float64"  # timm's does not take complex parameters; those of torch's round like no other
    problem = Problem(dtype)
    grads = [problem.noise() for _ in range(9)]
    params, expected = parameters(problem), parameters(problem)
    optimizer, whole = (make(of, **{"lr": LR, **options}) for of in (params, expected))
    for of_step in grads[:3]:
        step(optimizer, params, of_step)
    arrays = arrays_of(params)
    state = from_state_dict(through_file(optimizer.state_dict()), arrays)
    assert state.step == 3
    for of_step in grads[3:6]:
        rms.update_(arrays, of_step, state)
    params = [nn.Parameter(torch.tensor(array)) for array in arrays]
    optimizer = make(params, lr=LR / 2)
    optimizer.load_state_dict(through_file(to_state_dict(state, kind)))
    for of_step in grads[6:]:
        step(optimizer, params, of_step)
    for of_step in grads:
        step(whole, expected, of_step)
    assert optimizer.state[params[0]]["step"] == 9
    assert optimizer.state[params[0]].keys() == whole.state[expected[0]].keys()
    mine, theirs = arrays_of(params), arrays_of(expected)
    if make in (RMSprop, RMSpropTF):
        assert all(same_bits(one, other) for one, other in zip(mine, theirs, strict=True))
    else:  # 1e-5 in float32, where some of the nine steps are ours: as in test_interop_torch.py
        for one, other in zip(mine, theirs, strict=True):
            assert_close(one, other, "param", 1e-12 if dtype == "float64" else 1e-5)


def test_groups_become_overrides_and_groups():
    problem = Problem("float64")
    params = parameters(problem)
    groups = [{"params": [params[0]], "lr": 0.5}, {"params": params[1:], "weight_decay": 0.25, "alpha": 0.5}]
    optimizer = RMSprop(groups, lr=LR)
    grads = problem.noise()
    step(optimizer, params, grads)
    arrays = arrays_of(params)
    state = from_state_dict(optimizer.state_dict(), arrays)
    assert state.options == rms.Options(lr=0.5, rho=0.99)
    saved = to_state_dict(state)
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1, 2]]
    for ours, theirs in zip(saved["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
        assert {key: theirs[key] for key in ours} == ours
    step(optimizer, params, grads)
    rms.update_(arrays, grads, state)
    assert all(same_bits(one, p.detach().numpy()) for one, p in zip(arrays, params, strict=True))


def test_parameters_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = RMSprop(reversed(list(model.named_parameters())), lr=LR)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = from_state_dict(optimizer.state_dict(), dict(model.named_parameters()))
    for name, p in model.named_parameters():
        assert torch.equal(state.square_avg[name], optimizer.state[p]["square_avg"])
    with pytest.raises(ValueError, match=r"square_avg of '0' has shape \(3,\), its parameter \(3, 3\)"):
        from_state_dict(optimizer.state_dict(), list(model.parameters()))


def test_stable_baselines3():
    """Its state_dict has the form of torch's, so that the options say what it means."""
    problem = Problem("float64")
    peer = sb3(problem.params, lr=LR)
    for grads in (problem.noise(), problem.noise()):
        peer.step(grads)
    arrays = peer.arrays()["param"]
    state = from_state_dict(peer.optimizer.state_dict(), arrays, eps_inside_sqrt=True)
    grads = problem.noise()
    peer.step(grads)
    rms.update_(arrays, grads, state)
    for ours, expected in zip(arrays, peer.arrays()["param"], strict=True):
        assert_close(ours, expected, "param")


def test_parameter_that_never_had_a_gradient():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = RMSprop([p, q], preset="sb3", momentum=0.5)
    p.grad = torch.ones(2)
    optimizer.step()
    state = from_state_dict(optimizer.state_dict(), [p, q])
    assert torch.equal(state.square_avg[1], torch.ones(2))
    assert torch.equal(state.momentum_buffer[1], torch.zeros(2))


def test_memory_order_is_kept():
    p = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
    optimizer = RMSprop([p])
    p.grad = torch.arange(6.0).reshape(3, 2)
    optimizer.step()
    state = from_state_dict(optimizer.state_dict(), [p])
    expected = optimizer.state[p]["square_avg"]
    assert torch.equal(state.square_avg[0], expected)
    assert state.square_avg[0].stride() == expected.stride()
    assert to_state_dict(state)["state"][0]["square_avg"].stride() == expected.stride()


def saved(change=lambda state_dict: None, **options):
    p = nn.Parameter(torch.ones(2))
    optimizer = (
        RMSpropTF([p], **options)
        if "caution" in options or "corrected_weight_decay" in options
        else RMSprop([p], **options)
    )
    p.grad = torch.ones(2)
    optimizer.step()
    state_dict = optimizer.state_dict()
    change(state_dict)
    return state_dict


def put(value, key="square_avg"):
    return lambda state_dict: state_dict["state"][0].__setitem__(key, value)


BAD = {
    "a buffer is missing": (saved(lambda d: d["state"][0].pop("square_avg")), "no square_avg of '0'"),
    "momentum, no buffer": (saved(lambda d: d["param_groups"][0].update(momentum=0.5)), "no momentum_buffer of '0'"),
    "shape": (saved(put(torch.ones(3))), r"square_avg of '0' has shape \(3,\), its parameter \(2,\)"),
    "dtype": (saved(put(torch.ones(2, dtype=torch.float64))), "square_avg of '0' has dtype torch.float64, the state"),
    "device": (saved(put(torch.ones(2, device="meta"))), "square_avg of '0' must be a dense tensor on the CPU"),
    "no tensor": (saved(put([1.0, 1.0])), "square_avg of '0' must be a dense tensor on the CPU"),
    "option": (saved(lambda d: d["param_groups"][0].update(alpha=1.5)), "rho must be in"),
    "count": (saved(put(-1.0, "step")), "step must be in"),
    "caution": (saved(caution=True, momentum=0.5), "caution=True"),
    "corrected": (saved(corrected_weight_decay=True, decoupled_decay=True, weight_decay=0.5), "corrected_weight_decay"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_state_dict(name):
    state_dict, words = BAD[name]
    with pytest.raises((TypeError, ValueError), match=words):
        from_state_dict(state_dict, [np.ones(2, np.float32)])


def test_bad_parameters():
    with pytest.raises(ValueError, match="the state_dict has 1 parameters, params has 2"):
        from_state_dict(saved(), [np.ones(2, np.float32), np.ones(2, np.float32)])
    groups = [{"params": [nn.Parameter(torch.ones(2))], "centered": centered} for centered in (False, True)]
    with pytest.raises(ValueError, match=r"param_groups\[1\] has centered=True, param_groups\[0\] False"):
        from_state_dict(torch.optim.RMSprop(groups).state_dict(), [np.ones(2, np.float32), np.ones(2, np.float32)])
    groups = [{"params": [nn.Parameter(torch.ones(2))], "momentum": momentum} for momentum in (0.0, 0.5)]
    with pytest.raises(ValueError, match="would need square_avg, momentum_buffer"):
        from_state_dict(torch.optim.RMSprop(groups).state_dict(), [np.ones(2, np.float32), np.ones(2, np.float32)])


STATES = {
    "schedule": ({"lr": lambda step: 0.5}, "native", "schedule"),
    "option of ours": ({"preset": "sb3"}, "torch", "eps_inside_sqrt=True, an optimizer of kind 'torch'"),
    "not as in timm": ({"preset": "torch"}, "timm", "eps_inside_sqrt=False, an optimizer of kind 'timm'"),
    "accumulate": ({"accumulate": 2}, "native", "accumulate=2"),
    "on_nonfinite": ({"on_nonfinite": "skip"}, "native", "on_nonfinite='skip'"),
    "rates": ({"overrides": {"*": {"lr": np.ones(2)}}}, "native", "learning rates in an array"),
    "kind": ({}, "keras", "kind must be 'torch', 'native', 'timm', got 'keras'"),
}


@pytest.mark.parametrize("name", STATES)
def test_state_that_no_optimizer_has(name):
    options, kind, words = STATES[name]
    state = rms.init([np.ones(2)], **options)
    with pytest.raises(ValueError, match=words):
        to_state_dict(state, kind)


def test_accumulated_gradients_are_refused():
    state = rms.init(np.ones(2), accumulate=2)
    rms.update_(np.ones(2), np.ones(2), state)
    with pytest.raises(ValueError, match="1 gradients are accumulated"):
        to_state_dict(state, "native")


def test_nothing_is_shared():
    p = nn.Parameter(torch.ones(2))
    optimizer = RMSprop([p])
    p.grad = torch.ones(2)
    optimizer.step()
    state = from_state_dict(optimizer.state_dict(), [p])
    state.square_avg[0][...] = 7
    assert not (optimizer.state[p]["square_avg"] == 7).any()
    to_state_dict(state)["state"][0]["square_avg"].fill_(9)
    assert (state.square_avg[0] == 7).all()
