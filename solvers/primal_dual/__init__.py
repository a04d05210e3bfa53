"""Exact and fast: alternating dual minimisation in vector registers, then shortest paths for what it leaves.

Method
    The bound of the dual is minimised over the row duals and the column duals in turn, sixteen blocks at a time, on
    scores rounded to 28-bit integers (`vectors.half_sweep`). When thresholding at the duals keeps exactly N in every
    row and in every column, the mask is optimal by complementary slackness.

    Up to M = 8, sixteen blocks that stand side by side are loaded, solved and stored as whole vectors
    (`phase1_tiles`); those that are left are perturbed, so that ties have one optimum, and swept until they settle
    (`phase2_ties`). For larger M a lane is refilled as soon as its block is done, and a block whose scores tie is
    perturbed in its lane (`phase1_lanes`).

    Masks of perturbed blocks, and of the few that the sweeps leave, are proven or improved sixteen at a time by
    Bellman-Ford and cycle cancelling on 53-bit integers (`phase2_proof`).
Guarantee
    Exact, whatever the sweeps did: a block is finished only with duals that prove its mask, up to the rounding of
    scores to 2**-52 of the largest of their block.
Ties
    Where the optimum of the rounded scores is unique it is found. Among several optimal masks of a block, which one is
    a function of the scores of this block, the pattern and the constraint alone, the same for any number of threads,
    any batch and any machine: tied blocks are perturbed by a fixed pseudo-random number for each position. From M = 9
    a warm start may pick another one.
Warm start
    The sweeps start from the duals of a former result. Up to M = 16 half a sweep comes first, where the block stands,
    which settles most blocks after a small change (`warm_start`). Up to M = 8 solving takes less time than that,
    and a warm start is a cold one.
Cost
    About 4, 8, 13 and 22 half sweeps for a Gaussian block of 2:4, 4:8, 8:16 and 16:32, each 2 M minima and maxima times
    the size of a selection network (8, 28, 92, 284) for sixteen blocks. Besides those the scores are read twice and
    written once into the lanes, and the mask is written; nothing else is allocated but the memory of a thread, 0.2 MB
    at 8:16 and 1.2 MB at 32:64.
    Memory comes next: fetching the next row of blocks ahead saves a quarter of the time at 2:4 and a tenth at 8:16.
    Blocks whose scores tie take up to 5 times as long as Gaussian ones. After a change of the weights by 1e-3 a warm
    start is twice as fast at 8:16 (docs/benchmark.json).
When not to use it
    Blocks of more than 64 rows, for which no networks are generated. The first call ever compiles for some seconds.

References
----------
Hubara et al. 2021, "Accelerated Sparse Neural Training", section 3 (the min-cost-flow formulation).
Bertsekas 1998, "Network Optimization", chapters 3 and 6 (duality, dual coordinate ascent).
Young 1954, "Iterative methods for solving partial difference equations of elliptic type" (over-relaxation).
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ...blocks import Array, Blocks, score_dtype
from ...pattern import Constraint, Pattern
from ...threads import run_parallel
from .. import TABLE
from .._base import Solver
from .grid import TABLE_ROWS
from .phase1_lanes import solve_span
from .phase1_tiles import LARGEST_TILE_M, define_solve_tile, solve_tiles, spare_tile
from .phase2_proof import proof_entries
from .phase2_ties import settle_ties
from .vectors.half_sweep import LANES, define_half_sweep
from .vectors.lane import NOISE_BITS, define_lane_functions
from .vectors.native import compile_table
from .vectors.proof import define_proof_functions
from .vectors.ties import define_tie_functions
from .warm_start import confirm_start, define_confirm_block

__all__ = ["PrimalDual"]

SWEEPS_A_LINE = 3  # of a perturbed block; fewer than 1 in 100 do not settle
CHUNK_ENTRIES = 1 << 17  # blocks that must be copied are copied 1 MB at a time
SPANS_A_THREAD = 3  # lanes run empty at the end of a span, but threads may not be equally fast
LARGEST_SPAN = 1 << 15  # blocks; their numbers take 0.25 MB
WARM_SPAN_ENTRIES = 1 << 18
LARGEST_CONFIRMED_M = 16  # half a sweep settles 84 of 100 blocks at M = 16, but 44 at M = 32, which gains nothing


class PrimalDual(Solver):
    """Solve blocks by alternating dual minimisation and shortest paths; see the module's docstring.

    Examples
    --------
    >>> import numpy as np
    >>> from transmask import solve
    >>> solve(np.arange(64.0).reshape(8, 8), "4:8", solver=PrimalDual()).status.value
    'optimal'
    """

    info = TABLE["primal_dual"]
    warm_startable = True

    def solve_blocks(self, blocks: Blocks, pattern: Pattern, *, threads: int, warm: bool) -> None:
        """Solve a grid of blocks in place; see `Solver.solve_blocks`."""
        in_place = blocks.weights.dtype != np.bool_  # kernels know float32 and float64
        if in_place and _rows_are_contiguous(blocks.weights) and _rows_are_contiguous(blocks.mask):
            _solve_in_place(blocks, pattern, threads, warm)
            return

        def solve_copy(part: Blocks) -> None:
            copy = _contiguous(part)
            _solve_in_place(copy, pattern, 1, warm)
            part.mask[...] = copy.mask.reshape(part.mask.shape)
            if part.u is not None and part.v is not None and copy.u is not None and copy.v is not None:
                part.u[...] = copy.u.reshape(part.u.shape)
                part.v[...] = copy.v.reshape(part.v.shape)

        run_parallel(solve_copy, blocks.split(max(1, CHUNK_ENTRIES // pattern.m**2)), threads)

    def solve_scores(self, scores: Array, pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
        """Solve a batch of blocks; see `Solver.solve_scores`."""
        mask = np.empty(scores.shape, np.bool_)
        blocks = Blocks(scores[None, None], mask[None, None], None, None, constraint)
        _solve_in_place(blocks, pattern, 1, warm=False)
        return mask


def _rows_are_contiguous(grid: Array) -> bool:
    """Tell whether kernels can address a (K, Br, Bc, M, M) view in place."""
    if grid.dtype not in (np.float32, np.float64, np.bool_) or not grid.dtype.isnative or not grid.flags.aligned:
        return False
    rows = grid.shape[-1] == 1 or grid.strides[-1] == grid.itemsize
    return rows and all(stride >= 0 and stride % grid.itemsize == 0 for stride in grid.strides)


def _contiguous(part: Blocks) -> Blocks:
    """Copy blocks side by side into a matrix of M rows, of float32 or float64."""
    m = part.mask.shape[-1]
    rows = part.weights.transpose(3, 0, 1, 2, 4).astype(score_dtype(part.weights.dtype), order="C").reshape(m, -1, m)
    weights = rows.swapaxes(0, 1)[None, None]
    u, v = (
        None if duals is None else duals.astype(np.float64, order="C").reshape(1, 1, -1, m)
        for duals in (part.u, part.v)
    )
    mask = np.empty(rows.shape, np.bool_).swapaxes(0, 1)[None, None]
    return Blocks(weights, mask, u, v, part.constraint)


def _solve_in_place(blocks: Blocks, pattern: Pattern, threads: int, warm: bool) -> None:
    """Cut the grid into spans of blocks, and let the threads take one after the other."""
    n, m = pattern.n, pattern.m
    block_rows, block_columns = blocks.weights.shape[1:3]
    layout = np.zeros((5, 4), np.int64)
    layout[0] = block_rows, block_columns, n, m
    nothing = np.empty((0, 0, 0, 0))
    grids = blocks.weights, blocks.mask, *(nothing if duals is None else duals for duals in (blocks.u, blocks.v))
    for row, grid in enumerate(grids, 1):
        layout[row] = [stride // grid.itemsize for stride in grid.strides[:4]]
    flat = _flat(blocks.weights, writeable=False).view(np.uint8), *(_flat(grid, writeable=True) for grid in grids[1:])
    kernels = pattern_kernels(n, m, blocks.weights.itemsize)
    at_most = blocks.constraint == "at_most"

    spare: list[_Memory] = []  # of threads that are between two spans

    def solve_small(first: int, own: _Memory) -> None:
        last = min(first + span, blocks.count)
        todo = np.empty(last - first, np.int64)
        todo = todo[: solve_tiles(kernels, *flat, layout, first, last, own.lanes, own.tile, at_most, todo)]
        if todo.size:
            memory = own.scratch, own.proof, own.lanes
            settle_ties(kernels, *flat, layout, todo, *memory, _noise(m), at_most, SWEEPS_A_LINE * m)

    def solve_large(first: int, own: _Memory) -> None:
        todo = np.arange(first, min(first + span, blocks.count))
        if confirm:
            todo = todo[: confirm_start(kernels, *flat, layout, todo, own.lanes, at_most)]
        if todo.size:
            memory = own.scratch, own.lanes, own.queue
            solve_span(kernels, *flat, layout, todo, *memory, _noise(m), at_most, warm, half_sweep_limit(m))

    def solve(first: int) -> None:
        try:
            own = spare.pop()
        except IndexError:
            own = _Memory(m)
        (solve_small if m <= LARGEST_TILE_M else solve_large)(first, own)
        spare.append(own)

    span = _span(blocks.count, threads)
    confirm = warm and LARGEST_TILE_M < m <= LARGEST_CONFIRMED_M
    if confirm:  # what it leaves is still in the cache when it is solved
        span = min(span, max(LANES, WARM_SPAN_ENTRIES // m**2))
    run_parallel(solve, range(0, blocks.count, span), threads)


@cache
def pattern_kernels(n: int, m: int, weight_bytes: int) -> NDArray[np.int64]:
    """Return the table of the functions that are generated for a pattern; see `vectors.native`."""
    small, large = [define_solve_tile, define_tie_functions], [define_lane_functions, define_confirm_block]
    definitions = [define_half_sweep, define_proof_functions, *(small if m <= LARGEST_TILE_M else large)]
    table: NDArray[np.int64] = compile_table(n, m, weight_bytes, definitions)
    return table


def _span(count: int, threads: int) -> int:
    """Return how many blocks a thread takes at a time."""
    share = -(-count // (threads * SPANS_A_THREAD)) if threads > 1 else count
    return max(1, min(-(-share // LANES) * LANES, LARGEST_SPAN))


def half_sweep_limit(m: int) -> int:
    """Return the half sweeps after which phase 2 takes over; more than 99 of 100 Gaussian blocks need."""
    return 2 * m + 24


def _flat(grid: Array, *, writeable: bool) -> Array:
    """View the memory that a grid spans as one axis."""
    if grid.size == 0:
        return np.empty(0, grid.dtype) if writeable else as_strided(np.empty(0, grid.dtype), writeable=False)
    length = (
        1 + sum((size - 1) * stride for size, stride in zip(grid.shape, grid.strides, strict=True)) // grid.itemsize
    )
    return as_strided(grid, (length,), (grid.itemsize,), writeable=writeable)


class _Memory:
    """What one thread works in; see the kernels."""

    def __init__(self, m: int) -> None:
        self.scratch, self.lanes, self.proof = _scratch(m), _lanes(), _aligned(proof_entries(m), np.int64)
        if m <= LARGEST_TILE_M:
            self.tile = spare_tile(m)
        else:
            self.queue = _scratch(m), _lanes(), self.proof


def _scratch(m: int) -> NDArray[np.int32]:
    """Allocate the lanes of one thread, aligned to whole vectors."""
    return _aligned((m * m + 3 * m + 1) * LANES, np.int32)


def _lanes() -> NDArray[np.int64]:
    """Allocate a table of lanes, aligned to whole vectors."""
    table = _aligned(TABLE_ROWS * LANES, np.int64).reshape(TABLE_ROWS, LANES)
    table[:] = 0
    return table


def _aligned(entries: int, dtype: type[np.integer]) -> Array:
    """Allocate memory that starts at a whole vector."""
    size = entries * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype)


@lru_cache(maxsize=16)
def _noise(m: int) -> NDArray[np.int32]:
    """Return the perturbation of each position, 1 to 2**NOISE_BITS by splitmix64."""
    state = (np.arange(1, m * m + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return (1 + (state >> np.uint64(64 - NOISE_BITS))).astype(np.int32)
