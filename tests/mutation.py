"""Mutation tests of the formula and the checks: changes one operator or number at a time, and runs the tests.

`python tests/mutation.py FOLDER [--every N] [--log LOG] [FILE ...]` prints how many mutants there were and were
killed, and fails if one survives that is not in mutants.txt, which has the reason for each that no test can kill.
--every 5 tries one in five. C mutants are compiled into the C tests, with asserts, on a processor with AVX2; those of
Python are run in forks of a process that has imported NumPy and pytest already. Survivors are printed when found.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import tokenize
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LISTED = Path(__file__).with_name("mutants.txt")
# Seconds of a processor for the tests of one mutant; one that takes longer is killed, as an endless loop is, and so is
# one that waits ten times as long.
DEADLINE = 20

# The file, and what kills its mutants, quickest first; a number is one of inputs.
FORMULA_PROGRAMS = ["fuzz_step 50", "fuzz_ufunc 50", "test_fixed", "test_step", "fuzz_ufunc 1000", "fuzz_step 1000"]
STORAGE_PROGRAMS = ["test_storage", "test_fixed", *FORMULA_PROGRAMS, "fuzz_step 3000"]
C_PROGRAMS = {
    "rmsp_bind.c": ["fuzz_bind 300", "test_bind", "fuzz_step 20", "fuzz_bind 3000", "test_step"],
    "rmsp_step.c": ["fuzz_step 50", "test_step", "fuzz_step 1000"],
    "rmsp_formula.inc.h": FORMULA_PROGRAMS,
    "rmsp_kernel.inc.h": FORMULA_PROGRAMS,
    "rmsp_bf16.inc.h": STORAGE_PROGRAMS,
    "rmsp_convert.inc.h": STORAGE_PROGRAMS,
    "rmsp_storage.h": STORAGE_PROGRAMS,
}
# What is compiled anew with a mutant of another file.
UNITS = {
    "rmsp_formula.inc.h": ["rmsp_kernels.c", "rmsp_neutral.c"],
    "rmsp_kernel.inc.h": ["rmsp_kernels.c"],
    "rmsp_bf16.inc.h": ["rmsp_kernels.c", "rmsp_neutral.c"],
    "rmsp_convert.inc.h": ["rmsp_kernels.c"],
    "rmsp_storage.h": ["rmsp_kernels.c", "rmsp_neutral.c", "rmsp_plan.c", "rmsp_dtype.c"],
}
PYTHON_TESTS = {
    "reference.py": [
        "test_reference.py",
        "test_vectors.py",
        "test_check.py::test_the_hashes_are_those_of_the_reference",
    ],
    "coefficients.py": ["test_coefficients.py", "test_overrides.py", "test_functional.py"],
    "options.py": ["test_options.py"],
    "arrays.py": ["test_arrays.py", "test_leaves.py", "test_adversarial_inputs.py"],
}
OTHER = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&", "+": "-", "-": "+",
    "*": "/", "/": "*", "%": "*", "+=": "-=", "-=": "+=", "*=": "/=", "//": "*", "**": "*", "and": "or", "or": "and",
    "not": "bool", "is": "is not", "in": "not in", "&": "|", "|": "&", "&=": "|=", "|=": "&=", "!": "!!",
    "True": "False", "False": "True", ">>": "<<", "<<": ">>",
}  # fmt: skip


class Mutant(NamedTuple):
    """One change of one file."""

    file: str
    line: int
    text: str
    """The line as it was, without indentation."""
    change: str
    """What became of which token, and which of the line it was."""
    source: str

    @property
    def key(self) -> str:
        """As mutants.txt has it."""
        return f"{self.file} | {self.change} | {self.text}"


def changed(file, source, tokens):
    """The mutants of tokens: (offset, text, what is in its place)."""
    for offset, old, new in tokens:
        line = source.count("\n", 0, offset)
        start = source.rfind("\n", 0, offset) + 1
        text = source[start : source.find("\n", offset)]
        place = source[start:offset].count(old)
        yield Mutant(
            file,
            line + 1,
            text.strip(),
            f"{old} -> {new} ({place})",
            source[:offset] + new + source[offset + len(old) :],
        )


def other_of(token):
    """What takes the place of a token, or None."""
    if re.fullmatch(r"\d+", token):
        return str(int(token) + 1)
    if re.fullmatch(r"0[xX][\da-fA-F]+u?", token):
        return hex(int(token.rstrip("u"), 16) + 1) + "u"
    return OTHER.get(token)


def c_tokens(source):
    """Operators between expressions, and numbers; not of comments, strings, directives, asserts and types."""
    pattern = re.compile(
        r"/\*.*?\*/|//[^\n]*|^#(?:[^\n\\]|\\\n)*|\"[^\"\n]*\"|\bassert\([^;]*;|[A-Za-z_]\w*|0[xX][\w.+-]*|\.?\d[\w.]*"
        r"|[<>]=|[=!]=|&&|\|\||<<=?|>>=?|->|\+\+|--|[-+*/%&|]=|[-+*/%&|<>!]|[^\s\w]|\n",
        re.DOTALL | re.MULTILINE,
    )
    before = ""
    for found in pattern.finditer(source):
        token = found[0]
        other = other_of(token)
        after = source[found.end() : found.end() + 1]
        is_binary = re.fullmatch(r"\w+|[\])]", before) and before not in ("return", "sizeof", "const", "void", "char")
        is_pointer = token == "*" and (not source[found.start() - 1].isspace() or not after.isspace())
        if other and (is_binary or token == "!" or token[0].isdigit()) and not (token in "*&-+" and is_pointer):
            yield found.start(), token, other
        if token != "\n" and not token.startswith(("/*", "//")):
            before = token


def python_tokens(source):
    """Operators, words and numbers of code: not of docstrings, annotations, imports and what raises."""
    skipped = set()  # lines, and places as (line, column)
    for node in ast.walk(ast.parse(source)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_overload = isinstance(node, ast.FunctionDef) and "overload" in map(ast.unparse, node.decorator_list)
        if is_text or is_overload or isinstance(node, ast.Raise | ast.Import | ast.ImportFrom):
            skipped.update(range(node.lineno, node.end_lineno + 1))
        for name in ("annotation", "returns"):
            hint = getattr(node, name, None)
            if hint is not None:
                skipped.update((hint.lineno, column) for column in range(hint.col_offset, hint.end_col_offset))
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    before = None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line, column = token.start
        other = other_of(token.string)
        is_code = token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER)
        is_star = token.string in ("*", "**", "/") and (before is None or before.string in (*"([,{", "lambda"))
        is_loop = (token.string == "in" and "for " in token.line[:column]) or (
            before is not None and before.string == "is"
        )
        if other and is_code and not is_star and not is_loop and not {line, (line, column)} & skipped:
            yield offsets[line - 1] + column, token.string, other
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = token


# ---- C ----


FLAGS = ["-std=c99", "-O0", "-ffp-contract=off", "-w", "-DRMSP_HAVE_PTHREADS", "-DRMSP_HAVE_AVX2"]
FLAGS += [f"-I{ROOT}/tests/c"]
# The kernels of both are mutants: those with vectors leave their rest to the baseline.
ISAS = {"baseline": ["-DRMSP_FEW_KERNELS"], "avx2": ["-mavx2", "-DRMSP_VECTOR_BYTES=32"]}
# A mutant that survives is tried again with the sanitizers, which find what is read beyond an array.
BUILDS = {"plain": [], "sanitized": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]}


def compile_c(folder, build_name, path):
    """Compile a file, those of the kernels for each instruction set: the objects."""
    made = []
    for isa, own in ISAS.items() if path.name in ("rmsp_kernels.c", "rmsp_neutral.c") else [("baseline", [])]:
        made.append(folder / f"{path.stem}.{isa}.o")
        flags = [*FLAGS, *BUILDS[build_name], *own, f"-DRMSP_ISA={isa}", f"-I{path.parent}", f"-I{ROOT}/src/c"]
        subprocess.run(["gcc", *flags, "-c", path, "-o", made[-1]], check=True, capture_output=True)
    return made


def build(folder):
    """Compile what mutants are linked with."""
    sources = [*(ROOT / "src/c").glob("*.c"), *(ROOT / "tests/c").glob("*.c")]
    for name in BUILDS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        jobs = [(folder / name, name, path) for name in BUILDS for path in sources]
        list(pool.map(lambda job: compile_c(*job), jobs))


def is_killed_in(build_name, folder, mutant):
    """Whether a test of this build fails."""
    units = UNITS.get(mutant.file, [mutant.file])
    with tempfile.TemporaryDirectory() as own:
        # A file is included from the folder of the one that names it.
        for path in (*(ROOT / "src/c" / unit for unit in units), *(ROOT / "src/c").glob("*.h")):
            Path(own, path.name).write_text(path.read_text())
        Path(own, mutant.file).write_text(mutant.source)
        try:
            made = [one for unit in units for one in compile_c(Path(own), build_name, Path(own, unit))]
        except subprocess.CalledProcessError:
            return True
        replaced = {path.name for path in made}
        others = (path for path in (folder / build_name).glob("rmsp_*.o") if path.name not in replaced)
        objects = [*made, *others, "-lm", "-lpthread"]
        for program in C_PROGRAMS[mutant.file]:
            name, *inputs = program.split()
            run, main_object = Path(own, name), folder / build_name / f"{name}.baseline.o"
            if not run.exists():
                subprocess.run(["gcc", *BUILDS[build_name], main_object, *objects, "-o", run], check=True)
            try:
                command = ["prlimit", f"--cpu={DEADLINE}", run, *inputs]
                if subprocess.run(command, check=False, capture_output=True, timeout=10 * DEADLINE).returncode:
                    return True
            except subprocess.TimeoutExpired:
                return True
    return False


def try_c(folder, mutant):
    """Whether a test fails."""
    return any(is_killed_in(name, folder, mutant) for name in BUILDS)


# ---- Python ----


def prepare_python():
    """Import what all mutants need, and let Hypothesis neither shrink nor remember."""
    import hypothesis
    import hypothesis.extra.numpy
    import ml_dtypes
    import numpy as np
    import pytest

    hypothesis.settings.register_profile(
        "mutants", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], database=None, derandomize=True
    )
    hypothesis.settings.load_profile("mutants")
    os.environ["RMSP_EXAMPLES"] = "60"
    return hypothesis, ml_dtypes, np, pytest


def try_python(mutant):
    """Whether a test fails, in a fork in which the package is imported with the mutant in it."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (DEADLINE, DEADLINE))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os._exit(run_mutant(mutant))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(child, child)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
    signal.alarm(10 * DEADLINE)
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    return status != 0


