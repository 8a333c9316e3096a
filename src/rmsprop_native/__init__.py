"""The RMSProp optimizer step for NumPy: fused, vectorised, the same to the bit everywhere.

Parameters are one array, or a nested dict, list, tuple, namedtuple or dataclass of arrays; gradients have the same
structure. A state remembers the running means of squared gradients and the number of steps:

>>> import numpy as np
>>> import rmsprop_native as rms
>>> params = {"w": np.ones((2, 3)), "b": np.zeros(3)}
>>> state = rms.init(params, lr=0.01)           # or preset="keras", "torch", "pennylane", ...: rms.PRESETS
>>> for _ in range(200):
...     grads = {"w": 2 * params["w"], "b": np.cos(params["b"])}  # from your backprop
...     params = rms.update_(params, grads, state)  # in place: each array is written
>>> params["b"].round(1), state.step
(array([-1.6, -1.6, -1.6]), 200)

Functions
    init(params, ...)               the state of an optimizer; help(rms.Options) has all hyper-parameters
    update_(params, grads, state)   a step in place; the underscore says so
    update(params, grads, state)    a step that changes nothing: returns new parameters and a new state
    save(path, state), load(path)   a checkpoint: a file that is whole and checked; from_state_dict(d) for formats
                                    of your own
    rmsprop(p, g, v, ...)           a step as a NumPy ufunc, for buffers of your own; also rmsprop_momentum,
                                    rmsprop_centered, rmsprop_centered_momentum
    show_config()                   what runs here, and why; bench() measures it
    get_include()                   the C headers, for steps without Python in Cython modules
    num_threads(), set_num_threads(n), isa(), use_isa(name)     how it runs; results stay the same
Classes
    RMSProp     parameters and their state in one object, with step(grads)
    State       what init makes: running means, counts, options; state.replace(lr=...) changes numbers
    Options     the hyper-parameters, checked
    RowGrad     a gradient of some rows of an embedding table
Modules
    rmsprop_native.interop      torch, keras, optax, pennylane, autograd, scipy, mpi: each is imported by its full name
    rmsprop_native.reference    the same step in plain NumPy, as the specification
"""

from rmsprop_native._bench import bench
from rmsprop_native.arrays import RowGrad
from rmsprop_native.checkpoint import load, save
from rmsprop_native.functional import update, update_
from rmsprop_native.optimizer import RMSProp
from rmsprop_native.options import Options
from rmsprop_native.presets import PRESETS
from rmsprop_native.runtime import __version__, get_include, isa, num_threads, set_num_threads, show_config, use_isa
from rmsprop_native.state import State, from_state_dict, init
from rmsprop_native.ufuncs import rmsprop, rmsprop_centered, rmsprop_centered_momentum, rmsprop_momentum

__all__ = [
    "PRESETS",
    "Options",
    "RMSProp",
    "RowGrad",
    "State",
    "__version__",
    "bench",
    "from_state_dict",
    "get_include",
    "init",
    "isa",
    "load",
    "num_threads",
    "rmsprop",
    "rmsprop_centered",
    "rmsprop_centered_momentum",
    "rmsprop_momentum",
    "save",
    "set_num_threads",
    "show_config",
    "update",
    "update_",
    "use_isa",
]
