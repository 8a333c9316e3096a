"""
Killed, and continued
=====================

Training that is killed, by kill -9, and continues from its checkpoint: the same to the bit as without.

Run `python examples/resume.py`; it saves a figure, resume.png.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from dense import Params, backward, forward, init_params, load_digits_split, softmax_loss
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

BATCH, EVERY = 32, 15  # images in a batch; batches from one checkpoint to the next


def schedule(taken: int) -> float:
    """The learning rate after so many steps. A file cannot hold a function: it is given again at load."""
    return 2e-3 / (1 + taken / 300)


def save_checkpoint(folder: Path, done: int, params: Params, state: rms.State, losses: list[float]) -> None:
    """Save the parameters, then the state: where there is a state, there are its parameters. Older files go last."""
    arrays: dict[str, Any] = {f"{key}{i}": array for i, layer in enumerate(params) for key, array in layer.items()}
    with open(folder / f"params-{done}.npz", "wb") as file:
        np.savez(file, losses=np.array(losses), **arrays)
        file.flush()
        os.fsync(file.fileno())
    rms.save(folder / f"state-{done}.npz", state)
    for path in folder.glob("*-*.npz"):
        if path.stem.partition("-")[2] != str(done):
            path.unlink()


def load_checkpoint(folder: Path) -> tuple[int, Params, rms.State, list[float]] | None:
    """What `save_checkpoint` saved last, if anything."""
    found = [int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(r"state-(\d+)\.npz", path.name))]
    if not found:
        return None
    done = max(found)
    with np.load(folder / f"params-{done}.npz") as saved:
        params = [{key: saved[f"{key}{i}"] for key in ("w", "b")} for i in range(3)]
        losses = saved["losses"].tolist()
    return done, params, rms.load(folder / f"state-{done}.npz", lr=schedule), losses


def train(folder: Path, batches: int) -> None:
    """Train from where the checkpoint in `folder` says; print the number of batches at each checkpoint."""
    x, _, y, _ = load_digits_split()
    saved = load_checkpoint(folder)
    if saved is None:
        params = init_params([64, 128, 64, 10], np.random.default_rng(0))
        # A step takes two batches, so that every second checkpoint is in the middle of one.
        state = rms.init(params, lr=schedule, momentum=0.5, accumulate=2, ema=0.99)
        saved = 0, params, state, []
    done, params, state, losses = saved
    while done < batches:
        rows = np.random.default_rng([1, done]).integers(0, len(x), BATCH)  # no state of a generator to save
        activations = forward(params, x[rows])
        loss, grad = softmax_loss(activations[-1], y[rows])
        rms.update_(params, backward(params, activations, grad), state)
        losses.append(loss)
        done += 1
        if done % EVERY == 0 or done == batches:
            save_checkpoint(folder, done, params, state, losses)
            print(done, flush=True)


def run(folder: Path, batches: int, kills: int, progress: tqdm[None]) -> list[int]:
    """Train in another process, which is killed and begun again so many times; the batches at which that was."""
    rng = np.random.default_rng(2)
    killed: list[int] = []
    before = progress.n
    command = [sys.executable, __file__, "--train", str(folder), "--batches", str(batches)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # so that every process adds in the same order
    while True:
        last = batches if len(killed) == kills else batches * (len(killed) + 1) // (kills + 1)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            for line in process.stdout:
                done = int(line)
                progress.update(max(before + done - progress.n, 0))
                if len(killed) < kills and done >= last:
                    time.sleep(rng.uniform(0, 0.05))  # a moment that it does not know
                    process.kill()
                    killed.append(done)
                    break
        if process.returncode == 0:
            return killed
        if process.returncode != -9:
            raise RuntimeError(f"the training ended with {process.returncode}")


def plot(runs: list[list[float]], killed: list[int], path: Path) -> None:
    """The losses of both runs, the second one in a colour for each process."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    window = min(40, len(runs[0]) // 4)
    smooth = [np.convolve(losses, np.full(window, 1 / window), "valid") for losses in runs]
    x = np.arange(len(smooth[0])) + window
    axes.semilogy(x, smooth[0], color="0.8", linewidth=7, label="never stopped")
    ends = [0, *killed, len(runs[1]) + 1]
    for i in range(len(ends) - 1):
        part = (x >= ends[i]) & (x <= ends[i + 1])
        axes.semilogy(x[part], smooth[1][part], linewidth=1.8, label=f"process {i + 1}")
    for i, end in enumerate(killed):
        axes.axvline(end, color="0.4", linestyle=":", linewidth=1.2, label="kill -9" if i == 0 else None)
    axes.set(
        title="digits: training that is killed and goes on from its checkpoint",
        xlabel="batch", ylabel=f"cross-entropy, mean of {window} batches",
    )  # fmt: skip
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train twice, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=1500)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--figure", type=Path, default=Path("resume.png"))
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)  # as the process that is killed
    arguments = parser.parse_args(argv)
    if arguments.train:
        train(arguments.train, arguments.batches)
        return

    found: list[Any] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=2 * arguments.batches, desc="training", unit="batch") as progress,
    ):
        for kills in (0, arguments.kills):
            (place := Path(folder, str(kills))).mkdir()
            killed = run(place, arguments.batches, kills, progress)
            saved = load_checkpoint(place)
            assert saved is not None
            found.append(saved)
    plot([losses for *_, losses in found], killed, arguments.figure)
    (_, one, one_state, losses), (_, other, other_state, other_losses) = found
    same = losses == other_losses and all(
        np.array_equal(a[key], b[key])
        for trees in ((one, other), (one_state.ema, other_state.ema), (one_state.square_avg, other_state.square_avg))
        for a, b in zip(*trees, strict=True)
        for key in a
    )
    print(f"killed after batches {', '.join(map(str, killed))} of {arguments.batches}; last loss {losses[-1]:.4f}")
    print(f"losses, parameters and state the same to the bit: {'yes' if same else 'no'}")
    print(f"figure: {arguments.figure}")
    if not same:
        sys.exit("training did not go on as if it had never stopped")


if __name__ == "__main__":
    main()
