"""bfloat16 tensors of torch: the bits of the reference through `update_` and as an optimizer, and what keeps them."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch
from beside import through_file
from cases import ISAS, VARIANTS
from conftest import run_together, same_bits
from torch import nn

import rmsprop_native as rms
from rmsprop_native import _core, reference
from rmsprop_native.interop.torch import RMSprop, RMSpropTF, from_state_dict, to_state_dict

BF16 = np.dtype(ml_dtypes.bfloat16)
PARAMS = {"split": {}, "rounded": {"master_weights": False, "seed": 2**40 + 3}}
AVERAGES = {"f32": {}, "bf16": {"square_avg_dtype": "bfloat16"}}
STORAGES = {
    f"{name}-{average}": PARAMS[name] | AVERAGES[average] for name, average in itertools.product(PARAMS, AVERAGES)
}
OPTIONS = {"lr": 0.03, "seed": 5}
SHAPES = [(37, 3), (5,), (), (0, 2), (2, 3, 4, 5), (_core.SPAN + 7,), (6, 4)]


@pytest.fixture(autouse=True)
def _one_thread(torch_source):
    """Both ways to read tensors; torch's threads would wait for each other at each small operation."""
    torch.set_num_threads(1)


def as_array(tensor):
    """A copy of a tensor in NumPy, in C order; int16, the lower halves, as uint16."""
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BF16)
    return tensor.numpy().view(np.uint16) if tensor.dtype is torch.int16 else tensor.numpy()


def params_of(shapes=SHAPES, dtype=torch.bfloat16):
    """Parameters, of which those of four axes are channels last and those of (6, 4) in Fortran order."""
    random = torch.Generator().manual_seed(1)
    params = [nn.Parameter(torch.randn(shape, generator=random).to(dtype)) for shape in shapes]
    for p in params:
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
        if p.shape == (6, 4):
            p.data = p.data.T.contiguous().T
    return params


