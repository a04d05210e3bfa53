"""Write zeros where masks say so: masks out of a file, and those that a checkpoint in training holds itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._typing import Array
from ..check import check_mask
from ..errors import CheckpointError, InvalidArgumentError
from ..pattern import Pattern
from ._base import Checkpoint, TensorInfo
from ._open import PathLike, as_path, open_checkpoint
from ._record import PruneRecord
from ._staging import Staging
from .masked_weights import MaskedWeight, find_masked_weights
from .masks_file import Masks, masks_in, read_masks

__all__ = ["AppliedTensor", "ApplyPlan", "apply_masks", "plan_applying"]

_STRETCH = 1 << 22
"""Entries that are read at a time."""


@dataclass(frozen=True, slots=True)
class AppliedTensor:
    """What a mask did to one tensor.

    Attributes
    ----------
    name : str
        In the new checkpoint.
    shape : tuple of int
    pattern : Pattern or None
        What the masks file says that the mask holds, which was checked; None for a mask of the checkpoint's own.
    n_kept : int
        Number of entries that the mask keeps.
    n_zeroed : int
        Number of entries that were not zero, and are now.
    """

    name: str
    shape: tuple[int, ...]
    pattern: Pattern | None
    n_kept: int
    n_zeroed: int


Progress: TypeAlias = Callable[[TensorInfo, AppliedTensor | None], None]
"""Called with each tensor twice: with None when work on it begins, with its outcome when it is done."""


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """Which masks go onto which tensors, known from the headers alone.

    Attributes
    ----------
    checkpoint : Checkpoint
    masks : Masks or None
        The masks of a file.
    folded : dict of str to MaskedWeight
        The weights that the checkpoint stores with a mask, by their names in the new one.
    """

    checkpoint: Checkpoint
    masks: Masks | None
    folded: dict[str, MaskedWeight]

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """What gets a mask, in the order of the checkpoint."""
        originals = {weight.original.name for weight in self.folded.values()}
        masked: Collection[str] = () if self.masks is None else self.masks
        return tuple(t for t in self.checkpoint.tensors if t.name in originals or t.name in masked)

    @property
    def names(self) -> dict[str, str | None]:
        """The new names of tensors that do not keep theirs; None for one that is left out."""
        names: dict[str, str | None] = {}
        for name, weight in self.folded.items():
            names[weight.original.name] = name
            names |= dict.fromkeys((weight.mask.name, *weight.beside))
        return names

    @property
    def record(self) -> PruneRecord | None:
        """What is noted about the new checkpoint; None leaves it as it is."""
        if self.masks is None:
            return None
        masks = self.masks
        return PruneRecord.of(masks.patterns, masks.constraint, masks.solver, masks.axes).joined_to(
            self.checkpoint.record
        )


def plan_applying(model: PathLike, masks: PathLike | None = None) -> ApplyPlan:
    """Decide which masks go onto which tensors, from the headers alone.

    Parameters
    ----------
    model : str or path-like
        What `open_checkpoint` takes. Weights that it stores with a mask (``NAME_orig`` and ``NAME_mask``, or
        ``parametrizations.NAME.original`` and ``.0.mask``) get that mask folded in.
    masks : str or path-like, optional
        A masks file, made from this checkpoint or from one with tensors of the same names and shapes. Tensors that it
        does not name stay as they are.

    Returns
    -------
    ApplyPlan
        For `apply_masks`.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used, there is no mask, a mask is for a tensor that is not there, has another shape, is
        not of floating-point numbers or has a mask of its own, or other tensors were pruned with another constraint.
    CheckpointError, OSError
        If a file cannot be read, or what it stores as a mask cannot be one.
    """
    checkpoint = open_checkpoint(model)
    if masks_in(checkpoint) is not None:
        raise InvalidArgumentError(f"`model` must hold weights, got {str(checkpoint.path)!r}, which is a masks file.")
    plan = ApplyPlan(
        checkpoint,
        None if masks is None else read_masks(as_path(masks, "masks")),
        find_masked_weights(checkpoint.tensors),
    )
    if not plan.masks and not plan.folded:
        raise InvalidArgumentError(
            f"`masks` must be a file with a mask, got {'none' if masks is None else 'an empty one'}; "
            f"{str(checkpoint.path)!r} has no masks of its own to fold in."
        )
    _check_masks(plan)
    _ = plan.record  # which refuses what cannot be noted together
    if plan.folded and not checkpoint.can_rename:
        raise InvalidArgumentError(
            f"`model` must be in a format whose tensors can be renamed, got {str(checkpoint.path)!r}. "
            "Save it as .safetensors."
        )
    return plan


def apply_masks(plan: ApplyPlan, output: PathLike, *, progress: Progress | None = None) -> list[AppliedTensor]:
    """Write the checkpoint of a plan with zeros where its masks say so; one tensor's mask is in memory at a time.

    Parameters
    ----------
    plan : ApplyPlan
        From `plan_applying`.
    output : str or path-like
        The new checkpoint, in the format of the old one; a new or empty folder if that is one or is sharded. The masks
        that the old one stored are gone, and their weights have the names that a model without masks gives them.
        safetensors metadata notes the patterns of a masks file.
    progress : callable, optional
        Called with each tensor that gets a mask, in the order of the checkpoint: with None when work on it begins, with
        its outcome when it is done.

    Returns
    -------
    list of AppliedTensor
        In the order of the checkpoint.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If the output cannot be there.
    CheckpointError, OSError
        If a file is damaged, a mask breaks the pattern that its file names or is not of 0 and 1, or the output cannot
        be written; nothing is left behind.

    Examples
    --------
    >>> import tempfile, numpy as np, transmask.checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/m.npz", **{"fc.weight_orig": np.ones((2, 2)), "fc.weight_mask": np.eye(2)})
    ...     [applied] = apply_masks(plan_applying(f"{folder}/m.npz"), f"{folder}/new.npz")
    ...     dict(np.load(f"{folder}/new.npz")), applied.n_zeroed
    ({'fc.weight': array([[1., 0.],
           [0., 1.]])}, 2)
    """
    final, checkpoint = as_path(output, "output"), plan.checkpoint
    checkpoint.check_output(final)
    inputs = [*checkpoint.files, *([] if plan.masks is None else [plan.masks.path])]
    outcomes: list[AppliedTensor] = []
    with Staging(inputs) as staging:
        target = (staging.file if checkpoint.suffix else staging.folder)(final, "output")
        folded = {weight.original.name: weight for weight in plan.folded.values()}
        chosen = {tensor.name for tensor in plan.tensors}

        def replace(tensor: TensorInfo) -> Iterator[Array] | None:
            if tensor.name not in chosen:
                return None
            return _replaced(plan, tensor, folded.get(tensor.name), tell)

        def tell(tensor: TensorInfo, outcome: AppliedTensor | None) -> None:
            if outcome is not None:
                outcomes.append(outcome)
            if progress is not None:
                with staging.unrelated():
                    progress(tensor, outcome)

        if plan.folded:
            checkpoint.rewrite_renamed(target, replace, plan.record, plan.names)
        else:
            checkpoint.rewrite(target, replace, plan.record)
    return outcomes


def _check_masks(plan: ApplyPlan) -> None:
    """Refuse masks of a file that do not fit the tensors."""
    known = {tensor.name: tensor for tensor in plan.checkpoint.tensors}
    shapes: Mapping[str, tuple[int, ...]] = {} if plan.masks is None else plan.masks.shapes
    where = repr(str(plan.checkpoint.path))
    for name, shape in shapes.items():
        if name in plan.folded:
            mask = plan.folded[name].mask.name
            raise InvalidArgumentError(
                f"`masks` must be for weights without a mask, got one for {name!r}, which {where} stores with "
                f"{mask!r}. Fold that in first: apply without a masks file."
            )
        if name not in known:
            raise InvalidArgumentError(
                f"`masks` must be for tensors of {where}, got one for {name!r}, which it does not hold. "
                "Is it the same model?"
            )
        if known[name].shape != shape:
            raise InvalidArgumentError(
                f"`masks` must have the shapes of the tensors, got {shape} for {name!r}, which has {known[name].shape} "
                f"in {where}. Is it the same model?"
            )
    for tensor in plan.tensors:
        if not tensor.is_floating:
            raise InvalidArgumentError(
                f"`model` must hold floating-point numbers where it gets a mask, got {tensor.dtype} for "
                f"{tensor.name!r}."
            )


def _replaced(plan: ApplyPlan, tensor: TensorInfo, folded: MaskedWeight | None, tell: Progress) -> Iterator[Array]:
    """Yield the entries of a tensor with zeros where its mask says so."""
    tell(tensor, None)
    if folded is not None:
        name, pattern, mask = folded.name, None, _own_mask(plan.checkpoint, folded.mask)
    else:
        assert plan.masks is not None
        name, pattern, mask = tensor.name, plan.masks.patterns[tensor.name], _checked_mask(plan.masks, tensor.name)
    entries_kept, start, n_zeroed = mask.reshape(-1), 0, 0
    sizes = [min(_STRETCH, tensor.size - first) for first in range(0, tensor.size, _STRETCH)]
    for entries in plan.checkpoint.stretches(tensor, sizes):
        pruned = ~entries_kept[start : start + entries.size]
        start += entries.size
        n_zeroed += int(np.count_nonzero(entries[pruned]))
        np.copyto(entries, 0, where=pruned)
        yield entries
    tell(tensor, AppliedTensor(name, tensor.shape, pattern, int(np.count_nonzero(mask)), n_zeroed))


def _own_mask(checkpoint: Checkpoint, mask: TensorInfo) -> NDArray[np.bool_]:
    """Read a mask that is a tensor of the checkpoint."""
    values = checkpoint.read(mask)
    kept: NDArray[np.bool_] = values == 1
    if not np.all(kept | (values == 0)):
        raise CheckpointError(f"the mask {mask.name!r} must hold 0 and 1 only. Save the model again.")
    return kept


def _checked_mask(masks: Masks, name: str) -> NDArray[np.bool_]:
    """Read a mask of a file, which has to hold what the file says: the new checkpoint will say it, too."""
    mask, pattern = masks[name], masks.patterns[name]
    if max(masks.axes[name]) >= mask.ndim:
        raise CheckpointError(
            f"the mask {name!r} in {str(masks.path)!r} has no axes {masks.axes[name]}. It is damaged."
        )
    report = check_mask(mask, pattern, constraint=masks.constraint, axes=masks.axes[name])
    if not report:
        raise CheckpointError(
            f"the mask {name!r} in {str(masks.path)!r} must hold {pattern} {masks.constraint.replace('_', ' ')}, but "
            f"{report.first_offender}. The file is damaged."
        )
    return mask
