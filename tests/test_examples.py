"""The examples run as a user runs them: headless, with a progress bar, to their figure."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_ravine(tmp_path):
    printed = run("ravine.py", tmp_path)
    slow, zigzag, rmsprop = map(float, re.findall(r": loss (\d+\.\d+) after 60 steps", printed))
    assert rmsprop < zigzag < slow


def test_rho(tmp_path):
    printed = run("rho.py", tmp_path)
    found = re.findall(r"after (\d+) steps, longest step (\d+\.\d+) lr", printed)
    delays, lengths = zip(*((int(delay), float(length)) for delay, length in found), strict=True)
    assert delays[0] < delays[1] < delays[2]
    assert lengths[0] < lengths[1] < lengths[2]


def test_bfloat16(tmp_path):
    printed = run("bfloat16.py", tmp_path, "--epochs", "12", "--seeds", "1")
    losses = dict(re.findall(r"^(.*): loss (\d\.\d+) ", printed, re.MULTILINE))
    exact, nearest, split, stochastic = (float(loss) for loss in losses.values())
    assert list(losses) == ["float32", "bfloat16, to the nearest", "bfloat16, split", "bfloat16, stochastic"]
    assert abs(split / exact - 1) < 0.01
    assert abs(stochastic / exact - 1) < 0.02
    assert nearest > 1.3 * exact


def test_forgetting_factor(tmp_path):
    printed = run("forgetting_factor.py", tmp_path, "--epochs", "3")
    assert len(re.findall(r"rho 0\.\d+: last loss \d\.\d+, test accuracy \d\d\.\d %", printed)) == 4


def test_text(tmp_path):
    printed = run("text.py", tmp_path, "--steps", "60")
    bits = float(re.search(r"^bits a character held out: (\d\.\d\d)$", printed, re.MULTILINE)[1])
    single = float(re.search(r"a table of single letters: (\d\.\d\d);", printed)[1])
    assert bits < single  # it has learned more than how frequent each letter is
    assert len(re.search(r"^it writes: (.*)$", printed, re.MULTILINE)[1]) > 100


@pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="the recordings ship inside the aeon package")
def test_speech(tmp_path):
    printed = run("speech.py", tmp_path, "--epochs", "15", "--seeds", "1")
    assert float(re.search(r"^seed 0: test accuracy (\d\d\.\d) %$", printed, re.MULTILINE)[1]) >= 85


def test_speech_says_what_it_needs():
    code = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "aeon" else find(name, *package)
sys.path.insert(0, sys.argv.pop())
runpy.run_path(sys.path[0] + "/speech.py", run_name="__main__")
"""
    command = [sys.executable, "-c", code, EXAMPLES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "the recordings ship inside the aeon package: pip install --no-deps aeon\n"


def test_optimizers(tmp_path):
    printed = run("optimizers.py", tmp_path, "--epochs", "4", "--seeds", "2", "--rates", "3")
    found = dict(re.findall(r"^(\w+): best lr .*, test accuracy (\d+\.\d) ", printed, re.MULTILINE))
    assert list(found) == ["SGD", "momentum", "AdaGrad", "Adadelta", "RMSProp", "Adam"]
    assert float(found["RMSProp"]) >= 90


def test_embeddings(tmp_path):
    printed = run("embeddings.py", tmp_path, "--steps", "400", "--rows", "16384")
    first, last = re.search(r"loss: (\d\.\d+) at first, (\d\.\d+) at last", printed).groups()
    assert float(last) < float(first) - 0.5
    assert re.search(r"a step over 16384 rows: \d+ µs by RowGrad, \d+ µs dense", printed)


def test_maml(tmp_path):
    printed = run("maml.py", tmp_path, "--steps", "300")
    errors = {
        name: tuple(map(float, pair))
        for name, *pair in re.findall(r"^(.+): error (\S+), after 3 steps (\S+)$", printed, re.MULTILINE)
    }
    before, after = errors["MAML"]
    assert after < before
    assert after < errors["all waves at once"][1]


def test_population(tmp_path):
    printed = run("population.py", tmp_path, "--networks", "30", "--epochs", "2")
    found = re.findall(r"^rho (0\.\d+): (\d+\.\d) % at lr (\S+);", printed, re.MULTILINE)
    assert [rho for rho, *_ in found] == ["0.5", "0.9", "0.99"]
    assert all(float(best) > 60 and 1e-5 < float(rate) < 1 for _, best, rate in found)


def test_resume(tmp_path):
    printed = run("resume.py", tmp_path, "--batches", "200", "--kills", "2")
    assert "losses, parameters and state the same to the bit: yes" in printed
    killed = re.search(r"killed after batches (\d+), (\d+) of 200", printed)
    assert 0 < int(killed[1]) < int(killed[2]) < 200


def test_embed(tmp_path):
    """It is built as a user builds it, against what is installed, and not against the sources."""
    for path in (EXAMPLES / "embed").iterdir():
        if path.suffix in (".py", ".pyx"):
            shutil.copy(path, tmp_path)
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=True)
    printed = subprocess.run(
        [sys.executable, "compare.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "the same to the bit: yes" in printed
    first, last = re.search(r"^loss (\d+\.\d+) -> (\d+\.\d+)$", printed, re.MULTILINE).groups()
    assert float(last) < 0.1 < float(first)


def test_keras_mlp_without_keras(tmp_path):
    """With Keras it runs among the tests of peers."""
    printed = run("keras_mlp.py", tmp_path, "--epochs", "3", "--without-keras")
    assert "without Keras there is nothing to compare with" in printed
    assert re.search(r"final loss, NumPy with rmsprop_native: 0\.\d{6}", printed)
