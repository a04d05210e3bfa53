"""Hand a finished 2:4 model over to sparse tensor cores, through `torch.sparse`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor
from torch.sparse import to_sparse_semi_structured as compress

from ..check import check_mask
from ..errors import InvalidArgumentError
from ..pattern import Pattern
from .selection import LayerFilter, SelectionReport, WeightChoice, select_weights

__all__ = ["to_sparse_semi_structured"]

_PATTERN = Pattern(2, 4)
_FIRST_CAPABILITY = (8, 0)  # Ampere, the first with sparse tensor cores


def to_sparse_semi_structured(
    model: nn.Module, *, transpose: bool = True, layers: LayerFilter = None
) -> SelectionReport:
    """Replace 2:4 weights of linear layers by compressed ones that sparse tensor cores multiply with.

    Parameters
    ----------
    model : torch.nn.Module
        On a CUDA device of compute capability 8.0 or newer, in float16 or bfloat16, with the zeros written into its
        weights (`MaskController.remove`). Modified in place; unchanged if an error is raised.
    transpose : bool, default True
        Also compress W.T, so that the backward product, which gives the gradients of the inputs, is sparse too. The
        compressed weights themselves are not trained.
    layers : str, iterable of str or callable, optional
        As in `sparsify`.

    Returns
    -------
    SelectionReport
        Every parameter, compressed or not, and why.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used, the device cannot do it, torch cannot compress a weight, or no layer can be
        taken; the message gives the reasons.

    See Also
    --------
    pack : The same format in numpy, on any machine.
    """
    report = select_weights(model, _PATTERN, transposable=transpose, layers=layers)
    refusals = {choice.name: _refusal(choice, transpose) for choice in report.taken}
    compressed = {choice.module: _compress(choice, transpose) for choice in report.taken if not refusals[choice.name]}
    if not compressed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(refusals.items())[:8])
        raise InvalidArgumentError(
            f"`model` must have a linear layer for sparse tensor cores, got none: {reasons}. "
            "transmask.packing.pack packs 2:4 weights on any machine."
        )
    for module, sparse in compressed.items():
        module.weight = nn.Parameter(sparse, requires_grad=False)
    return SelectionReport(
        choice.refused(refusals[choice.name]) if refusals.get(choice.name) else choice for choice in report
    )


def _refusal(choice: WeightChoice, transpose: bool) -> str:
    """Say why a weight cannot be compressed; empty if it can."""
    if type(choice.module) is not nn.Linear:
        return f"a {type(choice.module).__name__}, not a linear layer"
    weight = choice.module.weight
    refusal = _device_refusal(weight)
    if refusal:
        return refusal
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"dtype {weight.dtype}, neither float16 nor bfloat16"
    report = check_mask((weight.detach() != 0).cpu(), _PATTERN)
    if report.row_violations or (transpose and report.column_violations):
        return f"not 2:4: {report.first_offender}"
    return ""


def _device_refusal(weight: Tensor) -> str:
    """Say why a device cannot do it; empty if it can."""
    if weight.device.type != "cuda":
        return f"on {weight.device}, where torch has no sparse tensor cores"
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < _FIRST_CAPABILITY:
        return f"on a device of compute capability {'.'.join(map(str, capability))}, older than 8.0"
    return ""


def _compress(choice: WeightChoice, transpose: bool) -> SparseSemiStructuredTensor:
    """Compress W, and W.T into the fields that torch reads when it multiplies with the transpose."""
    weight = choice.module.get_parameter("weight").detach()
    try:
        sparse = compress(weight.contiguous())
        if transpose:
            backward = compress(weight.t().contiguous())
            sparse.packed_t, sparse.meta_t = backward.packed, backward.meta
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidArgumentError(
            f"`model` must hold weights that torch can compress, got {choice.name} of shape {choice.shape}: {reason} "
            "Leave it out with `layers`."
        ) from error
    return sparse
