"""A recurrent network in NumPy, with its own backprop through time; text.py and speech.py train it."""

from __future__ import annotations

import numpy as np
from dense import Array


def init_recurrent(inputs: int, hidden: int, outputs: int, rng: np.random.Generator) -> dict[str, Array]:
    """Weights, float32: of the inputs, of the state before, and of the outputs."""

    def normals(*shape: int) -> Array:
        scale = shape[0] ** -0.5
        return np.asarray(scale * rng.standard_normal(shape), np.float32)

    return {
        "w_in": normals(inputs, hidden),
        "w": np.linalg.qr(normals(hidden, hidden))[0],  # keeps the length of what it carries on
        "b": np.zeros(hidden, np.float32),
        "w_out": normals(hidden, outputs),
        "b_out": np.zeros(outputs, np.float32),
    }


def run(params: dict[str, Array], x: Array, start: Array) -> Array:
    """The states after each input of x (time, batch, inputs), from `start` (batch, hidden) on, which comes first."""
    states = np.empty((len(x) + 1, *start.shape), np.float32)
    states[0] = start
    pushed = x @ params["w_in"] + params["b"]
    for t in range(len(x)):
        states[t + 1] = np.tanh(pushed[t] + states[t] @ params["w"])
    return states


def backward(params: dict[str, Array], x: Array, states: Array, grad: Array) -> dict[str, Array]:
    """The gradients by the weights but those of the outputs, from `grad` (time, batch, hidden) by states[1:]."""
    pushed = np.empty_like(grad)
    carried = np.zeros_like(grad[0])
    for t in reversed(range(len(x))):
        pushed[t] = (grad[t] + carried) * (1 - states[t + 1] ** 2)
        carried = pushed[t] @ params["w"].T
    both = ((0, 1), (0, 1))
    return {
        "w_in": np.tensordot(x, pushed, both),
        "w": np.tensordot(states[:-1], pushed, both),
        "b": pushed.sum(axis=(0, 1)),
    }
