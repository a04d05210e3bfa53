"""Check that the matrices of a checkpoint, or the masks of a masks file, hold a pattern in rows and in columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..check import MaskReport, check_mask
from ..errors import CheckpointError, InvalidArgumentError
from ..pattern import Constraint, Pattern, PatternLike, as_constraint
from ._axes_rules import AxesRules
from ._base import Checkpoint, TensorInfo
from ._open import PathLike, open_checkpoint
from .aliases import aliases_in, without_torn_twins
from .masked_weights import MaskedWeight, find_masked_weights, seen_as_weights
from .masks_file import Masks, masks_in
from .recipe import Recipe, select_by_recipe
from .selection import matching_names

__all__ = ["CheckPlan", "CheckedTensor", "check_checkpoint", "plan_check"]

_STRETCH = 1 << 22
"""Entries that are read at a time."""


@dataclass(frozen=True, slots=True)
class CheckedTensor:
    """What was found in one tensor.

    Attributes
    ----------
    name : str
    shape : tuple of int
    pattern : Pattern
        What it has to hold.
    axes : tuple of two int
        The axes that form its matrix.
    report : MaskReport
        An entry counts as kept if it is not zero; in a masks file, if its bit is set.
    """

    name: str
    shape: tuple[int, ...]
    pattern: Pattern
    axes: tuple[int, int]
    report: MaskReport


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """What to check, known without reading a weight.

    Attributes
    ----------
    checkpoint : Checkpoint
    masks : Masks or None
        The masks, if it is a masks file.
    patterns : dict of str to Pattern
        What each tensor has to hold.
    constraint : {"exactly", "at_most"}
    tensors : dict of str to TensorInfo
        What to read for each tensor; of a masks file, the packed bytes.
    axes : dict of str to tuple of two int
        The axes that form the matrix of each tensor.
    masked : dict of str to MaskedWeight
        The weights that are stored with a mask, as in training; what is judged is the product.
    """

    checkpoint: Checkpoint
    masks: Masks | None
    patterns: dict[str, Pattern]
    constraint: Constraint
    tensors: dict[str, TensorInfo]
    axes: dict[str, tuple[int, int]]
    masked: dict[str, MaskedWeight] = field(default_factory=dict)

    def size(self, name: str) -> int:
        """Return the number of entries of a tensor."""
        return self.tensors[name].size if self.masks is None else math.prod(self.masks.shapes[name])

    def check(self, name: str) -> CheckedTensor:
        """Read one tensor and check it."""
        mask = self._nonzero(self.tensors[name]) if self.masks is None else self.masks[name]
        if name in self.masked:
            mask &= self._nonzero(self.masked[name].mask)
        report = check_mask(mask, self.patterns[name], constraint=self.constraint, axes=self.axes[name])
        return CheckedTensor(name, mask.shape, self.patterns[name], self.axes[name], report)

    def _nonzero(self, tensor: TensorInfo) -> NDArray[np.bool_]:
        """Tell which entries of a tensor are not zero, without holding all of them."""
        mask, start = np.empty(tensor.size, np.bool_), 0
        sizes = [min(_STRETCH, tensor.size - first) for first in range(0, tensor.size, _STRETCH)]
        for entries in self.checkpoint.stretches(tensor, sizes):
            with np.errstate(invalid="ignore"):  # a NaN is not zero either
                np.not_equal(entries, 0, out=mask[start : start + entries.size])
            start += entries.size
        return mask.reshape(tensor.shape)


def plan_check(
    model: PathLike,
    pattern: PatternLike | Recipe | None = None,
    *,
    constraint: str = "at_most",
    include: str | None = None,
    exclude: str | None = None,
    axes: Mapping[str, Sequence[int]] | None = None,
) -> CheckPlan:
    """Decide what to check, from the headers alone; parameters and errors are those of `check_checkpoint`.

    Returns
    -------
    CheckPlan
    """
    recipe, limit = None if pattern is None else Recipe.of(pattern), as_constraint(constraint)
    checkpoint = open_checkpoint(model)
    masks = masks_in(checkpoint)
    noted = checkpoint.record if masks is None else masks
    masked = find_masked_weights(checkpoint.tensors) if noted is None else {}
    if recipe is None and noted is None:
        raise InvalidArgumentError(
            f"`pattern` must be given, because {str(checkpoint.path)!r} does not say what it was pruned to. "
            "For example '2:4'."
        )
    if noted is None:
        assert recipe is not None
        tensors = seen_as_weights(checkpoint.tensors, masked)
        selections, patterns = select_by_recipe(
            tensors, recipe, include=include, axes=axes, metadata=checkpoint.metadata
        )
        if include is None:
            selections = without_torn_twins(checkpoint, selections, patterns)
        found = {chosen.tensor.name: chosen.axes for chosen in selections if chosen.axes is not None}
    else:
        found = noted.axes if masks is not None else _noted_axes(checkpoint)
        patterns = noted.patterns
    aliases = aliases_in(checkpoint.metadata, found)
    names = matching_names(found, include=include, exclude=exclude, aliases=aliases)
    if noted is not None and recipe is not None and names:
        patterns = recipe.assign(names)
        names = list(patterns)
    if not names:
        raise InvalidArgumentError(
            f"`model` must hold a tensor to check, got none in {str(checkpoint.path)!r}. "
            "`transmask prune --dry-run` says why each of its tensors is skipped."
        )
    known = {tensor.name: tensor for tensor in checkpoint.tensors}
    known |= {name: weight.original for name, weight in masked.items()}
    rules, used = AxesRules(axes), {}
    for name in names:
        shape = known[name].shape if masks is None else masks.shapes[name]
        used[name] = rules.axes_of(name, shape, aliases.get(name, ())) or found[name]
    rules.refuse_unused()
    return CheckPlan(
        checkpoint,
        masks,
        {name: patterns[name] for name in names},
        limit,
        {name: known[name] for name in names},
        used,
        {name: masked[name] for name in names if name in masked},
    )


def check_checkpoint(
    model: PathLike,
    pattern: PatternLike | Recipe | None = None,
    *,
    constraint: str = "at_most",
    include: str | None = None,
    exclude: str | None = None,
    axes: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[CheckedTensor]:
    """Check a checkpoint or a masks file, one tensor in memory at a time.

    Checks the tensors that the file itself says were pruned; if it says nothing, those that pruning would take. Of a
    weight that is stored with a mask, as in training, it checks the product.

    Parameters
    ----------
    model : str or path-like
        What `open_checkpoint` takes, or a masks file.
    pattern : Pattern, str, tuple of two int or Recipe, optional
        N entries kept of every M, of all tensors or of each; need not be what the file names. Default: what it names.
    constraint : {"exactly", "at_most"}, default "at_most"
        "at_most" is what sparse hardware asks for. In a checkpoint a weight that was kept but is zero counts as pruned,
        so that "exactly" can fail for a file that was pruned "exactly"; the masks file has no such doubt.
    include, exclude : str, optional
        Regular expressions on the tensors' names; see `select_tensors`.
    axes : mapping of str to pair of int, optional
        Regular expressions on the names, and the axes that form the matrices of the tensors that match, whatever the
        file says.

    Returns
    -------
    iterator of CheckedTensor
        In the order of the file; a tensor is read when the iterator reaches it.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used, or there is nothing to check.
    CheckpointError, OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/model.npz", good=np.eye(4), bad=np.tri(4))
    ...     for found in check_checkpoint(f"{folder}/model.npz", "2:4"):
    ...         print(found.name, found.report.first_offender or "holds 2:4")
    good holds 2:4
    bad row 2, columns 0 to 3 keeps 3, more than 2 of 4
    """
    plan = plan_check(model, pattern, constraint=constraint, include=include, exclude=exclude, axes=axes)
    return (plan.check(name) for name in plan.axes)


def _noted_axes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Return the tensors that a checkpoint with a record says were pruned, with the axes that form their matrix."""
    assert checkpoint.record is not None
    known = {tensor.name: tensor for tensor in checkpoint.tensors}
    for name, pair in checkpoint.record.axes.items():
        if name not in known or known[name].numpy_dtype is None or max(pair) >= len(known[name].shape):
            raise CheckpointError(
                f"{str(checkpoint.path)!r} says that {name!r} was pruned along the axes {pair}, "
                "but it holds no such tensor. It was changed after pruning."
            )
    return checkpoint.record.axes