def give_grads(params, step, *, bad=False):
    """Give parameters gradients of their dtype; returns copies in NumPy."""
    random = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=random).to(p.dtype)
        if bad and p.numel() > 4:
            p.grad.view(-1)[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    return [as_array(p.grad) for p in params]


def assert_alike(params, arrays):
    for i, (p, array) in enumerate(zip(params, arrays, strict=True)):
        assert same_bits(as_array(p), array), f"parameter {i}"


def assert_states_alike(optimizer, params, state):
    """Compare the state of an optimizer with one of the reference."""
    names = [*state.options.buffers, *(["low_half"] if state.low_half is not None else [])]
    for i, p in enumerate(params):
        assert set(optimizer.state[p]) == {"step", *names}
        for name in names:
            assert same_bits(as_array(optimizer.state[p][name]), getattr(state, name)[i]), f"{name} {i}"


def beside_reference(make, params, options, steps=4, bad=False):
    """Step parameters by an optimizer and by the reference, and compare the bits after every step."""
    numbers = {"alpha" if name == "rho" else name: value for name, value in options.items()}
    optimizer = make(params, **numbers)
    arrays = [as_array(p) for p in params]
    state = reference.init(arrays, preset="torch", **options)
    for step in range(steps):
        reference.update_(arrays, give_grads(params, step, bad=bad and step == steps - 1), state)
        optimizer.step()
        assert_alike(params, arrays)
        assert_states_alike(optimizer, params, state)
    assert optimizer.native
    return optimizer, arrays, state


# ---- the bits ----


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_optimizer_has_the_bits_of_the_reference(variant, storage):
    beside_reference(RMSprop, params_of(), OPTIONS | VARIANTS[variant] | STORAGES[storage])


EXTRAS = {
    "ema": {"ema": 0.875},
    "clip_norm": {"clip_norm": 0.5},
    "clip_global_norm": {"clip_global_norm": 0.5},
    "bias_correction": {"bias_correction": True},
    "initial_square_avg": {"initial_square_avg": 1.0, "eps_inside_sqrt": True},
    "decoupled": {"weight_decay": 0.02, "decoupled_weight_decay": True},
}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("extra", EXTRAS)
def test_further_options(extra, storage):
    beside_reference(RMSprop, params_of(), OPTIONS | EXTRAS[extra] | STORAGES[storage])


@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_that_are_not_finite(storage):
    beside_reference(RMSprop, params_of(), OPTIONS | {"momentum": 0.5} | STORAGES[storage], bad=True)


@pytest.mark.parametrize("storage", STORAGES)
def test_timms_class(storage):
    params = params_of()
    optimizer = RMSpropTF(params, lr=0.03, momentum=0.9, **STORAGES[storage])
    arrays = [as_array(p) for p in params]
    state = reference.init(arrays, preset="timm", lr=0.03, momentum=0.9, **STORAGES[storage])
    for step in range(3):
        reference.update_(arrays, give_grads(params, step), state)
        optimizer.step()
    assert_alike(params, arrays)
    assert_states_alike(optimizer, params, state)
    assert optimizer.native


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_update_has_the_bits_of_the_reference(variant, storage, tmp_path):
    """Tensors of two dtypes in one tree; the state goes through a file and a pickle."""
    params = [*params_of(), *params_of([(4, 3)], torch.float32)]
    options = OPTIONS | VARIANTS[variant] | STORAGES[storage]
    arrays = [as_array(p) for p in params]
    state, expected = rms.init(params, **options), reference.init(arrays, **options)
    for step in range(4):
        grads = give_grads(params, step)
        reference.update_(arrays, grads, expected)
        rms.update_(params, [p.grad for p in params], state)
        assert_alike(params, arrays)
        rms.save(tmp_path / "state.npz", state)
        state = pickle.loads(pickle.dumps(rms.load(tmp_path / "state.npz", like=params)))
    for name in (*state.options.buffers, "low_half"):
        found, wanted = getattr(state, name), getattr(expected, name)
        assert (found is None) == (wanted is None)
        for tensor, array in zip(found or (), wanted or (), strict=True):
            assert (tensor is None) == (array is None)
            assert tensor is None or (type(tensor) is torch.Tensor and same_bits(as_array(tensor), array))
    masters = state.master(params)
    assert all(type(each) is torch.Tensor and each.dtype is torch.float32 for each in masters)


def test_update_without_writing():
    params = params_of()
    state = rms.init(params, **OPTIONS)
    give_grads(params, 0)
    new, new_state = rms.update(params, [p.grad for p in params], state)
    rms.update_(params, [p.grad for p in params], state)
    assert_alike(new, [as_array(p) for p in params])
    for one, other in zip(new_state.low_half, state.low_half, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("storage", STORAGES)
def test_rows(storage):
    """Of a row that is given twice the values are summed in float32."""
    table = params_of([(50, 3)])[0]
    array = as_array(table)
    options = OPTIONS | STORAGES[storage]
    state, expected = rms.init(table, **options), reference.init(array, **options)
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(2)).bfloat16()
    for rows in ([7, 3, 49, 3], [0, 1, 2, 3]):
        reference.update_(array, rms.RowGrad(rows, as_array(values)), expected)
        rms.update_(table, rms.RowGrad(rows, values), state)
        assert same_bits(as_array(table), array)
        assert same_bits(as_array(state.square_avg), expected.square_avg)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.threads)])
def test_threads_and_instruction_sets(isa, threads):
    rms.use_isa(isa)
    rms.set_num_threads(threads)
    _core.set_grain(0)
    shapes = [(3 * _core.SPAN + 5,), (33,), (1,), (129, 65)]
    for storage in STORAGES.values():
        beside_reference(RMSprop, params_of(shapes), OPTIONS | {"momentum": 0.9} | storage, steps=2)


# ---- what it is for ----


@pytest.mark.parametrize("variant", VARIANTS)
def test_split_training_is_float32_training(variant):
    """The parameters are the float32 ones, rounded to the nearest, over 1000 steps; gradients have few bits."""
    params = params_of([(33, 5), (40,)])
    copies = [nn.Parameter(p.detach().float()) for p in params]
    options = {"lr": 2.0**-9, "alpha": 0.99} | VARIANTS[variant]
    split, whole = RMSprop(params, **options), RMSprop(copies, **options)
    for step in range(1000):
        give_grads(params, step)
        for p, copied in zip(params, copies, strict=True):
            copied.grad = p.grad.float()
        split.step()
        whole.step()
    for p, copied in zip(params, copies, strict=True):
        assert same_bits(as_array(split.master(p)), as_array(copied))
        assert same_bits(as_array(p), reference.split_halves(as_array(copied))[0])
        assert torch.equal(split.state[p]["square_avg"], whole.state[copied]["square_avg"])
    assert split.native


