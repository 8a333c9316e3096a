"""The step of an optimizer of torch: torch's own class in its two forms, and the drop-in; and of bfloat16 tensors."""

from __future__ import annotations

import importlib.util

import pytest
from conftest import THREADS
from timing import hot

import rmsprop_native as rms

torch = pytest.importorskip("torch")

from rmsprop_native.interop.torch import RMSprop

# The parameters of Stable-Baselines3's A2C on CartPole: two networks of two layers, then two heads.
A2C = [(64, 4), (64,), (64, 64), (64,)] * 2 + [(2, 64), (2,), (1, 64), (1,)]
SHAPES = {"A2C": A2C, "100 x 64": [(64,)] * 100, "1000 x 64": [(64,)] * 1000, "1 Mi": [(2**20,)], "16 Mi": [(2**24,)]}


def on_threads(count, turn):
    """A turn while torch has that many threads."""

    def run():
        torch.set_num_threads(count)
        return turn()

    return run


@pytest.fixture
def _torch_threads():
    """The drop-in follows torch."""
    rms.set_num_threads(None)
    yield
    rms.set_num_threads(THREADS)


@pytest.mark.usefixtures("_torch_threads")
@pytest.mark.parametrize("shapes", SHAPES)
def test_step(take_turns, shapes):
    torch.manual_seed(7)
    makes = {
        "torch": lambda params: torch.optim.RMSprop(params, foreach=False),
        "torch foreach": lambda params: torch.optim.RMSprop(params, foreach=True),
        "ours": lambda params: RMSprop(params),
    }
    turns = {}
    for name, make in makes.items():
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES[shapes]]
        for p in params:
            p.grad = torch.randn_like(p)
        torch.set_num_threads(THREADS)
        turn = hot(make(params).step)
        turns[name] = on_threads(THREADS, turn)
    if THREADS > 1:
        turns["ours, 1 thread"] = on_threads(1, turn)
    take_turns(turns, kind="torch", shapes=shapes)


def bitsandbytes(params):
    """Its RMSprop with a state of 8 bits."""
    from bitsandbytes.optim import RMSprop8bit

    return RMSprop8bit(params)


# What makes an optimizer, and whether its parameters are bfloat16.
BF16 = {
    "ours": (lambda params: RMSprop(params), True),
    "ours, square_avg bfloat16": (lambda params: RMSprop(params, square_avg_dtype="bfloat16"), True),
    "ours, rounded": (lambda params: RMSprop(params, master_weights=False), True),
    "ours, all bfloat16": (
        lambda params: RMSprop(params, master_weights=False, square_avg_dtype="bfloat16"),
        True,
    ),
    "ours, float32": (lambda params: RMSprop(params), False),
    "torch": (lambda params: torch.optim.RMSprop(params, foreach=False), True),
    "torch foreach": (lambda params: torch.optim.RMSprop(params, foreach=True), True),
    **({"bitsandbytes 8 bit": (bitsandbytes, True)} if importlib.util.find_spec("bitsandbytes") else {}),
}


@pytest.mark.usefixtures("_torch_threads")
@pytest.mark.parametrize("shapes", ["64 Ki", "16 Mi"])
def test_bf16_step(take_turns, shapes):
    torch.manual_seed(7)
    n = {"64 Ki": 2**16, "16 Mi": 2**24}[shapes]
    turns = {}
    for name, (make, is_bf16) in BF16.items():
        p = torch.nn.Parameter(torch.randn(n, dtype=torch.bfloat16 if is_bf16 else torch.float32))
        p.grad = torch.randn_like(p)
        torch.set_num_threads(THREADS)
        turns[name] = on_threads(THREADS, hot(make([p]).step))
    take_turns(turns, kind="torch bf16", shapes=shapes)
