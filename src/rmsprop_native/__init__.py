"""The RMSProp optimizer step for NumPy: fused, vectorised, the same to the bit everywhere."""

from rmsprop_native._bench import bench
from rmsprop_native.arrays import RowGrad
from rmsprop_native.checkpoint import load, save
from rmsprop_native.functional import update, update_
from rmsprop_native.optimizer import RMSProp
from rmsprop_native.options import Options
from rmsprop_native.presets import PRESETS
from rmsprop_native.runtime import __version__, isa, num_threads, set_num_threads, show_config, use_isa
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
