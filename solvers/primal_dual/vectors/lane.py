"""Move one block between the caller's memory and one lane of the blocks in flight.

A row of a block is one vector of M entries here; in flight, where every lane is another block, it is M entries that
stand LANES apart. Scores are scaled by a power of two, capped at CAP, and rounded up to an integer q. Below the cap
q - 1 < scaled score <= q, so that only zero becomes 0.
"""

# mypy: ignore-errors

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .block_rows import CAP, SCORE_BITS, BlockRows
from .half_sweep import LANES, LARGEST_DUAL
from .native import INDEX, WEIGHT_BYTES, M, function, native, prefetch, splat

__all__ = [
    "CAP",
    "EXACT_BITS",
    "NOISE_BITS",
    "SCORE_BITS",
    "clamped_duals",
    "load_duals",
    "load_exact_lane",
    "load_lane",
    "load_perturbed_lane",
    "quantised_rows",
    "score_shift",
    "store_mask",
]

EXACT_BITS = 53  # of an exact score, as float64 has: 63 * 64 scores lose less than 1e-12 of the largest by rounding

NOISE_BITS = 20  # of 28: more, and true scores are reordered; fewer, and tied blocks take more sweeps
LARGEST_EXTRA = 5  # more bits where the scores leave room
HIDDEN = 1 << NOISE_BITS  # scores below this are hidden by a perturbation
ROOT_BITS = 147 * (1 << 23) - 127 * (1 << 20)  # added to an eighth of the bits of x in float32, gives 2**20 * x**(1/8)


@native(types.int64)
def score_shift(kernels, weights: np.ndarray, offset, stride):
    """Return s such that the largest magnitude of a block times 2**s lies in [CAP / 2, CAP); 0 if it is 0.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    weights : ndarray of uint8, one axis
        The memory of float32 or float64 weights.
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


@native(types.int64)
def load_perturbed_lane(
    kernels, weights: np.ndarray, offset, stride, shift, exact_shift, noise: np.ndarray, scores: np.ndarray, lane
):  # fmt: skip
    """Quantise a block into a lane, and perturb it.

    The perturbation is the larger the fewer bits the scores need: below a quarter of the least bit in use it hardly
    changes the order of two masks, and the sweeps, which move by amounts of its size, are the faster.

    Where it would hide most scores, because they lie decades apart, it is 16 times smaller, and the eighth roots of the
    exact scores take the place of the scores: nearly always the same masks are optimal.

    Parameters
    ----------
    kernels, weights, offset, stride, shift, scores, lane
        As in `load_lane`.
    exact_shift : int
        As `shift` in `load_exact_lane`.
    noise : ndarray of int32, shape (M * M,)
        Up to 2**NOISE_BITS.

    Returns
    -------
    int
        1 if the roots were taken, else 0.
    """
    rows = _rows(kernels, weights, offset, stride)
    quantised, noise = _quantised(rows, shift), noise[: rows.size].reshape(rows.shape)
    hidden = ((quantised > 0) & (quantised < HIDDEN)).sum()
    roots_taken = hidden > (quantised >= HIDDEN).sum()
    if roots_taken:
        bits = _exact(rows, exact_shift).astype(np.float32).view(np.int32)
        loaded = ((bits >> 3) + ROOT_BITS).view(np.float32).astype(np.int32) + (noise >> 4)
    else:
        union = int(np.bitwise_or.reduce(quantised.ravel()))
        zeros = (union & -union).bit_length() - 1 if union else 32
        loaded = quantised + (noise << min(max(zeros - NOISE_BITS - 2, 0), LARGEST_EXTRA))
    scores[lane : loaded.size * LANES : LANES] = loaded.ravel()
    return int(roots_taken)


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


@native(types.none)
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
    """
    exact = _exact(_rows(kernels, weights, offset, stride), shift)
    scores[lane : exact.size * LANES : LANES] = exact.ravel()


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


