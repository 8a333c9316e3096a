"""The step of an optimizer of torch: torch's own class in its two forms, and the drop-in."""

from __future__ import annotations

import pytest
from conftest import THREADS

torch = pytest.importorskip("torch")

from rmsprop_native.interop.torch import RMSprop

# The parameters of Stable-Baselines3's A2C on CartPole: two networks of two layers, then two heads.
A2C = [(64, 4), (64,), (64, 64), (64,)] * 2 + [(2, 64), (2,), (1, 64), (1,)]
SHAPES = {"A2C": A2C, "100 x 64": [(64,)] * 100, "1000 x 64": [(64,)] * 1000, "1 Mi": [(2**20,)], "16 Mi": [(2**24,)]}


@pytest.mark.parametrize("shapes", SHAPES)
def test_step(interleave, shapes):
    torch.set_num_threads(THREADS)
    torch.manual_seed(7)
    makes = {
        "ours": lambda params: RMSprop(params),
        "torch": lambda params: torch.optim.RMSprop(params, foreach=False),
        "torch foreach": lambda params: torch.optim.RMSprop(params, foreach=True),
    }
    contenders = {}
    for name, make in makes.items():
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES[shapes]]
        for p in params:
            p.grad = torch.randn_like(p)
        contenders[name] = make(params).step
    interleave(contenders, kind="torch", shapes=shapes)
