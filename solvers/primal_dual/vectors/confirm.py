"""Half a sweep on a block where it stands, from given row duals: what `warm_start` does to each block.

Here a lane is a column of the block.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..numbers import LARGEST_DUAL
from .block_rows import BlockRows
from .half_sweep import LineVectors
from .lane import clamped_duals, quantised_rows
from .native import INDEX, M, N, function, native, splat

__all__ = ["confirm_block", "define_confirm_block"]


@native(types.int64)
def confirm_block(
    kernels, weights: np.ndarray, offset, stride, shift, u: np.ndarray, u_offset, u_stride,
    v: np.ndarray, v_offset, v_stride, mask: np.ndarray, mask_offset, mask_stride, at_most,
):  # fmt: skip
    """Find column duals for the row duals of a block, write the mask at the thresholds, and tell if it is proven.

    Parameters
    ----------
    kernels, weights, offset, stride, shift
        As in `load_lane`.
    u, v : ndarray of float64, one axis
        The duals of all blocks. If the answer is 1, those of the columns are written.
    u_offset, u_stride, v_offset, v_stride : int
        Where the duals of the block start, and how far apart they are.
    mask : ndarray of bool, one axis
        Written.
    mask_offset, mask_stride : int
    at_most : int or bool

    Returns
    -------
    int
        1 if the mask is proven the only optimum: the row duals are integers once scaled, no score equals the sum of its
        duals, and every line keeps N; for "at_most", if no dual is negative, and lines whose dual is 0 keep N or less.
    """
    n, m = int(kernels[N]), int(kernels[M])
    scaled = np.ldexp(u[u_offset:][::u_stride][:m], shift)
    row_duals = clamped_duals(scaled)
    reduced = quantised_rows(kernels, weights, offset, stride, shift) - row_duals[:, None]
    ordered = np.sort(reduced, axis=0)
    hi, lo = ordered[m - n], ordered[m - n - 1]
    floor = 0 if at_most else -LARGEST_DUAL
    column_duals = np.maximum((hi + lo) >> 1, floor)
    kept = reduced > column_duals
    for i in range(m):
        mask[mask_offset + i * mask_stride :][:m] = kept[i]
    inside, at_floor = (lo < column_duals) & (column_duals < hi), (column_duals == floor) & (lo <= floor)
    settled = inside | at_floor & bool(at_most)
    count = kept.sum(axis=1)
    full = (count == n) | (count < n) & (row_duals == 0) & bool(at_most)
    if not (
        settled & (row_duals == scaled) & (row_duals >= floor) & full & (reduced != column_duals).all(axis=0)
    ).all():
        return 0
    v[v_offset:][::v_stride][:m] = np.ldexp(column_duals.astype(np.float64), -shift)
    return 1


def define_confirm_block(module, n, m, weight_type):
    """Generate `confirm_block` for a pattern."""
    with function(module, confirm_block, types.int64) as (
        builder, weights, offset, stride, shift, u, u_offset, u_stride, v, v_offset, v_stride,
        mask, mask_offset, mask_stride, at_most,
    ):  # fmt: skip
        rows, lines = BlockRows(builder, m, weight_type, weights, offset, stride), LineVectors(builder, n, m, lanes=m)
        both, either, zero = builder.and_, builder.or_, rows.constant(0)
        exactly = splat(builder, builder.icmp_signed("==", at_most, INDEX(0)), m)
        floor = builder.select(exactly, rows.constant(-LARGEST_DUAL), zero)
        row_duals, proven = rows.start_duals(u, u_offset, u_stride, shift)
        proven = both(proven, builder.icmp_signed(">=", row_duals, floor))
        factors, reduced = rows.factors(shift), []
        for i in range(m):
            dual = splat(builder, builder.extract_element(row_duals, ir.IntType(32)(i)), m)
            reduced.append(builder.sub(rows.quantise(rows.magnitudes(INDEX(i)), factors), dual))
        hi, lo = lines.select_pair(reduced)
        middle = lines.extreme("max", builder.ashr(builder.add(hi, lo), rows.constant(1)), floor)
        inside = both(builder.icmp_signed("<", lo, middle), builder.icmp_signed("<", middle, hi))
        at_floor = both(builder.icmp_signed("==", middle, floor), builder.icmp_signed("<=", lo, floor))
        proven = both(proven, either(inside, both(at_floor, builder.not_(exactly))))
        counts, target = zero, builder.gep(mask, [mask_offset])
        count_type = ir.FunctionType(ir.IntType(m), [ir.IntType(m)])
        count_bits = cgutils.get_or_insert_function(module, count_type, f"llvm.ctpop.i{m}")
        for i, row in enumerate(reduced):
            kept = builder.icmp_signed(">", row, middle)
            count = builder.call(count_bits, [builder.bitcast(kept, ir.IntType(m))])
            count = builder.trunc(count, ir.IntType(32)) if m > 32 else builder.zext(count, ir.IntType(32))
            counts = builder.insert_element(counts, count, ir.IntType(32)(i))
            place = builder.gep(target, [builder.mul(mask_stride, INDEX(i))])
            rows.store(builder.zext(kept, ir.VectorType(ir.IntType(8), m)), place)
        proof = cgutils.alloca_once_value(builder, proven)
        with builder.if_then(
            builder.icmp_signed("!=", at_most, INDEX(0))
        ):  # else none equals what lies between hi and lo
            for row in reduced:
                builder.store(both(builder.load(proof), builder.icmp_signed("!=", row, middle)), proof)
        proven = builder.load(proof)
        spare = both(builder.icmp_signed("<", counts, rows.constant(n)), builder.icmp_signed("==", row_duals, zero))
        spare = both(spare, builder.not_(exactly))
        proven = both(proven, either(builder.icmp_signed("==", counts, rows.constant(n)), spare))
        bits = builder.bitcast(proven, ir.IntType(m))
        answer = builder.icmp_unsigned("==", bits, bits.type((1 << m) - 1))
        with builder.if_then(answer):
            duals = builder.sitofp(middle, ir.VectorType(ir.DoubleType(), m))
            for factor in rows.factors(builder.neg(shift), ir.DoubleType()):
                duals = builder.fmul(duals, factor)
            start = builder.gep(builder.bitcast(v, ir.DoubleType().as_pointer()), [v_offset])
            for j in range(m):
                dual = builder.extract_element(duals, ir.IntType(32)(j))
                builder.store(dual, builder.gep(start, [builder.mul(v_stride, INDEX(j))]))
        builder.ret(builder.zext(answer, INDEX))
