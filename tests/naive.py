"""The oracle: slow, obvious, numpy and the standard library only. It never imports transmask.

Values are exact: a float64 is an integer times a power of two, so sums of scores are taken as fractions or as Python
integers, and no rounding can hide a wrong mask.
"""

from fractions import Fraction
from functools import cache
from itertools import combinations, product

import numpy as np


def offenders(mask, n, m, constraint):
    """List the groups of a 2-d mask that break the pattern, those of rows first; loops, edges and all."""
    rows, columns = mask.shape
    found = []
    for line, other, name in ((rows, columns, "row"), (columns, rows, "column")):
        for index in range(line):
            for start in range(0, other, m):
                stop = min(start + m, other)
                group = mask[index, start:stop] if name == "row" else mask[start:stop, index]
                kept = sum(bool(entry) for entry in group)
                whole = stop - start == m and index - index % m + m <= line
                if kept > n or (constraint == "exactly" and whole and kept < n):
                    found.append((name, index, start, stop, kept))
    return found


def offender(mask, n, m, constraint):
    """Return the first group of a 2-d mask that breaks the pattern, (name, line, start, stop, kept), or None."""
    return next(iter(offenders(mask, n, m, constraint)), None)


def kept_value(scores, mask):
    """Exact sum of the kept scores, a Fraction."""
    return sum(
        (Fraction(float(score)) for score, kept in zip(scores.flat, mask.flat, strict=True) if kept), Fraction(0)
    )


@cache
def all_masks(n, m, constraint):
    """Every mask of one block: all combinations of rows, of which those stay whose columns hold too."""
    sizes = [n] if constraint == "exactly" else range(n + 1)
    rows = [[column in kept for column in range(m)] for size in sizes for kept in combinations(range(m), size)]
    found = []
    for mask in product(rows, repeat=m):
        sums = [sum(column) for column in zip(*mask, strict=True)]
        if max(sums) <= n and (constraint == "at_most" or min(sums) == n):
            found.append(mask)
    return np.array(found, bool)


def brute_force_value(scores, n, constraint):
    """Most that a mask of one block keeps, a Fraction, by looking at every mask; for M <= 4."""
    masks = all_masks(n, scores.shape[0], constraint)
    integers, denominator = as_integers(scores)
    best = max(sum(np.array(integers, object)[mask].tolist()) for mask in likely_best(masks, scores))
    return Fraction(best, denominator)


def likely_best(masks, scores):
    """Drop the masks that are worse than the best by more than float64 could get wrong."""
    unit = scores / scores.max() if scores.max() > 0 else scores
    values = (masks * unit).sum(axis=(1, 2))
    return masks[values >= values.max() - 1e-9 * (1 + values.max())]


def as_integers(scores):
    """Multiply the scores by one power of two, so that all of them are integers: (nested list, power of two)."""
    exact = [[Fraction(float(score)) for score in row] for row in scores]
    denominator = max((score.denominator for row in exact for score in row), default=1)
    return [[int(score * denominator) for score in row] for row in exact], denominator


def best_value(scores, n, constraint):
    """Most that a mask keeps of R x C scores, a Fraction; any size, the whole being one block, cut or not."""
    return kept_value(scores, best_mask(scores, n, constraint))


def best_mask(scores, n, constraint):
    """Best mask of R x C scores by successive best augmenting paths, in Python integers.

    Kept entries are added one at a time, each along the path that gains the most, which leaves the best mask with that
    many entries. "at_most" ends where no path gains, "exactly" (R = C only) where every line is full.
    """
    gains, _ = as_integers(scores)
    rows, columns = scores.shape
    mask = [[False] * columns for _ in range(rows)]
    row_kept, column_kept = [0] * rows, [0] * columns
    while True:
        gain, path = best_path(gains, mask, row_kept, column_kept, n)
        if path is None or (constraint == "at_most" and gain <= 0):
            break
        for row, column in path:
            mask[row][column] = not mask[row][column]
        row_kept[path[0][0]] += 1
        column_kept[path[-1][1]] += 1
    return np.array(mask, bool).reshape(rows, columns)


def best_path(gains, mask, row_kept, column_kept, n):
    """Bellman-Ford over row -> column arcs that keep an entry and column -> row arcs that drop one."""
    rows, columns = len(row_kept), len(column_kept)
    at_row = [(0, []) if kept < n else None for kept in row_kept]
    at_column = [None] * columns
    changed = True
    while changed:
        changed = False
        for row, column in product(range(rows), range(columns)):
            if not mask[row][column] and at_row[row] is not None:
                gain = at_row[row][0] + gains[row][column]
                if at_column[column] is None or gain > at_column[column][0]:
                    at_column[column] = (gain, [*at_row[row][1], (row, column)])
                    changed = True
            if mask[row][column] and at_column[column] is not None:
                gain = at_column[column][0] - gains[row][column]
                if at_row[row] is None or gain > at_row[row][0]:
                    at_row[row] = (gain, [*at_column[column][1], (row, column)])
                    changed = True
    ends = [at_column[column] for column in range(columns) if column_kept[column] < n and at_column[column]]
    return max(ends, key=lambda end: end[0], default=(0, None))


def matrix_value(scores, n, m, constraint):
    """Most that a mask keeps of a matrix cut into blocks; those that an edge cuts are "at_most"."""
    total = Fraction(0)
    for row, column in product(range(0, scores.shape[0], m), range(0, scores.shape[1], m)):
        block = scores[row : row + m, column : column + m]
        total += best_value(block, n, constraint if block.shape == (m, m) else "at_most")
    return total


def dual_bound(scores, u, v, n):
    """N * (sum u + sum v) + sum max(0, S - u - v), a Fraction: for any u, v (>= 0 for "at_most") no mask keeps more."""
    bound = n * sum((Fraction(float(value)) for value in [*u, *v]), Fraction(0))
    for row, column in product(range(scores.shape[0]), range(scores.shape[1])):
        slack = Fraction(float(scores[row, column])) - Fraction(float(u[row])) - Fraction(float(v[column]))
        bound += max(slack, Fraction(0))
    return bound


def greedy_mask(scores, n):
    """Heavy to light, keep an entry while its row and its column have room; "at_most" only."""
    mask = np.zeros(scores.shape, bool)
    for index in np.argsort(-scores, axis=None, kind="stable"):
        row, column = divmod(int(index), scores.shape[1])
        if mask[row].sum() < n and mask[:, column].sum() < n:
            mask[row, column] = True
    return mask


def random_mask(rng, n, m):
    """A mask that keeps exactly N in every line: a circulant with its rows and columns shuffled."""
    mask = np.array([[(column - row) % m < n for column in range(m)] for row in range(m)], bool)
    return mask[rng.permutation(m)][:, rng.permutation(m)]