def end_of(make, dtype, **options):
    """Where a thousand parameters are that start at 1, after 1000 gradients of 1."""
    p = nn.Parameter(torch.ones(1000, dtype=dtype))
    optimizer = make([p], lr=1e-3, **options)
    p.grad = torch.ones_like(p)
    for _ in range(1000):
        optimizer.step()
    return float(p.detach().double().mean())


@functools.cache
def ends_of_torch():
    return [end_of(torch.optim.RMSprop, dtype) for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize("storage", STORAGES)
def test_training_does_not_stall(storage):
    """The class of torch stops in bfloat16 where a step is less than half of the last bit. Rounding at random goes on;
    the bounds are over 10 standard deviations of a mean of 1000.
    """
    whole, stalled = ends_of_torch()
    assert whole == pytest.approx(-0.124, abs=1e-3)
    assert stalled > 0.8
    bound = 2.0**-11 if storage == "split-f32" else 0.02  # half of the last bit of a bfloat16 at 0.124
    assert end_of(RMSprop, torch.bfloat16, **STORAGES[storage]) == pytest.approx(whole, abs=bound)


def network(dtype):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)).to(dtype)


def loss_of(model):
    random = torch.Generator().manual_seed(4)
    x = torch.randn(64, 8, generator=random)
    y = x.square().sum(1, keepdim=True) / 8
    dtype = model[0].weight.dtype
    return (model(x.to(dtype)) - y.to(dtype)).square().mean()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_network_trains(storage):
    """With gradients of autograd; the bits are those of the reference, and the loss ends where torch's does not get."""
    torch.set_num_threads(1)
    model, peer = network(torch.bfloat16), network(torch.bfloat16)
    params = list(model.parameters())
    options = {"lr": 1e-3, "rho": 0.99} | STORAGES[storage]
    optimizer = RMSprop(params, lr=1e-3, **STORAGES[storage])
    theirs = torch.optim.RMSprop(peer.parameters(), lr=1e-3)
    arrays = [as_array(p) for p in params]
    state = reference.init(arrays, preset="torch", **options)
    for _ in range(300):
        for trained, of in ((model, optimizer), (peer, theirs)):
            of.zero_grad()
            loss_of(trained).backward()
        reference.update_(arrays, [as_array(p.grad) for p in params], state)
        optimizer.step()
        theirs.step()
    assert_alike(params, arrays)
    assert optimizer.native
    found, stalled = (float(loss_of(copy.deepcopy(each).float()).detach()) for each in (model, peer))
    assert found < 0.9 * stalled


# ---- parameters that are written between steps ----


def zeroed(p):
    p.zero_()


def negated(p):
    p.neg_()


