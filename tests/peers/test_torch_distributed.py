"""interop.torch.RMSprop under torch's engines for several processes: DistributedDataParallel, ZeroRedundancyOptimizer,
FSDP2, tensor parallelism, distributed checkpoints.

Two processes with gloo are started once and run every case; each test reads what its case gave in both. Each process
has a batch of its own. The mean of two gradients is rounded once, whoever takes it, so that one process which trains on
both batches has the same gradients, and every engine must give the bits of that training. Where an engine computes the
gradients otherwise (tensor parallelism, low precision), the same optimizer steps copies of the whole parameters beside
it, with the whole gradients.
"""

from __future__ import annotations

import copy
import faulthandler
import functools
import itertools
import multiprocessing
import os
import re
import time
import traceback
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import same_bits
from measure import assert_close
from pages import SECTIONS, run_section
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp_state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from rmsprop_native.interop.torch import RMSprop, RMSpropTF

RANKS = 2
HANGS = timedelta(seconds=30)  # for one operation between the processes
DEADLINE = 600  # seconds for all cases; they take 30 where nothing else runs

# Options that torch.optim.RMSprop has, and some of ours.
OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True, "maximize": True},
    "all": {"momentum": 0.5, "centered": True, "weight_decay": 2.0**-5},
}
OURS = {
    "keras": {"preset": "keras"},
    "timm": {"preset": "timm", "weight_decay": 2.0**-5, "decoupled_weight_decay": True},
    "nesterov": {"momentum": 0.9, "nesterov": True, "bias_correction": True, "ema": 0.875, "clip_value": 0.125},
}
EVERY = OPTIONS | OURS
SOME = ("plain", "all", "timm", "nesterov")
STEPS = 5
# Training that ran freely in float64 beside torch's class, as TRAINED in test_interop_torch.py.
TRAINED = 1e-10


@dataclass(frozen=True)
class Here:
    """The process that a case runs in, and the folder that all share."""

    rank: int
    folder: Path


CASES = {}


def case(**axes):
    """Run a function in both processes, once for each combination of the values of `axes`, which are its names too."""

    def add(function):
        for chosen in itertools.product(*axes.values()):
            name = "-".join((function.__name__, *map(str, chosen)))
            CASES[name] = functools.partial(function, **dict(zip(axes, chosen, strict=True)))
        return function

    return add


def run_cases(rank, folder):
    """All cases, in one of the processes; a file for each has the traceback, or nothing where it passed."""
    last_words = (folder / f"stderr.{rank}").open("w")
    os.dup2(last_words.fileno(), 2)
    faulthandler.enable(last_words)
    torch.set_num_threads(1)
    for i, (name, function) in enumerate(CASES.items()):
        store = dist.FileStore(str(folder / f"store{i}"), RANKS)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=HANGS)
        try:
            function(Here(rank, folder))
            outcome = ""
        except BaseException:  # noqa: BLE001 - also what pytest raises; the test shows it
            outcome = traceback.format_exc()
        (folder / f"{name}.{rank}").write_text(outcome)
        # A socket that one process closes while the other is joining, or reads the end of a message, is reset there. A
        # barrier of the group would have the same end, so that they meet in the file.
        store.set(f"end {rank}", "")
        store.wait([f"end {other}" for other in range(RANKS)], HANGS)
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which both processes have run all cases."""
    folder = tmp_path_factory.mktemp("two_processes")
    save_alone(folder)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_cases, args=(rank, folder)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + DEADLINE
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            break  # the others would wait for it in each case
        time.sleep(0.1)
    for process in processes:
        process.kill()
        process.join()
    words = [(folder / f"stderr.{rank}").read_text() for rank in range(RANKS)]
    ends = (f"{process.exitcode}, {words[rank][-2000:]!r}" for rank, process in enumerate(processes))
    (folder / "ends").write_text("; ".join(ends))
    return folder


# ---- the training ----


def model_of(dtype=torch.float32, seed=1):
    """For two processes its layers have shards of the same size, of 3 and 2 rows, and of one and none."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def loss_of(model, i, rank, dtype=torch.float32):
    """The loss on batch number `i` of a process."""
    random = torch.Generator().manual_seed(RANKS * i + rank)
    x, y = torch.randn(8, 6, generator=random), torch.randn(8, 1, generator=random)
    return (model(x.to(dtype)) - y.to(dtype)).square().mean()


