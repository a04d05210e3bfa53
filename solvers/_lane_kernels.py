"""Move one block between the caller's memory and one lane of the blocks in flight.

A row of a block is one vector of M entries here; in flight, where every lane is another block, it is M entries that
stand LANES apart. Scores are scaled by a power of two, capped at CAP, and rounded up to an integer q. Below the cap
q - 1 < scaled score <= q, and only zero becomes 0.
"""

# mypy: ignore-errors

from __future__ import annotations

import math
from contextlib import contextmanager

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from ._dual_sweep_kernels import LANES

__all__ = [
    "CAP",
    "NEVER",
    "SCORE_BITS",
    "largest_magnitude",
    "load_lane",
    "prepare_repair",
    "scale_shift",
    "store_mask",
]

SCORE_BITS = 28  # sums and differences of a score and two duals then fit int32
CAP = 1 << SCORE_BITS
NEVER = 1 << 61  # the score of an arc that does not exist


def largest_magnitude(weights, offset, stride, m_token):
    """Return the largest magnitude of a block.

    Parameters
    ----------
    weights : ndarray of float32 or float64, one axis
    offset, stride : int
        Where the block starts, and how far apart its rows are.
    m_token : tuple
        Its length is M.

    Returns
    -------
    float
    """
    m = len(m_token)
    return float(max(np.abs(weights[offset + i * stride : offset + i * stride + m]).max() for i in range(m)))


def scale_shift(largest, bits):
    """Return s such that largest * 2**s lies in [2**(bits - 1), 2**bits); 0 for 0, less for denormals of float64."""
    return bits - math.frexp(max(largest, 2.0**-1022))[1] if largest else 0


def load_lane(weights, offset, stride, shift, scores, lane, m_token):
    """Quantise a block into a lane.

    Parameters
    ----------
    weights, offset, stride, m_token
        As in `largest_magnitude`.
    shift : int
        The scores are multiplied by 2**shift.
    scores : ndarray of int32, shape (M * M * LANES,)
        Written at lane `lane`.
    lane : int
    """
    m = len(m_token)
    for i in range(m):
        row = _quantised(weights[offset + i * stride : offset + i * stride + m], shift)
        scores[i * m * LANES + lane : (i + 1) * m * LANES : LANES] = row


def store_mask(weights, offset, stride, shift, u, v, lane, mask, mask_offset, mask_stride, m_token):
    """Write the mask of a block: kept where the integer score exceeds u + v.

    Parameters
    ----------
    weights, offset, stride, shift, lane, m_token
        As in `load_lane`.
    u, v : ndarray of int32, shape (M * LANES,)
        Duals of the rows and of the columns.
    mask : ndarray of bool, one axis
        Written.
    mask_offset, mask_stride : int
        Where the block starts in `mask`, and how far apart its rows are.

    Returns
    -------
    bool
        Whether all capped scores are kept. If not, the mask need not be optimal.
    """
    m = len(m_token)
    sound = True
    for i in range(m):
        row = _quantised(weights[offset + i * stride : offset + i * stride + m], shift)
        kept = row - v[lane::LANES] > u[i * LANES + lane]
        mask[mask_offset + i * mask_stride : mask_offset + i * mask_stride + m] = kept
        sound = sound and bool(kept[row == CAP].all())
    return sound


def prepare_repair(
    weights, offset, stride, shift, u, v, lane, noise, exact_shift, exact, flow, removable, addable, m_token
):
    """Write what phase 2 starts from: exact scores, the mask at the thresholds of a lane, and the arcs it leaves.

    Parameters
    ----------
    weights, offset, stride, shift, u, v, lane, m_token
        As in `store_mask`.
    noise : ndarray of int32, shape (M * M,)
        Added to the integer scores.
    exact_shift : int
        The exact scores are multiplied by 2**exact_shift and rounded to the nearest integer.
    exact, flow, removable, addable : ndarray of int64, shape (M + 1, M + 1)
        Their first M rows and columns are written: the exact scores; 1 where the integer score exceeds u + v; the exact
        scores where flow is 1, else NEVER; the exact scores where it is 0, else -NEVER.
    """
    m = len(m_token)
    for i in range(m):
        line = weights[offset + i * stride : offset + i * stride + m]
        kept = _quantised(line, shift) + noise[i * m : (i + 1) * m] - v[lane::LANES] > u[i * LANES + lane]
        exact[i, :m] = np.rint(np.ldexp(np.abs(line.astype(np.float64)), exact_shift)).astype(np.int64)
        flow[i, :m] = kept
        removable[i, :m] = np.where(kept, exact[i, :m], NEVER)
        addable[i, :m] = np.where(kept, -NEVER, exact[i, :m])


def _quantised(row, shift):
    return np.ceil(np.minimum(np.ldexp(np.abs(row), shift), CAP)).astype(np.int32)


@overload(largest_magnitude)
def _(weights, offset, stride, m_token):
    def implementation(weights, offset, stride, m_token):
        return _vector_largest_magnitude(weights, offset, stride, m_token)

    return implementation