def half_replaced(p):
    p.view(-1)[::2] = torch.linspace(-2, 2, (p.numel() + 1) // 2).to(p.dtype)


def replaced(p):
    p.data = torch.full_like(p, 0.7)


@pytest.mark.parametrize("write", [zeroed, negated, half_replaced, replaced])
@pytest.mark.parametrize("storage", STORAGES)
def test_parameters_may_be_written(write, storage):
    params = params_of([(37, 3), (5,)])
    optimizer, arrays, state = beside_reference(RMSprop, params, OPTIONS | STORAGES[storage])
    with torch.no_grad():
        for p, array in zip(params, arrays, strict=True):
            write(p)
            array[...] = as_array(p)
            assert write is not zeroed or not optimizer.master(p).any()
    for step in range(4, 7):
        reference.update_(arrays, give_grads(params, step), state)
        optimizer.step()
        assert_alike(params, arrays)
        assert_states_alike(optimizer, params, state)


# ---- checkpoints ----


def restored_by_state_dict(optimizer, params, options):
    other = RMSprop(params, **options)
    other.load_state_dict(through_file(optimizer.state_dict()))
    return other


def restored_by_deepcopy(optimizer, params, options):
    saved = copy.deepcopy(optimizer.state_dict())
    other = RMSprop(params, **options)
    other.load_state_dict(saved)
    return other


def restored_in_numpy(optimizer, params, options):
    state = from_state_dict(optimizer.state_dict(), [as_array(p) for p in params])
    other = RMSprop(params, **options)
    other.load_state_dict(to_state_dict(state, "native"))
    return other


WAYS = [restored_by_state_dict, restored_by_deepcopy, restored_in_numpy]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("storage", STORAGES)
def test_training_goes_on_from_a_checkpoint(storage, way):
    params = params_of()
    options = {**OPTIONS, "momentum": 0.9, "centered": True, **STORAGES[storage]}
    optimizer, arrays, state = beside_reference(RMSprop, params, options)
    for step in range(4, 7):
        optimizer = way(optimizer, params, options)
        assert_states_alike(optimizer, params, state)
        reference.update_(arrays, give_grads(params, step), state)
        optimizer.step()
        assert_alike(params, arrays)
        assert_states_alike(optimizer, params, state)
    assert optimizer.native


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("storage", STORAGES)
def test_copies_of_an_optimizer(storage, copier):
    params = params_of()
    optimizer, arrays, state = beside_reference(RMSprop, params, {**OPTIONS, "momentum": 0.9, **STORAGES[storage]})
    copied = copier(optimizer)
    params = copied.param_groups[0]["params"]
    reference.update_(arrays, give_grads(params, 4), state)
    copied.step()
    assert_alike(params, arrays)
    assert_states_alike(copied, params, state)


def test_hooks_of_a_load_see_tensors():
    """A hook before it sees what was given, one after it the state as it will be."""
    params = params_of()
    optimizer, _, state = beside_reference(RMSprop, params, OPTIONS)
    other = RMSprop(params, **OPTIONS)
    seen = []
    other.register_load_state_dict_pre_hook(lambda _, given: seen.append(given["state"][0]["low_half"]))
    other.register_load_state_dict_post_hook(lambda of: seen.append(of.state[params[0]]["low_half"]))
    other.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(each, optimizer.state[params[0]]["low_half"]) for each in seen)
    assert [each.dtype for each in seen] == [torch.int16] * 2
    assert len(other._optimizer_load_state_dict_pre_hooks) == 1
    assert_states_alike(other, params, state)


def from_torchs(params, saved, options):
    """The reference, with the state of torch's class for these parameters."""
    arrays = [as_array(p) for p in params]
    state = reference.init(arrays, preset="torch", **options)
    for i in range(len(params)):
        for name in state.options.buffers:
            getattr(state, name)[i][...] = as_array(saved["state"][i][name]).astype(np.float32)
    state.step = 3
    return arrays, state


@pytest.mark.parametrize("way", ["load", "from_state_dict"])
def test_checkpoint_of_torchs_class(way):
    """Its bfloat16 buffers are widened exactly; the parameters are what they are."""
    params = params_of()
    options = {"lr": 0.03, "momentum": 0.9, "centered": True}
    theirs = torch.optim.RMSprop(params, **options)
    for step in range(3):
        give_grads(params, step)
        theirs.step()
    arrays, expected = from_torchs(params, theirs.state_dict(), options)
    grads = give_grads(params, 3)
    reference.update_(arrays, grads, expected)
    if way == "load":
        optimizer = RMSprop(params)
        optimizer.load_state_dict(through_file(theirs.state_dict()))
        optimizer.step()
        assert_alike(params, arrays)
        assert_states_alike(optimizer, params, expected)
        assert optimizer.native
    else:
        twins = [as_array(p) for p in params]
        state = from_state_dict(theirs.state_dict(), twins)
        rms.update_(twins, grads, state)
        assert all(same_bits(one, other) for one, other in zip(twins, arrays, strict=True))


