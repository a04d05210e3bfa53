"""The magnitudes of one block as the bits of float64, which hold every digit: what `phase2_digits` reads."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from .block_rows import BlockRows
from .native import INDEX, M, function, native
from .weights import weight_rows

__all__ = ["define_load_magnitudes", "load_magnitudes"]


@native(types.none)
def load_magnitudes(kernels, weights: np.ndarray, offset, stride, magnitudes: np.ndarray):
    """Load the magnitudes of a block.

    Parameters
    ----------
    kernels, weights, offset, stride
        As in `load_lane`.
    magnitudes : ndarray of int64, shape (M * M,)
        Written: the bits of each as float64.
    """
    m = int(kernels[M])
    rows = np.abs(weight_rows(kernels, weights, offset, stride, m, m))
    magnitudes[: m * m] = rows.astype(np.float64).view(np.int64).ravel()


def define_load_magnitudes(module, n, m, weight_type):
    """Generate `load_magnitudes` for a pattern."""
    with function(module, load_magnitudes, types.none) as (builder, weights, offset, stride, magnitudes):
        rows = BlockRows(builder, m, weight_type, weights, offset, stride)
        target = builder.bitcast(magnitudes, ir.DoubleType().as_pointer())
        with rows.loop() as (index, row):
            rows.store(rows.doubles(row), builder.gep(target, [builder.mul(index, INDEX(m))]))
        builder.ret_void()
