"""One round of Bellman-Ford in the residual graph of a mask, a row of the block at a time as one vector."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ._native import INDEX, function, native, splat

__all__ = ["define_relax", "relax"]


@native(types.int64)
def relax(kernels, removable: np.ndarray, addable: np.ndarray, u: np.ndarray, v: np.ndarray):
    """Set u to the largest and raise v to the least that complementary slackness allows.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    removable, addable : ndarray of int64, shape (M + 1, M + 1)
        Scores where flow can be removed, or added; a huge and a hugely negative number elsewhere.
    u : ndarray of int64, shape (M + 1,)
        Overwritten by min_j removable - v.
    v : ndarray of int64, shape (M + 1,)
        Raised to max_i addable - u.

    Returns
    -------
    int
        1 if v changed. If not, (u, v) has complementary slackness, and it is 0.
    """
    np.min(removable - v, axis=1, out=u)
    raised = np.maximum(v, np.max(addable - u[:, None], axis=0))
    changed = bool((raised != v).any())
    v[:] = raised
    return int(changed)


def define_relax(module, n, m, weight_bytes):
    """Generate `relax` for a pattern."""
    size = m + 1
    vector = ir.VectorType(INDEX, size)
    least_of = cgutils.get_or_insert_function(
        module, ir.FunctionType(INDEX, [vector]), f"llvm.vector.reduce.smin.v{size}i64"
    )
    with function(module, relax, types.int64) as (builder, *arrays):
        removable, addable, u, v = (builder.bitcast(pointer, INDEX.as_pointer()) for pointer in arrays)

        def load(pointer, place):
            loaded = builder.load(builder.bitcast(builder.gep(pointer, [place]), vector.as_pointer()))
            loaded.align = 8
            return loaded

        before = load(v, INDEX(0))
        raised = cgutils.alloca_once_value(builder, before)
        with cgutils.for_range(builder, INDEX(size)) as loop:
            start = builder.mul(loop.index, INDEX(size))
            least = builder.call(least_of, [builder.sub(load(removable, start), before)])
            builder.store(least, builder.gep(u, [loop.index]))
            candidate = builder.sub(load(addable, start), splat(builder, least, size))
            so_far = builder.load(raised)
            builder.store(builder.select(builder.icmp_signed(">", candidate, so_far), candidate, so_far), raised)
        after = builder.load(raised)
        builder.store(after, builder.bitcast(v, vector.as_pointer())).align = 8
        differs = builder.bitcast(builder.icmp_signed("!=", before, after), ir.IntType(size))
        builder.ret(builder.zext(builder.icmp_unsigned("!=", differs, differs.type(0)), INDEX))
