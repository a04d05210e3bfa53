"""Prove LANES masks optimal at once: what `phase2_proof` does to all lanes.

Everything is int64, in arrays [row, column, lane] and [line, lane]. An exact score x stands as x where the entry is
kept, and as ~x = -1 - x where it is not. Line M of the duals and of the predecessors is the dummy.
"""

# mypy: ignore-errors

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..numbers import LANES, NEVER, PENALTY
from .half_sweep import interleave
from .lane_vectors import FLAGS, NARROW, WIDE, constant, load, store, vectors
from .native import BYTES, INDEX, M, N, function, native, splat

__all__ = ["define_proof_functions", "mark_lanes", "relax_lanes", "store_masks"]


@native(types.int64)
def mark_lanes(
    kernels, scores: np.ndarray, u: np.ndarray, v: np.ndarray, exact: np.ndarray, sides: np.ndarray, at_most
):  # fmt: skip
    """Mark the exact scores of entries that are not kept, where score <= u + v, and set what the dummies can take.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    scores : ndarray of int32, shape (M * M * LANES,)
        The scores of the lanes. Aligned to a vector, as are all below.
    u, v : ndarray of int32, shape (M * LANES,)
    exact : ndarray of int64, shape (M * M * LANES,)
        Exact scores, of which those that are not kept become ~x.
    sides : ndarray of int64, shape (4 * M * LANES,)
        Written: for each row the score at which its flow to the dummy can be removed, or NEVER; that at which more can
        be added, or -NEVER; then the same for each column. Under "at_most" both are 0 where a row keeps less than N,
        which makes its dual 0, and adding is 0 where it keeps N, which makes it positive.
    at_most : int or bool

    Returns
    -------
    int
        Bit l: in lane l some lines keep more than N, or, unless `at_most`, less.
    """
    n, m = int(kernels[N]), int(kernels[M])
    kept = scores.reshape(m, m, LANES) - v.reshape(m, LANES) > u.reshape(m, 1, LANES)
    exact.reshape(m, m, LANES)[~kept] ^= -1
    unbalanced = np.zeros(LANES, bool)
    for axis, (removable, addable) in zip((1, 0), sides.reshape(2, 2, m, LANES), strict=True):
        count = kept.sum(axis=axis)
        removable[...] = np.where(count < n, 0 if at_most else -PENALTY, NEVER)
        addable[...] = np.where(count > n, PENALTY, 0 if at_most else -NEVER)
        unbalanced |= ((count > n) | (count < n) & (not at_most)).any(axis=0)
    return sum(1 << int(lane) for lane in np.flatnonzero(unbalanced))


@native(types.int64)
def relax_lanes(
    kernels, exact: np.ndarray, sides: np.ndarray, coarse: np.ndarray, u: np.ndarray, v: np.ndarray,
    row_from: np.ndarray, column_from: np.ndarray, dummies,
):  # fmt: skip
    """Lower u to the largest and raise v to the least that complementary slackness allows.

    Parameters
    ----------
    kernels, exact, sides
        As `mark_lanes` leaves them.
    coarse : ndarray of int64, shape (LANES,)
        Bits that the exact scores of a lane lose.
    u : ndarray of int64, shape ((M + 1) * LANES,)
        Lowered to min_j removable - v.
    v : ndarray of int64, shape ((M + 1) * LANES,)
        Raised to max_i addable - u.
    row_from, column_from : ndarray of int64, shape ((M + 1) * LANES,)
        Where a dual changed, the column or the row that it follows from.
    dummies : int or bool
        Whether there are dummies; if not, line M is left alone.

    Returns
    -------
    int
        Bit l: v changed in lane l. Where it did not, (u, v) has complementary slackness.
    """
    m = int(kernels[M])
    size = m + bool(dummies)
    exact = exact.reshape(m, m, LANES) >> coarse
    removable, addable = np.full((2, size, size, LANES), 0)
    removable[:m, :m] = np.where(exact >= 0, exact, NEVER)
    addable[:m, :m] = np.where(exact < 0, ~exact, -NEVER)
    if dummies:
        removable[:m, m], addable[:m, m], removable[m, :m], addable[m, :m] = sides.reshape(4, m, LANES)
    u, v, row_from, column_from = (array.reshape(m + 1, LANES)[:size] for array in (u, v, row_from, column_from))
    reduced = removable - v
    row_from[...] = np.where(reduced.min(axis=1) < u, reduced.argmin(axis=1), row_from)
    np.minimum(u, reduced.min(axis=1), out=u)
    reduced = addable - u[:, None]
    raised = reduced.max(axis=0) > v
    column_from[...] = np.where(raised, reduced.argmax(axis=0), column_from)
    np.maximum(v, reduced.max(axis=0), out=v)
    return sum(1 << int(lane) for lane in np.flatnonzero(raised.any(axis=0)))


