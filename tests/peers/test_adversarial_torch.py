"""Attacks on the optimizers of torch: threads, code that runs inside a step, hostile state, memory that runs out."""

from __future__ import annotations

import collections
import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import memory_failures, run_together
from torch import nn
from torch.overrides import TorchFunctionMode

from rmsprop_native.interop.torch import RMSprop


def parameters(count=6, size=5, **options):
    """Parameters with gradients, and an optimizer that has taken a step."""
    params = [nn.Parameter(torch.randn(size)) for _ in range(count)]
    for p in params:
        p.grad = torch.randn(size)
    optimizer = RMSprop(params, **options)
    optimizer.step()
    return params, optimizer


def copies(params):
    return [p.detach().clone() for p in params]


def unmoved(params, before):
    return all(torch.equal(p.detach(), b) for p, b in zip(params, before, strict=True))


@pytest.mark.threads
@pytest.mark.parametrize("size", [64, 1 << 18])
def test_threads_in_one_optimizer(size):
    """Each step is taken whole or refused."""
    params, optimizer = parameters(4, size)
    taken, refused = [], []

    def run():
        for _ in range(40):
            try:
                optimizer.step()
                taken.append(1)
            except RuntimeError as error:
                refused.append(str(error))

    run_together(*[run] * 3)
    assert len(taken) + len(refused) == 120
    assert all("inside a step already" in text for text in refused)
    assert float(optimizer.state[params[0]]["step"]) == 1 + len(taken)


@pytest.mark.threads
def test_thread_that_replaces_gradients():
    params, optimizer = parameters(8, 64, momentum=0.9)
    stop = threading.Event()

    def run():
        while not stop.is_set():
            for p in params:
                p.grad = torch.randn(64)

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(500):
        optimizer.step()
    stop.set()
    thread.join()
    assert float(optimizer.state[params[0]]["step"]) == 501


class Mode(TorchFunctionMode):
    """Runs code at the `turn`-th call of a function of torch."""

    def __init__(self, act, turn):
        super().__init__()
        self.act, self.turn, self.calls = act, turn, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        if self.calls == self.turn:
            self.act()
            gc.collect()
        return func(*args, **(kwargs or {}))


CHANGES = {
    "parameters removed": lambda params, optimizer: optimizer.param_groups[0]["params"].__delitem__(slice(2, None)),
    "state cleared": lambda params, optimizer: optimizer.state.clear(),
    "groups removed": lambda params, optimizer: optimizer.param_groups.clear(),
    "entries cleared": lambda params, optimizer: [entry.clear() for entry in optimizer.state.values()],
    "gradients dropped": lambda params, optimizer: [setattr(p, "grad", None) for p in params],
    "data replaced": lambda params, optimizer: [setattr(p, "data", torch.zeros(1)) for p in params],
}


@pytest.mark.parametrize("turn", [1, 4, 7, 12, 20])
@pytest.mark.parametrize("change", CHANGES)
def test_code_inside_a_step(change, turn):
    """Parameters of one element are asked for lazy bits, where a mode of torch's functions runs."""
    params, optimizer = parameters(6, 1)
    mode = Mode(lambda: CHANGES[change](params, optimizer), turn)
    with mode:
        optimizer.step()
    assert mode.calls >= turn
    for p in params:
        p.grad = torch.ones(1)
    optimizer.step()


def test_step_inside_a_step():
    params, optimizer = parameters(3, 1)
    before = copies(params)
    with Mode(optimizer.step, 3), pytest.raises(RuntimeError, match="inside a step already"):
        optimizer.step()
    assert unmoved(params, before)


BUFFERS = {
    "shape": lambda params, optimizer: torch.zeros(4),
    "array": lambda params, optimizer: np.zeros(5, np.float32),
    "None": lambda params, optimizer: None,
    "string": lambda params, optimizer: "x",
    "device": lambda params, optimizer: torch.zeros(5, device="meta"),
    "count": lambda params, optimizer: optimizer.state[params[1]]["step"],
}


