"""
Handwritten digits, in NumPy
============================

A network written in NumPy learns real handwritten digits: what the optimizer step costs.

It is trained twice, by the library and by RMSProp as people write it in NumPy, with the same result to the bit.

Run `python examples/digits.py`; it prints the accuracy on held-out digits and saves a figure, digits.png.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from dense import Params, accuracy, backward, forward, init_params, load_digits_split, softmax_loss
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

LR, RHO, EPS = 2e-3, 0.9, 1e-8


class PlainNumPy:
    """RMSProp as people write it, in the order of operations of the library, so that the bits can be compared."""

    def __init__(self, params: Params) -> None:
        self.square_avg = [{key: np.zeros_like(array) for key, array in layer.items()} for layer in params]

    def step(self, params: Params, grads: Params, lr: float) -> None:
        """Update `params` in place."""
        for p, g, v in zip(params, grads, self.square_avg, strict=True):
            for key in p:
                v[key] = RHO * v[key] + (1 - RHO) * g[key] * g[key]
                p[key] -= lr * g[key] / (np.sqrt(v[key]) + EPS)


class Native:
    """The same step by the library."""

    def __init__(self, params: Params) -> None:
        self.state = rms.init(params, rho=RHO, eps=EPS)

    def step(self, params: Params, grads: Params, lr: float) -> None:
        """Update `params` in place."""
        rms.update_(params, grads, self.state, lr=lr)


def train(epochs: int, batch: int = 32) -> dict[str, Any]:
    """Train two networks side by side, alike but for who takes the step; each step comes right after its backprop."""
    x_train, x_test, y_train, y_test = load_digits_split()
    nets = [init_params([64, 128, 64, 10], np.random.default_rng(0)) for _ in range(2)]
    optimizers: list[Native | PlainNumPy] = [Native(nets[0]), PlainNumPy(nets[1])]
    rng = np.random.default_rng(1)
    losses, accuracies, times = [], [], []
    progress = tqdm(range(epochs), desc="training", unit="epoch")
    for epoch in progress:
        lr = LR * (1 - epoch / epochs)
        order = rng.permutation(len(x_train))
        batch_losses = []
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            took, of_nets = [], []
            for params, optimizer in zip(nets, optimizers, strict=True):
                activations = forward(params, x_train[rows])
                loss, grad = softmax_loss(activations[-1], y_train[rows])
                grads = backward(params, activations, grad)
                before = time.perf_counter_ns()
                optimizer.step(params, grads, lr)
                took.append(time.perf_counter_ns() - before)
                of_nets.append(loss)
            times.append(took)
            batch_losses.append(of_nets)
        losses.append(np.mean(batch_losses, axis=0))
        accuracies.append([accuracy(net, x_test, y_test) for net in nets])
        progress.set_postfix(loss=f"{losses[-1][0]:.4f}", accuracy=f"{accuracies[-1][0]:.1%}")
    ours, theirs = np.median(times, axis=0)
    same = all(np.array_equal(a[key], b[key]) for a, b in zip(*nets, strict=True) for key in a)
    return {"losses": losses, "accuracies": accuracies, "ours": ours / 1e3, "theirs": theirs / 1e3, "same": same}


def plot(result: dict[str, Any], path: Path) -> None:
    """Loss and accuracy of both networks, and the time of a step."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    epochs = range(1, len(result["losses"]) + 1)
    losses, accuracies = np.array(result["losses"]), 100 * np.array(result["accuracies"])
    for net, name, style in (
        (1, "plain NumPy", {"color": "C7", "linewidth": 5}),
        (0, "rmsprop_native", {"color": "C0"}),
    ):
        left.semilogy(epochs, losses[:, net], label=name, **style)
        middle.plot(epochs, accuracies[:, net], label=name, **style)
    same = "the same to the bit" if result["same"] else "not the same"
    left.set(title=f"training loss: {same}", xlabel="epoch", ylabel="cross-entropy")
    left.legend()
    middle.set(title="accuracy on held-out digits", xlabel="epoch", ylabel="%")
    bars = right.bar(["plain NumPy", "rmsprop_native"], [result["theirs"], result["ours"]], color=["C7", "C0"])
    right.bar_label(bars, fmt="%.1f µs", padding=3)
    right.margins(y=0.15)
    ratio = result["theirs"] / result["ours"]
    right.set(title=f"one optimizer step: {ratio:.1f} times as fast", ylabel="µs, median")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--figure", type=Path, default=Path("digits.png"))
    arguments = parser.parse_args(argv)

    result = train(arguments.epochs)
    plot(result, arguments.figure)
    print(f"test accuracy: {100 * result['accuracies'][-1][0]:.1f} %")
    print(
        f"optimizer step: {result['ours']:.1f} µs, in plain NumPy {result['theirs']:.1f} µs: "
        f"{result['theirs'] / result['ours']:.1f} times as long (medians)"
    )
    print(f"trained parameters the same to the bit: {'yes' if result['same'] else 'no'}")
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
