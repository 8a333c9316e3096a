"""The examples run as a user runs them: headless, with a progress bar, to their figure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, tmp_path, *arguments):
    """What an example prints; its figure must be a picture of some size, its progress bar must reach the end."""
    figure = tmp_path / "figure.png"
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, "--figure", figure, *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "100%|" in done.stderr
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert figure.stat().st_size > 10_000
    return done.stdout


def test_digits(tmp_path):
    printed = run("digits.py", tmp_path)
    accuracy = re.search(r"^test accuracy: (\d\d\.\d) %$", printed, re.MULTILINE)
    assert float(accuracy[1]) >= 97
    assert "optimizer step: " in printed
    assert "trained parameters the same to the bit: yes" in printed
