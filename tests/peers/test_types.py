"""The types of the installed package, as pyright sees them from outside of the project, beside the real frameworks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import numpy as np
import rmsprop_native as rms

params: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {"w": np.ones(3)}
state: rms.State = rms.init(params, lr=lambda taken: 0.1 * 0.9**taken, overrides={"w": {"eps": 1e-6}})
reveal_type(rms.update_(params, params, state))
steps: int = state.step
optimizer = rms.RMSProp(params, preset="keras")
optimizer.lr = 0.01
rms.save("state.npz", state)
"""


def test_every_public_name_has_a_type(tmp_path):
    pyright = Path(sys.executable).parent / "pyright"
    done = subprocess.run(
        [
            pyright,
            "--pythonpath",
            sys.executable,
            "--verifytypes",
            "rmsprop_native",
            "--ignoreexternal",
            "--outputjson",
        ],
        env=os.environ | {"PATH": f"{pyright.parent}{os.pathsep}{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    symbols = [symbol for symbol in json.loads(done.stdout)["typeCompleteness"]["symbols"] if symbol["isExported"]]
    assert len(symbols) > 400
    assert not [symbol["name"] for symbol in symbols if symbol["isTypeAmbiguous"] or not symbol["isTypeKnown"]]


def test_a_program_is_checked_strictly(tmp_path):
    """The installed package brings its types: what is right passes, what is wrong does not."""
    program = tmp_path / "program.py"

    def errors(text):
        program.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--config-file=", "--strict", "--follow-imports=silent", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    assert 'Revealed type is "dict[str, numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]]"' in errors(PROGRAM)
    assert "Success: no issues found" in errors(PROGRAM)
    assert 'has incompatible type "str"; expected "State"' in errors(PROGRAM + 'rms.update_(params, params, "state")\n')
