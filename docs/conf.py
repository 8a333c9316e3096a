"""How Sphinx builds these pages: `make docs`."""

import inspect
import os
import shutil
from pathlib import Path

from sphinx.util.inspect import stringify_signature
from sphinx_gallery.scrapers import figure_rst
from sphinx_gallery.sorting import FunctionSortKey

import rmsprop_native

project = "rmsprop_native"
author = "the authors of rmsprop_native"
release = version = rmsprop_native.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "sphinx_gallery.gen_gallery"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]
default_role = "py:obj"  # in docstrings: a link where there is something of that name

# The frameworks of interop need not be installed to read what the adapters say.
autodoc_mock_imports = ["autograd", "jax", "keras", "mpi4py", "optax", "pennylane", "scipy", "torch"]
autodoc_typehints = "none"  # the docstrings say it
autodoc_preserve_defaults = True
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"rmsprop_native {release}"
html_static_path = ["static"]
html_css_files = ["gallery.css"]
html_copy_source = False
html_show_copyright = False

EXAMPLES = [
    "digits", "ravine", "rho", "forgetting_factor", "linear_regression", "optimizers", "text", "speech", "embeddings",
    "maml", "population", "bfloat16", "resume", "mpi_digits", "torch_mlp", "torch_a2c", "keras_mlp",
]  # fmt: skip
EXECUTED = ("ravine", "rho", "linear_regression")  # seconds, with NumPy; of the others images/ has the figure
GALLERY = Path(__file__).parent / "gallery"
os.environ["TQDM_DISABLE"] = "1"  # no progress bars among what an example prints


def arguments(gallery_conf, script_vars):
    """Have an example save its figure where the gallery expects it; it prints this path."""
    return ["--figure", os.path.relpath(next(script_vars["image_path_iterator"]), Path(script_vars["src_file"]).parent)]


def figure(block, block_vars, gallery_conf):
    """The figure that an example saved."""
    return figure_rst(block_vars["image_path_iterator"].paths, gallery_conf["src_dir"])


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": GALLERY.name,
    "filename_pattern": rf"/({'|'.join(EXECUTED)})\.py$",
    "ignore_pattern": r"^(dense|optimizer_share|recurrent)\.py$",  # what they share
    "within_subsection_order": FunctionSortKey(lambda file: EXAMPLES.index(Path(file).stem)),
    "reset_argv": arguments,
    "image_scrapers": (figure,),
    "abort_on_example_error": True,
    "notebook_extensions": set(),  # they are programs with a command line
    "copyfile_regex": r"\w+\.py",  # that too, into the archive of all
    "doc_module": ("rmsprop_native",),
    "show_signature": False,
    "min_reported_time": 60,
    "write_computation_times": False,
}


def prepare_thumbnails(app):
    """The gallery makes thumbnails of figures under such names."""
    (GALLERY / "images").mkdir(parents=True, exist_ok=True)
    for name in set(EXAMPLES) - set(EXECUTED):
        shutil.copy(GALLERY.parent / "images" / f"{name}.png", GALLERY / "images" / f"sphx_glr_{name}_001.png")


def add_figure(app, docname, source):
    """Put the figure of an example that was not executed where the gallery puts that of others: before its code."""
    name = docname.removeprefix(f"{GALLERY.name}/")
    if name != docname and name in set(EXAMPLES) - set(EXECUTED):
        before, code, after = source[0].partition(".. GENERATED FROM PYTHON SOURCE LINES")
        source[0] = before + figure_rst([GALLERY / "images" / f"sphx_glr_{name}_001.png"], app.srcdir) + code + after


def signature_of_class(app, what, name, obj, options, signature, return_annotation):
    """That of __init__, where a base class that is not installed hides it."""
    if what == "class" and signature == "(*args, **kwargs)":
        _, *parameters = inspect.signature(obj.__init__).parameters.values()
        return stringify_signature(inspect.Signature(parameters), show_annotation=False), return_annotation
    return None


def setup(app):
    """What this file adds to the extensions."""
    app.connect("autodoc-process-signature", signature_of_class)
    app.connect("builder-inited", prepare_thumbnails, priority=400)
    app.connect("source-read", add_figure)
