"""Count 0/1 matrices whose rows and columns keep N entries each, exactly or at most.

The exact counts come from dynamic programming over rows. All that matters
of the rows so far is a histogram: how many columns have which capacity (N minus their sum) left. Half of the rows are
enough, because two halves fit together where one fills the capacities that the other leaves.
"""

from __future__ import annotations

import math
from functools import lru_cache

from ..errors import UnsupportedPatternError
from ..pattern import Constraint, Pattern
from .mask_count import Binomial

__all__ = ["asymptotic_log2", "count_matrices", "is_countable", "measured_error_log2"]

MEASURED_M = 16
"""The block side at which the error of the asymptotic formula is measured."""

_LARGEST_WORK = 8 * math.comb(24, 8)  # rows of a half times histograms; that of 8:16, about 10 s under "at_most"


def is_countable(rows: int, columns: int, n: int, constraint: Constraint) -> bool:
    """Tell whether `count_matrices` takes a case: every square block up to M = 16, larger ones for small N or M - N.

    Examples
    --------
    >>> is_countable(16, 16, 8, "at_most"), is_countable(32, 32, 16, "exactly"), is_countable(32, 32, 30, "exactly")
    (True, False, True)
    """
    rows, columns = sorted((rows, columns))
    if constraint == "at_most" and n >= rows:
        return True
    largest = min(n if constraint == "at_most" else min(n, rows - n), -(-rows // 2))
    return -(-rows // 2) * math.comb(columns + largest, largest) <= _LARGEST_WORK


@lru_cache(maxsize=1024)
def count_matrices(rows: int, columns: int, n: int, constraint: Constraint) -> int:
    """Count the 0/1 matrices whose rows and columns all sum to N, or to at most N.

    Parameters
    ----------
    rows, columns : int
        At least 1; equal for "exactly".
    n : int
        At least 0; at most `rows` for "exactly".
    constraint : {"exactly", "at_most"}

    Returns
    -------
    int
        Kept in memory for the next call.

    Raises
    ------
    UnsupportedPatternError
        If the histograms are too many to count in reasonable time; see `is_countable`.

    Notes
    -----
    On one core 8:16 takes about 1 s for "exactly" and 10 s and 300 MB for "at_most".

    Examples
    --------
    >>> count_matrices(4, 4, 2, "exactly"), count_matrices(4, 4, 2, "at_most")
    (90, 7343)
    """
    rows, columns = sorted((rows, columns))
    if not is_countable(rows, columns, n, constraint):
        raise UnsupportedPatternError(
            f"`structure` must have blocks whose masks can be counted, up to M = {MEASURED_M} for any N, "
            f"got {rows} x {columns} entries with {constraint.replace('_', ' ')} {n} a line. "
            "No formula is known for 'at_most'; the count for 'exactly' is a lower bound."
        )
    if constraint == "exactly":
        n = min(n, rows - n)  # the pruned entries of an N:M mask are an (M - N):M mask
    elif n >= rows:
        without_columns: int = _count_rows(columns, n) ** rows
        return without_columns
    first = {columns: 1}
    for count in range(1, rows // 2 + 1):
        first = _add_row(first, count, columns, n, constraint)
    second = dict(first)
    if rows % 2:
        second = _add_row(second, rows // 2 + 1, columns, n, constraint)
    return _join(first, second, rows - rows // 2, columns, n, constraint)


def _count_rows(columns: int, n: int) -> int:
    """Count the rows that keep at most n."""
    return sum(math.comb(columns, kept) for kept in range(min(n, columns) + 1))


def _add_row(counts: dict[int, int], rows: int, columns: int, n: int, constraint: Constraint) -> dict[int, int]:
    """Add the last of `rows` rows; `counts` is emptied.

    Column sums that are the same up to order have the same count, so a key is their histogram, packed into an integer:
    digit k, of `columns.bit_length()` bits, is the number of columns that sum to k. While the new row is under way a
    value packs n + 1 counts, that in slot j for the j entries the row keeps so far; Python then adds and multiplies all
    of them at once.
    """
    digit = columns.bit_length()
    slot = (_count_rows(columns, n) ** rows).bit_length() + 1
    slots = (1 << slot * (n + 1)) - 1
    for top in range(min(rows, n), 0, -1):  # downwards: a column that the row has raised is not raised again
        counts = _raise_columns(counts, top, digit, slot, slots)
    if constraint == "exactly":
        return {key: value >> slot * n for key, value in counts.items() if value >> slot * n}
    # The sum of all slots is the remainder modulo 2^slot - 1, as casting out nines sums decimal digits.
    return {key: value % ((1 << slot) - 1) for key, value in counts.items()}


def _raise_columns(counts: dict[int, int], top: int, digit: int, slot: int, slots: int) -> dict[int, int]:
    """Raise any number of columns from the sum top - 1 to `top`, in every way; `counts` is emptied."""
    low, high, mask = digit * (top - 1), digit * top, (1 << digit) - 1
    step = (1 << high) - (1 << low)
    comb = math.comb
    raised: dict[int, int] = {}
    get = raised.get
    while counts:
        key, value = counts.popitem()  # what has been read is freed: half the memory at 8:16
        there, movable = key >> high & mask, key >> low & mask
        raised[key] = get(key, 0) + value
        for moved in range(1, movable + 1):
            value = value << slot & slots
            if not value:
                break
            key += step
            raised[key] = get(key, 0) + value * comb(there + moved, moved)
    return raised


def _join(
    first: dict[int, int], second: dict[int, int], second_rows: int, columns: int, n: int, constraint: Constraint
) -> int:
    """Sum over the column sums of the first half what the second half can add to them; `second` is emptied."""
    digit = columns.bit_length()
    mask = (1 << digit) - 1
    largest = n
    if constraint == "at_most":
        largest = min(n, second_rows)
        for top in range(1, largest + 1):  # upwards: counts of given sums become counts of sums up to those
            second = _raise_columns(second, top, digit, 0, -1)
    total = 0
    for key, count in first.items():
        orders, wanted = math.factorial(columns), 0
        for column_sum in range(n + 1):
            number = key >> digit * column_sum & mask
            orders //= math.factorial(number)
            wanted += number << digit * min(n - column_sum, largest)
        total += orders * count * second.get(wanted, 0)
    return total


def asymptotic_log2(pattern: Pattern) -> float:
    """Return log2 of C(m, n)^(2m) / C(m^2, m n) * exp(-1/2), the asymptotic number of masks of an M x M block.

    Parameters
    ----------
    pattern : Pattern
        With 0 < n < m.

    Returns
    -------
    float

    References
    ----------
    Canfield and McKay 2005, "Asymptotic enumeration of dense 0-1 matrices with equal row sums and equal column sums",
    Electronic Journal of Combinatorics 12, R29, section 1.

    Examples
    --------
    >>> import math
    >>> round(asymptotic_log2(Pattern(4, 8)) - math.log2(116963796250), 4)
    -0.0887
    """
    n, m = pattern.n, pattern.m
    return 2 * m * Binomial(m, n).log2 - Binomial(m * m, m * n).log2 - 0.5 * math.log2(math.e)


def measured_error_log2(pattern: Pattern) -> float:
    """Measure the error of `asymptotic_log2` against the exact count at M = 16, at the densities next to the pattern's.

    The error falls as 1/M (0.089 at 4:8, 0.059 at 6:12, 0.045 at 8:16), so that a larger M has a smaller one.

    Parameters
    ----------
    pattern : Pattern
        With 0 < n < m.

    Returns
    -------
    float
        In bits a block, positive; the larger one of two densities.

    Examples
    --------
    >>> round(measured_error_log2(Pattern(4, 64)), 4)
    0.031
    """
    scaled = pattern.density * MEASURED_M
    nearest = {min(max(n, 1), MEASURED_M - 1) for n in (math.floor(scaled), math.ceil(scaled))}
    return max(
        abs(asymptotic_log2(Pattern(n, MEASURED_M)) - math.log2(count_matrices(MEASURED_M, MEASURED_M, n, "exactly")))
        for n in nearest
    )
