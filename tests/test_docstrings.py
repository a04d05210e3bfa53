"""The examples in the docstrings are true, and every public function has one."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil

import pytest

import transmask

pytestmark = [pytest.mark.surface, pytest.mark.torch]

EXTRAS = {"transmask.torch": "torch", "transmask.plotting": "matplotlib"}


def modules():
    for info in pkgutil.walk_packages(transmask.__path__[:1], "transmask."):
        needs = next((package for name, package in EXTRAS.items() if info.name.startswith(name)), None)
        if not info.name.endswith("__main__") and (needs is None or importlib.util.find_spec(needs)):
            yield info.name
    # In a checkout solvers/ stands beside the package, where a walk of its folder does not come by.
    package = importlib.import_module("transmask.solvers")
    for info in pkgutil.walk_packages(package.__path__, "transmask.solvers."):
        yield info.name


@pytest.mark.parametrize("name", sorted(set(modules())))
def test_the_examples_of_a_module_are_true(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


@pytest.mark.parametrize("name", [name for name in transmask.__all__ if inspect.isfunction(getattr(transmask, name))])
def test_a_public_function_is_documented_in_full(name):
    function = getattr(transmask, name)
    text = inspect.getdoc(function)
    assert ">>> " in text
    assert "Returns\n-------" in text
    for parameter in inspect.signature(function).parameters:
        assert f"\n{parameter} : " in text.replace("\n*", "\n"), parameter
    if inspect.signature(function).parameters:
        assert "Raises\n------" in text
