"""The architecture: imports go down, the library and the formula exist once, tests mirror src, names are documented."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PAGES, ROOT, blocks_of_pages, needs_peers

import rmsprop_native as rms

PACKAGE = Path(rms.__file__).parent
SOURCE = ROOT / "src"

# Imports go strictly downwards. The levels from `reference` on import no compiled code; every module above may import
# these.
LEVELS = (
    ("__init__", "__main__"),
    ("interop",),
    ("optimizer", "checkpoint", "_bench", "_check"),
    ("functional", "ufuncs", "runtime"),
    ("state",),
    ("_plan",),
    ("_core",),
    ("reference", "shards"),
    ("content",),
    ("presets", "coefficients", "overrides", "buffers", "fileformats"),
    ("options", "arrays", "tree", "atomic_file", "exceptions"),
)
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}
COMPILED = ("_core", "_plan")
PURE = [module for module in LEVEL if LEVEL[module] >= LEVEL["reference"]]


def imports(path):
    """The modules of the package that a file imports when it runs, so not under TYPE_CHECKING."""
    text = path.read_text()
    if path.suffix == ".pyx":
        found = set(re.findall(r"^\s*from rmsprop_native\.(\w+) c?import", text, re.MULTILINE))
        for names in re.findall(r"^\s*from rmsprop_native c?import (.+)$", text, re.MULTILINE):
            found |= {name.split(" as ")[0].strip() for name in names.split(",")}
        return found - {"rmsp"}
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


# Source files whose tests are in a file of another name, or that have none, each with the reason.
TESTED_ELSEWHERE = {
    "__init__": ("architecture", "it only exports names"),
    "__main__": ("bench", "the benchmark is what it is for"),
    "py": ("architecture", "py.typed is empty"),
    "rmsp": ("architecture", "rmsp.h and rmsp.pxd declare what the other files define"),
    "bf16": ("storage", "the kernels of rmsp_kernels.c for arrays of which some are bfloat16"),
    "neutral": ("storage", "the kernels of rmsp_bf16.inc.h that are neutral"),
    "convert": ("storage", "the conversions that rmsp_kernels.c exports"),
    "atomic": ("core", "the claim is what Python sees of it"),
    "cores": ("threads", "rmsp_threads.c is its one user"),
    "fenv": ("threads", "it is <fenv.h>, whose rounding mode is what workers take from their caller"),
    "isa": ("dispatch", "it declares the tables that rmsp_dispatch.c chooses from"),
    "formula": ("kernels", "the body of its loops"),
    "kernel": ("kernels", "rmsp_kernels.c instantiates it"),
    "ufunc": ("ufuncs", "ufuncs.py is how a user reaches it"),
    "exceptions": ("ufuncs", "a ufunc's call in place calls it"),
    "_sources": ("arrays", "they describe the arrays; those of tensors are tested beside torch, in tests/peers"),
    "_tensors": ("plan", "a part of _plan.pyx for torch, tested in tests/peers/test_interop_torch.py"),
}


def test_every_source_file_has_its_test_file():
    """X.py, _X.pyx and rmsp_X.c are tested by tests/test_X.py, and no test file is without a source file."""
    files = [path for folder in ("c", "rmsprop_native") for path in (SOURCE / folder).iterdir() if path.is_file()]
    sources = {path.name.partition(".")[0].removeprefix("rmsp_") for path in files}
    expected = {TESTED_ELSEWHERE.get(name, (name.removeprefix("_"),))[0] for name in sources}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    tested = {name for name in tested if not name.startswith("adversarial_")}  # attacks on all files at once
    assert expected | {"architecture", "examples", "vectors"} == tested
    assert set(TESTED_ELSEWHERE) <= sources


def test_every_module_has_a_level():
    modules = {path.stem for path in (SOURCE / "rmsprop_native").iterdir() if path.suffix in (".py", ".pyx")}
    assert modules | {"interop"} == set(LEVEL)


INTEROP = sorted((SOURCE / "rmsprop_native" / "interop").glob("*.py"))


@pytest.mark.parametrize("path", INTEROP, ids=lambda path: path.name)
def test_nothing_imports_interop(path):
    """Each module of interop imports its framework; none of the others may import one of them, so that
    rmsprop_native imports no framework. What they share is in modules with an underscore.
    """
    assert all(LEVEL[other] > LEVEL["interop"] for other in imports(path) - {"interop"})
    assert all(
        name.startswith("_")
        for name in re.findall(r"^from rmsprop_native\.interop\.(\w+)", path.read_text(), re.MULTILINE)
    )


def test_no_framework_is_imported():
    code = """