@pytest.mark.parametrize("name", BUFFERS)
def test_bad_buffer(name):
    """What torch's operations refuse is refused before anything was written."""
    params, optimizer = parameters(3)
    optimizer.state[params[1]]["square_avg"] = BUFFERS[name](params, optimizer)
    before = copies(params)
    with pytest.raises((RuntimeError, AttributeError, ValueError)):
        optimizer.step()
    assert unmoved(params, before)


def test_buffer_that_could_not_be_resized():
    """Where torch fails it leaves a size that the memory has not; its own operations would read outside."""
    params, optimizer = parameters(3, 1 << 16, momentum=0.5)
    states = copies(value for p in params for value in optimizer.state[p].values())
    before = copies(params)
    kept = optimizer.state[params[1]]["square_avg"]
    with pytest.raises(RuntimeError, match="not resizable"):
        kept.resize_(1 << 20)
    with pytest.raises(ValueError, match=r"square_avg of .*\[1\] has shape \(1048576,\), its parameter \(65536,\)"):
        optimizer.step()
    kept.resize_(1 << 16)
    assert unmoved(params, before)
    assert all(map(torch.equal, states, (value for p in params for value in optimizer.state[p].values())))
    optimizer.step()
    assert all(float(optimizer.state[p]["step"]) == 2 for p in params)


@pytest.mark.parametrize("what", ["parameter", "counts"])
def test_memory_taken_away(what):
    params, optimizer = parameters(3)
    (params[0] if what == "parameter" else optimizer.state[params[0]]["step"]).untyped_storage().resize_(0)
    before = copies(params[1:])
    with pytest.raises(ValueError, match="no memory" if what == "parameter" else "no longer those"):
        optimizer.step()
    assert unmoved(params[1:], before)


def test_containers_of_other_kinds():
    params, optimizer = parameters(3)
    optimizer.param_groups = (collections.OrderedDict(optimizer.param_groups[0]),)
    optimizer.state = dict(optimizer.state)
    before = copies(params)
    optimizer.step()
    assert optimizer.native
    assert not unmoved(params, before)
    optimizer.param_groups = [list(optimizer.param_groups[0].items())]
    with pytest.raises(TypeError, match="is a list, not a dict"):
        optimizer.step()


def test_inference_tensor():
    """As with torch's class: not to be changed outside inference mode."""
    with torch.inference_mode():
        p = torch.zeros(3)
        p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="[Ii]nference"):
        RMSprop([p]).step()


def test_finalizer_inside_a_step():
    params, optimizer = parameters(20)

    class Bomb:
        def __init__(self):
            self.itself = self

        def __del__(self):
            optimizer.state.clear()
            for p in params:
                p.grad = None

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            for p in params:
                p.grad = torch.ones(5)
            Bomb()
            optimizer.step()
    finally:
        gc.set_threshold(*before)


# Python drops generators whose cleanup finds no memory either.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("has_plan", [True, False])
def test_memory_that_runs_out(has_plan):
    """A step that raises MemoryError has changed nothing."""
    _testcapi = memory_failures()
    outcomes = set()
    for allowed in range(40) if has_plan else range(0, 3000, 11):
        params, optimizer = parameters(3, 8, momentum=0.9)
        if not has_plan:
            optimizer._plan = None
        before = copies(params)
        _testcapi.set_nomemory(allowed, allowed + 3)
        try:
            optimizer.step()
            raised = False
        except MemoryError:
            raised = True
        finally:
            _testcapi.remove_mem_hooks()
            torch.set_grad_enabled(True)  # what torch.no_grad may lack memory for at its end
        assert not raised or unmoved(params, before)
        outcomes.add(raised)
    assert outcomes == {True, False}


