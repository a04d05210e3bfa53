"""Write zeros where masks say so: masks out of a file, and those that a checkpoint in training holds itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._typing import Array
from ..check import check_mask
from ..errors import CheckpointError
from ..pattern import Pattern
from ._base import Checkpoint, TensorInfo
from ._open import PathLike, as_path
from ._staging import Staging
from .apply_planning import ApplyPlan
from .masked_weights import MaskedWeight
from .masks_file import Masks
from .weight_norm import shortened_norms, squared_norms

__all__ = ["AppliedTensor", "Progress", "apply_masks"]

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
    ...     [applied] = apply_masks(transmask.checkpoint.plan_applying(f"{folder}/m.npz"), f"{folder}/new.npz")
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
            if tensor.name in plan.norms:
                return iter([_shortened(plan, tensor)])
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


def _replaced(plan: ApplyPlan, tensor: TensorInfo, folded: MaskedWeight | None, tell: Progress) -> Iterator[Array]:
    """Yield the entries of a tensor with zeros where its mask says so."""
    tell(tensor, None)
    if folded is not None:
        name, pattern, mask = folded.name, None, _own_mask(plan.checkpoint, folded.mask)
    else:
        assert plan.masks is not None
        name, pattern, mask = tensor.name, plan.masks.patterns[tensor.name], _checked_mask(plan.masks, tensor.name)
    n_zeroed = 0
    for entries, kept in _stretches(plan.checkpoint, tensor, mask):
        pruned = ~kept
        n_zeroed += int(np.count_nonzero(entries[pruned]))
        entries[pruned] = 0
        yield entries
    tell(tensor, AppliedTensor(name, tensor.shape, pattern, int(np.count_nonzero(mask)), n_zeroed))


def _stretches(
    checkpoint: Checkpoint, tensor: TensorInfo, mask: NDArray[np.bool_]
) -> Iterator[tuple[Array, NDArray[np.bool_]]]:
    """Read a tensor stretch by stretch, each with what the mask says about it."""
    start = 0
    sizes = [min(_STRETCH, tensor.size - first) for first in range(0, tensor.size, _STRETCH)]
    for entries in checkpoint.stretches(tensor, sizes):
        yield entries, mask.reshape(-1)[start : start + entries.size]
        start += entries.size


def _shortened(plan: ApplyPlan, norm: TensorInfo) -> Array:
    """Return the g of a weight norm for what the mask keeps of its v."""
    scaling = plan.norms[norm.name]
    assert scaling.direction is not None
    assert plan.masks is not None
    whole, mask = scaling.direction.shape, plan.masks[scaling.direction.name]
    before, kept = (
        squared_norms(
            (part(*pair) for pair in _stretches(plan.checkpoint, scaling.direction, mask)), whole, scaling.shape
        )
        for part in (lambda entries, kept: entries, lambda entries, kept: np.where(kept, entries, 0))
    )
    return shortened_norms(plan.checkpoint.read(norm), before, kept, scaling.direction.name).reshape(-1)


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
