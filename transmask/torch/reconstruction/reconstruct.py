"""Prune a trained model in one shot and refit what is kept, layer by layer, on a little calibration data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from ...errors import InvalidArgumentError, InvalidTypeError, unknown_choice
from ...pattern import PatternLike
from ...solvers import Solver
from ..layouts import Allowed, Layout
from ..mask_rule import MaskRule
from ..selection import LayerFilter, WeightChoice, select_weights
from .adaprune import AdaPrune
from .alps import ALPS
from .calibration import Calibration, ForwardFunction, batch_norm_layers, reestimate_batch_norm
from .gram import SupportedLayer, collect_grams, execution_order, unobservable
from .layer_problem import LayerProblem, ReconstructionMethod
from .least_squares import LeastSquares
from .report import LayerFit, ReconstructionReport
from .scores import Scores, compute_scores

__all__ = ["reconstruct"]

_METHODS: dict[str, type[ReconstructionMethod]] = {"least_squares": LeastSquares, "adaprune": AdaPrune, "alps": ALPS}


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One weight to prune and refit."""

    name: str
    layer: SupportedLayer
    layout: Layout
    rule: MaskRule


def reconstruct(
    model: nn.Module,
    calibration: Iterable[Any],
    pattern: PatternLike | Mapping[str, PatternLike],
    *,
    method: Literal["least_squares", "adaprune", "alps"] | ReconstructionMethod = "least_squares",
    sequential: bool = True,
    scores: Scores = "magnitude",
    transposable: bool = True,
    layers: LayerFilter = None,
    skip_ends: bool = False,
    allow: Collection[Allowed] = (),
    constraint: str = "exactly",
    solver: str | Solver = "auto",
    batch_norm: bool = True,
    forward: ForwardFunction | None = None,
    progress: bool = True,
) -> ReconstructionReport:
    """Prune the weights of a trained model and refit those that are kept, so that each layer's outputs change least.

    For every layer, with X its inputs on the calibration data and S the mask, the weights and the bias become those W'
    that minimise

        || W X - (S * W') X ||^2

    X is never stored: only X X.T is accumulated.

    Parameters
    ----------
    model : torch.nn.Module
        Modified in place; unchanged if an error is raised. Linear layers and convolutions are pruned.
    calibration : iterable
        Batches: tensors, sequences whose first item is the input, or mappings of keyword arguments; a few hundred
        samples. A sequential run goes through it once for each layer and once more, any other run once.
    pattern : Pattern, str, tuple of two int, or mapping of str to these
        N entries kept of every M; or names of weights, each with its own pattern, in which case no others are pruned.
    method : {"least_squares", "adaprune", "alps"} or ReconstructionMethod, default "least_squares"
        An instance carries its options, as in ``LeastSquares(ridge=0.01)``.
    sequential : bool, default True
        Fit each layer to the inputs that the pruned layers before it give, instead of those of the dense model, in the
        order in which the layers run.
    scores : {"magnitude", "wanda", "obs"} or callable, default "magnitude"
        What the masks maximise over; see `compute_scores`. "alps" has scores of its own.
    transposable, layers, skip_ends, allow, constraint, solver
        As in `sparsify`.
    batch_norm : bool, default True
        Re-estimate the running statistics of batch normalisation afterwards.
    forward : callable, optional
        ``forward(model, batch)``, if batches need unpacking.
    progress : bool, default True
        Show a progress bar on stderr, if that is a terminal.

    Returns
    -------
    ReconstructionReport
        The error of every layer before and after, and why other parameters were skipped.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError, UnsupportedPatternError
        If an argument cannot be used, no layer can take the pattern, a weight or an input is NaN or infinite, there is
        no calibration batch, the model cannot run on one, or a layer is not reached.

    References
    ----------
    Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable
    Masks", section 5 (AdaPrune). Frantar and Alistarh 2022, "Optimal Brain Compression", section 4.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> report = reconstruct(model, [torch.randn(256, 16)], "2:4")
    >>> all(fit.error_fitted < fit.error_masked for fit in report.fits)
    True
    >>> float((model[0].weight == 0).float().mean())
    0.5
    """
    fitter = _as_method(method)
    data = Calibration(calibration, forward)
    selections = _select(model, pattern, (transposable, constraint, solver), layers, skip_ends, allow)
    jobs = [
        _Job(choice.name, choice.module, choice.layout, rule)
        for choice, rule in selections
        if choice.taken and choice.layout is not None and isinstance(choice.module, SupportedLayer)
    ]
    if sequential:
        order = execution_order(model, [job.layer for job in jobs], data)
        jobs.sort(key=lambda job: order.index(job.layer))
    fits = []
    with _unchanged_on_error(model, jobs), _bar(progress, len(jobs)) as advance:
        grams = [] if sequential else collect_grams(model, [(job.name, job.layer) for job in jobs], data)
        for index, job in enumerate(jobs):
            gram = grams[index] if grams else collect_grams(model, [(job.name, job.layer)], data)[0]
            fits.append(_treat(job, gram, fitter, scores))
            advance(fits[-1])
        refreshed = reestimate_batch_norm(model, data) if batch_norm else 0
    left = [(choice.name, choice.reason) for choice, _ in selections if not choice.taken]
    return ReconstructionReport(tuple(fits), tuple(left), refreshed)


