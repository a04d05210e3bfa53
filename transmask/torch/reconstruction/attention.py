"""Let hooks see the inputs of the projections of `nn.MultiheadAttention`, which torch computes in one function.

While `observable` lasts, the module hands its queries, keys and values to a `Projection`, computes as it always does
but with the identity in place of its output projection, and applies that as the linear layer it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = ["Projection", "can_be_observed", "observable"]

_INPUTS = {
    "in_proj_weight": ("query", "key", "value"),
    "q_proj_weight": ("query",),
    "k_proj_weight": ("key",),
    "v_proj_weight": ("value",),
}


class Projection(nn.Module):
    """A weight of an attention layer as a layer of its own, which computes nothing: its hooks see what is projected.

    It is called with a tensor of shape (1 or 3, B, T, D): the queries, keys and values, or one for all of them. D is
    the inputs, and an input of ones if there is a bias. Where sequences differ in length, shorter ones end in zeros,
    without the one, which add nothing to a Gram matrix.

    Parameters
    ----------
    attention : torch.nn.MultiheadAttention
    attribute : str
        The weight's name there.

    Attributes
    ----------
    weight : torch.nn.Parameter
        That of `attention`.
    bias : torch.Tensor or None
        The entries of its bias that belong to the weight.
    """

    weight: nn.Parameter
    bias: Tensor | None

    def __init__(self, attention: nn.MultiheadAttention, attribute: str) -> None:
        super().__init__()
        self.attention, self.attribute = (attention,), attribute  # in a tuple: not a module of this one
        self.weight = getattr(attention, attribute)
        bias: Tensor | None = attention.in_proj_bias
        if bias is not None and attribute != "in_proj_weight":
            bias = bias.detach().chunk(3)[list(_INPUTS).index(attribute) - 1]
        self.__dict__["bias"] = bias

    def forward(self, value: Tensor) -> None:
        """Compute nothing."""

    def observe(self, inputs: dict[str, Tensor]) -> None:
        """Show the inputs of a call of the attention layer to the hooks, unless the layer will complain about them."""
        attention = self.attention[0]
        values = [inputs[name] for name in _INPUTS[self.attribute]]
        if all(value is values[0] for value in values):
            values = values[:1]
        if values[0].is_nested:
            values = [torch.cat(list(value.unbind()))[None] for value in values]
        elif values[0].ndim == 3 and not attention.batch_first:
            values = [value.transpose(0, 1) for value in values]
        values = [value[None] if value.ndim == 2 else value for value in values]
        if any(value.ndim != 3 or value.shape[2] != self.weight.shape[1] for value in values):
            return
        if self.bias is not None:
            values = [pad(value, (0, 1), value=1.0) for value in values]
        longest = max(value.shape[1] for value in values)
        self(torch.stack([pad(value, (0, 0, 0, longest - value.shape[1])) for value in values]))


def can_be_observed(module: nn.Module) -> bool:
    """Tell whether a module computes as torch's attention does; a subclass may not."""
    return type(module) is nn.MultiheadAttention and "forward" not in vars(module)


@contextmanager
def observable(model: nn.Module, layers: Iterable[nn.Module]) -> Iterator[None]:
    """Have the attention layers of a model call those of `layers` that are theirs: projections, output projections."""
    known: dict[nn.Module, list[Projection]] = {}
    others = set()
    for layer in layers:
        if isinstance(layer, Projection):
            known.setdefault(layer.attention[0], []).append(layer)
        else:
            others.add(layer)
    with ExitStack() as stack:
        for module in model.modules():
            if not (isinstance(module, nn.MultiheadAttention) and can_be_observed(module)):
                continue
            if module in known or module.out_proj in others:
                module.forward = _observed(module, known.get(module, []))  # type: ignore[method-assign]
                stack.callback(vars(module).pop, "forward")
        yield


def _observed(attention: nn.MultiheadAttention, projections: list[Projection]) -> Any:
    """Return what stands in for the forward of an attention layer."""

    def forward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        for projection in projections:
            projection.observe({"query": query, "key": key, "value": value})
        project = attention.out_proj
        identity = _identity(project)
        attention.out_proj = identity  # type: ignore[assignment]
        try:
            mixed, weights = nn.MultiheadAttention.forward(attention, query, key, value, *args, **kwargs)
        finally:
            attention.out_proj = project
        return project(mixed), weights

    return forward


def _identity(project: nn.Linear) -> nn.Linear:
    """Return a linear layer that changes nothing; with a bias, because torch's fused attention asks for one."""
    width, like = project.in_features, project.weight.detach()
    identity = nn.Linear(width, width, device="meta")
    identity.weight = nn.Parameter(torch.eye(width, dtype=like.dtype, device=like.device), requires_grad=False)
    identity.bias = nn.Parameter(like.new_zeros(width), requires_grad=False)
    return identity
