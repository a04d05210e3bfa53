"""The weights that a reconstruction treats: which they are, and how they become what they were if it fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ..choices import Choices
from ..layouts import Layout
from ..mask_rule import MaskRule
from ..selection import WeightChoice
from .attention import Projection
from .gram import SupportedLayer, uses_of
from .operands import Operand

__all__ = ["LayerJob", "Saved", "jobs_of", "unchanged_on_error"]


@dataclass(frozen=True, slots=True, eq=False)
class LayerJob:
    """One weight to prune and refit."""

    name: str
    layer: SupportedLayer
    layout: Layout
    rule: MaskRule
    parameter: str
    """The name of the parameter that the weight is, or of whose stack it is one."""
    index: int | None = None
    """Its place there."""
    others: tuple[SupportedLayer, ...] = ()
    """Layers that share weight and bias with `layer`."""

    @property
    def layers(self) -> tuple[SupportedLayer, ...]:
        """Every layer that has the weight."""
        return (self.layer, *self.others)

    def weight(self) -> Tensor:
        """Return the weight with the outputs first, (K, C / groups, ...)."""
        return self._turned(self.layer.weight.detach())

    def find_mask(self, scores: Tensor) -> Tensor:
        """Return the best mask for scores of the shape of `weight`, on their device."""
        mask = self.rule.find(self._turned(scores), self.layout, name=self.name)
        return self._turned(mask).to(scores.device)

    def tensors(self) -> list[Tensor]:
        """List what is refitted: the weight, and the bias if there is one."""
        return [tensor for tensor in (self.layer.weight, self.layer.bias) if tensor is not None]

    @torch.no_grad()
    def put(self, weight: Tensor, bias: Tensor | None) -> None:
        """Give the layer a new weight, outputs first, and a new bias, if it has one."""
        self.layer.weight.copy_(self._turned(weight))
        if bias is not None and self.layer.bias is not None:
            self.layer.bias.copy_(bias)
        torch.clear_autocast_cache()  # which holds copies of weights in lower precision

    def _turned(self, weight: Tensor) -> Tensor:
        return weight.mT if self.layout.reduction == 0 else weight


def jobs_of(model: nn.Module, choices: Choices) -> list[LayerJob]:
    """Return the jobs of every parameter that is taken."""
    uses = uses_of(model)
    return [job for choice, rule in choices if choice.taken for job in _jobs_of(choice, rule, uses)]


def _jobs_of(choice: WeightChoice, rule: MaskRule, uses: Mapping[int, list[nn.Module]]) -> Iterator[LayerJob]:
    """Yield the job of a parameter, or one for each matrix of a stack."""
    assert choice.layout is not None
    parameter = getattr(choice.module, choice.attribute)
    if choice.layout.stacked:
        layout = replace(choice.layout, stacked=False)
        for index, matrix in enumerate(parameter.detach()):
            yield LayerJob(f"{choice.name}[{index}]", Operand(matrix), layout, rule, choice.name, index)
        return
    layer = cast(SupportedLayer, choice.module)
    if isinstance(choice.module, nn.MultiheadAttention):
        layer = Projection(choice.module, choice.attribute)
    elif choice.layout.declared:
        layer = Operand(parameter)
    others = cast(tuple[SupportedLayer, ...], tuple(uses[id(parameter)][1:]))
    yield LayerJob(choice.name, layer, choice.layout, rule, choice.name, others=others)


class Saved:
    """Copies of tensors, to be put back."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._copies = {tensor: tensor.detach().clone() for tensor in tensors}

    @torch.no_grad()
    def restore(self, tensors: Iterable[Tensor]) -> None:
        """Put some of them back."""
        for tensor in tensors:
            tensor.copy_(self._copies[tensor])
        torch.clear_autocast_cache()  # which holds copies of weights in lower precision


@contextmanager
def unchanged_on_error(jobs: Sequence[LayerJob], others: Iterable[Tensor]) -> Iterator[Saved]:
    """Restore the weights and biases of layers, and other tensors, if anything is raised."""
    tensors = [tensor for job in jobs for tensor in job.tensors()] + list(others)
    saved = Saved(tensors)
    try:
        yield saved
    except BaseException:
        saved.restore(tensors)
        raise
