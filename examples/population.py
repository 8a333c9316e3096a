"""
A thousand networks in one array
================================

Small networks with a learning rate each: the whole curve of rates from one run.

The weights of all networks are one array with the networks along its first axis; `overrides` takes their rates as an
array that broadcasts to it, and one call steps them all.

Run `python examples/population.py`; it saves a figure, population.png.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from dense import Array, load_digits_split
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

HIDDEN, BATCH = 16, 32


def init_networks(networks: int, rng: np.random.Generator) -> dict[str, Array]:
    """Weights (networks, inputs, outputs) and biases (networks, 1, outputs), float32; all start alike."""
    start = {"w1": (64, HIDDEN), "w2": (HIDDEN, 10)}
    params = {}
    for name, shape in start.items():
        one = (rng.standard_normal(shape) * np.sqrt(2 / shape[0])).astype(np.float32)
        params[name] = np.repeat(one[None], networks, axis=0)
        params[name.replace("w", "b")] = np.zeros((networks, 1, shape[1]), np.float32)
    return params


def forward(params: Any, x: Array) -> tuple[Array, Array]:
    """The hidden activations and the logits of x (batch, 64), for each network."""
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    return hidden, hidden @ params["w2"] + params["b2"]


def gradients(params: Any, x: Array, labels: Any) -> dict[str, Array]:
    """Of the mean cross-entropy of each network."""
    hidden, logits = forward(params, x)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    p[:, np.arange(len(labels)), labels] -= 1
    p /= np.float32(len(labels))
    back = (p @ params["w2"].transpose(0, 2, 1)) * (hidden > 0)
    return {
        "w1": x.T @ back,
        "b1": back.sum(axis=1, keepdims=True),
        "w2": hidden.transpose(0, 2, 1) @ p,
        "b2": p.sum(axis=1, keepdims=True),
    }


def train(rates: Array, epochs: int, rho: float, data: Any) -> tuple[Array, float]:
    """The accuracy of each network on held-out digits, and the median time of a step of all in milliseconds."""
    x_train, x_test, y_train, y_test = data
    rng = np.random.default_rng(0)
    params = init_networks(len(rates), rng)
    state = rms.init(params, rho=rho, overrides={"*": {"lr": rates[:, None, None]}})
    times = []
    with tqdm(total=epochs, desc=f"{len(rates)} networks, rho {rho}", unit="epoch") as progress:
        for _ in range(epochs):
            for rows in np.split(rng.permutation(len(x_train)), range(BATCH, len(x_train), BATCH)):
                grads = gradients(params, x_train[rows], y_train[rows])
                start = time.perf_counter_ns()
                rms.update_(params, grads, state)
                times.append(time.perf_counter_ns() - start)
            progress.update()
    found = forward(params, x_test)[1].argmax(axis=-1)
    return (found == y_test).mean(axis=1), float(np.median(times)) / 1e6


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--figure", type=Path, default=Path("population.png"))
    arguments = parser.parse_args(argv)

    data = load_digits_split()
    rates = np.geomspace(1e-5, 1, arguments.networks)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for rho in (0.5, 0.9, 0.99):
        accuracies, took = train(rates, arguments.epochs, rho, data)
        axes.semilogx(rates, 100 * accuracies, ".", markersize=3, label=f"rho = {rho}")
        best = int(accuracies.argmax())
        good = rates[accuracies >= accuracies.max() - 0.01]
        print(
            f"rho {rho}: {100 * accuracies[best]:.1f} % at lr {rates[best]:.2g}; within 1 % of it from "
            f"{good.min():.2g} to {good.max():.2g}; a step of all networks {took:.2f} ms"
        )
    axes.set(
        title=f"{arguments.networks} networks of digits from the same weights, a learning rate each",
        xlabel="learning rate", ylabel=f"accuracy on held-out digits after {arguments.epochs} epochs, %",
    )  # fmt: skip
    axes.legend(markerscale=4)
    figure.savefig(arguments.figure, dpi=120)
    plt.close(figure)
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
