"""Prove LANES masks optimal at once: `relax` with a block in every lane.

Everything here is int64, in arrays [row, column, lane] of E rows and columns: M, or M + 1 with the dummies of
`_repair_kernels`.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ._dual_sweep_kernels import LANES, interleave
from ._lane_kernels import NEVER
from ._native import BYTES, INDEX, M, function, native, splat

__all__ = ["NOISE_BITS", "define_proof_functions", "mark_lanes", "perturb_lanes", "relax_lanes", "store_masks"]


NOISE_BITS = 20  # of 28: more, and true scores are reordered; fewer, and tied blocks take more sweeps
LARGEST_EXTRA = 5  # more bits where the scores leave room
HIDDEN = 1 << NOISE_BITS  # scores below this are hidden by a perturbation
ROOT_BITS = 147 * (1 << 23) - 127 * (1 << 20)  # added to an eighth of the bits of x in float32, gives 2**20 * x**(1/8)


@native(types.none)
def perturb_lanes(kernels, scores: np.ndarray, exact: np.ndarray, noise: np.ndarray):
    """Add a perturbation to the scores of all lanes.

    It is the larger the fewer bits the scores of a block need: below a quarter of the least bit in use it hardly
    changes the order of two masks, and the sweeps, which move by amounts of its size, are the faster.

    Where the perturbation would hide most scores of a block, because they lie decades apart, it is 16 times smaller,
    and the eighth roots of the exact scores take the place of the scores: nearly always the same masks are optimal.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    scores : ndarray of int32, shape (M * M * LANES,)
        Updated. Aligned to a vector.
    exact : ndarray of int64, shape (M * M * LANES,)
        The exact scores. Aligned to a vector.
    noise : ndarray of int32, shape (M * M,)
        Up to 2**NOISE_BITS.
    """
    m = int(kernels[M])
    grid, noise = scores.reshape(m * m, LANES), noise[: m * m, None]
    hidden = (grid > 0) & (grid < HIDDEN)
    wide = hidden.sum(axis=0) > (grid >= HIDDEN).sum(axis=0)
    union = np.bitwise_or.reduce(grid, axis=0)
    zeros = np.where(union == 0, 32, np.frexp((union & -union).astype(np.float64))[1] - 1)
    extra = np.clip(zeros - NOISE_BITS - 2, 0, LARGEST_EXTRA)
    bits = exact.reshape(m * m, LANES).astype(np.float32).view(np.int32)
    roots = ((bits >> 3) + ROOT_BITS).view(np.float32).astype(np.int32)
    grid[...] = np.where(wide, roots + (noise >> 4), grid + (noise << extra))


@native(types.none)
def mark_lanes(
    kernels, scores: np.ndarray, u: np.ndarray, v: np.ndarray, exact: np.ndarray,
    removable: np.ndarray, addable: np.ndarray, size,
):  # fmt: skip
    """Sort exact scores into those of entries that are kept, where score > u + v, and those of entries that are not.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    scores : ndarray of int32, shape (M * M * LANES,)
        The scores of the lanes. Aligned to a vector, as are all below.
    u, v : ndarray of int32, shape (M * LANES,)
    exact : ndarray of int64, shape (M * M * LANES,)
    removable, addable : ndarray of int64, shape (E * E * LANES,)
        Their first M rows and columns are written: the exact score where the entry is kept, else NEVER; the exact score
        where it is not, else -NEVER.
    size : int
        E.
    """
    m = int(kernels[M])
    kept = scores.reshape(m, m, LANES) - v.reshape(m, LANES) > u.reshape(m, 1, LANES)
    exact = exact.reshape(m, m, LANES)
    removable.reshape(size, size, LANES)[:m, :m] = np.where(kept, exact, NEVER)
    addable.reshape(size, size, LANES)[:m, :m] = np.where(kept, -NEVER, exact)


@native(types.int64)
def relax_lanes(
    kernels, removable: np.ndarray, addable: np.ndarray, u: np.ndarray, v: np.ndarray,
    row_from: np.ndarray, column_from: np.ndarray, size,
):  # fmt: skip
    """Lower u to the largest and raise v to the least that complementary slackness allows.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    removable, addable : ndarray of int64, shape (E * E * LANES,)
        Scores where flow can be removed, or added; a huge and a hugely negative number elsewhere. Aligned to a vector,
        as are all below.
    u : ndarray of int64, shape (E * LANES,)
        Lowered to min_j removable - v.
    v : ndarray of int64, shape (E * LANES,)
        Raised to max_i addable - u.
    row_from, column_from : ndarray of int64, shape (E * LANES,)
        Where a dual changed, the column or the row that it follows from.
    size : int
        E.

    Returns
    -------
    int
        Bit l: v changed in lane l. Where it did not, (u, v) has complementary slackness.
    """
    removable, addable = (array.reshape(size, size, LANES) for array in (removable, addable))
    u, v, row_from, column_from = (array.reshape(size, LANES) for array in (u, v, row_from, column_from))
    reduced = removable - v
    row_from[...] = np.where(reduced.min(axis=1) < u, reduced.argmin(axis=1), row_from)
    np.minimum(u, reduced.min(axis=1), out=u)
    reduced = addable - u[:, None]
    raised = reduced.max(axis=0) > v
    column_from[...] = np.where(raised, reduced.argmax(axis=0), column_from)
    np.maximum(v, reduced.max(axis=0), out=v)
    return sum(1 << int(lane) for lane in np.flatnonzero(raised.any(axis=0)))


@native(types.none)
def store_masks(
    kernels, removable: np.ndarray, size, mask: np.ndarray, offsets: np.ndarray, stride, which
):  # fmt: skip
    """Write the masks of some lanes: kept where flow can be removed.

    Parameters
    ----------
    kernels, removable, size
        As in `mark_lanes`.
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
    kept = removable.reshape(size, size, LANES)[:m, :m] < NEVER
    for lane in range(LANES):
        for i in range(m if which >> lane & 1 else 0):
            start = offsets[lane] + i * stride
            mask[start : start + m] = kept[i, :, lane]


