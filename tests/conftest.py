"""What all tests share: hypothesis draws the same examples in every run, and its time limit is off."""

import json
import signal
from importlib.metadata import distributions
from pathlib import Path

import numba
import pytest
from hypothesis import HealthCheck, settings

import transmask as tm

settings.register_profile(
    "transmask", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("transmask")


SHADOWED = """the tests would import {}, not what is installed in {}.
`python -m pytest` puts the current folder first on sys.path, and so does a PYTHONPATH that holds the checkout.
Run `pytest`, or make the install editable: pip install -e ".[dev]"."""


def shadowed(imported, installed):
    """Say which package shadows an installed wheel, or return None; an egg-info that a build left is not an install."""
    for distribution in installed:
        editable = json.loads(distribution.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable")
        folder = Path(distribution.locate_file("transmask")).resolve()
        if distribution.read_text("RECORD") and not editable and imported != folder:
            return SHADOWED.format(imported, folder)
    return None


def heed_signals():
    """Take the signals that `nohup`, or a shell that starts pytest with `&`, has told us and our children to ignore."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_configure():
    """Refuse to test code other than what is installed: half of the tests run it in processes of their own."""
    heed_signals()
    problem = shadowed(Path(tm.__file__).resolve().parent, distributions(name="transmask"))
    if problem:
        raise pytest.UsageError(problem)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Mark the tests of a module that imports torch; where compilation is off, skip what needs it.

    Machine code says nothing when a number overflows, or when the unused lanes of a vector hold NaN. The same kernel as
    plain Python warns, so those warnings are no errors there.
    """
    skip = pytest.mark.skip(reason="NUMBA_DISABLE_JIT is set")
    quiet = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
    for item in items:
        if hasattr(item.module, "torch"):
            item.add_marker("torch")
        if numba.config.DISABLE_JIT:
            item.add_marker(quiet)
            if item.get_closest_marker("compiled"):
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
