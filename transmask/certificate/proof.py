"""Prove masks of whole matrices: chunks of block rows, in cache and in threads, through the kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._typing import Array
from ..blocks import Duals, score_dtype, stacks
from ..pattern import Constraint, Pattern
from ..threads import run_parallel

__all__ = ["LARGEST_DUAL", "NEAR_GAP", "PROVEN_GAP", "Part", "Proof", "add_up", "prove", "prove_each", "relative_gap"]

PROVEN_GAP = 1e-12
"""What a mask may lack of its bound and still count as optimal: the rounding of float64 sums."""

NEAR_GAP = 1e-9
"""Up to here a relative gap may be the rounding of duals; beyond, with optimal duals, the mask is not optimal."""

LARGEST_DUAL = 1e307
"""A larger dual is not valid, so that three of them add up to a finite number."""

_CHUNK_ENTRIES = 1 << 18
"""Of a chunk: what is converted for it stays in the cache, and starting it costs little beside it."""

Part: TypeAlias = tuple[Array, NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]
"""Whole blocks of a stack of matrices, as views: weights and mask (K, R, C), u (K, R, ceil(C/M)), v (K, ceil(R/M), C).
"""

Sums: TypeAlias = NDArray[np.float64]
"""What the kernel writes of a part, a row for each matrix: shape (K, SUMS)."""


class Proof(NamedTuple):
    """What a pass over masks has found, and the parts that hold blocks without a proof; see `kernel.prove_matrices`."""

    kept: float
    distance: float
    total: float
    worst_gap: float
    broken: int
    unproven: int
    unproven_parts: list[Part]
    near_parts: list[Part]

    @property
    def upper_bound(self) -> float:
        """No masks keep more."""
        return self.kept + self.distance


def prove(
    weights: Array, mask: NDArray[np.bool_], duals: Duals, pattern: Pattern, constraint: Constraint, *, threads: int
) -> Proof:
    """Check the masks of (..., R, C) matrices and measure how far they are from the bound of `duals`.

    Parameters
    ----------
    weights : ndarray, shape (..., R, C)
        Finite weights of any real dtype; not modified.
    mask : ndarray of bool, shape (..., R, C)
    duals : (u, v)
        Shapes (..., R, ceil(C / M)) and (..., ceil(R / M), C). Those that are not valid are overwritten with 0.
    pattern : Pattern
    constraint : {"exactly", "at_most"}
    threads : int

    Returns
    -------
    Proof
    """
    found: list[tuple[Sums, Part]] = []

    def prove_part(part: Part) -> None:
        found.append((_sums(part, pattern, constraint), part))

    run_parallel(prove_part, _parts((weights, mask, *duals), pattern.m), threads)
    return _proof(found)


def prove_each(
    weights: Array, mask: NDArray[np.bool_], duals: Duals, pattern: Pattern, constraint: Constraint
) -> list[Proof]:
    """Do what `prove` does for each matrix of a (K, R, C) stack alone, in one call; no parts are listed."""
    from .kernel import BROKEN, DISTANCE, KEPT, TOTAL, UNPROVEN, WORST_GAP

    return [
        Proof(row[KEPT], row[DISTANCE], row[TOTAL], row[WORST_GAP], int(row[BROKEN]), int(row[UNPROVEN]), [], [])
        for row in _sums((weights, mask, *duals), pattern, constraint).tolist()
    ]


def _sums(part: Part, pattern: Pattern, constraint: Constraint) -> Sums:
    """Run the kernel on a part, and write back the duals that it has made valid."""
    from .kernel import SUMS, prove_matrices

    u, v = (np.ascontiguousarray(array) for array in part[2:])
    scores, kept = _readable(part[0]), _as_bits(part[1])
    sums = np.empty((len(scores), SUMS))
    prove_matrices(scores, kept, u, v, pattern.n, pattern.m, constraint == "at_most", sums)
    for array, used in zip(part[2:], (u, v), strict=True):
        if used is not array:
            array[...] = used
    return sums


def _proof(found: list[tuple[Sums, Part]]) -> Proof:
    """Add up what the kernel has found in parts."""
    from .kernel import BROKEN, DISTANCE, KEPT, NEAR, SUMS, TOTAL, UNPROVEN, WORST_GAP

    sums = np.concatenate([np.empty((0, SUMS)), *(part_sums for part_sums, _ in found)])
    return Proof(
        kept=add_up(sums[:, KEPT]),
        distance=add_up(sums[:, DISTANCE]),
        total=add_up(sums[:, TOTAL]),
        worst_gap=float(sums[:, WORST_GAP].max(initial=0.0)),
        broken=int(sums[:, BROKEN].sum()),
        unproven=int(sums[:, UNPROVEN].sum()),
        unproven_parts=[part for part_sums, part in found if part_sums[:, UNPROVEN].any()],
        near_parts=[part for part_sums, part in found if part_sums[:, NEAR].any()],
    )


def relative_gap(kept: float, upper_bound: float) -> float:
    """Return the fraction of an upper bound that a better mask could still gain; 0 where nothing can be kept."""
    if upper_bound == math.inf:
        return 1.0
    return max(0.0, (upper_bound - kept) / upper_bound) if upper_bound > 0 else 0.0


def add_up(values: Iterable[float]) -> float:
    """Return the sum of terms of at least 0, rounded once; infinity where that overflows."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def _parts(arrays: tuple[Array, ...], m: int) -> Iterator[Part]:
    """Cut (..., R, C) arrays into parts of about _CHUNK_ENTRIES, none smaller than a block row of that length."""
    if arrays[0].size == 0:
        return
    for stack in stacks(arrays):
        weights, mask, u, v = stack
        matrices, rows, columns = weights.shape
        width = m * max(1, min(_CHUNK_ENTRIES // m**2, -(-columns // m)))
        height = m * max(1, min(_CHUNK_ENTRIES // (m * width), -(-rows // m)))
        depth = max(1, _CHUNK_ENTRIES // (min(height, rows) * min(width, columns)))
        for k in range(0, matrices, depth):
            for i in range(0, rows, height):
                for j in range(0, columns, width):
                    whole = (slice(k, k + depth), slice(i, i + height), slice(j, j + width))
                    blocks = slice(i // m, -(-(i + height) // m)), slice(j // m, -(-(j + width) // m))
                    yield (
                        weights[whole],
                        mask[whole],
                        u[whole[0], whole[1], blocks[1]],
                        v[whole[0], blocks[0], whole[2]],
                    )


def _readable(weights: Array) -> Array:
    """Return weights as the kernel reads them: float32 or float64, C-contiguous; a copy where they are not that.

    bfloat16 becomes float32 by a shift, and float16 by a table, in half the time that numpy takes.
    """
    name = weights.dtype.type.__name__
    if name == "bfloat16" and weights.dtype.isnative:
        bits = weights.view(np.uint16).astype(np.uint32, order="C")
        bits <<= 16
        return _read_only(bits.view(np.float32))
    if name == "float16" and weights.dtype.isnative:
        return _read_only(_float16_values()[np.ascontiguousarray(weights.view(np.uint16))])
    return _read_only(np.require(weights, score_dtype(weights.dtype), ["C", "A"]))


@cache
def _float16_values() -> NDArray[np.float32]:
    """List float16 by its bits."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _as_bits(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a mask as the kernel reads it: bytes of 0 and 1, C-contiguous; memory of a bool may hold other numbers."""
    bits = np.ascontiguousarray(mask).view(np.uint8)
    return _read_only(bits if bits.max(initial=0) <= 1 else (bits != 0).view(np.uint8))


def _read_only(array: Array) -> Array:
    """View an array as read-only: the kernel is compiled for that, and so once for arrays of both kinds."""
    view = array.view()
    view.flags.writeable = False
    return view
