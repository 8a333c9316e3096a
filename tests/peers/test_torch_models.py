"""What people do to a model between steps and what is not native, beside torch's own class; a step in backward."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from beside import (
    ALL,
    PARTLY_FLOAT32,
    TRAINED,
    beside_torch,
    everything,
    label_of,
    loss_of,
    model_of,
    new,
    random_grads,
    train,
)
from conftest import same_bits
from torch import nn

import rmsprop_native as rms
from rmsprop_native.interop.torch import RMSprop

pytestmark = pytest.mark.usefixtures("torch_source")


# ---- what happens to parameters between steps ----


def new_data(model):
    for p in model.parameters():
        p.data = torch.full_like(p, 0.25)
    gc.collect()


def strided_data(model):
    for p in model.parameters():
        p.data = torch.stack([p.data, p.data], -1)[..., 0]


def other_order(model):
    for p in model.parameters():
        if p.dim() == 2:
            p.data = p.data.T.contiguous().T


def shared(model):
    model.share_memory()


def loaded(model):
    model.load_state_dict({name: value.clone() * 0.5 for name, value in model.state_dict().items()})


def frozen(model):
    model[0].weight.requires_grad_(False)


def thawed(model):
    model[0].weight.requires_grad_(True)


def set_data(model):
    for p in model.parameters():
        p.set_(p.detach().clone())


def swapped(model):
    """What torch.nn.Module.to does with torch.__future__.set_swap_module_params_on_conversion."""
    for p in model.parameters():
        torch.utils.swap_tensors(p, nn.Parameter(p.detach() * 0.5))


def smaller(model):
    """Parameters pruned away in place: of the first layer the last two outputs."""
    keep = slice(0, 3)
    model[0].weight.data = model[0].weight.data[keep].clone()
    model[0].bias.data = model[0].bias.data[keep].clone()
    model[2].weight.data = model[2].weight.data[:, keep].clone()


CHANGES = [new_data, strided_data, other_order, shared, loaded, frozen, set_data]


@pytest.mark.parametrize("options", [{}, ALL], ids=label_of)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@beside_torch
def test_change_between_steps(make, change, options):
    model = model_of()
    optimizer = make(model.parameters(), **options)
    losses = train(model, optimizer)
    with torch.no_grad():
        change(model)
    losses += train(model, optimizer, 3, 3)
    return losses, everything(optimizer)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@beside_torch
def test_change_before_the_first_step(make, change):
    model = model_of()
    optimizer = make(model.parameters(), **ALL)
    with torch.no_grad():
        change(model)
    return train(model, optimizer), everything(optimizer)


@beside_torch
def test_frozen_and_thawed(make):
    model = model_of()
    optimizer = make(model.parameters(), **ALL)
    losses = train(model, optimizer)
    model[0].weight.grad = None
    frozen(model)
    losses += train(model, optimizer, 2, 3)
    thawed(model)
    losses += train(model, optimizer, 2, 5)
    return losses, everything(optimizer)


@pytest.mark.parametrize("set_to_none", [True, False])
@beside_torch
def test_gradients_kept_between_steps(make, set_to_none):
    model = model_of()
    optimizer = make(model.parameters(), **ALL)
    return train(model, optimizer, set_to_none=set_to_none), everything(optimizer)


@beside_torch(may_refuse=True)
def test_swapped_tensors(make):
    """What was a parameter's state is another tensor's then; torch swaps nothing that a weak reference leads to."""
    model = model_of()
    optimizer = make(model.parameters())
    losses = train(model, optimizer)
    swapped(model)
    return losses + train(model, optimizer), everything(optimizer)


@beside_torch(may_refuse=True)
def test_parameters_that_get_another_shape(make):
    """The buffers do not fit then, with either class."""
    model = model_of()
    optimizer = make(model.parameters(), momentum=0.5)
    train(model, optimizer)
    smaller(model)
    return train(model, optimizer)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32),
                                    (torch.float64, torch.float16)], ids=str)  # fmt: skip
@beside_torch(may_refuse=True, tolerances=PARTLY_FLOAT32)
def test_model_moved_to_another_dtype(make, dtypes):
    """Before the first step any dtype; later the buffers are of the old one, with either class."""
    model = model_of(dtypes[0])
    optimizer = make(model.parameters())
    model.to(dtypes[1])
    found = train(model, optimizer), everything(optimizer)
    model.to(dtypes[0])
    return found, train(model, optimizer)


def test_model_moved_to_another_dtype_after_a_step_is_torchs(torch_source):
    """The native step refuses buffers of another dtype; torch's operations take them, as in its own class."""
    model = model_of(torch.float32)
    optimizer = RMSprop(model.parameters())
    train(model, optimizer)
    model.to(torch.float64)
    train(model, optimizer)
    assert len(optimizer.native.reasons) == 4
    for reason in optimizer.native.reasons.values():
        assert "float32" in reason or "float64" in reason