def _rows(kernels, weights, offset, stride):
    m = int(kernels[M])
    entries = weights.view(np.float32 if kernels[WEIGHT_BYTES] == 4 else np.float64)
    return np.stack([entries[offset + i * stride : offset + i * stride + m] for i in range(m)])


def _quantised(rows, shift):
    return np.minimum(_rounded_up(rows, shift), CAP).astype(np.int32)


def _exact(rows, shift):
    return _rounded_up(rows.astype(np.float64), shift).astype(np.int64)


def _rounded_up(rows, shift):
    scaled = np.ldexp(np.abs(rows), shift)
    return np.ceil(np.where(rows == 0, 0, np.maximum(scaled, 0.5)))  # what underflows is not 0


def define_lane_functions(module, n, m, weight_bytes):
    """Generate the functions of this file for a pattern."""
    _define_score_shift(module, m, weight_bytes)
    _define_load_lane(module, m, weight_bytes)
    _define_load_perturbed_lane(module, m, weight_bytes)
    _define_load_duals(module, m, weight_bytes)
    _define_load_exact_lane(module, m, weight_bytes)
    _define_store_mask(module, m, weight_bytes)


def _define_score_shift(module, m, weight_bytes):
    with function(module, score_shift, types.int64) as (builder, weights, offset, stride):
        rows = BlockRows(builder, m, weight_bytes, weights, offset, stride)
        largest = cgutils.alloca_once_value(builder, ir.Constant(rows.type, [0.0] * m))
        with rows.loop() as (index, row):
            ahead = builder.mul(builder.add(index, INDEX(m)), stride)
            for line in range(0, m, 64 // weight_bytes):
                prefetch(builder, rows.start, builder.add(ahead, INDEX(line)))
            seen = builder.load(largest)
            builder.store(builder.select(builder.fcmp_ordered(">", row, seen), row, seen), largest)
        reduce = rows.intrinsic("vector.reduce.fmax", rows.type.element, rows.type)
        value = builder.call(reduce, [builder.load(largest)], fastmath=("nnan",))
        double = ir.DoubleType()
        value = value if weight_bytes == 8 else builder.fpext(value, double)
        tiny = builder.fcmp_ordered("<", value, double(2.0**-1000))  # may be denormal, with its exponent elsewhere
        value = builder.fmul(value, builder.select(tiny, double(2.0**100), double(1.0)))
        exponent = builder.sub(builder.lshr(builder.bitcast(value, INDEX), INDEX(52)), INDEX(1022))
        shift = builder.sub(builder.select(tiny, INDEX(SCORE_BITS + 100), INDEX(SCORE_BITS)), exponent)
        builder.ret(builder.select(builder.fcmp_ordered(">", value, double(0.0)), shift, INDEX(0)))


def _define_load_lane(module, m, weight_bytes):
    with function(module, load_lane, types.none) as (builder, weights, offset, stride, shift, scores, lane):
        rows = BlockRows(builder, m, weight_bytes, weights, offset, stride)
        factors = rows.factors(shift)
        target = builder.gep(builder.bitcast(scores, ir.IntType(32).as_pointer()), [lane])
        with rows.loop() as (index, row):
            rows.scatter(rows.quantise(row, factors), builder.gep(target, [builder.mul(index, INDEX(m * LANES))]))
        builder.ret_void()


def _define_load_perturbed_lane(module, m, weight_bytes):
    with function(module, load_perturbed_lane, types.int64) as (
        builder, weights, offset, stride, shift, exact_shift, noise, scores, lane
    ):  # fmt: skip
        rows = BlockRows(builder, m, weight_bytes, weights, offset, stride)
        factors, exact_factors = rows.factors(shift), rows.factors(exact_shift, ir.DoubleType())
        noise, scores = (builder.bitcast(pointer, ir.IntType(32).as_pointer()) for pointer in (noise, scores))
        target = builder.gep(scores, [lane])
        zero = rows.constant(0)
        union, balance = (cgutils.alloca_once_value(builder, zero) for _ in range(2))
        with rows.loop() as (_, row):
            quantised = rows.quantise(row, factors)
            builder.store(builder.or_(builder.load(union), quantised), union)
            positive = builder.zext(builder.icmp_signed(">", quantised, zero), rows.integers)
            visible = builder.icmp_signed(">=", quantised, rows.constant(HIDDEN))
            counted = builder.select(visible, rows.constant(-1), positive)
            builder.store(builder.add(builder.load(balance), counted), balance)

        def reduced(name, vector):
            reduce = rows.intrinsic(f"vector.reduce.{name}", ir.IntType(32), rows.integers)
            return builder.call(reduce, [builder.load(vector)])

        def shaken(index, row, bits, arithmetic):
            start = builder.mul(index, INDEX(m))
            noise_row = rows.load(builder.gep(noise, [start]), rows.integers)
            shifted = arithmetic(noise_row, splat(builder, bits, m))
            rows.scatter(builder.add(row, shifted), builder.gep(target, [builder.mul(start, INDEX(LANES))]))

        roots_taken = builder.icmp_signed(">", reduced("add", balance), ir.IntType(32)(0))
        with builder.if_else(roots_taken) as (take_roots, take_scores):
            with take_roots, rows.loop() as (index, row):
                reals = ir.VectorType(ir.FloatType(), m)
                bits = builder.bitcast(builder.sitofp(rows.exact(row, exact_factors), reals), rows.integers)
                bits = builder.add(builder.ashr(bits, rows.constant(3)), rows.constant(ROOT_BITS))
                root = builder.fptosi(builder.bitcast(bits, reals), rows.integers)
                shaken(index, root, ir.IntType(32)(4), builder.ashr)
            with take_scores:
                used = reduced("or", union)
                count_zeros = cgutils.get_or_insert_function(
                    module, ir.FunctionType(used.type, [used.type, ir.IntType(1)]), "llvm.cttz.i32"
                )
                zeros = builder.call(count_zeros, [used, ir.IntType(1)(0)])
                extra = builder.sub(zeros, used.type(NOISE_BITS + 2))
                for order, bound in (("<", 0), (">", LARGEST_EXTRA)):
                    beyond = builder.icmp_signed(order, extra, used.type(bound))
                    extra = builder.select(beyond, used.type(bound), extra)
                with rows.loop() as (index, row):
                    shaken(index, rows.quantise(row, factors), extra, builder.shl)
        builder.ret(builder.zext(roots_taken, INDEX))


def _define_load_duals(module, m, weight_bytes):
    with function(module, load_duals, types.none) as (builder, duals, offset, stride, shift, lane_duals, lane):
        rows = BlockRows(builder, m, weight_bytes, duals, INDEX(0), INDEX(0))
        whole, _ = rows.start_duals(duals, offset, stride, shift)
        rows.scatter(whole, builder.gep(builder.bitcast(lane_duals, ir.IntType(32).as_pointer()), [lane]))
        builder.ret_void()


def _define_load_exact_lane(module, m, weight_bytes):
    with function(module, load_exact_lane, types.none) as (builder, weights, offset, stride, shift, scores, lane):
        rows = BlockRows(builder, m, weight_bytes, weights, offset, stride)
        factors = rows.factors(shift, ir.DoubleType())
        target = builder.gep(builder.bitcast(scores, INDEX.as_pointer()), [lane])
        with rows.loop() as (index, row):
            start = builder.gep(target, [builder.mul(index, INDEX(m * LANES))])
            rows.scatter(rows.exact(row, factors), start)
        builder.ret_void()


def _define_store_mask(module, m, weight_bytes):
    with function(module, store_mask, types.int64) as (
        builder, weights, offset, stride, shift, u, v, lane, mask, mask_offset, mask_stride
    ):  # fmt: skip
        rows = BlockRows(builder, m, weight_bytes, weights, offset, stride)
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
