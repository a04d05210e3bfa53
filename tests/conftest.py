"""What all tests share: hypothesis draws the same examples in every run, and its time limit is off."""

import numba
import pytest
from hypothesis import HealthCheck, settings

import transmask as tm

settings.register_profile(
    "transmask", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("transmask")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Mark the tests of a module that imports torch, and skip what needs compilation where it is off."""
    skip = pytest.mark.skip(reason="NUMBA_DISABLE_JIT is set")
    for item in items:
        if hasattr(item.module, "torch"):
            item.add_marker("torch")
        if numba.config.DISABLE_JIT and item.get_closest_marker("compiled"):
            item.add_marker(skip)


@pytest.fixture(params=[info.name for info in tm.list_solvers()])
def solver(request):
    """Every registered solver, by name."""
    return request.param


@pytest.fixture(params=[info.name for info in tm.list_solvers() if info.guarantee == "exact"])
def exact_solver(request):
    """Every registered solver that claims to be exact, by name."""
    return request.param


@pytest.fixture(params=["exactly", "at_most"])
def constraint(request):
    """Both constraints."""
    return request.param
