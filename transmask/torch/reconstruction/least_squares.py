"""The kept weights that reproduce a layer's outputs best: normal equations on the support of every row.

Method
    For a row w with kept entries s and pruned entries c, the minimiser of

        (w - w') G (w - w').T + ridge * |w'_s - w_s|^2

    is w'_s = w_s + (G_ss + ridge * I)^-1 G_sc w_c, by a Cholesky factorisation in float64. The ridge pulls towards the
    original weights, not towards zero, and does not act on the bias.
Guarantee
    The minimum, to rounding. With ridge 0 no weights on the support have a smaller error on the calibration data.
Cost
    |s|^3 / 3 multiplications a row. Rows share nothing, because their supports differ.
When not to use it
    With fewer samples than inputs and no ridge it fits the samples, not the layer. See `LeastSquares.ridge`.

References
----------
Frantar and Alistarh 2022, "Optimal Brain Compression", section 4; Boza 2024, "Fast and Effective Weight Update for
Pruned Large Language Models".
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..._arguments import as_integer
from ...errors import InvalidArgumentError
from .conjugate_gradients import change_on_support
from .layer_problem import Fit, LayerProblem, ReconstructionMethod, penalties

__all__ = ["LeastSquares"]

_CHUNK_ENTRIES = 1 << 24  # 128 MB of float64 for the matrices of the rows that are solved together
_FIRST_RIDGE, _LAST_RIDGE = 1e-10, 1e6
_EPSILON = torch.finfo(torch.float64).eps


class LeastSquares(ReconstructionMethod):
    """Solve the normal equations; see the module's docstring.

    Parameters
    ----------
    ridge : float, default 1e-2
        Relative to the mean of the diagonal of the Gram matrix. If the equations are still singular, it is raised
        tenfold until they are not, with a warning.
    exact_up_to : int, default 64
        Kept entries of a row up to which rows are factorised; 0 leaves all to conjugate gradients.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `ridge` is negative, infinite or NaN, or `exact_up_to` is not an integer of at least 0.

    Examples
    --------
    >>> LeastSquares(ridge=0.1).ridge
    0.1
    """

    def __init__(self, ridge: float = 1e-2, *, exact_up_to: int = 64) -> None:
        if not 0 <= ridge < float("inf"):
            raise InvalidArgumentError(f"`ridge` must be finite and at least 0, got {ridge}.")
        self.ridge = ridge
        self.exact_up_to = as_integer(exact_up_to, argument="exact_up_to", least=0)

    def fit(self, problem: LayerProblem, *, name: str) -> Fit:
        """Solve one layer; see `ReconstructionMethod.fit`.

        Raises
        ------
        InvalidArgumentError
            If the problem is not finite, or its Gram matrix is not positive semidefinite.
        """
        ridge = self.ridge
        while (weight := self._solve(problem, ridge)) is None:
            ridge = max(10 * ridge, _FIRST_RIDGE)
            if ridge > _LAST_RIDGE:
                raise InvalidArgumentError(
                    "`problem` must be finite and its Gram matrix positive semidefinite, got one for "
                    f"{name} that no ridge makes regular."
                )
        if ridge != self.ridge:
            warnings.warn(
                f"the Gram matrix of {name} is singular with ridge {self.ridge:g}: raised to {ridge:g}. "
                "More calibration samples, or a larger ridge, avoid this.",
                RuntimeWarning,
                stacklevel=2,
            )
        return Fit(weight, "" if _is_regular(problem.gram) else f"singular Gram matrix, ridge {ridge:g}")

    def _solve(self, problem: LayerProblem, ridge: float) -> Tensor | None:
        """Return the refitted weights, or None if the equations are singular with this ridge."""
        weight = problem.masked()
        added = penalties(problem.gram, problem.gram.shape[1] - problem.has_bias, ridge)
        for answer, *group in zip(weight, problem.weight, problem.mask, problem.gram, added, strict=True):
            change = change_on_support(*group) if int(group[1].sum(dim=1).max()) > self.exact_up_to else None
            if change is None:
                change = _factorised_change(*group)
            if change is None:
                return None
            answer += change
        return weight


def _is_regular(matrices: Tensor) -> bool:
    """Tell whether symmetric (B, D, D) matrices are positive definite beyond rounding."""
    return bool(_factorise(matrices)[1])


def _factorise(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Cholesky factors of (B, D, D) matrices, and whether every pivot is more than rounding."""
    factor, failed = torch.linalg.cholesky_ex(matrices)
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    smallest = matrices.shape[-1] * _EPSILON * matrices.diagonal(dim1=1, dim2=2)
    return factor, ~failed.any() & (pivots > smallest).all()


def _factorised_change(dense: Tensor, mask: Tensor, gram: Tensor, penalty: Tensor) -> Tensor | None:
    """Return the change of the kept weights of one group (K, D), row by row; None if the equations are singular."""
    sides = mask.sum(dim=1)
    width = int(sides.max())
    answer = torch.zeros_like(dense)
    pull = dense.masked_fill(mask, 0) @ gram
    support = torch.argsort(mask.to(torch.int8), dim=1, descending=True, stable=True)[:, :width]
    used = torch.arange(width, device=mask.device) < sides[:, None]
    for rows in torch.split(torch.arange(len(mask), device=mask.device), max(1, _CHUNK_ENTRIES // max(1, width**2))):
        index, real = support[rows], used[rows]
        matrix = gram[index[:, :, None], index[:, None, :]]
        matrix.masked_fill_(~(real[:, :, None] & real[:, None, :]), 0)
        matrix.diagonal(dim1=1, dim2=2).add_(torch.where(real, penalty[index], 1.0))
        factor, regular = _factorise(matrix)
        if not regular:
            return None
        right = pull[rows].gather(1, index).masked_fill(~real, 0)
        change = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
        answer[rows] = answer[rows].scatter_add(1, index, change)
    return answer
