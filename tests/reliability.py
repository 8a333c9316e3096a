"""Writes the table of docs/reliability.md from the JUnit results that make hardening leaves."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

FORMS = {
    "attacks": "bad input, threads, containers, memory, numbers and files: `tests/test_adversarial_*.py`; the check",
    "forks": "1,000 forks of a process whose threads are inside steps; each child takes its own steps, with their bits",
    "large": "arrays of more than 2**31 elements, dense and by rows (5 GB of memory)",
    "random": "20,000 random trees, options, dtypes and layouts, each over 1 to 4 steps, beside the reference",
    "valgrind": "the C tests but for plans and threads under valgrind",
    "aarch64": "the C tests for AArch64 (NEON), under QEMU",
    "s390x": "the C tests for s390x (big-endian), under QEMU",
    "riscv64": "the C tests for riscv64, under QEMU",
    "i686": "the C tests for 32-bit x86, under QEMU",
}
START, END = "<!-- made by make hardening -->\n", "<!-- end -->\n"


def row(name: str, folder: Path) -> str:
    """One line of the table, which says so where there are no results; a failure is an error."""
    if not (folder / f"{name}.xml").exists():
        return f"| {FORMS[name]} | not run | | |\n"
    suite = next(ET.parse(folder / f"{name}.xml").getroot().iter("testsuite"))
    tests, *bad = (int(suite.get(key, "0")) for key in ("tests", "failures", "errors"))
    skipped = sum(int(suite.get(key, "0")) for key in ("skipped", "disabled"))
    if any(bad) or tests == skipped:
        raise SystemExit(f"{name}: {bad} failures and errors, {tests} tests, of which {skipped} were skipped")
    return f"| {FORMS[name]} | {tests - skipped:,} | {skipped} | {suite.get('timestamp', '')[:10]} |\n"


def main(folder: Path, page: Path) -> None:
    """Replace what is between the two marks of the page."""
    head, rest = page.read_text().split(START)
    table = "\n| what | tests passed | not run | on |\n|---|---|---|---|\n"
    table += "".join(row(name, folder) for name in FORMS)
    page.write_text(f"{head}{START}{table}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
