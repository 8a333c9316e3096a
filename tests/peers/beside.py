"""A test marked `beside_torch` runs with torch.optim.RMSprop and with ours, and has the same numbers, warnings, errors.

Models are float64 there, and the numbers, which ran freely, are within 1e-12.
"""

from __future__ import annotations

import copy
import functools
import inspect
import io
import itertools
import warnings

import numpy as np
import torch
from conftest import same_bits
from measure import assert_close
from torch import nn

from rmsprop_native.interop.torch import RMSprop

Peer = torch.optim.RMSprop


NAMES = [name for name in inspect.signature(Peer).parameters if name != "params"]
ALL = {"momentum": 0.9, "centered": True, "weight_decay": 2.0**-5}
FLAGS = {"momentum": 0.9, "centered": True, "weight_decay": 2.0**-5, "maximize": True}
COMBINATIONS = [dict(some) for k in range(5) for some in itertools.combinations(FLAGS.items(), k)]
COMPLEX = [torch.complex64, torch.complex128]


# ---- how the two classes are compared ----


def label_of(options):
    return "-".join(options) or "plain"


def outcome(scenario, make, **parameters):
    """What a scenario returns or raises with one of the classes, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = scenario(make, **parameters)
        except Exception as error:  # noqa: BLE001 - whatever torch's class raises, ours must
            result = error
    return result, {(warning.category, str(warning.message)) for warning in caught}


# How near tensors are after a few steps, by the measure of assert_close; after a network was trained on, where each
# difference in the last place changes the next gradients (found: 6e-11 with SWALR, whose lr rises, 2e-12 with the
# others; 2.3e-5 in float32); and where some of the steps were taken in float32.
FEW_STEPS = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-5}
TRAINED = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 4e-5}
PARTLY_FLOAT32 = {np.dtype(np.float64): 1e-5, np.dtype(np.float32): 1e-5}


def compare(ours, theirs, tolerances=FEW_STEPS, path=""):
    """Check that two results are the same: tensors within rounding, anything else equal."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor), path
        assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device), path
        if theirs.is_meta or type(theirs) is not torch.Tensor:
            return
        if theirs.dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(ours, theirs), path
            return
        mine, expected = (tensor.detach().resolve_conj().resolve_neg().numpy() for tensor in (ours, theirs))
        if not same_bits(mine, expected):
            assert_close(mine, expected, path, tolerances[mine.real.dtype])
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), path
        for key in theirs:
            compare(ours[key], theirs[key], tolerances, f"{path}[{key!r}]")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), path
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            compare(one, other, tolerances, f"{path}[{i}]")
    else:
        assert ours == theirs, path


def compare_errors(ours, theirs):
    assert isinstance(ours, Exception), f"no error, where torch's class raises {theirs!r}"
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


def beside_torch(scenario=None, *, fails=False, may_refuse=False, ignore_warnings=False, tolerances=FEW_STEPS):
    """A test of `scenario(make, ...)`, which returns what is compared; `make` is the class.

    fails: torch's class raises, and ours must raise the same. may_refuse: ours may raise TypeError, ValueError or
    RuntimeError, with a message, whatever torch's does; where torch's class raises it must.
    """
    if scenario is None:
        return functools.partial(
            beside_torch,
            fails=fails,
            may_refuse=may_refuse,
            ignore_warnings=ignore_warnings,
            tolerances=tolerances,
        )

    def test(**parameters):
        theirs, their_warnings = outcome(scenario, Peer, **parameters)
        ours, our_warnings = outcome(scenario, RMSprop, **parameters)
        if may_refuse and (isinstance(ours, Exception) or isinstance(theirs, Exception)):
            assert isinstance(ours, TypeError | ValueError | RuntimeError), (ours, theirs)
            assert str(ours)
            return
        if fails:
            assert isinstance(theirs, Exception), "torch's class does not raise"
            compare_errors(ours, theirs)
        else:
            for result in (theirs, ours):
                if isinstance(result, Exception):
                    raise result
            assert theirs is not None
            compare(ours, theirs, tolerances)
        assert ignore_warnings or our_warnings == their_warnings

    functools.update_wrapper(test, scenario)
    del test.__wrapped__
    signature = inspect.signature(scenario)
    test.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    return test


def model_of(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def loss_of(model, i=0):
    """The loss on batch number `i`."""
    random = torch.Generator().manual_seed(i)
    x = torch.randn(6, 4, generator=random, dtype=torch.float64)
    y = torch.randn(6, 3, generator=random, dtype=torch.float64)
    dtype = model[0].weight.dtype
    return (model(x.to(dtype)) - y.to(dtype)).square().mean()


def train(model, optimizer, steps=3, start=0, set_to_none=True):
    """The losses of some steps, of which the first is that on batch `start`."""
    losses = []
    for i in range(start, start + steps):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = loss_of(model, i)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def random_grads(params, i=0):
    """Give each parameter a gradient of its shape and dtype."""
    random = torch.Generator().manual_seed(i)
    for p in params:
        p.grad = torch.randn(p.shape, generator=random, dtype=p.dtype)


def everything(optimizer):
    """Parameters, torch's options in groups, and state; those that torch's class has."""
    groups = optimizer.param_groups
    return {
        "params": [p.detach().clone() for group in groups for p in group["params"]],
        "groups": [{name: group[name] for name in NAMES} for group in groups],
        "state": dict(sorted(copy.deepcopy(optimizer.state_dict()["state"]).items())),
    }


def bits_of(optimizer):
    """All tensors of parameters and state, as arrays of NumPy."""
    found = everything(optimizer)
    state = [tensor for entry in found["state"].values() for tensor in entry.values()]
    return [tensor.numpy() for tensor in (*found["params"], *state)]


def assert_same_bits(one, other):
    for a, b in zip(bits_of(one), bits_of(other), strict=True):
        assert same_bits(a, b)


def through_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def new(*shape, **options):
    torch.manual_seed(1)
    return nn.Parameter(torch.randn(shape or (3,), dtype=torch.float64, **options))


def arrays_of(optimizer, params):
    """The arrays of a torch optimizer by their names, copied."""
    found = {"param": [p.detach().numpy().copy() for p in params]}
    for name in ("square_avg", "momentum_buffer", "grad_avg", "ema"):
        if name in optimizer.state.get(params[0], ()):
            found[name] = [optimizer.state[p][name].numpy().copy() for p in params]
    return found
