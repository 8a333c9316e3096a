"""interop.mpi in 1 to 4 processes under mpiexec: ranks.py has the cases, and each test reads what its case found."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

import rmsprop_native as rms

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RANKS = (1, 2, 3, 4)
DEADLINE = 600  # seconds for all cases; they take some 30 where nothing else runs


def mpiexec(ranks, *arguments, deadline=DEADLINE, **environment):
    """Run a Python program in so many ranks; what they print, and how it ended. All are ended after the deadline."""
    command = [Path(sys.executable).with_name("mpiexec"), "-n", str(ranks), sys.executable, *map(str, arguments)]
    paths = os.pathsep.join(map(str, (HERE.parent, HERE.parent / "peers", HERE)))
    kept = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=kept, capture_output=True, text=True, timeout=deadline, check=False)


@cache
def folder():
    """What all runs share: those of more ranks load what those of fewer saved."""
    return mkdtemp()


@cache
def found(ranks):
    """For each rank what each case found, after all runs of fewer ranks."""
    before = [other for other in RANKS if other < ranks]
    for other in before:
        found(other)
    done = mpiexec(ranks, HERE / "ranks.py", folder(), ",".join(map(str, [*before, ranks])))
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(Path(folder(), f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]


def names():
    """The cases, which a process of its own lists: MPI is not begun in this one."""
    done = mpiexec(1, "-c", "import ranks; print('\\n'.join(ranks.CASES))", deadline=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("ranks", RANKS)
def test_case(ranks, name):
    for rank, cases in enumerate(found(ranks)):
        assert cases[name] == "", f"rank {rank}"


@pytest.mark.parametrize(("saved", "loaded"), [(a, b) for a in RANKS for b in RANKS if a <= b])
def test_more_ranks_go_on(saved, loaded):
    for rank, cases in enumerate(found(loaded)):
        assert cases[f"saved_by-{saved}"] == "", f"rank {rank}"


@pytest.mark.parametrize(("saved", "loaded"), [(4, 1), (4, 3), (3, 2)])
def test_fewer_ranks_go_on(saved, loaded):
    found(saved)
    code = "import sys, ranks; ranks.FOLDER = ranks.Path(sys.argv[1]); ranks.saved_by_others(int(sys.argv[2]))"
    done = mpiexec(loaded, "-c", code, folder(), saved, deadline=60)
    assert done.returncode == 0, done.stderr


def test_memory_that_init_takes():
    code = "import ranks; ranks.init_takes_no_memory_of_the_size_of_the_parameters()"
    done = mpiexec(4, "-c", code, deadline=60)
    assert done.returncode == 0, done.stderr


def test_docstring_examples_run():
    code = """
import doctest
from rmsprop_native.interop import mpi
found = doctest.testmod(mpi)
assert found.attempted > 0
raise SystemExit(found.failed)
"""
    done = mpiexec(1, "-c", code, deadline=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_mpi_digits(ranks, tmp_path):
    """The example, as a user runs it; its checkpoint is one that a single machine reads."""
    figure = tmp_path / "figure.png"
    done = mpiexec(
        ranks,
        ROOT / "examples" / "mpi_digits.py",
        "--epochs",
        6,
        "--figure",
        figure,
        "--checkpoint",
        tmp_path / "saved",
    )
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"held-out digits: (\d+\.\d)%", done.stdout)[1]) > 90
    assert "the same to the bit in all ranks: yes" in done.stdout
    assert rms.load(tmp_path / "saved", lr=0.0).step == 6 * (1347 // 48)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_costs_on_paper():
    """The simulation of bench/mpi_costs.py: never less than what must be done one after another, and in the limits what
    the formulas say.
    """
    spec = importlib.util.spec_from_file_location("mpi_costs", ROOT / "bench" / "mpi_costs.py")
    costs = importlib.util.module_from_spec(spec)
    sys.modules["mpi_costs"] = costs
    spec.loader.exec_module(costs)
    assert costs.held(1e9, 4) == 1e9
    assert costs.sent(1e9, 4) == 6e9
    assert costs.sent(1e9, 4, 2) == 4.5e9
    for ranks, params, item in itertools.product((1, 2, 64), (1e6, 1e9), costs.ITEMS.values()):
        alone = costs.simulated(params, ranks, costs.CLUSTER, overlap=False, item=item)
        hidden = costs.simulated(params, ranks, costs.CLUSTER, item=item)
        wire = costs.sent(params, ranks, item) / costs.CLUSTER.link
        copied = (4 + item) * params + 4 * params / ranks
        work = copied / costs.CLUSTER.copy + params / ranks / costs.CLUSTER.step
        assert max(wire, work) < hidden <= alone
        assert alone > wire + work
    slow = costs.CLUSTER._replace(link=1e6)
    seconds = costs.simulated(1e8, 8, slow)
    assert 1 < seconds / (costs.sent(1e8, 8) / slow.link) < 1.1  # the network is all there is


DIES = """
import os, signal, sys
import numpy as np
from mpi4py import MPI
from rmsprop_native.interop import mpi
comm = MPI.COMM_WORLD
w = np.zeros(100000)
state = mpi.init(w, comm=comm, bucket_bytes=1 << 14)
for step in range(1000):
    if step == 5 and comm.rank == {rank}:
        {how}
    mpi.update_(w, np.ones(100000), state)
    mpi.save(sys.argv[1], state)
print("all steps")
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
HOWS = {
    "kill -9": (1, KILL),
    "within a step": (1, "mpi.update_slice = None"),  # what is called for the slice fails in this rank only
    "while a part is written": (1, f"mpi.write_content = lambda *_: {KILL}"),
    "before the manifest": (0, f"mpi.write_manifest = lambda *_: {KILL}"),
}


@pytest.mark.parametrize("how", HOWS)
def test_a_rank_that_dies_ends_the_others(how, tmp_path):
    """Within what the launcher does; the last checkpoint is whole."""
    done = mpiexec(3, "-c", DIES.format(rank=HOWS[how][0], how=HOWS[how][1]), tmp_path, deadline=60)
    assert rms.load(tmp_path).step == 5
    assert done.returncode != 0
    assert "all steps" not in done.stdout
    if how == "within a step":
        assert "rank 1 failed within a step, all ranks are ended" in done.stderr
