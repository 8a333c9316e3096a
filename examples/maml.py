"""
Learning to learn
=================

First-order MAML on sine waves, with the pure `rms.update` for each task.

A task is a wave of some amplitude and phase, seen at ten points. The inner loop takes a few steps of RMSProp from
shared weights, on copies, with a state of its own for each task: `rms.update` changes nothing that others use. The
outer loop moves the shared weights along the mean gradient after adaptation (Finn, Abbeel and Levine 2017, first
order). Beside it the same network is trained on all waves at once.

Run `python examples/maml.py`; it saves a figure, maml.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from dense import Array, Params, backward, forward, init_params
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

SIZES = [1, 40, 40, 1]
POINTS, TASKS, INNER_STEPS, INNER_LR = 10, 10, 3, 0.01


def wave(rng: np.random.Generator) -> tuple[float, float]:
    """The amplitude and the phase of a task."""
    return float(rng.uniform(0.1, 5)), float(rng.uniform(0, np.pi))


def sample(task: tuple[float, float], rng: np.random.Generator, count: int = POINTS) -> tuple[Array, Array]:
    """Points x (count, 1) in [-5, 5] and the values of a wave there."""
    x = rng.uniform(-5, 5, (count, 1)).astype(np.float32)
    return x, np.asarray(task[0] * np.sin(x - task[1]), np.float32)


def loss_and_grads(params: Params, x: Array, y: Array) -> tuple[float, Params]:
    """The mean squared error, and its gradients."""
    activations = forward(params, x)
    error = activations[-1] - y
    return float((error**2).mean()), backward(params, activations, 2 * error / np.float32(len(x)))


def adapt(params: Params, x: Array, y: Array, steps: int) -> list[Params]:
    """The weights after 0, 1, ... steps from `params`, which stay as they are."""
    state = rms.init(params, lr=INNER_LR, rho=0.9, bias_correction=True)
    found = [params]
    for _ in range(steps):
        params, state = rms.update(params, loss_and_grads(params, x, y)[1], state)
        found.append(params)
    return found


def train(steps: int, is_meta: bool) -> Params:
    """Shared weights: trained for what they are after adaptation, or for all waves at once."""
    rng = np.random.default_rng(0)
    params = init_params(SIZES, rng)
    state = rms.init(params, lr=lambda taken: 2e-3 * (1 - 0.9 * taken / steps), rho=0.99, accumulate=TASKS)
    for _ in tqdm(range(steps), desc="MAML" if is_meta else "all waves at once", unit="step"):
        for _ in range(TASKS):  # the outer step is taken at the last of them, with the mean of their gradients
            task = wave(rng)
            adapted = adapt(params, *sample(task, rng), INNER_STEPS)[-1] if is_meta else params
            rms.update_(params, loss_and_grads(adapted, *sample(task, rng))[1], state)
    return params


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--figure", type=Path, default=Path("maml.png"))
    arguments = parser.parse_args(argv)

    names = ("MAML", "all waves at once", "random weights")
    starts = [train(arguments.steps, True), train(arguments.steps, False), init_params(SIZES, np.random.default_rng(5))]
    count = 11
    rng = np.random.default_rng(1)
    losses: Any = np.zeros((len(starts), 200, count))
    for i in range(losses.shape[1]):
        task = wave(rng)
        seen, held_out = sample(task, rng), sample(task, rng, 100)
        for j, params in enumerate(starts):
            losses[j, i] = [loss_and_grads(adapted, *held_out)[0] for adapted in adapt(params, *seen, count - 1)]

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    x = np.linspace(-5, 5, 200, dtype=np.float32)[:, None]
    task = (3.5, 1.0)
    seen = sample(task, np.random.default_rng(3))
    for axes, name, params in zip((left, middle), names, starts, strict=False):
        axes.plot(x, task[0] * np.sin(x - task[1]), "k:", label="a new wave")
        axes.plot(*seen, "ko", label="the ten points seen")
        for taken, adapted in enumerate(adapt(params, *seen, INNER_STEPS)):
            if taken in (0, 1, INNER_STEPS):
                axes.plot(
                    x,
                    forward(adapted, x)[-1],
                    color="C0",
                    alpha=(taken + 1) / (INNER_STEPS + 1),
                    label=f"{taken} steps",
                )
        axes.set(title=f"trained by {name}" if name == "MAML" else f"trained on {name}", xlabel="x", ylim=(-6, 6))
        axes.legend(fontsize=8)
    for j, name in enumerate(names):
        right.semilogy(np.median(losses[j], axis=0), "o-", label=name)
    right.set(title="200 new waves", xlabel="steps of adaptation", ylabel="mean squared error, median")
    right.legend()
    figure.savefig(arguments.figure, dpi=120)
    plt.close(figure)
    for j, name in enumerate(names):
        before, after = np.median(losses[j][:, [0, INNER_STEPS]], axis=0)
        print(f"{name}: error {before:.3f}, after {INNER_STEPS} steps {after:.3f}")
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
