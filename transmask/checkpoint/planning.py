"""Plan how a checkpoint is pruned, from its headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidArgumentError
from ..pattern import Constraint, Pattern, PatternLike, as_constraint
from ..solvers import Solver, as_solver
from ._base import Checkpoint
from ._open import PathLike, as_path, open_checkpoint
from ._record import PruneRecord
from ._staging import Staging, creating
from .aliases import without_torn_twins
from .masked_weights import find_masked_weights
from .masks_file import as_masks_path, check_mask_names
from .recipe import Recipe, select_by_recipe
from .scaling import Scaling
from .selection import Selection

__all__ = ["PrunePlan", "plan_pruning"]


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What `prune_checkpoint` will do, known before it begins.

    Attributes
    ----------
    checkpoint : Checkpoint
    patterns : dict of str to Pattern
        Of the tensors to prune, by name.
    constraint : {"exactly", "at_most"}
    solvers : dict of Pattern to Solver
    selections : tuple of Selection
        One for each tensor of the checkpoint, in its order.
    """

    checkpoint: Checkpoint
    patterns: dict[str, Pattern]
    constraint: Constraint
    solvers: dict[Pattern, Solver]
    selections: tuple[Selection, ...]

    @property
    def pattern(self) -> Pattern:
        """The pattern; of several, that of the first tensor to prune."""
        return next(iter(self.patterns.values()))

    @property
    def solver(self) -> Solver:
        """The solver; of several, that of the first tensor to prune."""
        return self.solvers[self.pattern]

    @property
    def axes(self) -> dict[str, tuple[int, int]]:
        """The tensors to prune, by name, with the axes that form their matrix."""
        return {chosen.tensor.name: chosen.axes for chosen in self.selections if chosen.axes is not None}

    @property
    def scalings(self) -> dict[str, Scaling]:
        """What the entries of the tensors to prune are multiplied with to be the weights, where they are not."""
        return {chosen.tensor.name: chosen.scaling for chosen in self.selections if chosen.scaling is not None}

    @property
    def shards(self) -> dict[Path, list[str]]:
        """The tensors to prune, by the file that holds them: portions for `solve_tensors`."""
        shards: dict[Path, list[str]] = {}
        for chosen in self.selections:
            if chosen.axes is not None:
                shards.setdefault(self.checkpoint.file_of(chosen.tensor), []).append(chosen.tensor.name)
        return shards

    @property
    def n_weights(self) -> int:
        """Number of weights in the tensors to prune."""
        return sum(chosen.tensor.size for chosen in self.selections if chosen.axes is not None)

    @property
    def record(self) -> PruneRecord:
        """What is noted about the tensors to prune."""
        names = {self.solvers[pattern].info.name for pattern in self.patterns.values()}
        solver = self.solver.info.name if len(names) == 1 else ""
        return PruneRecord.of(self.patterns, self.constraint, solver, self.axes)

    def check_outputs(self, output: PathLike | None, *, masks: PathLike | None = None, apply: bool = True) -> None:
        """Raise what `prune_checkpoint` would raise about these outputs, but write nothing.

        A folder that cannot be written to shows up only when something is written.

        Parameters
        ----------
        output, masks : str or path-like, or None
            As `prune_checkpoint` takes them; None is not checked.
        apply : bool, default True
            Whether zeros are to be written in place of pruned weights.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If an output cannot be there, or the masks' file cannot hold a tensor's name. Or if a tensor that is left
            alone was pruned before with another constraint.
        CheckpointError
            If the system refuses to say what is there.

        Examples
        --------
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/model.npz", weight=np.ones((4, 4)))
        ...     plan = plan_pruning(f"{folder}/model.npz", "2:4")
        ...     plan.check_outputs(f"{folder}/pruned.npz")
        """
        checkpoint = self.checkpoint
        final = None if output is None else as_path(output, "output")
        packed = None if masks is None else as_masks_path(as_path(masks, "masks"), "masks")
        if final is not None:
            checkpoint.check_output(final)
            if packed is not None and not checkpoint.suffix:
                _check_beside(packed, final)
        if apply:
            self.record.joined_to(checkpoint.record)
        places = Staging(checkpoint.files)
        if packed is not None:
            places.claim_file(packed, "masks")
            check_mask_names(self.axes)
        if final is not None:
            claim = places.claim_file if checkpoint.suffix else places.claim_folder
            claim(final, "output")


