"""The house: floors are kept, public names are documented, the docstrings' examples run, one formula exists."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rmsprop_native as rms

PACKAGE = Path(rms.__file__).parent
ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"

# Imports go strictly downwards. The last floor imports none of the others and no compiled code.
FLOORS = (
    ("__init__",),
    ("optimizer",),
    ("functional", "runtime", "ufuncs"),
    ("state",),
    ("_core",),
    ("arrays", "options", "tree", "reference"),
)
LEVEL = {module: level for level, modules in enumerate(FLOORS) for module in modules}


def imports(path):
    """The modules of the package that a file imports when it runs, so not under TYPE_CHECKING."""
    text = path.read_text()
    if path.suffix == ".pyx":
        found = re.findall(
            r"^\s*from rmsprop_native\.(\w+) c?import|^\s*import rmsprop_native\.(\w+)", text, re.MULTILINE
        )
        return {a or b for a, b in found}
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rmsprop_native"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"relative import in {path}"
    return found


def test_every_module_has_a_floor():
    modules = {path.stem for path in (SOURCE / "rmsprop_native").iterdir() if path.suffix in (".py", ".pyx")}
    assert modules == set(LEVEL)


@pytest.mark.parametrize("module", LEVEL)
def test_imports_go_down(module):
    (path,) = (p for p in (SOURCE / "rmsprop_native").iterdir() if p.stem == module and p.suffix in (".py", ".pyx"))
    for other in imports(path):
        assert LEVEL[other] > LEVEL[module], f"{module} imports {other}"


def test_only_core_touches_c():
    """One module cimports the C library; the C library does not know Python."""
    modules = [p for p in (SOURCE / "rmsprop_native").iterdir() if p.suffix in (".py", ".pyx")]
    assert [p.name for p in modules if re.search(r"\bcimport rmsp\b|import ctypes|cffi", p.read_text())] == [
        "_core.pyx"
    ]
    for path in (SOURCE / "c").iterdir():
        assert "Python.h" not in path.read_text()
        assert path.read_text().startswith(f"/* {path.name}: ")


def test_the_ground_floor_needs_no_compiled_code():
    code = f"""
import sys, types
package = types.ModuleType("rmsprop_native"); package.__path__ = [{str(PACKAGE)!r}]
sys.modules["rmsprop_native"] = package
import rmsprop_native.arrays, rmsprop_native.options, rmsprop_native.tree, rmsprop_native.reference
assert not any(name == "rmsprop_native._core" for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_loop_body():
    """The root of the denominator is written once in C, and once in the specification."""
    text = "".join(p.read_text() for p in (SOURCE / "c").iterdir())
    assert len(re.findall(r"\bSQRT\(", text)) == 1
    assert len(re.findall(r"\bsqrtf?\(", text)) == 0


@pytest.mark.parametrize("module", [m for m in LEVEL if m != "_core"])
def test_docstring_examples_run(module):
    name = "rmsprop_native" if module == "__init__" else f"rmsprop_native.{module}"
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


PUBLIC = {name: getattr(rms, name) for name in rms.__all__ if callable(getattr(rms, name))}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    doc = inspect.getdoc(PUBLIC[name]) or ""
    assert len(doc.splitlines()[0]) <= 120
    parameters = [p for p in inspect.signature(PUBLIC[name]).parameters if p not in ("self", "structure", "buffers")]
    if name != "State":  # made by init
        assert ">>> " in doc
        assert "Parameters\n-----" in doc or not parameters
        for parameter in parameters:
            assert re.search(rf"^(.*, )?\**{parameter}(,.*)?( :.*)?$", doc, re.MULTILINE), parameter


def test_the_formula_has_its_authors():
    for thing in (rms.update_, rms.Options, rms.RMSProp):
        doc = inspect.getdoc(thing)
        assert "Tieleman" in doc
        assert "Hinton" in doc
        assert "2012" in doc


def test_readme_example_runs():
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_examples_of_the_docs_run(page):
    assert doctest.testfile(str(ROOT / "docs" / page), module_relative=False).failed == 0


def test_import_brings_numpy_only():
    """The one run-time dependency is NumPy."""
    code = """
import sys, numpy
before = set(sys.modules)
import rmsprop_native
new = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(new))
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert re.fullmatch(r"\['_cython_[\d_]+', 'cython_runtime', 'rmsprop_native'\]", out), out


def test_numpy_errstate_is_not_touched():
    with np.errstate(all="raise"):
        param = np.zeros(3, np.float32)
        rms.update_(param, np.full(3, 1e30, np.float32), rms.init(param))
    assert np.isfinite(param).all()
