"""
English, letter by letter
=========================

A recurrent network that learns English from the reference pages that ship with Python.

The text is that of `help("topics")`, half a million characters of real prose; a tenth is held out. Gradients of a
recurrent network vary by orders of magnitude, which is what RMSProp was made for; `clip_global_norm` limits the rare
huge ones.

Run `python examples/text.py`; it prints what the network writes and saves a figure, text.png.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from pydoc_data.topics import topics
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

HIDDEN, BATCH, LENGTH = 128, 32, 40
Codes = NDArray[np.intp]


def load_text() -> tuple[Codes, Codes, str]:
    """The codes of the characters to train on and of those held out, and the alphabet."""
    text = " ".join(topics[name] for name in sorted(topics))
    text = re.sub(r"[^\s!-~]|[*=~^+-]{3,}|\|", "", text)  # ASCII, without lines and tables
    text = re.sub(r"\s+", " ", text)
    alphabet = "".join(sorted(set(text)))
    places = np.full(128, -1)
    places[[ord(letter) for letter in alphabet]] = range(len(alphabet))
    codes = places[np.frombuffer(text.encode(), np.uint8)]
    split = len(codes) * 9 // 10
    return codes[:split], codes[split:], alphabet


def bits_of_counts(train: Codes, test: Codes, size: int) -> dict[str, float]:
    """Bits a character of tables of counts: of single letters, of pairs and of triples."""
    found = {}
    for order, name in enumerate(("single letters", "pairs", "triples")):
        counts = np.full((size,) * (order + 1), 0.01)
        np.add.at(counts, tuple(train[i : len(train) - order + i] for i in range(order + 1)), 1)
        shares = counts / counts.sum(axis=-1, keepdims=True)
        found[name] = float(-np.log2(shares[tuple(test[i : len(test) - order + i] for i in range(order + 1))]).mean())
    return found


def loss_and_grads(params: Any, codes: Codes, start: Array, eye: Array) -> tuple[float, Any, Array]:
    """Bits a character of codes (time + 1, batch), the gradients, and the last state."""
    x = eye[codes[:-1]]
    states = run(params, x, start)
    logits = states[1:] @ params["w_out"] + params["b_out"]
    loss, grad = softmax_loss(logits.reshape(-1, logits.shape[-1]), codes[1:].ravel())
    grad = grad.reshape(logits.shape)
    grads = backward(params, x, states, grad @ params["w_out"].T)
    grads["w_out"] = np.tensordot(states[1:], grad, ((0, 1), (0, 1)))
    grads["b_out"] = grad.sum(axis=(0, 1))
    return loss / float(np.log(2)), grads, states[-1]


def write(params: Any, eye: Array, alphabet: str, count: int = 160) -> str:
    """What the network writes, one letter after the other, at a temperature of 0.6."""
    rng = np.random.default_rng(4)
    state, code, letters = np.zeros((1, HIDDEN), np.float32), alphabet.index(" "), []
    for _ in range(count):
        state = run(params, eye[[[code]]], state)[-1]
        logits = (state @ params["w_out"] + params["b_out"])[0].astype(float) / 0.6
        shares = np.exp(logits - logits.max())
        code = int(rng.choice(len(alphabet), p=shares / shares.sum()))
        letters.append(alphabet[code])
    return "".join(letters)


def train(steps: int) -> dict[str, Any]:
    """Train, and measure on what was held out at ten times."""
    codes, held_out, alphabet = load_text()
    eye = np.eye(len(alphabet), dtype=np.float32)
    params: Any = init_recurrent(len(alphabet), HIDDEN, len(alphabet), np.random.default_rng(0))
    state = rms.init(
        params, lr=lambda taken: 3e-3 * (1 - 0.9 * taken / steps), rho=0.95, eps=1e-6, clip_global_norm=0.5
    )
    streams = codes[: len(codes) // BATCH * BATCH].reshape(BATCH, -1).T  # each column goes on where it was
    tests = held_out[: len(held_out) // 100 * 100].reshape(100, -1).T
    hidden, place = np.zeros((BATCH, HIDDEN), np.float32), 0
    losses, measured, written = [], [], []
    progress = tqdm(range(steps), desc="training", unit="step")
    for step in progress:
        if place + LENGTH >= len(streams):
            hidden, place = np.zeros_like(hidden), 0
        loss, grads, hidden = loss_and_grads(params, streams[place : place + LENGTH + 1], hidden, eye)
        place += LENGTH
        rms.update_(params, grads, state)
        losses.append(loss)
        if (step + 1) % max(steps // 10, 1) == 0:
            start = np.zeros((100, HIDDEN), np.float32)
            measured.append((step + 1, loss_and_grads(params, tests, start, eye)[0]))
            written.append(write(params, eye, alphabet))
            progress.set_postfix(bits=f"{measured[-1][1]:.2f}")
    tables = bits_of_counts(codes, held_out, len(alphabet))
    return {"losses": losses, "measured": measured, "written": written, "tables": tables}


def plot(result: dict[str, Any], path: Path) -> None:
    """Bits a character beside those of tables of counts, and what the network writes at three times."""
    figure, (axes, below) = plt.subplots(2, 1, figsize=(8, 6), height_ratios=(3, 1), layout="constrained")
    axes.plot(result["losses"], color="C0", alpha=0.3, linewidth=0.5, label="each batch")
    axes.plot(*zip(*result["measured"], strict=True), "o-", color="C0", label="held out")
    for i, (name, bits) in enumerate(result["tables"].items()):
        axes.axhline(bits, color=f"C{i + 1}", linestyle=":")
        axes.text(0, bits, f"table of {name}", color=f"C{i + 1}", va="bottom")
    axes.set(
        title="a recurrent network learns English from Python's help pages", xlabel="step", ylabel="bits a character"
    )
    axes.set_ylim(top=min(7, axes.get_ylim()[1]))
    axes.legend(loc="upper right")
    below.axis("off")
    chosen = sorted({0, len(result["written"]) // 3, len(result["written"]) - 1})
    lines = [f"{result['measured'][i][0]:5d}  {result['written'][i][:80]}" for i in chosen]
    lines = [line.replace("$", r"\$") for line in ["step   the network writes", *lines]]
    below.text(0, 1, "\n".join(lines), family="monospace", va="top", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--figure", type=Path, default=Path("text.png"))
    arguments = parser.parse_args(argv)

    result = train(arguments.steps)
    plot(result, arguments.figure)
    print(f"bits a character held out: {result['measured'][-1][1]:.2f}")
    print("; ".join(f"a table of {name}: {bits:.2f}" for name, bits in result["tables"].items()))
    print(f"it writes: {result['written'][-1]}")
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
