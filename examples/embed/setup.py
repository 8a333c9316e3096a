"""Build the module in place: `python setup.py build_ext --inplace`, with Cython and rmsprop_native installed."""

import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

import rmsprop_native

FLAGS = [] if sys.platform == "win32" else ["-O2", "-ffp-contract=off"]  # the second, for the same bits everywhere
setup(
    name="embed",
    ext_modules=cythonize(
        [Extension("linear", ["linear.pyx"], include_dirs=[rmsprop_native.get_include()], extra_compile_args=FLAGS)]
    ),
)
