"""The transposable mask of one tensor."""

from __future__ import annotations

import torch

from .. import masks
from .._arguments import is_tensor, tensor_on_cpu
from ..errors import InvalidTypeError
from ..pattern import PatternLike
from ..solvers import Solver

__all__ = ["transposable_mask"]


def transposable_mask(
    weights: torch.Tensor,
    pattern: PatternLike,
    *,
    constraint: str = "exactly",
    solver: str | Solver = "auto",
    axes: tuple[int, int] = (-2, -1),
    threads: int | None = None,
) -> torch.Tensor:
    """Find the transposable N:M mask of a tensor: `transmask.transposable_mask` for tensors on any device.

    Parameters
    ----------
    weights : torch.Tensor, shape (..., R, C)
        Dense, of any real dtype and on any device; it may require a gradient. The mask is found on the CPU.
    pattern, constraint, solver, axes, threads
        As in `transmask.transposable_mask`.

    Returns
    -------
    torch.Tensor of bool, the shape of `weights`
        On the device of `weights`, True = kept.

    Raises
    ------
    InvalidTypeError
        If `weights` is not a tensor; otherwise as `transmask.transposable_mask`.
    InvalidArgumentError
        If `weights` lies on the meta device, where it has no values; otherwise as `transmask.transposable_mask`.
    UnsupportedPatternError, SolverError
        As `transmask.transposable_mask`.

    Examples
    --------
    >>> mask = transposable_mask(torch.eye(4), "1:4")
    >>> bool((mask == torch.eye(4).bool()).all())
    True
    """
    if not is_tensor(weights):
        raise InvalidTypeError(
            f"`weights` must be a torch.Tensor, got {type(weights).__name__}. transmask.transposable_mask takes arrays."
        )
    mask = masks.transposable_mask(
        tensor_on_cpu(weights), pattern, constraint=constraint, solver=solver, axes=axes, threads=threads
    )
    return torch.from_numpy(mask).to(weights.device)
