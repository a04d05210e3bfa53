"""Where the certificate's dual variables come from. No proof relies on that: any prove the bound that belongs to them.

An optimal dual of the weights proves as much as can be proven about every mask of them, so those of the exact solver
do, whoever made the mask. They are rounded to float64, and the solver does not take every pattern. What is left is
searched for, in turn: shortest paths in the residual graph of the mask (Bellman-Ford; they exist exactly when the mask
is optimal), alternating minimisation of the bound, and a linear program where that stalls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._imports import import_whole
from .._typing import Array
from ..blocks import Blocks, Duals, cut, empty_duals
from ..pattern import Constraint, Pattern
from ..solvers import as_solver
from ..solvers._table import TABLE
from ..solving import solve_matrices
from ..threads import run_parallel
from .proof import NEAR_GAP, PROVEN_GAP, Part

__all__ = ["exact_duals", "is_within_reach", "linear_program_duals", "search_duals"]

_CHUNK_ENTRIES = 1 << 15  # 256 KB of float64: the few arrays of this size that a chunk works on stay in the L2 cache
_PERTURBATION = 1e-9  # relative; breaks the ties on which alternating minimisation stalls, costs as much of the bound

Floats = NDArray[np.float64]


def is_within_reach(pattern: Pattern, constraint: Constraint) -> bool:
    """Tell whether `exact_duals` takes a pattern."""
    return 0 < pattern.n < pattern.m and TABLE["primal_dual"].refusal(pattern, constraint) is None


def exact_duals(weights: Array, pattern: Pattern, constraint: Constraint, *, threads: int) -> Duals:
    """Return optimal dual variables of (..., R, C) weights, from the exact solver."""
    duals = empty_duals(weights.shape, pattern.m)
    mask = np.empty(weights.shape, np.bool_)
    solver = as_solver("primal_dual", pattern, constraint)
    solve_matrices(weights, mask, duals, pattern, constraint, solver, threads=threads)
    return duals


def search_duals(parts: list[Part], pattern: Pattern, constraint: Constraint, *, near_only: bool, threads: int) -> None:
    """Improve the duals of the blocks that they do not prove, in place.

    Parameters
    ----------
    parts : list of Part
        With valid duals.
    pattern : Pattern
    constraint : {"exactly", "at_most"}
    near_only : bool
        Whether the duals are optimal but for rounding: blocks with a relative gap above NEAR_GAP are left alone, since
        their masks are not optimal, and shortest paths alone are tried.
    threads : int
    """
    for weights, mask, u, v in parts:
        for blocks in cut(weights, mask, (u, v), pattern.m, constraint):
            pieces = blocks.split(max(1, _CHUNK_ENTRIES // pattern.m**2))
            run_parallel(lambda piece: _search_piece(piece, pattern.n, near_only), pieces, threads)


def _search_piece(piece: Blocks, n: int, near_only: bool) -> None:
    """Search for better duals of the blocks of a piece; see `search_duals`."""
    assert piece.u is not None and piece.v is not None  # noqa: PT018
    m = piece.mask.shape[-1]
    u, v = piece.u.reshape(-1, m), piece.v.reshape(-1, m)
    scores, mask = piece.scores().astype(np.float64), piece.mask.reshape(-1, m, m)
    blocks = CertifiedBlocks(scores, mask, u, v, n, piece.constraint == "at_most")
    distance = blocks.distance()
    for improve in (shortest_path_duals,) if near_only else (shortest_path_duals, alternating_duals):
        wanted = ~blocks.are_proven(distance)
        if near_only:
            wanted &= distance <= NEAR_GAP * blocks.kept()
        open_blocks = np.flatnonzero(wanted)
        if open_blocks.size == 0:
            break
        rest = blocks.take(open_blocks)
        rest.u, rest.v = improve(rest)
        better = rest.distance() < distance[open_blocks]
        winners = open_blocks[better]
        blocks.u[winners], blocks.v[winners] = rest.u[better], rest.v[better]
        distance[winners] = rest.distance()[better]
    piece.u[...] = blocks.u.reshape(piece.u.shape)
    piece.v[...] = blocks.v.reshape(piece.v.shape)


@dataclass(slots=True, eq=False)
class CertifiedBlocks:
    """Blocks with their masks and a point of the dual.

    scores (B, M, M) float64, mask (B, M, M) bool, u and v (B, M) float64.
    """

    scores: Floats
    mask: NDArray[np.bool_]
    u: Floats
    v: Floats
    n: int
    at_most: bool

    def take(self, index: NDArray[np.intp]) -> CertifiedBlocks:
        """Copy some of the blocks."""
        return CertifiedBlocks(self.scores[index], self.mask[index], self.u[index], self.v[index], self.n, self.at_most)

    def kept(self) -> Floats:
        """Sum of the kept scores of each block."""
        kept: Floats = np.sum(self.scores, axis=(1, 2), where=self.mask)
        return kept

    def are_proven(self, distance: Floats) -> NDArray[np.bool_]:
        """Tell for each block whether its distance is rounding, as the kernel does."""
        kept = np.where(self.mask, self.scores, 0.0)
        count = (kept > 0).sum(axis=(1, 2))
        with np.errstate(over="ignore"):
            least = distance / PROVEN_GAP / np.maximum(count, 1)
        proven: NDArray[np.bool_] = (distance == 0) | (
            2 * ((kept > 0) & (kept >= least[:, None, None])).sum(axis=(1, 2)) > count
        )
        return proven

    def distance(self) -> Floats:
        """bound(u, v) - kept for each block, as a sum of non-negative terms; see `bound`."""
        part, from_rows = two_differences(self.scores, self.u[:, :, None])
        reduced, from_columns = two_differences(part, self.v[:, None, :])
        reduced += from_rows + from_columns
        np.negative(reduced, out=reduced, where=self.mask)
        distance: Floats = np.maximum(reduced, 0.0, out=reduced).sum(axis=(1, 2))
        if self.at_most:
            distance += (self.u * (self.n - self.mask.sum(axis=2))).sum(axis=1)
            distance += (self.v * (self.n - self.mask.sum(axis=1))).sum(axis=1)
        return distance


def two_differences(minuend: Floats, subtrahend: Floats) -> tuple[Floats, Floats]:
    """Return the rounded difference and what it lost, by Knuth's TwoSum."""
    difference = minuend - subtrahend
    taken = difference - minuend
    return difference, (minuend - (difference - taken)) - (subtrahend + taken)


