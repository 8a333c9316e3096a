"""How Sphinx builds these pages: `make docs`."""

import rmsprop_native

project = "rmsprop_native"
author = "the authors of rmsprop_native"
release = version = rmsprop_native.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]

# The frameworks of interop need not be installed to read what the adapters say.
autodoc_mock_imports = ["autograd", "jax", "keras", "mpi4py", "optax", "pennylane", "scipy", "torch"]
autodoc_typehints = "none"  # the docstrings say it
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"rmsprop_native {release}"
html_copy_source = False
html_show_copyright = False
