"""Against the peers: one array of every size, a list of small ones, and the arrays of a real network."""

from __future__ import annotations

import os

import peers
import pytest
from conftest import PLACES, QUICK, THREADS
from shapes import RESNET50

import rmsprop_native as rms

# Each process measures one family of peers: several pools of spinning threads would compete for the same cores.
FAMILY = os.environ.get("RMSP_BENCH_FAMILY", "numpy")
NAMES = [name for name in peers.PEERS if name.startswith(FAMILY)]
SIZES = [2**k for k in ((6, 16, 22) if QUICK else (6, 9, 12, 14, 16, 18, 20, 22, 24))]
SECONDS = 4e-3


def contenders_of(names, params, grads):
    """Ours and the peers that are installed, over the same arrays; and who is missing."""
    state = rms.init(params, lr=peers.LR, rho=peers.RHO, eps=peers.EPS)
    for square_avg, grad in zip(state.square_avg, grads, strict=True):
        square_avg[...] = grad * grad
    contenders, missing = {"ours": lambda: rms.update_(params, grads, state)}, []
    for name in names:
        try:
            contenders[name] = peers.PEERS[name](params, grads, list(state.square_avg), THREADS)
        except ImportError:
            missing.append(name)
    contenders["ours again"] = contenders["ours"]  # how far the same thing differs from itself
    return contenders, missing


def measure(interleave, names, *places, **info):
    """Over each of `places`, which are pairs of parameters and gradients."""
    made = [contenders_of(names, params, grads) for params, grads in places]
    missing = made[0][1]
    interleave(*(contenders for contenders, _ in made), missing=missing, **info)
    if missing:
        print(f"skipped, not installed: {', '.join(missing)}")


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_one_array(interleave, rng, dtype, n):
    if dtype == "f64" and n not in ((2**16,) if QUICK else (2**12, 2**16, 2**24)):
        pytest.skip("measured with float32, or in the long form only")
    places = [
        tuple([rng.standard_normal(n).astype(dtype.replace("f", "float"))] for _ in range(2))
        for _ in range(PLACES if 2**13 <= n <= 2**18 else 1)
    ]
    names = [name for name in NAMES if name != "torch.compile" or (dtype == "f32" and not QUICK)]
    rounds = 5 if QUICK else 15 if n >= 2**22 else 10
    measure(interleave, names, *places, kind="one", dtype=dtype, n=n, seconds=SECONDS, rounds=rounds)


@pytest.mark.parametrize(("count", "n"), [(10, 64), (100, 64), (1000, 64), (300, 4096)])
def test_many_arrays(interleave, rng, count, n):
    if QUICK and count != 1000:
        pytest.skip("in the long form only")
    params, grads = ([rng.standard_normal(n).astype("float32") for _ in range(count)] for _ in range(2))
    # torch.compile takes minutes for a thousand arrays.
    names = [name for name in NAMES if name != "torch.compile" or (count <= 100 and not QUICK)]
    info = {"kind": "many", "dtype": "f32", "count": count, "n": n}
    measure(interleave, names, (params, grads), rounds=5 if QUICK else 9, seconds=SECONDS, **info)


@pytest.mark.skipif(QUICK, reason="in the long form only")
def test_resnet50(interleave, rng):
    params, grads = ([rng.standard_normal(shape).astype("float32") for shape in RESNET50] for _ in range(2))
    measure(interleave, NAMES, (params, grads), kind="resnet50", dtype="f32", rounds=9)
