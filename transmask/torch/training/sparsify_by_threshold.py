"""Put trainable thresholds on the weights of a model, and check those that it loads."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..._arguments import as_weights, tensor_on_cpu
from ...errors import CheckpointError
from ..layouts import Allowed
from ..selection import LayerFilter, select_weights, untrainable
from .loading import MaskedEntry, StateDict, check_masked_weights, masked_entries, refuse_meta
from .threshold_controller import ThresholdController
from .thresholded_weight import Granularity, ThresholdedWeight, ThresholdRule

__all__ = ["load_thresholds", "sparsify_by_threshold"]


def sparsify_by_threshold(
    model: nn.Module,
    alpha: float,
    *,
    granularity: Granularity = "row",
    layers: LayerFilter = None,
    skip_ends: bool = False,
    allow: Collection[Allowed] = (),
    record_every: int = 40,
) -> ThresholdController:
    """Put trainable thresholds on the weights of a model: Dynamic Sparse Training.

    The model computes with W * S(abs(W) - t), where the step S keeps the entries that reach their threshold t, and
    minimises

        loss + alpha * sum exp(-t)        the sum is over all thresholds

    over W and t together. Thresholds start from 0, where every entry is kept; how much is pruned, and in which layers,
    is learnt. If an error is raised, the model is unchanged.

    Parameters
    ----------
    model : torch.nn.Module
        Modified in place. The same weights are taken as by `sparsify`.
    alpha : float
        Weight of the regulariser: the larger, the fewer entries are kept. What is right depends on the loss, the
        learning rate, the number of steps and the granularity.
    granularity : {"layer", "row", "entry"}, default "row"
        One threshold for the whole parameter, for each output unit (as in the paper), or for each entry.
    layers, skip_ends, allow
        As in `sparsify`.
    record_every : int, default 40
        Optimizer steps between two records of the densities.

    Returns
    -------
    ThresholdController
        Attach your optimizer to it, ``controller.attach(optimizer)``, or nothing pushes the thresholds up. Make the
        optimizer after this call: it has to hold the thresholds.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used, a weight is NaN or infinite, or no layer can be taken.

    References
    ----------
    Liu, Xu, Shi, Cheung, So 2020, "Dynamic Sparse Training: Find Efficient Sparse Network From Scratch With Trainable
    Masked Layers", section 3.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> controller = sparsify_by_threshold(model, 0.01)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> controller.attach(optimizer)
    ThresholdController(Sequential: 2 masks, 192 weights)
    >>> model(torch.ones(1, 8)).sum().backward()
    >>> optimizer.step()
    >>> controller.remove()
    >>> type(model[0])
    <class 'torch.nn.modules.linear.Linear'>
    """
    rule = ThresholdRule(alpha, granularity, record_every)
    report = select_weights(model, None, layers=layers, skip_ends=skip_ends, allow=allow, refuse=untrainable)
    found = []
    for choice in report.taken:
        assert choice.layout is not None
        weight = getattr(choice.module, choice.attribute)
        as_weights(tensor_on_cpu(weight, argument=choice.name), argument=choice.name)
        found.append((choice, ThresholdedWeight(weight, choice.layout, rule)))
    for choice, thresholded in found:
        parametrize.register_parametrization(choice.module, choice.attribute, thresholded)
    load_handle = model.register_load_state_dict_pre_hook(load_thresholds)  # type: ignore[no-untyped-call]
    return ThresholdController(model, report, load_handle=load_handle)


def load_thresholds(module: nn.Module, state_dict: StateDict, prefix: str, *_: object) -> None:
    """Check the thresholds of a state_dict before a model under thresholds loads it.

    Raises
    ------
    CheckpointError
        If thresholds, mask or weight have another shape, thresholds are missing or not finite, or a weight has
        thresholds on one side and not on the other; the model is unchanged.
    """
    entries = list(masked_entries(module, ThresholdedWeight))
    wanted = {entry.name for entry in entries}
    check_masked_weights(module, wanted, state_dict, prefix, maker="sparsify_by_threshold")
    for entry in entries:
        _check_entry(entry, state_dict, prefix)


def _check_entry(entry: MaskedEntry[ThresholdedWeight], state_dict: StateDict, prefix: str) -> None:
    """Raise CheckpointError unless what a state_dict holds for one weight fits it."""
    masked, stem = entry.masked, (prefix + entry.name).removesuffix(entry.attribute)
    base = f"{stem}parametrizations.{entry.attribute}."
    threshold, mask, weight = (state_dict.get(f"{base}{key}") for key in ("0.threshold", "0.mask", "original"))
    refuse_meta((threshold, mask, weight), entry.name)
    if threshold is None:
        if mask is not None or f"{stem}{entry.attribute}_mask" in state_dict:
            raise CheckpointError(
                f"`state_dict` must hold thresholds for {entry.name}, got a mask without any. "
                "Load it into a model under sparsify."
            )
        return
    remedy = " Call sparsify_by_threshold with the granularity of the checkpoint."
    for kind, value, present, hint in (
        ("thresholds", threshold, masked.threshold, remedy),
        ("a mask", mask, masked.mask, ""),
        ("a weight", weight, entry.original, ""),
    ):
        if value is not None and value.shape != present.shape:
            raise CheckpointError(
                f"`state_dict` must hold {kind} of shape {tuple(present.shape)} for {entry.name}, "
                f"got {tuple(value.shape)}.{hint}"
            )
    if not _is_finite(threshold):
        raise CheckpointError(f"`state_dict` must hold finite thresholds for {entry.name}, got NaN or infinity.")


def _is_finite(values: Tensor) -> bool:
    """Tell whether no entry is NaN or infinite."""
    return bool(values.isfinite().all())
