"""The optimizers of torch in a compiled training step, and beside the threads of torch in a process of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from beside import ALL, loss_of, model_of

from rmsprop_native.interop.torch import RMSprop


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("whole", [True, False], ids=["whole step", "forward pass"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_training_step(backend, whole):
    """The numbers of the step that is not compiled; the optimizer's step is no part of a graph."""
    torch._dynamo.reset()
    graphs = []

    def watch(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    def run(compile_):
        model = model_of()
        optimizer = RMSprop(model.parameters(), **ALL)
        forward = loss_of if whole else compile_(loss_of)

        def step(i):
            optimizer.zero_grad()
            loss = forward(model, i)
            loss.backward()
            optimizer.step()
            return loss.detach()

        of_step = compile_(step) if whole else step
        return [of_step(i) for i in range(3)], [p.detach() for p in model.parameters()], optimizer

    plain = run(lambda function: function)
    compiled = run(lambda function: torch.compile(function, backend=watch, dynamic=False))
    assert graphs
    assert compiled[2].native
    for ours, expected in zip(compiled[0] + compiled[1], plain[0] + plain[1], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)  # inductor fuses multiply-adds
    code = "".join(graph.code for graph in graphs)
    assert "tanh" in code
    assert "sqrt" not in code


# For each process settings of rms and torch, and how many threads a large step starts; those that are there stay.
SETTINGS = [[(None, 1, 0), (1, 2, 0), (None, 2, 1)], [(2, 1, 1)]]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_follows_the_threads_of_torch(settings):
    """torch.set_num_threads holds, unless rms.set_num_threads was called; read in the system's list of threads."""
    code = f"""
import os, torch
import rmsprop_native as rms
from rmsprop_native.interop.torch import RMSprop
p = torch.nn.Parameter(torch.ones(1 << 22))
p.grad = torch.ones(1 << 22)
optimizer = RMSprop([p])
p.grad.sum(), torch.ones(1 << 22) + 1
for ours, threads, _ in {settings}:
    torch.set_num_threads(threads)
    torch.ones(1 << 22) + 1
    rms.set_num_threads(ours)
    before = len(os.listdir("/proc/self/task"))
    optimizer.step()
    optimizer.step()
    print(len(os.listdir("/proc/self/task")) - before)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [int(line) for line in printed.split()] == [started for *_, started in settings]
