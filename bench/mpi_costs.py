"""What a step over MPI ranks costs: the formula, a simulation of its buckets, and both beside measured steps.

Run `python bench/mpi_costs.py` where the dependency group mpi is installed (make test-mpi does). It measures 1 and 2
ranks of this machine, prints the tables of docs/distributed.md, and saves its figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
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
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "mpi.png"


class Machine(NamedTuple):
    """What a rank can do."""

    latency: float
    """Seconds of a collective of nothing."""
    link: float
    """Bytes a second that a rank sends."""
    copy: float
    """Bytes a second that a copy writes."""
    step: float
    """Parameters a second that the kernel steps."""
    call: float = 2e-5
    """Seconds of a step's calls that do not depend on sizes: checks and agreement."""
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
    count = max(round(ITEM * params / bucket), 1)
    numbers = params / count
    nbytes = {"reduce": ITEM * numbers, "gather": item * numbers}
    work = numbers / ranks * (ITEM / machine.copy + 1 / machine.step) + machine.bucket_call
    now = machine.call + machine.latency
    network = 0.0
    ready: dict[tuple[str, int], float] = {}

    def wire(what: str) -> float:
        return machine.latency + (ranks - 1) / ranks * nbytes[what] / machine.link

    def begin(what: tuple[str, int]) -> None:
        nonlocal network
        network = max(network, now) + wire(what[0])
        ready[what] = network

    def wait(what: tuple[str, int]) -> None:
        nonlocal now
        now = max(now, ready[what]) if overlap else now + wire(what[0])

    def pack_and_begin(k: int) -> None:
        nonlocal now
        if k < count:
            now += nbytes["reduce"] / machine.copy
            begin(("reduce", k))

    def unpack(k: int) -> None:
        nonlocal now
        if 0 <= k < count:
            wait(("gather", k))
            now += nbytes["gather"] / machine.copy

    pack_and_begin(0)
    for k in range(count):
        pack_and_begin(k + 1)
        wait(("reduce", k))
        unpack(k - 2)
        now += work
        begin(("gather", k))
    unpack(count - 2)
    unpack(count - 1)
    return now


# ---- measured ----


def reduction(comm, size: int):
    """A call that reduces and scatters an array of so many numbers."""
    import numpy as np
    from mpi4py import MPI

    counts = [size // comm.size] * comm.size
    send, receive = np.ones(sum(counts), np.float32), np.empty(counts[0], np.float32)
    return lambda: comm.Ireduce_scatter(send, receive, counts, MPI.SUM).Wait()


def measure(rounds: int) -> None:
    """In each rank: time the step, the same by Allreduce and a whole step, and what `Machine` needs; rank 0 prints."""
    import ml_dtypes
    import numpy as np
    from mpi4py import MPI

    import rmsprop_native as rms
    from rmsprop_native.interop import mpi

    rms.set_num_threads(1)
    comm = MPI.COMM_WORLD

    def timed(function) -> float:
        comm.Barrier()
        before = time.perf_counter()
        function()
        return comm.allreduce(time.perf_counter() - before, MPI.MAX)

    found = {name: {} for name in ITEMS}
    for name, size in itertools.product(ITEMS, SIZES):
        rng = np.random.default_rng(0)
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        params, whole = (np.zeros(size, dtype) for _ in range(2))
        grads = rng.standard_normal(size, np.float32).astype(dtype)
        total = np.empty(size, np.float32)
        state = mpi.init(params, comm=comm, bucket_bytes=BUCKET)
        one = rms.init(whole)

        def allreduce(grads=grads, total=total, whole=whole, one=one) -> None:
            if grads.dtype == total.dtype:
                comm.Allreduce(grads, total)
            else:
                np.copyto(total, grads)
                comm.Allreduce(MPI.IN_PLACE, total)
            np.divide(total, np.float32(comm.size), out=total)
            rms.update_(whole, total, one)

        part = min(size, BUCKET // ITEM)
        contenders = {
            "sharded": lambda params=params, grads=grads, state=state: mpi.update_(params, grads, state),
            "allreduce": allreduce,
            "wire": reduction(comm, part),
            "nothing": reduction(comm, comm.size),
            "copy": lambda grads=grads, total=total: np.copyto(total, grads),
            "step": lambda whole=whole, total=total, one=one: rms.update_(whole, total, one),
        }
        times = {name: [] for name in contenders}
        for round_ in range(rounds + 2):
            for contender, function in contenders.items():
                seconds = timed(function)
                if round_ > 1:
                    times[contender].append(seconds)
        found[name][size] = {contender: statistics.median(seconds) for contender, seconds in times.items()}
    if comm.rank == 0:
        print(json.dumps(found))


def machine_of(times: dict[str, float], size: int, ranks: int) -> Machine:
    """What a rank of a measured case can do."""
    part = min(ITEM * size, BUCKET) * (ranks - 1) / ranks
    return Machine(
        latency=times["nothing"],
        link=max(part, 1) / max(times["wire"] - times["nothing"], 1e-9) if ranks > 1 else 1e30,
        copy=ITEM * size / times["copy"],
        step=size / times["step"],
    )


def run(ranks: int, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """The times of so many ranks, for each type of parameters and size."""
    command = [Path(sys.executable).with_name("mpiexec"), "-n", str(ranks), sys.executable, __file__, "--rank"]
    done = subprocess.run([*command, "--rounds", str(rounds)], capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


# A rank for each socket of a cluster, on paper: 200 Gb/s of network, 100 GB/s of memory.
CLUSTER = Machine(latency=2e-5, link=25e9, copy=50e9, step=5e9)


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


def main(argv: list[str] | None = None) -> None:
    """Measure, simulate, print the tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    arguments = parser.parse_args(argv)
    if arguments.rank:
        measure(arguments.rounds)
        return
    print("| ranks | type | parameters | Allreduce, whole step | sharded | ratio | simulated / measured |")
    print("|---|---|---|---|---|---|---|")
    for ranks in (1, 2):
        found = run(ranks, arguments.rounds)
        for (name, item), size in itertools.product(ITEMS.items(), SIZES):
            times = found[name][str(size)]
            predicted = simulated(size, ranks, machine_of(times, size, ranks), overlap=False, item=item)
            print(
                f"| {ranks} | {name} | {size:,} | {times['allreduce'] * 1e3:.2f} ms | {times['sharded'] * 1e3:.2f} ms "
                f"| {times['sharded'] / times['allreduce']:.2f} | {predicted / times['sharded']:.2f} |"
            )
    print("\n| ranks | type | running means held, 1e9 / 1e11 | sent in a step | step, no overlap | step, overlapped |")
    print("|---|---|---|---|---|---|")
    for (name, item), n in itertools.product(ITEMS.items(), (1, 2, 8, 64, 512)):
        amounts = [[held(params, n), sent(params, n, item)] for params in (1e9, 1e11)]
        cells = [" / ".join(f"{amount / 1e9:.3g} GB" for amount in pair) for pair in zip(*amounts, strict=True)]
        for overlap in (False, True):
            seconds = [simulated(params, n, CLUSTER, bucket=32e6, overlap=overlap, item=item) for params in (1e9, 1e11)]
            cells.append(" / ".join(f"{s:.2g} s" for s in seconds))
        print(f"| {n} | {name} | {' | '.join(cells)} |")
    plot(arguments.figure)


if __name__ == "__main__":
    main()
