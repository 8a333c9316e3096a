"""interop.torch.RMSprop as a drop-in, beside torch's own class (beside.py).

The bits are those of `rms.update_` on the same numbers in NumPy. One step in float32, from the same state, is within
ULPS of torch's, measured as in test_peers.py.
"""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import itertools
import pickle
import weakref

import numpy as np
import pytest
import torch
from beside import (
    ALL,
    COMBINATIONS,
    NAMES,
    PARTLY_FLOAT32,
    TRAINED,
    Peer,
    arrays_of,
    assert_same_bits,
    beside_torch,
    bits_of,
    compare,
    everything,
    label_of,
    loss_of,
    model_of,
    new,
    random_grads,
    through_file,
    train,
)
from cases import NUMBERS, VARIANTS
from conftest import run_together, same_bits
from frameworks import sb3
from measure import LR, ULPS, Problem, assert_close, ulps
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim import optimizer as base

import rmsprop_native as rms
from rmsprop_native.interop.torch import RMSprop, from_state_dict, to_state_dict

pytestmark = pytest.mark.usefixtures("torch_source")

# ---- the numbers ----


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("options", COMBINATIONS, ids=label_of)
def test_one_step_beside_torch(options, dtype):
    problem = Problem(dtype)
    ours, theirs = ([nn.Parameter(torch.tensor(p)) for p in problem.params] for _ in range(2))
    peer, optimizer = Peer(theirs, lr=LR, foreach=False, **options), RMSprop(ours, lr=LR, **options)
    worst = 0.0
    for _ in range(50):
        before = arrays_of(peer, theirs)
        for p, q in zip(ours, theirs, strict=True):
            with torch.no_grad():
                p.copy_(q)
            for name in before.keys() - {"param"}:
                optimizer.state[p][name].copy_(peer.state[q][name])
        for p, q, grad in zip(ours, theirs, problem.noise(), strict=True):
            p.grad, q.grad = torch.tensor(grad), torch.tensor(grad)
        optimizer.step()
        peer.step()
        mine, after = arrays_of(optimizer, ours), arrays_of(peer, theirs)
        assert (
            mine.keys()
            == after.keys()
            == {"param", "square_avg"}
            | {
                name
                for name, option in (("momentum_buffer", "momentum"), ("grad_avg", "centered"))
                if option in options
            }
        )
        for name, values in mine.items():
            worst = max(worst, *(ulps(value, before, after, name, i) for i, value in enumerate(values)))
    assert 0 <= worst <= ULPS


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("options", COMBINATIONS, ids=label_of)
@beside_torch(tolerances=TRAINED)
def test_many_steps_beside_torch(make, options, foreach):
    model = model_of()
    optimizer = make(model.parameters(), lr=LR, foreach=foreach, **options)
    return train(model, optimizer, 60), everything(optimizer)


def stepped_as_update_(options, dtype, make=RMSprop, numbers=None, steps=4, changes=()):
    """Step parameters by our class and copies of them by `rms.update_`, and compare the bits after every step."""
    problem = Problem(dtype)
    params = [nn.Parameter(torch.tensor(p)) for p in problem.params]
    optimizer = make(params, **{"alpha" if name == "rho" else name: value for name, value in options.items()})
    arrays = [p.copy() for p in problem.params]
    state = rms.init(arrays, **({"preset": "torch"} | options if numbers is None else numbers))
    assert optimizer.native
    for step in range(steps):
        change = dict(changes).get(step, {})
        for name, value in change.items():
            optimizer.param_groups[0]["alpha" if name == "rho" else name] = value
        if change:
            state.replace(**change)
        grads = problem.noise()
        for p, grad in zip(params, grads, strict=True):
            p.grad = torch.tensor(grad)
        optimizer.step()
        rms.update_(arrays, grads, state)
        entries = [optimizer.state[p] for p in params]
        assert set(entries[0]) == {"step", *state.options.buffers}
        assert all(same_bits(p.detach().numpy(), array) for p, array in zip(params, arrays, strict=True))
        for name in state.options.buffers:
            for entry, array in zip(entries, getattr(state, name), strict=True):
                assert same_bits(entry[name].numpy(), array), f"{name} at step {step}"
        assert [float(entry["step"]) for entry in entries] == [step + 1] * len(entries)


