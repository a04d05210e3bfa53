"""The engine of a prune: read tensors in pieces, solve them in threads, and hand them on in order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Hashable, Iterator
from contextlib import closing
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._typing import Array
from ..errors import TransmaskError
from ..masks import prepare, solve_array, solve_each
from ..pipeline import in_order
from ..result import MaskResult
from ._base import TensorInfo
from ._staging import Staging
from .masks_file import MaskPacker
from .outcome import Progress, PrunedTensor, Sums, outcome_of
from .pieces import cut_into_pieces
from .planning import PrunePlan
from .weight_norm import shortened_norms, squared_norms

__all__ = ["Piece", "Run", "keep_only"]

SMALL = 1 << 15
"""Entries of a piece that is solved before a thread has taken it, and of small tensors that are solved together."""


class _Unsolved(NamedTuple):
    """Entries of a tensor, where the first of them lies in C order, and the scales of the tensor, if any."""

    tensor: TensorInfo
    start: int
    entries: Array
    scales: Array | None


Batch: TypeAlias = list[_Unsolved]
"""What is solved in one call: a piece, or whole small matrices of one shape, dtype and pattern."""


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
        with closing(in_order(self._solve, self._batches(), threads, is_small=_is_small)) as batches:
            for pieces in batches:
                yield from pieces

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
        self.outcomes.append(outcome_of(tensor, self.plan.patterns[tensor.name], self.axes[tensor.name], sums))
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

    def _batches(self) -> Iterator[Batch]:
        """Put small matrices that follow each other, and are alike, together."""
        batch: Batch = []
        kind, room = None, 0
        for item in self._read():
            before, kind = kind, self._kind(item)
            if batch and (kind is None or kind != before or item.entries.size > room):
                yield batch
                batch = []
            if not batch:
                solver = self.plan.solvers[self.plan.patterns[item.tensor.name]]
                room = min(SMALL, solver.chunk_entries)
            batch.append(item)
            room -= item.entries.size
        if batch:
            yield batch

    def _kind(self, item: _Unsolved) -> Hashable:
        """Return what matrices that are solved together have in common; None for a piece that is solved alone."""
        tensor, _, weights, scales = item
        if scales is None and weights.size == tensor.size and self.axes[tensor.name] == (0, 1) and weights.ndim == 2:
            return weights.shape, weights.dtype, self.plan.patterns[tensor.name]
        return None

    def _solve(self, batch: Batch) -> list[Piece]:
        """Solve and prove what lies in a batch, and write zeros into it."""
        results = self._solve_together(batch) if len(batch) > 1 else map(self._solve_alone, batch)
        return [self._piece(item, result) for item, result in zip(batch, results, strict=True)]

    def _solve_together(self, batch: Batch) -> list[MaskResult]:
        """Solve several matrices in one call, or each alone if one of them cannot be solved: the error names it."""
        pattern = self.plan.patterns[batch[0].tensor.name]
        try:
            stack = np.stack([item.entries for item in batch])
            return solve_each(stack, pattern, self.plan.constraint, self.plan.solvers[pattern])
        except TransmaskError:
            return list(map(self._solve_alone, batch))

    def _solve_alone(self, item: _Unsolved) -> MaskResult:
        """Solve a piece; name the tensor and the place in what is wrong with it."""
        tensor, start, weights, scales = item
        pattern = self.plan.patterns[tensor.name]
        try:
            return solve_array(
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

    def _piece(self, item: _Unsolved, result: MaskResult) -> Piece:
        """Write zeros into what was solved, and keep what is to be written."""
        if self.apply:
            keep_only(item.entries, result.mask)
        return Piece(
            item.tensor,
            item.entries.reshape(-1) if self.apply else None,
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
        pieces = (self._piece(item, self._solve_alone(item)) for item in self._pieces_of(direction))
        kept = squared_norms((piece.entries for piece in pieces if piece.entries is not None), direction.shape, shape)
        return shortened_norms(checkpoint.read(tensor), before, kept, direction.name).reshape(-1)

    def _effective(self, tensor: TensorInfo, start: int, entries: Array, scales: Array) -> Array:
        """Return the weights that a piece stands for."""
        return self.scalings[tensor.name].effective(entries, start, tensor.shape, scales)


def _is_small(batch: Batch) -> bool:
    return sum(item.entries.size for item in batch) < SMALL


def keep_only(weights: Array, mask: NDArray[np.bool_]) -> None:
    """Write zeros where the mask does not keep, as integers: np.copyto takes 20 times as long."""
    if weights.itemsize > 8:  # long doubles
        np.copyto(weights, 0, where=~mask)
        return
    bits = weights.view(f"u{weights.itemsize}")
    np.multiply(bits, mask.view(np.uint8), out=bits)


def _index(tensor: TensorInfo, entry: int) -> tuple[int, ...]:
    """Return where an entry lies that is counted in C order."""
    return tuple(int(index) for index in np.unravel_index(entry, tensor.shape))
