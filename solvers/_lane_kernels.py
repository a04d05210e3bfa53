"""Move one block between the caller's memory and one lane of the blocks in flight.

A row of a block is one vector of M entries here; in flight, where every lane is another block, it is M entries that
stand LANES apart. Scores are scaled by a power of two, capped at CAP, and rounded up to an integer q. Below the cap
q - 1 < scaled score <= q, and only zero becomes 0, but for float32 (float64) scores of less than 2**-149 (2**-1074)
once scaled.
"""

# mypy: ignore-errors

from __future__ import annotations

import math
from contextlib import contextmanager

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ._dual_sweep_kernels import LANES, LARGEST_DUAL
from ._native import INDEX, WEIGHT_BYTES, M, function, native, prefetch, splat, weight_type

__all__ = [
    "CAP",
    "NEVER",
    "SCORE_BITS",
    "Rows",
    "clamped_duals",
    "load_duals",
    "load_exact_lane",
    "load_lane",
    "prepare_repair",
    "quantised_rows",
    "score_shift",
    "store_mask",
]

SCORE_BITS = 28  # sums and differences of a score and two duals then fit int32
CAP = 1 << SCORE_BITS
NEVER = 1 << 61  # the score of an arc that does not exist


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


@native(types.none)
def prepare_repair(
    kernels, weights: np.ndarray, offset, stride, shift, u: np.ndarray, v: np.ndarray, lane, noise: np.ndarray,
    exact_shift, exact: np.ndarray, flow: np.ndarray, removable: np.ndarray, addable: np.ndarray,
):  # fmt: skip
    """Write what phase 2 starts from: exact scores, the mask at the thresholds of a lane, and the arcs it leaves.

    Parameters
    ----------
    kernels, weights, offset, stride, shift, u, v, lane
        As in `store_mask`.
    noise : ndarray of int32, shape (M * M,)
        Added to the integer scores.
    exact_shift : int
        The exact scores are multiplied by 2**exact_shift and rounded up, so that only zero becomes 0.
    exact, flow, removable, addable : ndarray of int64, shape (M + 1, M + 1)
        Their first M rows and columns are written: the exact scores; 1 where the integer score exceeds u + v; the exact
        scores where flow is 1, else NEVER; the exact scores where it is 0, else -NEVER.
    """
    m = int(kernels[M])
    rows = _rows(kernels, weights, offset, stride)
    kept = _quantised(rows, shift) + noise[: m * m].reshape(m, m) - v[lane::LANES] > u[lane::LANES, None]
    exact[:m, :m] = _exact(rows, exact_shift)
    flow[:m, :m] = kept
    removable[:m, :m] = np.where(kept, exact[:m, :m], NEVER)
    addable[:m, :m] = np.where(kept, -NEVER, exact[:m, :m])


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


def _quantised(row, shift):
    return np.ceil(np.minimum(np.ldexp(np.abs(row), shift), CAP)).astype(np.int32)


def _exact(rows, shift):
    return np.ceil(np.ldexp(np.abs(rows.astype(np.float64)), shift)).astype(np.int64)


def define_lane_functions(module, n, m, weight_bytes):
    """Generate the functions of this file for a pattern."""
    _define_score_shift(module, m, weight_bytes)
    _define_load_lane(module, m, weight_bytes)
    _define_load_duals(module, m, weight_bytes)
    _define_load_exact_lane(module, m, weight_bytes)
    _define_store_mask(module, m, weight_bytes)
    _define_prepare_repair(module, m, weight_bytes)


def _define_score_shift(module, m, weight_bytes):
    with function(module, score_shift, types.int64) as (builder, weights, offset, stride):
        rows = Rows(builder, m, weight_bytes, weights, offset, stride)
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
        rows = Rows(builder, m, weight_bytes, weights, offset, stride)
        factors = rows.factors(shift)
        target = builder.gep(builder.bitcast(scores, ir.IntType(32).as_pointer()), [lane])
        with rows.loop() as (index, row):
            rows.scatter(rows.quantise(row, factors), builder.gep(target, [builder.mul(index, INDEX(m * LANES))]))
        builder.ret_void()


