"""Prune a trained model in one shot and refit what is kept, layer by layer, on a little calibration data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from torch import Tensor, nn

from ..._arguments import as_integer
from ...errors import InvalidArgumentError, InvalidTypeError, unknown_choice
from ...shown import shown
from ...solvers import Solver
from ..choices import Patterns, choose_weights
from ..layouts import Allowed
from ..selection import LayerFilter, Layouts
from .adaprune import AdaPrune
from .alps import ALPS
from .attention import observable
from .calibration import Calibration, ForwardFunction, RowWeights, batch_norm_layers, reestimate_batch_norm
from .gram import Gram, unobservable
from .layer_jobs import LayerJob, jobs_of, unchanged_on_error
from .layer_problem import LayerProblem, ReconstructionMethod
from .least_squares import LeastSquares
from .matching import Matching, choose_blocks
from .operands import Operand, watching
from .report import LayerFit, ReconstructionReport
from .scores import Scores, compute_scores
from .treatment import Refit, Treatment

__all__ = ["reconstruct"]

_METHODS: dict[str, type[ReconstructionMethod]] = {"least_squares": LeastSquares, "adaprune": AdaPrune, "alps": ALPS}


def reconstruct(
    model: nn.Module,
    calibration: Iterable[Any],
    pattern: Patterns,
    *,
    method: Literal["least_squares", "adaprune", "alps"] | ReconstructionMethod = "least_squares",
    sequential: bool = True,
    scores: Scores = "magnitude",
    transposable: bool = True,
    layers: LayerFilter = None,
    skip_ends: bool = False,
    allow: Collection[Allowed] = (),
    layouts: Layouts = None,
    constraint: str = "exactly",
    solver: str | Solver = "auto",
    batch_norm: bool = True,
    forward: ForwardFunction | None = None,
    row_weights: RowWeights | None = None,
    offload: bool = False,
    match: Literal["blocks"] | Iterable[str] | None = None,
    match_steps: int = 200,
    progress: bool | Callable[[int, int, LayerFit], object] = True,
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
        samples. The model runs once on each batch, in a thread of its own, and all of them are in memory at once. Each
        layer that it calls more than once a batch adds up to two passes, batch normalisation one.
    pattern : Pattern, str, tuple of two int, or mapping of str to these
        N entries kept of every M; or names of weights, each with its own pattern, in which case no others are pruned.
    method : {"least_squares", "adaprune", "alps"} or ReconstructionMethod, default "least_squares"
        An instance carries its options, as in ``LeastSquares(ridge=0.01)``.
    sequential : bool, default True
        Fit each layer to the inputs that the pruned layers before it give, instead of those of the dense model, in the
        order in which the layers run.
    scores : {"magnitude", "wanda", "obs"} or callable, default "magnitude"
        What the masks maximise over; see `compute_scores`. "alps" has scores of its own.
    transposable, layers, skip_ends, allow, layouts, constraint, solver
        As in `sparsify`. What is multiplied with a parameter of `layouts` is seen where that is done by linear, matmul,
        mm or bmm of torch; each matrix of a stack is fitted by itself, and a bias beside it stays as it is.
    batch_norm : bool, default True
        Re-estimate the running statistics of batch normalisation afterwards.
    forward : callable, optional
        ``forward(model, batch)``, if batches need unpacking.
    row_weights : callable, optional
        ``row_weights(batch)`` returns how much each row of a batch counts, as a tensor whose shape is that of the
        inputs of linear layers without their last axis, such as (sequences, tokens); or None if every row counts. By
        default, what the ``attention_mask`` of a mapping marks as padding does not count. Convolutions, and layers
        whose inputs have other rows, count every row.
    offload : bool, default False
        Keep what the model has computed on an accelerator for batches that wait in the memory of the CPU: one batch is
        on the device at a time. Parameters, buffers and the batches themselves are not moved.
    match : "blocks", iterable of str or None, default None
        Train each block, once its layers are fitted, to answer what it answered in the dense model: what the masks
        keep, biases and norms, but no matrix that is not treated. "blocks" are the repeated modules of the model, such
        as its transformer layers; or name modules. No labels are needed. The model runs once more on every batch, and
        the answers of all blocks to all batches are in memory; with `offload`, in that of the CPU.
    match_steps : int, default 200
        Steps of Adam for each block, a batch a step. The last batch is held out: the best weights on it are kept.
    progress : bool or callable, default True
        Show a progress bar on stderr, if that is a terminal. Or what to call with each layer that is fitted: how many
        are, of how many, and its LayerFit. A layer that has to be fitted again counts down.

    Returns
    -------
    ReconstructionReport
        The error of every layer before and after, that of every block that was trained, and why others were skipped.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError, UnsupportedPatternError
        If an argument cannot be used, no layer can take the pattern, a weight or an input is NaN or infinite, there is
        no calibration batch, one is empty, the model cannot run on one, or no layer is reached. If `match` is given
        and the model has no such blocks, one of them is called with something that keeps state, or `sequential` is
        False.

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
    fit = partial(_fit, method=_as_method(method), scores=scores)
    choices = choose_weights(
        model,
        pattern,
        (transposable, constraint, solver),
        layers=layers,
        skip_ends=skip_ends,
        allow=allow,
        layouts=layouts,
        refuse=unobservable(model),
        shared=True,
    )
    jobs = jobs_of(model, choices)
    operands = [job.layer for job in jobs if isinstance(job.layer, Operand)]
    data = Calibration(calibration, forward, row_weights, within=watching(operands))
    matching = None if match is None else _matching(model, match, match_steps, jobs, sequential, offload)
    others = [buffer for layer in batch_norm_layers(model) for buffer in layer.buffers()]
    others += [] if matching is None else [value for block in matching.blocks.values() for value in block.parameters()]
    with (
        unchanged_on_error(jobs, others) as saved,
        observable(model, [job.layer for job in jobs]),
        _shown(progress, len(jobs)) as advance,
    ):
        if matching is not None:
            matching.record(model, data)
        treatment = Treatment(
            model, jobs, data, fit, saved, sequential=sequential, offload=offload, matching=matching, advance=advance
        )
        treatment.run()
        refreshed = reestimate_batch_norm(model, data) if batch_norm else 0
    left = [(choice.name, choice.reason) for choice, _ in choices if not choice.taken]
    left += [] if matching is None else [(name, f"not matched: {why}") for name, why in matching.left.items()]
    return ReconstructionReport(
        tuple(treatment.reports.values()), tuple(left), refreshed, treatment.seconds, treatment.matches
    )


def _matching(
    model: nn.Module,
    match: str | Iterable[str],
    steps: int,
    jobs: Sequence[LayerJob],
    sequential: bool,
    offload: bool,
) -> Matching:
    """Check what `match` and `match_steps` ask for."""
    if not sequential:
        raise InvalidArgumentError(f"`match` must be None with sequential=False, got {match!r}. Leave one of them out.")
    steps = as_integer(steps, argument="match_steps", least=1)
    return Matching(choose_blocks(model, match, [job.name for job in jobs]), steps, offload=offload)


def _as_method(method: str | ReconstructionMethod) -> ReconstructionMethod:
    """Return the method that a name stands for, or the given instance."""
    if isinstance(method, ReconstructionMethod):
        return method
    if not isinstance(method, str):
        raise InvalidTypeError(f"`method` must be a name or a ReconstructionMethod, got {method!r}.")
    if method not in _METHODS:
        raise unknown_choice("method", method, _METHODS)
    return _METHODS[method]()


@torch.no_grad()
def _fit(job: LayerJob, gram: Gram, *, method: ReconstructionMethod, scores: Scores) -> Refit:
    """Find the mask of one layer, its weights and its bias."""
    weight, bias = job.weight(), job.layer.bias
    if gram.matrix is None:
        masked = weight.masked_fill(~job.find_mask(weight), 0)
        report = LayerFit(job.name, job.rule.pattern, 0.0, 0.0, "mask only: no calibration row reaches it")
        return Refit(report, masked, None)
    if not torch.isfinite(gram.matrix).all():
        raise InvalidArgumentError(
            f"`calibration` must give finite activations, got NaN or infinite inputs of {job.name}."
        )
    groups = max(len(gram.matrix), job.layout.parts)
    matrix = gram.matrix.expand(groups, -1, -1)
    dense = weight.to(torch.float64, copy=True).reshape(groups, weight.shape[0] // groups, -1)
    inputs = dense.shape[2]

    def find_mask(values: Tensor) -> Tensor:
        return job.find_mask(values.reshape(weight.shape)).reshape(values.shape)

    values = compute_scores(scores, weight, matrix, squared=job.rule.transposable, name=job.name)
    kept = find_mask(values).reshape(dense.shape)
    if bias is not None:
        dense = torch.cat([dense, bias.to(torch.float64).reshape(groups, -1, 1)], dim=2)
        kept = torch.cat([kept, torch.ones_like(kept[:, :, :1])], dim=2)
    problem = LayerProblem(dense, kept, matrix, bias is not None, find_mask)
    fit = method.fit(problem, name=job.name)
    if fit.mask is not None:
        problem = replace(problem, mask=fit.mask)
    stored = fit.weight.to(weight.dtype)  # as the model will hold it
    error_fitted = problem.error(stored.to(torch.float64))
    report = LayerFit(job.name, job.rule.pattern, problem.error(problem.masked()), error_fitted, fit.note)
    refitted_bias = None if bias is None else stored[:, :, inputs].reshape(bias.shape)
    return Refit(report, stored[:, :, :inputs].reshape(weight.shape), refitted_bias)


@contextmanager
def _shown(
    progress: bool | Callable[[int, int, LayerFit], object], total: int
) -> Iterator[Callable[[int, LayerFit], object]]:
    """Show each layer's error before and after, on a terminal, or tell the caller."""
    if callable(progress):
        yield lambda done, fit: progress(done, total, fit)
        return
    console = Console(stderr=True)
    if not (progress and console.is_terminal):
        yield lambda done, fit: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reconstruct", total=total)

        def advance(done: int, fit: LayerFit) -> None:
            text = f"{escape(shown(fit.name))}: error {fit.error_masked:.1e} -> {fit.error_fitted:.1e}"
            bar.update(task, completed=done, description=text)

        yield advance
