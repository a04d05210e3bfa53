"""Vectors with a block in every lane, in LLVM."""

# mypy: ignore-errors

from __future__ import annotations

from llvmlite import ir

from ..numbers import LANES
from .native import INDEX

__all__ = ["FLAGS", "NARROW", "WIDE", "constant", "load", "store", "vectors"]

WIDE = ir.VectorType(INDEX, LANES)
NARROW = ir.VectorType(ir.IntType(32), LANES)
FLAGS = ir.VectorType(ir.IntType(1), LANES)


def constant(vector, value):
    """Return a vector with a value in every lane."""
    return ir.Constant(vector, [value] * LANES)


def vectors(builder, vector, *pointers):
    """View memory as vectors."""
    return [builder.bitcast(pointer, vector.as_pointer()) for pointer in pointers]


def load(builder, pointer, place):
    """Load a vector that is aligned."""
    loaded = builder.load(builder.gep(pointer, [place]))
    loaded.align = 64
    return loaded


def store(builder, vector, pointer, place):
    """Store a vector where it is aligned."""
    builder.store(vector, builder.gep(pointer, [place])).align = 64
