"""One version of the package in a process of its own: makes the contenders of a case, and times each on command.

bench_versions.py starts a child for each version, with the path of the version, and reads and writes its pipes: first
a line of JSON that says where the package was found and who the contenders are, then for each name that is read a line
with the seconds of a call in one turn.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
from collections.abc import Callable

import numpy as np
import peers
from timing import Call, Turn, after, hot

import rmsprop_native as rms

COLD = ", after a backward pass"  # is added to the name of a contender that is timed so
OPTIONS = {
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True},
    "bias_correction": {"bias_correction": True},
    "schedule": {"lr": lambda taken: 1e-3},
    "clip_norm": {"clip_norm": 1.0},
    "clip_global_norm": {"clip_global_norm": 1.0},
    "ema": {"ema": 0.99},
    "on_nonfinite=skip": {"on_nonfinite": "skip"},
    "on_nonfinite=raise": {"on_nonfinite": "raise"},
    "accumulate=4": {"accumulate": 4},
}
Contenders = dict[str, Call]


def normal(rng: np.random.Generator, count: int, n: int, scattered: bool = False) -> peers.Arrays:
    """Arrays of float32, which the heap gives places in order, or in a shuffled one."""
    arrays: peers.Arrays = [np.empty(0)] * count
    for i in rng.permutation(count) if scattered else range(count):
        arrays[i] = rng.standard_normal(n).astype(np.float32)
    return arrays


def in_place(params: object, grads: object, **options: object) -> tuple[Call, rms.State]:
    """The step over the same arrays at each call, and its state."""
    state = rms.init(params, **options)
    return (lambda: rms.update_(params, grads, state)), state


def new_parameters(sets: list[peers.Arrays], grads: peers.Arrays) -> Call:
    """Two sets of parameters take turns, so that no call gets the arrays of the call before."""
    turns, state = itertools.cycle(sets), rms.init(sets[0])
    return lambda: rms.update_(next(turns), grads, state)


def new_gradients(params: peers.Arrays, sets: list[peers.Arrays]) -> Call:
    """Two sets of gradients take turns."""
    turns, state = itertools.cycle(sets), rms.init(params)
    return lambda: rms.update_(params, next(turns), state)


def pure(params: peers.Arrays, grads: peers.Arrays) -> Call:
    """`rms.update`, which takes what the call before has returned."""
    held = [params, rms.init(params)]

    def step() -> None:
        held[:] = rms.update(held[0], grads, held[1])

    return step


def with_peers(names: list[str], params: peers.Arrays, grads: peers.Arrays) -> Contenders:
    """Ours and the peers `names` that are installed, over the same arrays."""
    call, state = in_place(params, grads)
    contenders = {"ours": call}
    for name in names:
        try:
            contenders[name] = peers.PEERS[name](params, grads, list(state.square_avg), 1)
        except ImportError:
            print(f"skipped, not installed: {name}", file=sys.stderr)
    return contenders


def few(rng: np.random.Generator, names: list[str], count: int, n: int) -> Contenders:
    """The same arrays at each call, new ones, and the pure step."""
    params, grads = normal(rng, count, n), normal(rng, count, n)
    contenders = with_peers(names, params, grads)
    contenders["new parameter arrays"] = new_parameters([normal(rng, count, n), normal(rng, count, n)], grads)
    contenders["rms.update"] = pure(normal(rng, count, n), grads)
    return contenders


def hundred(rng: np.random.Generator, names: list[str]) -> Contenders:
    """The same of 100 arrays of 64, and with each option."""
    params, grads = normal(rng, 100, 64), normal(rng, 100, 64)
    contenders = {name: in_place(params, grads, **options)[0] for name, options in OPTIONS.items()}
    return few(rng, names, 100, 64) | contenders


def backward_pass() -> Call:
    """What comes before a step in training: it leaves other data and other code in the caches."""
    import torch

    torch.set_num_threads(1)
    layers = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(8)])
    batch = torch.randn(64, 256)

    def run() -> None:
        layers.zero_grad()
        layers(batch).square().mean().backward()

    return run


def in_order(rng: np.random.Generator, names: list[str]) -> Contenders:
    """1000 arrays of 64, whose places in the heap are in order; hot also with new gradient arrays at each call."""
    params, grads, others = normal(rng, 1000, 64), normal(rng, 1000, 64), normal(rng, 1000, 64)
    return with_peers(names, params, grads) | {"new gradient arrays": new_gradients(params, [grads, others])}


def scattered(rng: np.random.Generator, names: list[str]) -> Contenders:
    """The same with places in shuffled orders."""
    return with_peers(names, normal(rng, 1000, 64, scattered=True), normal(rng, 1000, 64, scattered=True))


def nested(rng: np.random.Generator, names: list[str]) -> Contenders:
    """The same, in order, in a dict of dicts of two arrays."""
    params, grads = (
        {f"layer{i}": {"w": leaves[i], "b": leaves[i + 1]} for i in range(0, 1000, 2)}
        for leaves in (normal(rng, 1000, 64), normal(rng, 1000, 64))
    )
    return {"ours": in_place(params, grads)[0]}


def lone(rng: np.random.Generator, names: list[str]) -> Contenders:
    """One array of 64, not in a list."""
    (param,), (grad,) = normal(rng, 1, 64), normal(rng, 1, 64)
    return with_peers(names, [param], [grad]) | {"ours": in_place(param, grad)[0]}


def one(rng: np.random.Generator, names: list[str]) -> Contenders:
    """A list of one array of 4."""
    return few(rng, names, 1, 4)


HOT: dict[str, Callable[[np.random.Generator, list[str]], Contenders]] = {"1 x 4": one, "100 x 64": hundred}
HOT_AND_COLD = {"in order": in_order, "scattered": scattered, "nested dict": nested, "lone": lone}
ONLY_HOT = ("new gradient arrays",)


def turns_of(case: str, seed: int, names: list[str]) -> dict[str, Turn]:
    """The turns of a case's contenders: hot, and after a backward pass. The seed decides how a heap is scattered."""
    contenders = (HOT | HOT_AND_COLD)[case](np.random.default_rng(seed), names)
    turns = {name: hot(call) for name, call in contenders.items()}
    if case in HOT_AND_COLD:
        work = backward_pass()
        turns |= {name + COLD: after(work, call) for name, call in contenders.items() if name not in ONLY_HOT}
    return turns


def main(case: str, seed: str, *names: str) -> None:
    """Answer until there is no more to read."""
    rms.set_num_threads(1)
    gc.disable()
    turns = turns_of(case, int(seed), list(names))
    print(json.dumps({"package": rms.__file__, "contenders": list(turns)}), flush=True)
    for line in sys.stdin:
        print(turns[line.strip()](), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
