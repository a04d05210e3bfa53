"""Where the certificate's dual variables come from: shortest paths, alternating minimisation, a linear program.

No proof relies on their origin: any (u, v), with "at_most" any u, v >= 0, prove the bound that belongs to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..blocks import Duals

__all__ = ["CertifiedBlocks", "alternating_duals", "linear_program_duals", "shortest_path_duals"]

_PERTURBATION = 1e-9  # relative; breaks the ties on which alternating minimisation stalls, costs as much of the bound

Floats = NDArray[np.float64]


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

    def distance(self) -> Floats:
        """bound(u, v) - kept for each block, as a sum of non-negative terms; see `certificate`."""
        reduced = self.scores - self.u[:, :, None]
        reduced -= self.v[:, None, :]
        np.negative(reduced, out=reduced, where=self.mask)
        distance: Floats = np.maximum(reduced, 0.0, out=reduced).sum(axis=(1, 2))
        if self.at_most:
            distance += (self.u * (self.n - self.mask.sum(axis=2))).sum(axis=1)
            distance += (self.v * (self.n - self.mask.sum(axis=1))).sum(axis=1)
        return distance


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
    from scipy.optimize import linprog  # here, because `import transmask` loads numpy and nothing heavier

    m = len(scores)
    lines = np.concatenate([np.repeat(np.eye(m), m, axis=1), np.tile(np.eye(m), m)])
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
