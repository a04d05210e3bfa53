"""Move one block between the caller's memory and one lane of the blocks in flight.

Here a row of a block is one vector of M entries; in flight, where every lane is another block, it is M entries LANES
apart. Scores are scaled by a power of two, capped at CAP, and rounded up to an integer q. Below the cap
q - 1 < scaled score <= q, so that only zero becomes 0.
"""

# mypy: ignore-errors

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..numbers import CAP, LANES, LARGEST_DUAL, SCORE_BITS, TINY
from .block_rows import BlockRows
from .native import INDEX, M, function, native, prefetch
from .weights import weight_rows

__all__ = [
    "clamped_duals",
    "define_lane_functions",
    "exact_rows",
    "load_duals",
    "load_exact_lane",
    "load_lane",
    "quantised_rows",
    "score_shift",
    "store_mask",
]


@native(types.int64)
def score_shift(kernels, weights: np.ndarray, offset, stride):
    """Return s such that the largest magnitude of a block times 2**s lies in [CAP / 2, CAP); 0 if it is 0.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    weights : ndarray of uint8, one axis
        The memory of weights of one of `weights.WEIGHT_TYPES`.
    offset, stride : int
        Where the block starts, and how far apart its rows are, in weights.

    Returns
    -------
    int
    """
    largest = float(np.abs(_rows(kernels, weights, offset, stride)).max())
    return SCORE_BITS - math.frexp(largest)[1] if largest > 0 else 0


@native(types.none)
def load_lane(kernels, weights: np.ndarray, offset, stride, shift, scores: np.ndarray, lane):
    """Quantise a block into a lane.

    Parameters
    ----------
    kernels, weights, offset, stride
        As in `score_shift`.
    shift : int
        The scores are multiplied by 2**shift.
    scores : ndarray of int32, shape (M * M * LANES,)
        Written at lane `lane`.
    lane : int
    """
    quantised = _quantised(_rows(kernels, weights, offset, stride), shift)
    scores[lane : quantised.size * LANES : LANES] = quantised.ravel()


@native(types.none)
def load_duals(kernels, duals: np.ndarray, offset, stride, shift, lane_duals: np.ndarray, lane):
    """Put the duals of a warm start into a lane.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    duals : ndarray of float64, one axis
    offset, stride : int
        Where those of the block start, and how far apart they are.
    shift : int
        They are multiplied by 2**shift, clamped to LARGEST_DUAL, and rounded to zero; NaN becomes 0.
    lane_duals : ndarray of int32, shape (M * LANES,)
        Written at lane `lane`.
    lane : int
    """
    scaled = np.ldexp(duals[offset:][::stride][: int(kernels[M])], shift)
    lane_duals[lane::LANES] = clamped_duals(scaled)


@native(types.int64)
def load_exact_lane(kernels, weights: np.ndarray, offset, stride, shift, scores: np.ndarray, lane):
    """Load the exact scores of a block into a lane.

    Parameters
    ----------
    kernels, weights, offset, stride, lane
        As in `load_lane`.
    shift : int
        The scores are multiplied by 2**shift and rounded up, so that only zero becomes 0.
    scores : ndarray of int64, shape (M * M * LANES,)
        Written at lane `lane`.

    Returns
    -------
    int
        1 if a score was rounded to less than TINY, else 0.
    """
    rows = _rows(kernels, weights, offset, stride)
    exact = _exact(rows, shift)
    scores[lane : exact.size * LANES : LANES] = exact.ravel()
    return int(((np.ldexp(np.abs(rows).astype(np.float64), shift) != exact) & (exact < TINY)).any())


@native(types.int64)
def store_mask(
    kernels, weights: np.ndarray, offset, stride, shift, u: np.ndarray, v: np.ndarray, lane,
    mask: np.ndarray, mask_offset, mask_stride,
):  # fmt: skip
    """Write the mask of a block: kept where the integer score exceeds u + v.

    Parameters
    ----------
    kernels, weights, offset, stride, shift, lane
        As in `load_lane`.
    u, v : ndarray of int32, shape (M * LANES,)
        Duals of the rows and of the columns.
    mask : ndarray of bool, one axis
        Written.
    mask_offset, mask_stride : int
        Where the block starts in `mask`, and how far apart its rows are.

    Returns
    -------
    int
        1 if all capped scores are kept. If not, the mask need not be optimal, and it is 0.
    """
    quantised = _quantised(_rows(kernels, weights, offset, stride), shift)
    kept = quantised - v[lane::LANES] > u[lane::LANES, None]
    for i, row in enumerate(kept):
        mask[mask_offset + i * mask_stride : mask_offset + i * mask_stride + len(row)] = row
    return int(kept[quantised == CAP].all())


def clamped_duals(scaled):
    """Round scaled duals to zero, clamp them, and let NaN be 0; for twins in Python."""
    return np.clip(np.where(np.isnan(scaled), 0, scaled), -LARGEST_DUAL, LARGEST_DUAL).astype(np.int32)


def quantised_rows(kernels, weights, offset, stride, shift):
    """Return the integer scores of a block as `load_lane` loads them; for twins in Python."""
    return _quantised(_rows(kernels, weights, offset, stride), shift)


def exact_rows(kernels, weights, offset, stride, shift):
    """Return the exact scores of a block as `load_exact_lane` loads them; for twins in Python."""
    return _exact(_rows(kernels, weights, offset, stride), shift)


def _rows(kernels, weights, offset, stride):
    m = int(kernels[M])
    return weight_rows(kernels, weights, offset, stride, m, m)


