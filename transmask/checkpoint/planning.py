"""Plan how a checkpoint is pruned, from its headers alone."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidArgumentError
from ..pattern import Constraint, Pattern, PatternLike, as_constraint
from ..solvers import Solver, as_solver
from ._base import Checkpoint
from ._open import PathLike, open_checkpoint
from .selection import Selection, select_tensors

__all__ = ["PrunePlan", "plan_pruning"]


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What `prune_checkpoint` will do, known without reading a weight.

    Attributes
    ----------
    checkpoint : Checkpoint
    pattern : Pattern
    constraint : {"exactly", "at_most"}
    solver : Solver
    selections : tuple of Selection
        One for each tensor of the checkpoint, in its order.
    """

    checkpoint: Checkpoint
    pattern: Pattern
    constraint: Constraint
    solver: Solver
    selections: tuple[Selection, ...]

    @property
    def axes(self) -> dict[str, tuple[int, int]]:
        """The tensors to prune, by name, with the axes that form their matrix."""
        return {chosen.tensor.name: chosen.axes for chosen in self.selections if chosen.axes is not None}

    @property
    def n_weights(self) -> int:
        """Number of weights in the tensors to prune."""
        return sum(chosen.tensor.size for chosen in self.selections if chosen.axes is not None)


def plan_pruning(
    model: PathLike,
    pattern: PatternLike,
    *,
    constraint: str = "exactly",
    solver: str | Solver = "auto",
    include: str | None = None,
    exclude: str | None = None,
) -> PrunePlan:
    """Decide which tensors of a checkpoint are pruned, from its headers alone.

    Parameters
    ----------
    model : str or path-like
        What `open_checkpoint` takes.
    pattern : Pattern, str or tuple of two int
        N entries kept of every M.
    constraint : {"exactly", "at_most"}, default "exactly"
    solver : str or Solver, default "auto"
    include, exclude : str, optional
        Regular expressions on the tensors' names; see `select_tensors`.

    Returns
    -------
    PrunePlan
        For `prune_checkpoint`.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError, UnsupportedPatternError
        If an argument cannot be used, or no tensor can be pruned.
    CheckpointError, OSError
        If the checkpoint cannot be read.
    """
    chosen, limit = Pattern.of(pattern), as_constraint(constraint)
    worker = as_solver(solver, chosen, limit)
    worker.check(chosen, limit)
    checkpoint = open_checkpoint(model)
    selections = select_tensors(checkpoint.tensors, chosen, include=include, exclude=exclude)
    plan = PrunePlan(checkpoint, chosen, limit, worker, selections)
    if not plan.axes:
        reasons = "; ".join(dict.fromkeys(f"{skip.tensor.name}: {skip.reason}" for skip in selections[:3]))
        more = f"; {len(selections) - 3} more" if len(selections) > 3 else ""
        raise InvalidArgumentError(
            f"`model` must hold a tensor that can be pruned, got none of {len(selections)} in "
            f"{str(checkpoint.path)!r}. Skipped: {reasons}{more}."
        )
    return plan
