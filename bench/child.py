"""One version of the package, or the peers, in a process of its own, which times its contenders on command.

bench_versions.py starts it with the path of the version, and reads and writes its pipes: first a line of JSON that says
where the package was found and who the contenders are, then for each name that is read a line with the seconds of a
call in one turn.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
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
CASES = {  # the number of arrays, the elements of each, and whether their places in the heap are shuffled
    "1 x 4": (1, 4, False),
    "100 x 64": (100, 64, False),
    "in order": (1000, 64, False),
    "scattered": (1000, 64, True),
    "nested dict": (1000, 64, False),
    "lone": (1, 64, False),
}
AFTER_A_PASS = ("in order", "scattered", "nested dict", "lone")
ONLY_HOT = ("new gradient arrays",)
Arrays: TypeAlias = list[NDArray[Any]]
Contenders: TypeAlias = dict[str, Call]
Make: TypeAlias = Callable[[], Arrays]


def maker(case: str, seed: int) -> Make:
    """What makes the parameters, or the gradients, of a case; the seed decides how they are scattered."""
    rng = np.random.default_rng(seed)
    count, n, scattered = CASES[case]

    def make() -> Arrays:
        arrays: Arrays = [np.empty(0)] * count
        for i in rng.permutation(count) if scattered else range(count):
            arrays[i] = rng.standard_normal(n).astype(np.float32)
        return arrays

    return make


def in_place(params: Any, grads: Any, **options: Any) -> Call:
    """The step over the same arrays at each call."""
    return partial(rms.update_, params, grads, rms.init(params, **options))  # no frame of Python, which is timed too


def new_parameters(make: Make) -> Call:
    """Two sets of parameters take turns, so that no call gets the arrays of the call before."""
    sets, grads = [make(), make()], make()
    turns, state = itertools.cycle(sets), rms.init(sets[0])
    return lambda: rms.update_(next(turns), grads, state)


def new_gradients(params: Arrays, sets: list[Arrays]) -> Call:
    """Two sets of gradients take turns."""
    turns, state = itertools.cycle(sets), rms.init(params)
    return lambda: rms.update_(params, next(turns), state)


def pure(make: Make) -> Call:
    """`rms.update`, which takes what the call before has returned."""
    params, grads = make(), make()
    held = [params, rms.init(params)]

    def step() -> None:
        held[:] = rms.update(held[0], grads, held[1])

    return step


def nested(leaves: Arrays) -> dict[str, dict[str, Any]]:
    """A dict of dicts of two arrays."""
    return {f"layer{i}": {"w": leaves[i], "b": leaves[i + 1]} for i in range(0, len(leaves), 2)}


def ours(case: str, make: Make) -> Contenders:
    """The step, and where the case has them its other forms and its options."""
    params, grads = make(), make()
    if case == "lone":
        return {"ours": in_place(params[0], grads[0])}
    if case == "nested dict":
        return {"ours": in_place(nested(params), nested(grads))}
    contenders = {"ours": in_place(params, grads)}
    if case == "in order":
        contenders["new gradient arrays"] = new_gradients(params, [grads, make()])
    if case not in AFTER_A_PASS:
        contenders |= {"new parameter arrays": new_parameters(make), "rms.update": pure(make)}
    if case == "100 x 64":
        contenders |= {name: in_place(params, grads, **options) for name, options in OPTIONS.items()}
    return contenders


def others(names: list[str], make: Make) -> Contenders:
    """The peers `names` that are installed, each over arrays of its own."""
    import peers  # the earlier version has not all that it needs

    contenders = {}
    for name in names:
        params, grads = make(), make()
        try:
            contenders[name] = peers.PEERS[name](params, grads, [grad * grad for grad in grads], 1)
        except ImportError:
            print(f"skipped, not installed: {name}", file=sys.stderr)
    return contenders


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


def main(case: str, seed: str, *names: str) -> None:
    """Make the turns of a case, hot and after a backward pass, of ours or of the peers `names`; answer what is read."""
    rms.set_num_threads(1)
    gc.disable()
    make = maker(case, int(seed))
    contenders = others(list(names), make) if names else ours(case, make)
    turns: dict[str, Turn] = {name: hot(call) for name, call in contenders.items()}
    if case in AFTER_A_PASS:
        work = backward_pass()
        turns |= {name + COLD: after(work, call) for name, call in contenders.items() if name not in ONLY_HOT}
    print(json.dumps({"package": rms.__file__, "contenders": list(turns)}), flush=True)
    for line in sys.stdin:
        print(turns[line.strip()](), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
