"""Train the kept weights of a block of layers, its biases and norms until its outputs are those of the dense block.

Method
    Layers are fitted one by one, each to its own outputs; what they do together is not. With x the inputs of a block in
    the pruned model and y the outputs of the same block in the dense model, Adam minimises

        sum over samples  | block(x) - y |^2

    over the kept weights of the masks and everything with fewer than two axes, such as biases and norms, a batch a
    step, at a rate that falls to 0 along half a cosine. The last batch is held out: the best iterate on it is kept. No
    label and nothing beyond the block is needed. Weights of half precision are trained as float32 and rounded wherever
    the block computes.
Guarantee
    The error on the batch held out does not grow.
Cost
    A forward and a backward pass of one block over one batch, a step; for its parameters, five copies in float32.
When not to use it
    With few samples: nothing but the batch held out keeps a block from fitting the noise.

References
----------
Hubara et al. 2021, "Accelerated Sparse Neural Training", section 5, for layers. Makni, Meng, Mazumder 2025, "3BASiL: An
Algorithmic Framework for Sparse plus Low-Rank Compression of LLMs", for the outputs of transformer blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import InvalidArgumentError

__all__ = ["BlockMatch", "copied", "find_blocks", "find_tensor", "match_block"]

_LEARNING_RATE, _CHECKS = 2e-4, 20


@dataclass(frozen=True, slots=True)
class BlockMatch:
    """What the training of one block reached.

    Attributes
    ----------
    error_before, error_after : float
        Squared error of the outputs on the batch held out, relative to the squared outputs of the dense block.
    step : int
        After which step; 0 if the weights stayed as they were.
    """

    error_before: float
    error_after: float
    step: int


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Find the repeated modules of a model, such as its transformer layers.

    They are the outermost modules in a ModuleList or a Sequential that have modules of their own and parameters, and
    whose class stands in such places at least twice.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    dict of str to torch.nn.Module
        By name, in the order of the model; empty if nothing repeats.

    Examples
    --------
    >>> layer = nn.TransformerEncoderLayer(8, 2)
    >>> list(find_blocks(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)))
    ['layers.0', 'layers.1']
    """
    candidates = {
        f"{name}.{child}" if name else child: module
        for name, container in model.named_modules()
        if isinstance(container, nn.ModuleList | nn.Sequential)
        for child, module in container.named_children()
        if any(True for _ in module.children()) and any(True for _ in module.parameters())
    }
    kinds = [type(module) for module in candidates.values()]
    repeated = {name: module for name, module in candidates.items() if kinds.count(type(module)) > 1}
    blocks: dict[str, nn.Module] = {}
    for name, module in repeated.items():  # a container comes before what it holds
        if not any(name.startswith(f"{outer}.") for outer in blocks):
            blocks[name] = module
    return blocks


