"""Least squares on the supports of many rows at once, by conjugate gradients that bound their distance to the minimum.

Method
    For a row w with kept entries s and pruned entries c, and H = G + diag(penalty), the change x of the kept entries is

        x = (H_ss)^-1 H_sc w_c

    All rows share H, so that an iteration is two products of the (K, D) matrix of rows with (D, D) matrices. The
    preconditioner is (H^-1)_ss: the inverse once, cut to each row's support. It is at least (H_ss)^-1, because
    (H^-1)_ss = (H_ss - H_sc H_cc^-1 H_cs)^-1, and equal to it where kept and pruned inputs are uncorrelated.
    H is scaled to a unit diagonal. Iterations are in float32; residuals are then taken in float64, and what is left is
    solved for again (iterative refinement).
Guarantee
    With r the residual, the objective exceeds its minimum by r (H_ss)^-1 r, which the inequality above bounds by
    r (H^-1)_ss r, known in every iteration. A row is done when that is at most `TOLERANCE` of its objective, taken in
    float64, or lost in the rounding of float64.
Cost
    D^3 multiplications once, and 2 K D^2 an iteration. How many iterations depends on the spectrum of H:
    `python -m benchmarks.reconstruction_problems` measures what they take.
When not to use it
    On a few dozen kept entries a factorisation of every row takes less time.

References
----------
Hestenes and Stiefel 1952, "Methods of Conjugate Gradients for Solving Linear Systems". Meng et al. 2024, "ALPS:
Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models", where rows are solved together.
Horn and Johnson 2013, "Matrix Analysis", 7.7.8, for the inequality.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["TOLERANCE", "change_on_support"]

TOLERANCE = 1e-6
"""Objective of a row, relative to its minimum: at most 1 + TOLERANCE."""

_DTYPE = torch.float32  # of the iterations; float64 takes 1.1 to 1.7 times as long from D = 256 on
_ITERATIONS, _ROUNDS = 500, 6
_CHUNK_ENTRIES = 1 << 24  # 64 MB of float32 for each of the matrices of the rows that are solved together
_SAFETY = 0.25  # what the iterations aim at, of the tolerance that is checked in float64
_EPSILON = torch.finfo(torch.float64).eps
_TINY = torch.finfo(torch.float32).tiny


def change_on_support(dense: Tensor, mask: Tensor, gram: Tensor, penalty: Tensor) -> Tensor | None:
    """Return the change of the kept weights that minimises (w - w') G (w - w').T + sum_j penalty_j (w'_j - w_j)^2.

    Parameters
    ----------
    dense : torch.Tensor of float64, shape (K, D)
    mask : torch.Tensor of bool, shape (K, D)
    gram : torch.Tensor of float64, shape (D, D)
    penalty : torch.Tensor of float64, shape (D,)
        At least 0.

    Returns
    -------
    torch.Tensor of float64, shape (K, D), or None
        Zero outside of the mask. None if gram + diag(penalty) is singular, or rounding keeps a row from `TOLERANCE`.
    """
    scaled = gram + torch.diag(penalty)
    scale = scaled.diagonal().rsqrt()
    scaled = scaled * scale[:, None] * scale
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if failed or not torch.isfinite(factor).all():
        return None
    inverse = torch.cholesky_inverse(factor)
    rows = max(1, _CHUNK_ENTRIES // len(gram))
    parts = []
    for weight, kept in zip(torch.split(dense / scale, rows), torch.split(mask, rows), strict=True):
        pruned = weight.masked_fill(kept, 0)
        free = (pruned.square() * (penalty * scale.square())).sum(dim=1)  # the penalty is one of changes only
        part = _refine(pruned, kept, (scaled, inverse), free)
        if part is None:
            return None
        parts.append(part * scale)
    return torch.cat(parts)


def _refine(pruned: Tensor, mask: Tensor, matrices: tuple[Tensor, Tensor], free: Tensor) -> Tensor | None:
    """Solve rows for the pruned weights (K, D), a matrix with a unit diagonal and its inverse, to `TOLERANCE`."""
    matrix, inverse = matrices
    pull = pruned @ matrix
    start = (pull * pruned).sum(dim=1) - free  # the objective without any change
    rounding = len(matrix) * _EPSILON * start
    right = pull.masked_fill(~mask, 0)
    change, residual = torch.zeros_like(right), right
    narrow, support = (matrix.to(_DTYPE), inverse.to(_DTYPE)), mask.to(_DTYPE)
    last = float("inf")
    for _ in range(_ROUNDS):
        step = (residual @ inverse).masked_fill(~mask, 0)
        excess = (residual * step).sum(dim=1)
        objective = start - (change * (right + residual)).sum(dim=1)
        allowed = torch.maximum(TOLERANCE * objective, rounding)
        if (excess <= allowed).all():
            return change
        distance = float((excess / allowed.clamp(min=torch.finfo(torch.float64).tiny)).max())
        if not distance < last / 2:
            break
        last = distance
        unit = torch.where(excess > 0, excess, 1.0).sqrt()[:, None]
        vectors = (residual / unit).to(_DTYPE), (step / unit).to(_DTYPE)
        goals = (objective / unit[:, 0].square()).to(_DTYPE), (rounding / unit[:, 0].square()).to(_DTYPE)
        change = change + unit * _iterate(*vectors, *goals, narrow, support)
        residual = (right - change @ matrix).masked_fill(~mask, 0)
    return None


def _iterate(
    residual: Tensor,
    step: Tensor,
    objective: Tensor,
    rounding: Tensor,
    matrices: tuple[Tensor, Tensor],
    support: Tensor,
) -> Tensor:
    """Run conjugate gradients from residuals whose step is residual (H^-1)_ss; return the change."""
    matrix, inverse = matrices
    change, direction = torch.zeros_like(residual), step
    excess = (residual * step).sum(dim=1)  # 1, or 0 in rows that are done
    for _ in range(_ITERATIONS):
        product = (direction @ matrix).mul_(support)
        length = excess / (direction * product).sum(dim=1).clamp_(min=_TINY)
        change.addcmul_(length[:, None], direction)
        residual.addcmul_(length[:, None], product, value=-1)
        objective = objective - length * excess
        step = (residual @ inverse).mul_(support)
        following = (residual * step).sum(dim=1)
        if (following <= _SAFETY * torch.maximum(TOLERANCE * objective, rounding)).all():
            break
        direction = torch.addcmul(step, (following / excess.clamp(min=_TINY))[:, None], direction)
        excess = following
    return change
