"""Solve LANES blocks of M <= 8 that stand side by side, as whole vectors: what `phase1_tiles` does to each tile.

A row of LANES blocks is one vector of LANES * M entries, which shuffles turn into M vectors with a block in every lane,
and back.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..numbers import LANES, LARGEST_DUAL, SCORE_BITS
from .half_sweep import LineVectors, half_sweep, interleave
from .native import INDEX, M, function, native, prefetch, splat
from .weights import magnitude_bits, weight_rows

__all__ = ["define_solve_tile", "solve_tile"]

LEAST_EXPONENT = -100  # of the largest score; the power of two that scales a smaller one is too large for float32


def tile_sweeps(m):
    """Return the number of sweeps, which leaves few enough blocks: fastest for Gaussian 2:4 and 4:8."""
    return 5 if m <= 4 else 7


@native(types.int64)
def solve_tile(
    kernels, weights: np.ndarray, offset, stride, mask: np.ndarray, mask_offset, mask_stride,
    u: np.ndarray, u_offset, u_stride, v: np.ndarray, v_offset, duals, at_most,
):  # fmt: skip
    """Solve LANES blocks that stand side by side.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    weights : ndarray, one axis
        The memory of weights of one of `weights.WEIGHT_TYPES`.
    offset, stride : int
        Where the first block starts, and how far apart the rows are.
    mask : ndarray of bool, one axis
        Written for all LANES blocks.
    mask_offset, mask_stride : int
    u, v : ndarray of float64, one axis
        Written if `duals` is not 0: M rows of LANES row duals, and LANES * M column duals.
    u_offset, u_stride, v_offset : int
    duals, at_most : int or bool

    Returns
    -------
    int
        Bit l: the mask of block l is optimal.
    """
    m = int(kernels[M])
    rows = np.abs(weight_rows(kernels, weights, offset, stride, m, LANES * m))
    tile = rows.reshape(m, LANES, m).swapaxes(1, 2)
    exponent = np.frexp(tile.max(axis=(0, 1)))[1]
    usable = (exponent > LEAST_EXPONENT) & (tile.max(axis=(0, 1)) > 0)
    scaled = np.ldexp(tile, np.where(usable, SCORE_BITS - exponent, 0))
    scores = np.ceil(np.where(usable, scaled, 0)).astype(np.int32).reshape(-1)
    lane_u, lane_v, middles = (np.zeros(m * LANES, np.int32) for _ in range(3))
    floors = np.full(LANES, -LARGEST_DUAL, np.int32)
    for _ in range(tile_sweeps(m)):
        before = half_sweep(kernels, scores, m, 1, lane_v, lane_u, middles, floors)
        flags = half_sweep(kernels, scores, 1, m, lane_u, lane_v, middles, floors)
    row_duals, column_duals = lane_u.reshape(m, LANES), middles.reshape(m, LANES)
    kept = scores.reshape(m, m, LANES) - column_duals > row_duals[:, None]
    for i in range(m):
        start = mask_offset + i * mask_stride
        mask[start : start + LANES * m] = kept[i].T.ravel()
    solved = flags & (before >> LANES) & sum(1 << lane for lane in range(LANES) if usable[lane])
    slack = row_duals.min(axis=0) + column_duals.min(axis=0)
    if duals:
        shift = (column_duals.min(axis=0) - row_duals.min(axis=0)) >> 1 if at_most else 0
        for i in range(m):
            u[u_offset + i * u_stride :][:LANES] = np.ldexp(row_duals[i] + shift, exponent - SCORE_BITS)
        v[v_offset : v_offset + LANES * m] = np.ldexp(column_duals - shift, exponent - SCORE_BITS).T.ravel()
    return solved & sum(1 << lane for lane in range(LANES) if not at_most or slack[lane] > 0)


def define_solve_tile(module, n, m, weight_type):
    """Generate `solve_tile` for a pattern."""
    with function(module, solve_tile, types.int64) as (
        builder, weights, offset, stride, mask, mask_offset, mask_stride, u, u_offset, u_stride, v, v_offset,
        duals, at_most,
    ):  # fmt: skip
        tile = _Tile(builder, n, m, weight_type)
        exponent = tile.load(builder.gep(builder.bitcast(weights, weight_type.stored.as_pointer()), [offset]), stride)
        settled = tile.sweep()
        tile.store_mask(builder.gep(mask, [mask_offset]), mask_stride)
        least_u, least_v = tile.least(tile.u), tile.least(tile.middles)
        exactly = splat(builder, builder.icmp_signed("==", at_most, INDEX(0)), LANES)
        with builder.if_then(builder.icmp_signed("!=", duals, INDEX(0))):
            zero, one = tile.lines.constant(0), tile.lines.constant(1)
            shift = builder.select(exactly, zero, builder.ashr(builder.sub(least_v, least_u), one))
            u, v = (builder.bitcast(pointer, ir.DoubleType().as_pointer()) for pointer in (u, v))
            tile.store_duals(builder.gep(u, [u_offset]), u_stride, builder.gep(v, [v_offset]), shift, exponent)
        usable = builder.icmp_signed(">", exponent, ir.Constant(exponent.type, [LEAST_EXPONENT] * LANES))
        slack = builder.icmp_signed(">", builder.add(least_u, least_v), tile.lines.constant(0))
        solved = builder.and_(builder.and_(usable, settled), builder.or_(exactly, slack))
        builder.ret(builder.zext(builder.bitcast(solved, ir.IntType(LANES)), INDEX))


class _Tile:
    """LANES blocks side by side as M * M vectors with a block in every lane, in LLVM."""

    def __init__(self, builder, n, m, weight_type):
        self.builder, self.m, self.weight_type = builder, m, weight_type
        self.lines = LineVectors(builder, n, m)
        self.vector = self.lines.vector
        zero = self.lines.constant(0)
        self.scores = [[cgutils.alloca_once_value(builder, zero) for _ in range(m)] for _ in range(m)]
        self.u = [cgutils.alloca_once_value(builder, zero) for _ in range(m)]
        self.v = [cgutils.alloca_once_value(builder, zero) for _ in range(m)]
        self.middles = [cgutils.alloca_once_value(builder, zero) for _ in range(m)]

    def shuffle(self, first, second, places):
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)
        return self.builder.shuffle_vector(first, second, mask)

    def load(self, start, stride):
        """Load, scale and round the scores; return the exponents of the largest."""
        builder, m = self.builder, self.m
        integer, weight_type = self.weight_type.integer, self.weight_type
        mantissa, bias = (52, 1022) if integer == INDEX else (23, 126)
        floats, integers = (ir.VectorType(kind, LANES) for kind in (weight_type.real, integer))

        def constant(value):
            return ir.Constant(integers, [value] * LANES)

        entries, largest = [], constant(0)
        for i in range(m):
            place = builder.gep(start, [builder.mul(stride, stride.type(i))])
            ahead = builder.mul(stride, stride.type(i + m))
            for line in range(0, LANES * m, 64 // weight_type.size):
                prefetch(builder, start, builder.add(ahead, INDEX(line)))
            row = magnitude_bits(builder, weight_type, place, LANES * m)
            for j in range(m):
                bits = self.shuffle(row, ir.Constant(row.type, ir.Undefined), [lane * m + j for lane in range(LANES)])
                largest = self.lines.extreme("max", largest, bits)
                entries.append(bits)
        exponent = builder.sub(builder.ashr(largest, constant(mantissa)), constant(bias))
        # 2**(SCORE_BITS - exponent) as bits, or 0 where it is too large for float32
        power = builder.shl(builder.sub(constant(SCORE_BITS + bias + 1), exponent), constant(mantissa))
        usable = builder.icmp_signed(">", exponent, constant(LEAST_EXPONENT))
        factor = builder.bitcast(builder.select(usable, power, constant(0)), floats)
        suffix = f"v{LANES}f{integer.width}"
        ceil = cgutils.get_or_insert_function(builder.module, ir.FunctionType(floats, [floats]), f"llvm.ceil.{suffix}")
        for place, bits in enumerate(entries):
            scaled = builder.call(ceil, [builder.fmul(builder.bitcast(bits, floats), factor)])
            builder.store(builder.fptosi(scaled, self.vector), self.scores[place // m][place % m])
        return exponent if integer == INDEX else builder.sext(exponent, ir.VectorType(INDEX, LANES))

    def half_sweep(self, columns):
        """Update the duals of one direction; return whether the old and the new ones were settled."""
        builder = self.builder
        duals, others = (self.v, self.u) if columns else (self.u, self.v)
        floor = self.lines.constant(-LARGEST_DUAL)
        before, after = (ir.Constant(self.lines.bits, [1] * LANES) for _ in range(2))
        for line in range(self.m):
            entries = [
                builder.sub(
                    builder.load(self.scores[other][line] if columns else self.scores[line][other]),
                    builder.load(others[other]),
                )
                for other in range(self.m)
            ]
            hi, lo = self.lines.select_pair(entries)
            old = builder.load(duals[line])
            middle, new = self.lines.update(old, hi, lo, floor)
            before = builder.and_(before, self.lines.settled(lo, old, hi, floor))
            after = builder.and_(after, self.lines.settled(lo, new, hi, floor))
            builder.store(new, duals[line])
            builder.store(middle, self.middles[line])
        return before, after

    def sweep(self):
        """Sweep; return which lanes are settled."""
        builder = self.builder
        flags = cgutils.alloca_once_value(builder, ir.Constant(self.lines.bits, [0] * LANES))
        with cgutils.for_range(builder, INDEX(tile_sweeps(self.m))):
            _, rows = self.half_sweep(columns=False)
            columns, _ = self.half_sweep(columns=True)
            builder.store(builder.and_(rows, columns), flags)
        return builder.load(flags)

    def least(self, duals):
        lowest = self.builder.load(duals[0])
        for dual in duals[1:]:
            lowest = self.lines.extreme("min", lowest, self.builder.load(dual))
        return lowest

    def write(self, vector, start, place):
        target = self.builder.gep(start, [place])
        self.builder.store(vector, self.builder.bitcast(target, vector.type.as_pointer())).align = 1

    def store_mask(self, start, stride):
        """Write the masks, kept where the score exceeds u + v."""
        builder, m = self.builder, self.m
        bytes_type = ir.VectorType(ir.IntType(8), LANES)
        for i in range(m):
            dual = builder.load(self.u[i])
            columns = []
            for j in range(m):
                reduced = builder.sub(builder.load(self.scores[i][j]), builder.load(self.middles[j]))
                columns.append(builder.zext(builder.icmp_signed(">", reduced, dual), bytes_type))
            self.write(interleave(builder, columns), start, builder.mul(stride, stride.type(i)))

    def store_duals(self, u, stride, v, shift, exponent):
        """Write the duals, shifted and scaled back."""
        builder, m = self.builder, self.m
        doubles = ir.VectorType(ir.DoubleType(), LANES)
        power = builder.add(exponent, ir.Constant(exponent.type, [1023 - SCORE_BITS] * LANES))
        factor = builder.bitcast(builder.shl(power, ir.Constant(power.type, [52] * LANES)), doubles)

        def scaled(dual):
            return builder.fmul(builder.sitofp(dual, doubles), factor)

        for i in range(m):
            dual = scaled(builder.add(builder.load(self.u[i]), shift))
            self.write(dual, u, builder.mul(stride, stride.type(i)))
        columns = [scaled(builder.sub(builder.load(dual), shift)) for dual in self.middles]
        self.write(interleave(builder, columns), v, INDEX(0))
