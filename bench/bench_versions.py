"""Small steps beside an earlier version and peers, hot and after a backward pass: processes that take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import baseline
import pytest
from child import AFTER_A_PASS, CASES
from conftest import QUICK, THREADS

pytestmark = pytest.mark.skipif(THREADS != 1, reason="small work stays on one thread")

CHILD = Path(__file__).parent / "child.py"
PEERS = ("numpy", "numba", "torch", "torch foreach", "torch fused adagrad")
SETS = 3
# What a case is for the report: "ours" is the step that other benchmarks of the same arrays name so too.
CASE_OF = {
    "1 x 4": {"count": 1, "n": 4},
    "100 x 64": {"count": 100, "n": 64},
    "in order": {"count": 1000, "n": 64},
    "scattered": {"count": 1000, "n": 64, "layout": "scattered"},
    "nested dict": {"count": 1000, "n": 64, "layout": "nested dict"},
    "lone": {"n": 64},
}


class Version:
    """A process with one version of the package, or with peers, which works only while it is asked."""

    def __init__(self, case, seed, *peers, path=None):
        environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
        self.process = subprocess.Popen(
            [sys.executable, CHILD, case, str(seed), *peers],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        first = json.loads(self.read())
        self.contenders = first["contenders"]
        assert path is None or Path(first["package"]).is_relative_to(path)

    def read(self):
        """The next line; where there is none, the process has ended, and its own message is on stderr."""
        line = self.process.stdout.readline()
        assert line, "the process of a version ended"
        return line

    def turn(self, name):
        """Seconds a call of a contender in one turn."""
        print(name, file=self.process.stdin, flush=True)
        return float(self.read())

    def end(self):
        """No more commands, which ends the process."""
        self.process.communicate()


def name_of(version, contender):
    """How the report names it: "ours" and "d323871", "ema" and "d323871 ema"."""
    if contender.startswith("ours") and version:
        return version + contender.removeprefix("ours")
    return f"{version} {contender}".strip()


def turns_of(case, seed):
    """The processes of a case and the turns of their contenders: ours, the earlier version if it was built, peers."""
    versions = {"": Version(case, seed)}
    if not baseline.missing():
        versions[baseline.COMMIT] = Version(case, seed, path=baseline.SITE)
    turns = {name_of(which, name): partial(v.turn, name) for which, v in versions.items() for name in v.contenders}
    others = Version(case, seed, *PEERS) if case != "nested dict" else None  # which peers do not take
    turns |= {name: partial(others.turn, name) for name in others.contenders} if others else {}
    return [*versions.values(), *([others] if others else [])], turns


@pytest.mark.parametrize("case", CASES)
def test_versions(take_turns, case):
    """Each case in some sets of processes, since what the heap and the pages of one happen to be changes the times."""
    cold = case in AFTER_A_PASS
    if cold:
        pytest.importorskip("torch")
    sets = [turns_of(case, seed) for seed in range(1 if QUICK else SETS)]
    rounds = (15 if QUICK else 60) if cold else 5 if QUICK else 24
    info = CASE_OF[case] | {"dtype": "f32", "missing_baseline": baseline.missing()}
    take_turns(*(turns for _, turns in sets), rounds=rounds, kind="versions", **info)
    for process in (process for processes, _ in sets for process in processes):
        process.end()