def shortest_path_duals(blocks: CertifiedBlocks) -> Duals:
    """Potentials of the residual graph of each mask, by Bellman-Ford.

    Complementary slackness asks for u_i <= S_ij - v_j where X_ij = 1 and u_i >= S_ij - v_j where X_ij = 0; with
    "at_most" also for u, v >= 0, and u_i = 0 or v_j = 0 where a line keeps fewer than N. As differences of the
    potentials a = u + z, b = z - v and z these are the arcs of the residual graph, and shortest paths from anywhere
    solve them. If the mask is not optimal the graph has a negative cycle, and what is returned after 2M + 2 rounds is
    only some dual.
    """
    m = blocks.scores.shape[-1]
    kept_arcs = np.where(blocks.mask, blocks.scores, np.inf)
    pruned_arcs = np.where(blocks.mask, np.inf, -blocks.scores)
    slack_rows = blocks.mask.sum(axis=2) < blocks.n
    slack_columns = blocks.mask.sum(axis=1) < blocks.n
    a, b, z = blocks.u.copy(), -blocks.v, np.zeros((len(blocks.u), 1))
    active = np.arange(len(a))
    for _ in range(2 * m + 2):
        old_a, old_b, old_z = a[active], b[active], z[active]
        new_b = np.minimum(old_b, (old_a[:, :, None] + pruned_arcs[active]).min(axis=1))
        new_z = old_z
        if blocks.at_most:
            new_b = np.minimum(new_b, old_z)
            slack = np.where(slack_columns[active], new_b, np.inf).min(axis=1, keepdims=True)
            new_z = np.minimum(np.minimum(old_z, old_a.min(axis=1, keepdims=True)), slack)
        new_a = np.minimum(old_a, (new_b[:, None, :] + kept_arcs[active]).min(axis=2))
        if blocks.at_most:
            new_a = np.where(slack_rows[active], np.minimum(new_a, new_z), new_a)
        a[active], b[active], z[active] = new_a, new_b, new_z
        changed = (new_a != old_a).any(axis=1) | (new_b != old_b).any(axis=1) | (new_z != old_z)[:, 0]
        active = active[changed]
        if active.size == 0:
            break
    u, v = a - z, z - b
    if blocks.at_most:
        np.maximum(u, 0.0, out=u)
        np.maximum(v, 0.0, out=v)
    return u, v


