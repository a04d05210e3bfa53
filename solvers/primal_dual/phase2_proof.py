"""Phase 2 of `primal_dual`: make LANES masks optimal at once, on exact scores, and find the duals that prove it.

A mask is a flow from rows to columns. Bellman-Ford in its residual graph either ends with duals that have complementary
slackness, which proves the mask, or its predecessors run in a cycle, along which an exchange improves the mask.

What a line keeps below N flows to a dummy. Under "at_most" the dummies score 0. A mask may also begin with lines that
keep too few or too many: each entry missing or in excess costs PENALTY, more than any path can gain. As N of M can be
kept in every line, there is a cycle that improves the mask as long as one is not right, and none ends so. Until then
scores lose COARSE_BITS, which leaves room for the penalty.
"""

# mypy: ignore-errors

from __future__ import annotations

from .._jit import bare_kernel, inner_kernel
from .grid import EXACT_SHIFT, MASK_AT, write_duals
from .vectors.half_sweep import LANES
from .vectors.proof import NEVER, PENALTY, mark_lanes, relax_lanes, store_masks

__all__ = ["proof_entries", "prove_lanes"]

QUICK_ROUNDS = 3  # of Bellman-Ford, after which cycles are looked for
ROUNDS_A_LOOK = 2  # fewer, and most looks are in vain
COARSE_BITS = 12
# A round moves no dual by more than 2**EXACT_BITS: an exchange opens only arcs that reverse those it used, at the duals
# that these gave. NEVER must stay out of reach, so that from this round on duals start anew after every exchange; what
# they can reach without a cycle is less than M + 1 scores.
GROWING_ROUNDS = 64
ALL_LANES = (1 << LANES) - 1


def proof_entries(m: int) -> int:
    """Return the size of the memory that `prove_lanes` takes."""
    return (m * m + 8 * m + 5) * LANES + m + 1


@bare_kernel
def prove_lanes(kernels, mask, u_flat, v_flat, layout, scores, u, v, memory, lanes, taken, at_most):
    """Solve the blocks of all lanes, and write the answers of the first `taken`.

    Parameters
    ----------
    kernels, mask, u_flat, v_flat, layout, lanes, at_most
        As for `solve_span`.
    scores : ndarray of int32, shape (M * M * LANES,)
        Aligned to a vector, as are all below. An entry is kept to begin with where its score exceeds u + v.
    u, v : ndarray of int32, shape (M * LANES,)
    memory : ndarray of int64, shape (proof_entries(M),)
        Its first M * M * LANES entries are the exact scores. Overwritten.
    taken : int
    """
    n, m = layout[0, 2], layout[0, 3]
    entries, lines, more = m * m * LANES, m * LANES, (m + 1) * LANES
    exact, sides, memory = memory[:entries], memory[entries : entries + 4 * lines], memory[entries + 4 * lines :]
    exact_u, exact_v, memory = memory[:more], memory[more : 2 * more], memory[2 * more :]
    row_from, column_from, memory = memory[:more], memory[more : 2 * more], memory[2 * more :]
    coarse, seen = memory[:LANES], memory[LANES:]
    unbalanced = mark_lanes(kernels, scores, u, v, exact, sides, at_most)
    for lane in range(LANES):
        coarse[lane] = COARSE_BITS * (unbalanced >> lane & 1)
    exact_u[:] = 2 * NEVER
    exact_v[:] = 0
    row_from[:] = -1
    column_from[:] = -1
    dummies = at_most or unbalanced != 0
    unproven, rounds = ALL_LANES, 0
    while unproven:
        unproven &= relax_lanes(kernels, exact, sides, coarse, exact_u, exact_v, row_from, column_from, dummies)
        rounds += 1
        look = rounds > QUICK_ROUNDS and (rounds - QUICK_ROUNDS) % ROUNDS_A_LOOK == 1
        for lane in range(LANES if look else 0):
            if not unproven >> lane & 1 or not _cancel_cycle(
                exact, sides, row_from, column_from, seen, n, m, at_most, dummies, lane
            ):
                continue
            for line in range(m + 1):
                row_from[line * LANES + lane] = -1
                column_from[line * LANES + lane] = -1
                if rounds > GROWING_ROUNDS:
                    exact_u[line * LANES + lane] = 2 * NEVER
                    exact_v[line * LANES + lane] = 0
            if coarse[lane] and _is_balanced(sides, m, lane):
                coarse[lane] = 0
    store_masks(kernels, exact, mask, lanes[MASK_AT], layout[2, 3], (1 << taken) - 1)
    for lane in range(taken if u_flat.size else 0):
        # Small duals keep their last bits as float64; they stay sums of scores, which may be denormal
        least = exact_u[(m if at_most else 0) * LANES + lane]
        for line in range(1, 1 if at_most else m):
            least = min(least, exact_u[line * LANES + lane])
        write_duals(u_flat, v_flat, layout, exact_u, exact_v, -least, lanes[EXACT_SHIFT, lane], lanes, lane)


@inner_kernel
def _cancel_cycle(exact, sides, row_from, column_from, seen, n, m, at_most, dummies, lane):
    """Exchange along a cycle of the predecessors, which improves the mask; return whether there is one."""
    start = _column_on_cycle(row_from, column_from, seen, m + 1 if dummies else m, lane)
    if start < 0:
        return False
    j, rows, columns = start, 0, 0
    while True:
        i = column_from[j * LANES + lane]
        for arc in range(2):  # into column j, then back to the column that row i follows from
            j = row_from[i * LANES + lane] if arc else j
            _exchange(exact, m, i, j, lane)
            if i < m and j == m:
                rows |= 1 << i
            if i == m and j < m:
                columns |= 1 << j
        if j == start:
            break
    for line in range(m if rows | columns else 0):
        for axis in range(2):
            if (columns if axis else rows) >> line & 1:
                _set_sides(exact, sides, n, m, at_most, axis, line, lane)
    return True


@inner_kernel
def _column_on_cycle(row_from, column_from, seen, size, lane):
    """Return a column on a cycle of the predecessors of a lane, or -1."""
    seen[:] = 0
    for start in range(size):
        j = start
        while j >= 0 and seen[j] == 0:
            seen[j] = start + 1
            i = column_from[j * LANES + lane]
            j = row_from[i * LANES + lane] if i >= 0 else -1
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
def _set_sides(exact, sides, n, m, at_most, axis, line, lane):
    """Set what a row (axis 0) or a column (axis 1) and its dummy can exchange, as `mark_lanes` does for all lines."""
    kept = 0
    for entry in range(m):
        kept += exact[((entry * m + line) if axis else (line * m + entry)) * LANES + lane] >= 0
    place = (2 * axis * m + line) * LANES + lane
    sides[place] = (0 if at_most else -PENALTY) if kept < n else NEVER
    sides[place + m * LANES] = PENALTY if kept > n else 0 if at_most else -NEVER


@inner_kernel
def _is_balanced(sides, m, lane):
    """Tell whether every line of a lane keeps what it may."""
    for line in range(m):
        for place in (line, 2 * m + line):
            if sides[place * LANES + lane] == -PENALTY or sides[(place + m) * LANES + lane] == PENALTY:
                return False
    return True
