"""The examples with torch and Stable-Baselines3, run as a user runs them; test_examples.py has the others."""

from __future__ import annotations

import re
import sys

import ml_dtypes
import numpy as np
import torch
from stable_baselines3 import A2C
from test_examples import EXAMPLES, run


def shares(printed):
    """The optimizers of the tables and the share of the loop that each takes, in percent."""
    rows = re.findall(r"^(\S.*?) +\d+\.\d µs +(\d+\.\d) % +\d+\.\d\d$", printed, re.MULTILINE)
    return [(name, float(share)) for name, share in rows]


def test_torch_mlp(tmp_path):
    printed = run("torch_mlp.py", tmp_path, "--epochs", "2")
    rows = shares(printed)
    assert [name for name, _ in rows] == 3 * ["torch", "torch, foreach", "rmsprop_native"]
    assert all(0 < share < 100 for _, share in rows)
    differences = [float(d) for d in re.findall(r"difference of the parameters: (\S+);", printed)]
    # Rounding, of 86 steps in float64. In float32 a ReLU may differ, which has no bound of that kind.
    assert len(differences) == 3
    assert differences[2] < 1e-12


def test_torch_a2c(tmp_path):
    printed = run("torch_a2c.py", tmp_path, "--steps", "1000", "--seeds", "1")
    rows = shares(printed)
    assert [name for name, _ in rows] == ["torch", "rmsprop_native", "Stable-Baselines3", "rmsprop_native"]
    assert all(0 < share < 100 for _, share in rows)
    returns = re.findall(r"each seed: (\d+)$", printed, re.MULTILINE)
    assert returns[0] == returns[1]
    assert returns[2] == returns[3]
    differences = [
        float(d) for d in re.findall(r"difference of the parameters, each seed: (\S+)$", printed, re.MULTILINE)
    ]
    # Rounding, of 50 updates in float32; another rule is 7e-3 away after the first.
    assert len(differences) == 2
    assert max(differences) < 1e-5


def test_default_optimizer_of_a2c():
    """It is what examples/torch_a2c.py and docs/torch.md say, and not RMSpropTFLike."""
    optimizer = A2C("MlpPolicy", "CartPole-v1", device="cpu").policy.optimizer
    assert type(optimizer) is torch.optim.RMSprop
    expected = {"lr": 7e-4, "alpha": 0.99, "eps": 1e-5, "weight_decay": 0, "momentum": 0, "centered": False}
    assert {name: optimizer.param_groups[0][name] for name in expected} == expected


def test_bfloat16_as_torch(monkeypatch, rng):
    """What examples/bfloat16.py emulates is the step that torch takes on a CPU."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    import bfloat16

    start = [{"w": rng.standard_normal((300, 70)).astype(ml_dtypes.bfloat16), "b": np.zeros(70, ml_dtypes.bfloat16)}]
    emulated = bfloat16.AsTorch(start, 1e-2)

    def tensors(tree):
        arrays = [array.view(np.int16).copy() for layer in tree for array in layer.values()]
        return [torch.from_numpy(array).view(torch.bfloat16) for array in arrays]

    params = [torch.nn.Parameter(tensor) for tensor in tensors(start)]
    optimizer = torch.optim.RMSprop(params, lr=1e-2, alpha=bfloat16.RHO, eps=bfloat16.EPS)
    for step in range(20):
        grads = [
            {key: (10.0 ** (step % 4 - 2) * rng.standard_normal(a.shape)).astype("f4") for key, a in layer.items()}
            for layer in start
        ]
        emulated.step(grads)
        for param, grad in zip(params, tensors(bfloat16.cast(grads, ml_dtypes.bfloat16)), strict=True):
            param.grad = grad
        optimizer.step()
    for tree, theirs in (
        (emulated.params, params), (emulated.square_avg, [optimizer.state[param]["square_avg"] for param in params])
    ):  # fmt: skip
        ours = torch.cat([tensor.reshape(-1) for tensor in tensors(tree)])
        other = torch.cat([tensor.detach().reshape(-1) for tensor in theirs])
        # torch may contract a product and a sum into one operation, which decides a few of the roundings.
        assert (ours != other).float().mean() < 1e-3
        assert torch.allclose(ours, other, rtol=2**-7, atol=0)
