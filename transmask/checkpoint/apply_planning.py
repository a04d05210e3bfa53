"""Plan which masks go onto which tensors, from the headers alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..errors import InvalidArgumentError
from ._base import Checkpoint, TensorInfo
from ._open import PathLike, as_path, open_checkpoint
from ._record import PruneRecord
from .masked_weights import MaskedWeight, find_masked_weights
from .masks_file import Masks, masks_in, read_masks
from .scaling import Scaling, scaling_of, unscalable

__all__ = ["ApplyPlan", "plan_applying"]


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
    norms : dict of str to Scaling
        By the name of g, the weight norms whose v gets a mask: g is shortened, so that what is kept stays what it is.
    """

    checkpoint: Checkpoint
    masks: Masks | None
    folded: dict[str, MaskedWeight]
    norms: dict[str, Scaling]

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
        has a mask of its own or stores no zeros, or other tensors were pruned with another constraint.
    CheckpointError, OSError
        If a file cannot be read, or what it stores as a mask cannot be one.
    """
    checkpoint = open_checkpoint(model)
    if masks_in(checkpoint) is not None:
        raise InvalidArgumentError(f"`model` must hold weights, got {str(checkpoint.path)!r}, which is a masks file.")
    found = None if masks is None else read_masks(as_path(masks, "masks"))
    known = {tensor.name: tensor for tensor in checkpoint.tensors}
    scalings = [scaling_of(known[name], known) for name in found or () if name in known]
    norms = {one.scales.name: one for one in scalings if one is not None and one.direction is not None}
    plan = ApplyPlan(checkpoint, found, find_masked_weights(checkpoint.tensors), norms)
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
        reason = unscalable(tensor, known)
        if not reason and not tensor.is_floating and scaling_of(tensor, known) is None:
            reason = f"{tensor.dtype} is not floating"
        if reason:
            raise InvalidArgumentError(
                f"`model` must hold a weight where it gets a mask, got {tensor.name!r} in {where}: {reason}."
            )
