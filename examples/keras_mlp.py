"""
Keras, and NumPy beside it
==========================

The same network trained in NumPy with the "keras" preset and, where Keras is installed, in Keras beside it.

A 20-64-64-1 network of dense layers on random data, from the same weights and with the same batches: the two loss
curves coincide.

Run `python examples/keras_mlp.py` (with KERAS_BACKEND=torch or another); it saves a figure, keras_mlp.png.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from dense import Array, Params, backward, forward, init_params, sigmoid_loss
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

SIZES = [20, 64, 64, 1]
LR, BATCH = 0.001, 32


def batches(epochs: int, count: int) -> list[list[Any]]:
    """For each epoch the rows of each batch, shuffled."""
    rng = np.random.default_rng(2)
    return [np.split(rng.permutation(count), range(BATCH, count, BATCH)) for _ in range(epochs)]


def train_numpy(params: Params, x: Array, y: Array, plan: list[list[Any]]) -> list[float]:
    """The mean loss of each epoch, trained with this library."""
    state = rms.init(params, preset="keras", lr=LR)
    losses = []
    for epoch in tqdm(plan, desc="NumPy", unit="epoch"):
        total = 0.0
        for rows in epoch:
            activations = forward(params, x[rows])
            loss, grad = sigmoid_loss(activations[-1], y[rows])
            rms.update_(params, backward(params, activations, grad), state)
            total += loss * len(rows)
        losses.append(total / len(x))
    return losses


def train_keras(params: Params, x: Array, y: Array, plan: list[list[Any]]) -> list[float]:
    """The same in Keras."""
    import keras

    model = keras.Sequential([keras.Input((SIZES[0],))])
    for width, activation in zip(SIZES[1:], ["relu", "relu", "sigmoid"], strict=True):
        model.add(keras.layers.Dense(width, activation))
    model.set_weights([array for layer in params for array in (layer["w"], layer["b"])])
    model.compile(optimizer=keras.optimizers.RMSprop(learning_rate=LR), loss="binary_crossentropy")
    losses = []
    for epoch in tqdm(plan, desc="Keras", unit="epoch"):
        total = 0.0
        for rows in epoch:
            total += float(model.train_on_batch(x[rows], y[rows])) * len(rows)
            model.reset_metrics()  # what it returns is a mean since the last reset
        losses.append(total / len(x))
    return losses


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--figure", type=Path, default=Path("keras_mlp.png"))
    parser.add_argument("--without-keras", action="store_true", help="train in NumPy only")
    arguments = parser.parse_args(argv)

    rng = np.random.default_rng(1)
    x = rng.random((1000, SIZES[0]), np.float32)
    y = rng.integers(0, 2, (1000, 1)).astype(np.float32)
    plan = batches(arguments.epochs, len(x))
    params = init_params(SIZES, rng)
    start = [{key: array.copy() for key, array in layer.items()} for layer in params]

    curves = {"NumPy with rmsprop_native": train_numpy(params, x, y, plan)}
    if importlib.util.find_spec("keras") and not arguments.without_keras:
        os.environ.setdefault("KERAS_BACKEND", "torch")
        curves["Keras"] = train_keras(start, x, y, plan)

    figure, (axes, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = range(1, arguments.epochs + 1)
    for (name, losses), style in zip(curves.items(), ["-", "k--"], strict=False):
        axes.plot(epochs, losses, style, label=name, linewidth=5 if style == "-" else 1.5)
    axes.set(title="20-64-64-1 on random labels", xlabel="epoch", ylabel="binary cross-entropy")
    axes.legend()
    if "Keras" in curves:
        ours, theirs = map(np.array, curves.values())
        right.semilogy(epochs, np.abs(ours - theirs) / theirs, "o-")
        right.axhline(np.finfo(np.float32).eps, color="C7", linestyle=":", label="epsilon of float32")
        right.legend()
    else:
        right.text(0.5, 0.5, "Keras is not installed, or was left out", ha="center", transform=right.transAxes)
    right.set(title="difference of the two curves", xlabel="epoch", ylabel="relative difference")
    figure.savefig(arguments.figure, dpi=120)
    plt.close(figure)

    for name, losses in curves.items():
        print(f"final loss, {name}: {losses[-1]:.6f}")
    if len(curves) == 2:
        ours, theirs = map(np.array, curves.values())
        print(f"largest difference of the losses: {np.abs(ours - theirs).max():.1e}")
    else:
        print("without Keras there is nothing to compare with")
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
