"""ALPS: choose the mask and the weights together, by alternating directions.

Method
    The layer problem over W and over the mask is split by a copy D of the weights that holds the pattern:

        minimise  1/2 trace( (W - W') H (W - W').T )   subject to  W' = D,  D = S * D

    with H the Gram matrix of the inputs, the bias eliminated, 1 % of the mean diagonal added, scaled to a unit diagonal
    (the weights along). From D = W and V = 0, repeat

        W' = W + (rho (D - W) - V) (H + rho I)^-1
        S  = the best mask for the scores (W' + V / rho)^2,  D = S * (W' + V / rho)
        V  = V + rho (W' - D)

    The projection is exact: for squared scores the mask that keeps most is the nearest matrix that holds the pattern.
    rho starts at 0.1; every three iterations it grows by 30, 20 or 10 % if more than 10 %, 0.5 % or none of the kept
    entries changed. It ends where none did, or fewer than 0.03 % did over thirty iterations. The weights on the last
    mask are those of `LeastSquares`.
Guarantee
    A minimum for the mask it ends with. The mask is a local one; nothing bounds its distance from the best.
Cost
    Usually 25 to 50 iterations of K D^2 multiplications in float32 and one search for a mask, D^3 every third. The
    published code factorises H into eigenvectors once and multiplies twice an iteration; an inverse for every rho needs
    fewer multiplications, because rho changes at most every third time. What float32 changes is measured by
    `python -m benchmarks.reconstruction_problems`.
When not to use it
    Where time matters more than a tenth of the error: `LeastSquares` with ``scores="wanda"``.

References
----------
Meng, Behdin, Wang, Mazumder 2024, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language
Models", sections 3.1 and 3.2. Meng, Makni, Mazumder 2025, "TSENOR: Highly-Efficient Algorithm for Finding Transposable
N:M Sparse Masks", section 4, for transposable masks in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..._arguments import as_integer
from ...errors import InvalidArgumentError
from .layer_problem import Fit, LayerProblem, ReconstructionMethod, input_gram
from .least_squares import LeastSquares

__all__ = ["ALPS"]

_LEAST_RIDGE = 1e-10
_DTYPE = torch.float32  # of the iterations: rho bounds the condition of what is inverted by I / 0.1
_FIRST_RHO, _CHECK_EVERY = 0.1, 3
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # of rho, by the share of kept entries that changed
_CALM, _CALM_ITERATIONS = 3e-4, 30


class ALPS(ReconstructionMethod):
    """Choose the mask and refit; see the module's docstring. The `scores` of `reconstruct` play no part.

    Parameters
    ----------
    ridge : float, default 1e-2
        As in `LeastSquares`, but at least 1e-10: the method needs a matrix that can be inverted.
    max_iterations : int, default 300

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `ridge` is not finite and at least 1e-10, or `max_iterations` is not an integer of at least 1.

    Examples
    --------
    >>> ALPS(max_iterations=50).max_iterations
    50
    """

    def __init__(self, ridge: float = 1e-2, *, max_iterations: int = 300) -> None:
        if not _LEAST_RIDGE <= ridge < float("inf"):
            raise InvalidArgumentError(f"`ridge` must be finite and at least {_LEAST_RIDGE:g}, got {ridge}.")
        self.ridge = ridge
        self.max_iterations = as_integer(max_iterations, argument="max_iterations", least=1)

    def fit(self, problem: LayerProblem, *, name: str) -> Fit:
        """Choose the mask of one layer and refit; see `ReconstructionMethod.fit`.

        Raises
        ------
        InvalidArgumentError
            If the problem has no `find_mask`.
        """
        if problem.find_mask is None:
            raise InvalidArgumentError(f"`problem` must have a `find_mask` for ALPS, got None for {name}.")
        inputs = problem.gram.shape[1] - problem.has_bias
        matrix = input_gram(problem.gram, inputs, self.ridge)
        scale = matrix.diagonal(dim1=1, dim2=2).sqrt()
        matrix = matrix / scale[:, :, None] / scale[:, None, :]
        weight = problem.weight[:, :, :inputs] * scale[:, None, :]
        mask = problem.mask.clone()
        mask[:, :, :inputs] = _alternate(weight, matrix, problem.find_mask, self.max_iterations)
        fit = LeastSquares(self.ridge).fit(replace(problem, mask=mask), name=name)
        return replace(fit, mask=mask)


def _alternate(weight: Tensor, matrix: Tensor, find_mask: Callable[[Tensor], Tensor], max_iterations: int) -> Tensor:
    """Return the last mask (groups, K, I) for weights of that shape and matrices (groups, I, I) of unit diagonals."""
    largest = weight.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    dense = (weight / largest).to(_DTYPE)
    rho, calm = _FIRST_RHO, 0
    matrix = matrix.to(_DTYPE)
    inverse = _inverse(matrix, rho)
    copy, dual = dense, torch.zeros_like(dense)
    mask, checked = torch.zeros_like(dense, dtype=torch.bool), torch.zeros_like(dense, dtype=torch.bool)
    for iteration in range(1, max_iterations + 1):
        primal = dense + (rho * (copy - dense) - dual) @ inverse
        target = primal + dual / rho
        mask = find_mask(target.to(torch.float64).square())
        copy = target.masked_fill(~mask, 0)
        dual = dual + rho * (primal - copy)
        if iteration % _CHECK_EVERY:
            continue
        changed = int((mask ^ checked).sum()) / max(1, int(mask.sum()))
        calm = calm + _CHECK_EVERY if changed < _CALM else 0
        if changed == 0 or calm >= _CALM_ITERATIONS:
            break
        rho *= next(growth for share, growth in _GROWTH if changed > share)
        inverse = _inverse(matrix, rho)
        checked = mask
    return mask


def _inverse(matrix: Tensor, rho: float) -> Tensor:
    """Return (matrix + rho I)^-1."""
    shifted = matrix + rho * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted))