@overload(scale_shift)
def _(largest, bits):
    def implementation(largest, bits):
        return _exponent_shift(largest, bits)

    return implementation


@overload(load_lane)
def _(weights, offset, stride, shift, scores, lane, m_token):
    def implementation(weights, offset, stride, shift, scores, lane, m_token):
        _vector_load_lane(weights, offset, stride, shift, scores, lane, m_token)

    return implementation


@overload(store_mask)
def _(weights, offset, stride, shift, u, v, lane, mask, mask_offset, mask_stride, m_token):
    def implementation(weights, offset, stride, shift, u, v, lane, mask, mask_offset, mask_stride, m_token):
        return _vector_store_mask(weights, offset, stride, shift, u, v, lane, mask, mask_offset, mask_stride, m_token)

    return implementation


@overload(prepare_repair)
def _(weights, offset, stride, shift, u, v, lane, noise, exact_shift, exact, flow, removable, addable, m_token):
    def implementation(
        weights, offset, stride, shift, u, v, lane, noise, exact_shift, exact, flow, removable, addable, m_token
    ):
        _vector_prepare_repair(
            weights, offset, stride, shift, u, v, lane, noise, exact_shift, exact, flow, removable, addable, m_token
        )

    return implementation


@intrinsic
def _vector_largest_magnitude(typing_context, weights, offset, stride, m_token):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments[:3], len(m_token))
        largest = cgutils.alloca_once_value(builder, ir.Constant(rows.type, [0.0] * rows.m))
        with rows.loop() as (_, row):
            seen = builder.load(largest)
            builder.store(builder.select(builder.fcmp_ordered(">", row, seen), row, seen), largest)
        reduce = rows.intrinsic("vector.reduce.fmax", rows.type.element, rows.type)
        value = builder.call(reduce, [builder.load(largest)], fastmath=("nnan",))
        return value if rows.type.element == ir.DoubleType() else builder.fpext(value, ir.DoubleType())

    return types.float64(weights, offset, stride, m_token), generate


@intrinsic
def _exponent_shift(typing_context, largest, bits):
    def generate(context, builder, signature, arguments):
        index = ir.IntType(64)
        pattern = builder.bitcast(arguments[0], index)
        exponent = builder.lshr(pattern, index(52))
        shift = builder.sub(builder.add(arguments[1], index(1022)), exponent)
        return builder.select(builder.icmp_signed("==", pattern, index(0)), index(0), shift)

    return types.int64(types.float64, types.int64), generate


@intrinsic
def _vector_load_lane(typing_context, weights, offset, stride, shift, scores, lane, m_token):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments[:3], len(m_token))
        factors = rows.factors(arguments[3])
        target = builder.gep(rows.data(4, arguments[4]), [arguments[5]])
        with rows.loop() as (index, row):
            quantised = rows.quantise(row, factors)
            start = builder.gep(target, [builder.mul(index, index.type(rows.m * LANES))])
            for j in range(rows.m):
                entry = builder.extract_element(quantised, ir.IntType(32)(j))
                builder.store(entry, builder.gep(start, [index.type(j * LANES)]))
        return context.get_dummy_value()

    return types.none(weights, offset, stride, types.int64, scores, lane, m_token), generate


@intrinsic
def _vector_store_mask(
    typing_context, weights, offset, stride, shift, u, v, lane, mask, mask_offset, mask_stride, m_token
):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments[:3], len(m_token))
        factors = rows.factors(arguments[3])
        u_lane, thresholds = rows.duals(arguments[4], arguments[5], arguments[6])
        target = builder.gep(rows.data(7, arguments[7]), [arguments[8]])
        unsound = cgutils.alloca_once_value(builder, ir.Constant(rows.flags, [0] * rows.m))
        with rows.loop() as (index, row):
            quantised = rows.quantise(row, factors)
            kept = rows.above(quantised, thresholds, u_lane, index)
            lost = builder.and_(builder.icmp_signed("==", quantised, rows.constant(CAP)), builder.not_(kept))
            builder.store(builder.or_(builder.load(unsound), lost), unsound)
            place = builder.gep(target, [builder.mul(index, arguments[9])])
            rows.store(builder.zext(kept, ir.VectorType(ir.IntType(8), rows.m)), place)
        bits = builder.bitcast(builder.load(unsound), ir.IntType(rows.m))
        return builder.icmp_unsigned("==", bits, bits.type(0))

    signature = types.boolean(weights, offset, stride, types.int64, u, v, lane, mask, mask_offset, mask_stride, m_token)
    return signature, generate


