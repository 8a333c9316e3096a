"""
What rho does
=============

How the running root mean square follows noisy gradients that suddenly become ten times as large.

Run `python examples/rho.py`; it saves a figure, rho.png.
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

RHOS = {0.5: "#c2571a", 0.9: "#0b5cad", 0.99: "#2a8a4a"}
STEPS, GROWTH = 600, 10.0


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, take the steps, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=Path("rho.png"))
    arguments = parser.parse_args(argv)

    grads = np.random.default_rng(1).standard_normal(STEPS)
    grads[STEPS // 2 :] *= GROWTH

    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(8, 6.5), sharex=True, layout="constrained")
    top.plot(grads, color="#777777", linewidth=0.7)
    top.set(title="gradient of one parameter")
    for rho, color in RHOS.items():
        param = np.zeros(1)
        state = rms.init(param, lr=1.0, rho=rho, bias_correction=True)
        params, squares = [0.0], []
        for grad in tqdm(grads, desc=f"rho {rho}", unit="step"):
            rms.update_(param, np.array([grad]), state)
            params.append(float(param[0]))
            squares.append(float(state.square_avg[0]) / (1 - rho**state.step))
        middle.semilogy(np.sqrt(squares), color=color, linewidth=1.2, label=f"rho = {rho}")
        lengths = np.abs(np.diff(params))
        # Over 15 steps, since a single step follows its own gradient.
        smooth = np.sqrt(np.convolve(lengths**2, np.ones(15) / 15, mode="same"))
        bottom.plot(smooth, color=color, linewidth=1.2)
        late = int(np.argmax(np.sqrt(squares[STEPS // 2 :]) > GROWTH / 2))
        print(f"rho {rho}: half of the new size reached after {late} steps, longest step {lengths.max():.2f} lr")
    middle.set(title="root of the running mean of squares")
    middle.legend(loc="lower right")
    bottom.axhline(1, color="#999999", linestyle=":")
    bottom.set(title="length of the steps over lr (r.m.s. of 15 steps)", xlabel="step")
    figure.savefig(arguments.figure, dpi=130)
    plt.close(figure)
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