def match_block(
    block: nn.Module,
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
    outputs: Sequence[Any],
    masks: Mapping[str, Tensor],
    *,
    steps: int,
    row_weights: Sequence[Tensor | None] | None = None,
) -> BlockMatch:
    """Train a block on the outputs of the dense block; see the module's docstring.

    Parameters
    ----------
    block : torch.nn.Module
        Modified in place; unchanged if an error is raised. Runs in evaluation mode, and calls its own hooks.
    calls : sequence of (tuple, dict)
        The positional and keyword arguments of one call for every batch, with nothing that keeps state, such as a cache
        of keys and values. The last call is held out if there are several.
    outputs : sequence
        What the dense block answered: tensors, or sequences or mappings whose first tensor counts.
    masks : mapping of str to torch.Tensor of bool
        For parameters by their names in the block. What they prune is 0 and stays 0. Other matrices are not trained:
        their zeros may be the mask of an earlier run.
    steps : int
        At least 1; a few hundred.
    row_weights : sequence of torch.Tensor or None, optional
        How much each row of a batch counts, of the shape of its outputs without the last axis; None for all alike.

    Returns
    -------
    BlockMatch

    Raises
    ------
    InvalidArgumentError
        If there is no call, or the outputs are not finite or not of the shape of those of the dense block.
    """
    if not calls:
        raise InvalidArgumentError("`calls` must hold at least one call, got none.")
    weights = [None] * len(calls) if row_weights is None else row_weights
    samples = [
        _Sample(*call, _widened(_first_tensor(output).detach()), rows)
        for call, output, rows in zip(calls, outputs, weights, strict=True)
    ]
    held_out, training = samples[-1], samples[:-1] or samples
    with _evaluating(block):
        trainer = _Trainer(block, masks, steps)
        before = best = trainer.error(held_out)
        if not math.isfinite(before):
            raise InvalidArgumentError("`block` must give finite outputs on `calls`, got NaN or infinity.")
        kept, kept_step = trainer.values(), 0
        order: list[int] = []
        generator = torch.Generator().manual_seed(0)
        for step in range(1, steps + 1):
            order = order or torch.randperm(len(training), generator=generator).tolist()
            trainer.step(training[order.pop()])
            if step % max(1, steps // _CHECKS) == 0 or step == steps:
                error = trainer.error(held_out)
                if error < best:
                    best, kept, kept_step = error, trainer.values(), step
    with torch.no_grad():
        for name, value in kept.items():
            block.get_parameter(name).copy_(value)
    torch.clear_autocast_cache()  # which holds copies of weights in lower precision
    return BlockMatch(before, best, kept_step)


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """One call of a block, and what the dense block answered to it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Tensor
    row_weights: Tensor | None


class _Trainer:
    """Adam on copies of the parameters of a block, which itself stays as it is."""

    def __init__(self, block: nn.Module, masks: Mapping[str, Tensor], steps: int) -> None:
        self._block = block
        self._masks = {name: mask.to(block.get_parameter(name).device) for name, mask in masks.items()}
        self._dtypes = {
            name: value.dtype
            for name, value in block.named_parameters()
            if name in masks or (value.ndim < 2 and value.is_floating_point())
        }
        self._values = {name: _widened(block.get_parameter(name).detach()).requires_grad_() for name in self._dtypes}
        self._optimizer = torch.optim.Adam(self._values.values(), lr=_LEARNING_RATE)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, steps)

    def values(self) -> dict[str, Tensor]:
        """Copy the present values of the parameters."""
        return {name: value.detach().clone() for name, value in self._values.items()}

    @torch.no_grad()
    def error(self, sample: _Sample) -> float:
        """Return the relative error of the outputs."""
        return float(self._loss(sample))

    @torch.enable_grad()
    def step(self, sample: _Sample) -> None:
        """Take one step on one batch."""
        self._optimizer.zero_grad()
        torch.autograd.backward(self._loss(sample))
        for name, mask in self._masks.items():
            gradient = self._values[name].grad
            if gradient is not None:  # Adam leaves what never had a gradient
                gradient.masked_fill_(~mask, 0)
        self._optimizer.step()
        self._schedule.step()

    def _loss(self, sample: _Sample) -> Tensor:
        """Return the squared error of the outputs relative to the squared outputs of the dense block."""
        present = {name: value.to(self._dtypes[name]) for name, value in self._values.items()}
        output = _first_tensor(functional_call(self._block, present, copied(sample.args), copied(sample.kwargs)))
        target = sample.target.to(output.device)
        if output.shape != target.shape:
            raise InvalidArgumentError(
                f"`outputs` must have the shape of those of the block, {tuple(output.shape)}, got "
                f"{tuple(target.shape)}."
            )
        squares = torch.stack([(output.to(target.dtype) - target).square(), target.square()])
        if sample.row_weights is not None:
            squares = squares * sample.row_weights.to(squares)[..., None]
        error, scale = squares.flatten(1).sum(dim=1)
        relative: Tensor = error / torch.where(scale > 0, scale, 1.0)
        return relative


def _widened(tensor: Tensor) -> Tensor:
    """Copy a tensor, at least as float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


def copied(value: Any) -> Any:
    """Copy the tensors in tuples, lists and dicts: a block may write to what it is called with."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(map(copied, value))
    return {key: copied(part) for key, part in value.items()} if type(value) is dict else value


def find_tensor(output: Any) -> Tensor | None:
    """Return the first tensor of what a module answers, or None if there is none."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def _first_tensor(output: Any) -> Tensor:
    found = find_tensor(output)
    if found is None:
        raise InvalidArgumentError(f"`outputs` must hold a tensor, got {type(output).__name__} without one.")
    return found


@contextmanager
def _evaluating(block: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and restore every flag."""
    flags = {module: module.training for module in block.modules()}
    block.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
