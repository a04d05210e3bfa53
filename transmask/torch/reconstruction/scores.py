"""What a mask maximises over: the weights' own magnitudes, Wanda's product with the inputs, or the caller's scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ...errors import InvalidArgumentError, InvalidTypeError, unknown_choice

__all__ = ["ScoreFunction", "Scores", "compute_scores"]

ScoreFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Scores of a weight, of its shape, from the weight and the Gram matrices (groups, D, D) of the layer's inputs."""

Scores: TypeAlias = Literal["magnitude", "wanda"] | ScoreFunction


def compute_scores(scores: Scores, weight: Tensor, gram: Tensor, *, name: str) -> Tensor:
    """Score every entry of a weight.

    Parameters
    ----------
    scores : {"magnitude", "wanda"} or callable
        "magnitude" is ``|w|``; "wanda" is ``|w| * ||x||``, with ||x|| the norm of the input that the entry multiplies;
        a callable gets the weight and the Gram matrix.
    weight : torch.Tensor, shape (K, C / groups, ...)
    gram : torch.Tensor of float64, shape (groups, D, D)
        With or without the input of ones for the bias.
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
    Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models", section 3.
    """
    if scores == "magnitude":
        return weight
    if scores == "wanda":
        inputs = weight[0].numel()
        norms = gram.diagonal(dim1=1, dim2=2)[:, :inputs].sqrt()
        by_group = weight.detach().to(torch.float64).reshape(len(gram), -1, inputs) * norms[:, None, :]
        return by_group.reshape(weight.shape)
    if isinstance(scores, str):
        raise unknown_choice("scores", scores, ["magnitude", "wanda"])
    if not callable(scores):
        raise InvalidTypeError(f"`scores` must be 'magnitude', 'wanda' or a callable, got {scores!r}.")
    answer = scores(weight.detach(), gram)
    if not isinstance(answer, Tensor):
        raise InvalidTypeError(f"`scores` must return a torch.Tensor, got {type(answer).__name__} for {name}.")
    if answer.shape != weight.shape:
        raise InvalidArgumentError(
            f"`scores` must return the shape of the weight, {tuple(weight.shape)}, got {tuple(answer.shape)} "
            f"for {name}."
        )
    return answer
