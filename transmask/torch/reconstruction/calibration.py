"""Run a model on calibration data without changing its modes, and say what is wrong with the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import InvalidArgumentError, InvalidTypeError, TransmaskError

__all__ = ["Calibration", "ForwardFunction", "RowWeights", "batch_norm_layers", "evaluating", "reestimate_batch_norm"]

ForwardFunction: TypeAlias = Callable[[nn.Module, Any], Any]
"""Runs a model on one batch."""

RowWeights: TypeAlias = Callable[[Any], Tensor | None]
"""Says how much each row of a batch counts."""


class Calibration:
    """Batches on which a model runs, more than once.

    Parameters
    ----------
    batches : iterable
        Of tensors, of sequences whose first item is the input (as a DataLoader gives), or of mappings of keyword
        arguments. Not a generator: it is iterated more than once.
    forward : callable, optional
        ``forward(model, batch)`` for batches of another form.
    row_weights : callable, optional
        ``row_weights(batch)`` returns how much each row of a batch counts, as a tensor whose shape is that of the
        inputs of layers without their last axis, such as (sequences, tokens); or None if every row counts. By default
        it is the ``attention_mask`` of a mapping, if that has two axes: what it marks as padding does not count.
    within : callable, optional
        Makes the context in which the model runs on a batch.

    Raises
    ------
    InvalidTypeError
        If `batches` cannot be iterated more than once, or `row_weights` cannot be called.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        forward: ForwardFunction | None = None,
        row_weights: RowWeights | None = None,
        *,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | Tensor | Mapping):
            raise InvalidTypeError(
                f"`calibration` must be an iterable of batches, got {type(batches).__name__}. Pass [batch] for one."
            )
        if isinstance(batches, Iterator):
            raise InvalidTypeError(
                f"`calibration` must be iterable more than once, got a {type(batches).__name__}. Pass list(...) of it."
            )
        if not (row_weights is None or callable(row_weights)):
            raise InvalidTypeError(f"`row_weights` must be a callable or None, got {row_weights!r}.")
        self._batches = batches
        self._forward = forward or _run_batch
        self._row_weights = row_weights
        self._within = within

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches.

        Raises
        ------
        InvalidArgumentError
            If there are none, or one has no rows.
        """
        count = 0
        for batch in self._batches:
            if self._forward is _run_batch and _has_no_rows(batch):
                raise InvalidArgumentError(
                    f"`calibration` must hold batches with at least one row, got batch {count}, {_describe(batch)}."
                )
            yield batch
            count += 1
        if count == 0:
            raise InvalidArgumentError("`calibration` must hold at least one batch, got none.")

    def forward(self, model: nn.Module, batch: Any, index: int) -> None:
        """Run the model on one batch.

        Raises
        ------
        InvalidArgumentError
            If that raises an Exception; the message says which batch it was.
        """
        try:
            with self._within():
                self._forward(model, batch)
        except TransmaskError:
            raise  # of a weight that cannot be treated
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InvalidArgumentError(
                f"`calibration` must hold batches that the model can run on, got batch {index}, "
                f"{_describe(batch)}, on which it fails: {reason}. Pass `forward` if batches need unpacking."
            ) from error

    def row_weights(self, batch: Any, index: int) -> Tensor | None:
        """Return how much each row of a batch counts, or None if every row does.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If `row_weights` returns anything else, or numbers that are negative, infinite or NaN.
        """
        if self._row_weights is None:
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            return mask.ne(0) if isinstance(mask, Tensor) and mask.ndim == 2 else None
        weights = self._row_weights(batch)
        if weights is None:
            return None
        if not isinstance(weights, Tensor):
            raise InvalidTypeError(
                f"`row_weights` must return a torch.Tensor or None, got {type(weights).__name__} for batch {index}."
            )
        if not (torch.isfinite(weights) & (weights >= 0)).all():
            raise InvalidArgumentError(
                f"`row_weights` must return finite numbers of at least 0, got others for batch {index}."
            )
        return weights

    @torch.no_grad()
    def run(
        self, model: nn.Module, *, batch_norm: bool = False, before: Callable[[Tensor | None], None] | None = None
    ) -> int:
        """Run the model on every batch, in evaluation mode.

        Parameters
        ----------
        model : torch.nn.Module
            Its training flags are restored when this returns or raises.
        batch_norm : bool
            Make batch normalisation use and track the statistics of the batches.
        before : callable, optional
            Gets the row weights of every batch before the model runs on it.

        Returns
        -------
        int
            The number of batches.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            As `__iter__`, `forward` and `row_weights`.
        """
        count = 0
        with evaluating(model, batch_norm=batch_norm):
            for batch in self:
                if before is not None:
                    before(self.row_weights(batch, count))
                self.forward(model, batch, count)
                count += 1
        return count


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
def evaluating(model: nn.Module, *, batch_norm: bool = False) -> Iterator[None]:
    """Set evaluation mode, except for batch normalisation if asked, and restore every flag."""
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
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


def _has_no_rows(batch: Any) -> bool:
    """Tell whether the first tensor that a batch hands to the model is empty along its first axis."""
    value = next(iter(batch.values()), None) if isinstance(batch, Mapping) else _first(batch)
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == 0


def _first(batch: Any) -> Any:
    """Return the first item of a sequence, or the batch itself."""
    return batch[0] if isinstance(batch, Sequence) and not isinstance(batch, str) and batch else batch


def _describe(batch: Any) -> str:
    """Say what a batch is, by shape where it has one."""
    first = _first(batch)
    if isinstance(first, Tensor):
        return f"of shape {tuple(first.shape)}"
    return f"a {type(first).__name__}"
