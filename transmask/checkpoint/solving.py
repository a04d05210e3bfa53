"""Prune a checkpoint in several processes: plan it once, solve its tensors wherever they can be read, finish in one.

`plan_pruning` makes the plan; it can be pickled, and so can what `solve_tensors` returns. `finish_pruning` writes the
same files as `prune_checkpoint`, which does all of it in one process.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..check import check_mask
from ..errors import InvalidArgumentError, InvalidTypeError
from ..threads import resolve_threads
from ._base import TensorInfo
from ._open import PathLike
from ._staging import Staging
from .outcome import Progress, PrunedTensor, Sums
from .planning import PrunePlan
from .pruning import write_pruned
from .run import Piece, Run, keep_only

__all__ = ["SolvedTensor", "finish_pruning", "solve_tensors"]


@dataclass(frozen=True, slots=True)
class SolvedTensor:
    """The mask of one tensor, as small as it can be sent, and how good it is.

    Attributes
    ----------
    outcome : PrunedTensor
    packed : bytes
        ``numpy.packbits(mask.ravel(), bitorder="little")`` in C order, as in a masks file.
    """

    outcome: PrunedTensor
    packed: bytes

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask, in the shape of the tensor; True = kept."""
        bits = np.unpackbits(np.frombuffer(self.packed, np.uint8), bitorder="little")
        return bits[: self.outcome.tensor.size].view(np.bool_).reshape(self.outcome.tensor.shape)


def solve_tensors(
    plan: PrunePlan, names: Iterable[str], *, threads: int | None = None, progress: Progress | None = None
) -> list[SolvedTensor]:
    """Find the masks of some tensors of a plan; nothing is written.

    Parameters
    ----------
    plan : PrunePlan
        From `plan_pruning`, in this process or in another that calls the checkpoint's files by the same paths.
    names : iterable of str
        Tensors to prune: all, those of one file of `PrunePlan.shards`, or a single one.
    threads : int, optional
        Default: the environment variable TRANSMASK_NUM_THREADS, else every core.
    progress : callable, optional
        As for `prune_checkpoint`.

    Returns
    -------
    list of SolvedTensor
        In the order of the checkpoint. In memory they take a bit for each weight.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If a name is not one of the plan's, or a weight is NaN or infinite.
    SolverError
        As `solve`.
    CheckpointError, OSError
        If the checkpoint cannot be read.

    Examples
    --------
    >>> import tempfile, numpy as np, transmask.checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/model.npz", a=np.arange(16.0).reshape(4, 4), b=np.ones((4, 4)))
    ...     plan = transmask.checkpoint.plan_pruning(f"{folder}/model.npz", "2:4")
    ...     solved = [one for name in plan.axes for one in solve_tensors(plan, [name])]  # each in any process
    ...     [outcome, _] = finish_pruning(plan, solved, f"{folder}/pruned.npz")
    ...     outcome.kept
    60.0
    """
    if isinstance(names, str):
        raise InvalidTypeError(f"`names` must be several names, got {names!r}. Put a single one into a list.")
    wanted, axes = set(names), plan.axes
    for name in wanted:
        if name not in axes:
            raise InvalidArgumentError(f"`names` must be tensors that the plan prunes, got {name!r}.")
    part = replace(plan, selections=tuple(chosen for chosen in plan.selections if chosen.tensor.name in wanted))
    nowhere = Staging(plan.checkpoint.files)  # nothing is staged
    run = Run(part, False, resolve_threads(threads), progress or (lambda tensor, outcome: None), nowhere)
    solved = []
    with closing(run):
        for tensor in plan.checkpoint.tensors:
            if tensor.name not in wanted:
                continue
            run.masks = packed = io.BytesIO()
            run.replace(tensor)
            solved.append(SolvedTensor(run.outcomes[-1], packed.getvalue()))
    return solved


def finish_pruning(
    plan: PrunePlan,
    solved: Iterable[SolvedTensor],
    output: PathLike | None,
    *,
    masks: PathLike | None = None,
    apply: bool = True,
    progress: Progress | None = None,
) -> list[PrunedTensor]:
    """Write what `prune_checkpoint` writes, with masks that were found before.

    Parameters
    ----------
    plan : PrunePlan
    solved : iterable of SolvedTensor
        One for each tensor to prune, in the order of the plan; each is taken when its turn comes, so that one mask at a
        time is in memory if they come out of an iterator. The checkpoint must not have changed since.
    output, masks, apply, progress
        As for `prune_checkpoint`. A weight norm whose norms are stored before its direction is solved here once more.

    Returns
    -------
    list of PrunedTensor

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used; or if `solved` has too few, too many, another order, or a mask that does not hold
        its pattern.
    CheckpointError, OSError
        If the checkpoint is damaged, or an output cannot be written; nothing is left behind.
    """
    return write_pruned(plan, output, masks, apply, 1, progress, partial(_Finish, iter(solved)))


class _Finish(Run):
    """A run that takes masks as they come, and puts them on the pieces of the checkpoint."""

    def __init__(self, solved: Iterator[SolvedTensor], *more: Any) -> None:
        self._solved = solved
        super().__init__(*more)

    def _start(self, threads: int) -> Generator[Piece, None, None]:
        planned = [tensor for tensor in self.plan.checkpoint.tensors if tensor.name in self.axes]
        for tensor in planned:
            one = self._next(tensor)
            if tensor is planned[-1] and (more := next(self._solved, None)) is not None:
                raise InvalidArgumentError(
                    f"`solved` must have one mask for each tensor, got another for {more.outcome.tensor.name!r}."
                )
            mask, start = one.mask.reshape(-1), 0
            sums = Sums(*(getattr(one.outcome, name) for name in Sums._fields))
            stretches = self.plan.checkpoint.stretches(tensor, self._sizes(tensor))
            for shape, entries in zip(self._shapes(tensor), stretches, strict=True):
                kept = mask[start : start + entries.size]
                keep_only(entries, kept)
                yield Piece(tensor, entries if self.apply else None, kept.reshape(shape), sums)
                sums, start = Sums(0, 0, 0, 0, 0, 0), start + entries.size  # the first piece has those of all

    def _next(self, tensor: TensorInfo) -> SolvedTensor:
        """Take the next mask, and refuse one that is not for this tensor: it may come from anywhere."""
        one = next(self._solved, None)
        if one is None or one.outcome.tensor != tensor:
            got = "no more" if one is None else f"that of {one.outcome.tensor.name!r}"
            raise InvalidArgumentError(
                f"`solved` must have the mask of {tensor.name!r} next, got {got}. Keep the order of the plan."
            )
        pattern, constraint = self.plan.patterns[tensor.name], self.plan.constraint
        wrong: str | None = f"{len(one.packed)} bytes are packed"
        if len(one.packed) == -(-tensor.size // 8):
            wrong = check_mask(one.mask, pattern, constraint=constraint, axes=self.axes[tensor.name]).first_offender
        if wrong:
            raise InvalidArgumentError(
                f"`solved` must have masks that hold the plan's patterns, {pattern} {constraint.replace('_', ' ')} for "
                f"{tensor.name!r}, got one where {wrong}. Solve that tensor again."
            )
        return one