def run_mutant(mutant):
    from importlib.machinery import SourceFileLoader

    import pytest

    plain = SourceFileLoader.get_code

    def get_code(self, name):
        if name == "rmsprop_native." + mutant.file.removesuffix(".py"):
            return compile(mutant.source, self.path, "exec", dont_inherit=True)
        return plain(self, name)

    SourceFileLoader.get_code = get_code
    tests = [str(ROOT / "tests" / name) for name in PYTHON_TESTS[mutant.file]]
    try:
        return int(pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-m", "not threads", *tests]))
    except BaseException:  # noqa: BLE001 - the import failed, for instance
        return 1


# ---- all ----


def unchanged(file):
    """The file as it is, as a mutant that must survive."""
    folder = ROOT / ("src/c" if file in C_PROGRAMS else "src/rmsprop_native")
    return Mutant(file, 0, "", "", (folder / file).read_text())


def mutants_of(file):
    """All mutants of a file."""
    source = unchanged(file).source
    return list(changed(file, source, (c_tokens if file in C_PROGRAMS else python_tokens)(source)))


def listed():
    """The mutants that no test can kill."""
    return {line for line in LISTED.read_text().splitlines() if line.count(" | ") >= 2 and not line.startswith("#")}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--log", type=Path, help="where the last line is written too")
    parser.add_argument("files", nargs="*", default=[*C_PROGRAMS, *PYTHON_TESTS])
    arguments = parser.parse_intermixed_args()
    known, tried, survivors, equivalent = listed(), 0, [], 0
    if set(arguments.files) & set(C_PROGRAMS):
        build(arguments.folder)
    for file in arguments.files:
        mutants = mutants_of(file)
        stale = {key for key in known if key.startswith(f"{file} | ")} - {m.key for m in mutants}
        if stale:
            raise SystemExit(f"{LISTED.name} lists what is no mutant: {sorted(stale)}")
        chosen = [m for m in mutants[:: arguments.every] if m.key not in known]
        equivalent += sum(m.key in known for m in mutants)
        if file in C_PROGRAMS:
            if try_c(arguments.folder, unchanged(file)):
                raise SystemExit(f"{file}: the tests fail without a mutant")
            pool = ThreadPoolExecutor(2)
            killed = pool.map(partial(try_c, arguments.folder), chosen)
        else:
            prepare_python()
            if try_python(unchanged(file)):
                raise SystemExit(f"{file}: the tests fail without a mutant")
            killed = multiprocessing.get_context("fork").Pool(2).imap(try_python, chosen)
        print(f"{file}: {len(mutants)} mutants, {len(chosen)} of them are tried", flush=True)
        for m, is_killed in zip(chosen, killed, strict=True):
            tried += 1
            if not is_killed:
                survivors.append(m)
                print(f"  survived, line {m.line}: {m.key}", flush=True)
    summary = f"mutants tried: {tried}, survived: {len(survivors)}, listed with a reason: {equivalent}"
    print(summary)
    if arguments.log:
        arguments.log.write_text(summary + "\n")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