def dtype_of(model):
    return next(model.parameters()).dtype


def train(here, model, optimizer, steps=STEPS, start=0):
    """What one of two processes does."""
    for i in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, i, here.rank, dtype_of(model)).backward()
        optimizer.step()


def train_alone(model, optimizer, steps=STEPS, start=0):
    """What one process does that has both batches."""
    params = list(model.parameters())
    for i in range(start, start + steps):
        grads = [torch.autograd.grad(loss_of(model, i, rank, dtype_of(model)), params) for rank in range(RANKS)]
        for p, one, other in zip(params, *grads, strict=True):
            p.grad = (one + other) / 2
        optimizer.step()


def alone(make=RMSprop, dtype=torch.float32, steps=STEPS, **options):
    """The numbers of training in one process."""
    model = model_of(dtype)
    optimizer = make(model.parameters(), **options)
    train_alone(model, optimizer, steps)
    return numbers_of(model, optimizer)


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().numpy().copy()


def numbers_of(model, optimizer):
    """Parameters and state, whole, as arrays by name."""
    found = {}
    for name, p in model.named_parameters():
        found[name.removeprefix("module.")] = whole(p)
        for key, value in optimizer.state.get(p, {}).items():
            found[f"{name.removeprefix('module.')} {key}"] = whole(value)
    return found


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert same_bits(found[name], array), name


def assert_near(found, expected, tolerance=TRAINED):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert_close(found[name], array, name, tolerance)


# ---- DistributedDataParallel ----


@case(options=EVERY, as_view=(False, True))
def ddp(here, options, as_view):
    model = DistributedDataParallel(model_of(), gradient_as_bucket_view=as_view)
    optimizer = RMSprop(model.parameters(), **EVERY[options])
    train(here, model, optimizer)
    assert optimizer.native
    assert_same_bits(numbers_of(model, optimizer), alone(**EVERY[options]))


@case(options=OPTIONS)
def ddp_beside_torch(here, options):
    found = []
    for make in (RMSprop, torch.optim.RMSprop):
        model = DistributedDataParallel(model_of(torch.float64))
        optimizer = make(model.parameters(), **OPTIONS[options])
        train(here, model, optimizer)
        found.append(numbers_of(model, optimizer))
    assert_near(*found)


@case(limit=("clip_norm", "clip_global_norm"))
def ddp_clipped(here, limit):
    """Every process has whole gradients, whose norm is the same in all: native."""
    model = DistributedDataParallel(model_of())
    optimizer = RMSprop(model.parameters(), **{limit: 0.25})
    train(here, model, optimizer)
    assert optimizer.native
    assert_same_bits(numbers_of(model, optimizer), alone(**{limit: 0.25}))


# ---- ZeroRedundancyOptimizer ----


def zero_class():
    from torch.distributed.optim import ZeroRedundancyOptimizer  # it warns of what torch itself uses

    return ZeroRedundancyOptimizer


def zero_of(params, as_view=False, make=RMSprop, **options):
    return zero_class()(params, make, parameters_as_bucket_view=as_view, **options)


def assert_state_is_shared_out(here, model, optimizer, expected):
    """Each process has the state of some parameters, with the expected bits, and both have all."""
    held = numbers_of(model, optimizer.optim)
    assert_same_bits(held, {name: expected[name] for name in held})
    counts = [None] * RANKS
    dist.all_gather_object(counts, len(held))
    params = len(list(model.parameters()))
    assert min(counts) > params
    assert sum(counts) == len(expected) + params


@case(options=EVERY, as_view=(False, True))
def zero(here, options, as_view):
    model = DistributedDataParallel(model_of())
    optimizer = zero_of(model.parameters(), as_view, **EVERY[options])
    train(here, model, optimizer)
    assert optimizer.optim.native
    assert_state_is_shared_out(here, model, optimizer, alone(**EVERY[options]))


