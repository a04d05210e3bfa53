"""The short way for M <= 8: LANES blocks that stand side by side are loaded, solved and stored as whole vectors.

Loading and storing one lane at a time costs more than solving where blocks are small. Here a row of LANES blocks is one
vector of LANES * M entries, which shuffles turn into M vectors with a block in every lane, and back. A fixed number of
half sweeps follows; a block that is settled stays settled. The few that are not, are left to the lanes. So is a block
of "at_most" whose duals no shift makes positive: all that is solved here has one optimum, which the lanes would find.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ._dual_sweep_kernels import LANES, LARGEST_DUAL, LineVectors, half_sweep
from ._jit import kernel
from ._lane_kernels import SCORE_BITS
from ._native import INDEX, M, function, native

__all__ = ["LARGEST_TILE_M", "define_solve_tile", "solve_tile", "solve_tiles"]

LARGEST_TILE_M = 8  # 2.4 times faster than single lanes at 4:8, 7 times at 2:4, and no faster at 8:16


def tile_sweeps(m):
    """Return the number of sweeps, which leaves few enough blocks: fastest for Gaussian 2:4 and 4:8."""
    return 5 if m <= 4 else 7


@kernel
def solve_tiles(kernels, weights, mask, layout, first, last, at_most, left):
    """Solve what can be solved of the rows of blocks `first` to `last` - 1, and list the blocks that are left.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    weights : ndarray of uint8, one axis
        The memory of float32 weights.
    mask : ndarray of bool, one axis
        Written, for blocks that are left with what is not their answer.
    layout : ndarray of int64, shape (5, 4)
        As for `solve_span`; the blocks of a row stand side by side, M entries apart.
    first, last : int
        Rows of blocks of all matrices, counted through.
    at_most : bool
    left : ndarray of int64, shape ((last - first) * Bc,)
        Its first entries are overwritten with the blocks that are left.

    Returns
    -------
    int
        How many blocks are left.
    """
    count = 0
    block_columns = layout[0, 1]
    whole = block_columns - block_columns % LANES
    for row in range(first, last):
        matrix = row // layout[0, 0]
        block_row = row - matrix * layout[0, 0]
        weights_at = matrix * layout[1, 0] + block_row * layout[1, 1]
        mask_at = matrix * layout[2, 0] + block_row * layout[2, 1]
        for column in range(0, whole, LANES):
            solved = solve_tile(
                kernels, weights, weights_at + column * layout[1, 2], layout[1, 3],
                mask, mask_at + column * layout[2, 2], layout[2, 3], at_most,
            )  # fmt: skip
            if solved != (1 << LANES) - 1:
                for lane in range(LANES):
                    left[count] = row * block_columns + column + lane
                    count += 1 - (solved >> lane & 1)
        for column in range(whole, block_columns):
            left[count] = row * block_columns + column
            count += 1
    return count


@native(types.int64)
def solve_tile(
    kernels, weights: np.ndarray, offset, stride, mask: np.ndarray, mask_offset, mask_stride, at_most
):  # fmt: skip
    """Solve LANES blocks that stand side by side.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    weights : ndarray of uint8, one axis
        The memory of float32 weights.
    offset, stride : int
        Where the first block starts, and how far apart the rows are.
    mask : ndarray of bool, one axis
        Written for all LANES blocks.
    mask_offset, mask_stride : int
    at_most : bool

    Returns
    -------
    int
        Bit l: the mask of block l is optimal.
    """
    m = int(kernels[M])
    weights = weights.view(np.float32)
    rows = np.stack([np.abs(weights[offset + i * stride : offset + i * stride + LANES * m]) for i in range(m)])
    tile = rows.reshape(m, LANES, m).swapaxes(1, 2)
    exponent = (tile.max(axis=(0, 1)).view(np.int32) >> 23) - 126
    usable = exponent > 26 - 126
    scaled = np.ldexp(tile, np.where(usable, SCORE_BITS - exponent, 0))
    scores = np.ceil(np.where(usable, scaled, 0)).astype(np.int32).reshape(-1)
    u, v, middles = (np.zeros(m * LANES, np.int32) for _ in range(3))
    floors = np.full(LANES, -LARGEST_DUAL, np.int32)
    for _ in range(tile_sweeps(m)):
        before = half_sweep(kernels, scores, m, 1, v, u, middles, floors)
        flags = half_sweep(kernels, scores, 1, m, u, v, middles, floors)
    row_duals, column_duals = u.reshape(m, LANES), middles.reshape(m, LANES)
    kept = scores.reshape(m, m, LANES) - column_duals > row_duals[:, None]
    for i in range(m):
        start = mask_offset + i * mask_stride
        mask[start : start + LANES * m] = kept[i].T.ravel()
    solved = flags & (before >> LANES) & sum(1 << lane for lane in range(LANES) if usable[lane])
    slack = row_duals.min(axis=0) + column_duals.min(axis=0)
    return solved & sum(1 << lane for lane in range(LANES) if not at_most or slack[lane] > 0)


def define_solve_tile(module, n, m, weight_bytes):
    """Generate `solve_tile` for a pattern, if it is one for tiles."""
    if m > LARGEST_TILE_M or weight_bytes != 4:
        return
    with function(module, solve_tile, types.int64) as (
        builder, weights, offset, stride, mask, mask_offset, mask_stride, at_most
    ):  # fmt: skip
        tile = _Tile(builder, n, m)
        usable = tile.load(builder.gep(builder.bitcast(weights, ir.FloatType().as_pointer()), [offset]), stride)
        settled, slack = tile.sweep()
        tile.store(builder.gep(mask, [mask_offset]), mask_stride)
        exactly = tile.splat_bit(builder.icmp_signed("==", at_most, INDEX(0)))
        solved = builder.and_(builder.and_(usable, settled), builder.or_(exactly, slack))
        builder.ret(builder.zext(builder.bitcast(solved, ir.IntType(LANES)), INDEX))


class _Tile:
    """LANES blocks side by side as M * M vectors with a block in every lane, in LLVM."""

    def __init__(self, builder, n, m):
        self.builder, self.m = builder, m
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

    def splat_bit(self, bit):
        undefined = ir.Constant(self.lines.bits, ir.Undefined)
        return self.shuffle(self.builder.insert_element(undefined, bit, ir.IntType(32)(0)), undefined, [0] * LANES)

    def load(self, start, stride):
        """Load, scale and round the scores; return which lanes could be scaled."""
        builder, m = self.builder, self.m
        floats = ir.VectorType(ir.FloatType(), LANES)
        magnitude = self.lines.constant(0x7FFFFFFF)
        entries, largest = [], self.lines.constant(0)
        for i in range(m):
            place = builder.gep(start, [builder.mul(stride, stride.type(i))])
            wide = ir.VectorType(ir.IntType(32), LANES * m)
            row = builder.load(builder.bitcast(place, wide.as_pointer()))
            row.align = 4
            for j in range(m):
                bits = self.shuffle(row, ir.Constant(wide, ir.Undefined), [lane * m + j for lane in range(LANES)])
                bits = builder.and_(bits, magnitude)
                largest = self.lines.extreme("max", largest, bits)
                entries.append(bits)
        exponent = builder.ashr(largest, self.lines.constant(23))
        # 2**(SCORE_BITS - exponent + 126) as bits, or 0 where it is too large for float32
        power = builder.shl(
            builder.sub(self.lines.constant(SCORE_BITS + 126 + 127), exponent), self.lines.constant(23)
        )  # fmt: skip
        usable = builder.icmp_signed(">", exponent, self.lines.constant(26))
        factor = builder.bitcast(builder.select(usable, power, self.lines.constant(0)), floats)
        ceil = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(floats, [floats]), f"llvm.ceil.v{LANES}f32"
        )  # fmt: skip
        for place, bits in enumerate(entries):
            scaled = builder.call(ceil, [builder.fmul(builder.bitcast(bits, floats), factor)])
            builder.store(builder.fptosi(scaled, self.vector), self.scores[place // m][place % m])
        return usable

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
        """Sweep; return which lanes are settled, and in which a shift makes all duals positive."""
        builder = self.builder
        flags = cgutils.alloca_once_value(builder, ir.Constant(self.lines.bits, [0] * LANES))
        with cgutils.for_range(builder, INDEX(tile_sweeps(self.m))):
            _, rows = self.half_sweep(columns=False)
            columns, _ = self.half_sweep(columns=True)
            builder.store(builder.and_(rows, columns), flags)
        least = []
        for duals in (self.u, self.middles):
            lowest = builder.load(duals[0])
            for dual in duals[1:]:
                lowest = self.lines.extreme("min", lowest, builder.load(dual))
            least.append(lowest)
        slack = builder.icmp_signed(">", builder.add(*least), self.lines.constant(0))
        return builder.load(flags), slack

    def store(self, start, stride):
        """Write the masks, kept where the score exceeds u + v."""
        builder, m = self.builder, self.m
        bytes_type = ir.VectorType(ir.IntType(8), LANES)
        for i in range(m):
            dual = builder.load(self.u[i])
            columns = []
            for j in range(m):
                reduced = builder.sub(builder.load(self.scores[i][j]), builder.load(self.middles[j]))
                columns.append(builder.zext(builder.icmp_signed(">", reduced, dual), bytes_type))
            row = columns[0]
            for column in columns[1:]:
                width = row.type.count
                padded = self.shuffle(column, column, [min(place, LANES - 1) for place in range(width)])
                row = self.shuffle(row, padded, list(range(width + LANES)))
            row = self.shuffle(row, row, [j * LANES + lane for lane in range(LANES) for j in range(m)])
            place = builder.gep(start, [builder.mul(stride, stride.type(i))])
            builder.store(row, builder.bitcast(place, row.type.as_pointer())).align = 1
