"""Options: every check, of one value and of one option against another."""

from __future__ import annotations

import enum
import functools
import inspect
import math
import pickle
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from conftest import Schedule

import rmsprop_native as rms
from rmsprop_native import Options, arrays, reference
from rmsprop_native.options import OVERRIDABLE, check_number, check_option

INF, NAN = math.inf, math.nan

OUT_OF_RANGE = {
    "lr": [-1e-9, INF, NAN, -INF],
    "rho": [-0.1, 1.0, 1.5, NAN],
    "eps": [-1e-8, INF, NAN],
    "momentum": [-0.1, 1.0, NAN],
    "initial_square_avg": [-1.0, INF, NAN],
    "weight_decay": [-0.1, INF, NAN],
    "clip_value": [0.0, -1.0, INF, NAN],
    "clip_norm": [0.0, -1.0, INF, NAN],
    "clip_global_norm": [0.0, -1.0, INF, NAN],
    "ema": [-0.1, 1.0, NAN],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Options(**{name: value})


@pytest.mark.parametrize("name", OUT_OF_RANGE)
@pytest.mark.parametrize(
    "value",
    [
        *("0.5", True, 0.5j, [0.5], Decimal("0.5"), np.bool(True), np.complex64(0.5), np.array(True), np.array("0.5")),
        *(np.array([0.5]), np.array([0.5, 0.5]), np.zeros((2, 2)), np.zeros(0), np.ma.masked, {}, type),
    ],
    ids=repr,
)
def test_numbers_of_the_wrong_kind(name, value):
    value = value if value is not type or name != "lr" else object()  # a class is callable, so it may be a schedule
    with pytest.raises(TypeError, match=f"^{name} must be a number, got "):
        Options(**{name: value})


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_none_where_there_must_be_a_number(name):
    default = Options.__dataclass_fields__[name].default
    if default is None:
        assert getattr(Options(**{name: None}), name) is None
    else:
        with pytest.raises(TypeError, match=f"^{name} must be a number, got None"):
            Options(**{name: None})


TOO_LARGE = {
    "int": 10**400,
    "negative": -(10**400),
    "int without repr": 10**5000,
    "Fraction": Fraction(10**400),
    "0-d array": np.array(10**400, dtype=object),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
@pytest.mark.parametrize("kind", TOO_LARGE)
def test_numbers_too_large_for_a_float(name, kind):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got a number too large for a float"):
        Options(**{name: TOO_LARGE[kind]})


class Lying(float):
    """A float that is another number at each access."""

    def __float__(self):
        return 7.0

    def __repr__(self):
        raise RuntimeError("repr was called")

    def __eq__(self, other):
        return True

    def __lt__(self, other):
        return True

    __le__ = __gt__ = __ge__ = __lt__
    __hash__ = None


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_a_float_subclass_is_converted_to_the_float_that_it_is(name):
    kept = getattr(Options(**{name: Lying(0.5)}), name)
    assert type(kept) is float
    assert repr(kept) == "0.5"
    with pytest.raises(ValueError, match=f"^{name} must be .*, got -1.0"):
        Options(**{name: Lying(-1.0)})


def test_a_0d_array_is_converted_at_once():
    rate = np.array(0.5)
    options = Options(lr=rate, accumulate=np.array(3))
    rate[()] = 7.0
    assert options == Options(lr=0.5, accumulate=3)
    assert type(options.accumulate) is int


def test_check_number():
    assert check_number("grad_scale", -2) == -2.0
    assert check_number("lr", Fraction(1, 4), 0.0) == 0.25
    assert check_number("lr", 0, 0.0) == 0.0
    with pytest.raises(ValueError, match=r"^grad_scale must be finite, got nan"):
        check_number("grad_scale", NAN)
    with pytest.raises(TypeError, match=r"^grad_scale must be a number, got array\(\[1., 1.\]\)"):
        check_number("grad_scale", np.ones(2))


def test_lr_may_be_a_callable_that_cannot_be_hashed_or_compared():
    schedule = Schedule(0.5)
    options = Options(lr=schedule).replace(rho=0.5)
    assert options.lr is schedule
    assert repr(options).startswith("Options(lr=Schedule")
    assert pickle.loads(pickle.dumps(options)).rho == 0.5


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array(0.5), 0.5], ids=repr)
def test_numbers_of_any_real_kind(value):
    assert Options(lr=value, rho=value, momentum=value) == Options(lr=0.5, rho=0.5, momentum=0.5)
    assert type(Options(lr=value).lr) is float
    assert Options(lr=1).lr == 1.0