@case(options=OPTIONS)
def zero_beside_torch(here, options):
    found = []
    for make in (RMSprop, torch.optim.RMSprop):
        model = DistributedDataParallel(model_of(torch.float64))
        optimizer = zero_of(model.parameters(), make=make, **OPTIONS[options])
        train(here, model, optimizer)
        found.append(numbers_of(model, optimizer.optim))
    assert_near(*found)


@case(options=EVERY, as_view=(False, True))
def zero_resumed(here, options, as_view):
    """The consolidated state goes on in another ZeroRedundancyOptimizer, and in an optimizer of one process."""
    model = DistributedDataParallel(model_of())
    optimizer = zero_of(model.parameters(), as_view, **EVERY[options])
    train(here, model, optimizer, 2)
    optimizer.consolidate_state_dict(to=1)
    saved = [optimizer.state_dict() if here.rank == 1 else None]
    dist.broadcast_object_list(saved, src=1)
    expected = alone(**EVERY[options])

    other = DistributedDataParallel(copy.deepcopy(model.module))
    resumed = zero_of(other.parameters(), as_view, **EVERY[options] | {"lr": 123.0})
    resumed.load_state_dict(copy.deepcopy(saved[0]))
    train(here, other, resumed, STEPS - 2, 2)
    assert resumed.optim.native
    assert_state_is_shared_out(here, other, resumed, expected)

    model = copy.deepcopy(model.module)
    optimizer = RMSprop(model.parameters(), **EVERY[options] | {"lr": 123.0})
    optimizer.load_state_dict(saved[0])
    train_alone(model, optimizer, STEPS - 2, 2)
    assert_same_bits(numbers_of(model, optimizer), expected)


def in_groups(model, optimizer_of):
    """An optimizer with groups and a schedule; one process has no parameter of the first group."""
    params = list(model.parameters())
    optimizer = optimizer_of([{"params": params[:1], "lr": 0.25}, {"params": params[1:4], "momentum": 0.5}])
    optimizer.add_param_group({"params": params[4:], "alpha": 0.5})
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


@case()
def zero_in_groups(here):
    model, plain = DistributedDataParallel(model_of()), model_of()
    optimizer, schedule = in_groups(model, lambda groups: zero_of(groups, lr=0.125, preset="sb3"))
    expected, expected_schedule = in_groups(plain, lambda groups: RMSprop(groups, lr=0.125, preset="sb3"))
    empty = [len(group["params"]) == 0 for group in optimizer.optim.param_groups]
    counts = [None] * RANKS
    dist.all_gather_object(counts, empty[0])
    assert sorted(counts) == [False, True]
    for i in range(STEPS):
        train(here, model, optimizer, 1, i)
        schedule.step()
        train_alone(plain, expected, 1, i)
        expected_schedule.step()
    assert optimizer.optim.native
    assert_state_is_shared_out(here, model, optimizer, numbers_of(plain, expected))


@case()
def zero_with_overlap(here):
    """It takes torch's functional optimizers only."""
    with pytest.raises(ValueError, match="requires using a functional optimizer"):
        zero_of(model_of().parameters(), overlap_with_ddp=True)


@case()
def zero_with_a_closure(here):
    model = DistributedDataParallel(model_of())
    optimizer = zero_of(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0, here.rank)
        loss.backward()
        return loss

    assert isinstance(optimizer.step(closure), torch.Tensor)
    assert_state_is_shared_out(here, model, optimizer, alone(steps=1))


# ---- FSDP2 ----


def sharded(model, mesh=None, **options):
    mesh = init_device_mesh("cpu", (RANKS,)) if mesh is None else mesh
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def assert_sharded_like_params(here, model, optimizer):
    rows = [p.to_local().shape[0] for p in model.parameters()]
    assert rows == ([2, 2, 3, 3, 1, 1] if here.rank == 0 else [2, 2, 2, 2, 0, 0])
    for p in model.parameters():
        entry = optimizer.state[p]
        assert type(entry["step"]) is torch.Tensor
        for name in entry.keys() - {"step"}:
            buffer = entry[name]
            assert type(buffer) is DTensor
            assert (buffer.shape, buffer.stride()) == (p.shape, p.stride())
            assert (buffer.placements, buffer.device_mesh) == (p.placements, p.device_mesh)
            assert buffer.to_local().shape == p.to_local().shape


