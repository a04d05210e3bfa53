"""The exact scores of LANES blocks at once: load them into all lanes, and quantise them there.

A block is scattered into its lane entry by entry; everything else works on whole vectors.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..numbers import CAP, EXACT_BITS, LANES, SCORE_BITS, TINY
from .block_rows import BlockRows
from .lane import load_exact_lane, score_shift
from .lane_vectors import FLAGS, NARROW, WIDE, constant, load, store, vectors
from .native import INDEX, function, native

__all__ = ["define_exact_lanes", "load_exact_lanes", "quantise_lanes"]


@native(types.int64)
def load_exact_lanes(
    kernels, weights: np.ndarray, offsets: np.ndarray, stride, exact: np.ndarray, shifts: np.ndarray
):  # fmt: skip
    """Load the exact scores of LANES blocks, in EXACT_BITS bits.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    weights : ndarray of uint8, one axis
        The memory of weights of one of `weights.WEIGHT_TYPES`.
    offsets : ndarray of int64, shape (LANES,)
        Where the blocks start, in weights.
    stride : int
        How far apart the rows of a block are.
    exact : ndarray of int64, shape (M * M * LANES,)
        Written: the magnitudes of lane l times 2**shifts[l], rounded up, so that only zero becomes 0. Aligned.
    shifts : ndarray of int64, shape (LANES,)
        Written.

    Returns
    -------
    int
        Bit l: a score of lane l was rounded to less than TINY.
    """
    rounded = 0
    for lane in range(LANES):
        shifts[lane] = score_shift(kernels, weights, offsets[lane], stride) + EXACT_BITS - SCORE_BITS
        rounded |= load_exact_lane(kernels, weights, offsets[lane], stride, shifts[lane], exact, lane) << lane
    return rounded


@native(types.none)
def quantise_lanes(kernels, exact: np.ndarray, lost: np.ndarray, scores: np.ndarray):
    """Quantise the exact scores of all lanes.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    exact : ndarray of int64, shape (M * M * LANES,)
        Aligned to a vector.
    lost : ndarray of int64, shape (LANES,)
        The bits that the scores of a lane lose. They are rounded up, and capped at CAP.
    scores : ndarray of int32, shape (M * M * LANES,)
        Written. Aligned to a vector.
    """
    rounded = -(-exact.reshape(-1, LANES) >> lost)
    scores.reshape(-1, LANES)[...] = np.minimum(rounded, CAP)


def define_exact_lanes(module, n, m, weight_type):
    """Generate the functions of this file for a pattern."""
    _define_load_exact_lanes(module, m, weight_type)
    _define_quantise_lanes(module, m)


DOUBLES = ir.VectorType(ir.DoubleType(), LANES)


def _define_load_exact_lanes(module, m, weight_type):
    with function(module, load_exact_lanes, types.int64) as (builder, weights, offsets, stride, exact, shifts):
        offsets, entries = (builder.bitcast(pointer, INDEX.as_pointer()) for pointer in (offsets, exact))
        with cgutils.for_range(builder, INDEX(LANES)) as lane:
            offset = builder.load(builder.gep(offsets, [lane.index]))
            rows = BlockRows(builder, m, weight_type, weights, offset, stride)
            target = builder.gep(builder.bitcast(entries, ir.DoubleType().as_pointer()), [lane.index])
            with rows.loop() as (index, row):
                rows.scatter(rows.doubles(row), builder.gep(target, [builder.mul(index, INDEX(m * LANES))]))
        (exact,), (shifts,) = vectors(builder, WIDE, exact), vectors(builder, WIDE, shifts)
        as_doubles = builder.bitcast(exact, DOUBLES.as_pointer())

        def real(value):
            return ir.Constant(DOUBLES, [value] * LANES)

        largest = cgutils.alloca_once_value(builder, real(0.0))
        with cgutils.for_range(builder, INDEX(m * m)) as entry:
            score, so_far = load(builder, as_doubles, entry.index), builder.load(largest)
            builder.store(builder.select(builder.fcmp_ordered(">", score, so_far), score, so_far), largest)
        value = builder.load(largest)
        tiny = builder.fcmp_ordered("<", value, real(2.0**-1000))  # may be denormal, with its exponent elsewhere
        positive = builder.fcmp_ordered(">", value, real(0.0))
        value = builder.fmul(value, builder.select(tiny, real(2.0**100), real(1.0)))
        exponent = builder.sub(builder.lshr(builder.bitcast(value, WIDE), constant(WIDE, 52)), constant(WIDE, 1022))
        most = builder.select(tiny, constant(WIDE, EXACT_BITS + 100), constant(WIDE, EXACT_BITS))
        shift = builder.select(positive, builder.sub(most, exponent), constant(WIDE, EXACT_BITS - SCORE_BITS))
        store(builder, shift, shifts, INDEX(0))
        half, factors = builder.ashr(shift, constant(WIDE, 1)), []
        for part in (half, builder.sub(shift, half)):
            biased = builder.add(part, constant(WIDE, 1023))
            factors.append(builder.bitcast(builder.shl(biased, constant(WIDE, 52)), DOUBLES))
        least = builder.fdiv(real(0.5), builder.fmul(*factors))
        kinds = ir.FunctionType(DOUBLES, [DOUBLES])
        ceil = cgutils.get_or_insert_function(module, kinds, f"llvm.ceil.v{LANES}f64")
        rounded = cgutils.alloca_once_value(builder, ir.Constant(FLAGS, [0] * LANES))
        with cgutils.for_range(builder, INDEX(m * m)) as entry:
            score = load(builder, as_doubles, entry.index)
            raised = builder.select(builder.fcmp_ordered("<", score, least), least, score)
            score = builder.select(builder.fcmp_ordered(">", score, real(0.0)), raised, real(0.0))
            scaled = builder.fmul(builder.fmul(score, factors[0]), factors[1])
            whole = builder.call(ceil, [scaled])
            store(builder, builder.fptosi(whole, WIDE), exact, entry.index)
            changed = builder.fcmp_ordered("!=", whole, scaled)
            changed = builder.and_(changed, builder.fcmp_ordered("<", whole, real(float(TINY))))
            builder.store(builder.or_(builder.load(rounded), changed), rounded)
        builder.ret(builder.zext(builder.bitcast(builder.load(rounded), ir.IntType(LANES)), INDEX))


def _define_quantise_lanes(module, m):
    with function(module, quantise_lanes, types.none) as (builder, exact, lost, scores):
        (exact, lost), (scores,) = vectors(builder, WIDE, exact, lost), vectors(builder, NARROW, scores)
        lost, cap = load(builder, lost, INDEX(0)), constant(WIDE, CAP)
        below = builder.sub(builder.shl(constant(WIDE, 1), lost), constant(WIDE, 1))
        with cgutils.for_range(builder, INDEX(m * m)) as entry:
            score = builder.lshr(builder.add(load(builder, exact, entry.index), below), lost)
            score = builder.select(builder.icmp_signed("<", score, cap), score, cap)
            store(builder, builder.trunc(score, NARROW), scores, entry.index)
        builder.ret_void()
