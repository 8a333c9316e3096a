"""Tensors of torch in init, update_ and update: the bits of NumPy arrays, both ways to read them, and every refusal."""

from __future__ import annotations

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import run_python, same_bits

import rmsprop_native as rms

pytestmark = pytest.mark.usefixtures("torch_source")

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_as_arrays(dtype):
    torch.manual_seed(1)
    shapes = [(5, 3), (1,), (), (0, 2), (2, 3, 4, 5)]
    tensors = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    tensors[4].data = tensors[4].data.to(memory_format=torch.channels_last)
    arrays = [p.detach().numpy().copy(order="K") for p in tensors]
    options = {"momentum": 0.9, "centered": True, "weight_decay": 0.1}
    ours, twin = rms.init(tensors, **options), rms.init(arrays, **options)
    for _ in range(3):
        grads = [torch.randn_like(p) for p in tensors]
        grads[0] = torch.randn(3, 5, dtype=dtype).T
        versions = [p._version for p in tensors]
        rms.update_(tensors, grads, ours)
        rms.update_(arrays, [grad.numpy() for grad in grads], twin)
        assert [p._version for p in tensors] == [version + 1 for version in versions]
        assert all(same_bits(p.detach().numpy(), array) for p, array in zip(tensors, arrays, strict=True))
    for name in ("square_avg", "momentum_buffer", "grad_avg"):
        for buffer, array in zip(getattr(ours, name), getattr(twin, name), strict=True):
            assert type(buffer) is torch.Tensor
            assert same_bits(buffer.numpy(), array)
    copied = pickle.loads(pickle.dumps(ours))
    assert type(copied.square_avg[0]) is torch.Tensor
    new, _ = rms.update(tensors, grads, ours)
    rms.update_(tensors, grads, ours)
    assert all(same_bits(one.detach().numpy(), p.detach().numpy()) for one, p in zip(new, tensors, strict=True))
    assert all(one.requires_grad and one is not p for one, p in zip(new, tensors, strict=True))


BAD = {
    "dtype": (torch.zeros(3, dtype=torch.float16), "float16"),
    "device": (torch.zeros(3, device="meta"), "meta"),
    "sparse": (torch.zeros(3).to_sparse(), "to_dense"),
    "conjugate": (torch.zeros(3, dtype=torch.complex64).conj(), "resolve_conj"),
    "negative": (torch.zeros(3, dtype=torch.complex64).conj().imag, "resolve_neg"),
    "negative, one": (torch.zeros(1, dtype=torch.complex64).conj().imag, "resolve_neg"),
    "subclass": (torch.zeros(3).as_subclass(type("Mine", (torch.Tensor,), {})), "Mine"),
    "shares memory": (torch.zeros(1).expand(3), "share memory"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tensor_is_refused(name):
    tensor, words = BAD[name]
    with pytest.raises((TypeError, ValueError, RuntimeError), match=words):
        rms.init({"w": tensor})


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("shares memory", "conjugate")])
def test_bad_gradient_is_refused(name):
    tensor, words = BAD[name]
    param = torch.ones(tensor.shape)
    state = rms.init([torch.ones(2), param])
    first = torch.ones(2)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=words):
        rms.update_([first, param], [torch.ones(2), tensor], state)
    assert torch.equal(first, torch.ones(2))
    assert state.step == 0


def test_generator_is_refused():
    with pytest.raises(TypeError, match=r"a generator, .*list\(\.\.\.\)"):
        rms.init(torch.nn.Linear(2, 2).parameters())


def test_jax_array_is_refused():
    with pytest.raises(TypeError, match="cannot be changed in place"):
        rms.init(jnp.zeros(3))


def test_array_that_becomes_a_tensor():
    """A tensor over the memory of the array that was bound before is prepared like any."""
    array = np.ones(4, np.float32)
    state = rms.init(array)
    rms.update_(array, np.ones(4, np.float32), state)
    tensor = torch.from_numpy(array)
    rms.update_(tensor, torch.ones(4), state)
    assert tensor._version == 1


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_checkpoints(tmp_path, dtype, suffix):
    """Tensors by default and like parameters that are, arrays like arrays; and the bits of a state never saved."""
    torch.manual_seed(1)
    shapes = [(5, 3), (), (0, 2), (2, 3, 4, 5)]
    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    params[3].data = params[3].data.to(memory_format=torch.channels_last)
    state = rms.init(params, momentum=0.9, accumulate=2)
    grads = [torch.randn_like(p) for p in params]
    rms.update_(params, grads, state)
    path = tmp_path / f"a.{suffix}"
    rms.save(path, state)
    arrays = [p.detach().numpy().copy(order="K") for p in params]
    for like, kind in ((None, torch.Tensor), (params, torch.Tensor), (arrays, np.ndarray)):
        again = rms.load(path, like=like)
        assert all(type(buffer) is kind for name in ("square_avg", "grad_sum") for buffer in getattr(again, name))
        buffer, param = again.square_avg[3], arrays[3] if like is arrays else params[3]
        assert (buffer.strides == param.strides) if like is arrays else (buffer.stride() == param.stride())
        one, other = [p.detach().clone() for p in params], [p.detach().clone() for p in params]
        twin = state.copy()
        for _ in range(2):
            rms.update_(one, grads, twin)
            rms.update_(other, grads, again)
        assert all(same_bits(a.numpy(), b.numpy()) for a, b in zip(one, other, strict=True))
        for a, b in zip(twin.momentum_buffer, again.momentum_buffer, strict=True):
            assert same_bits(np.asarray(a), np.asarray(b))


def test_a_checkpoint_of_tensors_where_there_is_no_torch(tmp_path):
    params = [torch.ones(3)]
    state = rms.init(params, lr=0.5)
    rms.update_(params, [torch.ones(3)], state)
    rms.save(tmp_path / "a.npz", state)
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
import rmsprop_native as rms
state = rms.load(sys.argv[1])
rms.update_([np.ones(3, np.float32)], [np.ones(3, np.float32)], state)
print(state.step, type(state.square_avg[0]).__name__)
rms.save(sys.argv[1], state)
"""
    assert run_python(code, tmp_path / "a.npz") == "2 ndarray"
    assert type(rms.load(tmp_path / "a.npz").square_avg[0]) is torch.Tensor