@native(types.none)
def store_masks(kernels, exact: np.ndarray, mask: np.ndarray, offsets: np.ndarray, stride, which):
    """Write the masks of some lanes.

    Parameters
    ----------
    kernels, exact
        As `mark_lanes` leaves them.
    mask : ndarray of bool, one axis
        Written.
    offsets : ndarray of int64, shape (LANES,)
        Where the block of each lane starts in `mask`.
    stride : int
        How far apart the rows of a block are.
    which : int
        Bit l: lane l is written.
    """
    m = int(kernels[M])
    kept = exact.reshape(m, m, LANES) >= 0
    for lane in range(LANES):
        for i in range(m if which >> lane & 1 else 0):
            start = offsets[lane] + i * stride
            mask[start : start + m] = kept[i, :, lane]


def define_proof_functions(module, n, m, weight_type):
    """Generate the functions of this file for a pattern."""
    _define_mark_lanes(module, n, m)
    _define_relax_lanes(module, m)
    _define_store_masks(module, m)


def _define_mark_lanes(module, n, m):
    with function(module, mark_lanes, types.int64) as (builder, scores, u, v, exact, sides, at_most):
        scores, u, v = vectors(builder, NARROW, scores, u, v)
        exact, sides = vectors(builder, WIDE, exact, sides)
        counts = cgutils.alloca_once(builder, WIDE, size=INDEX(2 * m))
        with cgutils.for_range(builder, INDEX(2 * m)) as line:
            store(builder, constant(WIDE, 0), counts, line.index)
        with cgutils.for_range(builder, INDEX(m)) as row:
            dual = load(builder, u, row.index)
            in_row = cgutils.alloca_once_value(builder, constant(WIDE, 0))
            builder.store(constant(WIDE, 0), in_row)
            with cgutils.for_range(builder, INDEX(m)) as column:
                place = builder.add(builder.mul(row.index, INDEX(m)), column.index)
                reduced = builder.sub(load(builder, scores, place), load(builder, v, column.index))
                kept = builder.icmp_signed(">", reduced, dual)
                score = load(builder, exact, place)
                store(builder, builder.select(kept, score, builder.not_(score)), exact, place)
                one = builder.zext(kept, WIDE)
                builder.store(builder.add(builder.load(in_row), one), in_row)
                in_column = builder.add(column.index, INDEX(m))
                store(builder, builder.add(load(builder, counts, in_column), one), counts, in_column)
            store(builder, builder.load(in_row), counts, row.index)
        exactly = splat(builder, builder.icmp_signed("==", at_most, INDEX(0)), LANES)
        short_score = builder.select(exactly, constant(WIDE, -PENALTY), constant(WIDE, 0))
        more_score = builder.select(exactly, constant(WIDE, -NEVER), constant(WIDE, 0))
        unbalanced = cgutils.alloca_once_value(builder, ir.Constant(FLAGS, [0] * LANES))
        with cgutils.for_range(builder, INDEX(2 * m)) as line:
            count = load(builder, counts, line.index)
            short = builder.icmp_signed("<", count, constant(WIDE, n))
            over = builder.icmp_signed(">", count, constant(WIDE, n))
            after_rows = builder.select(builder.icmp_signed("<", line.index, INDEX(m)), INDEX(0), INDEX(m))
            place = builder.add(line.index, after_rows)
            store(builder, builder.select(short, short_score, constant(WIDE, NEVER)), sides, place)
            addable = builder.select(over, constant(WIDE, PENALTY), more_score)
            store(builder, addable, sides, builder.add(place, INDEX(m)))
            wrong = builder.or_(over, builder.and_(short, exactly))
            builder.store(builder.or_(builder.load(unbalanced), wrong), unbalanced)
        builder.ret(builder.zext(builder.bitcast(builder.load(unbalanced), ir.IntType(LANES)), INDEX))