@case(options=EVERY, dtype=("float32", "float64"))
def fsdp(here, options, dtype):
    dtype = getattr(torch, dtype)
    model = sharded(model_of(dtype))
    optimizer = RMSprop(model.parameters(), **EVERY[options])
    assert optimizer.native
    train(here, model, optimizer)
    assert optimizer.native
    assert_sharded_like_params(here, model, optimizer)
    assert_same_bits(numbers_of(model, optimizer), alone(dtype=dtype, **EVERY[options]))


@case(options=OPTIONS)
def fsdp_beside_torch(here, options):
    found = []
    for make in (RMSprop, torch.optim.RMSprop):
        model = sharded(model_of(torch.float64))
        optimizer = make(model.parameters(), **OPTIONS[options])
        train(here, model, optimizer)
        found.append(numbers_of(model, optimizer))
    assert_near(*found)


@case(options=SOME, shape=("1x2", "2x1"))
def hsdp(here, options, shape):
    """A mesh of two dimensions: parameters are replicated over one of them, sharded over the other."""
    mesh = init_device_mesh("cpu", tuple(map(int, shape.split("x"))), mesh_dim_names=("replicate", "shard"))
    model = sharded(model_of(), mesh)
    optimizer = RMSprop(model.parameters(), **EVERY[options])
    train(here, model, optimizer)
    assert optimizer.native
    assert len(model[0].weight.placements) == 2
    assert_same_bits(numbers_of(model, optimizer), alone(**EVERY[options]))


@case(limit=("clip_norm", "clip_global_norm"), options=("plain", "all", "nesterov"))
def fsdp_clipped(here, limit, options):
    """By torch's operations, with the norm over both processes. Its sum has another order than that of one process."""
    options = {name: value for name, value in EVERY[options].items() if name != "clip_value"} | {limit: 2.0**-6}
    model = sharded(model_of(torch.float64))
    optimizer = RMSprop(model.parameters(), **options)
    train(here, model, optimizer)
    assert len(optimizer.native.reasons) == len(list(model.parameters()))
    assert set(optimizer.native.reasons.values()) == {"is a DTensor, whose norm is over all processes"}
    assert_near(numbers_of(model, optimizer), alone(dtype=torch.float64, **options))


@case(options=("plain", "all", "nesterov"), limit=(None, 0.5))
def complex_shards(here, options, limit):
    """Native, and with clip_norm by torch's operations, where the two differ by rounding."""
    random = torch.Generator().manual_seed(1)
    values, *grads = (torch.randn(5, 3, dtype=torch.complex128, generator=random) for _ in range(4))
    options = {name: value for name, value in EVERY[options].items() if name != "clip_value"} | {"clip_norm": limit}
    mesh = init_device_mesh("cpu", (RANKS,))
    p, plain = nn.Parameter(distribute_tensor(values, mesh, [Shard(0)])), nn.Parameter(values)
    optimizer, expected = RMSprop([p], **options), RMSprop([plain], **options)
    for grad in grads:
        p.grad, plain.grad = distribute_tensor(grad, mesh, [Shard(0)]), grad
        optimizer.step()
        expected.step()
    assert expected.native
    if limit is None:
        assert optimizer.native
        assert same_bits(whole(p), whole(plain))
    else:
        assert not optimizer.native
        assert_close(whole(p), whole(plain), "param")


