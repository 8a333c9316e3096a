"""The blocks of the docs that need a framework, the examples in docstrings of interop, and messages for objects of
frameworks.
"""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "torch")

import autograd
import jax.numpy as jnp
import keras
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PAGES, ROOT, blocks_of_pages, needs_peers, run_python
from scipy import sparse
from sklearn.linear_model import LinearRegression

import rmsprop_native as rms
from rmsprop_native import interop

BLOCKS = {name: source for name, source, needs in blocks_of_pages() if needs}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_the_pages_run(name):
    """Each in a process of its own."""
    run_python(BLOCKS[name], KERAS_BACKEND="torch")


def test_every_recipe_has_a_block():
    needs = set().union(*(needs for name, _, needs in blocks_of_pages() if name.startswith("numpy.md")))
    assert needs == {
        "autograd", "jax", "keras", "pennylane", "qiskit_algorithms", "scipy", "sklearn", "stable_baselines3", "torch",
    }  # fmt: skip


@pytest.mark.parametrize("page", [page for page in PAGES if needs_peers(page)], ids=lambda page: page.name)
def test_examples_of_the_docs_run(page):
    assert doctest.testfile(str(page), module_relative=False).failed == 0


# That of mpi is run by tests/mpi.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with torch
@pytest.mark.parametrize("name", sorted({module.name for module in pkgutil.iter_modules(interop.__path__)} - {"mpi"}))
def test_docstring_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"rmsprop_native.interop.{name}"))
    assert result.failed == 0
    assert result.attempted > 0


OBJECTS = {
    "JAX array": (lambda: jnp.zeros(3), "and cannot be changed in place; keep the parameters as NumPy arrays"),
    "model of torch": (lambda: torch.nn.Linear(2, 2), "is a Linear, not a numpy.ndarray; pass list(x.parameters())"),
    "generator of tensors": (lambda: torch.nn.Linear(2, 2).parameters(), "read only once: pass list(...) of it"),
    "tensor elsewhere": (lambda: torch.zeros(2, device="meta"), "on device meta; a step runs on the CPU: move it with"),
    "integer tensor": (lambda: torch.zeros(2, dtype=torch.int64), "has dtype torch.int64; supported are float32"),
    "variable of Keras": (lambda: keras.Variable(np.zeros(2)), "keras.ops.convert_to_numpy(v) reads a variable, v.ass"),
    "layer of Keras": (lambda: keras.layers.Dense(2), "is a Dense, not a numpy.ndarray"),
    "sparse matrix": (lambda: sparse.csr_array(np.zeros((2, 2))), "is a csr_array, not a numpy.ndarray; .toarray() "),
    "data frame": (lambda: pd.DataFrame({"a": [1.0]}), "is a DataFrame, not a numpy.ndarray; .to_numpy() makes one"),
    "estimator": (
        lambda: LinearRegression().fit(np.ones((2, 1)), np.ones(2)),
        "is a LinearRegression, not a numpy.ndarray; pass its arrays: {'coef_': x.coef_, 'singular_': x.singular_}",
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_of_frameworks_get_a_message_that_says_what_to_do(name):
    make, message = OBJECTS[name]
    with pytest.raises(TypeError, match=re.escape(message)):
        rms.init(make())


def test_a_step_inside_a_trace_is_refused():
    w = np.zeros(2)
    state = rms.init(w)
    with pytest.raises(TypeError, match="an ArrayBox, not a numpy.ndarray; it belongs to a trace of autograd: take"):
        autograd.grad(lambda x: rms.update_(w, x, state).sum())(np.ones(2))
    assert state.step == 0


def test_errors_of_the_page_are_those_of_the_script():
    """Of those whose operations are fixed; what a compiler fuses depends on the processor."""
    printed = subprocess.run(
        [sys.executable, ROOT / "bench" / "errors.py"], capture_output=True, text=True, check=True
    ).stdout
    rows = re.findall(r"^\| (?:ours|numpy|numba) \|.*$", printed, re.MULTILINE)
    assert len(rows) == 3
    page = (ROOT / "docs" / "performance.md").read_text()
    assert all(row in page for row in rows)
    assert "| 4.78 | 4.78 | 4.78 |" in (ROOT / "README.md").read_text()