def define_proof_functions(module, n, m, weight_bytes):
    """Generate the functions of this file for a pattern."""
    _define_perturb_lanes(module, m)
    _define_mark_lanes(module, m)
    _define_relax_lanes(module)
    _define_store_masks(module, m)


WIDE = ir.VectorType(INDEX, LANES)
NARROW = ir.VectorType(ir.IntType(32), LANES)


def _vectors(builder, vector, *pointers):
    return [builder.bitcast(pointer, vector.as_pointer()) for pointer in pointers]


def _load(builder, pointer, place):
    loaded = builder.load(builder.gep(pointer, [place]))
    loaded.align = 64
    return loaded


def _store(builder, vector, pointer, place):
    builder.store(vector, builder.gep(pointer, [place])).align = 64


def _define_perturb_lanes(module, m):
    with function(module, perturb_lanes, types.none) as (builder, scores, exact, noise):
        (scores,), (exact,) = _vectors(builder, NARROW, scores), _vectors(builder, WIDE, exact)
        (noise,) = _vectors(builder, ir.IntType(32), noise)

        def constant(value):
            return ir.Constant(NARROW, [value] * LANES)

        union, balance = (cgutils.alloca_once_value(builder, constant(0)) for _ in range(2))
        with cgutils.for_range(builder, INDEX(m * m)) as entry:
            score = _load(builder, scores, entry.index)
            builder.store(builder.or_(builder.load(union), score), union)
            positive = builder.zext(builder.icmp_signed(">", score, constant(0)), NARROW)
            visible = builder.icmp_signed(">=", score, constant(HIDDEN))
            counted = builder.select(visible, constant(-1), positive)
            builder.store(builder.add(builder.load(balance), counted), balance)
        count_type = ir.FunctionType(NARROW, [NARROW, ir.IntType(1)])
        count_zeros = cgutils.get_or_insert_function(module, count_type, f"llvm.cttz.v{LANES}i32")
        zeros = builder.call(count_zeros, [builder.load(union), ir.IntType(1)(0)])
        extra = builder.sub(zeros, constant(NOISE_BITS + 2))
        for order, bound in (("<", 0), (">", LARGEST_EXTRA)):
            limit = constant(bound)
            extra = builder.select(builder.icmp_signed(order, extra, limit), limit, extra)
        wide = builder.icmp_signed(">", builder.load(balance), constant(0))
        with cgutils.for_range(builder, INDEX(m * m)) as entry:
            single = splat(builder, builder.load(builder.gep(noise, [entry.index])), LANES)
            usual = builder.add(_load(builder, scores, entry.index), builder.shl(single, extra))
            reals = ir.VectorType(ir.FloatType(), LANES)
            bits = builder.bitcast(builder.sitofp(_load(builder, exact, entry.index), reals), NARROW)
            bits = builder.add(builder.ashr(bits, constant(3)), constant(ROOT_BITS))
            root = builder.fptosi(builder.bitcast(bits, reals), NARROW)
            root = builder.add(root, builder.ashr(single, constant(4)))
            _store(builder, builder.select(wide, root, usual), scores, entry.index)
        builder.ret_void()