CLIPS = {"clip_norm": {"clip_norm": 0.5}, "clip_global_norm": {"clip_global_norm": 0.5}, "ema": {"ema": 0.875}}


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("number", NUMBERS | CLIPS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_bits_are_those_of_update_(variant, number, dtype):
    stepped_as_update_({"lr": 0.03} | VARIANTS[variant] | (NUMBERS | CLIPS)[number], dtype)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("options", COMBINATIONS, ids=label_of)
def test_bits_of_the_options_of_torch(options, dtype):
    stepped_as_update_(options, dtype)


@pytest.mark.parametrize("options", [{}, {"lr": 0.125, "rho": 0.99, "eps": 1e-8}], ids=["alone", "explicit"])
@pytest.mark.parametrize("preset", rms.PRESETS)
def test_presets(preset, options):
    """An explicit number wins over the preset, also where it is the default; lr is 1e-2 where the preset has none."""
    stepped_as_update_(
        {"preset": preset} | options, "float32", numbers={"lr": 1e-2} | dict(rms.PRESETS[preset]) | options
    )


def test_numbers_changed_between_steps():
    changes = {2: {"lr": 0.5, "rho": 0.5}, 3: {"eps": 0.25}, 4: {"weight_decay": 0.5, "momentum": 0.25}, 5: {"lr": 0.0}}
    options = {"momentum": 0.9, "nesterov": True, "ema": 0.5, "bias_correction": True}
    stepped_as_update_(options, "float32", steps=7, changes=changes)


def test_groups_with_options_of_ours():
    """Each group steps as an optimizer of its own."""
    chosen = [{"nesterov": True, "momentum": 0.5}, {"ema": 0.5, "eps_inside_sqrt": True}, {"clip_norm": 0.1, "lr": 1.0}]
    model, alone = nn.ModuleList([model_of() for _ in chosen]), nn.ModuleList([model_of() for _ in chosen])
    optimizer = RMSprop([{"params": m.parameters(), **options} for m, options in zip(model, chosen, strict=True)])
    others = [RMSprop(m.parameters(), **options) for m, options in zip(alone, chosen, strict=True)]
    for i in range(4):
        for m in (*model, *alone):
            m.zero_grad()
            loss_of(m, i).backward()
        for each in (optimizer, *others):
            each.step()
    assert [len(entry) for entry in optimizer.state.values()] == [3] * 8 + [2] * 4
    expected = [array for other in others for array in bits_of(other)[: len(alone[0].state_dict())]]
    for ours, theirs in zip(bits_of(optimizer), expected, strict=False):
        assert same_bits(ours, theirs)


@pytest.mark.threads
def test_bits_on_threads():
    """torch.set_num_threads changes no bit."""
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        p = nn.Parameter(torch.randn(300_001))
        optimizer = RMSprop([p], **ALL)
        for i in range(3):
            random_grads([p], i)
            optimizer.step()
        assert torch.get_num_threads() == threads
        found.append(bits_of(optimizer))
    assert all(same_bits(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.threads
def test_optimizers_in_threads_of_their_own():
    made = [(model, RMSprop(model.parameters(), **ALL)) for model in (model_of() for _ in range(3))]
    run_together(*(functools.partial(train, *each, 20) for each in made[:2]))
    train(*made[2], 20)
    for _, optimizer in made[:2]:
        assert_same_bits(optimizer, made[2][1])


# ---- the arguments ----


def test_signature():
    ours, theirs = (list(inspect.signature(cls).parameters.values()) for cls in (RMSprop, Peer))
    compared = [(p.name, p.kind, p.default) for p in theirs]
    assert [(p.name, p.kind, p.default) for p in ours[: len(theirs)]] == compared
    assert {p.kind for p in ours[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}
    assert {p.name for p in ours[len(theirs) :]} == {
        "preset", "nesterov", "eps_inside_sqrt", "lr_in_momentum", "bias_correction", "decoupled_weight_decay",
        "initial_square_avg", "ema", "clip_value", "clip_norm", "clip_global_norm", "square_avg_dtype",
        "master_weights", "seed",
    }  # fmt: skip
    step = inspect.signature(RMSprop.step).parameters
    assert [(p.name, p.kind, p.default) for p in step.values()] == [
        (p.name, p.kind, p.default) for p in inspect.signature(Peer.step).parameters.values()
    ]


@beside_torch
def test_defaults(make):
    optimizer = make(model_of().parameters())
    types = {name: type(optimizer.param_groups[0][name]) for name in NAMES}
    return {name: optimizer.defaults[name] for name in NAMES}, types, everything(optimizer)


@beside_torch
def test_arguments_by_position(make):
    model = model_of()
    optimizer = make(model.parameters(), 0.5, 0.75, 1e-3, 0.125, 0.25, True, False, False, True, False)
    return train(model, optimizer), everything(optimizer)


def same_twice(make):
    p = new()
    return make([{"params": [p]}, {"params": [p]}])


def step_of(optimizer):
    random_grads([p for group in optimizer.param_groups for p in group["params"]])
    optimizer.step()


BAD = {
    "lr negative": lambda make: make([new()], lr=-1.0),
    "lr NaN": lambda make: make([new()], lr=float("nan")),
    "lr of two elements": lambda make: make([new()], lr=torch.tensor([0.1, 0.2])),
    "lr negative tensor": lambda make: make([new()], lr=torch.tensor(-0.1)),
    "lr text": lambda make: make([new()], lr="0.1"),
    "lr None": lambda make: make([new()], lr=None),
    "alpha negative": lambda make: make([new()], alpha=-0.5),
    "eps negative": lambda make: make([new()], eps=-1e-8),
    "momentum negative": lambda make: make([new()], momentum=-0.5),
    "weight_decay negative": lambda make: make([new()], weight_decay=-0.5),
    "no parameters": lambda make: make([]),
    "used generator": lambda make: make(p for p in ()),
    "a tensor": lambda make: make(new()),
    "a number": lambda make: make(3),
    "numbers": lambda make: make([1.0]),
    "an array": lambda make: make([np.zeros(3)]),
    "non-leaf": lambda make: make([new() * 2]),
    "a set in a group": lambda make: make([{"params": {new(), new()}}]),
    "a group without parameters": lambda make: make([{"lr": 0.1}]),
    "a list of lists": lambda make: make([[new()]]),
    "a group after tensors": lambda make: make([new(), {"params": [new()]}]),
    "in two groups": same_twice,
    "some names": lambda make: make([("a", new()), new()]),
    "names in one group": lambda make: make([{"params": [("a", new())]}, {"params": [new()]}]),
    "unknown option": lambda make: make([new()], betas=(0.9, 0.99)),
    "too many by position": lambda make: make([new()], *[0.5] * 11),
    "no arguments": lambda make: make(),
    "added group is a list": lambda make: make([new()]).add_param_group([new()]),
    "added group names itself": lambda make: make([new()]).add_param_group({"params": [("a", new())]}),
    "added group of numbers": lambda make: make([new()]).add_param_group({"params": [1]}),
    "step without such argument": lambda make: make([new()]).step(None, 1),
    "closure no function": lambda make: make([new()]).step(3),
    "capturable on CPU": lambda make: step_of(make([new()], capturable=True)),
    "differentiable with foreach": lambda make: step_of(make([new()], differentiable=True, foreach=True)),
    "load other groups": lambda make: make([new()]).load_state_dict(make([{"params": new()}] * 1 + [{"params": new()}])
                                                                   .state_dict()),
    "load other length": lambda make: make([new()]).load_state_dict(make([new(), new()]).state_dict()),
    "load nothing": lambda make: make([new()]).load_state_dict({}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@beside_torch(fails=True)
def test_bad_arguments(make, name):
    return BAD[name](make)


@pytest.mark.parametrize(
    "options",
    [{"momentum": 1.0}, {"momentum": 1.5}, {"alpha": 1.0}, {"alpha": 1.25}, {"eps": 0.0}, {"lr": float("inf")},
     {"lr": 0}, {"eps": float("inf")}, {"weight_decay": 1e300}, {"lr": 1e-320}, {"momentum": 1, "lr": 1}],
    ids=repr,
)  # fmt: skip
@beside_torch
def test_extreme_numbers(make, options):
    """What torch's class accepts, ours does too, and it means the same."""
    p = new()
    optimizer = make([p], **options)
    for i in range(3):
        random_grads([p], i)
        optimizer.step()
    return everything(optimizer)


@pytest.mark.parametrize(
    "lr",
    [1, 0.5, True, np.float64(0.5), np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.1]]),
     torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.1, dtype=torch.bfloat16), torch.tensor(1)],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("momentum", [0, 0.5])
@beside_torch
def test_kinds_of_learning_rates(make, lr, momentum):
    model = model_of()
    optimizer = make(model.parameters(), lr=copy.deepcopy(lr), momentum=momentum)
    losses = train(model, optimizer)
    for change in (lambda lr: lr.mul_(0.5), lambda lr: lr.fill_(0.25)):
        if isinstance(lr, torch.Tensor) and lr.is_floating_point():
            change(optimizer.param_groups[0]["lr"])
        else:
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * 0.25
        losses += train(model, optimizer)
    return losses, everything(optimizer)


@pytest.mark.parametrize("options", [{"preset": "adam"}, {"nesterov": True}, {"clip_value": -1.0}, {"ema": 1.0}, {
    "clip_value": 1.0, "clip_norm": 1.0}, {"bias_correction": True, "initial_square_avg": 1.0}, {"eps_inside_sqrt": 3}],
    ids=repr)  # fmt: skip
def test_bad_options_of_ours(options):
    """They raise as `rms.init` does."""
    with pytest.raises((TypeError, ValueError)) as expected:
        rms.init([np.zeros(3)], **options)
    with pytest.raises(expected.type) as found:
        RMSprop([new()], **options)
    assert str(found.value) == str(expected.value)
    if "preset" not in options:
        with pytest.raises(expected.type):
            RMSprop([{"params": [new()], **options}])
        with pytest.raises(expected.type):
            RMSprop([new()]).add_param_group({"params": [new()], **options})


def test_preset_in_a_group():
    """It would be ignored there, as torch ignores what it does not know; the same one is what engines put there."""
    with pytest.raises(ValueError, match=r"argument of the optimizer, param_groups\[0\] has 'sb3'"):
        RMSprop([{"params": [new()], "preset": "sb3"}])
    assert RMSprop([{"params": [new()], "preset": "sb3"}], preset="sb3").param_groups[0]["eps_inside_sqrt"]


# ---- groups, closures, hooks ----

GROUPS = [{}, {"lr": 0.5}, {"momentum": 0.5, "centered": True}, {"alpha": 0.5, "eps": 1e-3, "weight_decay": 0.25},
          {"maximize": True, "lr": torch.tensor(1e-3)}]  # fmt: skip


@pytest.mark.parametrize("options", [{}, ALL], ids=label_of)
@beside_torch
def test_groups(make, options):
    models = [model_of() for _ in GROUPS]
    groups = [{"params": m.parameters(), **copy.deepcopy(of)} for m, of in zip(models, GROUPS, strict=True)]
    optimizer = make(groups[:3], **options)
    for i in range(6):
        if i in (2, 4):
            optimizer.add_param_group(groups[3 + (i == 4)])
        optimizer.zero_grad()
        sum(loss_of(m, i) for m in models).backward()
        optimizer.step()
    return everything(optimizer)


@beside_torch
def test_named_parameters(make):
    model = model_of()
    optimizer = make([{"params": model[0].named_parameters()}, {"params": model[2].named_parameters(), "lr": 0.5}])
    losses = train(model, optimizer)
    return losses, optimizer.state_dict()["param_groups"][1]["param_names"], everything(optimizer)


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.5}, {"alpha": 0.5}, {"eps": 0.25}, {"weight_decay": 0.5}, {"maximize": True}, {"momentum": 0.25},
     {"momentum": 0}, {"centered": False}, {"foreach": True}, {"lr": torch.tensor(0.5)}],
    ids=repr,
)  # fmt: skip
@beside_torch
def test_options_changed_between_steps(make, change):
    model = model_of()
    optimizer = make(model.parameters(), **ALL)
    before = {name: optimizer.param_groups[0][name] for name in change}
    losses = train(model, optimizer)
    optimizer.param_groups[0].update(change)
    losses += train(model, optimizer)
    optimizer.param_groups[0].update(before)
    return losses + train(model, optimizer), everything(optimizer)