def test_state_of_torchs_class_without_a_load():
    """The entries of its state themselves, in another optimizer."""
    params = params_of()
    options = {"lr": 0.03, "momentum": 0.9, "centered": True}
    theirs = torch.optim.RMSprop(params, **options)
    for step in range(3):
        give_grads(params, step)
        theirs.step()
    arrays, expected = from_torchs(params, theirs.state_dict(), options)
    optimizer = RMSprop(params, **options)
    for p in params:
        optimizer.state[p] = theirs.state[p]
    reference.update_(arrays, give_grads(params, 3), expected)
    optimizer.step()
    assert_alike(params, arrays)
    assert_states_alike(optimizer, params, expected)


def test_buffers_that_are_not_contiguous():
    """They become so; momentum buffers may have any layout."""
    params = params_of([(6, 4), (3, 5)])
    options = OPTIONS | {"momentum": 0.9} | AVERAGES["bf16"]
    optimizer, arrays, state = beside_reference(RMSprop, params, options)
    for p in params:
        optimizer.state[p] |= {
            name: optimizer.state[p][name].T.contiguous().T for name in ("square_avg", "momentum_buffer", "low_half")
        }
    reference.update_(arrays, give_grads(params, 4), state)
    optimizer.step()
    assert_alike(params, arrays)
    assert_states_alike(optimizer, params, state)
    for p in params:
        assert optimizer.state[p]["low_half"].is_contiguous()


def test_square_avg_is_not_rounded_by_an_option_that_is_set_later():
    p = params_of([(5,)])[0]
    optimizer = RMSprop([p])
    give_grads([p], 0)
    optimizer.step()
    optimizer.param_groups[0]["square_avg_dtype"] = "bfloat16"
    before = optimizer.master(p)
    words = r"square_avg .* has dtype (torch\.)?float32, its parameter has bfloat16: .* take the native step"
    with pytest.raises(ValueError, match=words):
        optimizer.step()
    assert torch.equal(optimizer.master(p), before)
    optimizer.state[p]["square_avg"] = optimizer.state[p]["square_avg"].bfloat16()
    optimizer.step()
    assert optimizer.native


def test_a_model_that_changes_its_dtype():
    """The state goes along: from float32 to bfloat16 and back."""
    p = params_of([(7, 3)], torch.float32)[0]
    optimizer = RMSprop([p], momentum=0.5)
    expected = {}
    for step, dtype in enumerate((torch.float32, torch.bfloat16, torch.bfloat16, torch.float32)):
        p.data = p.data.to(dtype)
        give_grads([p], step)
        optimizer.step()
        assert optimizer.native
        assert optimizer.state[p]["square_avg"].dtype is torch.float32
        expected[dtype] = optimizer.state[p]["low_half"] if step else None
    assert expected[torch.bfloat16].dtype is torch.int16


def test_checkpoint_for_torchs_class_and_back():
    """It rounds the buffers to bfloat16, and leaves lower halves that no longer belong to the parameters."""
    params = params_of()
    options = {"lr": 0.03, "momentum": 0.9, "centered": True}
    ours, _, _ = beside_reference(RMSprop, params, options, steps=3)
    theirs = torch.optim.RMSprop(params)
    theirs.load_state_dict(ours.state_dict())
    for p in params:
        assert torch.equal(theirs.state[p]["square_avg"], ours.state[p]["square_avg"].bfloat16())
    give_grads(params, 3)
    theirs.step()
    back = RMSprop(params)
    back.load_state_dict(theirs.state_dict())
    assert not any("low_half" in back.state[p] for p in params)
    assert all(torch.equal(back.master(p), p.detach().float()) for p in params)
    give_grads(params, 4)
    back.step()
    assert back.native
    state = from_state_dict(theirs.state_dict(), [as_array(p) for p in params])
    assert not any(half.any() for half in state.low_half)


def test_checkpoint_of_a_float32_model():
    """The buffers stay what they are."""
    params, copies = params_of(), params_of(dtype=torch.float32)
    theirs = torch.optim.RMSprop(copies, momentum=0.5)
    give_grads(copies, 0)
    theirs.step()
    optimizer = RMSprop(params, momentum=0.5)
    optimizer.load_state_dict(theirs.state_dict())
    for p, copied in zip(params, copies, strict=True):
        assert torch.equal(optimizer.state[p]["square_avg"], theirs.state[copied]["square_avg"])
        assert optimizer.state[p]["square_avg"].dtype is torch.float32
    give_grads(params, 1)
    optimizer.step()
    assert optimizer.native