def _as_method(method: str | ReconstructionMethod) -> ReconstructionMethod:
    """Return the method that a name stands for, or the given instance."""
    if isinstance(method, ReconstructionMethod):
        return method
    if not isinstance(method, str):
        raise InvalidTypeError(f"`method` must be a name or a ReconstructionMethod, got {method!r}.")
    if method not in _METHODS:
        raise unknown_choice("method", method, _METHODS)
    return _METHODS[method]()


def _select(
    model: nn.Module,
    pattern: PatternLike | Mapping[str, PatternLike],
    options: tuple[bool, str, str | Solver],
    layers: LayerFilter,
    skip_ends: bool,
    allow: Collection[Allowed],
) -> list[tuple[WeightChoice, MaskRule]]:
    """Pair every parameter with the rule for its mask, in the order of the model."""
    if not isinstance(pattern, Mapping):
        rule = MaskRule.of(pattern, *options)
        report = select_weights(
            model,
            rule.pattern,
            transposable=rule.transposable,
            layers=layers,
            skip_ends=skip_ends,
            allow=allow,
            refuse=unobservable(model),
        )
        return [(choice, rule) for choice in report]
    if layers is not None or skip_ends:
        raise InvalidArgumentError("`layers` and `skip_ends` must be left out where `pattern` names the weights.")
    if not pattern:
        raise InvalidArgumentError("`pattern` must name at least one weight, got an empty mapping.")
    rules = {name: MaskRule.of(value, *options) for name, value in pattern.items()}
    chosen: dict[str, tuple[WeightChoice, MaskRule]] = {}
    for name, rule in rules.items():
        report = select_weights(
            model,
            rule.pattern,
            transposable=rule.transposable,
            layers=[name],
            allow=allow,
            refuse=unobservable(model),
        )
        for choice in report:
            if choice.taken or choice.name not in chosen:
                chosen[choice.name] = choice, rule
    return list(chosen.values())


@torch.no_grad()
def _treat(job: _Job, gram: Tensor, method: ReconstructionMethod, scores: Scores) -> LayerFit:
    """Prune and refit one layer."""
    weight, bias = job.layer.weight, job.layer.bias
    groups = len(gram)
    dense = weight.to(torch.float64, copy=True).reshape(groups, weight.shape[0] // groups, -1)

    def find_mask(values: Tensor) -> Tensor:
        mask, _ = job.rule.find(values.reshape(weight.shape), job.layout, name=job.name)
        return mask.to(weight.device).reshape(values.shape)

    values = compute_scores(scores, weight, gram, squared=job.rule.transposable, name=job.name)
    kept = find_mask(values).reshape(dense.shape)
    if bias is not None:
        dense = torch.cat([dense, bias.to(torch.float64).reshape(groups, -1, 1)], dim=2)
        kept = torch.cat([kept, torch.ones_like(kept[:, :, :1])], dim=2)
    problem = LayerProblem(dense, kept, gram, bias is not None, find_mask)
    fit = method.fit(problem, name=job.name)
    if fit.mask is not None:
        problem = replace(problem, mask=fit.mask)
    stored = fit.weight.to(weight.dtype)  # as the model will hold it
    if bias is not None:
        bias.copy_(stored[:, :, -1].reshape(bias.shape))
        weight.copy_(stored[:, :, :-1].reshape(weight.shape))
    else:
        weight.copy_(stored.reshape(weight.shape))
    error_fitted = problem.error(stored.to(torch.float64))
    return LayerFit(job.name, job.rule.pattern, problem.error(problem.masked()), error_fitted, fit.note)


@contextmanager
def _unchanged_on_error(model: nn.Module, jobs: list[_Job]) -> Iterator[None]:
    """Restore weights, biases and running statistics if anything is raised."""
    tensors = [tensor for job in jobs for tensor in (job.layer.weight, job.layer.bias) if tensor is not None]
    tensors += [buffer for layer in batch_norm_layers(model) for buffer in layer.buffers()]
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, values in zip(tensors, saved, strict=True):
                tensor.copy_(values)
        raise


@contextmanager
def _bar(wanted: bool, total: int) -> Iterator[Callable[[LayerFit], object]]:
    """Show each layer's error before and after, on a terminal."""
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda fit: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reconstruct", total=total)

        def advance(fit: LayerFit) -> None:
            text = f"{fit.name}: error {fit.error_masked:.1e} -> {fit.error_fitted:.1e}"
            bar.update(task, advance=1, description=text)

        yield advance