ELSEWHERE = {
    "learning_rate": "lr", "stepsize": "lr", "alpha": "rho", "decay": "rho", "beta": "rho", "gamma": "rho",
    "epsilon": "eps", "clipnorm": "clip_norm", "momentun": "momentum", "centred": "centered", "LR": "lr",
}  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_of_other_libraries(name):
    """Wherever options are given."""
    w = np.zeros(2)
    state = rms.init(w)
    for call in (
        Options,
        functools.partial(rms.init, w),
        functools.partial(rms.init, w, preset="keras"),
        functools.partial(rms.RMSProp, w),
        functools.partial(reference.init, w),
        state.options.replace,
        state.replace,
    ):
        with pytest.raises(TypeError, match=f"^no option '{name}'; did you mean '{ELSEWHERE[name]}'\\?$"):
            call(**{name: 0.5})


def test_a_name_like_no_other():
    with pytest.raises(TypeError, match="^no option 'zzz'$"):
        Options(zzz=1)


def test_options_by_position():
    w = np.zeros(2)
    for call, example in (
        (Options, r"Options\(lr=0.01\)"),
        (functools.partial(rms.init, w), r"init\(params, lr=0.01\)"),
        (functools.partial(rms.RMSProp, w), r"RMSProp\(params, lr=0.01\)"),
    ):
        with pytest.raises(TypeError, match=f"^options are given by name, as in {example}: got 0.5 by position$"):
            call(0.5)
    assert list(inspect.signature(rms.init).parameters) == ["params", "preset", "overrides", "options"]
    parameters = inspect.signature(Options).parameters
    assert list(parameters) == [option.name for option in fields(Options)]
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}


def test_defaults():
    assert {option.name: option.default for option in fields(Options)} == {
        "lr": 1e-3, "rho": 0.9, "eps": 1e-8, "eps_inside_sqrt": False, "momentum": 0.0, "nesterov": False,
        "lr_in_momentum": False, "centered": False, "bias_correction": False, "initial_square_avg": 0.0,
        "weight_decay": 0.0, "decoupled_weight_decay": False, "maximize": False, "clip_value": None, "clip_norm": None,
        "clip_global_norm": None, "accumulate": 1, "ema": None, "on_nonfinite": "propagate", "square_avg_dtype": None,
        "master_weights": True, "seed": 0,
    }  # fmt: skip


def test_each_option_declares_what_it_may_be():
    for option in fields(Options):
        assert check_option(option.name, option.default) == option.default
        assert option.metadata["overridable"] == (option.name in OVERRIDABLE)
    assert OVERRIDABLE == ("lr", "rho", "eps", "momentum", "weight_decay", "clip_value", "clip_norm")


FLAGS = (
    *("eps_inside_sqrt", "nesterov", "lr_in_momentum", "centered", "bias_correction", "decoupled_weight_decay"),
    "maximize",
)


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_bools(name):
    with pytest.raises(TypeError, match=f"^{name} must be a bool"):
        Options(**{name: 1})
    assert getattr(Options(momentum=0.5, **{name: np.bool(True)}), name) is True


def test_contradictions():
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        Options(nesterov=True)
    with pytest.raises(ValueError, match="bias_correction assumes a square_avg that starts from 0"):
        Options(bias_correction=True, initial_square_avg=1.0)
    with pytest.raises(TypeError, match="alpha"):
        Options(alpha=0.9)


def test_options_are_frozen_and_show_what_was_chosen():
    options = Options(lr=0.5, momentum=0.9)
    with pytest.raises(AttributeError):
        options.lr = 1.0
    assert not hasattr(options, "__dict__")  # so that there is no other attribute either
    assert repr(options) == "Options(lr=0.5, rho=0.9, momentum=0.9)"


