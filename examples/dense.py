"""What the examples train: a network of dense layers in NumPy, with its own backprop, and the digits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Array = NDArray[np.floating[Any]]
Params = list[dict[str, Array]]


def init_params(sizes: list[int], rng: np.random.Generator) -> Params:
    """He-normal weights of shape (inputs, outputs) and zero biases of shape (outputs,), float32."""
    return [
        {
            "w": (rng.standard_normal((n_in, n_out)) * np.sqrt(2 / n_in)).astype(np.float32),
            "b": np.zeros(n_out, np.float32),
        }
        for n_in, n_out in itertools.pairwise(sizes)
    ]


def forward(params: Params, x: Array) -> list[Array]:
    """The activations of every layer: the input (batch, inputs), ReLU layers, and the logits of the last one."""
    activations = [x]
    for i, layer in enumerate(params):
        z = activations[-1] @ layer["w"] + layer["b"]
        activations.append(z if i == len(params) - 1 else np.maximum(z, 0))
    return activations


def softmax_loss(logits: Array, labels: NDArray[np.intp]) -> tuple[float, Array]:
    """Mean cross-entropy of logits (batch, classes) with labels (batch,), and its gradient by the logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    grad = np.exp(log_p)
    grad[rows, labels] -= 1
    return float(-log_p[rows, labels].mean()), grad / np.float32(len(labels))


def sigmoid_loss(logits: Array, targets: Array) -> tuple[float, Array]:
    """Mean binary cross-entropy of logits (batch, 1) with targets (batch, 1), and its gradient by the logits."""
    p = 1 / (1 + np.exp(-logits))
    loss = np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    return float(loss.mean()), (p - targets) / np.float32(len(targets))


def backward(params: Params, activations: list[Array], grad: Array) -> Params:
    """The gradients by the parameters, from the gradient by the logits (batch, outputs)."""
    grads: Params = []
    for layer, inputs in zip(reversed(params), reversed(activations[:-1]), strict=True):
        grads.append({"w": inputs.T @ grad, "b": grad.sum(axis=0)})
        grad = (grad @ layer["w"].T) * (inputs > 0)
    return grads[::-1]


def accuracy(params: Params, x: Array, labels: NDArray[np.intp]) -> float:
    """The share of rows of x (batch, inputs) whose largest logit is that of their label."""
    return float((forward(params, x)[-1].argmax(axis=1) == labels).mean())


def load_digits_split() -> tuple[Any, Any, Any, Any]:
    """Training and held-out images, training and held-out labels.

    1797 handwritten digits of 8 x 8 pixels, scaled to [0, 1], float32; a quarter of them held out.
    """
    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (images / 16).astype(np.float32), labels, test_size=0.25, stratify=labels, random_state=0
    )
    return x_train, x_test, y_train, y_test
