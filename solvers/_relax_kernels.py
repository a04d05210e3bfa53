"""One round of Bellman-Ford in the residual graph of a mask, a row of the block at a time as one vector."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

__all__ = ["relax"]


def relax(removable, addable, u, v, size_token):
    """Set u to the largest and raise v to the least that complementary slackness allows.

    Parameters
    ----------
    removable, addable : ndarray of int64, shape (E, E)
        Scores where flow can be removed, or added; a huge and a hugely negative number elsewhere.
    u : ndarray of int64, shape (E,)
        Overwritten by min_j removable - v.
    v : ndarray of int64, shape (E,)
        Raised to max_i addable - u.
    size_token : tuple
        Its length is E.

    Returns
    -------
    bool
        Whether v changed. If not, (u, v) has complementary slackness.
    """
    np.min(removable - v, axis=1, out=u)
    raised = np.maximum(v, np.max(addable - u[:, None], axis=0))
    changed = bool((raised != v).any())
    v[:] = raised
    return changed


@overload(relax)
def _(removable, addable, u, v, size_token):
    def implementation(removable, addable, u, v, size_token):
        return _vector_relax(removable, addable, u, v, size_token)

    return implementation


@intrinsic
def _vector_relax(typing_context, removable, addable, u, v, size_token):
    size = len(size_token)
    index = ir.IntType(64)
    vector = ir.VectorType(index, size)

    def generate(context, builder, signature, arguments):
        removable, addable, u, v = (
            context.make_array(kind)(context, builder, argument).data
            for kind, argument in zip(signature.args[:4], arguments[:4], strict=True)
        )
        reduce = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(index, [vector]), f"llvm.vector.reduce.smin.v{size}i64"
        )

        def load(pointer, place):
            loaded = builder.load(builder.bitcast(builder.gep(pointer, [place]), vector.as_pointer()))
            loaded.align = 8
            return loaded

        def splat(value):
            undefined = ir.Constant(vector, ir.Undefined)
            single = builder.insert_element(undefined, value, ir.IntType(32)(0))
            return builder.shuffle_vector(
                single, undefined, ir.Constant(ir.VectorType(ir.IntType(32), size), [0] * size)
            )

        before = load(v, index(0))
        raised = cgutils.alloca_once_value(builder, before)
        with cgutils.for_range(builder, index(size)) as loop:
            start = builder.mul(loop.index, index(size))
            least = builder.call(reduce, [builder.sub(load(removable, start), before)])
            builder.store(least, builder.gep(u, [loop.index]))
            candidate = builder.sub(load(addable, start), splat(least))
            so_far = builder.load(raised)
            builder.store(builder.select(builder.icmp_signed(">", candidate, so_far), candidate, so_far), raised)
        after = builder.load(raised)
        place = builder.store(after, builder.bitcast(v, vector.as_pointer()))
        place.align = 8
        differs = builder.icmp_signed("!=", before, after)
        bits = builder.bitcast(differs, ir.IntType(size))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(size), 0))

    return types.boolean(removable, addable, u, v, size_token), generate
