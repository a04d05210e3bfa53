"""The rule by which the masks of a model are found: one object that training and reconstruction share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .._arguments import as_weights, matrix_view, tensor_on_cpu
from ..blocks import Array
from ..errors import InvalidArgumentError
from ..pattern import Constraint, Pattern, PatternLike, as_constraint
from ..plain_mask import nm_mask
from ..solvers import Solver, as_solver
from ..solving import check_solver, solve_matrices
from ..threads import resolve_threads
from .layouts import Layout

__all__ = ["MaskRule"]


@dataclass(frozen=True, slots=True)
class MaskRule:
    """Which masks are wanted, and who finds them.

    Attributes
    ----------
    pattern : Pattern
        With 1 <= N < M.
    transposable : bool
        Whether rows and columns hold the pattern; otherwise only the groups along the reduction axis do.
    constraint : {"exactly", "at_most"}
        For transposable masks.
    solver : str or Solver
        For transposable masks.
    """

    pattern: Pattern
    transposable: bool = True
    constraint: Constraint = "exactly"
    solver: str | Solver = "auto"

    @classmethod
    def of(cls, pattern: PatternLike, transposable: bool, constraint: str, solver: str | Solver) -> MaskRule:
        """Check what a caller asks for.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If an argument cannot be used, or options for transposable masks are given with ``transposable=False``.
        """
        chosen, limit = Pattern.of(pattern), as_constraint(constraint)
        if not 0 < chosen.n < chosen.m:
            raise InvalidArgumentError(
                f"`pattern` must keep at least 1 entry and prune at least 1, got {str(chosen)!r}. For example '2:4'."
            )
        if not transposable and (solver != "auto" or limit != "exactly"):
            raise InvalidArgumentError(
                f"`transposable` must be True with a `solver` or a `constraint`, got {solver!r} and {limit!r}. "
                "A plain N:M mask keeps the N largest of every group."
            )
        if transposable:
            as_solver(solver, chosen, limit)
        return cls(chosen, bool(transposable), limit, solver)

    def prunes(self, layout: Layout, shape: Sequence[int]) -> bool:
        """Tell whether any entry of a parameter of this shape has to go."""
        sides = layout.sides(shape)
        return (max(sides) if self.transposable else sides[layout.reduction]) > self.pattern.n

    def find(self, scores: torch.Tensor, layout: Layout, *, name: str) -> torch.Tensor:
        """Find the mask of a parameter, from nothing: training moves weights too far for duals of an earlier mask.

        Parameters
        ----------
        scores : torch.Tensor
            The parameter, or other scores of its shape, on any device.
        layout : Layout
        name : str
            What error messages call the parameter.

        Returns
        -------
        torch.Tensor of bool
            The shape of `scores`, on the CPU.

        Raises
        ------
        InvalidArgumentError
            If a score is NaN or infinite, or on the meta device; the message names the parameter.
        UnsupportedPatternError, SolverError
            As `transmask.transposable_mask`.
        """
        array = self.check(scores, layout, name=name)
        if not self.transposable:
            mask = nm_mask(layout.matrices(array), self.pattern, axis=1 + layout.reduction)
            return torch.from_numpy(mask.reshape(array.shape))
        mask = np.zeros(array.shape, np.bool_)
        views = (matrix_view(layout.matrices(array), (1, 2)), matrix_view(layout.matrices(mask), (1, 2)))
        solver = as_solver(self.solver, self.pattern, self.constraint)
        solve_matrices(*views, None, self.pattern, self.constraint, solver, threads=resolve_threads(None))
        return torch.from_numpy(mask)

    def __str__(self) -> str:
        return f"{'transposable' if self.transposable else 'plain'} {self.pattern} {self.constraint!r}"

    def check(self, scores: torch.Tensor, layout: Layout, *, name: str) -> Array:
        """Return the scores as a finite array on the CPU, if the solver can answer.

        Raises
        ------
        InvalidArgumentError
            If a score is NaN or infinite, or on the meta device; the message names the parameter.
        UnsupportedPatternError
            If the solver cannot answer.
        """
        array = as_weights(tensor_on_cpu(scores, argument=name), argument=name)
        if self.transposable:
            solver = as_solver(self.solver, self.pattern, self.constraint)
            check_solver(layout.sides(array.shape), self.pattern, self.constraint, solver)
        return array
