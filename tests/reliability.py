"""Writes the table of docs/reliability.md from what make hardening leaves: JUnit results, coverage, lines of tools."""

from __future__ import annotations

import datetime
import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

FORMS = {
    "attacks": "bad input, threads, containers, memory, numbers and files: `tests/test_adversarial_*.py`; the check",
    "forks": "1,000 forks of a process whose threads are inside steps; each child takes its own steps, with their bits",
    "large": "arrays of more than 2**31 elements, dense and by rows (5 GB of memory)",
    "random": "20,000 random trees, options, dtypes, storage types, layouts; 1 to 4 steps each, beside the reference",
    "machine": "1000 random programs of 30 calls of the public API, on up to three states, beside the reference",
    "leaks": "8000 calls of each kind, good and refused: blocks, memory, references, open files",
    "sanitize-quick-address": "tests of arrays, containers, plans, steps and memory under ASan and UBSan",
    "sanitize-quick-torch": "the same for tensors of torch",
    "sanitize-quick-thread": "tests of threads under the thread sanitizer",
    "sanitize-quick-address-c": "the C tests under ASan, with its search for leaks, and UBSan",
    "sanitize-quick-thread-c": "the C tests under the thread sanitizer",
    "coverage_python": "statements and branches of Python, those of interop apart, that tests reach (98 % asked)",
    "coverage_line": "lines of C that tests reach (95 % asked)",
    "coverage_branch": "branches of C, those of templates apart, that tests reach (95 % asked)",
    "fuzz_bind": "inputs of libFuzzer for `rmsp_bind`, under the sanitizers, beside a search of every element",
    "fuzz_step": "inputs of libFuzzer for `rmsp_step`, under the sanitizers, beside the formula",
    "fuzz_ufunc": "inputs of libFuzzer for the loop of the ufuncs, under the sanitizers, beside the formula",
    "fuzz_load": "inputs of libFuzzer (atheris) for `load`: forged headers with checksums that are right, and bytes",
    "mutation": "changes of one operator or number, one in five, in formula, transaction and checks: all seen",
    "clang": "the C tests built by clang; builds without optional features before them",
    "musl": "the C tests with musl, linked statically",
    "valgrind": "the C tests but for plans and threads under valgrind",
    "avx512": "the C tests but for plans and threads with AVX-512, under Linux on Bochs",
    "aarch64": "the C tests for AArch64 (NEON), under QEMU",
    "sve": "the C tests for AArch64 with SVE, vectors of 512 bits, under QEMU",
    "s390x": "the C tests for s390x (big-endian), under QEMU",
    "riscv64": "the C tests for riscv64, under QEMU",
    "ppc64le": "the C tests for ppc64le, under QEMU",
    "i686": "the C tests for 32-bit x86, under QEMU",
}
START, END = "<!-- made by make hardening -->\n", "<!-- end -->\n"
PRINTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)|mutants tried: (\d+), survived: 0")


def passed_of(name: str, path: Path) -> tuple[int, int]:
    """How many tests passed and how many were not run; a failure is an error."""
    suite = next(ET.parse(path).getroot().iter("testsuite"))
    tests, *bad = (int(suite.get(key, "0")) for key in ("tests", "failures", "errors"))
    skipped = sum(int(suite.get(key, "0")) for key in ("skipped", "disabled"))
    if any(bad) or tests == skipped:
        raise SystemExit(f"{name}: {bad} failures and errors, {tests} tests, of which {skipped} were skipped")
    return tests - skipped, skipped


def tried_of(name: str, path: Path) -> tuple[int, int]:
    """How much a tool tried, of which it left out nothing; it ends with an error where it finds one."""
    found = PRINTED.search(path.read_text())
    if found is None:
        raise SystemExit(f"{name}: {path} does not say how much was tried")
    return int(found[1] or found[2]), 0


def reached_of(name: str, path: Path) -> tuple[int, int]:
    """What tests reach and what they do not, of coverage.py or gcovr, which end with an error below their bounds."""
    found = json.loads(path.read_text())
    if "totals" in found:
        both = found["totals"]
        return both["covered_lines"] + both["covered_branches"], both["missing_lines"] + both["missing_branches"]
    kind = name.removeprefix("coverage_")
    return found[f"{kind}_covered"], found[f"{kind}_total"] - found[f"{kind}_covered"]


READERS = {".xml": passed_of, ".log": tried_of, ".json": reached_of}


def row(name: str, folder: Path) -> str:
    """One line of the table, which says so where there are no results."""
    for suffix, read in READERS.items():
        path = folder / f"{name}{suffix}"
        if path.exists():
            passed, missed = read(name, path)
            day = datetime.date.fromtimestamp(path.stat().st_mtime)
            return f"| {FORMS[name]} | {passed:,} | {missed:,} | {day} |\n"
    return f"| {FORMS[name]} | not run | | |\n"


def main(folder: Path, page: Path) -> None:
    """Replace what is between the two marks of the page."""
    head, rest = page.read_text().split(START)
    table = "\n| what | passed | not run or reached | on |\n|---|---|---|---|\n"
    table += "".join(row(name, folder) for name in FORMS)
    page.write_text(f"{head}{START}{table}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
