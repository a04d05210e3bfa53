"""Prune a checkpoint: solve and write one tensor at a time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._typing import Array
from ..certificate import add_up, relative_gap
from ..errors import InvalidArgumentError, TransmaskError
from ..masks import prepare, solve_array
from ..pattern import Pattern
from ..pipeline import in_order
from ..threads import resolve_threads
from ._base import TensorInfo
from ._open import PathLike
from ._staging import Staging
from .masks_file import MaskPacker, write_masks_header
from .pieces import cut_into_pieces
from .planning import PrunePlan
from .weight_norm import shortened_norms, squared_norms

__all__ = ["Progress", "PrunedTensor", "prune_checkpoint"]


@dataclass(frozen=True, slots=True)
class PrunedTensor:
    """The outcome for one tensor.

    Attributes
    ----------
    tensor : TensorInfo
    pattern : Pattern
    axes : tuple of two int
        The axes that formed its matrix.
    kept, total : float
        Sum of the magnitudes kept, and of all; of the effective weights, where the file holds them as entries in 8 bits
        and scales.
    upper_bound : float
        No mask of the pattern keeps more.
    gap : float
        The fraction of the bound that a better mask could still gain.
    unproven : int
        Number of blocks that may not be optimal; see `MaskResult`.
    n_blocks : int
    seconds : float
        Time that threads have spent in the solver.
    """

    tensor: TensorInfo
    pattern: Pattern
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


SMALL = 1 << 15
"""Entries of a piece that is solved before a thread has taken it."""


class Sums(NamedTuple):
    """What is added up over the pieces of a tensor; see `PrunedTensor`."""

    kept: float
    total: float
    upper_bound: float
    unproven: int
    n_blocks: int
    seconds: float


class _Unsolved(NamedTuple):
    """Entries of a tensor, where the first of them lies in C order, and the scales of the tensor, if any."""

    tensor: TensorInfo
    start: int
    entries: Array
    scales: Array | None


class Piece(NamedTuple):
    """Pruned entries of a tensor and their mask, as far as they are to be written."""

    tensor: TensorInfo
    entries: Array | None
    mask: NDArray[np.bool_] | None
    sums: Sums


class Run:
    """A run: pieces of all planned tensors are read, solved in threads and written, in order."""

    def __init__(self, plan: PrunePlan, apply: bool, threads: int, progress: Progress, staging: Staging) -> None:
        self.plan = plan
        self.axes = plan.axes
        self.scalings = plan.scalings
        self.directions = {s.scales.name: s.direction for s in plan.scalings.values() if s.direction is not None}
        self.apply = apply
        self.progress = progress
        self.staging = staging
        self.masks: BinaryIO | None = None
        self.outcomes: list[PrunedTensor] = []
        self._pieces = self._start(threads)

    def _start(self, threads: int) -> Generator[Piece, None, None]:
        """Begin to make the pieces of all planned tensors, in order; nothing is read before the first is asked for."""
        return in_order(self._solve, self._read(), threads, is_small=_is_small)

    def close(self) -> None:
        """End the threads; what they have begun is finished first."""
        self._pieces.close()

    def replace(self, tensor: TensorInfo) -> Iterator[Array] | None:
        """Return what the new checkpoint holds in place of a tensor, piece by piece, if it is planned."""
        if tensor.name in self.directions and self.apply:
            return iter([self._shortened(tensor)])
        if tensor.name not in self.axes:
            return None
        stretches = self._replaced(tensor)
        if self.apply:
            return stretches
        deque(stretches, maxlen=0)  # the masks are all that is written
        return None

    def _replaced(self, tensor: TensorInfo) -> Iterator[Array]:
        """Take the pieces of a tensor, write its mask, and yield its entries."""
        with self.staging.unrelated():
            self.progress(tensor, None)
        packer = None if self.masks is None else MaskPacker(self.masks)
        sums = []
        for _ in self._shapes(tensor):
            with self.staging.unrelated():  # the command line tells its progress while a solver is compiled, too
                piece = next(self._pieces)
            assert piece.tensor is tensor
            if packer is not None and piece.mask is not None:
                packer.write(piece.mask)
            if piece.entries is not None:
                yield piece.entries
            sums.append(piece.sums)
            del piece  # before the next is waited for
        if packer is not None:
            packer.finish()
        self.outcomes.append(_outcome(tensor, self.plan.patterns[tensor.name], self.axes[tensor.name], sums))
        with self.staging.unrelated():
            self.progress(tensor, self.outcomes[-1])

    def _shapes(self, tensor: TensorInfo) -> Iterator[tuple[int, ...]]:
        """Cut a tensor into pieces."""
        pattern = self.plan.patterns[tensor.name]
        limit = self.plan.solvers[pattern].chunk_entries
        return cut_into_pieces(tensor.shape, self.axes[tensor.name], pattern.m, limit)

    def _sizes(self, tensor: TensorInfo) -> Iterator[int]:
        return map(math.prod, self._shapes(tensor))

    def _read(self) -> Iterator[_Unsolved]:
        """Read the pieces of all planned tensors in order; the first of a pattern and dtype has its solver compiled."""
        prepared = set()
        for tensor in self.plan.checkpoint.tensors:
            if tensor.name not in self.axes:
                continue
            pattern = self.plan.patterns[tensor.name]
            for item in self._pieces_of(tensor):
                dtype = item.entries.dtype if item.scales is None else item.scales.dtype
                if (pattern, dtype) not in prepared:
                    prepared.add((pattern, dtype))
                    prepare(self.plan.solvers[pattern], pattern, self.plan.constraint, dtype)
                yield item

    def _pieces_of(self, tensor: TensorInfo) -> Iterator[_Unsolved]:
        """Read the pieces of a tensor."""
        scaling = self.scalings.get(tensor.name)
        scales = None if scaling is None else scaling.load(self.plan.checkpoint)
        start = 0
        stretches = self.plan.checkpoint.stretches(tensor, self._sizes(tensor))
        for shape, entries in zip(self._shapes(tensor), stretches, strict=True):
            yield _Unsolved(tensor, start, entries.reshape(shape), scales)
            start += entries.size

    def _solve(self, item: _Unsolved) -> Piece:
        """Solve and prove a piece, and write zeros into it; name the tensor and the place in what is wrong with it."""
        tensor, start, weights, scales = item
        pattern = self.plan.patterns[tensor.name]
        try:
            result = solve_array(
                weights if scales is None else self._effective(tensor, start, weights, scales),
                pattern,
                self.plan.constraint,
                self.plan.solvers[pattern],
                axes=self.axes[tensor.name],
                threads=1,
            )
        except TransmaskError as error:
            place = "" if weights.size == tensor.size else f", the part that begins at index {_index(tensor, start)}"
            raise type(error)(f"tensor {tensor.name!r}{place}: {error}") from None
        if self.apply:
            keep_only(weights, result.mask)
        return Piece(
            tensor,
            weights.reshape(-1) if self.apply else None,
            result.mask if self.masks is not None else None,
            Sums(*(getattr(result, name) for name in Sums._fields)),
        )

    def _shortened(self, tensor: TensorInfo) -> Array:
        """Return the norms of a weight norm for what its direction keeps, which is solved for them once more.

        Most files hold the norms before the direction.
        """
        checkpoint, direction = self.plan.checkpoint, self.directions[tensor.name]
        shape = self.scalings[direction.name].shape
        before = squared_norms(checkpoint.stretches(direction, self._sizes(direction)), direction.shape, shape)
        pieces = map(self._solve, self._pieces_of(direction))
        kept = squared_norms((piece.entries for piece in pieces if piece.entries is not None), direction.shape, shape)
        return shortened_norms(checkpoint.read(tensor), before, kept, direction.name).reshape(-1)

    def _effective(self, tensor: TensorInfo, start: int, entries: Array, scales: Array) -> Array:
        """Return the weights that a piece stands for."""
        return self.scalings[tensor.name].effective(entries, start, tensor.shape, scales)


def _is_small(item: _Unsolved) -> bool:
    return item.entries.size < SMALL


def keep_only(weights: Array, mask: NDArray[np.bool_]) -> None:
    """Write zeros where the mask does not keep, as integers: np.copyto takes 20 times as long."""
    if weights.itemsize > 8:  # long doubles
        np.copyto(weights, 0, where=~mask)
        return
    bits = weights.view(f"u{weights.itemsize}")
    np.multiply(bits, mask.view(np.uint8), out=bits)


def _outcome(tensor: TensorInfo, pattern: Pattern, axes: tuple[int, int], pieces: list[Sums]) -> PrunedTensor:
    """Add up the pieces of a tensor."""
    kept, total, bound, seconds = (
        add_up(getattr(piece, name) for piece in pieces) for name in ("kept", "total", "upper_bound", "seconds")
    )
    return PrunedTensor(
        tensor=tensor,
        pattern=pattern,
        axes=axes,
        kept=kept,
        total=total,
        upper_bound=bound,
        gap=relative_gap(kept, bound),
        unproven=sum(piece.unproven for piece in pieces),
        n_blocks=sum(piece.n_blocks for piece in pieces),
        seconds=seconds,
    )


def _index(tensor: TensorInfo, entry: int) -> tuple[int, ...]:
    """Return where an entry lies that is counted in C order."""
    return tuple(int(index) for index in np.unravel_index(entry, tensor.shape))