def _define_load_duals(module, m, weight_bytes):
    with function(module, load_duals, types.none) as (builder, duals, offset, stride, shift, lane_duals, lane):
        rows = Rows(builder, m, weight_bytes, duals, INDEX(0), INDEX(0))
        whole, _ = rows.start_duals(duals, offset, stride, shift)
        rows.scatter(whole, builder.gep(builder.bitcast(lane_duals, ir.IntType(32).as_pointer()), [lane]))
        builder.ret_void()


def _define_load_exact_lane(module, m, weight_bytes):
    with function(module, load_exact_lane, types.none) as (builder, weights, offset, stride, shift, scores, lane):
        rows = Rows(builder, m, weight_bytes, weights, offset, stride)
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
        rows = Rows(builder, m, weight_bytes, weights, offset, stride)
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


def _define_prepare_repair(module, m, weight_bytes):
    with function(module, prepare_repair, types.none) as (
        builder, weights, offset, stride, shift, u, v, lane, noise, exact_shift, *targets
    ):  # fmt: skip
        rows = Rows(builder, m, weight_bytes, weights, offset, stride)
        wide = ir.VectorType(INDEX, m)
        factors, exact_factors = rows.factors(shift), rows.factors(exact_shift, ir.DoubleType())
        u_lane, thresholds = rows.duals(u, v, lane)
        noise = builder.bitcast(noise, ir.IntType(32).as_pointer())
        targets = [builder.bitcast(target, INDEX.as_pointer()) for target in targets]
        with rows.loop() as (index, row):
            start = builder.mul(index, INDEX(m))
            shaken = builder.add(rows.quantise(row, factors), rows.load(builder.gep(noise, [start]), rows.integers))
            kept = rows.above(shaken, thresholds, u_lane, index)
            scores = rows.exact(row, exact_factors)
            outputs = (
                scores,
                builder.zext(kept, wide),
                builder.select(kept, scores, ir.Constant(wide, [NEVER] * m)),
                builder.select(kept, ir.Constant(wide, [-NEVER] * m), scores),
            )
            place = builder.mul(index, INDEX(m + 1))
            for output, target in zip(outputs, targets, strict=True):
                rows.store(output, builder.gep(target, [place]))
        builder.ret_void()


