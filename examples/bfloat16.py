"""
Parameters in bfloat16
======================

Where training stalls, and two ways to go on.

Parameters in bfloat16 that are rounded to the nearest after a step stop to move where the step is small beside them.
Split parameters, and stochastic rounding, keep what such a step adds.

Run `python examples/bfloat16.py`, with ml_dtypes installed; it trains networks on handwritten digits from several
seeds, in float32 and in bfloat16, prints their losses on the training data, and saves a figure, bfloat16.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Protocol

import matplotlib as mpl
import ml_dtypes
import numpy as np
from dense import Params, accuracy, backward, forward, init_params, load_digits_split, softmax_loss
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

LR, RHO, EPS, BATCH = 5e-5, 0.99, 1e-8, 32
BFLOAT16 = ml_dtypes.bfloat16


def cast(params: Params, dtype: Any) -> Params:
    """The same numbers in another type; to bfloat16 they are rounded to the nearest."""
    return [{key: array.astype(dtype) for key, array in layer.items()} for layer in params]


class Optimizer(Protocol):
    """Has the parameters that it steps."""

    params: Params

    def step(self, grads: Params) -> None:
        """Take a step with float32 gradients."""


class AsTorch:
    """All in bfloat16, as torch.optim.RMSprop does it on bfloat16 parameters: each operation is computed in float32 and
    rounded to the nearest bfloat16. Emulated here by ml_dtypes; a test compares it with torch.
    """

    def __init__(self, params: Params, lr: float) -> None:
        self.lr = np.float32(lr)
        self.params = cast(params, BFLOAT16)
        self.square_avg = [{key: np.zeros_like(array) for key, array in layer.items()} for layer in self.params]

    def step(self, grads: Params) -> None:
        """square_avg.mul_().addcmul_(), sqrt().add_(), param.addcdiv_(), in words of torch."""
        for p, g, v in zip(self.params, cast(grads, BFLOAT16), self.square_avg, strict=True):
            for key in p:
                grad, param = g[key].astype(np.float32), p[key].astype(np.float32)
                mean = (v[key].astype(np.float32) * np.float32(RHO)).astype(BFLOAT16).astype(np.float32)
                v[key] = (mean + np.float32(1 - RHO) * grad * grad).astype(BFLOAT16)
                root = np.sqrt(v[key].astype(np.float32)).astype(BFLOAT16).astype(np.float32)
                root = (root + np.float32(EPS)).astype(BFLOAT16).astype(np.float32)
                p[key] = (param - self.lr * (grad / root)).astype(BFLOAT16)


class Native:
    """By the library, in the type of the parameters."""

    def __init__(self, params: Params, lr: float, **options: Any) -> None:
        self.params = params
        self.state = rms.init(params, lr=lr, rho=RHO, eps=EPS, **options)

    def step(self, grads: Params) -> None:
        """Gradients get the type of the parameters, as an engine for training has them."""
        rms.update_(self.params, cast(grads, self.params[0]["w"].dtype), self.state)


def optimizers(params: Params, lr: float, seed: int) -> dict[str, Optimizer]:
    """From the same parameters, which bfloat16 holds."""
    narrow = {"square_avg_dtype": "bfloat16", "master_weights": False, "seed": seed}
    return {
        "float32": Native(cast(params, np.float32), lr),
        "bfloat16, to the nearest": AsTorch(params, lr),
        "bfloat16, split": Native(cast(params, BFLOAT16), lr),
        "bfloat16, stochastic": Native(cast(params, BFLOAT16), lr, **narrow),
    }


STYLES: dict[str, dict[str, Any]] = {
    "float32": {"color": "#999999", "linewidth": 5},
    "bfloat16, to the nearest": {"color": "#c2571a"},
    "bfloat16, split": {"color": "#0b5cad", "linewidth": 2},
    "bfloat16, stochastic": {"color": "#8fce00", "linewidth": 2, "linestyle": ":"},
}


def train(seed: int, epochs: int, lr: float, progress: Any) -> dict[str, list[tuple[float, float, float]]]:
    """For each optimizer after each epoch: loss on the training data, accuracy on held-out digits, and the share of the
    elements that changed in the epoch, all with the parameters that a user has.
    """
    x_train, x_test, y_train, y_test = load_digits_split()
    start = cast(init_params([64, 128, 64, 10], np.random.default_rng(seed)), BFLOAT16)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for name, optimizer in optimizers(start, lr, seed).items():
        rng = np.random.default_rng(1000 + seed)
        found[name] = []
        for _ in range(epochs):
            before = cast(optimizer.params, np.float32)
            order = rng.permutation(len(x_train))
            for first in range(0, len(order), BATCH):
                rows = order[first : first + BATCH]
                params = cast(optimizer.params, np.float32)
                activations = forward(params, x_train[rows])
                _, grad = softmax_loss(activations[-1], y_train[rows])
                optimizer.step(backward(params, activations, grad))
            after = cast(optimizer.params, np.float32)
            loss, _ = softmax_loss(forward(after, x_train)[-1], y_train)
            moved = [(a[key] != b[key]).ravel() for a, b in zip(after, before, strict=True) for key in a]
            found[name].append((loss, accuracy(after, x_test, y_test), float(np.concatenate(moved).mean())))
            progress.update()
    return found


def plot(curves: dict[str, Any], path: Path) -> None:
    """Over the epochs: the median of the seeds, and between which numbers all of them are."""
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4), layout="constrained")
    titles = ("loss on the training data", "accuracy on held-out digits, %", "elements that changed in the epoch, %")
    for name, values in curves.items():
        epochs = np.arange(1, values.shape[1] + 1)
        for which, (axis, factor) in enumerate(zip(axes, (1, 100, 100), strict=True)):
            runs = factor * values[:, :, which]
            axis.plot(epochs, np.median(runs, axis=0), label=name, **STYLES[name])
            axis.fill_between(epochs, runs.min(axis=0), runs.max(axis=0), color=STYLES[name]["color"], alpha=0.2)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="epoch")
    axes[0].set_yscale("log")
    axes[0].legend(loc="lower left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--figure", type=Path, default=Path("bfloat16.png"))
    arguments = parser.parse_args(argv)

    with tqdm(total=4 * arguments.seeds * arguments.epochs, desc="training", unit="epoch") as progress:
        runs = [train(seed, arguments.epochs, arguments.lr, progress) for seed in range(arguments.seeds)]
    curves = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    for name, values in curves.items():
        losses, right, moved = values[:, -1].T
        print(
            f"{name}: loss {np.median(losses):.5f} ({losses.min():.5f} to {losses.max():.5f}), "
            f"held-out digits {100 * np.median(right):.1f} %, {100 * np.median(moved):.0f} % of the elements moved"
        )
    plot(curves, arguments.figure)
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
