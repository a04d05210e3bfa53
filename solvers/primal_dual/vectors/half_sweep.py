"""Half a sweep of alternating dual minimisation, for LANES blocks at once.

Scores and duals are int32, in an array [row, column, lane]: lane l of every vector belongs to one block, so that one
instruction works on LANES blocks and nothing moves between lanes. Integers, because a minimum or a maximum of int32
costs half of one of float32 (half a sweep of a 16 x 16 block takes 17 ns against 30), and because they make the proof
of optimality exact.

For a line (a row or a column) let x_j = score_j - other_j, and let hi and lo be the N-th and the (N+1)-th largest. The
bound is minimal for any dual of this line in [lo, hi]. The new dual is

    middle + RELAXATION * (middle - old),    middle = (hi + lo) / 2

where RELAXATION depends on M, and is 3/4 where the floor is 0. Going beyond the middle, as successive over-relaxation
does, cuts the mean number of half sweeps from 17 to 13 for 8:16 and from 37 to 22 for 16:32 (Gaussian blocks). A line
is *settled* at a dual strictly between lo and hi: thresholding there keeps exactly N. Every lane has a floor under its
duals; a line is also settled at the floor when lo <= floor. "at_most" asks for a floor of 0; a floor of -LARGEST_DUAL
is out of reach.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..numbers import LANES, LARGEST_DUAL, LOW
from .native import INDEX, M, N, function, native
from .selection_network import selection_network

__all__ = [
    "ALL_LOW",
    "NEW_SETTLED",
    "OLD_SETTLED",
    "TIED",
    "LineVectors",
    "define_half_sweep",
    "half_sweep",
    "interleave",
]

# Where the flags of lane 0 stand in what `half_sweep` returns
OLD_SETTLED, NEW_SETTLED, TIED, ALL_LOW = 0, LANES, 2 * LANES, 3 * LANES


def relaxation_shifts(m):
    """Return the over-relaxation as right shifts to be summed: 0, 1/8, 1/4, 3/8 or 1/2.

    Every part is rounded towards zero, so that a line that is settled at its old dual is settled at the new one.
    Chosen by the mean number of half sweeps on Gaussian blocks at N = M / 2, and flat around the choice.
    """
    for largest_m, shifts in ((5, ()), (10, (3,)), (20, (2,)), (40, (2, 3))):
        if m <= largest_m:
            return shifts
    return (1,)


def floored_shifts(m):
    """Return the right shifts that raise the over-relaxation to 3/4 where the floor is 0.

    The median nearly rank-one block of 8:16 under "at_most" then needs 38 half sweeps instead of 83; nine in ten need
    up to 64, instead of more than 400. Other blocks need a few more.
    """
    for largest_m, shifts in ((5, (1, 2)), (10, (1, 3)), (20, (1,)), (40, (2, 3))):
        if m <= largest_m:
            return shifts
    return (2,)


@native(types.int64)
def half_sweep(
    kernels,
    scores: np.ndarray,
    line_stride,
    entry_stride,
    others: np.ndarray,
    duals: np.ndarray,
    middles: np.ndarray,
    floors: np.ndarray,
):
    """Update the duals of all lines of one direction.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    scores : ndarray of int32, shape (M * M * LANES,)
        At ((line * line_stride) + (entry * entry_stride)) * LANES + lane. Aligned to a vector, as are all below.
    line_stride, entry_stride : int
        (M, 1) for rows, (1, M) for columns.
    others : ndarray of int32, shape (M * LANES,)
        Duals of the other direction.
    duals : ndarray of int32, shape (M * LANES,)
        Duals of this direction; updated.
    middles : ndarray of int32, shape (M * LANES,)
        Overwritten with the middles, at which every line is settled that was settled at its old dual.
    floors : ndarray of int32, shape (LANES,)
        The least value of a dual of each lane.

    Returns
    -------
    int
        Bit OLD_SETTLED + l: the old duals were settled in all lines of lane l. Bit NEW_SETTLED + l: the new ones are.
        Bit TIED + l: at least two lines of lane l have hi == lo > floor. Bit ALL_LOW + l: all middles of lane l are
        below LOW.
    """
    n, m = int(kernels[N]), int(kernels[M])
    grid = scores.reshape(m, m, LANES)
    if line_stride == 1:
        grid = grid.swapaxes(0, 1)
    ordered = np.sort(grid - others.reshape(1, m, LANES), axis=1)
    hi, lo = ordered[:, m - n], ordered[:, m - n - 1]
    old = duals.reshape(m, LANES).copy()
    middle = np.maximum((hi + lo) >> 1, floors)
    new = middle.copy()
    for shift in relaxation_shifts(m):
        new += np.trunc((middle - old) / (1 << shift)).astype(np.int32)
    for shift in floored_shifts(m):
        new += np.where(floors == 0, np.trunc((middle - old) / (1 << shift)), 0).astype(np.int32)
    new = np.minimum(np.maximum(new, floors), LARGEST_DUAL)
    duals.reshape(m, LANES)[:] = new
    middles.reshape(m, LANES)[:] = middle
    flags = 0
    tied, low = ((hi == lo) & (hi > floors)).sum(axis=0) >= 2, (middle < LOW).all(axis=0)
    old_settled, new_settled = (
        ((lo < point) & (point < hi) | (point == floors) & (lo <= floors)).all(axis=0) for point in (old, new)
    )
    for first, lanes in ((OLD_SETTLED, old_settled), (NEW_SETTLED, new_settled), (TIED, tied), (ALL_LOW, low)):
        flags |= sum(1 << (first + int(lane)) for lane in np.flatnonzero(lanes))
    return flags - (1 << 64) if flags >> 63 else flags


class LineVectors:
    """The instructions of a half sweep, on LLVM vectors with a line in every lane."""

    def __init__(self, builder, n, m, lanes=LANES):
        self.builder, self.n, self.m = builder, n, m
        self.vector = ir.VectorType(ir.IntType(32), lanes)
        self.bits = ir.VectorType(ir.IntType(1), lanes)

    def constant(self, value):
        """Return a vector with a value in every lane."""
        return ir.Constant(self.vector, [value] * self.vector.count)

    def load(self, pointer, index):
        """Load a vector that is aligned."""
        loaded = self.builder.load(self.builder.gep(pointer, [index]))
        loaded.align = 64
        return loaded

    def store(self, vector, pointer, index):
        """Store a vector where it is aligned."""
        self.builder.store(vector, self.builder.gep(pointer, [index])).align = 64

    def extreme(self, kind, first, second):
        """Return the "min" or "max" of two vectors."""
        order = self.builder.icmp_signed(">" if kind == "max" else "<", first, second)
        return self.builder.select(order, first, second)

    def select_pair(self, entries):
        """Return the N-th and the (N+1)-th largest of M vectors, lane by lane."""
        operations, nth, following = selection_network(self.n, self.m)
        values = dict(enumerate(entries))
        for kind, target, first, second in operations:
            values[target] = self.extreme(kind, values[first], values[second])
        return values[nth], values[following]

    def settled(self, lo, point, hi, floor):
        """Tell in which lanes the line is settled at a dual."""
        both, compare = self.builder.and_, self.builder.icmp_signed
        inside = both(compare("<", lo, point), compare("<", point, hi))
        return self.builder.or_(inside, both(compare("==", point, floor), compare("<=", lo, floor)))

    def update(self, old, hi, lo, floor):
        """Return the middle and the new dual."""
        builder = self.builder
        middle = self.extreme("max", builder.ashr(builder.add(hi, lo), self.constant(1)), floor)
        new, step = middle, builder.sub(middle, old)
        floored = builder.sext(builder.icmp_signed("==", floor, self.constant(0)), self.vector)
        for shift in relaxation_shifts(self.m):
            new = builder.add(new, builder.sdiv(step, self.constant(1 << shift)))
        for shift in floored_shifts(self.m):
            new = builder.add(new, builder.and_(builder.sdiv(step, self.constant(1 << shift)), floored))
        return middle, self.extreme("min", self.extreme("max", new, floor), self.constant(LARGEST_DUAL))


def interleave(builder, columns):
    """Turn M vectors with a block in every lane into one with a block in every M entries."""

    def shuffle(first, second, places):
        return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))

    row = columns[0]
    for column in columns[1:]:
        width = row.type.count
        padded = shuffle(column, column, [min(place, LANES - 1) for place in range(width)])
        row = shuffle(row, padded, list(range(width + LANES)))
    return shuffle(row, row, [j * LANES + lane for lane in range(LANES) for j in range(len(columns))])


def define_half_sweep(module, n, m, weight_type):
    """Generate `half_sweep` for a pattern."""
    lines = LineVectors(None, n, m)
    with function(module, half_sweep, types.int64) as (builder, scores, line_stride, entry_stride, *arrays):
        lines.builder = builder
        scores, others, duals, middles, floors = (
            builder.bitcast(pointer, lines.vector.as_pointer()) for pointer in (scores, *arrays)
        )
        floor = lines.load(floors, INDEX(0))
        all_bits = ir.Constant(lines.bits, [1] * LANES)
        before, after = (cgutils.alloca_once_value(builder, all_bits) for _ in range(2))
        ties = cgutils.alloca_once_value(builder, lines.constant(0))
        highest = cgutils.alloca_once_value(builder, lines.constant(-LARGEST_DUAL))
        with cgutils.for_range(builder, INDEX(m)) as loop:
            start = builder.mul(loop.index, line_stride)
            entries = []
            for entry in range(m):
                score = lines.load(scores, builder.add(start, builder.mul(entry_stride, INDEX(entry))))
                entries.append(builder.sub(score, lines.load(others, INDEX(entry))))
            hi, lo = lines.select_pair(entries)
            old = lines.load(duals, loop.index)
            middle, new = lines.update(old, hi, lo, floor)
            lines.store(new, duals, loop.index)
            lines.store(middle, middles, loop.index)
            for flags, point in ((before, old), (after, new)):
                builder.store(builder.and_(builder.load(flags), lines.settled(lo, point, hi, floor)), flags)
            builder.store(lines.extreme("max", builder.load(highest), middle), highest)
            tie = builder.and_(builder.icmp_signed("==", hi, lo), builder.icmp_signed(">", hi, floor))
            builder.store(builder.add(builder.load(ties), builder.zext(tie, lines.vector)), ties)
        tied = builder.icmp_signed(">=", builder.load(ties), lines.constant(2))
        low = builder.icmp_signed("<", builder.load(highest), lines.constant(LOW))
        packed = INDEX(0)
        old_settled, new_settled = builder.load(before), builder.load(after)
        for first, flags in ((OLD_SETTLED, old_settled), (NEW_SETTLED, new_settled), (TIED, tied), (ALL_LOW, low)):
            mask = builder.zext(builder.bitcast(flags, ir.IntType(LANES)), INDEX)
            packed = builder.or_(packed, builder.shl(mask, INDEX(first)))
        builder.ret(packed)