def test_state_dict_for_torchs_class_is_refused():
    state = rms.init(params_of(), preset="torch")
    with pytest.raises(ValueError, match=r"has low_half, .* make one for kind 'native'"):
        to_state_dict(state)


# ---- random bits ----


def test_random_bits_go_by_the_index_in_the_groups():
    """Whatever else is native; and by a parameter's own count, so that they differ at each of its steps."""

    class Mine(nn.Parameter):
        pass

    options = OPTIONS | STORAGES["rounded-bf16"]
    first, param = params_of([(5,), (41, 3)])
    other = Mine(torch.ones(3))
    groups = [{"params": [first]}, {"params": [other], "square_avg_dtype": None}, {"params": [param]}]
    optimizer = RMSprop(groups, **options)
    arrays = [as_array(p) for p in (first, other, param)]
    state = reference.init(arrays, preset="torch", **options)
    for step in range(3):  # one that has no gradient later
        give_grads([first], step)
        optimizer.step()
    first.grad = None
    for step in range(4):
        grads = give_grads([param], step)
        reference.update_(arrays, [None, None, *grads], state)
        optimizer.step()
        assert same_bits(as_array(param), arrays[2])
        assert same_bits(as_array(optimizer.state[param]["square_avg"]), state.square_avg[2])
    assert list(optimizer.native.reasons) == [(1, 0)]


