"""The table of built-in solvers: the ground floor, which every solver imports and which imports no solver.

To add a solver, add its row here and write ``<name>.py`` beside this file; nothing else lists solvers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from .._arguments import as_integer
from ..errors import InvalidArgumentError, InvalidTypeError, unknown_choice
from ..pattern import Constraint, Pattern, as_constraint

__all__ = ["TABLE", "Guarantee", "SolverInfo", "exact_solvers"]

Guarantee: TypeAlias = Literal["exact", "kept >= 1/2 optimum", "pruned <= 2 x optimum", "none"]
"""What is proven of a solver's masks: the optimum, a factor on the kept or on the pruned weight, or nothing."""


@dataclass(frozen=True, slots=True)
class SolverInfo:
    """A row of the table of solvers.

    Attributes
    ----------
    name : str
        What `solver=` takes; also the name of the module (built in) or of the entry point (third-party).
    class_name : str
        Name of the class.
    guarantee : str
        What is proven of the masks for "at_most"; the module's docstring says what holds for "exactly".
    constraints : tuple of str
        The constraints it answers.
    max_m : int or None
        Largest block side it takes, None if there is no limit.
    needs : str
        The package that does the work.
    reference : str
        Where the method was published.
    max_masks : int or None, default None
        Largest number of masks that a block may have under the constraint, None if there is no limit.
    note : str, default ""
        What else tells its masks from those of other solvers, as a sentence.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If a field cannot be used, so that a third-party solver fails where it is written.
    """

    name: str
    class_name: str
    guarantee: Guarantee
    constraints: tuple[Constraint, ...]
    max_m: int | None
    needs: str
    reference: str
    max_masks: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for field in ("name", "class_name", "needs", "reference"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise InvalidTypeError(f"`{field}` must be a str that is not empty, got {value!r}.")
        if self.guarantee not in get_args(Guarantee):
            raise unknown_choice("guarantee", self.guarantee, get_args(Guarantee))
        if not isinstance(self.constraints, tuple) or not self.constraints:
            raise InvalidTypeError(f"`constraints` must be a tuple that is not empty, got {self.constraints!r}.")
        for constraint in self.constraints:
            as_constraint(constraint)
        if not self.name.isidentifier():
            raise InvalidArgumentError(f"`name` must be an identifier, got {self.name!r}. For example 'my_solver'.")
        if not isinstance(self.note, str):
            raise InvalidTypeError(f"`note` must be a str, got {self.note!r}.")
        for field in ("max_m", "max_masks"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, as_integer(getattr(self, field), argument=field, least=1))

    @property
    def limits(self) -> str:
        """The patterns it takes, as text: "any M", "M <= 64", also with the number of masks a block may have."""
        masks = f", up to {self.max_masks:,} masks a block" if self.max_masks else ""
        return f"M <= {self.max_m}{masks}" if self.max_m else f"any M{masks}"

    def refusal(self, pattern: Pattern, constraint: Constraint) -> str | None:
        """Say what the solver must be given, and what it is given, where this row rules a pattern out.

        Parameters
        ----------
        pattern : Pattern
        constraint : {"exactly", "at_most"}

        Returns
        -------
        str or None
            The end of an error message; None if nothing in the row speaks against the pattern.

        Examples
        --------
        >>> TABLE["enumeration"].refusal(Pattern(3, 6), "exactly")
        "a pattern with at most 100000 masks a block, got '3:6' 'exactly' with 297200"
        """
        if constraint not in self.constraints:
            return f"the constraint {' or '.join(map(repr, self.constraints))}, got {constraint!r}"
        if self.max_m is not None and pattern.m > self.max_m:
            return f"a pattern with M of at most {self.max_m}, got {str(pattern)!r}"
        if self.max_masks is not None:
            found = _count_masks(pattern, constraint)
            if found is None or found > self.max_masks:
                more = "more" if found is None else found
                return (
                    f"a pattern with at most {self.max_masks} masks a block, "
                    f"got {str(pattern)!r} {constraint!r} with {more}"
                )
        return None


def _count_masks(pattern: Pattern, constraint: Constraint) -> int | None:
    """Count the masks of a block; None if they are too many to count."""
    from ..structures.counting import count_matrices, is_countable  # it imports the solvers

    n, m = pattern.n, pattern.m
    return count_matrices(m, m, n, constraint) if is_countable(m, m, n, constraint) else None


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
            "Hu et al. 2024, Accelerating Transformer Pre-training with 2:4 Sparsity, section 5.1", max_masks=100_000,
            note='Takes every pattern with M <= 4; "exactly" also M = 5, 1:6, 2:6, 4:6, 5:6, 1:7, 6:7, 1:8 and 7:8, '
            '"at_most" also 1:5 and 1:6.',
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
            note="Its masks also prune <= 2 x optimum.",
        ),
        SolverInfo(
            "two_approximation", "TwoApproximation", "pruned <= 2 x optimum", BOTH, None, "numba",
            "Hubara et al. 2021, Accelerated Sparse Neural Training, algorithm 1, completed",
            note="The published masks, filled up: always the masks of `greedy`, so kept >= 1/2 optimum as well.",
        ),
        SolverInfo(
            "mutual_top_n", "MutualTopN", "pruned <= 2 x optimum", ("at_most",), None, "numba",
            "Hubara et al. 2021, Accelerated Sparse Neural Training, algorithm 1 as published",
            note="The published 2-approximation, not filled up: no factor holds for what it keeps.",
        ),
        SolverInfo(
            "entropic", "Entropic", "none", BOTH, None, "numba",
            "Meng et al. 2025, TSENOR: Highly-Efficient Algorithm for Finding Transposable N:M Sparse Masks",
        ),
    )
}  # fmt: skip


def exact_solvers(pattern: Pattern, constraint: Constraint) -> list[str]:
    """List the names of the built-in exact solvers that take `pattern` under `constraint`.

    Error messages suggest these. Third-party solvers are not among them: a message should not import a stranger's code,
    and their exactness is not proven here.

    Examples
    --------
    >>> exact_solvers(Pattern(8, 16), "exactly")
    ['primal_dual', 'min_cost_flow', 'network_simplex', 'milp']
    """
    return [
        info.name for info in TABLE.values() if info.guarantee == "exact" and info.refusal(pattern, constraint) is None
    ]
