"""Transposable masks for people who use `torch.nn.utils.prune`: `weight_orig`, `weight_mask` and a forward pre-hook."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ...errors import InvalidArgumentError, InvalidTypeError
from ...pattern import Pattern
from ...solvers import Solver
from ..layouts import Layout, layout_of
from ..mask_rule import MaskRule
from ..selection import refuse_other_than_module
from .loading import check_loaded_mask

__all__ = ["TransposablePruning", "transposable"]

_LOADING: WeakSet[nn.Module] = WeakSet()
"""The modules that already have the loading hook."""


class TransposablePruning(prune.BasePruningMethod):
    """The pruning method behind `transposable`.

    Parameters
    ----------
    rule : MaskRule
    layout : Layout
    name : str
        What error messages call the weight.
    """

    PRUNING_TYPE = "global"  # torch hands such methods the whole tensor, in its own shape

    def __init__(self, rule: MaskRule, layout: Layout, name: str) -> None:
        self.rule, self.layout, self.name = rule, layout, name

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask of scores `t` within `default_mask`, in the dtype of `default_mask`.

        Entries that `default_mask` prunes count as zero and stay pruned.
        """
        scores = t.detach()
        if scores.is_floating_point() and scores.dtype.itemsize == 1:
            scores = scores.to(torch.float32)  # torch multiplies no float8 by another type
        mask = self.rule.find(scores * (default_mask != 0), self.layout, name=self.name)
        return mask.to(default_mask.device, default_mask.dtype) * default_mask


def transposable(
    module: nn.Module,
    name: str,
    n: int,
    m: int,
    *,
    constraint: str = "exactly",
    solver: str | Solver = "auto",
    importance_scores: Tensor | None = None,
) -> nn.Module:
    """Prune a weight to N:M in its rows and its columns, in the manner of `torch.nn.utils.prune`.

    The module gets the parameter ``<name>_orig`` and the buffer ``<name>_mask``, and computes with their product.
    ``torch.nn.utils.prune.remove(module, name)`` makes it permanent. It loads the state of a `sparsify` model, and vice
    versa; masks of another pattern are refused, module by module as torch loads them.

    Parameters
    ----------
    module : torch.nn.Module
        Modified in place, unless an error is raised.
    name : str
        The weight, such as "weight".
    n, m : int
        Keep `n` of every `m`.
    constraint : {"exactly", "at_most"}, default "exactly"
        A weight that is already pruned keeps at most N: pruned entries stay pruned.
    solver : str or Solver, default "auto"
        As in `transmask.transposable_mask`.
    importance_scores : torch.Tensor, optional
        The shape of the weight; the mask maximises their magnitudes instead of the weight's.

    Returns
    -------
    torch.nn.Module
        `module`.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError, UnsupportedPatternError
        If an argument cannot be used, or the weight is not a stack of matrices.

    Examples
    --------
    >>> layer = transposable(nn.Linear(8, 8), "weight", 2, 4)
    >>> sorted(dict(layer.named_buffers())), float(layer.weight_mask.mean())
    (['weight_mask'], 0.5)
    """
    rule = MaskRule.of(Pattern(n, m), True, constraint, solver)
    refuse_other_than_module(module, "module")
    weight = getattr(module, name, None) if isinstance(name, str) else None
    if not isinstance(weight, Tensor):
        names = ", ".join(repr(key) for key, _ in module.named_parameters(recurse=False))
        raise InvalidArgumentError(f"`name` must be a parameter of the module, one of {names}, got {name!r}.")
    layout = layout_of(module, name)
    if isinstance(layout, str):
        raise InvalidArgumentError(f"`name` must be a weight that is a stack of matrices, got {name!r}: {layout}.")
    scores = getattr(module, f"{name}_orig", weight) if importance_scores is None else importance_scores
    if not isinstance(scores, Tensor):
        raise InvalidTypeError(f"`importance_scores` must be a torch.Tensor or None, got {type(scores).__name__}.")
    if scores.shape != weight.shape:
        raise InvalidArgumentError(
            f"`importance_scores` must have the shape of the weight, {tuple(weight.shape)}, got {tuple(scores.shape)}."
        )
    rule.check(scores, layout, name=name)  # before torch's apply, which does not roll back a second pruning that fails
    apply: Callable[..., object] = TransposablePruning.apply
    apply(module, name, rule, layout, name, importance_scores=importance_scores)
    if module not in _LOADING:
        _LOADING.add(module)
        module.register_load_state_dict_pre_hook(_load_masks)  # type: ignore[no-untyped-call]
    return module


def _load_masks(module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_: object) -> None:
    """Translate the state of a parametrised weight for a pruned module, and check its mask, before it is loaded.

    Raises
    ------
    CheckpointError
        If a mask is of another pattern or shape.
    """
    for method, rule in _methods(module):
        name = method._tensor_name
        stem, base = f"{prefix}{name}", f"{prefix}parametrizations.{name}."
        if f"{base}original" in state_dict and f"{base}0.mask" in state_dict:
            state_dict[f"{stem}_orig"] = state_dict.pop(f"{base}original")
            state_dict[f"{stem}_mask"] = state_dict.pop(f"{base}0.mask")
            for key in [key for key in state_dict if key.startswith(base)]:
                del state_dict[key]
        if f"{stem}_mask" in state_dict:
            present = getattr(module, f"{name}_mask")
            mask = check_loaded_mask(state_dict[f"{stem}_mask"], present, method.layout, rule, stem)
            state_dict[f"{stem}_mask"] = mask.to(present.dtype)


def _methods(module: nn.Module) -> list[tuple[TransposablePruning, MaskRule]]:
    """List the last pruning of each weight of a module, where it is transposable, and what holds for its mask."""
    last = []
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.PruningContainer) and isinstance(hook[-1], TransposablePruning):
            last.append((hook[-1], replace(hook[-1].rule, constraint="at_most")))
        elif isinstance(hook, TransposablePruning):
            last.append((hook, hook.rule))
    return last
