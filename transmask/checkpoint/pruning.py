"""Prune a checkpoint: solve and write one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from ..blocks import Array
from ..errors import InvalidArgumentError, TransmaskError
from ..masks import solve
from ..result import MaskResult
from ..threads import resolve_threads
from ._base import TensorInfo
from ._open import PathLike
from ._staging import Staging
from .masks_file import write_mask, write_masks_header
from .planning import PrunePlan

__all__ = ["Progress", "PrunedTensor", "prune_checkpoint"]


@dataclass(frozen=True, slots=True)
class PrunedTensor:
    """The outcome for one tensor.

    Attributes
    ----------
    tensor : TensorInfo
    axes : tuple of two int
        The axes that formed its matrix.
    kept, total : float
        Sum of the magnitudes kept, and of all.
    upper_bound : float
        No mask of the pattern keeps more.
    gap : float
        The fraction of the bound that a better mask could still gain.
    unproven : int
        Number of blocks that may not be optimal; see `MaskResult`.
    n_blocks : int
    seconds : float
        Wall time of the solver.
    """

    tensor: TensorInfo
    axes: tuple[int, int]
    kept: float
    total: float
    upper_bound: float
    gap: float
    unproven: int
    n_blocks: int
    seconds: float


Progress: TypeAlias = Callable[[TensorInfo, PrunedTensor | None], None]
"""Called with each tensor twice: with None when work on it begins, with its outcome when it is done."""


def prune_checkpoint(
    plan: PrunePlan,
    output: PathLike | None,
    *,
    masks: PathLike | None = None,
    apply: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[PrunedTensor]:
    """Find the masks of a plan, and write the pruned checkpoint, the masks, or both.

    One tensor is in memory at a time. The outputs appear when all of them are complete, or not at all, and replace
    existing files only then.

    Parameters
    ----------
    plan : PrunePlan
        From `plan_pruning`.
    output : str or path-like, or None
        The new checkpoint, in the format of the old one; a new or empty folder if that is sharded. dtypes, order and
        metadata stay, and safetensors metadata gains a "transmask" entry. If the input has such an entry already, the
        tensors skipped this time stay in it, and must have been pruned with the same pattern and constraint.
    masks : str or path-like, optional
        A ``.safetensors`` file for the masks, to be read by `read_masks`; not in the folder of a sharded `output`.
    apply : bool, default True
        Whether zeros are written in place of pruned weights. If not, `masks` must be given, and `output`, if it is
        given too, is a copy.
    threads : int, optional
        Default: the environment variable TRANSMASK_NUM_THREADS, else every core.
    progress : callable, optional
        Called with each tensor to prune: with None when work on it begins, with its outcome when it is done. What it
        raises propagates, and nothing is left behind.

    Returns
    -------
    list of PrunedTensor

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used, or a weight is NaN or infinite; the message names the tensor. Or if a tensor that
        is left alone was pruned before with another pattern or constraint.
    UnsupportedPatternError, SolverError
        As `solve`.
    CheckpointError, OSError
        If the checkpoint is damaged, or an output cannot be written; nothing is left behind.

    Examples
    --------
    >>> import tempfile, numpy as np, transmask.checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/model.npz", weight=np.arange(16.0).reshape(4, 4))
    ...     plan = transmask.checkpoint.plan_pruning(f"{folder}/model.npz", "2:4")
    ...     [outcome] = prune_checkpoint(plan, f"{folder}/pruned.npz")
    ...     outcome.kept, np.load(f"{folder}/pruned.npz")["weight"].sum()
    (60.0, np.float64(60.0))
    """
    if output is None and apply:
        raise InvalidArgumentError("`output` must be given, got None. Or write the masks alone, with apply=False.")
    if masks is None and not apply:
        raise InvalidArgumentError("`masks` must be given with apply=False, got None. Nothing else would be written.")
    n_threads = resolve_threads(threads)
    plan.check_outputs(output, masks=masks, apply=apply)
    final, packed = (None if path is None else Path(path) for path in (output, masks))
    noted = plan.record.joined_to(plan.checkpoint.record) if apply else None
    with Staging(plan.checkpoint.files) as staging, ExitStack() as files:
        run = _Run(plan, apply, n_threads, progress or (lambda tensor, outcome: None), staging)
        if packed is not None:
            run.masks = files.enter_context(open(staging.file(packed, "masks"), "wb"))
            shapes = {c.tensor.name: c.tensor.shape for c in plan.selections if c.axes is not None}
            write_masks_header(run.masks, plan.record, shapes)
        if final is None:
            for tensor in plan.checkpoint.tensors:
                run.replace(tensor)
        else:
            stage = staging.file if plan.checkpoint.suffix else staging.folder
            plan.checkpoint.rewrite(stage(final, "output"), run.replace, noted)
    return run.outcomes


class _Run:
    """The part of a run that is done tensor by tensor."""

    def __init__(self, plan: PrunePlan, apply: bool, threads: int, progress: Progress, staging: Staging) -> None:
        self.plan = plan
        self.axes = plan.axes
        self.apply = apply
        self.threads = threads
        self.progress = progress
        self.staging = staging
        self.masks: BinaryIO | None = None
        self.outcomes: list[PrunedTensor] = []

    def replace(self, tensor: TensorInfo) -> Array | None:
        """Solve a tensor if it is planned, write its mask, and return what the new checkpoint holds in its place."""
        axes = self.axes.get(tensor.name)
        if axes is None:
            return None
        with self.staging.unrelated():
            self.progress(tensor, None)
        weights = self.plan.checkpoint.read(tensor)
        with self.staging.unrelated():  # the command line tells its progress while a solver is compiled, too
            result = self._solve(tensor, weights, axes)
        if self.masks is not None:
            write_mask(self.masks, result.mask)
        outcome = PrunedTensor(
            tensor,
            axes,
            result.kept,
            result.total,
            result.upper_bound,
            result.gap,
            result.unproven,
            result.n_blocks,
            result.seconds,
        )
        self.outcomes.append(outcome)
        with self.staging.unrelated():
            self.progress(tensor, outcome)
        if not self.apply:
            return None
        np.copyto(weights, 0, where=~result.mask)
        return weights

    def _solve(self, tensor: TensorInfo, weights: Array, axes: tuple[int, int]) -> MaskResult:
        """Solve, and name the tensor in what is wrong with it."""
        plan = self.plan
        try:
            return solve(
                weights,
                plan.pattern,
                constraint=plan.constraint,
                solver=plan.solver,
                axes=axes,
                threads=self.threads,
            )
        except TransmaskError as error:
            raise type(error)(f"tensor {tensor.name!r}: {error}") from None