def _quantised(rows, shift):
    return np.minimum(_rounded_up(rows, shift), CAP).astype(np.int32)


def _exact(rows, shift):
    return _rounded_up(rows.astype(np.float64), shift).astype(np.int64)


def _rounded_up(rows, shift):
    scaled = np.ldexp(np.abs(rows), shift)
    return np.ceil(np.where(rows == 0, 0, np.maximum(scaled, 0.5)))  # what underflows is not 0


def define_lane_functions(module, n, m, weight_type):
    """Generate the functions of this file for a pattern."""
    _define_score_shift(module, m, weight_type)
    _define_load_lane(module, m, weight_type)
    _define_load_duals(module, m, weight_type)
    _define_load_exact_lane(module, m, weight_type)
    _define_store_mask(module, m, weight_type)


def _define_score_shift(module, m, weight_type):
    with function(module, score_shift, types.int64) as (builder, weights, offset, stride):
        rows = BlockRows(builder, m, weight_type, weights, offset, stride)
        largest = cgutils.alloca_once_value(builder, ir.Constant(rows.type, [0.0] * m))
        with rows.loop() as (index, row):
            ahead = builder.mul(builder.add(index, INDEX(m)), stride)
            for line in range(0, m, 64 // weight_type.size):
                prefetch(builder, rows.start, builder.add(ahead, INDEX(line)))
            seen = builder.load(largest)
            builder.store(builder.select(builder.fcmp_ordered(">", row, seen), row, seen), largest)
        reduce = rows.intrinsic("vector.reduce.fmax", rows.type.element, rows.type)
        value = builder.call(reduce, [builder.load(largest)], fastmath=("nnan",))
        double = ir.DoubleType()
        value = value if value.type == double else builder.fpext(value, double)
        tiny = builder.fcmp_ordered("<", value, double(2.0**-1000))  # may be denormal, with its exponent elsewhere
        value = builder.fmul(value, builder.select(tiny, double(2.0**100), double(1.0)))
        exponent = builder.sub(builder.lshr(builder.bitcast(value, INDEX), INDEX(52)), INDEX(1022))
        shift = builder.sub(builder.select(tiny, INDEX(SCORE_BITS + 100), INDEX(SCORE_BITS)), exponent)
        builder.ret(builder.select(builder.fcmp_ordered(">", value, double(0.0)), shift, INDEX(0)))


def _define_load_lane(module, m, weight_type):
    with function(module, load_lane, types.none) as (builder, weights, offset, stride, shift, scores, lane):
        rows = BlockRows(builder, m, weight_type, weights, offset, stride)
        factors = rows.factors(shift)
        target = builder.gep(builder.bitcast(scores, ir.IntType(32).as_pointer()), [lane])
        with rows.loop() as (index, row):
            rows.scatter(rows.quantise(row, factors), builder.gep(target, [builder.mul(index, INDEX(m * LANES))]))
        builder.ret_void()


def _define_load_duals(module, m, weight_type):
    with function(module, load_duals, types.none) as (builder, duals, offset, stride, shift, lane_duals, lane):
        rows = BlockRows(builder, m, weight_type, duals, INDEX(0), INDEX(0))
        whole, _ = rows.start_duals(duals, offset, stride, shift)
        rows.scatter(whole, builder.gep(builder.bitcast(lane_duals, ir.IntType(32).as_pointer()), [lane]))
        builder.ret_void()


def _define_load_exact_lane(module, m, weight_type):
    with function(module, load_exact_lane, types.int64) as (builder, weights, offset, stride, shift, scores, lane):
        rows = BlockRows(builder, m, weight_type, weights, offset, stride)
        factors = rows.factors(shift, ir.DoubleType())
        target = builder.gep(builder.bitcast(scores, INDEX.as_pointer()), [lane])
        rounded = cgutils.alloca_once_value(builder, ir.Constant(rows.flags, [0] * m))
        with rows.loop() as (index, row):
            exact, changed = rows.exact(row, factors)
            rows.scatter(exact, builder.gep(target, [builder.mul(index, INDEX(m * LANES))]))
            builder.store(builder.or_(builder.load(rounded), changed), rounded)
        bits = builder.bitcast(builder.load(rounded), ir.IntType(m))
        builder.ret(builder.zext(builder.icmp_unsigned("!=", bits, bits.type(0)), INDEX))


def _define_store_mask(module, m, weight_type):
    with function(module, store_mask, types.int64) as (
        builder, weights, offset, stride, shift, u, v, lane, mask, mask_offset, mask_stride
    ):  # fmt: skip
        rows = BlockRows(builder, m, weight_type, weights, offset, stride)
        factors = rows.factors(shift)
        u_lane, thresholds = rows.duals(u, v, lane)
        target = builder.gep(mask, [mask_offset])
        unsound = cgutils.alloca_once_value(builder, ir.Constant(rows.flags, [0] * m))
        with rows.loop() as (index, row):
            quantised = rows.quantise(row, factors)
            kept = rows.above(quantised, thresholds, u_lane, index)
            lost = builder.and_(builder.icmp_signed("==", quantised, rows.constant(CAP)), builder.not_(kept))
            builder.store(builder.or_(builder.load(unsound), lost), unsound)
            place = builder.gep(target, [builder.mul(index, mask_stride)])
            rows.store(builder.zext(kept, ir.VectorType(ir.IntType(8), m)), place)
        bits = builder.bitcast(builder.load(unsound), ir.IntType(m))
        builder.ret(builder.zext(builder.icmp_unsigned("==", bits, bits.type(0)), INDEX))
