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
    Bellman-Ford and cycle cancelling on 53-bit integers (`phase2_proof`). If one score is so much larger than others
    that these are rounded to less than 24 bits, their remaining digits follow, 45 at a time (`phase2_digits`).
Guarantee
    Exact, whatever the sweeps do: a block is finished only with duals that prove its mask. The mask is optimal in exact
    arithmetic for float32 and whatever float32 holds, beside scores of any size. float64 is resolved to 2**-52 of the
    largest score of its block, and exactly in a block where a positive score is below 2**-29 of the largest.
Ties
    If the optimum of the rounded scores is unique, it is found. If a block has several optimal masks, which one is
    returned depends on the scores of this block, the pattern and the constraint alone, and is the same for any number
    of threads, any batch and any machine: a fixed pseudo-random number for each position perturbs tied blocks. From
    M = 9 a warm start may pick another one.

    There are two paths for ties. Up to M = 8 `phase2_ties` perturbs and sweeps what the tiles leave; above, a tied
    block is perturbed in its lane. Handing blocks over for all M was tried: it was right everywhere and as fast on
    Gaussian blocks, but rank-one blocks and blocks over 60 decades took 30 to 60 % longer at 16:32.
Warm start
    The sweeps start from the duals of a former result. Up to M = 16 half a sweep on the block where it stands comes
    first, which settles most blocks after a small change (`warm_start`). Up to M = 8 solving takes less time than that,
    so a warm start is ignored.
Cost
    About 4, 8, 13 and 22 half sweeps for a Gaussian block of 2:4, 4:8, 8:16 and 16:32, each 2 M minima and maxima times
    the size of a selection network (8, 28, 92, 284) for sixteen blocks. On top of that the scores are read twice and
    written once into the lanes, and the mask is written. Each thread allocates 0.2 MB at 8:16 and 1.2 MB at 32:64.
    Memory comes next: prefetching the next row of blocks saves a quarter of the time at 2:4 and a tenth at 8:16.
    Blocks whose scores tie take up to 5 times as long as Gaussian ones; with the few bits of bfloat16 large blocks tie
    often. Blocks that need the digits of small scores beside large ones take many times as long. After a change of
    the weights by 1e-3 a warm start is twice as fast at 8:16 (docs/benchmark.json).
When not to use it
    For blocks of more than 64 rows no networks are generated. The very first call compiles for some seconds.

Where to change what
    =================  =================================================================================================
    this file          cut the grid into spans of blocks, and hand each thread a span and its memory
    `phase1_tiles`     M <= 8: which sixteen blocks make a tile, and which are left
    `phase2_ties`      M <= 8: what the tiles leave
    `phase1_lanes`     M > 8: which block is in which lane, and what becomes of it: done, floored, zoomed, perturbed
    `phase2_proof`     any M: the proof of a mask, or a better one
    `phase2_digits`    any M: the digits of small scores beside large ones
    `warm_start`       9 <= M <= 16: blocks that the duals of a former result settle at once
    `grid`             from the number of a block to where it lies in the caller's memory
    `memory`           the named tuples that kernels pass on, and what a thread works in
    `numbers`          lanes, bits and limits, and why no sum overflows
    `vectors`          the inner loops, generated as LLVM for one pattern, each beside its twin in Python
    =================  =================================================================================================

References
----------
Hubara et al. 2021, "Accelerated Sparse Neural Training", section 3 (the min-cost-flow formulation).
Bertsekas 1998, "Network Optimization", chapters 3 and 6 (duality, dual coordinate ascent).
Gabow and Tarjan 1989, "Faster Scaling Algorithms for Network Problems", section 2 (digits of costs, one after another).
Young 1954, "Iterative methods for solving partial difference equations of elliptic type" (over-relaxation).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

from ...blocks import Array, Blocks, score_dtype
from ...pattern import Constraint, Pattern
from ...threads import run_parallel
from .._base import Solver
from .._table import TABLE
from .memory import Grid, Problem, ThreadMemory
from .numbers import LANES, LARGEST_TILE_M
from .phase1_lanes import solve_span
from .phase1_tiles import solve_tiles
from .phase2_ties import settle_ties
from .vectors import pattern_kernels
from .vectors.perturbation import perturbation
from .vectors.weights import WEIGHT_TYPES
from .warm_start import confirm_start

__all__ = ["PrimalDual"]

SWEEPS_A_LINE = 3  # of a perturbed block; fewer than 1 in 100 do not settle
CHUNK_ENTRIES = 1 << 17  # blocks that must be copied are copied 1 MB at a time
SPANS_A_THREAD = 3  # lanes run empty at the end of a span, but threads may not be equally fast
WORTH_A_THREAD = 1 << 15  # entries; fewer are solved before another thread has started
LARGEST_SPAN = 1 << 15  # blocks; their numbers take 0.25 MB
SPAN_ENTRIES = 1 << 21  # about 13 ms for Gaussian blocks at 16:32: Ctrl-C waits for a span
WARM_SPAN_ENTRIES = 1 << 18
LARGEST_CONFIRMED_M = 16  # half a sweep settles 84 of 100 blocks at M = 16, but 44 at M = 32, which gains nothing