def alternating_duals(blocks: CertifiedBlocks) -> Duals:
    """Minimise bound(u, v) over u for fixed v and the other way round, in turn; the mask plays no part.

    For fixed v the bound is least where u_i lies between the N-th and the (N+1)-th largest of S_i. - v; the midpoint
    keeps the sweeps from stalling. A block is done when thresholding at (u, v) leaves N in every line. The sweeps work
    on minutely perturbed scores, because on tied ones they would stall; any (u, v) is a valid dual of the true ones.
    With "at_most" the floor at 0 stalls them as well, so u and v are kept away from it as long as that costs nothing:
    (u + c, v - c) has the bound of (u, v), and c is chosen so that both have the same minimum. The blocks that are not
    done in the end get the duals of a linear program.
    """
    count, m, _ = blocks.scores.shape
    noise = np.random.default_rng(0).random((m, m))
    scale = blocks.scores.max(axis=(1, 2), keepdims=True)
    scores = blocks.scores + _PERTURBATION * scale * noise
    u, v = np.zeros((count, m)), np.zeros((count, m))
    active = np.arange(count)
    for _ in range(8 * m + 32):
        part, columns = scores[active], v[active]
        if blocks.at_most:
            columns += 0.5 * (u[active].min(axis=1) - columns.min(axis=1))[:, None]
        u[active] = _midpoints(part - columns[:, None, :], blocks.n, blocks.at_most)
        v[active] = _midpoints(part.swapaxes(1, 2) - u[active][:, None, :], blocks.n, blocks.at_most)
        kept = part - u[active][:, :, None] > v[active][:, None, :]
        rows = kept.sum(axis=2)
        done = (rows == blocks.n) | ((rows < blocks.n) & (u[active] == 0.0) & blocks.at_most)
        active = active[~done.all(axis=1)]
        if active.size == 0:
            break
    for block in active:
        u[block], v[block] = linear_program_duals(blocks.scores[block], blocks.n, at_most=blocks.at_most)
    return u, v


def linear_program_duals(scores: Floats, n: int, *, at_most: bool) -> Duals:
    """Duals of the linear program of one (M, M) block, from HiGHS; milliseconds, so only where sweeps stall."""
    linprog, sparse = (
        import_whole("scipy.optimize").linprog,
        import_whole("scipy.sparse"),
    )  # here: `import transmask` loads numpy and nothing heavier

    m = len(scores)
    eye, ones = sparse.eye_array(m), np.ones((1, m))
    lines = sparse.vstack([sparse.kron(eye, ones), sparse.kron(ones, eye)], format="csr")
    exponent = 30 - int(np.frexp(scores.max())[1])  # HiGHS' tolerance of 1e-7 is absolute
    costs, limits = -np.ldexp(scores, exponent).ravel(), np.full(2 * m, n)
    if at_most:
        marginals = linprog(costs, A_ub=lines, b_ub=limits, bounds=(0, 1), method="highs").ineqlin.marginals
        duals = np.maximum(-marginals, 0.0)
    else:
        duals = -linprog(costs, A_eq=lines, b_eq=limits, bounds=(0, 1), method="highs").eqlin.marginals
    duals = np.ldexp(duals, -exponent)
    return duals[:m], duals[m:]


def _midpoints(lines: Floats, n: int, at_most: bool) -> Floats:
    """Midpoint of the N-th and the (N+1)-th largest along the last axis, clamped at 0 for "at_most"."""
    m = lines.shape[-1]
    if n in (0, m):
        bound: Floats = lines.max(axis=-1) if n == 0 else lines.min(axis=-1)
    else:
        ordered = np.partition(lines, (m - n - 1, m - n), axis=-1)
        bound = 0.5 * ordered[..., m - n] + 0.5 * ordered[..., m - n - 1]
    return np.maximum(bound, 0.0) if at_most else bound