@pytest.mark.parametrize("change", [{"momentum": 0.5}, {"centered": True}], ids=repr)
@beside_torch(may_refuse=True)
def test_arrays_that_a_change_would_need(make, change):
    """What torch's class raises KeyError for, in the middle of a step."""
    model = model_of()
    optimizer = make(model.parameters())
    train(model, optimizer)
    optimizer.param_groups[0].update(change)
    return train(model, optimizer)


@pytest.mark.parametrize("keyword", [False, True])
@beside_torch
def test_closure(make, keyword):
    model, calls = model_of(), []
    optimizer = make(model.parameters())

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(model, len(calls))
        loss.backward()
        return loss

    with torch.no_grad():
        returned = [optimizer.step(closure=closure) if keyword else optimizer.step(closure) for _ in range(3)]
        calls.append(torch.is_grad_enabled())
    return [loss.detach() for loss in returned], calls, optimizer.step(), everything(optimizer)


@beside_torch
def test_closure_that_raises(make):
    model = model_of()
    optimizer = make(model.parameters())
    train(model, optimizer)

    def closure():
        raise FloatingPointError("diverged")

    with torch.no_grad(), pytest.raises(FloatingPointError, match="diverged"):
        optimizer.step(closure)
    return torch.is_grad_enabled(), train(model, optimizer), everything(optimizer)


