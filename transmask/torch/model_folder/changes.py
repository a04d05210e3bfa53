"""The tensors of a checkpoint that a reconstruction changes; all others are copied as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from torch import Tensor, nn

from ..._arguments.tensors import tensor_to_numpy
from ..._typing import Array
from ...checkpoint import Checkpoint, TensorInfo
from ...errors import InvalidArgumentError
from ..reconstruction.calibration import batch_norm_layers
from ..reconstruction.matching import choose_blocks

__all__ = ["check_stored", "new_values", "tensors_that_change"]


def tensors_that_change(
    model: nn.Module, weights: Iterable[str], match: str | Iterable[str] | None
) -> dict[str, Tensor]:
    """List what `reconstruct` may change: layers with their biases, trained blocks, statistics of batch normalisation.

    Parameters
    ----------
    model : torch.nn.Module
    weights : iterable of str
        The weights that are treated.
    match : "blocks", iterable of str or None
        As in `reconstruct`.

    Returns
    -------
    dict of str to torch.Tensor
        By their names in the model.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        As `choose_blocks`.
    """
    weights = list(weights)
    modules = [name.rpartition(".")[0] for name in weights]
    modules += [] if match is None else choose_blocks(model, match, weights)
    changing = {
        f"{name}.{key}" if name else key: parameter
        for name in modules
        for key, parameter in model.get_submodule(name).named_parameters()
    }
    statistics = {id(buffer) for layer in batch_norm_layers(model) for buffer in layer.buffers()}
    return changing | {name: buffer for name, buffer in model.named_buffers() if id(buffer) in statistics}


def check_stored(changing: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Refuse a model whose changes cannot be written.

    Raises
    ------
    InvalidArgumentError
        If a tensor that changes is stored under another name, in another shape or not at all.
    """
    shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors}
    for name, value in changing.items():
        if shapes.get(name) != tuple(value.shape):
            raise InvalidArgumentError(
                f"`model` must store what changes under its name and in its shape in the model, got no {name!r} of "
                f"shape {tuple(value.shape)} in {str(checkpoint.path)!r}. Load the model and save it with transformers."
            )


def new_values(
    changing: Mapping[str, Tensor], checkpoint: Checkpoint
) -> Callable[[TensorInfo], Iterator[Array] | None]:
    """Return what `Checkpoint.rewrite` asks about each tensor: what it has become, or None if it is what it was."""

    def replace(tensor: TensorInfo) -> Iterator[Array] | None:
        if tensor.name not in changing:
            return None
        stored = checkpoint.read(tensor)
        value = tensor_to_numpy(changing[tensor.name].detach().cpu())
        if np.array_equal(stored.astype(value.dtype), value):
            return None  # in the bits that it had, which the model may round
        return iter([value.astype(stored.dtype).reshape(-1)])

    return replace