@case(dtype=("float32", "bfloat16"), dim=(0, 1))
def large_shards(here, dtype, dim):
    """Their buffers lie apart in a page, and are DTensors as those that torch makes."""
    random = torch.Generator().manual_seed(1)
    values, grad = (torch.randn(512, 512, generator=random).to(getattr(torch, dtype)) for _ in range(2))
    mesh = init_device_mesh("cpu", (RANKS,))
    p, plain = nn.Parameter(distribute_tensor(values, mesh, [Shard(dim)])), nn.Parameter(values)
    p.grad, plain.grad = distribute_tensor(grad, mesh, [Shard(dim)]), grad
    options = {"momentum": 0.5, "centered": True, "ema": 0.875}
    optimizer, expected = RMSprop([p], **options), RMSprop([plain], **options)
    optimizer.step()
    expected.step()
    assert optimizer.native
    buffers = {name: each for name, each in optimizer.state[p].items() if name != "step"}
    assert buffers.keys() == expected.state[plain].keys() - {"step"}
    for name, buffer in buffers.items():
        like = torch.zeros_like(p, dtype=buffer.dtype)
        assert (type(buffer), buffer._spec) == (DTensor, like._spec)
        assert torch.equal(buffer.to_local(), expected.state[plain][name].chunk(RANKS, dim)[here.rank])
    assert torch.equal(p.full_tensor(), plain)
    places = [each.to_local().data_ptr() % 4096 for each in buffers.values()]
    distances = [(one - other) % 4096 for i, one in enumerate(places) for other in places[:i]]
    assert all(256 <= distance <= 4096 - 256 for distance in distances)


BF16 = {
    "split": {},
    "rounded": {"master_weights": False, "square_avg_dtype": "bfloat16"},
    "clipped": {"clip_norm": 0.5},
}


@case(storage=BF16, options=("plain", "all"))
def bf16_shards(here, storage, options):
    """Native, by the bits of the shard alone; with clip_norm by torch's operations in float32, where they differ by
    rounding. A state goes through a state_dict.
    """
    random = torch.Generator().manual_seed(1)
    values, *grads = (torch.randn(5, 3, generator=random).bfloat16() for _ in range(4))
    options = EVERY[options] | BF16[storage]
    mesh = init_device_mesh("cpu", (RANKS,))
    rows = slice(0, 3) if here.rank == 0 else slice(3, 5)
    p, plain = nn.Parameter(distribute_tensor(values, mesh, [Shard(0)])), nn.Parameter(values)
    if storage == "rounded":  # random bits are those of elements of the shard
        plain = nn.Parameter(values[rows].clone())
    optimizer, expected = RMSprop([p], **options), RMSprop([plain], **options)
    for grad in grads:
        p.grad = distribute_tensor(grad, mesh, [Shard(0)])
        plain.grad = grad[rows] if storage == "rounded" else grad
        optimizer.step()
        expected.step()
        saved = optimizer.state_dict()
        optimizer = RMSprop([p], **options)
        optimizer.load_state_dict(saved)
    master, whole = optimizer.master(p), expected.master(plain)
    assert type(master) is DTensor
    assert master.shape == p.shape
    assert bool(optimizer.native) == (storage != "clipped")
    found, wanted = master.to_local(), whole if storage == "rounded" else whole[rows]
    if storage == "clipped":
        assert_close(found.numpy(), wanted.numpy(), "master", 2.0**-22)
    else:
        assert torch.equal(found, wanted)


@case(storage=("split", "rounded"))
def bf16_checkpoint(here, storage):
    """The lower halves through a state of torch.distributed.checkpoint."""
    options = EVERY["all"] | BF16[storage]
    model = sharded(model_of(torch.bfloat16))
    optimizer = RMSprop(model.parameters(), **options)
    train(here, model, optimizer, 3)
    assert optimizer.native
    saved = copy.deepcopy(dcp_state.get_state_dict(model, optimizer))
    other = sharded(model_of(torch.bfloat16, seed=2))
    resumed = RMSprop(other.parameters(), **options)
    dcp_state.set_state_dict(other, resumed, model_state_dict=saved[0], optim_state_dict=saved[1])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.to_local(), q.to_local())
        assert optimizer.state[p].keys() == resumed.state[q].keys()
        for name in optimizer.state[p].keys() - {"step"}:
            one, two = (of.state[tensor][name].to_local() for of, tensor in ((optimizer, p), (resumed, q)))
            assert one.dtype == two.dtype
            assert torch.equal(one, two)
    for each, of in ((model, optimizer), (other, resumed)):
        train(here, each, of, 2, 3)
    assert resumed.native
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.to_local(), q.to_local())


