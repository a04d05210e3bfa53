"""Reconstruct the model in a folder, and write a folder in which nothing else is different."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from ..._arguments import as_integer
from ...checkpoint import PrunePlan, PruneRecord, Recipe, plan_pruning
from ...checkpoint._open import PathLike, as_path
from ...checkpoint._staging import Staging
from ...errors import InvalidArgumentError
from ...pattern import Pattern, PatternLike
from ...solvers import Solver
from ..reconstruction import LayerFit, ReconstructionMethod, ReconstructionReport, reconstruct
from ..reconstruction.gram import unobservable
from ..reconstruction.scores import Scores
from ..selection import select_weights
from .changes import check_stored, new_values, tensors_that_change
from .loading import load_model, load_tokenizer, longest_text, run
from .texts import read_texts, tokenize

__all__ = ["reconstruct_folder"]

_LENGTH = 512
"""Tokens of a text, if the model has as many positions and the caller says nothing."""


def reconstruct_folder(
    model: PathLike,
    output: PathLike,
    pattern: PatternLike | Recipe,
    calibration: PathLike,
    *,
    samples: int = 128,
    length: int | None = None,
    batch_size: int = 8,
    method: Literal["least_squares", "adaprune", "alps"] | ReconstructionMethod = "least_squares",
    scores: Scores = "magnitude",
    match: Literal["blocks"] | Iterable[str] | None = None,
    match_steps: int = 200,
    constraint: str = "exactly",
    solver: str | Solver = "auto",
    include: str | None = None,
    exclude: str | None = None,
    device: str | torch.device = "cpu",
    progress: bool | Callable[[int, int, LayerFit], object] = True,
) -> ReconstructionReport:
    """Prune the model in a folder as Hugging Face writes it, refit what is kept, and write a new folder.

    The weights of linear layers that `plan_pruning` would prune get masks, and are refitted as in `reconstruct`. Every
    other tensor and every other file is copied as it is; names, dtypes and shards stay, and the metadata notes the
    patterns, so that `check_checkpoint` knows them. The model is loaded by transformers: no code out of the folder is
    run, nothing is fetched, and weights are read from ``.safetensors`` files alone.

    Parameters
    ----------
    model : str or path-like
        The folder: ``config.json``, ``.safetensors`` files and a tokenizer.
    output : str or path-like
        A new or empty folder; it appears when it is complete, or not at all.
    pattern : Pattern, str, tuple of two int or Recipe
        N entries kept of every M, of all weights or of each.
    calibration : str or path-like
        Texts in UTF-8: a ``.jsonl`` file of objects with a string "text", or any other file, a text a line.
    samples : int, default 128
        The texts that are used: the first of the file.
    length : int, optional
        The tokens of a text that are used: the first. Default: 512, or as many as the model has positions for.
    batch_size : int, default 8
        Texts in a batch. What fills a batch up does not count.
    method, scores, match, match_steps, constraint, solver, progress
        As in `reconstruct`.
    include, exclude : str, optional
        Regular expressions on the tensors' names, as in `plan_pruning`.
    device : str or torch.device, default "cpu"
        Where the model runs.

    Returns
    -------
    ReconstructionReport
        Its `left` names every weight of the checkpoint with two axes or more that is not treated.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError, UnsupportedPatternError
        If an argument cannot be used; as `plan_pruning` and `reconstruct`.
    CheckpointError, OSError
        If a file cannot be read, or the output cannot be written; nothing is left behind.
    MissingDependencyError
        If transformers is not installed.
    """
    source, target = as_path(model, "model"), as_path(output, "output")
    samples, batch_size, match_steps = (
        as_integer(value, argument=name, least=1)
        for name, value in (("samples", samples), ("batch_size", batch_size), ("match_steps", match_steps))
    )
    if not source.is_dir():
        raise InvalidArgumentError(f"`model` must be a folder with a config.json, got {str(source)!r}.")
    plan = plan_pruning(source, pattern, constraint=constraint, solver=solver, include=include, exclude=exclude)
    plan.check_outputs(target)
    texts = read_texts(as_path(calibration, "calibration"), samples)
    tokenizer = load_tokenizer(source)
    loaded = _on(device, load_model(source))
    batches = tokenize(tokenizer, texts, length=_length(length, loaded), batch_size=batch_size)
    patterns, left = _choose(loaded, plan)
    changing = tensors_that_change(loaded, patterns, match)
    check_stored(changing, plan.checkpoint)
    with Staging(plan.checkpoint.files) as staging:
        folder = staging.folder(target, "output")
        with staging.unrelated():
            report = reconstruct(
                loaded,
                batches,
                patterns,
                method=method,
                scores=scores,
                match=match,
                match_steps=match_steps,
                constraint=constraint,
                solver=solver,
                forward=run,
                progress=progress,
            )
        axes = {name: plan.axes[name] for name in patterns}
        record = PruneRecord.of(patterns, plan.constraint, plan.record.solver, axes)
        plan.checkpoint.rewrite(folder, new_values(changing, plan.checkpoint), record.joined_to(plan.checkpoint.record))
    return replace(report, left=(*left, *(one for one in report.left if one[1].startswith("not matched"))))


def _on(device: str | torch.device, model: nn.Module) -> nn.Module:
    """Move a model."""
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all of them
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InvalidArgumentError(f"`device` must be one that torch can use, got {str(device)!r}: {reason}.") from None


def _length(asked: int | None, model: nn.Module) -> int:
    """Return the tokens of a text that the model reads."""
    longest = longest_text(model)
    if asked is None:
        return _LENGTH if longest is None else min(_LENGTH, longest)
    length = as_integer(asked, argument="length", least=1)
    if longest is not None and length > longest:
        raise InvalidArgumentError(
            f"`length` must be at most {longest}, the positions that the model has, got {length}."
        )
    return length


def _choose(model: nn.Module, plan: PrunePlan) -> tuple[dict[str, Pattern], list[tuple[str, str]]]:
    """Return the pattern of each weight that can be refitted, and why the others are left alone."""
    patterns: dict[str, Pattern] = {}
    refused: dict[str, str] = {}
    for pattern in dict.fromkeys(plan.patterns.values()):
        names = {name for name, its in plan.patterns.items() if its == pattern}

        def wanted(name: str, module: nn.Module, names: set[str] = names) -> bool:
            return name in names

        for choice in select_weights(model, pattern, layers=wanted, shared=True, refuse=unobservable(model)):
            if choice.taken:
                patterns[choice.name] = pattern
            elif choice.name in names:
                refused[choice.name] = choice.reason
    left = []
    for chosen in plan.selections:
        name = chosen.tensor.name
        if name in patterns or len(chosen.tensor.shape) < 2:
            continue
        reason = chosen.reason.partition(": --axes")[0]  # an option of other commands
        unknown = f"not a weight that {type(model).__name__} has under this name"
        left.append((name, reason or refused.get(name) or unknown))
    return patterns, left
