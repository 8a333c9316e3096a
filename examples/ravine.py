"""
A narrow valley
===============

The paths of SGD with a small and a large learning rate, and of RMSProp.

Run `python examples/ravine.py`; it saves a figure, ravine.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

CURVATURE = np.array([1.0, 60.0])  # flat along the valley, steep across it
START = np.array([-9.0, 1.2])
LR_SMALL, LR_LARGE, LR_RMSPROP = 0.004, 0.0328, 0.2  # SGD diverges from 2 / 60 = 0.0333 on


def sgd(steps: int, lr: float) -> NDArray[np.float64]:
    """The points that gradient descent visits."""
    x, path = START.copy(), [START]
    for _ in tqdm(range(steps), desc=f"SGD, lr {lr}", unit="step"):
        x = x - lr * CURVATURE * x
        path.append(x)
    return np.array(path)


def rmsprop(steps: int, lr: float) -> NDArray[np.float64]:
    """The points that RMSProp visits."""
    x, path = START.copy(), [START]
    state = rms.init(x, lr=lr, rho=0.9, bias_correction=True)
    for _ in tqdm(range(steps), desc=f"RMSProp, lr {lr}", unit="step"):
        rms.update_(x, CURVATURE * x, state)
        path.append(x.copy())
    return np.array(path)


def draw(axes: Any, path: NDArray[np.float64], title: str) -> None:
    """Draw a path over the level lines of the loss."""
    x, y = np.meshgrid(np.linspace(-10, 2, 200), np.linspace(-1.6, 1.6, 200))
    loss = (CURVATURE[0] * x**2 + CURVATURE[1] * y**2) / 2
    axes.contour(x, y, loss, levels=np.geomspace(0.3, 120, 12), colors="#b8c4d0", linewidths=0.8)
    axes.plot(*path.T, "o-", color="#0b5cad", markersize=2.5, linewidth=1)
    axes.plot(*path[0], "o", color="#c2571a", markersize=6)
    axes.plot(0, 0, "*", color="#2a8a4a", markersize=11)
    axes.set(title=title, xlabel="flat direction", xlim=(-10, 2), ylim=(-1.6, 1.6))


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, take the steps, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--figure", type=Path, default=Path("ravine.png"))
    arguments = parser.parse_args(argv)

    steps = arguments.steps
    paths = {
        f"SGD, lr = {LR_SMALL}": sgd(steps, LR_SMALL),
        f"SGD, lr = {LR_LARGE}": sgd(steps, LR_LARGE),
        f"RMSProp, lr = {LR_RMSPROP}": rmsprop(steps, LR_RMSPROP),
    }
    plt.rcParams["font.size"] = 9
    figure, grid = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
    for axes, (name, path) in zip(grid, paths.items(), strict=True):
        draw(axes, path, name)
        loss = float(path[-1] @ (CURVATURE * path[-1]) / 2)
        print(f"{name}: loss {loss:.4f} after {steps} steps")
    grid[0].set_ylabel("steep direction")
    grid[0].text(*(START + np.array([0.3, 0.12])), "start", color="#c2571a")
    grid[0].text(0.1, 0.2, "minimum", color="#2a8a4a", ha="center")
    figure.savefig(arguments.figure, dpi=160)
    plt.close(figure)
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
