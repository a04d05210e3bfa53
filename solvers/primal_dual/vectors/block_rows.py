"""The rows of a block as vectors of M entries, in LLVM: load them, scale and round them, scatter them into a lane."""

# mypy: ignore-errors

from __future__ import annotations

from contextlib import contextmanager

from llvmlite import ir
from numba.core import cgutils

from ..numbers import CAP, LANES, LARGEST_DUAL, TINY
from .native import INDEX, splat
from .weights import magnitude_bits

__all__ = ["BlockRows"]


class BlockRows:
    """The rows of a block as vectors of M entries, in LLVM."""

    def __init__(self, builder, m, weight_type, weights, offset, stride):
        self.builder, self.m, self.weight_type, self.stride = builder, m, weight_type, stride
        self.type = ir.VectorType(weight_type.real, m)
        self.integers = ir.VectorType(ir.IntType(32), m)
        self.flags = ir.VectorType(ir.IntType(1), m)
        self.start = builder.gep(builder.bitcast(weights, weight_type.stored.as_pointer()), [offset])

    def constant(self, value):
        """Return a vector of int32 with a value in every place."""
        return ir.Constant(self.integers, [value] * self.m)

    def load(self, pointer, vector):
        """Load a vector from anywhere."""
        loaded = self.builder.load(self.builder.bitcast(pointer, vector.as_pointer()))
        loaded.align = 1
        return loaded

    def store(self, vector, pointer):
        """Store a vector anywhere."""
        self.builder.store(vector, self.builder.bitcast(pointer, vector.type.as_pointer())).align = 1

    def intrinsic(self, name, result, operand):
        """Return the LLVM intrinsic `name` for an operand of this type."""
        suffix = f"v{operand.count}{operand.element.intrinsic_name}"
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
        """Tell which scores of row `index` exceed the sum of their duals."""
        dual = self.builder.load(self.builder.gep(u_lane, [self.builder.mul(index, index.type(LANES))]))
        return self.builder.icmp_signed(">", self.builder.sub(scores, thresholds), splat(self.builder, dual, self.m))

    def quantise(self, row, factors):
        """Scale magnitudes, cap them at CAP, and round them up to integers."""
        row, cap = self._scaled(row, factors), ir.Constant(self.type, [float(CAP)] * self.m)
        row = self.builder.select(self.builder.fcmp_ordered("<", row, cap), row, cap)
        return self._rounded_up(row, self.integers)

    def doubles(self, row):
        """Turn magnitudes into float64."""
        doubles = ir.VectorType(ir.DoubleType(), self.m)
        return row if self.type == doubles else self.builder.fpext(row, doubles)

    def exact(self, row, factors):
        """Scale magnitudes as float64; return them rounded up to int64, and which are rounded to less than TINY."""
        builder = self.builder
        scaled = self._scaled(self.doubles(row), factors)
        whole = self._rounded_up(scaled, ir.VectorType(INDEX, self.m))
        rounded = builder.fcmp_ordered("!=", builder.sitofp(whole, scaled.type), scaled)
        return whole, builder.and_(rounded, builder.icmp_signed("<", whole, ir.Constant(whole.type, [TINY] * self.m)))

    def _scaled(self, row, factors):
        """Multiply magnitudes by both factors; what would be less than a normal float then, and is not 0, becomes 1/2.

        Numbers too small for a float of full precision take a hundred times as long, and could become 0.
        """
        builder, (first, second) = self.builder, factors
        zero, half = (ir.Constant(row.type, [value] * self.m) for value in (0.0, 0.5))
        least = builder.fdiv(half, builder.fmul(first, second))  # 0 where it overflows: then all become normal
        raised = builder.select(builder.fcmp_ordered("<", row, least), least, row)
        row = builder.select(builder.fcmp_ordered(">", row, zero), raised, zero)
        return builder.fmul(builder.fmul(row, first), second)

    def _rounded_up(self, row, integers):
        ceil = self.intrinsic("ceil", row.type, row.type)
        return self.builder.fptosi(self.builder.call(ceil, [row]), integers)

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
        """Load the magnitudes of row `index`."""
        place = self.builder.gep(self.start, [self.builder.mul(index, self.stride)])
        bits = magnitude_bits(self.builder, self.weight_type, place, self.m)
        return self.builder.bitcast(bits, self.type)
