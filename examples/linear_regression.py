"""
Bias correction
===============

One weight, samples streaming in one at a time, with and without bias correction.

Without it the running mean of squares starts from 0 and is too small at first, so that the first steps are up to
1 / sqrt(1 - rho) times as long.

Run `python examples/linear_regression.py`; it saves a figure, linear_regression.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

TRUE_WEIGHT, LR, RHO = 2.0, 0.02, 0.99


def stream(samples: int, bias_correction: bool) -> list[float]:
    """The weight after each sample of y = 2 x + noise, from 0."""
    rng = np.random.default_rng(3)
    weight = np.zeros(1)
    state = rms.init(weight, lr=LR, rho=RHO, bias_correction=bias_correction)
    weights = []
    for _ in tqdm(range(samples), desc=f"bias_correction={bias_correction}", unit="sample"):
        x = rng.standard_normal()
        y = TRUE_WEIGHT * x + 0.1 * rng.standard_normal()
        rms.update_(weight, 2 * (weight * x - y) * x, state)  # the gradient of the squared error
        weights.append(float(weight[0]))
    return weights


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--figure", type=Path, default=Path("linear_regression.png"))
    arguments = parser.parse_args(argv)

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for bias_correction in (False, True):
        weights = stream(arguments.samples, bias_correction)
        samples = range(1, len(weights) + 1)
        left.plot(samples, weights, label=f"bias_correction={bias_correction}")
        steps = np.abs(np.diff(weights, prepend=0.0))
        # The mean of squares of the steps so far, since a single step follows its sample.
        right.plot(samples, np.sqrt(np.cumsum(steps**2) / samples) / LR)
        print(f"bias_correction={bias_correction}: first step {weights[0]:.4f}, last weight {weights[-1]:.3f}")
    left.axhline(TRUE_WEIGHT, color="C7", linestyle=":", label="true weight")
    left.set(title="one weight, one sample a step", xlabel="samples seen", ylabel="weight", xscale="log")
    left.legend()
    right.axhline(1, color="C7", linestyle=":")
    right.axhline(1 / np.sqrt(1 - RHO), color="C7", linestyle=":")
    right.text(arguments.samples, 1, "lr", ha="right", va="bottom")
    right.text(arguments.samples, 1 / np.sqrt(1 - RHO), "lr / sqrt(1 - rho)", ha="right", va="bottom")
    right.set(title="what it is for: no first steps of ten times lr", xscale="log", yscale="log", ylim=(0.3, 15))
    right.set(xlabel="samples seen", ylabel="length of the steps so far (r.m.s.), over lr")
    figure.savefig(arguments.figure, dpi=120)
    plt.close(figure)
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