BUFFERS = {
    "grad_sum": ({"accumulate": 2}, {"accumulate": 1}),
    "momentum_buffer": ({"momentum": 1e-300}, {"momentum": 0.0}),
    "grad_avg": ({"centered": True}, {"centered": False}),
    "ema": ({"ema": 0.0}, {"ema": None}),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_the_arrays_that_options_need(name):
    needed, not_needed = (Options(**options) for options in BUFFERS[name])
    assert needed.buffers == ("square_avg", name)
    assert not_needed.buffers == ("square_avg",)
    for dtypes, has_halves in (([np.dtype(np.float32)], False), ([np.dtype("f4"), arrays.bfloat16()], True)):
        assert needed.buffers_for(dtypes) == needed.buffers + ("low_half",) * has_halves
    assert Options(master_weights=False).buffers_for([arrays.bfloat16()]) == ("square_avg",)


@pytest.mark.parametrize("changes", [{"momentum": 0.0}, {"centered": True}])
def test_changes_that_need_other_arrays_are_refused(changes):
    with pytest.raises(ValueError, match="the state keeps square_avg, momentum_buffer; .* would need square_avg"):
        Options(momentum=0.9).replace(**changes)


def test_changes_of_numbers():
    options = Options(momentum=0.9).replace(lr=0.5, rho=0.5, momentum=0.5, nesterov=True, weight_decay=0.1)
    assert options == Options(lr=0.5, rho=0.5, momentum=0.5, nesterov=True, weight_decay=0.1)
    with pytest.raises(ValueError, match="initial_square_avg has been used"):
        Options().replace(initial_square_avg=1.0)


@pytest.mark.parametrize("value", [0, -1, 2**53 + 1, 2**64, 10**400])
def test_accumulate_out_of_range(value):
    with pytest.raises(ValueError, match="^accumulate must be at "):
        Options(accumulate=value)


@pytest.mark.parametrize("value", [1.5, 1.0, True, np.bool(True), "1", None, np.array([1]), np.array([1, 2])], ids=repr)
def test_accumulate_is_a_count(value):
    with pytest.raises(TypeError, match="^accumulate must be an int, got "):
        Options(accumulate=value)


def test_accumulate_is_kept_as_an_exact_int():
    count = enum.IntEnum("Count", {"three": 3})
    for value in (3, np.int64(3), np.uint8(3), count.three):
        assert type(Options(accumulate=value).accumulate) is int
        assert Options(accumulate=value).accumulate == 3
    assert Options(accumulate=2**53).accumulate == 2**53


def test_on_nonfinite_is_one_of_three_strings():
    class Lies:
        def __eq__(self, other):
            return True

        __hash__ = None

    class LyingStr(str):
        __slots__ = ()

        def __eq__(self, other):
            return True

        __hash__ = str.__hash__

    message = "^on_nonfinite must be 'propagate', 'skip' or 'raise', got "
    for value in ("ignore", LyingStr("ignore")):
        with pytest.raises(ValueError, match=message + "'ignore'"):
            Options(on_nonfinite=value)
    for value in (Lies(), None, 1, ["skip"]):
        with pytest.raises(TypeError, match=message):
            Options(on_nonfinite=value)
    assert type(Options(on_nonfinite=LyingStr("skip")).on_nonfinite) is str
    assert type(Options(on_nonfinite=np.str_("skip")).on_nonfinite) is str


@pytest.mark.parametrize(
    "names", [("clip_value", "clip_norm"), ("clip_value", "clip_global_norm"), ("clip_norm", "clip_global_norm")]
)
def test_two_ways_to_clip(names):
    with pytest.raises(ValueError, match=f"^{names[0]} and {names[1]} are two ways to clip; give one"):
        Options(**dict.fromkeys(names, 1.0))


# ---- of storage ----


def test_the_limits_of_the_seed():
    assert rms.Options(seed=2**64 - 1).seed == 2**64 - 1
    with pytest.raises(ValueError, match="seed must be"):
        rms.Options(seed=2**64)


@pytest.mark.parametrize(("dtype", "error"), [("float16", ValueError), (np.float32, TypeError)])
def test_the_dtype_of_square_avg_is_one_name(dtype, error):
    with pytest.raises(error, match="square_avg_dtype must be None or 'bfloat16', got "):
        rms.Options(square_avg_dtype=dtype)


def test_the_dtype_of_square_avg_stays():
    with pytest.raises(ValueError, match="the state keeps square_avg with square_avg_dtype=None: call init"):
        rms.Options().replace(square_avg_dtype="bfloat16")


def test_help_leaves_out_what_dataclass_made():
    assert "buffers" in dir(rms.Options)
    assert not any(name.startswith("__") for name in dir(rms.Options))
