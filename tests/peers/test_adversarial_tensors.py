"""The catalogue of bad input in tensors of torch: the exact exception, its message, and not a bit written."""

from __future__ import annotations

import pickle
import re
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from test_adversarial_inputs import OPTIONS, STEPS
from torch._subclasses.fake_tensor import FakeTensorMode

import rmsprop_native as rms

pytestmark = pytest.mark.usefixtures("torch_source")

SHAPE = (3, 4)


class Mine(torch.Tensor):
    """A subclass, of which torch's functions may be anything."""


class Bad(NamedTuple):
    """A leaf that is refused."""

    make: Any
    """Makes it of a good tensor of SHAPE."""
    error: type[Exception]
    message: str
    """What the message says after the name of the leaf, where tensors are read through torch's table of functions."""
    by_numpy: str | None = None
    """The same where torch is too old for the table, in a TypeError; None if it is no other one."""


def without_memory(t):
    t.untyped_storage().resize_(0)
    return t


def nested(t):
    with warnings.catch_warnings(action="ignore"):
        return torch.nested.nested_tensor([t[0], t[1, :2]])


def quantized(t):
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)


def complex32(t):
    with warnings.catch_warnings(action="ignore"):
        return t.to(torch.complex32)


def csr(t):
    with warnings.catch_warnings(action="ignore"):
        return t.to_sparse_csr()


UNSUPPORTED = " has dtype torch.{0}; supported are float32, complex64, float64, complex128 and bfloat16"
NO_STRIDES = " has no memory laid out by strides (a sparse tensor?); pass .to_dense()"
NO_MEMORY = " has elements and no memory"
OF_NUMPY = " has dtype {0}; supported are float32"
KINDS = {
    "bool": Bad(lambda t: t > 2, TypeError, UNSUPPORTED.format("bool"), OF_NUMPY.format("bool")),
    "int8": Bad(lambda t: t.char(), TypeError, UNSUPPORTED.format("int8"), OF_NUMPY.format("int8")),
    "int64": Bad(lambda t: t.long(), TypeError, UNSUPPORTED.format("int64"), OF_NUMPY.format("int64")),
    "float16": Bad(lambda t: t.half(), TypeError, UNSUPPORTED.format("float16"), OF_NUMPY.format("float16")),
    "float8": Bad(
        lambda t: t.to(torch.float8_e4m3fn), TypeError, UNSUPPORTED.format("float8_e4m3fn"), ": Got unsupported Scalar"
    ),
    "complex32": Bad(complex32, TypeError, UNSUPPORTED.format("complex32"), ": Got unsupported ScalarType"),
    "quantized": Bad(quantized, TypeError, NO_STRIDES, ": Got unsupported ScalarType QInt8"),
    "sparse": Bad(lambda t: t.to_sparse(), TypeError, NO_STRIDES, ": can't convert Sparse layout tensor to numpy"),
    "sparse rows": Bad(csr, TypeError, NO_STRIDES, ": can't convert SparseCsr layout tensor to numpy"),
    "opaque": Bad(lambda t: t.to_mkldnn(), TypeError, NO_STRIDES, ": can't convert Mkldnn layout tensor to numpy"),
    "nested": Bad(nested, TypeError, NO_STRIDES, ": "),
    "meta": Bad(
        lambda t: t.to("meta"), TypeError, " is on device meta; a step runs on the CPU: move it with .cpu()",
        ": can't convert meta device type tensor to numpy",
    ),
    "subclass": Bad(lambda t: t.as_subclass(Mine), TypeError, " is a Mine, not a numpy.ndarray; of torch's tensors"),
    "fake": Bad(lambda t: FakeTensorMode().from_tensor(t), TypeError, " is a FakeTensor, not a numpy.ndarray; of"),
    "no memory": Bad(without_memory, ValueError, NO_MEMORY, ": it has elements and no memory"),
    "storage": Bad(lambda t: t.untyped_storage(), TypeError, " is an UntypedStorage, not a numpy.ndarray"),
    "module": Bad(lambda t: torch.nn.Linear(2, 2), TypeError, " is a Linear, not a numpy.ndarray"),
}  # fmt: skip


def shapes(owner):
    """Tensors of another dtype or shape than that of what they belong to."""
    return {
        "float64": Bad(
            lambda t: t.double(), TypeError, f" has dtype torch.float64, {owner} has float32",
            f" has dtype float64, {owner} has float32",
        ),
        "array": Bad(lambda t: t.double().numpy(), TypeError, f" has dtype float64, {owner} has float32"),
        "transposed": Bad(lambda t: t.T, ValueError, f" has shape (4, 3), {owner} has (3, 4)"),
        "flat": Bad(lambda t: t.ravel(), ValueError, f" has shape (12,), {owner} has (3, 4)"),
        "row": Bad(lambda t: t[:1], ValueError, f" has shape (1, 4), {owner} has (3, 4)"),
        "0-d": Bad(lambda t: t[0, 0], ValueError, f" has shape (), {owner} has (3, 4)"),
        "empty": Bad(lambda t: t[:0], ValueError, f" has shape (0, 4), {owner} has (3, 4)"),
    }  # fmt: skip


