"""What a step over MPI ranks costs: the formula, a simulation of its buckets, and both beside measured steps.

Run `python bench/mpi_costs.py` where the dependency group mpi is installed (make test-mpi does). It measures 1 and 2
ranks of this machine, writes the tables of docs/distributed.md into it, and saves its figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

SIZES = (1 << 16, 1 << 20, 1 << 23)  # parameters
BUCKET = 4 << 20  # bytes
ITEM = 4  # bytes of a float32, in which gradients are summed and stepped
ITEMS = {"float32": ITEM, "bfloat16": 2}  # bytes of a parameter
DOCS = Path(__file__).parent.parent / "docs"
PAGE, FIGURE = DOCS / "distributed.md", DOCS / "images" / "mpi.png"


class Machine(NamedTuple):
    """What a rank can do."""

    latency: float
    """Seconds of a collective of nothing."""
    reduce: float
    """Bytes a second that a rank sends, and adds, of gradients."""
    gather: float
    """Bytes a second that a rank sends of parameters."""
    pack: float
    """Bytes a second that a copy of gradients writes."""
    unpack: float
    """Bytes a second that a copy of parameters writes."""
    step: float
    """Parameters a second that the kernel steps."""
    call: float = 5e-5
    """Seconds of a step's calls that do not depend on sizes: checks and agreement, without its latency."""
    bucket_call: float = 2e-5
    """The same of each bucket."""


def held(params: float, ranks: int, buffers: int = 1) -> float:
    """Bytes of running means of float32 in a rank, without the cache line that it may have more."""
    return buffers * ITEM * params / ranks


def sent(params: float, ranks: int, item: int = ITEM) -> float:
    """Bytes that a rank sends in a step, for parameters of `item` bytes: the gradients once, in float32, and the
    parameters once, each (n - 1) / n of them.
    """
    return (ranks - 1) / ranks * (ITEM + item) * params


def simulated(
    params: float, ranks: int, machine: Machine, *, bucket: float = BUCKET, overlap: bool = True, item: int = ITEM
) -> float:
    """Seconds of a step, for parameters of `item` bytes. The operations of interop.mpi in their order: the rank works,
    and the network has one queue.

    With `overlap` the network works while the rank does; without it, only while the rank waits, as where MPI has no
    thread of its own.
    """
    if ranks == 1:  # stepped where they are
        return machine.call + machine.latency + params / machine.step
    count = max(round(ITEM * params / bucket), 1)
    numbers = params / count
    others = (ranks - 1) / ranks
    wires = {
        "reduce": machine.latency + others * ITEM * numbers / machine.reduce,
        "gather": machine.latency + others * item * numbers / machine.gather,
    }
    # The own slice is divided by the ranks, stepped, and copied to be sent.
    work = numbers / ranks * (ITEM / machine.pack + 1 / machine.step + item / machine.unpack) + machine.bucket_call
    now = machine.call + machine.latency
    network = 0.0
    ready: dict[tuple[str, int], float] = {}

    def begin(what: tuple[str, int]) -> None:
        nonlocal network
        network = max(network, now) + wires[what[0]]
        ready[what] = network

    def wait(what: tuple[str, int]) -> None:
        nonlocal now
        now = max(now, ready[what]) if overlap else now + wires[what[0]]

    def pack_and_begin(k: int) -> None:
        nonlocal now
        if k < count:
            now += ITEM * numbers / machine.pack
            begin(("reduce", k))

    def unpack(k: int) -> None:
        nonlocal now
        if 0 <= k < count:
            wait(("gather", k))
            now += others * item * numbers / machine.unpack

    pack_and_begin(0)
    for k in range(count):
        pack_and_begin(k + 1)
        wait(("reduce", k))
        now += work
        unpack(k - 2)
        begin(("gather", k))
    unpack(count - 2)
    unpack(count - 1)
    return now


# ---- measured ----


FEW, MANY = 1, 33  # buckets of one cache line for each rank: what a step costs that does not depend on sizes


class Timer:
    """Times functions in all ranks at once, in interleaved rounds: the medians, of the slowest rank each time."""

    def __init__(self, comm, rounds: int) -> None:
        self.comm, self.rounds = comm, rounds

    def medians(self, contenders: dict) -> dict[str, float]:
        """Each function is timed after a call of itself, which leaves its data in the caches, or of that which precedes
        it in a pair.
        """
        from mpi4py import MPI

        times = {name: [] for name in contenders}
        for round_ in range(self.rounds + 2):
            for name, pair in contenders.items():
                before_it, function = pair if isinstance(pair, tuple) else (pair, pair)
                before_it()
                self.comm.Barrier()
                before = time.perf_counter()
                function()
                seconds = self.comm.allreduce(time.perf_counter() - before, MPI.MAX)
                if round_ > 1:
                    times[name].append(seconds)
        return {name: statistics.median(seconds) for name, seconds in times.items()}