import sys, rmsprop_native, rmsprop_native.interop
frameworks = {"torch", "jax", "scipy", "tensorflow", "keras", "pennylane", "autograd", "qiskit_algorithms", "mpi4py"}
print(sorted(frameworks & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("module", [module for module in LEVEL if module != "interop"])
def test_imports_go_down(module):
    (path,) = (p for p in (SOURCE / "rmsprop_native").iterdir() if p.stem == module and p.suffix in (".py", ".pyx"))
    for other in imports(path):
        assert LEVEL[other] > LEVEL[module], f"{module} imports {other}"


@pytest.mark.parametrize("module", [module for module in COMPILED if LEVEL[module] > LEVEL["state"]])
def test_compiled_modules_do_not_use_state(module):
    """_core and the modules over it are given arrays and numbers; they name no attribute of State."""
    text = (SOURCE / "rmsprop_native" / f"{module}.pyx").read_text()
    code = re.sub(r'""".*?"""|#.*?$', "", text, flags=re.DOTALL | re.MULTILINE)
    attributes = {name for name in rms.State.__slots__ if name.startswith("_")} | {
        "_copy",
        "_described",
        "_saved",
        "_tree",
        "_paths",
    }
    assert not re.findall(rf"\.({'|'.join(attributes)})\b", code)


def test_one_module_links_the_library():
    """Only _core links the C library, which does not include Python.h; the other modules call it through _core.pxd."""
    symbols = {}
    for module in COMPILED:
        (path,) = PACKAGE.glob(f"{module}.*.so")
        lines = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout.splitlines()
        symbols[module] = {line.split()[-1] for line in lines}
    library = {name for name in symbols["_core"] if re.match(r"rmsp_(bind|step|run|share|isa_use)$", name)}
    assert len(library) == 5
    for module in set(COMPILED) - {"_core"}:
        assert not library & symbols[module]
    for path in (SOURCE / "c").iterdir():
        assert "Python.h" not in path.read_text()
        assert path.read_text().startswith(f"/* {path.name}: ")


def test_no_call_upward():
    """The C library does not allocate, print or open anything."""
    (path,) = PACKAGE.glob("_core.*.so")
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True
    ).stdout
    assert not re.search(r"\b(malloc|calloc|realloc|free|printf|fopen|qsort)(@|$)", undefined, re.MULTILINE)


def test_one_loop_body():
    """The root of the denominator is written once in C, and once in the specification."""
    text = "".join(p.read_text() for p in (SOURCE / "c").iterdir())
    assert len(re.findall(r"\bSQRT\(", text)) == 1
    step = (SOURCE / "c" / "rmsp_step.c").read_text()  # of norms
    assert len(re.findall(r"\bsqrtf?\(", text)) == len(re.findall(r"\bsqrt\(", step)) == 2


@pytest.mark.parametrize("module", [m for m in LEVEL if m not in COMPILED or m == "_plan"])
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


def test_help_of_the_package_teaches():
    """An example and the functions first; nothing that dataclasses keep for themselves."""
    text = pydoc.render_doc(rms, renderer=pydoc.plaintext)
    description = text.partition("DESCRIPTION")[2].partition("PACKAGE CONTENTS")[0]
    assert ">>> state = rms.init(params, lr=0.01)" in description
    assert description.index("Functions") < description.index("init(params, ...)") < description.index("Classes")
    for name in rms.__all__:
        assert re.search(rf"\b{name}\b", description) or name == "__version__", name
    assert "_dataclass" not in text
    assert "__post_init__" not in text


def test_the_formula_has_its_authors():
    for thing in (rms.update_, rms.Options, rms.RMSProp):
        doc = inspect.getdoc(thing)
        assert "Tieleman" in doc
        assert "Hinton" in doc
        assert "2012" in doc


BLOCKS = {name: source for name, source, needs in blocks_of_pages() if not needs}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_the_pages_run(name):
    """Those without a framework; tests/peers/test_docs.py runs the others."""
    exec(compile(BLOCKS[name], name.partition(":")[0], "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", [page for page in PAGES if not needs_peers(page)], ids=lambda page: page.name)
def test_examples_of_the_docs_run(page):
    assert doctest.testfile(str(page), module_relative=False).failed == 0


def test_every_public_name_is_on_the_api_page():
    page = (ROOT / "docs" / "api.md").read_text()
    named = set(re.findall(r"^\.\. auto(?:function|class|data):: (.+)$", page, re.MULTILINE))
    assert set(rms.__all__) - {"__version__"} <= named
    for path in INTEROP:
        names = re.search(r"^__all__ = (\[.*?\])", path.read_text(), re.MULTILINE | re.DOTALL)
        if names and not path.stem.startswith("_"):
            assert {f"rmsprop_native.interop.{path.stem}.{name}" for name in ast.literal_eval(names[1])} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_python_of_the_docs_goes_untested(page):
    """Blocks that are only indented are formulas and commands; the tests run those within fences, and no page has
    formulas of TeX, which need a script from elsewhere to be read.
    """
    outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^(?:>>>| {4}(?:>>>|import |from |\w+ = rms\.)).*", outside, re.MULTILINE)
    assert "$$" not in outside


@pytest.mark.parametrize("page", sorted({*ROOT.glob("*.md"), *PAGES}), ids=lambda page: page.name)
def test_lines_of_pages_are_short(page):
    """But for rows of tables, which cannot be broken, and what make bench writes."""
    lines = page.read_text().partition("<!-- Below this line everything is written by")[0].splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


PROGRAMS = {path.stem for path in (ROOT / "examples").glob("*.py") if "__main__" in path.read_text()}


def test_every_example_is_in_the_gallery():
    """With a figure: it is one of images/, unless make docs runs the example."""
    configuration = (ROOT / "docs" / "conf.py").read_text()
    shown = ast.literal_eval(re.search(r"^EXAMPLES = (\[.*?\])", configuration, re.MULTILINE | re.DOTALL)[1])
    executed = ast.literal_eval(re.search(r"^EXECUTED = (\(.*?\))", configuration, re.MULTILINE)[1])
    assert sorted(shown) == sorted(PROGRAMS)
    assert PROGRAMS - set(executed) <= {path.stem for path in (ROOT / "docs" / "images").iterdir()}


def test_every_figure_has_a_script_and_a_page():
    writers = {path.stem for path in (ROOT / "examples").glob("*.py")}
    writers |= set(re.findall(r'"(\w+)\.png"', "".join(path.read_text() for path in (ROOT / "bench").glob("*.py"))))
    pages = "".join(page.read_text() for page in (ROOT / "README.md", *PAGES))
    for figure in (ROOT / "docs" / "images").iterdir():
        assert figure.stem in writers, figure.name
        assert figure.stem in PROGRAMS or f"images/{figure.name})" in pages, figure.name


README_ROWS = {
    "one array of 64": ("64 f32", 1),
    "1000 arrays of 64": ("1000 x 64 f32", 1),
    "one of 64 Ki, in the caches": ("64 Ki f32", 1),
    "one of 16 Mi, in memory": ("16 Mi f32", 1),
    "the arrays of ResNet-50": ("ResNet-50 f32", 1),
    "one of 16 Mi, two threads": ("16 Mi f32", 2),
}


@pytest.mark.parametrize("row", README_ROWS)
def test_readme_has_the_figures_of_the_page(row):
    """After make bench the table of the README is to be written anew from the one of docs/performance.md."""
    case, threads = README_ROWS[row]
    page = (ROOT / "docs" / "performance.md").read_text()

    def cells(line):
        return [cell.strip() for cell in line.strip("|").split("|")]

    names = cells(re.search(r"^\| case +\|.*$", page, re.MULTILINE)[0])
    measured = cells(re.search(rf"^\| {case} +\| {threads} thread.*$", page, re.MULTILINE)[0])
    times = dict(zip(names, measured, strict=True))
    times["torch"] = min(times["torch"], times["torch foreach"], key=float)
    shown = cells(re.search(rf"^\| {row} \|.*$", (ROOT / "README.md").read_text(), re.MULTILINE)[0])[1:]
    numba = "numba prange" if "(prange)" in shown[2] else "numba"
    peers = ("ours", "numpy", numba, "torch", "torch.compile", "torch fused adagrad")
    for cell, peer in zip(shown, peers, strict=True):
        assert cell.replace(" (prange)", "").strip("*") == times[peer], peer
        assert ("**" in cell) == (peer != "ours" and times[peer] != "-" and float(times[peer]) < 1), peer


def test_readme_has_the_bfloat16_figures_of_the_page():
    """They are ratios to another column there."""
    page = (ROOT / "docs" / "performance.md").read_text()
    table = page.partition("## The optimizer of torch with bfloat16 tensors")[2]
    names, measured = (
        [cell.strip() for cell in re.search(pattern, table, re.MULTILINE)[0].strip("|").split("|")]
        for pattern in (r"^\| parameters, bfloat16 .*$", r"^\| 16 Mi +\| 1 thread .*$")
    )
    over_ours = dict(zip(names[3:], map(float, measured[3:]), strict=True))
    ours = over_ours["ours, all bfloat16, over ours"]
    torch = min(over_ours["torch, over ours"], over_ours["torch foreach, over ours"])
    time = f"{int(measured[2].split()[0]) * ours:.0f} µs"
    row = f"| one of 16 Mi, all of it bfloat16 | {time} | - | - | {torch / ours:.3g} |"
    assert row in (ROOT / "README.md").read_text()


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
    assert re.fullmatch(r"\['cython_runtime', 'rmsprop_native'\]", out), out
