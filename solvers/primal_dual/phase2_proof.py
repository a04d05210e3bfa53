"""Phase 2: make LANES masks optimal at once, on exact scores, and find the duals that prove it.

A mask is a flow from rows to columns. Bellman-Ford in its residual graph either ends with duals in complementary
slackness, which prove the mask, or its predecessors form a cycle, and an exchange along that improves the mask.

What a line keeps below N flows to a dummy. Under "at_most" the dummies score 0. A mask may also start with lines that
keep too few or too many entries: each one missing or in excess costs PENALTY, more than any path can gain. Every line
can keep N of M, so a cycle that improves the mask exists until all lines are right. Until then scores lose COARSE_BITS,
which leaves room for the penalty.
"""

# mypy: ignore-errors

from __future__ import annotations

from ..._jit import bare_kernel, inner_kernel
from .grid import write_duals
from .memory import EXACT_SHIFT, LINE, MASK, MASK_AT, SHIFT, proof_of
from .numbers import ALL_LANES, COARSE_BITS, LANES, NEVER, PENALTY
from .phase2_digits import add_duals, lower_rows, next_digits
from .vectors.native import M, N
from .vectors.proof import mark_lanes, relax_lanes, store_masks

__all__ = ["prove_lanes"]

QUICK_ROUNDS = 3  # of Bellman-Ford before the first look for a cycle
ROUNDS_A_LOOK = 2  # with fewer, most looks find nothing
# A round moves no dual by more than 2**EXACT_BITS: an exchange opens only arcs that reverse those it used, at the duals
# that these gave. NEVER must stay out of reach, so from this round on duals start anew after every exchange; without a
# cycle they reach less than M + 1 scores.
GROWING_ROUNDS = 64


@bare_kernel
def prove_lanes(problem, grid, lanes, column_duals, memory, taken, rounded):
    """Solve the blocks of all lanes, and write the answers of the first `taken`.

    Parameters
    ----------
    problem : Problem
    grid : Grid
    lanes : Lanes
        An entry is kept to begin with where its score exceeds the sum of its row dual u and its column dual.
    column_duals : ndarray of int32, shape (M * LANES,)
        Aligned to a vector.
    memory : ndarray of int64
        See `proof_of`. The first M * M * LANES entries are the exact scores. Overwritten.
    taken : int
    rounded : int
        Bit l: a score of lane l was rounded to less than TINY.
    """
    kernels, at_most, table = problem.kernels, problem.at_most, lanes.table
    m = kernels[M]
    proof = proof_of(memory, m)
    unbalanced = mark_lanes(kernels, lanes.scores, lanes.u, column_duals, proof.exact, proof.sides, at_most)
    for lane in range(LANES):
        proof.coarse[lane] = COARSE_BITS * (unbalanced >> lane & 1)
    proof.u[:] = 2 * NEVER
    proof.v[:] = 0
    proof.row_from[:] = -1
    proof.column_from[:] = -1
    dummies = at_most or unbalanced != 0
    _settle(problem, proof, dummies, ALL_LANES)
    rounded &= (1 << taken) - 1
    for lane in range(LANES):
        table[SHIFT, lane] = table[EXACT_SHIFT, lane]  # of the digits that were taken
        if rounded >> lane & 1:
            lower_rows(problem, proof, lane)
    for lane in range(taken if grid.u.size else 0):
        # Small duals keep their last bits as float64; they stay sums of scores, which may be denormal
        least = proof.u[(m if at_most else 0) * LANES + lane]
        for line in range(1, 1 if at_most else m):
            least = min(least, proof.u[line * LANES + lane])
        write_duals(kernels, grid, proof.u, proof.v, -least, table[EXACT_SHIFT, lane], table, lane, False)
    deeper = False
    while rounded:
        for lane in range(LANES):
            if rounded >> lane & 1 and not next_digits(problem, grid, proof, table, lane, deeper):
                rounded &= ~(1 << lane)
        _settle(problem, proof, dummies, rounded)
        for lane in range(LANES if grid.u.size else 0):
            if rounded >> lane & 1:
                add_duals(problem, grid, proof, table, lane)
        deeper = True
    store_masks(kernels, proof.exact, grid.mask, table[MASK_AT], grid.strides[MASK, LINE], (1 << taken) - 1)


