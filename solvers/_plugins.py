"""Solvers of other packages, found by the entry point group ``transmask.solvers``.

A package offers one with a line in its pyproject.toml, and is found wherever it is installed:

    [project.entry-points."transmask.solvers"]
    my_solver = "my_package:MySolver"

Entry points are read on demand, once a process: by `list_solvers`, and when a name is asked for that is not built in.
One that cannot be used is left out with a warning that names its distribution; asking for it by name is an error.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from .._imports import import_whole
from ..errors import InvalidArgumentError
from ._base import Solver
from ._table import TABLE, SolverInfo

__all__ = ["GROUP", "load_plugin", "plugin_names", "plugin_solvers"]

GROUP = "transmask.solvers"


@cache
def _entry_points() -> dict[str, tuple[EntryPoint, ...]]:
    """Group the installed entry points by name, sorted; a name with more than one is contested."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, _distribution(entry))):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def plugin_names() -> tuple[str, ...]:
    """List the names that entry points give, whether or not they can be used; imports nothing."""
    return tuple(_entry_points())


@cache
def plugin_solvers() -> dict[str, type[Solver]]:
    """Import every third-party solver, and warn once about each that cannot be used.

    Returns
    -------
    dict of str to type of Solver
        Sorted by name.
    """
    solvers = {}
    for name in plugin_names():
        try:
            solvers[name] = load_plugin(name)
        except InvalidArgumentError as error:
            warnings.warn(f"A third-party solver is left out: {error}", RuntimeWarning, stacklevel=3)
    return solvers


@cache
def load_plugin(name: str) -> type[Solver]:
    """Import the third-party solver of this name.

    Parameters
    ----------
    name : str
        One of `plugin_names`.

    Returns
    -------
    type of Solver

    Raises
    ------
    InvalidArgumentError
        If it cannot be used; one line that names the distribution, the cause and the remedy.
    """
    entries = _entry_points()[name]
    owners = " and ".join(repr(_distribution(entry)) for entry in entries)
    text, cause = "", None
    if name in TABLE or name == "auto":
        reason, remedy = "the name is taken by transmask itself", f"Ask the authors of {owners} to rename it"
    elif len(entries) > 1:
        reason, remedy = "each of them offers a solver of this name", "Uninstall all but one"
    else:
        try:
            return _checked(entries[0])
        except (Exception, SystemExit) as error:  # whatever a stranger's module raises on import
            with suppress(Exception):  # a stranger's exception may not even print
                text = " ".join(str(error).split())
            reason, cause = f"{type(error).__name__}: {text}" if text else type(error).__name__, error
            remedy = f"Upgrade or uninstall {owners}"
    raise InvalidArgumentError(
        f"`solver` must name a solver that loads, got {name!r} of {owners}: {reason.rstrip('.')}. {remedy}."
    ) from cause


def _checked(entry: EntryPoint) -> type[Solver]:
    """Import what an entry point names; raise TypeError or ValueError unless it is a solver of that name."""
    import_whole(entry.module)
    solver = entry.load()
    if not (isinstance(solver, type) and issubclass(solver, Solver)):
        raise TypeError(f"{entry.value!r} must be a subclass of transmask.solvers.Solver, got {solver!r}")
    info = getattr(solver, "info", None)
    if not isinstance(info, SolverInfo):
        raise TypeError(f"`{solver.__name__}.info` must be a SolverInfo, got {info!r}")
    if info.name != entry.name:
        raise ValueError(f"`{solver.__name__}.info.name` must be the entry point's, {entry.name!r}, got {info.name!r}")
    solver()  # abstract methods and required options show here, not in the middle of a comparison
    return solver


def _distribution(entry: EntryPoint) -> str:
    """Name the distribution of an entry point as pip does."""
    name: str | None = entry.dist.name if entry.dist is not None else None  # None without metadata, half uninstalled
    return name or "an unnamed distribution"
