"""What all tests share: hypothesis draws the same examples in every run, and its time limit is off."""

import pytest
from hypothesis import HealthCheck, settings

import transmask as tm

settings.register_profile(
    "transmask", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("transmask")


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
