"""
Several processes, over MPI
===========================

A network learns handwritten digits in several processes, each with a part of every batch and of the state.

Every rank has the same parameters, to the bit, after every step.

Run `mpiexec -n 2 python examples/mpi_digits.py`, with mpi4py and an MPI such as the wheel mpich; it prints the accuracy
on held-out digits and what each rank keeps, and saves a figure, mpi_digits.png.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from dense import Params, accuracy, backward, forward, init_params, load_digits_split, softmax_loss
from mpi4py import MPI
from tqdm import tqdm

from rmsprop_native.interop import mpi

mpl.use("Agg")
import matplotlib.pyplot as plt

COMM = MPI.COMM_WORLD
BATCH = 48  # images of all ranks together: for 1, 2, 3 or 4 of them


def train(epochs: int, folder: Path | None) -> tuple[Params, mpi.ShardedState, list[float]]:
    """Train the network; with a `folder`, save a checkpoint there after each epoch."""
    x, _, y, _ = load_digits_split()
    params = init_params([64, 128, 64, 10], np.random.default_rng(0))  # the same in every rank
    state = mpi.init(params, comm=COMM, lr=lambda taken: 2e-3 / (1 + taken / 300), clip_global_norm=5.0)
    rng = np.random.default_rng(1)
    losses = []
    for _ in tqdm(range(epochs), desc="training", unit="epoch", disable=COMM.rank > 0):
        order = rng.permutation(len(x))
        of_epoch = []
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH][COMM.rank :: COMM.size]
            activations = forward(params, x[rows])
            loss, grad = softmax_loss(activations[-1], y[rows])
            mpi.update_(params, backward(params, activations, grad), state)
            of_epoch.append(loss)
        losses.append(COMM.allreduce(float(np.mean(of_epoch))) / COMM.size)
        if folder is not None:
            mpi.save(folder, state)
    return params, state, losses


def plot(losses: list[float], kept: list[int], path: Path) -> None:
    """The loss, and the bytes of running means in each rank."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.semilogy(range(1, len(losses) + 1), losses)
    left.set(title="training loss, mean of all ranks", xlabel="epoch", ylabel="cross-entropy")
    bars = right.bar([f"rank {rank}" for rank in range(len(kept))], [count / 1024 for count in kept])
    right.bar_label(bars, fmt="%.1f KiB", padding=3)
    right.margins(y=0.15)
    right.set(title="running means kept in each rank", ylabel="KiB")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--checkpoint", type=Path, help="a folder for checkpoints")
    parser.add_argument("--figure", type=Path, default=Path("mpi_digits.png"))
    arguments = parser.parse_args(argv)
    params, state, losses = train(arguments.epochs, arguments.checkpoint)
    bits: list[Any] = COMM.allgather(zlib.crc32(b"".join(a.tobytes() for layer in params for a in layer.values())))
    kept: list[int] = COMM.allgather(state.nbytes)
    if COMM.rank == 0:
        _, x_test, _, y_test = load_digits_split()
        plot(losses, kept, arguments.figure)
        print(f"{COMM.size} ranks, {state.step} steps; loss {losses[-1]:.4f}")
        print(f"accuracy on held-out digits: {accuracy(params, x_test, y_test):.1%}")
        print(f"parameters the same to the bit in all ranks: {'yes' if len(set(bits)) == 1 else 'no'}")
        print(f"bytes of running means: {', '.join(map(str, kept))} of {sum(kept)}")
        print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
