"""Small steps beside those of an earlier version, hot and after a backward pass: two processes that take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import baseline
import pytest
from child import HOT, HOT_AND_COLD
from conftest import QUICK, THREADS

pytestmark = pytest.mark.skipif(THREADS != 1, reason="small work stays on one thread")

CHILD = Path(__file__).parent / "child.py"
PEERS = ("numpy", "numba", "torch", "torch foreach", "torch fused adagrad")
PAIRS = 3
# What a case is for the report: "ours" is the step that other benchmarks of the same arrays name so too.
CASES = {
    "1 x 4": {"count": 1, "n": 4},
    "100 x 64": {"count": 100, "n": 64},
    "in order": {"count": 1000, "n": 64},
    "scattered": {"count": 1000, "n": 64, "layout": "scattered"},
    "nested dict": {"count": 1000, "n": 64, "layout": "nested dict"},
    "lone": {"n": 64},
}


class Version:
    """A process with one version of the package, which works only while it is asked."""

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


def versions_of(case, seed, *names):
    """A process with our version, in which the peers run too, and one with the earlier version, if that was built."""
    versions = {"": Version(case, seed, *names)}
    if not baseline.missing():
        versions[baseline.COMMIT] = Version(case, seed, path=baseline.SITE)
    return versions


@pytest.mark.parametrize("case", HOT | HOT_AND_COLD)
def test_versions(take_turns, case):
    """Each case in some pairs of processes, since what the heap and the pages of one happen to be changes the times."""
    if case in HOT_AND_COLD:
        pytest.importorskip("torch")
    pairs = [versions_of(case, seed, *PEERS) for seed in range(1 if QUICK else PAIRS)]
    places = [
        {
            name_of(prefix, name): partial(version.turn, name)
            for prefix, version in versions.items()
            for name in version.contenders
        }
        for versions in pairs
    ]
    rounds = 5 if QUICK else 15 if case in HOT_AND_COLD else 24
    take_turns(*places, rounds=rounds, kind="versions", dtype="f32", missing_baseline=baseline.missing(), **CASES[case])
    for version in (version for versions in pairs for version in versions.values()):
        version.end()
