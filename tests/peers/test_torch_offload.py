"""interop.torch.RMSprop as the optimizer that engines for offloading run on the CPU: CPUOffloadOptimizer of torchao,
HybridDeviceOptimizer of Megatron.

The engines are those that users install. What they need of an accelerator stands in for itself here: streams and
events that wait for nothing, pinned memory that is memory, parameters that say that they are on a device. All that the
optimizer sees is as with a GPU: which tensors, groups and calls.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import same_bits
from pages import run_section
from torch import nn
from torch.optim import lr_scheduler

from rmsprop_native.interop.torch import RMSprop

OPTIONS = {
    "plain": {},
    "all": {"momentum": 0.5, "centered": True, "weight_decay": 2.0**-5},
    "nesterov": {"momentum": 0.9, "nesterov": True, "bias_correction": True, "ema": 0.875, "clip_norm": 0.25},
}
STEPS = 6


class Stream:
    """A stream of an accelerator, and an event in it."""

    def __init__(self):
        self.record_event = Stream

    def wait_stream(self, stream):
        pass

    wait = wait_stream

    def synchronize(self):
        pass


class WithoutDevice:
    """The module torch, with what an engine asks of an accelerator."""

    cuda = SimpleNamespace(Stream=Stream, current_stream=Stream, stream=lambda stream: contextlib.nullcontext())

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *arguments, pin_memory, **options):
        return torch.empty(*arguments, **options)

    def empty_like(self, *arguments, pin_memory, **options):
        return torch.empty_like(*arguments, **options)


class OnDevice(nn.Parameter):
    """A parameter that says that it is on a device."""

    is_cuda = True


@pytest.fixture
def torchao(monkeypatch):
    with warnings.catch_warnings(action="ignore"):
        from torchao.optim import cpu_offload
    monkeypatch.setattr(cpu_offload, "torch", WithoutDevice())
    monkeypatch.setattr(cpu_offload, "get_available_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    return cpu_offload.CPUOffloadOptimizer


@pytest.fixture
def megatron(monkeypatch):
    """The file by itself: megatron.core imports all of Megatron, and warns of what is missing for it."""
    (folder,) = importlib.util.find_spec("megatron").submodule_search_locations
    path = Path(folder) / "core" / "optimizer" / "cpu_offloading" / "hybrid_optimizer.py"
    spec = importlib.util.spec_from_file_location("hybrid_optimizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.torch = WithoutDevice()
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    return module.HybridDeviceOptimizer


def model_of(dtype=torch.float32, on_device=False):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    if on_device:
        for layer in model[::2]:
            layer.weight, layer.bias = OnDevice(layer.weight.detach()), OnDevice(layer.bias.detach())
    return model


def train(model, optimizer, steps=STEPS, start=0, schedule=None):
    for i in range(start, start + steps):
        optimizer.zero_grad()
        random = torch.Generator().manual_seed(i)
        x = torch.randn(16, 6, generator=random).to(model[0].weight.dtype)
        (model(x) - x[:, :1]).square().mean().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def through_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_state(entry, expected, but=()):
    assert entry.keys() - set(but) == expected.keys()
    for name, tensor in expected.items():
        assert same_bits(entry[name], tensor), name


def assert_same_model(model, expected):
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert same_bits(p.detach().numpy(), q.detach().numpy())


# ---- torchao ----


@pytest.mark.parametrize("offload_gradients", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_torchao(torchao, options, offload_gradients):
    """An optimizer for each large parameter, one for the small ones: the bits are those of one for all."""
    options = OPTIONS[options]
    model, plain = model_of(), model_of()
    expected = RMSprop(plain.parameters(), **options)
    optimizer = torchao(model.parameters(), RMSprop, offload_gradients=offload_gradients, minimal_size=40, **options)
    train(model, optimizer)
    train(plain, expected)
    assert_same_model(model, plain)
    inner = optimizer.optim_dict
    assert [p.numel() for p in inner] == [240, 40, 320]
    assert [len(group["params"]) for group in optimizer.d_opt.param_groups] == [3]
    assert all(each.native for each in (*inner.values(), optimizer.d_opt))
    assert not any(p.requires_grad for each in inner.values() for p in each.state)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        entry = inner[p].state[optimizer.param_d2h_map[p]] if p in inner else optimizer.d_opt.state[p]
        assert_same_state(entry, expected.state[q])


def torchao_with_groups(make, model, **options):
    """Groups and a schedule, with an engine or without."""
    params = list(model.parameters())
    return make([{"params": params[:3], "lr": 0.125}, {"params": params[3:], "momentum": 0.5}], **options)


def test_torchao_resumes(torchao):
    """Groups and a schedule; the state through a file, into an engine that was made with another lr. No parameter is
    kept on the device: after load_state_dict torchao's schedules no longer reach the groups of the optimizer there.
    """
    model, plain = model_of(), model_of()
    options = {"preset": "graves", "weight_decay": 2.0**-5}
    expected = torchao_with_groups(RMSprop, plain, **options)
    train(plain, expected, schedule=lr_scheduler.StepLR(expected, 2, 0.5))

    def make(groups, **more):
        return torchao(groups, RMSprop, minimal_size=1, **more)

    optimizer = torchao_with_groups(make, model, **options)
    schedule = lr_scheduler.StepLR(optimizer, 2, 0.5)
    train(model, optimizer, 3, schedule=schedule)
    saved = through_file({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()})
    model = copy.deepcopy(model)
    for p in model.parameters():
        p._post_accumulate_grad_hooks = None  # those of the first engine
    resumed = torchao_with_groups(make, model, **options | {"lr": 123.0})
    schedule = lr_scheduler.StepLR(resumed, 2, 0.5)
    resumed.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    train(model, resumed, STEPS - 3, 3, schedule)
    assert_same_model(model, plain)
    assert resumed.d_opt is None
    assert all(each.native for each in resumed.optim_dict.values())


def test_page_of_torchao(torchao):
    """The block of docs/distributed.md."""
    model = nn.Sequential(nn.Linear(6, 1000), nn.Tanh(), nn.Linear(1000, 1))
    names = run_section(
        "CPUOffloadOptimizer of torchao", CPUOffloadOptimizer=torchao, RMSprop=RMSprop, model=model, train=train
    )
    (offloaded,) = names["optimizer"].optim_dict.values()
    assert offloaded.native
    assert len(offloaded.state) == 1
    assert offloaded.param_groups[0]["eps_inside_sqrt"]


# ---- Megatron ----


def hybrid(megatron, model, **options):
    return megatron(model.parameters(), cpu_optimizer_cls=RMSprop, gpu_optimizer_cls=torch.optim.RMSprop, **options)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_megatron(megatron, options, overlap):
    """All parameters offloaded, by one optimizer or by one each; the options come by the groups, with foreign keys."""
    model, plain = model_of(on_device=True), model_of()
    options = {"lr": 2.0**-6} | OPTIONS[options]
    optimizer = hybrid(megatron, model, offload_fraction=1.0, overlap_cpu_optimizer_d2h_h2d=overlap, **options)
    expected = RMSprop(plain.parameters(), **options)
    schedules = [lr_scheduler.StepLR(each, 2, 0.5) for each in (optimizer, expected)]
    train(model, optimizer, schedule=schedules[0])
    train(plain, expected, schedule=schedules[1])
    assert len(optimizer.cpu_optimizers) == (6 if overlap else 1)
    assert optimizer.gpu_optimizer is None
    assert all(each.native for each in optimizer.cpu_optimizers)
    assert "cpu_optimizer_cls" in optimizer.cpu_optimizers[0].param_groups[0]
    assert_same_model(model, plain)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_same_state(optimizer.state[p], expected.state[q])


def test_megatron_offloads_a_part(megatron):
    """What stays on the device is stepped by the other class."""
    model = model_of(on_device=True)
    optimizer = hybrid(megatron, model, offload_fraction=0.5, lr=2.0**-6)
    train(model, optimizer)
    offloaded = [len(each.param_groups[0]["params"]) for each in optimizer.cpu_optimizers]
    assert offloaded == [1] * len(offloaded)
    assert 0 < len(offloaded) < 6
    assert len(optimizer.gpu_optimizer.param_groups[0]["params"]) == 6 - len(offloaded)
    assert all(each.native for each in optimizer.cpu_optimizers)


class Nesterov(RMSprop):
    """A class with a preset, for engines that give no arguments but the groups."""

    def __init__(self, params):
        super().__init__(params, preset="tf1", nesterov=True)


@pytest.mark.parametrize("cls", [RMSprop, Nesterov])
def test_megatron_in_bfloat16_resumes(megatron, cls):
    """bfloat16 parameters with float32 copies, which are in the state as master_param; then the state through a file.
    The copies are stepped with the bits of an optimizer over float32 parameters that has the same gradients.
    """
    options = {"lr": 2.0**-6, "momentum": 0.5}

    def make(model):
        return megatron(
            model.parameters(),
            offload_fraction=1.0,
            cpu_optimizer_cls=cls,
            gpu_optimizer_cls=torch.optim.RMSprop,
            param_update_in_fp32=True,
            **options,
        )

    model = model_of(torch.bfloat16, on_device=True)
    optimizer = make(model)
    copies = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    expected = cls([{"params": copies, **options}])
    for i in range(STEPS):
        if i == 3:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = make(model)
            optimizer.load_state_dict(saved)
        train(model, optimizer, 1, i)
        for p, copied in zip(model.parameters(), copies, strict=True):
            copied.grad = p.grad.float()
        expected.step()
        assert all(each.native for each in optimizer.cpu_optimizers)
        for p, copied in zip(model.parameters(), copies, strict=True):
            entry = optimizer.state[p]
            assert same_bits(entry["master_param"].numpy(), copied.detach().numpy())
            assert torch.equal(p, copied.bfloat16())
            assert_same_state(entry, expected.state[copied], but=["master_param"])


def test_page_of_megatron(megatron):
    """The block of docs/distributed.md."""
    model = model_of(torch.bfloat16, on_device=True)
    names = run_section(
        "HybridDeviceOptimizer of Megatron",
        HybridDeviceOptimizer=megatron, RMSprop=RMSprop, model=model, torch=torch, train=train,
    )  # fmt: skip
    inner = names["optimizer"].cpu_optimizers
    assert all(each.native for each in inner)
    assert {each.param_groups[0]["initial_square_avg"] for each in inner} == {1.0}
