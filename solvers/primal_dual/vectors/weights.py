"""The types of weights that generated code loads where they lie, and how their magnitudes become float32 or float64.

float16 and bfloat16 hold nothing that float32 does not: the shifts below are exact. They are written out instead of
asking LLVM for a conversion, which calls a library on processors without F16C.
"""

# mypy: ignore-errors

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir

from .native import WEIGHT_TYPE

__all__ = ["WEIGHT_TYPES", "WeightType", "magnitude_bits", "weight_rows"]

# Of float16, whose fractions have 10 bits and those of float32 23, and whose exponents are biased by 15 and 127
FRACTION_SHIFT = 23 - 10
BIAS_SHIFT = (127 - 15) << 23
LEAST_NORMAL = 1 << 10  # as bits; what is less counts multiples of 2**-24


class WeightType(NamedTuple):
    """What generated code knows about a dtype of weights."""

    number: int
    name: str
    size: int  # bytes
    real: ir.Type  # what magnitudes are computed with

    @property
    def stored(self):
        """Return the integer of the size of a weight."""
        return ir.IntType(8 * self.size)

    @property
    def integer(self):
        """Return the integer of the size of `real`."""
        return ir.IntType(8 * max(4, self.size))


WEIGHT_TYPES = {
    name: WeightType(number, name, size, ir.DoubleType() if size == 8 else ir.FloatType())
    for number, (name, size) in enumerate((("bfloat16", 2), ("float16", 2), ("float32", 4), ("float64", 8)))
}


def weight_rows(kernels, memory, offset, stride, count, length):
    """Return `count` rows of weights, `stride` weights apart, as float32 or float64; for twins in Python."""
    name = list(WEIGHT_TYPES)[int(kernels[WEIGHT_TYPE])]
    entries = memory.view(np.uint16 if name == "bfloat16" else name)
    rows = np.stack([entries[offset + i * stride : offset + i * stride + length] for i in range(count)])
    if name == "bfloat16":
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32) if name == "float16" else rows


def magnitude_bits(builder, weight_type, pointer, length):
    """Load weights that lie side by side; return the bits of their magnitudes as float32 or float64."""
    stored = ir.VectorType(weight_type.stored, length)
    row = builder.load(builder.bitcast(pointer, stored.as_pointer()))
    row.align = 1
    wide = ir.VectorType(weight_type.integer, length)

    def constant(value):
        return ir.Constant(wide, [value] * length)

    if weight_type.size > 2:
        return builder.and_(row, constant((1 << (8 * weight_type.size - 1)) - 1))
    row = builder.and_(row, ir.Constant(stored, [(1 << 15) - 1] * length))
    row = builder.zext(row, wide)
    if weight_type.name == "bfloat16":
        return builder.shl(row, constant(16))
    reals = ir.VectorType(weight_type.real, length)
    unit = ir.Constant(reals, [2.0**-24] * length)
    denormal = builder.bitcast(builder.fmul(builder.sitofp(row, reals), unit), wide)
    normal = builder.add(builder.shl(row, constant(FRACTION_SHIFT)), constant(BIAS_SHIFT))
    return builder.select(builder.icmp_signed("<", row, constant(LEAST_NORMAL)), denormal, normal)