def _define_relax_lanes(module, m):
    with function(module, relax_lanes, types.int64) as (
        builder, exact, sides, coarse, u, v, row_from, column_from, dummies
    ):  # fmt: skip
        arrays = vectors(builder, WIDE, exact, sides, coarse, u, v, row_from, column_from)
        exact, sides, coarse, u, v, row_from, column_from = arrays
        lost = load(builder, coarse, INDEX(0))
        extreme, place, changed = (cgutils.alloca_once_value(builder, constant(WIDE, 0)) for _ in range(3))
        dummies = builder.icmp_signed("!=", dummies, INDEX(0))

        def relax_lines(order, line_stride, entry_stride, own_sides, other_sides, duals, others, origins):
            def consider(score, entry):
                reduced, so_far = builder.sub(score, load(builder, others, entry)), builder.load(extreme)
                better = builder.icmp_signed(order, reduced, so_far)
                builder.store(builder.select(better, reduced, so_far), extreme)
                builder.store(builder.select(better, splat(builder, entry, LANES), builder.load(place)), place)

            @contextmanager
            def updated(line):
                before = load(builder, duals, line)
                builder.store(before, extreme)
                builder.store(load(builder, origins, line), place)
                yield
                after = builder.load(extreme)
                store(builder, after, duals, line)
                store(builder, builder.load(place), origins, line)
                builder.store(builder.or_(builder.load(changed), builder.xor(before, after)), changed)

            with cgutils.for_range(builder, INDEX(m)) as line, updated(line.index):
                with cgutils.for_range(builder, INDEX(m)) as entry:
                    at = builder.add(builder.mul(line.index, line_stride), builder.mul(entry.index, entry_stride))
                    score = builder.ashr(load(builder, exact, at), lost)
                    kept = builder.icmp_signed(">=", score, constant(WIDE, 0))
                    if order == "<":
                        score = builder.select(kept, score, constant(WIDE, NEVER))
                    else:
                        score = builder.select(kept, constant(WIDE, -NEVER), builder.not_(score))
                    consider(score, entry.index)
                with builder.if_then(dummies):
                    consider(load(builder, sides, builder.add(line.index, INDEX(own_sides))), INDEX(m))
            with builder.if_then(dummies), updated(INDEX(m)):
                with cgutils.for_range(builder, INDEX(m)) as entry:
                    consider(load(builder, sides, builder.add(entry.index, INDEX(other_sides))), entry.index)
                consider(constant(WIDE, 0), INDEX(m))

        relax_lines("<", INDEX(m), INDEX(1), 0, 2 * m, u, v, row_from)
        builder.store(constant(WIDE, 0), changed)
        relax_lines(">", INDEX(1), INDEX(m), 3 * m, m, v, u, column_from)
        bits = builder.icmp_unsigned("!=", builder.load(changed), constant(WIDE, 0))
        builder.ret(builder.zext(builder.bitcast(bits, ir.IntType(LANES)), INDEX))


def _define_store_masks(module, m):
    with function(module, store_masks, types.none) as (builder, exact, mask, offsets, stride, which):
        (exact,) = vectors(builder, WIDE, exact)
        (offsets,) = vectors(builder, INDEX, offsets)
        lane_bytes = ir.VectorType(ir.IntType(8), LANES)
        widths = [8] * (m // 8) + [m % 8] * (m % 8 > 0)  # of parts of a row; vectors of more bytes take long to compile
        buffer = cgutils.alloca_once(builder, lane_bytes, size=INDEX(m))
        with cgutils.for_range(builder, INDEX(m)) as row:
            starts = []
            for width in widths:
                first, columns = 8 * len(starts), []
                for j in range(first, first + width):
                    score = load(builder, exact, builder.add(builder.mul(row.index, INDEX(m)), INDEX(j)))
                    columns.append(builder.zext(builder.icmp_signed(">=", score, constant(WIDE, 0)), lane_bytes))
                part = interleave(builder, columns)
                starts.append(builder.gep(buffer, [INDEX(first)]))
                builder.store(part, builder.bitcast(starts[-1], part.type.as_pointer())).align = 1
            in_mask = builder.gep(mask, [builder.mul(stride, row.index)])
            with cgutils.for_range(builder, INDEX(LANES)) as lane:
                bit = builder.and_(builder.lshr(which, lane.index), INDEX(1))
                with builder.if_then(builder.icmp_unsigned("!=", bit, INDEX(0))):
                    target = builder.gep(in_mask, [builder.load(builder.gep(offsets, [lane.index]))])
                    for part, (start, width) in enumerate(zip(starts, widths, strict=True)):
                        bytes_ = ir.VectorType(ir.IntType(8), width).as_pointer()
                        source = builder.gep(builder.bitcast(start, BYTES), [builder.mul(lane.index, INDEX(width))])
                        loaded = builder.load(builder.bitcast(source, bytes_))
                        loaded.align = 1
                        place = builder.bitcast(builder.gep(target, [INDEX(8 * part)]), bytes_)
                        builder.store(loaded, place).align = 1
        builder.ret_void()
