"""
Handwritten digits, in torch
============================

A network learns them by torch.optim.RMSprop and by its drop-in: curves, share of the step.

The rules are the same, their rounding is not. In float32 a difference in the last place may turn a ReLU on in one
network and not in the other, from where they go apart; that the small network is trained in float64 too shows it.

Install what it needs with `pip install torch scikit-learn matplotlib tqdm`; torch for the CPU is enough. Run
`python examples/torch_mlp.py`; it prints what share of the training loop the optimizer's step has, for a small network
and for a wide one, and saves a figure, torch_mlp.png.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from dense import load_digits_split
from optimizer_share import COLORS, StepClock, draw_bars, table
from torch import nn
from tqdm import tqdm

from rmsprop_native.interop.torch import RMSprop

mpl.use("Agg")
import matplotlib.pyplot as plt

LR, BATCH = 5e-4, 32
SMALL, WIDE = [64, 128, 64, 10], [64, 1024, 1024, 10]


class Contender:
    """A network, alike for all at the start, and who takes its steps."""

    def __init__(self, sizes: list[int], dtype: Any, optimizer_class: Any, **options: Any) -> None:
        torch.manual_seed(0)
        layers: list[Any] = []
        for n_in, n_out in itertools.pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1]).to(dtype)
        self.optimizer = optimizer_class(self.model.parameters(), lr=LR, **options)
        self.clock = StepClock(self.optimizer)
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    def train(self, x: Any, y: Any, batches: list[Any]) -> None:
        """One epoch."""
        total = 0.0
        with self.clock.round():
            for rows in batches:
                self.optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.model(x[rows]), y[rows])
                loss.backward()
                self.optimizer.step()
                total += loss.item()
        self.losses.append(total / len(batches))

    def test(self, x: Any, y: Any) -> None:
        """The share of held-out digits that are recognised."""
        with torch.no_grad():
            self.accuracies.append((self.model(x).argmax(dim=1) == y).float().mean().item())


def train(sizes: list[int], dtype: Any, epochs: int, progress: tqdm[None]) -> dict[str, Contender]:
    """Train networks of these sizes by each optimizer, which take turns epoch by epoch on the same batches."""
    x_train, x_test, y_train, y_test = map(torch.from_numpy, load_digits_split())
    x_train, x_test = x_train.to(dtype), x_test.to(dtype)
    contenders = {
        "torch": Contender(sizes, dtype, torch.optim.RMSprop),
        "torch, foreach": Contender(sizes, dtype, torch.optim.RMSprop, foreach=True),
        "rmsprop_native": Contender(sizes, dtype, RMSprop),
    }
    rng = np.random.default_rng(1)
    for _ in range(epochs):
        batches = list(torch.from_numpy(rng.permutation(len(x_train))).split(BATCH))
        for contender in contenders.values():
            contender.train(x_train, y_train, batches)
            contender.test(x_test, y_test)
        progress.update()
    return contenders


def largest_difference(contenders: dict[str, Contender]) -> tuple[float, float]:
    """Between the trained parameters of torch and ours; and the largest parameter."""
    theirs, ours = [
        nn.utils.parameters_to_vector(contenders[name].model.parameters()).detach()
        for name in ("torch", "rmsprop_native")
    ]
    return (ours - theirs).abs().max().item(), theirs.abs().max().item()


def plot(small: dict[str, Contender], wide: dict[str, Contender], path: Path) -> None:
    """Loss and accuracy of the small network; the time of an update of both."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 6), layout="constrained", height_ratios=[3, 2])
    for name, style, width in (("torch", "-", 4.0), ("rmsprop_native", "--", 1.5)):
        contender = small[name]
        epochs = range(1, len(contender.losses) + 1)
        color = "0.7" if name == "torch" else COLORS[name]
        axes[0, 0].semilogy(epochs, contender.losses, style, color=color, linewidth=width, label=name)
        accuracies = [100 * accuracy for accuracy in contender.accuracies]
        axes[0, 1].plot(epochs, accuracies, style, color=color, linewidth=width, label=name)
    axes[0, 0].set(title=f"training loss, {'-'.join(map(str, SMALL))}", xlabel="epoch", ylabel="cross-entropy")
    axes[0, 1].set(title="accuracy on held-out digits", xlabel="epoch", ylabel="%")
    axes[0, 0].legend(frameon=False)
    for place, contenders, sizes in ((axes[1, 0], small, SMALL), (axes[1, 1], wide, WIDE)):
        clocks = {name: contender.clock for name, contender in contenders.items()}
        draw_bars(place, clocks, f"one update, {'-'.join(map(str, sizes))}, batch {BATCH}")
    for each in axes[0]:
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="of torch, which the step follows")
    parser.add_argument("--figure", type=Path, default=Path("torch_mlp.png"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)

    with tqdm(total=3 * arguments.epochs, desc="training", unit="epoch") as progress:
        small, wide, double = (
            train(sizes, dtype, arguments.epochs, progress)
            for sizes, dtype in ((SMALL, torch.float32), (WIDE, torch.float32), (SMALL, torch.float64))
        )
    plot(small, wide, arguments.figure)
    for sizes, dtype, contenders in ((SMALL, "float32", small), (WIDE, "float32", wide), (SMALL, "float64", double)):
        print(f"{'-'.join(map(str, sizes))}, {dtype}, batch {BATCH}")
        print(table({name: contender.clock for name, contender in contenders.items()}))
        for name, contender in contenders.items():
            print(f"{name}: last loss {contender.losses[-1]:.6f}, accuracy {100 * contender.accuracies[-1]:.1f} %")
        difference, largest = largest_difference(contenders)
        print(f"largest difference of the parameters: {difference:.1e}; the largest parameter is {largest:.2f}")
        print()
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