FIRST_STEP_WITHOUT_MEMORY = """
import re, resource
import torch
from rmsprop_native.interop.torch import RMSprop

torch.set_num_threads(1)
MIB = 2**20
options = dict(momentum=0.5, centered=True, ema=0.875)
raised = []
for fits in range(6):
    params = [torch.nn.Parameter(torch.ones(16 * MIB, dtype=torch.{dtype})) for _ in range(2)]
    for p in params:
        p.grad = torch.full_like(p, 0.5)
    optimizer, expected = (RMSprop([p], **options) for p in params)
    expected.step()
    size = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 * fits + 8) * MIB, resource.RLIM_INFINITY))
    try:
        optimizer.step()
    except (MemoryError, RuntimeError):
        raised.append(fits)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    if raised[-1:] == [fits]:
        assert params[0].eq(1).all()
        assert len(optimizer.state[params[0]]) == 0
        optimizer.step()
    assert optimizer.native
    assert torch.equal(*params)
    states = [of.state[p] for of, p in zip((optimizer, expected), params)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    del params, p, optimizer, expected, states
print(*raised)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of the process from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_for_large_buffers_that_runs_out(dtype):
    """A first step without memory for all buffers has made none, and the next one is the first."""
    program = FIRST_STEP_WITHOUT_MEMORY.format(dtype=dtype)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"0", "1", "2"} <= set(done.stdout.split()) < set("012345")


@pytest.mark.threads
def test_threads_that_take_the_first_step():
    """Each is refused or takes its turn; none makes the state of another anew."""
    options = {"momentum": 0.5, "ema": 0.875}
    for _ in range(30):
        params = [nn.Parameter(torch.ones(1 << 16)) for _ in range(2)]
        for p in params:
            p.grad = torch.full_like(p, 0.5)
        optimizer, expected = (RMSprop([p], **options) for p in params)
        others = []

        def step(optimizer=optimizer, others=others):
            try:
                optimizer.step()
            except RuntimeError as error:
                others.append(str(error))

        run_together(*[step] * 4)
        assert all("inside a step already" in message for message in others)
        for _ in range(4 - len(others)):
            expected.step()
        states = [of.state[p] for of, p in zip((optimizer, expected), params, strict=True)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
        assert torch.equal(*params)


class State(collections.defaultdict):
    """A state that runs code when it is asked for a parameter."""

    def __getitem__(self, key):
        inside, self.inside = self.inside, None
        if inside is not None:
            inside()
        return super().__getitem__(key)


@pytest.mark.threads
@pytest.mark.parametrize("is_same", [True, False])
def test_thread_that_steps_while_a_step_is_prepared(is_same):
    """Another optimizer steps; the same one is refused; nobody waits for the other."""
    params = [nn.Parameter(torch.ones(5)) for _ in range(2)]
    for p in params:
        p.grad = torch.ones(5)
    optimizer, other = (RMSprop([p]) for p in params)
    ended = []

    def step():
        try:
            (optimizer if is_same else other).step()
            ended.append("stepped")
        except RuntimeError as error:
            ended.append(str(error))

    def inside():
        thread = threading.Thread(target=step, daemon=True)
        thread.start()
        thread.join(30)
        ended.append("joined" if not thread.is_alive() else "waits")

    optimizer.state = State(dict)
    optimizer.state.inside = inside
    optimizer.step()
    assert ended[1] == "joined"
    assert ("inside a step already" in ended[0]) == is_same
    assert float(optimizer.state[params[0]]["step"]) == 1


class Own(nn.Parameter):
    """A parameter that torch's operations step."""


def test_state_of_another_shape_without_gradient():
    """Is looked at where the parameter has a gradient."""
    params = [Own(torch.ones(5)) for _ in range(2)]
    optimizer = RMSprop(params)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones(5)
        optimizer.step()
    optimizer.state[params[1]]["square_avg"] = torch.zeros(4)
    params[1].grad = None
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [3, 2]
    params[1].grad = torch.ones(5)
    with pytest.raises(ValueError, match=r"has shape \(4,\), its parameter \(5,\)"):
        optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [3, 2]


@pytest.mark.threads
def test_fork():
    params, optimizer = parameters(4, 1 << 18)
    child = os.fork()
    if child == 0:
        optimizer.step()
        os._exit(0 if float(optimizer.state[params[0]]["step"]) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    optimizer.step()