@beside_torch
def test_step_hooks(make):
    model, seen = model_of(), []
    optimizer = make(model.parameters())
    random_grads(model.parameters())

    def record(name):
        def hook(opt, args, kwargs):
            seen.append((name, opt is optimizer, len(args), list(kwargs), model[0].weight.detach().clone()))

        return hook

    handles = [
        base.register_optimizer_step_pre_hook(record("global pre")),
        base.register_optimizer_step_post_hook(record("global post")),
        optimizer.register_step_pre_hook(record("pre")),
        optimizer.register_step_post_hook(record("post")),
        optimizer.register_step_pre_hook(record("pre 2")),
    ]
    optimizer.step()
    optimizer.step(closure=lambda: 1.0)
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 10
    return seen, everything(optimizer)


@pytest.mark.parametrize("where", ["instance", "global"])
@beside_torch
def test_pre_hook_that_changes_arguments(make, where):
    model = model_of()
    optimizer = make(model.parameters())
    random_grads(model.parameters())

    def hook(opt, args, kwargs):
        opt.param_groups[0]["lr"] = 0.5
        return (args[0], lambda: "changed"), {}

    register = optimizer.register_step_pre_hook if where == "instance" else base.register_optimizer_step_pre_hook
    handle = register(hook)
    try:
        return optimizer.step(), optimizer.step(lambda: "given"), everything(optimizer)
    finally:
        handle.remove()