@beside_torch
def test_load_state_dict_with_assign(make):
    """The parameters of the model are others then; the optimizer has the old ones, with either class."""
    model = model_of()
    optimizer = make(model.parameters())
    losses = train(model, optimizer)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    losses += train(model, optimizer, 2, 3)
    optimizer = make(model.parameters())
    losses += train(model, optimizer, 2, 5)
    return losses, everything(optimizer)


@beside_torch
def test_parameters_tied_in_two_modules(make):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3)).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    model[2].weight = model[0].weight
    optimizer = make(model.parameters(), **ALL)
    return train(model, optimizer), everything(optimizer)


@beside_torch
def test_parameters_that_share_memory(make):
    """Two views of one memory, given as two parameters: each step goes over it twice, with either class."""
    memory = torch.ones(3, 2, dtype=torch.float64)
    params = [nn.Parameter(memory[:2].detach()), nn.Parameter(memory[1:].detach())]
    optimizer = make(params)
    for i in range(2):
        random_grads(params, i)
        optimizer.step()
    return everything(optimizer)


@beside_torch
def test_gradient_that_is_its_parameter(make):
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    p.grad = p.detach()
    optimizer = make([p, q := new(2)])
    q.grad = torch.ones_like(q)
    optimizer.step()
    return everything(optimizer)


@beside_torch
def test_parameters_added_removed_and_replaced(make):
    p, q, r = (new(3) for _ in range(3))
    random_grads([p, q, r])
    optimizer = make([p, q])
    optimizer.step()
    optimizer.param_groups[0]["params"].append(r)
    optimizer.step()
    del optimizer.param_groups[0]["params"][0]
    optimizer.step()
    optimizer.param_groups[0]["params"] = [r, p]
    optimizer.step()
    optimizer.param_groups[0]["params"][0] = q
    optimizer.step()
    del optimizer.state[q]
    optimizer.step()
    optimizer.state.clear()
    optimizer.step()
    return [p.detach(), q.detach(), r.detach()], everything(optimizer)


@beside_torch
def test_buffers_replaced(make):
    p = new(3, 2)
    optimizer = make([p], momentum=0.5)
    random_grads([p])
    optimizer.step()
    optimizer.state[p]["square_avg"] = optimizer.state[p]["square_avg"].clone() * 2
    optimizer.step()
    optimizer.state[p]["momentum_buffer"] = torch.zeros(2, 3, dtype=torch.float64).T
    optimizer.step()
    optimizer.state[p] = {name: value.clone() for name, value in optimizer.state[p].items()}
    optimizer.step()
    return everything(optimizer)


# ---- what is not native ----


def mixed():
    """Parameters of all kinds in one optimizer, with gradients."""
    torch.manual_seed(1)

    class Mine(nn.Parameter):
        pass

    params = {
        "float64": new(4, 3),
        "float32": nn.Parameter(torch.randn(5)),
        "bfloat16 subclass": Mine(torch.randn(6, dtype=torch.bfloat16)),
        "float16": nn.Parameter(torch.randn(6, dtype=torch.float16)),
        "complex": nn.Parameter(torch.randn(3, dtype=torch.complex64)),
        "subclass": Mine(torch.randn(3, dtype=torch.float64)),
        "expanded gradient": new(4, 2),
        "transposed gradient": new(4, 2),
        "negative gradient": nn.Parameter(torch.randn(4, dtype=torch.float64)),
        "empty": new(0, 3),
        "scalar": nn.Parameter(torch.tensor(2.0, dtype=torch.float64)),
        "channels last": nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)),
        "no gradient": new(3),
    }
    for name, p in params.items():
        if name != "no gradient":
            p.grad = torch.randn(p.shape, dtype=p.dtype)
    params["expanded gradient"].grad = torch.ones(1, 2, dtype=torch.float64).expand(4, 2)
    params["transposed gradient"].grad = torch.randn(2, 4, dtype=torch.float64).T
    params["negative gradient"].grad = torch.randn(4, dtype=torch.complex128).conj().imag
    return params