LAZY = " is a lazy conjugate or negative; pass .resolve_conj() or .resolve_neg()"
GRADIENTS = KINDS | shapes("its parameter") | {
    "conjugate": Bad(lambda t: torch.complex(t, t).conj(), ValueError, LAZY, ": Can't call numpy() on Tensor that has"),
    "negative": Bad(
        lambda t: torch.complex(t, t).conj().imag, ValueError, LAZY, ": Can't call numpy() on Tensor that has"
    ),
}  # fmt: skip
PARAMETERS = KINDS | shapes("its square_avg")
# Where parameters are copied first, as by update, a copy is stepped.
UNWRITABLE = {
    "expanded": Bad(lambda t: t[:1].expand(SHAPE), ValueError, " has strides (0, "),
    "windows": Bad(lambda t: t.as_strided(SHAPE, (1, 1)), ValueError, " has strides ("),
}
CASES = [
    pytest.param(step, role, bad, id=f"{name}-{role}-{of_bad}")
    for name, step in STEPS.items()
    for role, catalogue in (("gradient", GRADIENTS), ("parameter", PARAMETERS | UNWRITABLE))
    for of_bad, bad in catalogue.items()
    if not (step.reads_only and role == "parameter" and of_bad in UNWRITABLE)
]


def good():
    return torch.arange(12, dtype=torch.float32).reshape(SHAPE) + 1


def bits(tree):
    """The bytes of the tensors that can be read; a bad leaf is None."""
    found = [tree["a"], tree["net"][0], tree["z"]]
    return [t.detach().numpy().tobytes() for t in found]


class Trees:
    """Parameters and gradients whose leaf 'net.1.w' lies between others, and a state that has taken a step."""

    def __init__(self, **options):
        self.params, self.grads = (
            {"a": torch.ones(5), "net": [torch.ones(5, 4), {"w": good()}], "z": torch.ones(2)} for _ in range(2)
        )
        self.state = rms.init(self.params, **OPTIONS | options)
        rms.update_(self.params, self.grads, self.state)

    def everything(self):
        return bits(self.params), bits(self.grads), pickle.dumps(self.state)

    def refused(self, step, error, message, **numbers):
        before = self.everything()
        with pytest.raises(error, match=f"^{re.escape(message)}") as caught:
            step.call(self.params, self.grads, self.state, **numbers)
        assert caught.type is error
        assert self.everything() == before


@pytest.mark.parametrize(("step", "role", "bad"), CASES)
def test_bad_leaf(step, role, bad, torch_source):
    trees = Trees()
    (trees.grads if role == "gradient" else trees.params)["net"][1]["w"] = bad.make(good())
    by_table = torch_source or bad.by_numpy is None
    trees.refused(
        step, bad.error if by_table else TypeError, f"{role} 'net.1.w'{bad.message if by_table else bad.by_numpy}"
    )


@pytest.mark.parametrize("name", UNWRITABLE)
def test_tensors_that_share_memory_with_themselves_are_read(name):
    trees, copied = Trees(), Trees()
    trees.params["net"][1]["w"] = UNWRITABLE[name].make(good())
    copied.params["net"][1]["w"] = trees.params["net"][1]["w"].contiguous()
    new, _ = rms.update(trees.params, trees.grads, trees.state)
    rms.update_(copied.params, copied.grads, copied.state)
    assert torch.equal(new["net"][1]["w"], copied.params["net"][1]["w"])


@pytest.mark.parametrize("step", ["update_", "RMSProp.step"])
@pytest.mark.parametrize("role", ["parameter", "gradient"])
def test_overlap(role, step):
    trees = Trees()
    (trees.grads if role == "gradient" else trees.params)["net"][1]["w"] = trees.params["net"][0][1:4]
    message = {
        "parameter": "parameter 'net.0' and parameter 'net.1.w' overlap in memory",
        "gradient": "gradient 'net.1.w' overlaps parameter 'net.0' in memory, which the step writes",
    }[role]
    trees.refused(STEPS[step], ValueError, message)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", ["lr", "grad_scale"])
@pytest.mark.parametrize("value", [torch.tensor([0.1, 0.2]), torch.tensor(0.1), torch.tensor(1j)], ids=repr)
def test_a_tensor_is_no_number_of_a_call(value, number, step):
    Trees().refused(STEPS[step], TypeError, number, **{number: value})


@pytest.mark.parametrize("name", [name for name in KINDS if name != "no memory"])
def test_parameters_of_init(name):
    params = {"a": torch.ones(2), "w": KINDS[name].make(good())}
    with pytest.raises(TypeError, match="^parameter 'w'"):
        rms.init(params)
