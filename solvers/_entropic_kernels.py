"""Entropy-regularised transport with capacities, by Dykstra's projections, for many blocks at once.

With the iterate Z[i, j] = exp(tau S[i, j] / max S + a_i + b_j), the correction that Dykstra's algorithm keeps for the
capacities is max(Z, 1), so that a and b are all its state. A round is: P = min(Z, 1); scale the rows of P to sums of N;
scale the columns to sums of N; and multiply the same factors into Z. For "at_most" lines are scaled to sums of at most
N, whose correction is the factor itself: a and b stay at or below 0.

Z is kept as exp(...) times factors, which are taken into the logarithms a and b before they leave the range of
float64. The first scaling is done on logarithms. After it, with lines of sum N, all sums of P lie between N / M and
N * M, so that a factor grows or shrinks at most M-fold in a round. When factors are taken in depends on M alone; each
lane is another block, and sums are taken in the order of the indices: a block's plan does not depend on the blocks
around it.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math

import numba
import numpy as np

from .._jit import kernel

__all__ = ["transport_plans"]

PLAN_LANES = 1 if getattr(numba.config, "DISABLE_JIT") else 16  # noqa: B009 - set at run time, unknown to mypy
SAFE_EXPONENT = 150.0  # of the factors of rows and of columns each: their product with exp(700) or exp(-700) is a float
LARGEST_EXPONENT = 400.0  # Z above exp(400) stays above 1 until the next renewal, and is not told from it
TINY = 1e-300  # sums start with it: a line of "at_most" whose entries all underflow is scaled up as far as it may be


@kernel
def transport_plans(scores, n, tau, iterations, at_most):
    """Compute the logarithm of the plan before it is clipped, log Z.

    Parameters
    ----------
    scores : ndarray of float32 or float64, shape (B, M, M)
        Finite and non-negative.
    n : int
        Sum of every line of the plan.
    tau : float
        Inverse of the weight of the entropy, relative to the largest score of the block.
    iterations : int
        Rounds of projections, at least 1.
    at_most : bool
        Whether sums of lines may be smaller.

    Returns
    -------
    ndarray of float64, shape (B, M, M)
    """
    count, m, _ = scores.shape
    plans = np.empty((count, m, m), np.float64)
    exponents = np.zeros((m, m, PLAN_LANES), np.float64)
    z = np.empty((m, m, PLAN_LANES), np.float64)
    p = np.empty((m, PLAN_LANES), np.float64)
    sums = np.empty(PLAN_LANES, np.float64)
    column_sums = np.empty((m, PLAN_LANES), np.float64)
    log_rows = np.empty((m, PLAN_LANES), np.float64)
    log_columns = np.empty((m, PLAN_LANES), np.float64)
    rows = np.empty((m, PLAN_LANES), np.float64)
    columns = np.empty((m, PLAN_LANES), np.float64)
    row_caps = np.full((m, PLAN_LANES), np.inf)
    column_caps = np.full((m, PLAN_LANES), np.inf)
    renewal = max(1, int(SAFE_EXPONENT / math.log(max(m, 2))))
    for first in range(0, count, PLAN_LANES):
        in_use = min(PLAN_LANES, count - first)
        for lane in range(in_use):
            largest = np.float64(scores[first + lane].max())
            for i in range(m):
                for j in range(m):
                    share = np.float64(scores[first + lane, i, j]) / largest if largest > 0 else 0.0
                    exponents[i, j, lane] = tau * share
        _scale_logarithms(exponents, n, at_most, log_rows, log_columns)
        rows[:] = 1.0
        columns[:] = 1.0
        for done in range(1, iterations):
            if done % renewal == 1 or renewal == 1:
                _renew(exponents, log_rows, log_columns, rows, columns, z)
                if at_most:
                    _cap(log_rows, row_caps)
                    _cap(log_columns, column_caps)
            _project(z, n, rows, columns, row_caps, column_caps, p, sums, column_sums)
        _renew(exponents, log_rows, log_columns, rows, columns, z)
        for lane in range(in_use):
            for i in range(m):
                for j in range(m):
                    log_z = exponents[i, j, lane] + log_rows[i, lane] + log_columns[j, lane]
                    plans[first + lane, i, j] = log_z
    return plans


@kernel
def _scale_logarithms(exponents, n, at_most, log_rows, log_columns):
    """Scale the rows, then the columns, of exp(exponents) to sums of N; return the logarithms of the factors."""
    m = exponents.shape[0]
    for lane in range(exponents.shape[2]):
        for i in range(m):
            largest = exponents[i, 0, lane]
            for j in range(1, m):
                largest = max(largest, exponents[i, j, lane])
            total = 0.0
            for j in range(m):
                total += math.exp(exponents[i, j, lane] - largest)
            log_rows[i, lane] = math.log(n / total) - largest
            if at_most:
                log_rows[i, lane] = min(0.0, log_rows[i, lane])
        for j in range(m):
            largest = exponents[0, j, lane] + log_rows[0, lane]
            for i in range(1, m):
                largest = max(largest, exponents[i, j, lane] + log_rows[i, lane])
            total = 0.0
            for i in range(m):
                total += math.exp(exponents[i, j, lane] + log_rows[i, lane] - largest)
            log_columns[j, lane] = math.log(n / total) - largest
            if at_most:
                log_columns[j, lane] = min(0.0, log_columns[j, lane])


@kernel
def _renew(exponents, log_rows, log_columns, rows, columns, z):
    """Take the factors into the logarithms, set them to 1, and compute Z anew."""
    m = exponents.shape[0]
    for line in range(m):
        for lane in range(PLAN_LANES):
            log_rows[line, lane] += math.log(rows[line, lane])
            log_columns[line, lane] += math.log(columns[line, lane])
            rows[line, lane] = 1.0
            columns[line, lane] = 1.0
    for i in range(m):
        for j in range(m):
            for lane in range(PLAN_LANES):
                exponent = exponents[i, j, lane] + log_rows[i, lane] + log_columns[j, lane]
                z[i, j, lane] = math.exp(min(exponent, LARGEST_EXPONENT))


@kernel
def _cap(logarithms, caps):
    """Bound the factors, so that the logarithms they are taken into stay at or below 0."""
    for line in range(caps.shape[0]):
        for lane in range(PLAN_LANES):
            caps[line, lane] = math.exp(min(-logarithms[line, lane], SAFE_EXPONENT))


@kernel
def _project(z, n, rows, columns, row_caps, column_caps, p, sums, column_sums):
    """Run one round: clip, scale the rows, scale the columns."""
    m, _, lanes = z.shape  # not PLAN_LANES: the compiler would unroll the short loops instead of vectorising them
    column_sums[:] = TINY
    for i in range(m):
        sums[:] = TINY
        for j in range(m):
            for lane in range(lanes):
                value = z[i, j, lane] * rows[i, lane] * columns[j, lane]
                value = value if value < 1.0 else 1.0
                p[j, lane] = value
                sums[lane] += value
        for lane in range(lanes):
            old = rows[i, lane]
            rows[i, lane] = min(old * (n / sums[lane]), row_caps[i, lane])
            sums[lane] = rows[i, lane] / old
        for j in range(m):
            for lane in range(lanes):
                column_sums[j, lane] += sums[lane] * p[j, lane]
    for j in range(m):
        for lane in range(lanes):
            columns[j, lane] = min(columns[j, lane] * (n / column_sums[j, lane]), column_caps[j, lane])