class Rows:
    """The rows of a block as vectors of M entries, in LLVM."""

    def __init__(self, builder, m, weight_bytes, weights, offset, stride):
        self.builder, self.m, self.stride = builder, m, stride
        element = weight_type(weight_bytes)
        self.type = ir.VectorType(element, m)
        self.integers = ir.VectorType(ir.IntType(32), m)
        self.flags = ir.VectorType(ir.IntType(1), m)
        self.start = builder.gep(builder.bitcast(weights, element.as_pointer()), [offset])

    def constant(self, value):
        return ir.Constant(self.integers, [value] * self.m)

    def load(self, pointer, vector):
        loaded = self.builder.load(self.builder.bitcast(pointer, vector.as_pointer()))
        loaded.align = 1
        return loaded

    def store(self, vector, pointer):
        self.builder.store(vector, self.builder.bitcast(pointer, vector.type.as_pointer())).align = 1

    def intrinsic(self, name, result, operand):
        suffix = f"v{operand.count}{'f32' if operand.element == ir.FloatType() else 'f64'}"
        function = ir.FunctionType(result, [operand])
        return cgutils.get_or_insert_function(self.builder.module, function, f"llvm.{name}.{suffix}")

    def factors(self, shift, element=None):
        """Split 2**shift, which may overflow, into two powers of two that do not."""
        element = element or self.type.element
        integer, bits, bias = (
            (ir.IntType(32), 23, 127) if element == ir.FloatType() else (INDEX, 52, 1023)
        )  # fmt: skip
        builder = self.builder
        half = builder.ashr(shift, shift.type(1))
        factors = []
        for part in (half, builder.sub(shift, half)):
            exponent = builder.add(part, shift.type(bias))
            exponent = exponent if integer == shift.type else builder.trunc(exponent, integer)
            factors.append(splat(builder, builder.bitcast(builder.shl(exponent, integer(bits)), element), self.m))
        return factors

    def duals(self, u, v, lane):
        """Return where the row duals of a lane start, and its column duals as a vector."""
        builder = self.builder
        u_lane, v_lane = (
            builder.gep(builder.bitcast(duals, ir.IntType(32).as_pointer()), [lane]) for duals in (u, v)
        )  # fmt: skip
        thresholds = ir.Constant(self.integers, ir.Undefined)
        for j in range(self.m):
            dual = builder.load(builder.gep(v_lane, [INDEX(j * LANES)]))
            thresholds = builder.insert_element(thresholds, dual, ir.IntType(32)(j))
        return u_lane, thresholds

    def start_duals(self, duals, offset, stride, shift):
        """Return the duals of a warm start as integers, clamped, and which of them were integers once scaled."""
        builder = self.builder
        doubles = ir.VectorType(ir.DoubleType(), self.m)
        start = builder.gep(builder.bitcast(duals, ir.DoubleType().as_pointer()), [offset])
        scaled = ir.Constant(doubles, ir.Undefined)
        for line in range(self.m):
            dual = builder.load(builder.gep(start, [builder.mul(stride, stride.type(line))]))
            scaled = builder.insert_element(scaled, dual, ir.IntType(32)(line))
        for factor in self.factors(shift, ir.DoubleType()):
            scaled = builder.fmul(scaled, factor)
        nothing = ir.Constant(doubles, [0.0] * self.m)
        clamped = builder.select(builder.fcmp_ordered("ord", scaled, scaled), scaled, nothing)
        for order, bound in ((">", LARGEST_DUAL), ("<", -LARGEST_DUAL)):
            limit = ir.Constant(doubles, [float(bound)] * self.m)
            clamped = builder.select(builder.fcmp_ordered(order, clamped, limit), limit, clamped)
        whole = builder.fptosi(clamped, self.integers)
        return whole, builder.fcmp_ordered("==", builder.sitofp(whole, doubles), scaled)

    def above(self, scores, thresholds, u_lane, index):
        dual = self.builder.load(self.builder.gep(u_lane, [self.builder.mul(index, index.type(LANES))]))
        return self.builder.icmp_signed(">", self.builder.sub(scores, thresholds), splat(self.builder, dual, self.m))

    def quantise(self, row, factors):
        for factor in factors:
            row = self.builder.fmul(row, factor)
        cap = ir.Constant(self.type, [float(CAP)] * self.m)
        row = self.builder.select(self.builder.fcmp_ordered("<", row, cap), row, cap)
        row = self.builder.call(self.intrinsic("ceil", self.type, self.type), [row])
        return self.builder.fptosi(row, self.integers)

    def exact(self, row, factors):
        doubles = ir.VectorType(ir.DoubleType(), self.m)
        row = row if self.type == doubles else self.builder.fpext(row, doubles)
        for factor in factors:
            row = self.builder.fmul(row, factor)
        row = self.builder.call(self.intrinsic("ceil", doubles, doubles), [row])
        return self.builder.fptosi(row, ir.VectorType(INDEX, self.m))

    def scatter(self, row, start):
        """Store the entries of a row LANES apart."""
        for j in range(self.m):
            entry = self.builder.extract_element(row, ir.IntType(32)(j))
            self.builder.store(entry, self.builder.gep(start, [INDEX(j * LANES)]))

    @contextmanager
    def loop(self):
        """Loop over the rows; yields the index and the magnitudes."""
        with cgutils.for_range(self.builder, INDEX(self.m)) as loop:
            yield loop.index, self.magnitudes(loop.index)

    def magnitudes(self, index):
        place = self.builder.gep(self.start, [self.builder.mul(index, self.stride)])
        absolute = self.intrinsic("fabs", self.type, self.type)
        return self.builder.call(absolute, [self.load(place, self.type)])
