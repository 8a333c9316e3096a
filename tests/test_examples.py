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


def test_linear_regression(tmp_path):
    printed = run("linear_regression.py", tmp_path)
    first = dict(re.findall(r"bias_correction=(\w+): first step (\d\.\d+)", printed))
    # At the first step the corrected mean of squares is g**2, so the step is lr; without it 1 / sqrt(1 - rho) of that.
    assert float(first["True"]) == 0.02
    assert float(first["False"]) == 0.2
    assert all(abs(float(weight) - 2) < 0.1 for weight in re.findall(r"last weight (\d\.\d+)", printed))


def test_forgetting_factor(tmp_path):
    printed = run("forgetting_factor.py", tmp_path, "--epochs", "3")
    assert len(re.findall(r"rho 0\.\d+: last loss \d\.\d+, test accuracy \d\d\.\d %", printed)) == 4


def test_resume(tmp_path):
    printed = run("resume.py", tmp_path, "--batches", "200", "--kills", "2")
    assert "losses, parameters and state the same to the bit: yes" in printed
    killed = re.search(r"killed after batches (\d+), (\d+) of 200", printed)
    assert 0 < int(killed[1]) < int(killed[2]) < 200


def test_keras_mlp_without_keras(tmp_path):
    """With Keras it runs among the tests of peers."""
    printed = run("keras_mlp.py", tmp_path, "--epochs", "3", "--without-keras")
    assert "without Keras there is nothing to compare with" in printed
    assert re.search(r"final loss, NumPy with rmsprop_native: 0\.\d{6}", printed)
