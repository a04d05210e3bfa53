"""What happens around an optimizer step: SR-STE's decay before it, the count and the refresh after it.

Sparse-refined straight-through estimation (Zhou et al. 2021) trains the dense W with the gradient of S * W and pulls
pruned weights towards zero:

    W <- W - lr * ( g + decay * (1 - S) * W )

The published code adds the decay inside autograd, where a loss scale divides it, every micro-batch adds it again and a
sum over processes multiplies it. Here it is added once per optimizer step, when the gradient is complete.

References
----------
Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", section 4, equation 9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .mask_state import MaskState

__all__ = ["StepHooks"]


class StepHooks:
    """The two hooks on one optimizer.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    weights : iterable of (torch.nn.Parameter, MaskState)
        What is trained, the weight or its threshold, and the mask. Those that `optimizer` does not hold are skipped,
        so a model may have several optimizers.
    refresh : callable
        Called after a step with the masks that are due.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        weights: Iterable[tuple[nn.Parameter, MaskState]],
        refresh: Callable[[list[MaskState]], object],
    ) -> None:
        self.optimizer, self._weights, self._refresh = optimizer, list(weights), refresh
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()

    def served(self) -> list[tuple[nn.Parameter, MaskState, bool]]:
        """List the weights that the optimizer holds now, and whether it maximises over them."""
        held = {id(parameter): group for group in self.optimizer.param_groups for parameter in group["params"]}
        return [
            (parameter, masked, bool(held[id(parameter)].get("maximize")))
            for parameter, masked in self._weights
            if id(parameter) in held
        ]

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add the decay to the gradients, or make the closure add it each time it computes them."""
        position = next((index for index, value in enumerate(args) if index and callable(value)), None)
        closure = kwargs.get("closure") if position is None else args[position]
        if closure is None:
            self._add_decay()
            return None

        def closure_with_decay() -> Any:
            loss = closure()
            self._add_decay()
            return loss

        if position is None:
            return args, {**kwargs, "closure": closure_with_decay}
        return (*args[:position], closure_with_decay, *args[position + 1 :]), kwargs

    @torch.no_grad()
    def _add_decay(self) -> None:
        """Add to every existing gradient what its mask adds: ``decay * (1 - S) * W`` for SR-STE."""
        # A fused optimizer divides by GradScaler's scale inside its step, so what is added now must be scaled, too.
        scale = getattr(self.optimizer, "grad_scale", None)
        for parameter, masked, maximise in self.served():
            masked.decay_into(parameter, (-1.0 if maximise else 1.0) * (1.0 if scale is None else scale))

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the step, unless a fused optimizer skipped it for infinite gradients, and refresh what is due."""
        skipped = getattr(optimizer, "found_inf", None)
        if skipped is not None and bool(skipped):
            return
        due = [masked for _, masked, _ in self.served() if masked.count_step()]
        if due:
            self._refresh(due)
