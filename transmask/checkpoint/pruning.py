"""Prune a checkpoint: solve and write one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ..errors import InvalidArgumentError
from ..threads import resolve_threads
from ._open import PathLike
from ._staging import Staging
from .masks_file import write_masks_header
from .outcome import Progress, PrunedTensor
from .planning import PrunePlan
from .run import Run

__all__ = ["prune_checkpoint", "write_pruned"]


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

    Tensors are read, solved and written in pieces, a few at a time, and no more than these are in memory. The outputs
    appear when all of them are complete, or not at all, and replace existing files only then.

    Parameters
    ----------
    plan : PrunePlan
        From `plan_pruning`.
    output : str or path-like, or None
        The new checkpoint, in the format of the old one; a new or empty folder if that is sharded. dtypes, order and
        metadata stay, and safetensors metadata gains a "transmask" entry. If the input has such an entry already, the
        tensors skipped this time stay in it, and must have been pruned with the same constraint.
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
        is left alone was pruned before with another constraint.
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
    return write_pruned(plan, output, masks, apply, resolve_threads(threads), progress, Run)


def write_pruned(
    plan: PrunePlan,
    output: PathLike | None,
    masks: PathLike | None,
    apply: bool,
    threads: int,
    progress: Progress | None,
    make_run: Callable[[PrunePlan, bool, int, Progress, Staging], Run],
) -> list[PrunedTensor]:
    """Write the outputs of `prune_checkpoint` with the masks that a run finds."""
    if output is None and apply:
        raise InvalidArgumentError("`output` must be given, got None. Or write the masks alone, with apply=False.")
    if masks is None and not apply:
        raise InvalidArgumentError("`masks` must be given with apply=False, got None. Nothing else would be written.")
    plan.check_outputs(output, masks=masks, apply=apply)
    final, packed = (None if path is None else Path(path) for path in (output, masks))
    noted = plan.record.joined_to(plan.checkpoint.record) if apply else None
    with Staging(plan.checkpoint.files) as staging, ExitStack() as files:
        run = make_run(plan, apply, threads, progress or (lambda tensor, outcome: None), staging)
        files.callback(run.close)
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