@case()
def norm_in_double(here):
    """The norm of float32 gradients over all processes has the precision of the native one."""
    values = torch.randn(101, generator=torch.Generator().manual_seed(1))
    mesh = init_device_mesh("cpu", (RANKS,))
    p = nn.Parameter(distribute_tensor(torch.zeros(101), mesh, [Shard(0)]))
    p.grad = distribute_tensor(values, mesh, [Shard(0)])
    plain = nn.Parameter(torch.zeros(101))
    plain.grad = values
    for params in ([p], [plain]):
        RMSprop(params, alpha=0.0, eps=1.0, lr=1.0, clip_norm=1.0).step()
    assert_close(whole(p), whole(plain), "param", 2**-22)


@case()
def fsdp_clipped_by_torch(here):
    """nn.utils.clip_grad_norm_ before the step leaves it native."""
    model, plain = sharded(model_of(torch.float64)), model_of(torch.float64)
    optimizer, expected = RMSprop(model.parameters()), RMSprop(plain.parameters())
    for each, of in ((optimizer, model), (expected, plain)):
        each.register_step_pre_hook(lambda *_, of=of: nn.utils.clip_grad_norm_(of.parameters(), 2.0**-6) and None)
    train(here, model, optimizer)
    train_alone(plain, expected)
    assert optimizer.native
    assert_near(numbers_of(model, optimizer), numbers_of(plain, expected))


@case()
def fsdp_caution(here):
    """RMSpropTF with caution, whose mean is one over both processes."""
    options = {"momentum": 0.9, "caution": True}
    model = sharded(model_of(torch.float64))
    optimizer = RMSpropTF(model.parameters(), **options)
    train(here, model, optimizer)
    assert_near(numbers_of(model, optimizer), alone(RMSpropTF, torch.float64, **options))


def train_beside_copies(here, model, optimizer, make):
    """Train with an engine; the same optimizer steps copies of the whole parameters by the whole gradients."""
    copies = nn.ParameterList([nn.Parameter(torch.tensor(whole(p))) for p in model.parameters()])
    expected = make(copies)
    for i in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, i, here.rank).backward()
        for p, copied in zip(model.parameters(), copies, strict=True):
            copied.grad = torch.tensor(whole(p.grad))
        optimizer.step()
        expected.step()
        found, names = numbers_of(model, optimizer), dict(model.named_parameters())
        by_name = {f"{i}": name for i, name in enumerate(names)}
        assert_same_bits(
            found,
            {" ".join((by_name[k.split()[0]], *k.split()[1:])): v for k, v in numbers_of(copies, expected).items()},
        )


@case(options=SOME)
def fsdp_mixed_precision(here, options):
    """Modules compute in bfloat16; parameters, gradients and state are float32, and native."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    model = sharded(model_of(), mp_policy=policy)
    optimizer = RMSprop(model.parameters(), **EVERY[options])
    train_beside_copies(here, model, optimizer, lambda params: RMSprop(params, **EVERY[options]))
    assert optimizer.native
    assert_sharded_like_params(here, model, optimizer)


# ---- tensor parallelism, and DTensors by themselves ----


@case(options=EVERY)
def tensor_parallel(here, options):
    """Parameters that are split over columns, over rows, and whole ones, in one optimizer."""
    mesh = init_device_mesh("cpu", (RANKS,))
    model = parallelize_module(model_of(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    placements = {p.placements if isinstance(p, DTensor) else None for p in model.parameters()}
    assert placements == {(Shard(0),), (Shard(1),), (Replicate(),), None}
    optimizer = RMSprop(model.parameters(), **EVERY[options])
    same_batch = Here(0, here.folder)
    train_beside_copies(same_batch, model, optimizer, lambda params: RMSprop(params, **EVERY[options]))
    assert optimizer.native


@case(options=("plain", "momentum", "nesterov"))
def gradient_of_partial_sums(here, options):
    """Not native beside a replicated parameter: torch's operations take the sum."""
    mesh = init_device_mesh("cpu", (RANKS,))
    p = nn.Parameter(distribute_tensor(torch.ones(3, dtype=torch.float64), mesh, [Replicate()]))
    p.grad = DTensor.from_local(torch.full((3,), here.rank + 1.0, dtype=torch.float64), mesh, [Partial()])
    plain = nn.Parameter(torch.ones(3, dtype=torch.float64))
    plain.grad = torch.full((3,), 3.0, dtype=torch.float64)
    optimizer, expected = (RMSprop([each], **EVERY[options]) for each in (p, plain))
    for _ in range(3):
        optimizer.step()
        expected.step()
    reason = optimizer.native.reasons[0, 0]
    assert re.search(r"is a DTensor of \(Partial\(sum\),\) .*, its parameter one of \(Replicate\(\),\)", reason)
    assert expected.native
    assert_close(whole(p), whole(plain), "param")
    p.grad = distribute_tensor(plain.grad, mesh, [Replicate()])
    optimizer.step()
    assert optimizer.native