@beside_torch
def test_pre_hook_of_another_kind(make):
    optimizer = make([new()])
    optimizer.register_step_pre_hook(lambda *arguments: 3)
    with pytest.raises(RuntimeError, match="must return None or a tuple of \\(new_args, new_kwargs\\), but got 3"):
        optimizer.step()
    return everything(optimizer)


@beside_torch
def test_state_dict_hooks(make):
    model, seen = model_of(), []
    optimizer = make(model.parameters(), **ALL)
    train(model, optimizer)
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append(("save pre", opt is optimizer)))
    optimizer.register_state_dict_post_hook(lambda opt, found: found | {"more": 3})
    optimizer.register_state_dict_post_hook(lambda opt, found: seen.append(("save post", list(found))), prepend=True)
    optimizer.register_load_state_dict_pre_hook(lambda opt, found: {"state": {}, "param_groups": found["param_groups"]})
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append(("load post", len(opt.state))))
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    return seen, saved["more"], train(model, optimizer), everything(optimizer)


@beside_torch
def test_profiler(make):
    model = model_of()
    optimizer = make(model.parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, 2)
    seen = [event.name for event in profile.events() if event.name.startswith("Optimizer.")]
    assert seen.count("Optimizer.step#RMSprop.step") == 2
    return sorted(seen), everything(optimizer)


@beside_torch
def test_subclass_of_a_user(make):
    class Clipped(make):
        def step(self, closure=None):
            nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.1)
            return super().step(closure)

    model = model_of()
    optimizer = Clipped(model.parameters(), momentum=0.5)
    optimizer.register_step_post_hook(lambda opt, args, kwargs: args[0].param_groups[0].update(lr=0.5))
    return repr(optimizer).splitlines()[:2], train(model, optimizer), everything(optimizer)


@pytest.mark.parametrize("foreach", [None, True])
@pytest.mark.parametrize("set_to_none", [True, False])
@beside_torch
def test_zero_grad(make, set_to_none, foreach):
    model = model_of()
    optimizer = make(model.parameters(), foreach=foreach, **ALL)
    losses = train(model, optimizer, set_to_none=set_to_none)
    optimizer.zero_grad(set_to_none)
    grads = [p.grad for p in model.parameters()]
    optimizer.step()
    return losses, grads, everything(optimizer)


def test_repr():
    ours, theirs = (repr(make(model_of().parameters(), momentum=0.5)).splitlines() for make in (RMSprop, Peer))
    assert ours[:2] == theirs[:2] == ["RMSprop (", "Parameter Group 0"]
    assert set(theirs) <= set(ours)
    assert isinstance(RMSprop([new()]), torch.optim.Optimizer)


@beside_torch
def test_step_leaves_the_gradients(make):
    model = model_of()
    optimizer = make(model.parameters(), **ALL, maximize=True)
    loss_of(model).backward()
    grads = [p.grad for p in model.parameters()]
    before = [grad.clone() for grad in grads]
    returned = optimizer.step()
    assert all(torch.equal(grad, copied) for grad, copied in zip(grads, before, strict=True))
    return returned, [p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True)]