def _check_beside(packed: Path, final: Path) -> None:
    """Refuse masks in a folder that is still to appear."""
    with creating(packed, "masks"):
        is_inside = final.resolve() in packed.resolve().parents
    if is_inside:
        raise InvalidArgumentError(
            f"`masks` must not be in the output folder, got {str(packed)!r}, which is in {str(final)!r}. "
            "That folder appears as a whole: write the masks beside it."
        )


def _refuse_masked_weights(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Refuse to mask weights that are stored with a mask already, and such masks."""
    wanted = set(names)
    for weight in find_masked_weights(checkpoint.tensors).values():
        if wanted & {weight.original.name, weight.mask.name}:
            raise InvalidArgumentError(
                f"`model` must hold weights that no mask is on yet, got {weight.original.name!r} with "
                f"{weight.mask.name!r}. Fold its masks in first: transmask apply {str(checkpoint.path)!r} -o OUT."
            )


def plan_pruning(
    model: PathLike,
    pattern: PatternLike | Recipe,
    *,
    constraint: str = "exactly",
    solver: str | Solver = "auto",
    include: str | None = None,
    exclude: str | None = None,
    axes: Mapping[str, Sequence[int]] | None = None,
) -> PrunePlan:
    """Decide which tensors of a checkpoint are pruned, from its headers.

    Weights are read only where tensors of one shape are treated differently: those with the same entries, bit for bit,
    may be tied, and are pruned alike or all skipped.

    Parameters
    ----------
    model : str or path-like
        What `open_checkpoint` takes.
    pattern : Pattern, str, tuple of two int or Recipe
        N entries kept of every M, of all tensors or of each.
    constraint : {"exactly", "at_most"}, default "exactly"
    solver : str or Solver, default "auto"
    include, exclude : str, optional
        Regular expressions on the tensors' names; see `select_tensors`.
    axes : mapping of str to pair of int, optional
        Regular expressions on the names, and the axes that form the matrices of the tensors that match.

    Returns
    -------
    PrunePlan
        For `prune_checkpoint`.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError, UnsupportedPatternError
        If an argument cannot be used, no tensor can be pruned, a rule of the recipe matches none of them, or two rules
        match one; or a tensor is stored with a mask already, as in training.
    CheckpointError, OSError
        If the checkpoint cannot be read.
    """
    recipe, limit = Recipe.of(pattern), as_constraint(constraint)
    solvers = {chosen: as_solver(solver, chosen, limit) for chosen in recipe.patterns}
    for chosen, worker in solvers.items():
        worker.check(chosen, limit)
    checkpoint = open_checkpoint(model)
    found, patterns = select_by_recipe(
        checkpoint.tensors, recipe, include=include, exclude=exclude, axes=axes, metadata=checkpoint.metadata
    )
    _refuse_masked_weights(checkpoint, patterns)
    selections = without_torn_twins(checkpoint, found, patterns)
    taken = {chosen.tensor.name for chosen in selections if chosen.axes is not None}
    patterns = {name: pattern for name, pattern in patterns.items() if name in taken}
    plan = PrunePlan(checkpoint, patterns, limit, solvers, selections)
    if not plan.axes:
        reasons = "; ".join(dict.fromkeys(f"{skip.tensor.name}: {skip.reason}" for skip in plan.selections[:3]))
        more = f"; {len(selections) - 3} more" if len(selections) > 3 else ""
        raise InvalidArgumentError(
            f"`model` must hold a tensor that can be pruned, got none of {len(selections)} in "
            f"{str(checkpoint.path)!r}. Skipped: {reasons}{more}."
        )
    return plan