@inner_kernel
def _settle(problem, proof, dummies, unproven):
    """Improve the masks of the lanes whose bit is set in `unproven` until their duals prove them."""
    kernels, m, rounds = problem.kernels, problem.kernels[M], 0
    while unproven:
        unproven &= relax_lanes(
            kernels, proof.exact, proof.sides, proof.coarse,
            proof.u, proof.v, proof.row_from, proof.column_from, dummies,
        )  # fmt: skip
        rounds += 1
        look = rounds > QUICK_ROUNDS and (rounds - QUICK_ROUNDS) % ROUNDS_A_LOOK == 1
        for lane in range(LANES if look else 0):
            if not unproven >> lane & 1 or not _cancel_cycle(problem, proof, dummies, lane):
                continue
            for line in range(m + 1):
                proof.row_from[line * LANES + lane] = -1
                proof.column_from[line * LANES + lane] = -1
                if rounds > GROWING_ROUNDS:
                    proof.u[line * LANES + lane] = 2 * NEVER
                    proof.v[line * LANES + lane] = 0
            if proof.coarse[lane] and _is_balanced(proof.sides, m, lane):
                proof.coarse[lane] = 0


@inner_kernel
def _cancel_cycle(problem, proof, dummies, lane):
    """Exchange along a cycle of the predecessors, which improves the mask; return whether there is one."""
    m = problem.kernels[M]
    start = _column_on_cycle(proof, m + 1 if dummies else m, lane)
    if start < 0:
        return False
    j, rows, columns = start, 0, 0
    while True:
        i = proof.column_from[j * LANES + lane]
        for arc in range(2):  # into column j, then back to the column that row i follows from
            j = proof.row_from[i * LANES + lane] if arc else j
            _exchange(proof.exact, m, i, j, lane)
            if i < m and j == m:
                rows |= 1 << i
            if i == m and j < m:
                columns |= 1 << j
        if j == start:
            break
    for line in range(m if rows | columns else 0):
        for axis in range(2):
            if (columns if axis else rows) >> line & 1:
                _set_sides(problem, proof.exact, proof.sides, axis, line, lane)
    return True


@inner_kernel
def _column_on_cycle(proof, size, lane):
    """Return a column on a cycle of the predecessors of a lane, or -1."""
    seen = proof.seen
    seen[:] = 0
    for start in range(size):
        j = start
        while j >= 0 and seen[j] == 0:
            seen[j] = start + 1
            i = proof.column_from[j * LANES + lane]
            j = proof.row_from[i * LANES + lane] if i >= 0 else -1
        if j >= 0 and seen[j] == start + 1:
            return j
    return -1


@inner_kernel
def _exchange(exact, m, i, j, lane):
    """Keep an entry that is not kept, or the other way round."""
    if i < m and j < m:
        place = (i * m + j) * LANES + lane
        exact[place] = ~exact[place]


@inner_kernel
def _set_sides(problem, exact, sides, axis, line, lane):
    """Set what a row (axis 0) or a column (axis 1) and its dummy can exchange, as `mark_lanes` does for all lines."""
    n, m, at_most = problem.kernels[N], problem.kernels[M], problem.at_most
    kept = 0
    for entry in range(m):
        kept += exact[((entry * m + line) if axis else (line * m + entry)) * LANES + lane] >= 0
    place = (2 * axis * m + line) * LANES + lane
    removable, addable = -PENALTY, -NEVER
    if at_most:  # 0, or what `next_digits` made of it
        removable = addable = 0 if sides[place + m * LANES] == PENALTY else sides[place + m * LANES]
    sides[place] = removable if kept < n else NEVER
    sides[place + m * LANES] = PENALTY if kept > n else addable


@inner_kernel
def _is_balanced(sides, m, lane):
    """Tell whether every line of a lane keeps what it may."""
    for line in range(m):
        for place in (line, 2 * m + line):
            if sides[place * LANES + lane] == -PENALTY or sides[(place + m) * LANES + lane] == PENALTY:
                return False
    return True
