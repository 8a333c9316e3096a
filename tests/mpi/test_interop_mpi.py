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


@pytest.mark.parametrize("loaded", RANKS[:-1])
def test_fewer_ranks_go_on(loaded):
    """With what each larger number of ranks saved."""
    found(RANKS[-1])
    code = "import sys, ranks; ranks.FOLDER = ranks.Path(sys.argv[1]); ranks.saved_by_more(int(sys.argv[2]))"
    done = mpiexec(loaded, "-c", code, folder(), RANKS[-1], deadline=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("level", ["single", "funneled"])
def test_levels_of_threads(level):
    """The workers of a step never call MPI, so that any level will do."""
    code = f"""
import mpi4py
mpi4py.rc.thread_level = "{level}"
import numpy as np
from mpi4py import MPI
import rmsprop_native as rms
from rmsprop_native.interop import mpi
assert MPI.Query_thread() == MPI.THREAD_{level.upper()}
rms.set_num_threads(2)
w, one = np.zeros(1 << 20, np.float32), np.zeros(1 << 20, np.float32)
state, ref = mpi.init(w), rms.init(one)
for _ in range(3):
    mpi.update_(w, np.ones_like(w), state)
    rms.update_(one, np.ones_like(one), ref)
assert np.array_equal(w, one)
"""
    done = mpiexec(2, "-c", code, deadline=60)
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


def load_costs():
    spec = importlib.util.spec_from_file_location("mpi_costs", ROOT / "bench" / "mpi_costs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mpi_costs"] = module
    spec.loader.exec_module(module)
    return module


costs = load_costs()


def test_costs_on_paper():
    """The simulation of bench/mpi_costs.py: never less than what must be done one after another, and in the limits what
    the formulas say.
    """
    assert costs.held(1e9, 4) == 1e9
    assert costs.sent(1e9, 4) == 6e9
    assert costs.sent(1e9, 4, 2) == 4.5e9
    for ranks, params, item in itertools.product((1, 2, 64), (1e6, 1e9), costs.ITEMS.values()):
        machine = costs.CLUSTER
        alone = costs.simulated(params, ranks, machine, overlap=False, item=item)
        hidden = costs.simulated(params, ranks, machine, item=item)
        wire = costs.sent(params, ranks, item) / machine.gather
        work = params / ranks / machine.step
        if ranks > 1:
            work += (4 * params / machine.pack + item * params / machine.unpack) * (1 + 1 / ranks)
            work -= item * params / ranks / machine.unpack  # of the parameters a rank unpacks those of others
        assert max(wire, work) < hidden <= alone
        assert alone > wire + work
    slow = costs.CLUSTER._replace(reduce=1e6, gather=1e6)
    seconds = costs.simulated(1e8, 8, slow)
    assert 1 < seconds / (costs.sent(1e8, 8) / slow.gather) < 1.1  # the network is all there is


def test_costs_of_the_page():
    """What docs/distributed.md has on paper is what the simulation says; the measured table can be replaced."""
    page = (ROOT / "docs" / "distributed.md").read_text()
    assert costs.written(page, costs.paper_table()) == page
    head = ["| ranks | type | parameters | Allreduce, whole step | sharded | ratio | simulated / measured |"]
    made = costs.written(page, [*head, "|---|---|---|---|---|---|---|", "| 1 |"])
    assert len(made.splitlines()) == len(page.splitlines()) - 11
    with pytest.raises(ValueError, match="has 0 tables"):
        costs.written(made, ["| other |", "|---|"])


DIES = """
import os, signal, sys
import numpy as np
from mpi4py import MPI
from rmsprop_native.interop import mpi

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def interrupt(*_):
    raise KeyboardInterrupt

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
WITHIN = "rank 1 failed in a call of all ranks, which are ended"
# The rank, what happens in it, the step of the checkpoint that is left, and what the rank says.
HOWS = {
    "between steps": (1, "kill()", 5, ""),
    "before it reduces": (1, "mpi._Step._reduce = kill", 5, ""),
    "before it gathers": (1, "mpi._Step._step_bucket = kill", 5, ""),
    "an error within a step": (1, "mpi.update_slice = None", 5, WITHIN),
    "an interrupt within a step": (1, "mpi.update_slice = interrupt", 5, WITHIN),
    "an interrupt between agreement and step": (1, "mpi._Step.run = interrupt", 5, WITHIN),
    "an interrupt within save": (0, "mpi.secrets.token_hex = interrupt", 5, WITHIN.replace("1", "0")),
    "while a part is written": (1, "mpi.write_content = kill", 5, ""),
    "before the manifest": (0, "mpi.write_manifest = kill", 5, ""),
    "after the manifest": (0, "mpi.is_part = kill", 6, ""),
}


@pytest.mark.parametrize("how", HOWS)
def test_a_rank_that_dies_ends_the_others(how, tmp_path):
    """Within what the launcher does; the last checkpoint is whole, and the next job saves over what was left."""
    rank, code, step, said = HOWS[how]
    done = mpiexec(3, "-c", DIES.format(rank=rank, how=code), tmp_path, deadline=60)
    assert rms.load(tmp_path).step == step
    assert done.returncode != 0
    assert "all steps" not in done.stdout
    assert said in done.stderr
