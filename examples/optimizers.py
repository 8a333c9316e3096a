"""
Six optimizers, each tuned
==========================

RMSProp against SGD, momentum, AdaGrad, Adadelta and Adam on handwritten digits, over several seeds.

Each rule trains the same network for the same time with every learning rate of a grid. After tuning they end close
together in accuracy; what differs is how fast the training loss falls and how many rates do well.

Run `python examples/optimizers.py`; it saves a figure, optimizers.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from dense import Array, Params, accuracy, backward, forward, init_params, load_digits_split, softmax_loss
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

BATCH = 32
Step = Callable[[Params, Params, float], None]


def rmsprop(params: Params, **options: Any) -> Step:
    """RMSProp by the library; with rho = 0.999 and bias correction it is Adam without its first moment."""
    state = rms.init(params, **options)

    def step(params: Params, grads: Params, lr: float) -> None:
        rms.update_(params, grads, state, lr=lr)

    return step


def rule(buffers: int, change: Callable[..., Array]) -> Callable[[Params], Step]:
    """A rule in NumPy: what is subtracted from an array, of its gradient, lr, the step and what it remembers."""

    def make(params: Params) -> Step:
        memory = [{key: [np.zeros_like(p) for _ in range(buffers)] for key, p in layer.items()} for layer in params]
        taken = 0

        def step(params: Params, grads: Params, lr: float) -> None:
            nonlocal taken
            taken += 1
            for layer, of_layer, kept in zip(params, grads, memory, strict=True):
                for key in layer:
                    layer[key] -= change(of_layer[key], np.float32(lr), taken, *kept[key])

        return step

    return make


def momentum(g: Array, lr: float, t: int, b: Array) -> Array:
    """Heavy-ball momentum of 0.9."""
    b[...] = 0.9 * b + g
    return lr * b


def adagrad(g: Array, lr: float, t: int, total: Array) -> Array:
    """Duchi, Hazan and Singer (2011)."""
    total += g * g
    return lr * g / (np.sqrt(total) + 1e-8)


def adadelta(g: Array, lr: float, t: int, v: Array, d: Array) -> Array:
    """Zeiler (2012), with a learning rate, which is 1 in the paper."""
    v[...] = 0.9 * v + 0.1 * g * g
    u = g * np.sqrt((d + 1e-6) / (v + 1e-6))
    d[...] = 0.9 * d + 0.1 * u * u
    return lr * u


def adam(g: Array, lr: float, t: int, m: Array, v: Array) -> Array:
    """Kingma and Ba (2015)."""
    m[...] = 0.9 * m + 0.1 * g
    v[...] = 0.999 * v + 0.001 * g * g
    update: Array = lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return update


# For each rule how to make it, and the middle of its grid of learning rates.
RULES: dict[str, tuple[Callable[[Params], Step], float]] = {
    "SGD": (rule(0, lambda g, lr, t: lr * g), 0.3),
    "momentum": (rule(1, momentum), 0.03),
    "AdaGrad": (rule(1, adagrad), 0.03),
    "Adadelta": (rule(2, adadelta), 3.0),
    "RMSProp": (rmsprop, 0.003),
    "Adam": (rule(2, adam), 0.003),
}


def train(name: str, lr: float, seed: int, epochs: int, data: Any) -> tuple[list[float], float]:
    """The mean loss of each epoch, and the accuracy on held-out digits at the end."""
    x_train, x_test, y_train, y_test = data
    rng = np.random.default_rng(seed)
    params = init_params([64, 64, 10], rng)
    step = RULES[name][0](params)
    losses = []
    for epoch in range(epochs):
        batch_losses = []
        for rows in np.split(rng.permutation(len(x_train)), range(BATCH, len(x_train), BATCH)):
            activations = forward(params, x_train[rows])
            loss, grad = softmax_loss(activations[-1], y_train[rows])
            step(params, backward(params, activations, grad), lr * (1 - epoch / epochs))
            batch_losses.append(loss)
        losses.append(float(np.mean(batch_losses)))
    return losses, accuracy(params, x_test, y_test)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=int, default=9, help="how many learning rates, over four decades")
    parser.add_argument("--figure", type=Path, default=Path("optimizers.png"))
    arguments = parser.parse_args(argv)

    data = load_digits_split()
    factors = np.geomspace(0.01, 100, arguments.rates)
    seeds = range(arguments.seeds)
    total = len(RULES) * len(factors) * len(seeds)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    with (
        tqdm(total=total, desc="training", unit="network") as progress,
        np.errstate(all="ignore"),
    ):  # rates that diverge
        for name, (_, middle) in RULES.items():
            runs: list[Any] = []
            for factor in factors:
                runs.append([])
                for seed in seeds:
                    runs[-1].append(train(name, middle * factor, seed, arguments.epochs, data))
                    progress.update()
            losses = np.nan_to_num([[of_seed[0] for of_seed in rate] for rate in runs], nan=10, posinf=10)
            accuracies = 100 * np.array([[of_seed[1] for of_seed in rate] for rate in runs])
            best = int(losses[:, :, -1].mean(axis=1).argmin())
            width = 3 if name == "RMSProp" else 1.5
            (line,) = left.semilogy(
                range(1, arguments.epochs + 1), losses[best].mean(axis=0), label=name, linewidth=width
            )
            low, high = losses[best].min(axis=0), losses[best].max(axis=0)
            left.fill_between(range(1, arguments.epochs + 1), low, high, color=line.get_color(), alpha=0.15)
            right.semilogx(factors, accuracies.mean(axis=1), "o-", color=line.get_color(), linewidth=width, label=name)
            good = accuracies.mean(axis=1) >= 96
            print(
                f"{name}: best lr {middle * factors[best]:.2g}, last loss {losses[best, :, -1].mean():.4f}, "
                f"test accuracy {accuracies[best].mean():.1f} +- {accuracies[best].std():.1f} %, "
                f"{good.sum()} of {len(factors)} rates reach 96 %"
            )
    left.set(
        title="at the best learning rate of each", xlabel="epoch", ylabel="training loss (mean and range of seeds)"
    )
    left.legend()
    right.set(
        title="over all rates",
        xlabel="learning rate, over the middle of its grid",
        ylabel="accuracy on held-out digits, %",
    )
    right.set_ylim(80, 99)
    figure.savefig(arguments.figure, dpi=120)
    plt.close(figure)
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
