"""What the tests share: how bits are compared, and the run-time settings put back after each test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import rmsprop_native as rms
from rmsprop_native import _core, _plan, reference
from rmsprop_native.tree import flatten

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _runtime():
    """Put instruction set, threads and grain back after every test."""
    isa, grain = rms.isa(), _core.grain()
    yield
    rms.use_isa(isa)
    rms.set_num_threads(None)
    _core.set_grain(grain)


@pytest.fixture(params=[True, False], ids=["table", "numpy"])
def torch_source(request):
    """The test runs with tensors read through torch's table of functions, and as where torch is too old for it."""
    import torch

    assert _plan.use_exchange_table(request.param) == request.param
    threads = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(threads)
    _plan.use_exchange_table(True)


@pytest.fixture
def rng():
    return np.random.default_rng(20121006)


def same_bits(one, other):
    """Whether two arrays are equal to the bit; IEEE 754 leaves open only the sign and payload of a NaN."""
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.kind == "c":
        return same_bits(one.real, other.real) and same_bits(one.imag, other.imag)
    integer = f"u{one.itemsize}"
    equal = np.ascontiguousarray(one).view(integer) == np.ascontiguousarray(other).view(integer)
    return bool(np.all(equal | (np.isnan(one) & np.isnan(other))))


def copied(tree):
    """A tree of the same structure with arrays of its own."""
    leaves, structure = flatten(tree)
    return structure.unflatten(np.array(leaf) for leaf in leaves)


def as_keywords(options):
    """Options as the keyword arguments of `init`."""
    return options if isinstance(options, dict) else {name: getattr(options, name) for name in options.__slots__}


def on_reference(params, options, overrides=None):
    """Copies of `params`, and a state of the reference for them."""
    ref_params = copied(params)
    return ref_params, reference.init(ref_params, overrides=overrides, **as_keywords(options))


TREES = ("square_avg", "momentum_buffer", "grad_avg", "ema", "grad_sum", "low_half")


def check_alike(params, state, ref_params, ref_state):
    """Compare parameters and a state with those of the reference: the counts, and all arrays, leaf by leaf."""
    for count in ("step", "skipped", "accumulated"):
        assert getattr(state, count) == getattr(ref_state, count), count
    trees = [("param", params, ref_params)]
    trees += [(name, getattr(state, name), getattr(ref_state, name)) for name in TREES]
    for name, tree, ref_tree in trees:
        assert (tree is None) == (ref_tree is None), name
        leaves, ref_leaves = flatten(tree)[0], flatten(ref_tree)[0]
        for i, (leaf, ref_leaf) in enumerate(zip(leaves, ref_leaves, strict=True)):
            assert same_bits(leaf, ref_leaf), f"{name} {i}"


def stepped_alike(options, params, grads, *, steps=2, overrides=None, **per_call):
    """Step `params` with the product and a copy with the reference, and compare after every step."""
    ref_params, ref_state = on_reference(params, options, overrides)
    state = rms.init(params, overrides=overrides, **as_keywords(options))
    for _ in range(steps):
        rms.update_(params, grads, state, **per_call)
        reference.update_(ref_params, grads, ref_state, **per_call)
        check_alike(params, state, ref_params, ref_state)
    return state


def small_tree(rng, dtype=np.float32):
    """Parameters, or gradients, of one layer."""
    return {"layer1": {"w": rng.standard_normal((4, 3)).astype(dtype), "b": rng.standard_normal(3).astype(dtype)}}


def written_by(params, state):
    """A copy of all that a step may write."""
    trees = [params, *(getattr(state, name) for name in TREES)]
    counts = state.step, state.skipped, state.accumulated
    return [np.array(leaf) for tree in trees for leaf in flatten(tree)[0]], counts


def refused(error, match, params, grads, state, **per_call):
    """Check that a step raises `error`, and has written nothing."""
    before, counts = written_by(params, state)
    with pytest.raises(error, match=match):
        rms.update_(params, grads, state, **per_call)
    after, counts_after = written_by(params, state)
    assert counts == counts_after
    assert all(same_bits(a, b) for a, b in zip(before, after, strict=True))


def run_together(*functions):
    """Call each function in a thread of its own, all at the same time; raise what the first of them raised."""
    barrier = threading.Barrier(len(functions))

    def call(function):
        barrier.wait()
        function()

    with ThreadPoolExecutor(len(functions)) as pool:
        calls = [pool.submit(call, function) for function in functions]
    for done in calls:
        done.result()


def run_python(code, *arguments, **environment):
    """What a new Python process prints that runs `code`; it must end well, and within a minute."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()


@cache
def memory_failures():
    """CPython's module that makes allocations fail. Skips where this Python itself crashes then, as 3.13.0 does where a
    tuple is made of a generator.
    """
    testcapi = pytest.importorskip("_testcapi", reason="this Python was built without its test modules")
    code = """
import _testcapi, dataclasses
@dataclasses.dataclass
class Pair:
    a: int = 1
    b: int = 2
for repeat in range(100):
    for allocation in range(12):
        _testcapi.set_nomemory(allocation, allocation + 1)
        try:
            dataclasses.fields(Pair)
        except MemoryError:
            pass
        finally:
            _testcapi.remove_mem_hooks()
        repr([dataclasses.fields(Pair), [(i,) for i in range(50)]])
"""
    try:
        run_python(code)
    except subprocess.CalledProcessError:
        pytest.skip("this Python crashes by itself when memory runs out", allow_module_level=True)
    return testcapi


PAGES = sorted((ROOT / "docs").glob("*.md"))
HERE = {"numpy", "rmsprop_native", *sys.stdlib_module_names}  # what the tests have without those of peers


def needs_peers(page):
    """Whether the examples of a page import more than the tests here have: tests/peers/test_docs.py runs them then."""
    return bool(set(re.findall(r">>> (?:import|from) (\w+)", page.read_text())) - HERE)


def blocks_of_pages():
    """The Python blocks of the README and the docs that are no examples for doctest; but for those of distributed.md,
    which the tests in two processes run.

    Returns
    -------
    list of tuple
        A name such as "numpy.md:27", the source, and the packages that it needs beside those of HERE.
    """
    blocks = []
    for page in (ROOT / "README.md", *(page for page in PAGES if page.name != "distributed.md")):
        text = page.read_text()
        for block in re.finditer(r"^```python\n(?!>>> )(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, block.start(1))
            # Empty lines before it, so that a traceback has the lines of the page.
            source = "\n" * line + block[1]
            imported = re.findall(r"^\s*(?:import|from) (?:rmsprop_native\.interop\.)?(\w+)", source, re.MULTILINE)
            blocks.append((f"{page.name}:{line}", source, set(imported) - HERE))
    return blocks


class Schedule:
    """A schedule of one rate that prints as any other one, and can be neither hashed nor compared."""

    __hash__ = None

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, taken):
        return self.rate

    def __repr__(self):
        return "Schedule"

    def __eq__(self, other):
        raise RuntimeError("compared")