def test_nothing_is_kept_alive():
    model = model_of()
    optimizer = RMSprop(model.parameters(), **ALL)
    train(model, optimizer)
    tensors = list(model.parameters()) + [t for entry in optimizer.state.values() for t in entry.values()]
    references = [weakref.ref(each) for each in (model, optimizer, *tensors)]
    del model, optimizer, tensors
    gc.collect()
    assert [reference() for reference in references] == [None] * 22


# ---- schedulers, averaged models, mixed precision ----

SCHEDULERS = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda i: 0.9**i),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda i: 0.9),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 3),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 5]),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, total_iters=4),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 10, 2.0),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 8),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 1e-3, 0.1, 3, base_momentum=0.5, max_momentum=0.9),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, 12),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, total_iters=3), lr_scheduler.ExponentialLR(opt, 0.5)], [3]
    ),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt), lr_scheduler.ExponentialLR(opt, 0.5)]
    ),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=0, threshold=0.5),
    "SWALR": lambda opt: swa_utils.SWALR(opt, 0.5, anneal_epochs=5),
}


def test_every_scheduler_is_tested():
    found = {name for name, kind in vars(lr_scheduler).items()
             if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler)}  # fmt: skip
    assert found - {"LRScheduler", "_LRScheduler"} | {"SWALR"} == set(SCHEDULERS)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
@beside_torch(tolerances=TRAINED)
def test_scheduler(make, name, lr):
    model = model_of()
    optimizer = make(
        [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": copy.deepcopy(lr) / 2}],
        lr=copy.deepcopy(lr),
        momentum=0.9,
    )
    scheduler, trace = SCHEDULERS[name](optimizer), []
    for i in range(12):
        losses = train(model, optimizer, 1, i)
        scheduler.step(*(losses if name == "ReduceLROnPlateau" else ()))
        trace.append((losses, [(float(g["lr"]), g["momentum"]) for g in optimizer.param_groups]))
    assert len({str(numbers) for _, numbers in trace}) > 1
    return trace, everything(optimizer)


@pytest.mark.parametrize("first", ["scheduler", "neither", "overridden"])
@beside_torch
def test_warnings_of_schedulers(make, first):
    optimizer = make([new()])
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    if first == "overridden":
        optimizer.step = lambda: None
    for _ in range(2 * (first != "neither")):
        scheduler.step()
    return optimizer.step(), scheduler.step(), optimizer.param_groups[0]["lr"]


@beside_torch
def test_averaged_model(make):
    model = model_of()
    optimizer = make(model.parameters(), **ALL)
    averaged = swa_utils.AveragedModel(model)
    for i in range(4):
        train(model, optimizer, 1, i)
        averaged.update_parameters(model)
    return [p.detach() for p in averaged.parameters()], everything(optimizer)


@pytest.mark.parametrize("clip", [False, True])
@beside_torch(tolerances=TRAINED)
def test_grad_scaler(make, clip):
    """A step with an infinite gradient is skipped, and the scale halved."""
    model = model_of(torch.float32)
    optimizer = make(model.parameters(), **ALL)
    scaler, trace = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2), []
    for i in range(6):
        optimizer.zero_grad()
        loss = loss_of(model, i) * (float("inf") if i in (0, 3) else 1.0)
        scaler.scale(loss).backward()
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        trace.append((scaler.get_scale(), model[0].weight.detach().clone()))
    assert torch.equal(trace[2][1], trace[3][1])
    return trace, everything(optimizer)


# ---- state ----

OURS_ONLY = {"nesterov": True, "ema": 0.5, "bias_correction": True, "lr_in_momentum": True, "momentum": 0.5}


@pytest.mark.parametrize("options", [{}, ALL], ids=label_of)
@pytest.mark.parametrize("path", list(itertools.product((False, True), repeat=3)), ids=str)
def test_state_through_both_classes(path, options):
    """Training that goes on in the other class after torch.save and torch.load, beside torch's without a stop."""
    model, plain = model_of(), model_of()
    expected = train(plain, peer := Peer(plain.parameters(), **options), 9)
    found, saved = [], None
    for i, is_ours in enumerate(path):
        optimizer = (RMSprop if is_ours else Peer)(model.parameters(), lr=123.0)
        if saved is not None:
            optimizer.load_state_dict(saved)
        else:
            optimizer.param_groups[0].update(Peer([new()], **options).defaults)
        found += train(model, optimizer, 3, 3 * i)
        saved = through_file(optimizer.state_dict())
    compare(found, expected)
    compare(everything(optimizer), everything(peer))