@case()
def gradient_under_way(here):
    """A gradient that the processes are still exchanging is waited for."""
    mesh = init_device_mesh("cpu", (RANKS,))
    values = torch.randn(8, generator=torch.Generator().manual_seed(1))
    p, plain = nn.Parameter(distribute_tensor(values, mesh, [Replicate()])), nn.Parameter(values.clone())
    p.grad = distribute_tensor(values, mesh, [Shard(0)]).redistribute(placements=[Replicate()], async_op=True)
    assert type(p.grad.to_local()).__name__ == "AsyncCollectiveTensor"
    plain.grad = values.clone()
    optimizer = RMSprop([p])
    optimizer.step()
    RMSprop([plain]).step()
    assert optimizer.native
    assert same_bits(whole(p), whole(plain))


@case()
def parameter_of_partial_sums(here):
    mesh = init_device_mesh("cpu", (RANKS,))
    p = DTensor.from_local(torch.ones(3), mesh, [Partial()]).requires_grad_()
    assert RMSprop([p]).native.reasons == {(0, 0): "is a DTensor of partial sums"}


@case(what=("gradient", "square_avg"))
def tensors_that_are_not_sharded(here, what):
    """A tensor without placements beside a sharded parameter, as from a checkpoint that lost them, is never stepped as
    if it were the shard: torch's operations refuse it, before the native step.
    """
    mesh = init_device_mesh("cpu", (RANKS,))
    params = [nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Replicate()])) for _ in range(2)]
    optimizer = RMSprop(params)
    for p in params:
        p.grad = distribute_tensor(torch.ones(4), mesh, [Replicate()])
    optimizer.step()
    before = [whole(p) for p in params]
    if what == "gradient":
        params[1].grad = torch.ones(4)
    else:
        optimizer.state[params[1]]["square_avg"] = torch.ones(4)
    with pytest.raises(RuntimeError, match="mixed torch.Tensor and DTensor"):
        optimizer.step()
    assert all(same_bits(whole(p), values) for p, values in zip(params, before, strict=True))
    assert "is a Tensor, its parameter a DTensor" in optimizer.native.reasons[0, 1]


# ---- checkpoints ----

KINDS = {
    "sharded": {},
    "flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "rank0": {"full_state_dict": True, "cpu_offload": True},
}


@case(kind=KINDS, options=SOME)
def checkpoint(here, kind, options):
    """The states of torch.distributed.checkpoint, into a model and optimizer that are new."""
    model = sharded(model_of())
    optimizer = RMSprop(model.parameters(), **EVERY[options])
    train(here, model, optimizer, 2)
    saved = copy.deepcopy(dcp_state.get_state_dict(model, optimizer, options=dcp_state.StateDictOptions(**KINDS[kind])))
    train(here, model, optimizer, 1, 2)
    how = KINDS[kind]
    if kind == "rank0":
        assert (saved[1] == {}) == (here.rank == 1)
        how = how | {"broadcast_from_rank0": True}

    other = sharded(model_of(seed=2))
    resumed = RMSprop(other.parameters(), **EVERY[options] | {"lr": 123.0})
    dcp_state.set_model_state_dict(other, saved[0], options=dcp_state.StateDictOptions(**how))
    dcp_state.set_optimizer_state_dict(other, resumed, saved[1], options=dcp_state.StateDictOptions(**how))
    train(here, other, resumed, STEPS - 2, 2)
    assert resumed.native
    assert_sharded_like_params(here, other, resumed)
    assert_same_bits(numbers_of(other, resumed), alone(**EVERY[options]))


