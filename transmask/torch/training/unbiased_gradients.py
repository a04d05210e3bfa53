"""Prune the gradients of outputs to N:M without bias, so that the product that gives the weights' gradients is sparse.

Method
    A linear layer computes dW = dY.T X. Of every M consecutive tokens, N entries of each column of dY are drawn, and
    each is divided by its probability p: what is drawn has the expectation of what it was drawn from. Its variance,
    sum of y^2 (1 / p - 1), is least where p = min(1, c |y|) with the c for which the probabilities add up to N. One
    uniform number a group draws them all (systematic sampling).
Guarantee
    Unbiased, with the least variance of all unbiased estimates that keep N of M and scale what they keep.
Cost
    A sort of every group. Where no hardware multiplies sparse matrices, this is slower: it shows what training loses.
When not to use it
    For the gradients of inputs, dX = dY W: there a transposable mask makes W sparse.

References
----------
Chmiel, Hubara, Banner, Soudry 2023, "Minimum Variance Unbiased N:M Sparsity for the Neural Gradients", section 4.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...errors import InvalidArgumentError, InvalidTypeError
from ...pattern import Pattern, PatternLike
from ..selection import refuse_other_than_module

__all__ = ["UnbiasedGradients", "draw_unbiased", "prune_gradients"]


def draw_unbiased(
    values: Tensor, pattern: PatternLike, *, dim: int = -1, generator: torch.Generator | None = None
) -> Tensor:
    """Draw an N:M sparse tensor whose expectation is `values`.

    Parameters
    ----------
    values : torch.Tensor of floats
        Any shape with the axis `dim`, on any device.
    pattern : Pattern, str or tuple of two int
        At most N of every M consecutive entries along `dim` are kept; a last group of fewer than M keeps up to N, too.
    dim : int, default -1
    generator : torch.Generator, optional
        On the device of `values`. Default: torch's own.

    Returns
    -------
    torch.Tensor
        The shape, dtype and device of `values`. A group with an infinity or NaN stays as it is.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `values` holds no floats or has no such axis, or the pattern keeps nothing.

    References
    ----------
    Chmiel et al. 2023, section 4.

    Examples
    --------
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <...>
    >>> values = torch.tensor([1.0, -2.0, 3.0, 0.0])
    >>> draws = torch.stack([draw_unbiased(values, "2:4") for _ in range(4000)])
    >>> int((draws != 0).sum(1).max())
    2
    >>> bool(((draws.mean(0) - values).abs() < 0.1).all())
    True
    """
    chosen = _pattern_of(pattern)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise InvalidTypeError(f"`values` must be a tensor of floats, got {kind}. Convert it with torch.as_tensor.")
    if not -values.ndim <= dim < values.ndim:
        raise InvalidArgumentError(f"`dim` must be an axis of `values`, got {dim} for {values.ndim} axes.")
    lines = values.movedim(dim, -1)
    missing = -lines.shape[-1] % chosen.m
    groups = nn.functional.pad(lines, (0, missing)).unflatten(-1, (-1, chosen.m))  # type: ignore[no-untyped-call]
    drawn = _draw(groups.float() if groups.dtype.itemsize < 4 else groups, chosen.n, generator).to(values.dtype)
    return drawn.flatten(-2)[..., : lines.shape[-1]].movedim(-1, dim)


def _pattern_of(pattern: PatternLike) -> Pattern:
    chosen = Pattern.of(pattern)
    if chosen.n == 0:
        raise InvalidArgumentError(f"`pattern` must keep at least 1 entry, got {str(chosen)!r}. For example '2:4'.")
    return chosen


def _draw(groups: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Draw N entries of each group along the last axis."""
    if groups.numel() == 0:
        return groups
    largest = groups.abs().amax(-1, keepdim=True)
    sizes = groups.abs() / torch.where(largest > 0, largest, 1)  # whose sums neither overflow nor vanish
    descending = sizes.sort(-1, descending=True).values
    rests = descending.flip(-1).cumsum(-1).flip(-1)  # of entry k: the sum of those from it on
    left = torch.arange(n, 0, -1, device=groups.device)  # how many are drawn of those if the larger ones are certain
    certain = (descending[..., :n] * left > rests[..., :n]).sum(-1, keepdim=True).clamp(max=n - 1)
    threshold = rests.gather(-1, certain) / (n - certain)  # 1 / c
    probabilities = (sizes / torch.where(threshold > 0, threshold, 1)).clamp(max=1)
    start = torch.rand(threshold.shape, generator=generator, device=groups.device, dtype=sizes.dtype)
    counted = (probabilities.cumsum(-1) - start).floor().clamp(max=n - 1)  # whatever is rounded, N in all
    before = nn.functional.pad(counted[..., :-1], (1, 0), value=-1.0)
    drawn = torch.where(counted > before, groups.sign() * torch.maximum(sizes, threshold) * largest, 0)
    return torch.where(largest.isfinite(), drawn, groups)