def _define_mark_lanes(module, m):
    with function(module, mark_lanes, types.none) as (builder, scores, u, v, exact, removable, addable, size):
        scores, u, v = _vectors(builder, NARROW, scores, u, v)
        exact, removable, addable = _vectors(builder, WIDE, exact, removable, addable)
        with cgutils.for_range(builder, INDEX(m)) as row:
            dual = _load(builder, u, row.index)
            with cgutils.for_range(builder, INDEX(m)) as column:
                place = builder.add(builder.mul(row.index, INDEX(m)), column.index)
                reduced = builder.sub(_load(builder, scores, place), _load(builder, v, column.index))
                kept = builder.icmp_signed(">", reduced, dual)
                score = _load(builder, exact, place)
                never, always = (ir.Constant(WIDE, [value] * LANES) for value in (NEVER, -NEVER))
                place = builder.add(builder.mul(row.index, size), column.index)
                _store(builder, builder.select(kept, score, never), removable, place)
                _store(builder, builder.select(kept, always, score), addable, place)
        builder.ret_void()


def _define_relax_lanes(module):
    with function(module, relax_lanes, types.int64) as (
        builder, removable, addable, u, v, row_from, column_from, size
    ):  # fmt: skip
        arrays = _vectors(builder, WIDE, removable, addable, u, v, row_from, column_from)
        removable, addable, u, v, row_from, column_from = arrays
        zero = ir.Constant(WIDE, [0] * LANES)
        extreme, place = (cgutils.alloca_once_value(builder, zero) for _ in range(2))
        changed = cgutils.alloca_once_value(builder, zero)

        def relax_lines(order, scores, line_stride, entry_stride, duals, others, origins):
            with cgutils.for_range(builder, size) as line:
                before = _load(builder, duals, line.index)
                builder.store(before, extreme)
                builder.store(_load(builder, origins, line.index), place)
                with cgutils.for_range(builder, size) as entry:
                    at = builder.add(builder.mul(line.index, line_stride), builder.mul(entry.index, entry_stride))
                    reduced = builder.sub(_load(builder, scores, at), _load(builder, others, entry.index))
                    so_far = builder.load(extreme)
                    better = builder.icmp_signed(order, reduced, so_far)
                    builder.store(builder.select(better, reduced, so_far), extreme)
                    index = splat(builder, entry.index, LANES)
                    builder.store(builder.select(better, index, builder.load(place)), place)
                after = builder.load(extreme)
                _store(builder, after, duals, line.index)
                _store(builder, builder.load(place), origins, line.index)
                builder.store(builder.or_(builder.load(changed), builder.xor(before, after)), changed)

        relax_lines("<", removable, size, INDEX(1), u, v, row_from)
        builder.store(zero, changed)
        relax_lines(">", addable, INDEX(1), size, v, u, column_from)
        bits = builder.icmp_unsigned("!=", builder.load(changed), zero)
        builder.ret(builder.zext(builder.bitcast(bits, ir.IntType(LANES)), INDEX))


def _define_store_masks(module, m):
    with function(module, store_masks, types.none) as (builder, removable, size, mask, offsets, stride, which):
        (removable,) = _vectors(builder, WIDE, removable)
        (offsets,) = _vectors(builder, INDEX, offsets)
        lane_bytes, block_row = (ir.VectorType(ir.IntType(8), length) for length in (LANES, m))
        rows = cgutils.alloca_once(builder, lane_bytes, size=INDEX(m * m))
        flat = builder.bitcast(rows, BYTES)
        with cgutils.for_range(builder, INDEX(m)) as row:
            start = builder.mul(row.index, size)
            columns = []
            for j in range(m):
                score = _load(builder, removable, builder.add(start, INDEX(j)))
                kept = builder.icmp_signed("<", score, ir.Constant(WIDE, [NEVER] * LANES))
                columns.append(builder.zext(kept, lane_bytes))
            whole = interleave(builder, columns)
            place = builder.gep(rows, [builder.mul(row.index, INDEX(m))])
            builder.store(whole, builder.bitcast(place, whole.type.as_pointer())).align = 1
        with cgutils.for_range(builder, INDEX(LANES)) as lane:
            bit = builder.and_(builder.lshr(which, lane.index), INDEX(1))
            with builder.if_then(builder.icmp_unsigned("!=", bit, INDEX(0))):
                target = builder.gep(mask, [builder.load(builder.gep(offsets, [lane.index]))])
                for i in range(m):
                    source = builder.gep(flat, [builder.add(builder.mul(lane.index, INDEX(m)), INDEX(i * LANES * m))])
                    loaded = builder.load(builder.bitcast(source, block_row.as_pointer()))
                    loaded.align = 1
                    place = builder.gep(target, [builder.mul(stride, INDEX(i))])
                    builder.store(loaded, builder.bitcast(place, block_row.as_pointer())).align = 1
        builder.ret_void()