@case(options=SOME)
def own_state_dict(here, options):
    """state_dict and load_state_dict of the optimizer itself."""
    model = sharded(model_of())
    optimizer = RMSprop(model.parameters(), **EVERY[options])
    train(here, model, optimizer, 2)
    resumed = RMSprop(model.parameters(), **EVERY[options] | {"lr": 123.0})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(here, model, resumed, STEPS - 2, 2)
    assert resumed.native
    assert_same_bits(numbers_of(model, resumed), alone(**EVERY[options]))


FILED = OURS["nesterov"] | {"centered": True}


def save(model, optimizer, path):
    """A checkpoint that any number of processes can load."""
    saved = dict(zip(("model", "optim"), dcp_state.get_state_dict(model, optimizer), strict=True))
    with warnings.catch_warnings(action="ignore"):  # that there is one process
        dcp.save(saved, checkpoint_id=path)


def load(model, optimizer, path):
    saved = dict(zip(("model", "optim"), dcp_state.get_state_dict(model, optimizer), strict=True))
    with warnings.catch_warnings(action="ignore"):
        dcp.load(saved, checkpoint_id=path)
    dcp_state.set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optim"])


def save_alone(folder):
    """The checkpoint of one process that loaded_from_one_process reads."""
    model = model_of()
    optimizer = RMSprop(model.parameters(), **FILED)
    train_alone(model, optimizer, 2)
    save(model, optimizer, folder / "one")


@case()
def saved_by_two_processes(here):
    """What test_one_process_goes_on reads."""
    model = sharded(model_of())
    optimizer = RMSprop(model.parameters(), **FILED)
    train(here, model, optimizer, 2)
    save(model, optimizer, here.folder / "two")


@case()
def loaded_from_one_process(here):
    model = sharded(model_of(seed=2))
    optimizer = RMSprop(model.parameters(), **FILED | {"lr": 123.0})
    load(model, optimizer, here.folder / "one")
    train(here, model, optimizer, STEPS - 2, 2)
    assert optimizer.native
    assert_same_bits(numbers_of(model, optimizer), alone(**FILED))


# ---- docs/distributed.md ----

ENGINES = ("DistributedDataParallel", "ZeroRedundancyOptimizer", "FSDP2", "Tensor parallelism")


@case(section=ENGINES)
def page(here, section):
    """Its blocks run in both processes, and train."""
    names = {"ZeroRedundancyOptimizer": zero_class()} | globals()
    names |= {"get_state_dict": dcp_state.get_state_dict, "set_state_dict": dcp_state.set_state_dict, "checkpoint": dcp}
    names |= {"model": model_of(), "train": functools.partial(train, here), "path": here.folder / "page"}
    if section == "Tensor parallelism":
        names["train"] = functools.partial(train, Here(0, here.folder))  # both have the same batch
    names = run_section(section, **names)
    inner = getattr(names["optimizer"], "optim", names["optimizer"])
    assert inner.native
    assert {float(entry["step"]) for entry in inner.state.values()} == {STEPS}
    if section == "ZeroRedundancyOptimizer":
        assert ("saved" in names) == (here.rank == 0)


# ---- the tests ----


@pytest.mark.parametrize("name", CASES)
def test_two_processes(folder, name):
    for rank in range(RANKS):
        outcome = folder / f"{name}.{rank}"
        ends = (folder / "ends").read_text()
        assert outcome.exists(), f"process {rank} did not finish this case; the processes ended with {ends}"
        assert outcome.read_text() == "", f"in process {rank}"


def test_one_process_goes_on(folder):
    """From the checkpoint of two processes, with the same bits."""
    model = model_of(seed=2)
    optimizer = RMSprop(model.parameters(), **FILED | {"lr": 123.0})
    load(model, optimizer, folder / "two")
    train_alone(model, optimizer, STEPS - 2, 2)
    assert optimizer.native
    assert_same_bits(numbers_of(model, optimizer), alone(**FILED))


def test_every_block_of_the_page_is_run():
    by_others = {"CPUOffloadOptimizer of torchao", "HybridDeviceOptimizer of Megatron", "MPI, for NumPy's users"}
    assert set(SECTIONS) == {*ENGINES, *by_others}
