"""The examples with torch and Stable-Baselines3, run as a user runs them; test_examples.py has the others."""

from __future__ import annotations

import re

import torch
from stable_baselines3 import A2C
from test_examples import run


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
