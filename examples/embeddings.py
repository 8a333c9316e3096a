"""
Word vectors: gradients of a few rows
=====================================

A large table of word vectors, of which each step touches a few rows: `RowGrad`.

The words of Python's help pages are hashed into a table of a quarter of a million rows; the vector of a word is to
predict the words around it against random ones (skip-gram with negative samples). A step over the whole table costs
the more the larger it is, one over its rows does not.

Run `python examples/embeddings.py`; it saves a figure, embeddings.png.
"""

from __future__ import annotations

import argparse
import re
import time
import zlib
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import matplotlib as mpl
import numpy as np
from dense import Array
from numpy.typing import NDArray
from tqdm import tqdm

import rmsprop_native as rms

mpl.use("Agg")
import matplotlib.pyplot as plt

SIZE, BATCH, NEGATIVES, WINDOW = 32, 256, 5, 3
Rows = NDArray[np.intp]
ASKED = ("list", "class", "argument", "string")


def load_words(table_rows: int) -> tuple[Rows, dict[str, int]]:
    """The row of each word of the text, in its order; and those of the words that are frequent, the most so first."""
    words = re.findall(r"[a-z]+", " ".join(topics[name] for name in sorted(topics)).lower())
    rows = {word: zlib.crc32(word.encode()) % table_rows for word in words}
    names, counts = np.unique(words, return_counts=True)
    frequent = [str(names[i]) for i in (-counts).argsort(kind="stable") if counts[i] >= 100 and len(names[i]) > 2]
    return np.array([rows[word] for word in words]), {word: rows[word] for word in frequent}


def batches(words: Rows, steps: int, rng: np.random.Generator) -> Any:
    """For each step rows of words (batch,), and rows of a neighbour and of random words (batch, 1 + negatives)."""
    for _ in range(steps):
        centre = rng.integers(WINDOW, len(words) - WINDOW, BATCH)
        offset = rng.integers(1, WINDOW + 1, BATCH) * rng.choice([-1, 1], BATCH)
        others = np.column_stack([words[centre + offset], rng.choice(words, (BATCH, NEGATIVES))])
        yield words[centre], others


def loss_and_grads(tables: dict[str, Array], words: Rows, others: Rows) -> tuple[float, dict[str, rms.RowGrad]]:
    """The mean logistic loss, and the gradients of the rows that were read; a row may occur many times."""
    vectors, around = tables["word"][words], tables["around"][others]
    score = np.einsum("bi,bki->bk", vectors, around)
    is_near = np.zeros_like(score)
    is_near[:, 0] = 1
    p = 1 / (1 + np.exp(-score))
    loss = -np.log(np.where(is_near == 1, p, 1 - p) + 1e-9).sum(axis=1).mean()
    grad = (p - is_near) / np.float32(len(words))
    return float(loss), {
        "word": rms.RowGrad(words, np.einsum("bk,bki->bi", grad, around)),
        "around": rms.RowGrad(others.ravel(), (grad[..., None] * vectors[:, None]).reshape(-1, SIZE)),
    }


def train(table_rows: int, steps: int) -> tuple[list[float], dict[str, list[str]]]:
    """The loss of each step, and for some words those whose vectors are nearest."""
    words, frequent = load_words(table_rows)
    rng = np.random.default_rng(0)
    tables = {
        "word": (rng.standard_normal((table_rows, SIZE)) * 0.1).astype(np.float32),
        "around": np.zeros((table_rows, SIZE), np.float32),
    }
    state = rms.init(tables, lr=lambda taken: 0.02 * (1 - taken / steps), initial_square_avg=1e-6)
    losses = []
    for some, others in tqdm(batches(words, steps, rng), total=steps, desc="training", unit="step"):
        loss, grads = loss_and_grads(tables, some, others)
        rms.update_(tables, grads, state)
        losses.append(loss)
    names = list(frequent)
    vectors = tables["word"][list(frequent.values())]
    vectors = vectors - vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = {}
    for word in ASKED:
        likeness = vectors @ vectors[names.index(word)]
        nearest[word] = [names[i] for i in (-likeness).argsort()[1:6]]
    return losses, nearest


def time_steps(sizes: list[int]) -> dict[str, list[float]]:
    """The median time of a step, in microseconds, by rows and over the whole table, for tables of so many rows."""
    times: dict[str, list[float]] = {"RowGrad, 1536 rows": [], "dense gradient": []}
    rng = np.random.default_rng(1)
    for size in tqdm(sizes, desc="timing", unit="table"):
        rows = np.sort(rng.choice(size, BATCH * (1 + NEGATIVES), replace=False))
        values = rng.standard_normal((len(rows), SIZE)).astype(np.float32)
        dense = np.zeros((size, SIZE), np.float32)
        dense[rows] = values
        for name, grad in zip(times, (rms.RowGrad(rows, values), dense), strict=True):
            table = np.zeros((size, SIZE), np.float32)
            state = rms.init(table)
            took = []
            for _ in range(20):
                start = time.perf_counter_ns()
                rms.update_(table, grad, state)
                took.append(time.perf_counter_ns() - start)
            times[name].append(float(np.median(took)) / 1e3)
    return times


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rows", type=int, default=2**18)
    parser.add_argument("--figure", type=Path, default=Path("embeddings.png"))
    arguments = parser.parse_args(argv)

    losses, nearest = train(arguments.rows, arguments.steps)
    sizes = [2**k for k in range(12, arguments.rows.bit_length())]
    times = time_steps(sizes)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    width = max(len(losses) // 100, 1)
    means = np.array(losses[: len(losses) // width * width]).reshape(-1, width).mean(axis=1)
    left.plot(np.arange(1, len(means) + 1) * width, means)
    left.set(title="words of Python's help pages", xlabel="step", ylabel="loss of six words around")
    text = "\n".join(f"{word}: {', '.join(others)}" for word, others in nearest.items())
    left.text(0.97, 0.95, f"nearest vectors\n{text}", transform=left.transAxes, ha="right", va="top", fontsize=8)
    for name, took in times.items():
        right.loglog(sizes, took, "o-", label=name)
    right.set(title=f"one step, by the size of the table: {SIZE} float32 a row", xlabel="rows", ylabel="µs")
    right.legend()
    figure.savefig(arguments.figure, dpi=120)
    plt.close(figure)
    print(f"loss: {means[0]:.3f} at first, {means[-1]:.3f} at last")
    print(text)
    rows, dense = (took[-1] for took in times.values())
    print(f"a step over {sizes[-1]} rows: {rows:.0f} µs by RowGrad, {dense:.0f} µs dense")
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
