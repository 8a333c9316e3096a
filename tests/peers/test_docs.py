"""The examples in the docs and docstrings that need a framework."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
from conftest import PAGES, needs_peers

from rmsprop_native import interop


@pytest.mark.parametrize("page", [page for page in PAGES if needs_peers(page)], ids=lambda page: page.name)
def test_examples_of_the_docs_run(page):
    assert doctest.testfile(str(page), module_relative=False).failed == 0


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(interop.__path__)])
def test_docstring_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"rmsprop_native.interop.{name}"))
    assert result.failed == 0
    assert result.attempted > 0
