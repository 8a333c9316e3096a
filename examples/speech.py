"""
Nine speakers
=============

A recurrent network that recognises which of nine speakers says "ae", from 640 recordings.

The Japanese Vowels of Kudo, Toyama and Shimbo (1999), 12 LPC cepstra at 7 to 29 times each, as they ship inside the
aeon package: `pip install --no-deps aeon` brings them. Recordings of several lengths share a batch: what follows the
end of one has no gradient. The weights that are tested are averaged ones (`ema`).

Run `python examples/speech.py`; it saves a figure, speech.png.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from dense import Array, softmax_loss
from numpy.typing import NDArray
from recurrent import backward, init_recurrent, run
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

HIDDEN, BATCH, SPEAKERS = 48, 30, 9
Labels = NDArray[np.intp]


def load(folder: Path, part: str) -> tuple[Array, Array, Labels]:
    """The recordings x (time, recordings, 12), filled up with zeros, the share of each time in the mean over its
    recording (time, recordings, 1), and the speakers (recordings,).
    """
    data = (folder / f"JapaneseVowels_{part}.ts").read_text().partition("@data\n")[2]
    recordings, labels = [], []
    for line in data.splitlines():
        *channels, label = line.split(":")
        recordings.append(np.array([channel.split(",") for channel in channels], np.float32).T)
        labels.append(int(label) - 1)
    x = np.zeros((max(map(len, recordings)), len(recordings), 12), np.float32)
    shares = np.zeros((*x.shape[:2], 1), np.float32)
    for i, recording in enumerate(recordings):
        x[: len(recording), i] = recording
        shares[: len(recording), i] = 1 / len(recording)
    return x, shares, np.array(labels)


def logits_of(params: Any, x: Array, shares: Array) -> tuple[Array, Array, Array]:
    """The logits of each speaker (recordings, 9), the states, and their means."""
    states = run(params, x, np.zeros((x.shape[1], HIDDEN), np.float32))
    means = (states[1:] * shares).sum(axis=0)
    return means @ params["w_out"] + params["b_out"], states, means


def train(folder: Path, epochs: int, seed: int, progress: tqdm[None]) -> dict[str, Any]:
    """Train one network; each time it sees a recording there is other noise on it."""
    x, shares, labels = load(folder, "TRAIN")
    x_test, shares_test, labels_test = load(folder, "TEST")
    mean, scale = x.mean(axis=(0, 1)), x.std(axis=(0, 1))
    x, x_test = (x - mean) / scale, (x_test - mean) / scale
    rng = np.random.default_rng(seed)
    params: Any = init_recurrent(12, HIDDEN, SPEAKERS, rng)
    steps = epochs * (len(labels) // BATCH)
    state = rms.init(
        params, lr=lambda taken: 2e-3 * (1 - taken / steps), weight_decay=1e-3, decoupled_weight_decay=True,
        clip_global_norm=1.0, ema=0.98,
    )  # fmt: skip
    accuracies = []
    for _ in range(epochs):
        for rows in np.split(rng.permutation(len(labels)), range(BATCH, len(labels), BATCH)):
            noisy = x[:, rows] + 0.3 * rng.standard_normal((len(x), len(rows), 12)).astype(np.float32)
            logits, states, means = logits_of(params, noisy, shares[:, rows])
            _, grad = softmax_loss(logits, labels[rows])
            grads = backward(params, noisy, states, (grad @ params["w_out"].T) * shares[:, rows])
            rms.update_(params, {**grads, "w_out": means.T @ grad, "b_out": grad.sum(axis=0)}, state)
        found = logits_of(state.ema, x_test, shares_test)[0].argmax(axis=1)
        accuracies.append(float((found == labels_test).mean()))
        progress.update()
    confusion = np.zeros((SPEAKERS, SPEAKERS), int)
    np.add.at(confusion, (labels_test, found), 1)
    return {"accuracies": accuracies, "confusion": confusion}


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """The accuracy by epoch of each network, and which speakers are taken for which."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for seed, result in enumerate(results):
        left.plot(
            range(1, len(result["accuracies"]) + 1), [100 * a for a in result["accuracies"]], label=f"seed {seed}"
        )
    left.set(title="speakers recognised, of 370 recordings", xlabel="epoch", ylabel="%", ylim=(80, 100))
    left.legend(loc="lower right")
    confusion = sum(result["confusion"] for result in results)
    shares = confusion / confusion.sum(axis=1, keepdims=True)
    right.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            right.text(
                column, row, f"{100 * share:.0f}", ha="center", va="center", color="white" if share > 0.5 else "k"
            )
    ticks = range(SPEAKERS)
    right.set(title="% of a speaker's recordings", xlabel="recognised as", ylabel="speaker")
    right.set_xticks(ticks, [str(i + 1) for i in ticks])
    right.set_yticks(ticks, [str(i + 1) for i in ticks])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path, default=Path("speech.png"))
    arguments = parser.parse_args(argv)

    aeon = importlib.util.find_spec("aeon")  # its files are read, it is not imported
    if aeon is None or not aeon.submodule_search_locations:
        sys.exit("the recordings ship inside the aeon package: pip install --no-deps aeon")
    folder = Path(aeon.submodule_search_locations[0], "datasets", "data", "JapaneseVowels")
    with tqdm(total=arguments.epochs * arguments.seeds, desc="training", unit="epoch") as progress:
        results = [train(folder, arguments.epochs, seed, progress) for seed in range(arguments.seeds)]
    plot(results, arguments.figure)
    for seed, result in enumerate(results):
        print(f"seed {seed}: test accuracy {100 * result['accuracies'][-1]:.1f} %")
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
