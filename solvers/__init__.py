"""The solvers: ``from transmask.solvers import Greedy`` loads that one; importing or listing loads none of them.

Map of the folder, for whoever writes the next solver:

    _table.py       one row a built-in solver, from which everything else is made: add yours here
    _base.py        `Solver`, the contract: what to implement and what may be relied on
    <name>.py       one solver a file: method, guarantee, cost and when not to use it; greedy.py is a short one to copy
    _*_kernels.py   numba kernels, and nothing else, of the solvers beside them
    primal_dual/    the exact engine behind "auto", with a map of its own
    _plugins.py     solvers that other packages offer by an entry point

`transmask.testing.assert_solver_contract` holds a solver to the contract; ``tests/test_solver_contract.py`` runs it on
every row of the table.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from .._imports import import_whole
from ..errors import InvalidTypeError, unknown_choice
from ..pattern import Constraint, Pattern, PatternLike, as_constraint
from ._base import Solver
from ._plugins import load_plugin, plugin_names, plugin_solvers
from ._table import TABLE, SolverInfo, exact_solvers

__all__ = ["Solver", "SolverInfo", "as_solver", "choose_solver", "exact_solvers", "list_solvers"]

# The classes come from the table. Type checkers see them as Any here; `from transmask.solvers.greedy import Greedy`
# is typed.
__all__ += [info.class_name for info in TABLE.values()]
__all__.sort()


def list_solvers() -> tuple[SolverInfo, ...]:
    """List every solver: name, guarantee, constraints, largest M, package it needs, reference.

    The built-in ones come first, and are not imported. Then come those of other packages, which are.

    Returns
    -------
    tuple of SolverInfo

    Warns
    -----
    RuntimeWarning
        If a third-party solver cannot be used, once for each; it is left out.

    Examples
    --------
    >>> [info.name for info in list_solvers() if info.guarantee == "exact"]
    ['primal_dual', 'enumeration', 'min_cost_flow', 'network_simplex', 'milp']
    """
    return (*TABLE.values(), *(solver.info for solver in plugin_solvers().values()))


def choose_solver(pattern: PatternLike, constraint: str = "exactly") -> str:
    """Return the name of the solver that ``solver="auto"`` stands for; always a built-in, exact one.

    Parameters
    ----------
    pattern : Pattern, str or tuple of two int
    constraint : {"exactly", "at_most"}, default "exactly"

    Returns
    -------
    str

    Raises
    ------
    InvalidArgumentError
        If `pattern` is not a pattern or `constraint` not a constraint.

    Examples
    --------
    >>> choose_solver("2:4"), choose_solver("64:128")
    ('primal_dual', 'min_cost_flow')
    """
    as_constraint(constraint)
    return "primal_dual" if Pattern.of(pattern).m <= (TABLE["primal_dual"].max_m or 0) else "min_cost_flow"


def as_solver(solver: str | Solver, pattern: Pattern, constraint: Constraint) -> Solver:
    """Return the solver that a name stands for, made with its default options, or the given instance.

    Raises
    ------
    InvalidArgumentError
        If no solver has that name, in which case the message lists them with the closest one; or if a third-party
        solver of that name cannot be used.
    InvalidTypeError
        If `solver` is neither a name nor an instance.
    """
    if isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        hint = " Make an instance of it." if isinstance(solver, type) and issubclass(solver, Solver) else ""
        raise InvalidTypeError(f"`solver` must be a name or an instance of Solver, got {solver!r}.{hint}")
    name = choose_solver(pattern, constraint) if solver == "auto" else solver
    if name in TABLE:
        instance = _built_in_class(name)()
    elif name in plugin_names():
        instance = load_plugin(name)()
    else:
        raise unknown_choice("solver", solver, ["auto", *TABLE, *plugin_solvers()])
    return instance


@cache
def _built_in_class(name: str) -> type[Solver]:
    """Import a built-in solver."""
    found: type[Solver] = getattr(import_whole(f".{name}", __name__), TABLE[name].class_name)
    return found


def __getattr__(name: str) -> Any:
    for info in TABLE.values():
        if info.class_name == name:
            return _built_in_class(info.name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
