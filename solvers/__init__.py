"""The table of solvers; importing it, or listing it, imports none of them.

``from transmask.solvers import Greedy`` loads that one solver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import InvalidTypeError, unknown_choice
from ..pattern import Constraint, Pattern, PatternLike, as_constraint
from ._base import Solver, SolverInfo

if TYPE_CHECKING:
    from .entropic import Entropic
    from .enumeration import Enumeration
    from .greedy import Greedy
    from .milp import Milp
    from .min_cost_flow import MinCostFlow
    from .network_simplex import NetworkSimplex
    from .primal_dual import PrimalDual
    from .two_approximation import TwoApproximation

__all__ = [
    "Entropic",
    "Enumeration",
    "Greedy",
    "Milp",
    "MinCostFlow",
    "NetworkSimplex",
    "PrimalDual",
    "Solver",
    "SolverInfo",
    "TwoApproximation",
    "as_solver",
    "choose_solver",
    "exact_solvers",
    "list_solvers",
]

BOTH: tuple[Constraint, ...] = ("exactly", "at_most")

TABLE = {
    info.name: info
    for info in (
        SolverInfo(
            "primal_dual", "PrimalDual", "exact", BOTH, 64, "numba",
            "Bertsekas 1998, Network Optimization, chapters 3 and 6; Hubara et al. 2021, section 3, for the flow",
        ),
        SolverInfo(
            "enumeration", "Enumeration", "exact", BOTH, 8, "numpy",
            "Hu et al. 2024, Accelerating Transformer Pre-training with 2:4 Sparsity, section 5.1",
        ),
        SolverInfo(
            "min_cost_flow", "MinCostFlow", "exact", BOTH, None, "ortools",
            "Hubara et al. 2021, Accelerated Sparse Neural Training, section 3; Goldberg 1997, cost scaling",
        ),
        SolverInfo(
            "network_simplex", "NetworkSimplex", "exact", BOTH, None, "networkx",
            "Hubara et al. 2021, Accelerated Sparse Neural Training, section 3",
        ),
        SolverInfo(
            "milp", "Milp", "exact", BOTH, None, "scipy",
            "Hubara et al. 2021, Accelerated Sparse Neural Training, integer program; Huangfu and Hall 2018, HiGHS",
        ),
        SolverInfo(
            "greedy", "Greedy", "kept >= 1/2 optimum", BOTH, None, "numba",
            "Avis 1983, A survey of heuristics for the weighted matching problem; Hubara et al. 2021, published code",
        ),
        SolverInfo(
            "two_approximation", "TwoApproximation", "pruned <= 2 x optimum", BOTH, None, "numba",
            "Hubara et al. 2021, Accelerated Sparse Neural Training, 2-approximation algorithm",
        ),
        SolverInfo(
            "entropic", "Entropic", "none", BOTH, None, "numba",
            "Meng et al. 2025, TSENOR: Highly-Efficient Algorithm for Finding Transposable N:M Sparse Masks",
        ),
    )
}  # fmt: skip


def list_solvers() -> tuple[SolverInfo, ...]:
    """List every solver: name, guarantee, constraints, largest M, package it needs, reference.

    Imports nothing.

    Returns
    -------
    tuple of SolverInfo

    Examples
    --------
    >>> [info.name for info in list_solvers() if info.guarantee == "exact"]
    ['primal_dual', 'enumeration', 'min_cost_flow', 'network_simplex', 'milp']
    """
    return tuple(TABLE.values())


def exact_solvers(pattern: Pattern, constraint: Constraint) -> list[str]:
    """List the names of the exact solvers that take `pattern` under `constraint`.

    Examples
    --------
    >>> exact_solvers(Pattern(8, 16), "exactly")
    ['primal_dual', 'min_cost_flow', 'network_simplex', 'milp']
    """
    return [
        info.name
        for info in TABLE.values()
        if info.guarantee == "exact" and constraint in info.constraints and pattern.m <= (info.max_m or pattern.m)
    ]


def choose_solver(pattern: PatternLike, constraint: str = "exactly") -> str:
    """Return the name of the solver that ``solver="auto"`` stands for.

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
        If `pattern` or `constraint` is none.

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
        If no solver has that name; the message lists them, with the closest one.
    InvalidTypeError
        If `solver` is neither a name nor an instance.
    """
    if isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        hint = " Make an instance of it." if isinstance(solver, type) and issubclass(solver, Solver) else ""
        raise InvalidTypeError(f"`solver` must be a name or an instance of Solver, got {solver!r}.{hint}")
    name = choose_solver(pattern, constraint) if solver == "auto" else solver
    if name not in TABLE:
        raise unknown_choice("solver", solver, ["auto", *TABLE])
    instance: Solver = getattr(import_module(f".{name}", __name__), TABLE[name].class_name)()
    return instance


def __getattr__(name: str) -> Any:
    for info in TABLE.values():
        if info.class_name == name:
            return getattr(import_module(f".{info.name}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