def step_of(comm, size: int, bucket: float, dtype):
    """A sharded step."""
    import numpy as np

    from rmsprop_native.interop import mpi

    params = np.zeros(size, dtype)
    grads = np.random.default_rng(0).standard_normal(size, np.float32).astype(dtype)
    state = mpi.init(params, comm=comm, bucket_bytes=bucket)
    return lambda: mpi.update_(params, grads, state)


def whole_step_of(comm, size: int, dtype):
    """Allreduce of the gradients, and a whole step in each rank."""
    import numpy as np
    from mpi4py import MPI

    import rmsprop_native as rms

    whole, total = np.zeros(size, dtype), np.empty(size, np.float32)
    grads = np.random.default_rng(0).standard_normal(size, np.float32).astype(dtype)
    one = rms.init(whole)

    def allreduce() -> None:
        if grads.dtype == total.dtype:
            comm.Allreduce(grads, total)
        else:
            np.copyto(total, grads)
            comm.Allreduce(MPI.IN_PLACE, total)
        np.divide(total, np.float32(comm.size), out=total)
        rms.update_(whole, total, one)

    return allreduce


def operations_of(comm, size: int, dtype) -> dict:
    """What a step of so many parameters consists of, each over all buckets, by NumPy, mpi4py and `update_` alone."""
    import numpy as np
    from mpi4py import MPI

    import rmsprop_native as rms

    n, count = comm.size, max(ITEM * size // BUCKET, 1)
    part = size // count
    params, grads = np.zeros(size, dtype), np.ones(size, dtype)
    send, gathered = np.ones(part, np.float32), np.zeros(part, dtype)
    counts = [part // n] * n
    starts = [sum(counts[:rank]) for rank in range(n)]
    received = np.ones(part // n, np.float32)
    kind, sent = (MPI.FLOAT, gathered) if dtype == np.float32 else (MPI.UINT16_T, gathered.view(np.uint16))
    pieces, given = [params[k * part : k * part + part // n] for k in range(count)], [received] * count
    if n == 1:  # without buckets, by the gradients themselves
        pieces, given = [params], [grads]
    states = [rms.init(piece) for piece in pieces]

    def pack() -> None:
        for k in range(count):
            send[...] = grads[k * part : (k + 1) * part]

    def unpack() -> None:
        for k in range(count):
            params[k * part : (k + 1) * part] = gathered

    def step() -> None:
        for piece, grad, state in zip(pieces, given, states, strict=True):
            rms.update_(piece, grad, state)

    nothing, into = np.zeros(n, np.float32), np.zeros(1, np.float32)
    return {
        "pack": pack,
        "unpack": unpack,
        "step": step,
        "reduce": lambda: comm.Ireduce_scatter(send, received, counts, MPI.SUM).Wait(),
        "gather": lambda: comm.Iallgatherv(MPI.IN_PLACE, [sent, counts, starts, kind]).Wait(),
        "nothing": lambda: comm.Ireduce_scatter(nothing, into, [1] * n, MPI.SUM).Wait(),
    }


def measure(rounds: int) -> None:
    """In each rank: time the step, the same by Allreduce and a whole step, and what `Machine` needs; rank 0 prints."""
    import ml_dtypes
    import numpy as np
    from mpi4py import MPI

    import rmsprop_native as rms

    rms.set_num_threads(1)
    comm = MPI.COMM_WORLD
    found = {name: {} for name in ITEMS}
    for name, size in itertools.product(ITEMS, SIZES):
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        operations = operations_of(comm, size, dtype)
        # As a step of this size leaves the caches, which may have none of Python's objects any more.
        few, many = ((operations["step"], step_of(comm, count * 16 * comm.size, 1, dtype)) for count in (FEW, MANY))
        found[name][size] = Timer(comm, rounds).medians(
            {
                "sharded": step_of(comm, size, BUCKET, dtype),
                "allreduce": whole_step_of(comm, size, dtype),
                "few": few,
                "many": many,
            }
            | operations
        )
    if comm.rank == 0:
        print(json.dumps(found))


def machine_of(times: dict[str, float], size: int, ranks: int, item: int) -> Machine:
    """What a rank of a measured case can do, by other measurements than the step that is compared with it."""
    part = min(ITEM * size, BUCKET) // ITEM * (ranks - 1) / ranks
    latency = times["nothing"]
    step = size / ranks / times["step"]
    if ranks == 1:
        return Machine(latency, *[math.inf] * 4, step, max(times["few"] - latency, 0.0), 0.0)
    bucket = (times["many"] - times["few"]) / (MANY - FEW)
    return Machine(
        latency=latency,
        reduce=ITEM * part / max(times["reduce"] - latency, 1e-9),
        gather=item * part / max(times["gather"] - latency, 1e-9),
        pack=ITEM * size / times["pack"],
        unpack=item * size / times["unpack"],
        step=step,
        call=max(times["few"] - bucket - latency, 0.0),
        bucket_call=max(bucket - 2 * latency, 0.0),
    )


def run(ranks: int, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """The times of so many ranks, for each type of parameters and size."""
    command = [Path(sys.executable).with_name("mpiexec"), "-n", str(ranks), sys.executable, __file__, "--rank"]
    done = subprocess.run([*command, "--rounds", str(rounds)], capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


# A rank for each socket of a cluster, on paper: 200 Gb/s of network, 100 GB/s of memory.
CLUSTER = Machine(latency=2e-5, reduce=25e9, gather=25e9, pack=50e9, unpack=50e9, step=5e9)


def plot(path: Path) -> None:
    """Bytes held and sent by a rank, and the step of two models on paper."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    ranks = [2**i for i in range(11)]
    left.loglog(ranks, [held(1, n) for n in ranks], "o-", label="held: running means, 4 / n")
    left.loglog(ranks[1:], [sent(1, n) for n in ranks[1:]], "s-", label="sent in a step, 8 (n - 1) / n")
    left.set(title="bytes for each float32 parameter, in a rank", xlabel="ranks, n", ylabel="bytes")
    left.legend()
    for params, colour in ((1e9, "C0"), (1e11, "C1")):
        for overlap, style in ((False, ":"), (True, "-")):
            seconds = [simulated(params, n, CLUSTER, bucket=32e6, overlap=overlap) for n in ranks]
            label = f"{params:.0e} parameters, {'communication hidden where it can be' if overlap else 'no overlap'}"
            right.loglog(ranks, seconds, style, color=colour, label=label)
    right.set(title="a step on paper: 25 GB/s of network a rank", xlabel="ranks, n", ylabel="s (simulated)")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def measured_table(rounds: int) -> list[str]:
    """The steps of this machine, beside Allreduce and the simulation."""
    rows = ["| ranks | type | parameters | Allreduce, whole step | sharded | ratio | simulated / measured |"]
    rows.append("|---|---|---|---|---|---|---|")
    for ranks in (1, 2):
        found = run(ranks, rounds)
        for (name, item), size in itertools.product(ITEMS.items(), SIZES):
            times = found[name][str(size)]
            predicted = simulated(size, ranks, machine_of(times, size, ranks, item), overlap=False, item=item)
            rows.append(
                f"| {ranks} | {name} | {size:,} | {times['allreduce'] * 1e3:.2f} ms | {times['sharded'] * 1e3:.2f} ms "
                f"| {times['sharded'] / times['allreduce']:.2f} | {predicted / times['sharded']:.2f} |"
            )
    return rows


def paper_table() -> list[str]:
    """Bytes, and steps of `CLUSTER`."""
    rows = ["| ranks | type | running means kept, 1e9 / 1e11 | sent in a step | step, no overlap | step, overlapped |"]
    rows.append("|---|---|---|---|---|---|")
    for (name, item), n in itertools.product(ITEMS.items(), (1, 2, 8, 64, 512)):
        amounts = [[held(params, n), sent(params, n, item)] for params in (1e9, 1e11)]
        cells = [" / ".join(f"{amount / 1e9:.3g} GB" for amount in pair) for pair in zip(*amounts, strict=True)]
        for overlap in (False, True):
            seconds = [simulated(params, n, CLUSTER, bucket=32e6, overlap=overlap, item=item) for params in (1e9, 1e11)]
            cells.append(" / ".join(f"{s:.2g} s" for s in seconds))
        rows.append(f"| {n} | {name} | {' | '.join(cells)} |")
    return rows


def written(page: str, table: list[str]) -> str:
    """A page with a table in place of that with the same head."""
    head = re.escape("\n".join(table[:2]) + "\n")
    made, count = re.subn(rf"{head}(?:\|.*\n)*", lambda _: "\n".join(table) + "\n", page)
    if count != 1:
        raise ValueError(f"the page has {count} tables with the head {table[0]}")
    return made


def main(argv: list[str] | None = None) -> None:
    """Measure, simulate, write the tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    arguments = parser.parse_args(argv)
    if arguments.rank:
        measure(arguments.rounds)
        return
    page = arguments.page.read_text()
    for table in (paper_table(), measured_table(arguments.rounds)):
        page = written(page, table)
        print("\n".join(table))
    arguments.page.write_text(page)
    plot(arguments.figure)


if __name__ == "__main__":
    main()
