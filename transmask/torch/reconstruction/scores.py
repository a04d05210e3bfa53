"""What a mask maximises over: magnitudes, Wanda's products, the optimal brain surgeon's saliency, the caller's scores.

Along a group of a plain mask, w^2 |x|^2 ranks like |w| |x|. A transposable mask weighs entries of different rows and
columns against each other: there the sum of the squares is what the pruned entries cost if inputs are uncorrelated, and
the sum of the products is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ...errors import InvalidArgumentError, InvalidTypeError, unknown_choice
from .layer_problem import input_gram

__all__ = ["ScoreFunction", "Scores", "compute_scores"]

ScoreFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Scores of a weight, of its shape, from the weight and the Gram matrices (groups, D, D) of the layer's inputs."""

Scores: TypeAlias = Literal["magnitude", "wanda", "obs"] | ScoreFunction

_NAMES = ["magnitude", "wanda", "obs"]
_RIDGE = 0.01  # SparseGPT's


def compute_scores(scores: Scores, weight: Tensor, gram: Tensor, *, squared: bool, name: str) -> Tensor:
    """Score every entry of a weight.

    Parameters
    ----------
    scores : {"magnitude", "wanda", "obs"} or callable
        "magnitude" is ``|w|``; "wanda" is ``|w| * ||x||``, with ||x|| the norm of the input that the entry multiplies,
        or its square; "obs", the optimal brain surgeon's saliency, is ``w^2 / [H^-1]_jj``, with H the Gram matrix and 1
        % of its mean diagonal: what pruning this entry alone costs after the best update of all others. A callable gets
        the weight and the Gram matrix.
    weight : torch.Tensor, shape (K, C / groups, ...)
    gram : torch.Tensor of float64, shape (groups, D, D)
        With or without the input of ones for the bias.
    squared : bool
        Whether "wanda" is squared, as transposable masks want it.
    name : str
        What error messages call the weight.

    Returns
    -------
    torch.Tensor, the shape of `weight`

    Raises
    ------
    InvalidTypeError
        If `scores` is neither a name nor callable, or the callable does not return a tensor.
    InvalidArgumentError
        If the name is unknown, or the callable returns another shape.

    References
    ----------
    Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models", section 3. Frantar and
    Alistarh 2023, "SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot", section 3: its code
    divides by the squared diagonal of a Cholesky factor of H^-1, which is [H^-1]_jj with the inputs before j taken out.
    Without an order of the inputs it is the diagonal itself, as in Hassibi and Stork 1992, "Second Order Derivatives
    for Network Pruning: Optimal Brain Surgeon".
    """
    if scores == "magnitude":
        return weight
    if scores in ("wanda", "obs"):
        by_group = weight.detach().to(torch.float64).reshape(len(gram), -1, weight[0].numel())
        inputs = by_group.shape[2]
        if scores == "obs":
            products = by_group / _inverse_diagonal(gram, inputs).sqrt()[:, None, :]
        else:
            products = by_group * gram.diagonal(dim1=1, dim2=2)[:, None, :inputs].sqrt()
        if squared or scores == "obs":
            largest = products.abs().max()  # the unit in which squares do not overflow
            products = (products / torch.where(largest > 0, largest, 1.0)).square()
        return products.reshape(weight.shape)
    if isinstance(scores, str):
        raise unknown_choice("scores", scores, _NAMES)
    if not callable(scores):
        raise InvalidTypeError(f"`scores` must be one of {', '.join(map(repr, _NAMES))} or a callable, got {scores!r}.")
    answer = scores(weight.detach(), gram)
    if not isinstance(answer, Tensor):
        raise InvalidTypeError(f"`scores` must return a torch.Tensor, got {type(answer).__name__} for {name}.")
    if answer.shape != weight.shape:
        raise InvalidArgumentError(
            f"`scores` must return the shape of the weight, {tuple(weight.shape)}, got {tuple(answer.shape)} "
            f"for {name}."
        )
    return answer


def _inverse_diagonal(gram: Tensor, inputs: int) -> Tensor:
    """Return the diagonals (groups, inputs) of the inverses of Gram matrices with a ridge, the bias eliminated."""
    matrix = input_gram(gram, inputs, _RIDGE)
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix)).diagonal(dim1=1, dim2=2)
