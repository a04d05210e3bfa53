"""Run a model on calibration data without changing its modes, and say what is wrong with the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import InvalidArgumentError, InvalidTypeError

__all__ = ["Calibration", "ForwardFunction", "batch_norm_layers", "reestimate_batch_norm"]

ForwardFunction: TypeAlias = Callable[[nn.Module, Any], Any]
"""Runs a model on one batch."""


class Calibration:
    """Batches on which a model runs, more than once.

    Parameters
    ----------
    batches : iterable
        Of tensors, of sequences whose first item is the input (as a DataLoader gives), or of mappings of keyword
        arguments. Not a generator: it is iterated more than once.
    forward : callable, optional
        ``forward(model, batch)`` for batches of another form.

    Raises
    ------
    InvalidTypeError
        If `batches` cannot be iterated more than once.
    """

    def __init__(self, batches: Iterable[Any], forward: ForwardFunction | None = None) -> None:
        if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | Tensor | Mapping):
            raise InvalidTypeError(
                f"`calibration` must be an iterable of batches, got {type(batches).__name__}. Pass [batch] for one."
            )
        if isinstance(batches, Iterator):
            raise InvalidTypeError(
                f"`calibration` must be iterable more than once, got a {type(batches).__name__}. Pass list(...) of it."
            )
        self._batches = batches
        self._forward = forward or _run_batch

    @torch.no_grad()
    def run(self, model: nn.Module, *, only_first: bool = False, batch_norm: bool = False) -> None:
        """Run the model on every batch, in evaluation mode.

        Parameters
        ----------
        model : torch.nn.Module
            Its training flags are restored when this returns or raises.
        only_first : bool
            Stop after the first batch.
        batch_norm : bool
            Make batch normalisation use and track the statistics of the batches.

        Raises
        ------
        InvalidArgumentError
            If there is no batch, or the model cannot run on one.
        """
        count = 0
        with _modes(model, batch_norm):
            for batch in self._batches:
                try:
                    self._forward(model, batch)
                except (RuntimeError, TypeError, ValueError, IndexError) as error:
                    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                    raise InvalidArgumentError(
                        f"`calibration` must hold batches that the model can run on, got batch {count}, "
                        f"{_describe(batch)}, on which it fails: {reason}. Pass `forward` if batches need unpacking."
                    ) from error
                count += 1
                if only_first:
                    break
        if count == 0:
            raise InvalidArgumentError("`calibration` must hold at least one batch, got none.")


def reestimate_batch_norm(model: nn.Module, calibration: Calibration) -> int:
    """Replace the running statistics of batch normalisation by averages over the calibration data.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.
    calibration : Calibration

    Returns
    -------
    int
        How many layers were re-estimated.

    Raises
    ------
    InvalidArgumentError
        As `Calibration.run`.

    References
    ----------
    Hubara et al. 2021, "Accelerated Sparse Neural Training", section 5, batch-norm tuning.
    """
    layers = batch_norm_layers(model)
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over the batches
        if layers:
            calibration.run(model, batch_norm=True)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return len(layers)


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """List the batch-norm layers that keep running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@contextmanager
def _modes(model: nn.Module, batch_norm: bool) -> Iterator[None]:
    """Set evaluation mode, except for batch normalisation if asked, and restore every flag."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for module in flags:
            if batch_norm and isinstance(module, _BatchNorm):
                module.training = True
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def _run_batch(model: nn.Module, batch: Any) -> Any:
    """Run the model on a tensor, on the first item of a sequence, or on keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return model(batch[0])
    return model(batch)


def _describe(batch: Any) -> str:
    """Say what a batch is, by shape where it has one."""
    first = batch[0] if isinstance(batch, Sequence) and batch else batch
    if isinstance(first, Tensor):
        return f"of shape {tuple(first.shape)}"
    return f"a {type(first).__name__}"
