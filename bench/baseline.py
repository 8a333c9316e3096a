"""Builds the package as it was at an earlier commit, from this repository's history, for benchmarks side by side."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMIT = "d323871"
FOLDER = ROOT / "build" / "bench" / f"{COMMIT}-{sys.implementation.cache_tag}"
SITE = FOLDER / "site"  # goes into PYTHONPATH
REASON = FOLDER / "missing.txt"  # why there is no site


def missing() -> str:
    """Why the package of `COMMIT` cannot be measured, or nothing where it can."""
    if SITE.exists():
        return ""
    return REASON.read_text() if REASON.exists() else "bench/baseline.py was not run"


def build() -> None:
    """Make `SITE`, or note in `REASON` why it could not be made."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    archive, source, site = FOLDER / "source.tar", FOLDER / "source", FOLDER / "unfinished"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-build-isolation"]
    commands = {
        "its commit is not in the history here": ["git", "-C", ROOT, "archive", "-o", archive, COMMIT],
        "its archive could not be read": ["tar", "-x", "-f", archive, "-C", source],
        "it could not be built": [*pip, "--no-deps", "--target", site, source],
    }
    source.mkdir()
    for reason, command in commands.items():
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{COMMIT}: {reason}\n{getattr(error, 'stderr', error)}")
            REASON.write_text(reason)
            return
    site.rename(SITE)  # only a finished one counts


if __name__ == "__main__":
    if missing():
        build()