class _SparseProduct(torch.autograd.Function):
    """A linear layer's output as it is, with the gradient of its weight from a sparse gradient of the output."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor | None, pattern: Pattern
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.pattern = pattern
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        _, needs_inputs, needs_weight, needs_bias, _ = ctx.needs_input_grad
        tokens = gradient.flatten(0, -2)
        of_inputs = of_weight = of_bias = None
        if needs_inputs:
            of_inputs = (gradient @ weight.to(gradient.dtype)).to(inputs.dtype)
        if needs_weight:
            drawn = draw_unbiased(tokens, ctx.pattern, dim=0)
            of_weight = (drawn.mT @ inputs.flatten(0, -2).to(gradient.dtype)).to(weight.dtype)
        if needs_bias:
            of_bias = tokens.sum(0)
        return None, of_inputs, of_weight, of_bias, None


def _hook(layer: nn.Linear, inputs: tuple[Tensor], output: Tensor, *, pattern: Pattern) -> Tensor:
    """Put the product behind a layer; the graph of the layer itself is let go."""
    return cast(Tensor, _SparseProduct.apply(output.detach(), inputs[0], layer.weight, layer.bias, pattern))  # type: ignore[no-untyped-call]


class UnbiasedGradients:
    """What `prune_gradients` has put on a model.

    Attributes
    ----------
    names : tuple of str
        The linear layers.
    """

    def __init__(self, names: tuple[str, ...], handles: list[RemovableHandle]) -> None:
        self.names, self._handles = names, handles

    def remove(self) -> None:
        """Have the gradients be as they were; a second call does nothing."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"UnbiasedGradients({', '.join(self.names)})"


def prune_gradients(model: nn.Module, pattern: PatternLike = "2:4") -> UnbiasedGradients:
    """Have linear layers compute the gradients of their weights from N:M sparse gradients of their outputs.

    The gradients of inputs and biases stay as they are. With masks on the weights, every product of a training step
    has a sparse factor: S * W in the forward pass and for the inputs, and what is drawn here for the weights.

    Parameters
    ----------
    model : torch.nn.Module
        With or without masks, or a part of a model: every linear layer in it is treated but the output projection of a
        MultiheadAttention, which torch does not call as a layer.
    pattern : Pattern, str or tuple of two int, default "2:4"
        Along the rows of each layer's input, such as tokens, all axes but the last taken together.

    Returns
    -------
    UnbiasedGradients
        Its ``remove()`` ends it, for instance before the last steps of training; it is a context manager, too.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `model` is not a module or has no linear layer, or the pattern cannot be used.

    References
    ----------
    Chmiel et al. 2023, "Minimum Variance Unbiased N:M Sparsity for the Neural Gradients".

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> prune_gradients(model)
    UnbiasedGradients(0, 2)
    """
    refuse_other_than_module(model, "model")
    hook = partial(_hook, pattern=_pattern_of(pattern))
    uncalled = {module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in uncalled
    }
    if not layers:
        raise InvalidArgumentError(
            f"`model` must have a linear layer, got a {type(model).__name__} without any that torch calls."
        )
    # The first of its hooks: others see the output as it goes on.
    return UnbiasedGradients(
        tuple(layers), [layer.register_forward_hook(hook, prepend=True) for layer in layers.values()]
    )
