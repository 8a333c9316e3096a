"""
Training with different rho
===========================

How training on handwritten digits depends on rho, the factor by which squared gradients are forgotten.

Run `python examples/forgetting_factor.py`; it saves a figure, forgetting_factor.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from dense import accuracy, backward, forward, init_params, load_digits_split, softmax_loss
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

RHOS = (0.5, 0.9, 0.99, 0.999)


def train(rho: float, epochs: int, progress: tqdm[None]) -> tuple[list[float], float]:
    """The mean loss of each epoch, and the accuracy on held-out digits at the end."""
    x_train, x_test, y_train, y_test = load_digits_split()
    params = init_params([64, 64, 10], np.random.default_rng(0))
    state = rms.init(params, lr=1e-3, rho=rho)
    rng = np.random.default_rng(1)
    losses = []
    for _ in range(epochs):
        batch_losses = []
        for rows in np.split(rng.permutation(len(x_train)), range(32, len(x_train), 32)):
            activations = forward(params, x_train[rows])
            loss, grad = softmax_loss(activations[-1], y_train[rows])
            rms.update_(params, backward(params, activations, grad), state)
            batch_losses.append(loss)
        losses.append(float(np.mean(batch_losses)))
        progress.update()
    return losses, accuracy(params, x_test, y_test)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--figure", type=Path, default=Path("forgetting_factor.png"))
    arguments = parser.parse_args(argv)

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    with tqdm(total=len(RHOS) * arguments.epochs, desc="training", unit="epoch") as progress:
        results = {rho: train(rho, arguments.epochs, progress) for rho in RHOS}
    for rho, (losses, test_accuracy) in results.items():
        axes.semilogy(range(1, len(losses) + 1), losses, label=f"rho = {rho}")
        print(f"rho {rho}: last loss {losses[-1]:.4f}, test accuracy {100 * test_accuracy:.1f} %")
    axes.set(title="digits: training loss by forgetting factor", xlabel="epoch", ylabel="cross-entropy")
    axes.legend()
    figure.savefig(arguments.figure, dpi=120)
    plt.close(figure)
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