MIXED = {"bfloat16 subclass": "is a Mine", "float16": "float16, whose range", "subclass": "is a Mine"}


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("options", [{}, ALL], ids=label_of)
@beside_torch(tolerances=TRAINED)
def test_all_kinds_in_one_optimizer(make, options, foreach):
    params = list(mixed().values())
    optimizer = make(params, foreach=foreach, **options)
    for _ in range(3):
        optimizer.step()
    return everything(optimizer)


def test_native_says_what_is_not():
    params = mixed()
    optimizer = RMSprop(params.values())
    names = list(params)
    for _ in range(2):  # before the first step and after it
        assert not optimizer.native
        reasons = {names[i]: reason for (_, i), reason in optimizer.native.reasons.items()}
        assert set(MIXED) <= set(reasons) <= {*MIXED, "negative gradient"}
        assert all(words in reasons[name] for name, words in MIXED.items())
        assert repr(optimizer.native).startswith(f"{len(params) - len(reasons)} of {len(params)} parameters take")
        optimizer.step()
    assert "lazy" in reasons["negative gradient"] or "neg" in reasons["negative gradient"]


@pytest.mark.parametrize("flag", ["differentiable", "capturable"])
@beside_torch(ignore_warnings=True)
def test_flags_of_torch(make, flag):
    """Capturable is for accelerators: torch's class refuses it on the CPU, and so does ours, in its words."""
    p = new(3)
    random_grads([p])
    optimizer = make([p], **{flag: True})
    try:
        if flag == "differentiable":
            p = p.detach().clone().requires_grad_()
            optimizer = make([q := p.clone()], lr=torch.tensor(0.1, dtype=torch.float64), differentiable=True)
            q.grad = torch.ones_like(q) * p
            optimizer.step()
            (slope,) = torch.autograd.grad(q.sum(), p)
            return slope
        optimizer.step()
    except (RuntimeError, AssertionError) as error:
        return type(error).__name__, str(error)
    return everything(optimizer)


@beside_torch(fails=True, ignore_warnings=True)
def test_sparse_gradient(make):
    p = new(3, 2)
    p.grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 2, dtype=torch.float64), (3, 2))
    make([p]).step()


def test_nothing_is_written_where_torch_refuses():
    p, q = new(3), new(3, 2)
    random_grads([p])
    q.grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 2, dtype=torch.float64), (3, 2))
    optimizer = RMSprop([p, q])
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert torch.equal(p.detach(), before)


def test_native_again():
    """A parameter goes back to the native step as soon as what was in the way is gone."""
    p = new(3)
    optimizer = RMSprop([p, q := new(3)])
    p.grad = p.detach()
    random_grads([q])
    optimizer.step()
    assert list(optimizer.native.reasons) == [(0, 0)]
    assert "overlaps" in optimizer.native.reasons[0, 0]
    random_grads([p])
    optimizer.step()
    assert optimizer.native


# ---- beside autograd ----


def test_version_counters():
    """Those of parameters are bumped by one, as by one in-place operation, so that autograd notices misuse."""
    p, q, r = new(3), new(3), new(3)
    optimizer = RMSprop([p, q, r])
    loss = (p * q).sum() + r.sum()
    loss.backward(retain_graph=True)
    r.grad = None
    versions = [x._version for x in (p, q, r)]
    optimizer.step()
    assert [x._version for x in (p, q, r)] == [versions[0] + 1, versions[1] + 1, versions[2]]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("zero", [True, False])
@beside_torch
def test_step_in_backward(make, zero):
    """One optimizer a parameter, stepped as soon as its gradient is complete."""
    model = model_of()
    optimizers = {p: make([p], **ALL) for p in model.parameters()}

    def step(p):
        optimizers[p].step()
        if zero:
            optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    losses = []
    for i in range(3):
        loss = loss_of(model, i)
        loss.backward()
        losses.append(loss.detach())
    return losses, [everything(optimizer) for optimizer in optimizers.values()]


def test_step_in_backward_frees_the_gradients():
    model = model_of()
    optimizers = {p: RMSprop([p]) for p in model.parameters()}
    alive = []

    def step(p):
        alive.append(sum(q.grad is not None for q in model.parameters()))
        optimizers[p].step()
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    loss_of(model).backward()
    assert alive == [1, 1, 1, 1]


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_threads(threads):
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    p, grad = torch.randn(1 << 20), torch.randn(1 << 20)
    array = p.numpy().copy()
    optimizer = RMSprop([p := nn.Parameter(p)], momentum=0.5)
    state = rms.init(array, preset="torch", momentum=0.5)
    for _ in range(3):
        p.grad = grad
        optimizer.step()
        rms.update_(array, grad.numpy(), state)
    assert same_bits(p.detach().numpy(), array)
    assert np.isfinite(array).all()