def resumed(how, model, optimizer):
    """A model and optimizer that go on where these are."""
    if how == "state_dict":
        other = copy.deepcopy(model)
        optimizer_2 = RMSprop(other.parameters(), **{n: v for n, v in optimizer.defaults.items() if n != "lr"})
        optimizer_2.load_state_dict(through_file(optimizer.state_dict()))
        return other, optimizer_2
    copied = copy.deepcopy if how == "deepcopy" else lambda pair: pickle.loads(pickle.dumps(pair))
    return copied((model, optimizer))


FORMS = {
    "C order": torch.empty(512, 256),
    "transposed": torch.empty(256, 512).t(),
    "channels last": torch.empty(32, 64, 8, 8).to(memory_format=torch.channels_last),
    "every other": torch.empty(512, 512)[:, ::2],
    "small": torch.empty(100, 100),
}
LARGE = {"momentum": 0.5, "centered": True, "ema": 0.875}
PAGE, LINE = 4096, 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_new_buffers_are_those_of_zeros_like(form, dtype):
    """But that large ones lie apart in a page, each with a cache line as its start."""
    p = nn.Parameter(torch.empty_like(FORMS[form], dtype=dtype).copy_(torch.randn(FORMS[form].shape)))
    p.grad = torch.randn_like(p)
    optimizer = RMSprop([p], **LARGE)
    optimizer.step()
    assert optimizer.native
    buffers = {name: each for name, each in optimizer.state[p].items() if name != "step"}
    assert len(buffers) == 4 + (dtype is torch.bfloat16)
    order = torch.contiguous_format if dtype is torch.bfloat16 else torch.preserve_format
    for name, buffer in buffers.items():
        of = torch.int16 if name == "low_half" else torch.float32 if dtype is torch.bfloat16 else dtype
        like = torch.zeros_like(p, dtype=of, memory_format=order)
        assert (buffer.shape, buffer.stride(), buffer.dtype) == (like.shape, like.stride(), like.dtype)
        assert type(buffer) is torch.Tensor
        assert not buffer._is_view()
        assert not buffer.requires_grad
        assert buffer.data_ptr() % LINE == 0
    if form != "small":
        places = [each.data_ptr() % PAGE for each in buffers.values()]
        distances = [(one - other) % PAGE for i, one in enumerate(places) for other in places[:i]]
        assert all(4 * LINE <= distance <= PAGE - 4 * LINE for distance in distances)
    for buffer in buffers.values():
        buffer.share_memory_()
    optimizer.step()
    assert optimizer.native