@intrinsic
def _vector_prepare_repair(
    typing_context, weights, offset, stride, shift, u, v, lane, noise, exact_shift,
    exact, flow, removable, addable, m_token,
):  # fmt: skip
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments[:3], len(m_token))
        m, wide = rows.m, ir.VectorType(ir.IntType(64), rows.m)
        factors, exact_factors = rows.factors(arguments[3]), rows.factors(arguments[8], ir.DoubleType())
        u_lane, thresholds = rows.duals(arguments[4], arguments[5], arguments[6])
        noise = rows.data(7, arguments[7])
        targets = [rows.data(position, arguments[position]) for position in range(9, 13)]
        with rows.loop() as (index, row):
            start = builder.mul(index, index.type(m))
            shaken = builder.add(rows.quantise(row, factors), rows.load(builder.gep(noise, [start]), rows.integers))
            kept = rows.above(shaken, thresholds, u_lane, index)
            doubles = ir.VectorType(ir.DoubleType(), m)
            scaled = row if rows.type == doubles else builder.fpext(row, doubles)
            for factor in exact_factors:
                scaled = builder.fmul(scaled, factor)
            scaled = builder.call(rows.intrinsic("rint", doubles, doubles), [scaled])
            scores = builder.fptosi(scaled, wide)
            outputs = (
                scores,
                builder.zext(kept, wide),
                builder.select(kept, scores, ir.Constant(wide, [NEVER] * m)),
                builder.select(kept, ir.Constant(wide, [-NEVER] * m), scores),
            )
            place = builder.mul(index, index.type(m + 1))
            for output, target in zip(outputs, targets, strict=True):
                rows.store(output, builder.gep(target, [place]))
        return context.get_dummy_value()

    signature = types.none(
        weights, offset, stride, types.int64, u, v, lane, noise, types.int64, exact, flow, removable, addable, m_token
    )  # fmt: skip
    return signature, generate


class _Rows:
    """The rows of a block as vectors of M entries, in LLVM."""

    def __init__(self, context, builder, signature, arguments, m):
        self.context, self.builder, self.signature, self.m = context, builder, signature, m
        element = ir.FloatType() if signature.args[0].dtype == types.float32 else ir.DoubleType()
        self.type = ir.VectorType(element, m)
        self.integers = ir.VectorType(ir.IntType(32), m)
        self.flags = ir.VectorType(ir.IntType(1), m)
        self.start = builder.gep(self.data(0, arguments[0]), [arguments[1]])
        self.stride = arguments[2]

    def data(self, position, argument):
        return self.context.make_array(self.signature.args[position])(self.context, self.builder, argument).data

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

    def splat(self, value):
        vector = ir.VectorType(value.type, self.m)
        undefined = ir.Constant(vector, ir.Undefined)
        single = self.builder.insert_element(undefined, value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(single, undefined, self.constant(0))

    def factors(self, shift, element=None):
        """Split 2**shift, which may overflow, into two powers of two that do not."""
        element = element or self.type.element
        integer, bits, bias = (
            (ir.IntType(32), 23, 127) if element == ir.FloatType() else (ir.IntType(64), 52, 1023)
        )  # fmt: skip
        builder = self.builder
        half = builder.ashr(shift, shift.type(1))
        factors = []
        for part in (half, builder.sub(shift, half)):
            exponent = builder.add(part, shift.type(bias))
            exponent = exponent if integer == shift.type else builder.trunc(exponent, integer)
            factors.append(self.splat(builder.bitcast(builder.shl(exponent, integer(bits)), element)))
        return factors

    def duals(self, u, v, lane):
        """Return where the row duals of a lane start, and its column duals as a vector."""
        builder = self.builder
        u_lane, v_lane = (
            builder.gep(self.data(position, argument), [lane]) for position, argument in ((4, u), (5, v))
        )  # fmt: skip
        thresholds = ir.Constant(self.integers, ir.Undefined)
        for j in range(self.m):
            dual = builder.load(builder.gep(v_lane, [ir.IntType(64)(j * LANES)]))
            thresholds = builder.insert_element(thresholds, dual, ir.IntType(32)(j))
        return u_lane, thresholds

    def above(self, scores, thresholds, u_lane, index):
        dual = self.builder.load(self.builder.gep(u_lane, [self.builder.mul(index, index.type(LANES))]))
        return self.builder.icmp_signed(">", self.builder.sub(scores, thresholds), self.splat(dual))

    def quantise(self, row, factors):
        for factor in factors:
            row = self.builder.fmul(row, factor)
        cap = ir.Constant(self.type, [float(CAP)] * self.m)
        row = self.builder.select(self.builder.fcmp_ordered("<", row, cap), row, cap)
        row = self.builder.call(self.intrinsic("ceil", self.type, self.type), [row])
        return self.builder.fptosi(row, self.integers)

    @contextmanager
    def loop(self):
        """Loop over the rows; yields the index and the magnitudes."""
        builder = self.builder
        absolute = self.intrinsic("fabs", self.type, self.type)
        with cgutils.for_range(builder, ir.IntType(64)(self.m)) as loop:
            place = builder.gep(self.start, [builder.mul(loop.index, self.stride)])
            yield loop.index, builder.call(absolute, [self.load(place, self.type)])
