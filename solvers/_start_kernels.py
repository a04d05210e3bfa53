"""A warm start: blocks whose duals still prove a mask are finished where they stand, before any is loaded into a lane.

After a small change of the weights most blocks keep their mask, and the duals of the last solve prove it: thresholding
the integer scores at them keeps exactly N in every line. One pass over the block tells, and writes the mask.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ._dual_sweep_kernels import LARGEST_DUAL
from ._jit import kernel
from ._lane_kernels import Rows, quantised_rows
from ._native import INDEX, M, N, function, native, splat
from ._primal_dual_kernels import MASK_AT, SHIFT, U_AT, V_AT, WEIGHTS_AT, place_block

__all__ = ["confirm_block", "confirm_start", "define_confirm_block"]


@kernel
def confirm_start(kernels, weights, mask, u_flat, v_flat, layout, todo, at_most):
    """Finish the blocks `todo` whose duals prove a mask, and move the others to its front.

    Parameters
    ----------
    kernels, weights, mask, u_flat, v_flat, layout, at_most
        As for `solve_span`.
    todo : ndarray of int64, shape (count,)
        Numbers of blocks. Its front is overwritten.

    Returns
    -------
    int
        How many blocks are left.
    """
    lanes, row = np.zeros((7, 1), np.int64), np.zeros(3, np.int64)
    left = 0
    for place in range(len(todo)):
        place_block(kernels, weights, layout, todo[place], row, lanes, 0)
        confirmed = confirm_block(
            kernels, weights, lanes[WEIGHTS_AT, 0], layout[1, 3], lanes[SHIFT, 0],
            u_flat, lanes[U_AT, 0], layout[3, 3], v_flat, lanes[V_AT, 0], layout[4, 3],
            mask, lanes[MASK_AT, 0], layout[2, 3], at_most,
        )  # fmt: skip
        todo[left] = todo[place]
        left += 1 - confirmed
    return left


@native(types.int64)
def confirm_block(
    kernels, weights: np.ndarray, offset, stride, shift, u: np.ndarray, u_offset, u_stride,
    v: np.ndarray, v_offset, v_stride, mask: np.ndarray, mask_offset, mask_stride, at_most,
):  # fmt: skip
    """Write the mask of a block at the thresholds of its duals, and tell whether they prove it the only optimum.

    Parameters
    ----------
    kernels, weights, offset, stride, shift
        As in `load_lane`.
    u, v : ndarray of float64, one axis
        The duals of all blocks.
    u_offset, u_stride, v_offset, v_stride : int
        Where the duals of the block start, and how far apart they are.
    mask : ndarray of bool, one axis
        Written row by row, until one fails.
    mask_offset, mask_stride : int
    at_most : int or bool

    Returns
    -------
    int
        1 if the duals are integers once scaled, no score equals their sum, and every line keeps N; for "at_most", if
        they are not negative, and lines whose dual is 0 keep N or less.
    """
    n, m = int(kernels[N]), int(kernels[M])
    scaled = np.ldexp(np.stack([u[u_offset:][::u_stride][:m], v[v_offset:][::v_stride][:m]]), shift)
    duals = np.clip(scaled, -LARGEST_DUAL, LARGEST_DUAL).astype(np.int32)
    if (duals != scaled).any() or (at_most and (duals < 0).any()):
        return 0
    reduced = quantised_rows(kernels, weights, offset, stride, shift) - duals[1] - duals[0][:, None]

    def full(sums, line_duals):
        return (sums == n) | ((sums < n) & (line_duals == 0) & bool(at_most))

    for i in range(m):
        if (reduced[i] == 0).any() or not full((reduced[i] > 0).sum(), duals[0, i]):
            return 0
        mask[mask_offset + i * mask_stride :][:m] = reduced[i] > 0
    return int(full((reduced > 0).sum(axis=0), duals[1]).all())


def define_confirm_block(module, n, m, weight_bytes):
    """Generate `confirm_block` for a pattern."""
    with function(module, confirm_block, types.int64) as (
        builder, weights, offset, stride, shift, u, u_offset, u_stride, v, v_offset, v_stride,
        mask, mask_offset, mask_stride, at_most,
    ):  # fmt: skip
        rows = Rows(builder, m, weight_bytes, weights, offset, stride)
        both, either, zero = builder.and_, builder.or_, rows.constant(0)
        strict = splat(builder, builder.icmp_signed("==", at_most, INDEX(0)), m)
        row_duals, usable = rows.start_duals(u, u_offset, u_stride, shift)
        column_duals, usable_columns = rows.start_duals(v, v_offset, v_stride, shift)
        usable = both(usable, usable_columns)
        for duals in (row_duals, column_duals):
            usable = both(usable, either(strict, builder.icmp_signed(">=", duals, zero)))

        def full(sums, duals):
            spare = both(builder.icmp_signed("<", sums, rows.constant(n)), builder.icmp_signed("==", duals, zero))
            return either(builder.icmp_signed("==", sums, rows.constant(n)), both(builder.not_(strict), spare))

        def all_of(flags):
            bits = builder.bitcast(flags, ir.IntType(m))
            return builder.icmp_unsigned("==", bits, bits.type((1 << m) - 1))

        row_memory = cgutils.alloca_once_value(builder, row_duals)
        row_entries = builder.bitcast(row_memory, ir.IntType(32).as_pointer())
        column_sums = cgutils.alloca_once_value(builder, zero)
        proven = cgutils.alloca_once_value(builder, usable)
        factors, target = rows.factors(shift), builder.gep(mask, [mask_offset])
        count_type = ir.FunctionType(ir.IntType(m), [ir.IntType(m)])
        count_bits = cgutils.get_or_insert_function(module, count_type, f"llvm.ctpop.i{m}")
        with builder.if_then(builder.not_(all_of(usable)), likely=False):
            builder.ret(INDEX(0))
        with rows.loop() as (index, row, stop):
            reduced = builder.sub(rows.quantise(row, factors), column_duals)
            dual = splat(builder, builder.load(builder.gep(row_entries, [index])), m)
            kept = builder.icmp_signed(">", reduced, dual)
            count = builder.call(count_bits, [builder.bitcast(kept, ir.IntType(m))])
            count = builder.trunc(count, ir.IntType(32)) if m > 32 else builder.zext(count, ir.IntType(32))
            distinct = builder.icmp_signed("!=", reduced, dual)
            so_far = both(both(builder.load(proven), distinct), full(splat(builder, count, m), dual))
            builder.store(so_far, proven)
            with builder.if_then(builder.not_(all_of(so_far)), likely=False):
                stop()
            builder.store(builder.add(builder.load(column_sums), builder.zext(kept, rows.integers)), column_sums)
            place = builder.gep(target, [builder.mul(index, mask_stride)])
            rows.store(builder.zext(kept, ir.VectorType(ir.IntType(8), m)), place)
        answer = all_of(both(builder.load(proven), full(builder.load(column_sums), column_duals)))
        builder.ret(builder.zext(answer, INDEX))