def test_seeds_differ():
    ends = []
    for seed in (0, 0, 1):
        params = params_of([(1000,)])
        optimizer = RMSprop(params, master_weights=False, seed=seed)
        give_grads(params, 0)
        optimizer.step()
        ends.append(params[0].detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


# ---- by torch's operations ----


def test_a_parameter_that_is_refused_at_a_step():
    """Two parameters that share memory, by torch's operations in float32: like native steps of separate ones, but for
    the rounding of the operations, at most 4 units in the last place of the largest numbers.
    """
    memory = params_of([(20,)])[0].detach()
    shared = [nn.Parameter(memory[:12]), nn.Parameter(memory[8:])]
    optimizer = RMSprop(shared, lr=2.0**-9, momentum=0.5)
    separate = [nn.Parameter(memory[:8].clone())]
    twin = RMSprop(separate, lr=2.0**-9, momentum=0.5)
    for step in range(50):
        give_grads(shared, step)
        separate[0].grad = shared[0].grad[:8].clone()
        optimizer.step()
        twin.step()
    assert len(optimizer.native.reasons) == 2
    assert "overlap" in repr(optimizer.native)
    torch.testing.assert_close(optimizer.master(shared[0])[:8], twin.master(separate[0]), rtol=0, atol=2.0**-20)
    for options in ({"master_weights": False}, {"square_avg_dtype": "bfloat16"}):
        before = memory.clone()
        with pytest.raises(ValueError, match=r"is refused: .*overlap.*: .* is for parameters that take the"):
            RMSprop(shared, **options).step()
        assert torch.equal(memory, before)


def test_a_gradient_that_overlaps_beside_a_parameter_that_is_left_out():
    """The arrays of the other one, bound before, are no longer looked at."""
    p, q = params_of([(20,), (5,)])
    optimizer = RMSprop([p, q])
    give_grads([p, q], 0)
    optimizer.step()
    before = as_array(q)
    p.grad, q.grad = p.detach(), None
    for _ in range(2):
        optimizer.step()
        assert "overlaps" in repr(optimizer.native) or "is its parameter itself" in repr(optimizer.native)
    assert same_bits(as_array(q), before)
    assert float(optimizer.state[p]["step"]) == 3


def test_torchs_own_step_where_it_never_was_native():
    """A subclass is stepped as by torch's class, with its state in bfloat16."""

    class Mine(nn.Parameter):
        pass

    ours, theirs = (Mine(params_of([(20,)])[0].detach().clone()) for _ in range(2))
    optimizers = RMSprop([ours], momentum=0.5), torch.optim.RMSprop([theirs], momentum=0.5)
    for step in range(5):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            give_grads([p], step)
            optimizer.step()
    assert torch.equal(ours.detach(), theirs.detach())
    assert set(optimizers[0].state[ours]) == {"step", "square_avg", "momentum_buffer"}
    assert optimizers[0].state[ours]["square_avg"].dtype is torch.bfloat16


# ---- what is refused ----


@pytest.mark.parametrize(
    ("dtype", "options", "error", "match"),
    [
        (torch.float64, {"square_avg_dtype": "bfloat16"}, TypeError, "is torch.float64: .* for float32 and bfloat16"),
        (torch.complex64, {"square_avg_dtype": "bfloat16"}, TypeError, "is torch.complex64: "),
        (torch.float32, {"square_avg_dtype": "float16"}, ValueError, "square_avg_dtype must be None or 'bfloat16'"),
        (torch.bfloat16, {"seed": -1, "master_weights": False}, ValueError, "seed must be at least 0"),
        (torch.bfloat16, {"master_weights": "no"}, TypeError, "master_weights must be a bool"),
        (
            torch.bfloat16,
            {"master_weights": False, "differentiable": True},
            ValueError,
            "is in a group with differentiable=True: master_weights=False is for parameters that take the native step",
        ),
        (
            torch.bfloat16,
            {"eps_inside_sqrt": True, "differentiable": True},
            ValueError,
            "is in a group with differentiable=True: with bfloat16 that is for the options that torch's class has",
        ),
    ],
)
def test_options_that_cannot_be(dtype, options, error, match):
    params = [nn.Parameter(torch.ones(3, dtype=dtype))]
    with pytest.raises(error, match=match):
        RMSprop(params, **options)
    optimizer = RMSprop([nn.Parameter(torch.ones(3))])
    with pytest.raises(error, match=match):
        optimizer.add_param_group({"params": params, **options})
    assert len(optimizer.param_groups) == 1


def test_one_seed_for_all_groups():
    p, q = params_of([(3,), (4,)])
    with pytest.raises(ValueError, match="seed must be the same in all groups"):
        RMSprop([{"params": [p], "seed": 1}, {"params": [q]}], master_weights=False).step()


def test_float16_goes_to_torch_with_the_reason():
    p = nn.Parameter(torch.ones(3, dtype=torch.float16))
    assert "too small for squares of gradients: use bfloat16 or float32" in repr(RMSprop([p]).native)


def test_master():
    params = [*params_of([(3, 2)]), *params_of([(3, 2)], torch.float64)]
    optimizer = RMSprop(params)
    for p in params:
        found = optimizer.master(p)
        assert found.dtype is (torch.float32 if p.dtype is torch.bfloat16 else p.dtype)
        assert torch.equal(found, p.detach().to(found.dtype))
        assert found.data_ptr() != p.data_ptr()
        assert not found.requires_grad
    with pytest.raises(ValueError, match=r"no such parameter, a Parameter of \(3, 2\)"):
        optimizer.master(nn.Parameter(torch.ones(3, 2)))


def test_master_reads_halves_as_the_step_does():
    """Any two halves, as `join_halves` has them."""
    rng = np.random.default_rng(1)
    upper, lower = rng.integers(0, 2**16, (2, 10_000)).astype(np.uint16)
    upper[:6] = [0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F7F]
    p = nn.Parameter(torch.from_numpy(upper.view(np.int16)).view(torch.bfloat16))
    optimizer = RMSprop([p])
    optimizer.state[p] = {"low_half": torch.from_numpy(lower.view(np.int16))}
    found = optimizer.master(p).numpy()
    assert np.array_equal(found.view(np.uint32), reference.join_halves(upper.view(BF16), lower).view(np.uint32))


@pytest.mark.threads
def test_two_threads_with_an_optimizer_each():
    options = OPTIONS | STORAGES["rounded-bf16"]
    run_together(*[lambda: beside_reference(RMSprop, params_of(), options) for _ in range(2)])
