"""Phase 2 for scores that were rounded: what the rounding took away, DIGIT_BITS at a time, until nothing is left.

`phase2_proof` takes scores to EXACT_BITS bits below the largest of their block. One score of 1e18 would make all others
of about 1 the same. They are told apart here, by scaling, as in Gabow and Tarjan 1989, section 2.

Take the last bit as the unit, and let r = score - u - v at the duals that prove the mask for the rounded scores. Then
r > -1 where an entry is kept, and r < 1 where it is not. An exchange adds and removes M + 1 entries at most, the dummy
among them, and gains less than M + 1 units; so an entry with r beyond FAR stays as it is in every better mask. It is
*fixed*, and so is an entry that lies on no cycle of entries which are not. For the others the reduced scores r take the
place of the scores, with the next digits: they are as large as scores were, and the proof goes on with them.

A block is done when no entry is left, or when those that are have no more digits. Then the mask is optimal for the
weights as they are, in exact arithmetic.

Fixed entries of a lane: NEVER if kept, the score 0 if not. The other scores are raised by RAISED, which changes no
exchange, so that they are positive.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from ..._jit import inlined_kernel, inner_kernel
from .grid import write_duals
from .memory import LINE, SHIFT, U_AT, V_AT, WEIGHTS, WEIGHTS_AT, U, V
from .numbers import DIGIT_BITS, FAR, LANES, NEVER, RAISED
from .vectors.magnitudes import load_magnitudes
from .vectors.native import M

__all__ = ["add_duals", "lower_rows", "next_digits"]

REMOVABLE, ADDABLE = 1, 2  # what an exchange may do with an entry


@inner_kernel
def next_digits(problem, grid, proof, table, lane, deeper):
    """Put the reduced scores of a lane with their next digits in the place of its scores.

    Parameters
    ----------
    problem : Problem
    grid : Grid
    proof : Proof
        A mask and the duals that prove it for the scores of the lane.
    table : ndarray of int64, shape (TABLE_ROWS, LANES)
        The scores are those of the block times 2**table[SHIFT], which is raised.
    lane : int
    deeper : bool
        Whether this was done before. If not, the scores were rounded up.

    Returns
    -------
    bool
        False if the mask is optimal, and nothing was changed but `proof.free`.
    """
    kernels, m = problem.kernels, problem.kernels[M]
    _mark_free(proof, m, lane, deeper, problem.at_most)
    if deeper and not _keep_cycles(proof.free, proof.counts, m + 1):
        return False
    load_magnitudes(kernels, grid.weights, table[WEIGHTS_AT, lane], grid.strides[WEIGHTS, LINE], proof.magnitudes)
    step = _digits(proof, m, lane, table[SHIFT, lane], deeper)
    if step == 0:
        return False
    for i in range(m):
        for j in range(m):
            place = (i * m + j) * LANES + lane
            kept = proof.exact[place] >= 0
            if proof.free[i * (m + 1) + j] == 0:
                proof.exact[place] = NEVER if kept else ~0
                continue
            digits, below = _fraction(proof.magnitudes[i * m + j], table[SHIFT, lane])
            reduced = _reduced(proof, m, lane, i, j) - (digits > 0 and not deeper)
            score = _shifted(reduced, step) + _shifted(digits, step - below) + RAISED
            proof.exact[place] = score if kept else ~score
    if problem.at_most:
        for line in range(m):
            _refine_side(proof, m, lane, line, m, line, step, RAISED)
            _refine_side(proof, m, lane, m, line, 2 * m + line, step, 0)
    for line in range(m + 1):
        proof.u[line * LANES + lane] = 2 * NEVER
        proof.v[line * LANES + lane] = 0
        proof.row_from[line * LANES + lane] = -1
        proof.column_from[line * LANES + lane] = -1
    table[SHIFT, lane] += step
    return True


@inner_kernel
def lower_rows(problem, proof, lane):
    """Lower the row duals of a lane as far as the mask allows.

    The proof leaves them as high as it does, so that a row that keeps nothing but one of 1e18 has a dual of 1e18. As
    float64 that would lose all that the duals of the columns have to say.
    """
    m = problem.kernels[M]
    for line in range(m):
        proof.u[line * LANES + lane] = _least_dual(proof, m, lane, line, problem.at_most)


@inner_kernel
def _least_dual(proof, m, lane, line, at_most):
    """Return the least dual of a row that lets nothing be added to it."""
    least = np.int64(-NEVER)
    for entry in range(m):
        score = proof.exact[(line * m + entry) * LANES + lane]
        if score < 0:
            least = max(least, ~score - proof.v[entry * LANES + lane])
    if at_most:
        least = max(least, proof.sides[(m + line) * LANES + lane] - proof.v[m * LANES + lane])
    return least


@inlined_kernel
def _shifted(number, bits):
    """Multiply by 2**bits, and round down."""
    if number == 0:
        return number
    return number << bits if bits >= 0 else number >> min(63, -bits)


@inlined_kernel
def _reduced(proof, m, lane, i, j):
    """Return the score of an entry less its duals."""
    score = proof.exact[(i * m + j) * LANES + lane]
    return (score if score >= 0 else ~score) - proof.u[i * LANES + lane] - proof.v[j * LANES + lane]


@inlined_kernel
def _is_fixed(score):
    return score == NEVER or score == ~0


@inlined_kernel
def _fraction(magnitude, shift):
    """Split what a magnitude, as bits, times 2**shift has behind the point: (digits, places), digits / 2**places."""
    exponent, digits = magnitude >> 52, magnitude & ((1 << 52) - 1)
    if exponent:
        digits |= 1 << 52
    places = 1075 - max(exponent, 1) - shift
    if places <= 0:
        return 0 * digits, 0 * places
    return (digits & ((1 << places) - 1) if places < 53 else digits), places


@inner_kernel
def _mark_free(proof, m, lane, deeper, at_most):
    """Write into `proof.free` what an exchange may do with each entry, line M being the dummy."""
    size = m + 1
    for i in range(m):
        for j in range(m):
            score = proof.exact[(i * m + j) * LANES + lane]
            near = not (deeper and _is_fixed(score)) and abs(_reduced(proof, m, lane, i, j)) < FAR
            proof.free[i * size + j] = 0 if not near else REMOVABLE if score >= 0 else ADDABLE
    for line in range(m):
        proof.free[line * size + m] = _free_side(proof, m, lane, line, m, line, deeper, RAISED) if at_most else 0
        proof.free[m * size + line] = _free_side(proof, m, lane, m, line, 2 * m + line, deeper, 0) if at_most else 0
    proof.free[m * size + m] = REMOVABLE | ADDABLE if at_most else 0


@inlined_kernel
def _free_side(proof, m, lane, i, j, side, deeper, raised):
    """Return what an exchange may do with what a line leaves to the dummy, whose score stands at `side`."""
    score = proof.sides[(side + m) * LANES + lane]
    reduced = score - proof.u[i * LANES + lane] - proof.v[j * LANES + lane]
    if (deeper and score == raised - RAISED) or abs(reduced) >= FAR:
        return 0
    return ADDABLE if proof.sides[side * LANES + lane] == NEVER else ADDABLE | REMOVABLE


@inner_kernel
def _keep_cycles(free, counts, size):
    """Clear entries that lie on no cycle, in lines to which nothing can be added or from which nothing can be removed.

    Returns whether an entry of the block is left.
    """
    counts[:] = 0
    for i in range(size):
        for j in range(size):
            _count(counts, size, i, j, free[i * size + j], 1)
    changed = True
    while changed:
        changed = False
        for line in range(2 * size):
            if (counts[2 * line] == 0) == (counts[2 * line + 1] == 0):
                continue
            changed = True
            for entry in range(size):
                i, j = (entry, line - size) if line >= size else (line, entry)
                _count(counts, size, i, j, free[i * size + j], -1)
                free[i * size + j] = 0
    left = 0
    for i in range(size - 1):
        for j in range(size - 1):
            left |= free[i * size + j]
    return left != 0


@inlined_kernel
def _count(counts, size, i, j, free, more):
    """Count an entry in its row and its column: how many can be removed, how many added."""
    for line in (i, size + j):
        counts[2 * line] += more * (free & REMOVABLE)
        counts[2 * line + 1] += more * (free >> 1)


@inner_kernel
def _digits(proof, m, lane, shift, deeper):
    """Return how many digits to take next, or 0 if the free entries have no more: DIGIT_BITS, and leading zeros."""
    highest, zeros = 0, -1
    for i in range(m + 1):
        for j in range(m + 1):
            if proof.free[i * (m + 1) + j] == 0 or (i == m and j == m):
                continue
            if i == m or j == m:
                side = 3 * m + j if i == m else m + i
                score = proof.sides[side * LANES + lane]
                highest |= score - proof.u[i * LANES + lane] - proof.v[j * LANES + lane]
                continue
            digits, places = _fraction(proof.magnitudes[i * m + j], shift)
            highest |= _reduced(proof, m, lane, i, j) - (digits > 0 and not deeper)
            if digits:
                while digits:
                    digits >>= 1
                    places -= 1
                zeros = places if zeros < 0 else min(zeros, places)
    return 0 if zeros < 0 else DIGIT_BITS if highest else DIGIT_BITS + zeros


@inlined_kernel
def _refine_side(proof, m, lane, i, j, side, step, raised):
    """Do to what a line leaves to the dummy what `next_digits` does to entries; there are no further digits."""
    removable, addable = side * LANES + lane, (side + m) * LANES + lane
    if proof.free[i * (m + 1) + j] == 0:
        proof.sides[removable], proof.sides[addable] = NEVER, raised - RAISED
        return
    reduced = proof.sides[addable] - proof.u[i * LANES + lane] - proof.v[j * LANES + lane]
    score = _shifted(reduced, step) + raised
    proof.sides[addable] = score
    if proof.sides[removable] != NEVER:
        proof.sides[removable] = score


@inner_kernel
def add_duals(problem, grid, proof, table, lane):
    """Add the duals of reduced scores to those in the caller's memory, in lines that are not all fixed."""
    m = problem.kernels[M]
    centre = proof.u[m * LANES + lane] if problem.at_most else 0 * lane
    u_change, v_change = proof.row_from, proof.column_from  # which start anew
    for line in range(m):
        free_row, free_column = False, False
        for entry in range(m):
            free_row = free_row or not _is_fixed(proof.exact[(line * m + entry) * LANES + lane])
            free_column = free_column or not _is_fixed(proof.exact[(entry * m + line) * LANES + lane])
        u, v = proof.u[line * LANES + lane], proof.v[line * LANES + lane]
        if u >= NEVER >> 1:  # nothing of this row can be removed: its dual has no upper bound
            u = _least_dual(proof, m, lane, line, problem.at_most)
        u_change[line * LANES + lane] = u - RAISED if free_row else centre
        v_change[line * LANES + lane] = v if free_column else -centre
    shift = table[SHIFT, lane]
    write_duals(problem.kernels, grid, u_change, v_change, -centre, shift, table, lane, True)
    for line in range(m if problem.at_most else 0):  # 0 is the least, whatever rounding says
        row, column = table[U_AT, lane] + line * grid.strides[U, LINE], table[V_AT, lane] + line * grid.strides[V, LINE]
        grid.u[row], grid.v[column] = max(0.0, grid.u[row]), max(0.0, grid.v[column])
