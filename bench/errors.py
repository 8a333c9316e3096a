"""The rounding error of one float32 step, ours and the peers', against the formula in float64: a table for
docs/performance.md. The speed of the machine is of no account.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import PEERS

import rmsprop_native as rms
from rmsprop_native._bench import EPS, LR, RHO

COUNT = 1 << 20
NAMES = ("numpy", "numba", "torch", "torch foreach", "torch.compile")


def arrays() -> list[NDArray[np.float32]]:
    """Parameters 0, so that what the step makes of them is not rounded again; gradients and squares of many sizes."""
    rng = np.random.default_rng(20121006)
    grads = rng.choice([-1, 1], COUNT) * 10.0 ** rng.uniform(-6, 3, COUNT)
    squares = grads**2 * 10.0 ** rng.uniform(-2, 2, COUNT)
    return [np.zeros(COUNT, np.float32), grads.astype(np.float32), squares.astype(np.float32)]


def errors(stepped: NDArray[Any]) -> NDArray[np.float64]:
    """The errors of what one step made of `arrays()`, in units in the last place."""
    _, grads, squares = (array.astype(np.float64) for array in arrays())
    exact = -LR * grads / (np.sqrt(RHO * squares + (1 - RHO) * grads**2) + EPS)
    return np.abs(stepped - exact) / np.spacing(np.abs(exact).astype(np.float32))


def ours() -> NDArray[Any]:
    """A step by `update_`."""
    params, grads, squares = arrays()
    state = rms.init(params, lr=LR, rho=RHO, eps=EPS)
    state.square_avg[...] = squares
    return rms.update_(params, grads, state)


def theirs(name: str) -> NDArray[Any]:
    """A step by a peer, from the same arrays also where making the peer takes a step to warm up."""
    memory = arrays()
    step = PEERS[name]([memory[0]], [memory[1]], [memory[2]], 1)
    for array, value in zip(memory, arrays(), strict=True):
        array[...] = value
    step()
    return memory[0]


def main() -> None:
    """Print the table."""
    print("| one float32 step, units in the last place | largest error | mean error |\n|---|---|---|")
    for name in ("ours", *NAMES):
        found = errors(ours() if name == "ours" else theirs(name))
        print(f"| {name} | {found.max():.2f} | {found.mean():.2f} |")


if __name__ == "__main__":
    main()