_NO_DUALS = np.empty((0, 0, 0, 0))
_KEPT_MEMORY: dict[int, ThreadMemory] = {}  # one for each block side, for the next call: making it takes 20 us


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
    chunk_entries = 1 << 20  # of a piece of a checkpoint

    def prepare(self, pattern: Pattern, constraint: Constraint, dtype: DTypeLike) -> None:
        """Solve a block of zeros of this dtype, for which code of its own is generated; see `Solver.prepare`."""
        _prepare(pattern, constraint, np.dtype(dtype))

    def solve_blocks(self, blocks: Blocks, pattern: Pattern, *, threads: int, warm: bool) -> None:
        """Solve a grid of blocks in place; see `Solver.solve_blocks`."""
        dtype = blocks.weights.dtype
        known = dtype.type.__name__ in WEIGHT_TYPES and dtype.isnative
        if known and _rows_are_contiguous(blocks.weights) and _rows_are_contiguous(blocks.mask):
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


@cache
def _prepare(pattern: Pattern, constraint: Constraint, dtype: np.dtype[Any]) -> None:
    blocks = np.zeros((1, 1, 1, pattern.m, pattern.m), dtype)
    nothing = Blocks(blocks, np.zeros(blocks.shape, np.bool_), None, None, constraint)
    PrimalDual().solve_blocks(nothing, pattern, threads=1, warm=False)


def _rows_are_contiguous(grid: Array) -> bool:
    """Tell whether kernels can address a (K, Br, Bc, M, M) view in place."""
    rows = grid.shape[-1] == 1 or grid.strides[-1] == grid.itemsize
    return rows and grid.flags.aligned and all(stride >= 0 and stride % grid.itemsize == 0 for stride in grid.strides)


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
    m = pattern.m
    grid = _grid(blocks)
    kernels = pattern_kernels(pattern.n, m, blocks.weights.dtype.type.__name__)  # .name takes 2 us
    problem = Problem(kernels, perturbation(m), blocks.constraint == "at_most")
    kept = _KEPT_MEMORY.pop(m, None)
    spare = [] if kept is None else [kept]  # of threads that are between two spans

    def solve_small(first: int, own: ThreadMemory) -> None:
        last = min(first + span, blocks.count)
        todo = np.empty(last - first, np.int64)
        todo = todo[: solve_tiles(problem, grid, first, last, own.table, own.tile, todo)]
        if todo.size:
            settle_ties(problem, grid, todo, own.queue, SWEEPS_A_LINE * m)

    def solve_large(first: int, own: ThreadMemory) -> None:
        todo = np.arange(first, min(first + span, blocks.count))
        if confirm:
            todo = todo[: confirm_start(problem, grid, todo, own.table)]
        if todo.size:
            solve_span(problem, grid, todo, own.scratch, own.table, own.queue, warm, half_sweep_limit(m))

    def solve(first: int) -> None:
        try:
            own = spare.pop()
        except IndexError:
            own = ThreadMemory(m)
        (solve_small if m <= LARGEST_TILE_M else solve_large)(first, own)
        spare.append(own)

    threads = min(threads, max(1, blocks.count * m**2 // WORTH_A_THREAD))
    span = _span(blocks.count, m, threads)
    confirm = warm and LARGEST_TILE_M < m <= LARGEST_CONFIRMED_M
    if confirm:  # what it leaves is still in the cache when it is solved
        span = min(span, max(LANES, WARM_SPAN_ENTRIES // m**2))
    run_parallel(solve, range(0, blocks.count, span), threads)
    if spare:
        _KEPT_MEMORY[m] = spare[0]


def _span(count: int, m: int, threads: int) -> int:
    """Return how many blocks a thread takes at a time."""
    share = -(-count // (threads * SPANS_A_THREAD)) if threads > 1 else count
    return max(1, min(-(-share // LANES) * LANES, LARGEST_SPAN, max(LANES, SPAN_ENTRIES // m**2)))


def half_sweep_limit(m: int) -> int:
    """Return the half sweeps after which phase 2 takes over; 99 of 100 Gaussian blocks need fewer."""
    return 2 * m + 24


def _grid(blocks: Blocks) -> Grid:
    """Describe the blocks to kernels."""
    arrays = blocks.weights, blocks.mask, *(_NO_DUALS if duals is None else duals for duals in (blocks.u, blocks.v))
    strides = np.array([stride // array.itemsize for array in arrays for stride in array.strides[:4]], np.int64)
    weights, mask, u, v = map(_flat, arrays)
    weights.flags.writeable = False
    block_rows, block_columns = blocks.weights.shape[1:3]
    return Grid(weights.view(np.uint8), mask, u, v, strides.reshape(4, 4), block_rows, block_columns)


def _flat(grid: Array) -> Array:
    """View the memory that a grid spans as one axis."""
    if grid.size == 0:
        return grid.reshape(-1)
    if grid.ndim == 5 and (rows := grid.transpose(0, 1, 3, 2, 4)).flags.c_contiguous:
        return rows.reshape(-1)  # whole matrices: as_strided takes 5 us
    last = sum((size - 1) * stride for size, stride in zip(grid.shape, grid.strides, strict=True)) // grid.itemsize
    return as_strided(grid, (last + 1,), (grid.itemsize,))