@pytest.mark.parametrize("options", [{}, LARGE, {"clip_global_norm": 0.5}, {"preset": "sb3"}], ids=label_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_default_device(dtype, options):
    """The state of parameters on the CPU is there too, wherever new tensors are."""
    params = [nn.Parameter(torch.ones(300, 200, dtype=dtype)) for _ in range(2)]
    for p in params:
        p.grad = torch.full_like(p, 0.5)
    optimizer, expected = (RMSprop([p], **options) for p in params)
    with torch.device("meta"):
        optimizer.step()
        state = from_state_dict(optimizer.state_dict(), params[:1])
        saved = to_state_dict(state, "native")
        optimizer.load_state_dict(saved)
        optimizer.step()
    expected.step()
    expected.step()
    assert optimizer.native
    assert torch.equal(*params)
    tensors = [*optimizer.state[params[0]].values(), *saved["state"][0].values()]
    assert {each.device.type for each in tensors} == {"cpu"}


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize("form", FORMS)
def test_bits_of_large_parameters_after_a_resume(form, how):
    """Those of `rms.update_` too; what is saved has little beside the numbers."""
    model = nn.ParameterList([torch.empty_like(FORMS[form]).copy_(torch.randn(FORMS[form].shape))])
    array = model[0].detach().numpy().copy()
    state = rms.init(array, preset="torch", lr=0.01, **LARGE)
    optimizer = RMSprop(model.parameters(), lr=0.01, **LARGE)
    for resumes in (False, True):
        if resumes:
            assert len(pickle.dumps(optimizer.state_dict())) < 4 * (array.nbytes + 2 * PAGE)
            model, optimizer = resumed(how, model, optimizer)
        model[0].grad = torch.randn_like(model[0])
        optimizer.step()
        rms.update_(array, model[0].grad.numpy(), state)
        assert same_bits(model[0].detach().numpy(), array)
        entry = optimizer.state[model[0]]
        assert all(same_bits(entry[name].numpy(), getattr(state, name)) for name in state.options.buffers)


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize(
    "options", [{}, ALL, OURS_ONLY, {"preset": "sb3"}, {"preset": "graves", "clip_global_norm": 0.1}], ids=label_of
)
def test_bits_after_a_resume(options, at, how):
    """Those of training without a stop; and the two go on apart."""
    model, whole = model_of(torch.float32), model_of(torch.float32)
    train(whole, never_stopped := RMSprop(whole.parameters(), **options), 7)
    train(model, optimizer := RMSprop(model.parameters(), **options), at)
    model_2, optimizer_2 = resumed(how, model, optimizer)
    train(model_2, optimizer_2, 7 - at, at)
    assert_same_bits(optimizer_2, never_stopped)
    train(model, optimizer, 7 - at, at)
    assert_same_bits(optimizer, never_stopped)
    assert optimizer_2.native


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@beside_torch
def test_copy_of_an_optimizer_alone(make, how):
    """It has parameters of its own."""
    model = model_of()
    optimizer = make(model.parameters(), **ALL)
    train(model, optimizer)
    other = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    params = other.param_groups[0]["params"]
    assert not {p.data_ptr() for p in params} & {p.data_ptr() for p in model.parameters()}
    random_grads(params)
    other.register_step_post_hook(lambda opt, args, kwargs: opt.param_groups[0].update(lr=0.5))
    other.step()
    other.step()
    return everything(other), everything(optimizer)


@beside_torch
def test_state_dict(make):
    model = model_of()
    optimizer = make(model.parameters(), **ALL)
    train(model, optimizer, 2)
    saved = optimizer.state_dict()
    steps = [entry["step"] for entry in saved["state"].values()]
    assert len({step.data_ptr() for step in steps}) == len(steps)
    kept = [(step.dtype, step.shape, float(step)) for step in steps]
    train(model, optimizer, 2)
    return kept, saved["state"], [float(entry["step"]) for entry in optimizer.state_dict()["state"].values()]


@beside_torch
def test_state_dict_before_the_first_step(make):
    saved = make([new()], **ALL).state_dict()
    optimizer = make([p := new()])
    optimizer.load_state_dict(saved)
    random_grads([p])
    optimizer.step()
    return saved["state"], everything(optimizer)


@pytest.mark.parametrize("step", [7, 7.0, torch.tensor(7), torch.tensor(7.0, dtype=torch.float64), torch.tensor([7.0])])
@pytest.mark.parametrize(
    "missing", [(), ("foreach", "maximize", "differentiable", "capturable"), ("momentum", "centered")]
)
@beside_torch
def test_state_of_an_older_torch(make, missing, step):
    """Steps that are numbers, and groups without options that did not exist."""
    model = model_of()
    train(model, older := Peer(model.parameters(), eps=1e-3))
    saved = older.state_dict()
    for name in missing:
        del saved["param_groups"][0][name]
    for entry in saved["state"].values():
        entry["step"] = copy.deepcopy(step)
    optimizer = make(model.parameters())
    optimizer.load_state_dict(copy.deepcopy(saved))
    losses = train(model, optimizer)
    if isinstance(step, torch.Tensor) and (step.dim() > 0 or not step.is_floating_point()):
        # Counts that no version of torch's class makes: ours goes on with the number, as a float of no dimension.
        for entry in optimizer.state.values():
            entry["step"] = float(entry["step"])
    return losses, everything(optimizer)


@pytest.mark.parametrize(
    "dtypes", list(itertools.permutations((torch.float32, torch.float64, torch.float16), 2)), ids=str
)
@beside_torch(tolerances=PARTLY_FLOAT32)
def test_state_of_a_model_of_another_dtype(make, dtypes):
    model, other = (model_of(dtype) for dtype in dtypes)
    optimizers = [make(m.parameters(), **ALL) for m in (model, other)]
    losses = train(model, optimizers[0])
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    return losses, train(other, optimizers[1], 1), everything(optimizers[1])


def test_options_of_ours_stay_where_torch_has_none():
    """A state of torch's class, or of SB3's, goes on with the formula that the optimizer was made with."""
    problem = Problem(np.float64)
    peer = sb3(problem.params, lr=LR, momentum=0.5)
    for _ in range(3):
        peer.step(problem.noise())
    params = [nn.Parameter(p.detach().clone()) for p in peer.leaves]
    optimizer = RMSprop(params, preset="sb3")
    optimizer.load_state_dict(copy.deepcopy(peer.optimizer.state_dict()))
    for _ in range(3):
        grads = problem.noise()
        for p, grad in zip(params, grads, strict=True):
            p.grad = torch.tensor(grad)
        optimizer.step()
        peer.step(grads)
        for ours, theirs in zip(arrays_of(optimizer, params).values(), peer.arrays().values(), strict=True):
            for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                assert_close(one, other, f"array {i}")
    assert optimizer.native
