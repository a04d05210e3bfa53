"""Take a sample of the blocks of a checkpoint, spread evenly over its matrices."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .._arguments import as_integer, as_weights, matrix_view
from ..blocks import Array, score_dtype
from ..errors import InvalidArgumentError
from ._base import Checkpoint, TensorInfo
from .planning import PrunePlan
from .selection import Selection

__all__ = ["sample_blocks"]


def sample_blocks(plan: PrunePlan, n_blocks: int) -> tuple[Array, int]:
    """Read blocks out of the tensors that a plan would prune.

    Parameters
    ----------
    plan : PrunePlan
        From `plan_pruning`, with one pattern.
    n_blocks : int
        How many blocks to take, at least 1; all of them if there are fewer. They are held in memory.

    Returns
    -------
    blocks : ndarray of float32 or float64, shape (B, M, M)
        Signed weights, in the order of the checkpoint; float64 if a tensor needs it. The i-th of the B blocks is the
        floor((i + 1/2) T / B)-th of the T whole blocks; blocks cut by an edge are left out.
    n_all : int
        T, the number of whole blocks.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `n_blocks` is not an integer of at least 1, the plan has several patterns, or a weight of a tensor that is
        read is NaN or infinite.
    CheckpointError, OSError
        If the checkpoint cannot be read.

    Examples
    --------
    >>> import tempfile, numpy as np, transmask.checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/model.npz", weight=np.arange(32.0).reshape(4, 8))
    ...     sample_blocks(transmask.checkpoint.plan_pruning(f"{folder}/model.npz", "1:2"), 2)
    (array([[[ 4.,  5.],
            [12., 13.]],
    <BLANKLINE>
           [[20., 21.],
            [28., 29.]]]), 8)
    """
    n_blocks = as_integer(n_blocks, argument="n_blocks", least=1)
    if len(set(plan.patterns.values())) > 1:
        raise InvalidArgumentError("`plan` must have one pattern, got several. Sample the tensors of one of them.")
    m = plan.pattern.m
    tensors = [chosen for chosen in plan.selections if chosen.axes is not None]
    ends = np.cumsum([_count(chosen.tensor, axes, m) for chosen in tensors if (axes := chosen.axes) is not None])
    n_all = int(ends[-1])
    wanted = np.arange(min(n_blocks, n_all))
    wanted = (2 * wanted + 1) * n_all // (2 * len(wanted))
    dtypes = [
        score_dtype(np.dtype(chosen.tensor.numpy_dtype if chosen.scaling is None else chosen.scaling.dtype))
        for chosen in tensors
    ]
    blocks = np.empty((len(wanted), m, m), np.result_type(*dtypes))
    for chosen, end, begin in zip(tensors, ends, [0, *ends[:-1]], strict=True):
        first, last = np.searchsorted(wanted, (begin, end))
        if first < last and chosen.axes is not None:
            try:
                weights = as_weights(_read(plan.checkpoint, chosen))
            except InvalidArgumentError as error:
                raise type(error)(f"tensor {chosen.tensor.name!r}: {error}") from None
            blocks[first:last] = _take(matrix_view(weights, chosen.axes), wanted[first:last] - begin, m)
    return blocks, n_all


def _read(checkpoint: Checkpoint, chosen: Selection) -> Array:
    """Read the effective weights of a tensor."""
    entries = checkpoint.read(chosen.tensor)
    if chosen.scaling is None:
        return entries
    return chosen.scaling.effective(entries, 0, entries.shape, chosen.scaling.load(checkpoint))


def _count(tensor: TensorInfo, axes: tuple[int, int], m: int) -> int:
    """Count the whole blocks of a tensor."""
    rows, columns = (tensor.shape[axis] for axis in axes)
    return tensor.size // (rows * columns) * (rows // m) * (columns // m)


def _take(matrices: Array, index: NDArray[np.int64], m: int) -> Array:
    """Copy the whole blocks of the given numbers out of (..., R, C) weights."""
    *batch, rows, columns = matrices.shape
    grid = (math.prod(batch), rows // m, columns // m)
    matrix, block_row, block_column = np.unravel_index(index, grid)
    stack = matrices.reshape(-1, rows, columns)
    row = block_row[:, None, None] * m + np.arange(m)[:, None]
    column = block_column[:, None, None] * m + np.arange(m)
    blocks: Array = stack[matrix[:, None, None], row, column]
    return blocks
