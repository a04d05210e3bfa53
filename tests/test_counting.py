"""Exact counts of 0/1 matrices against brute force, published tables, closed formulas and a Fourier transform."""

import math
from itertools import product

import naive
import numpy as np
import pytest

from transmask import Pattern, UnsupportedPatternError
from transmask.structures.counting import asymptotic_log2, count_matrices, is_countable, measured_error_log2
from transmask.structures.mask_count import MAX_DIGITS, Binomial, Estimate, Integer, MaskCount

SMALL = [(n, m) for m in range(1, 5) for n in range(m + 1)]


def count_by_column_sums(rows, columns, n, constraint):
    """Add a row at a time to every tuple of column sums; nothing is merged by symmetry, halved or packed."""
    choices = [
        row for row in product((0, 1), repeat=columns) if sum(row) == n or (sum(row) < n and constraint != "exactly")
    ]
    counts = {(0,) * columns: 1}
    for _ in range(rows):
        following = {}
        for sums, count in counts.items():
            for row in choices:
                new = tuple(map(sum, zip(sums, row, strict=True)))
                if max(new) <= n:
                    following[new] = following.get(new, 0) + count
        counts = following
    return sum(count for sums, count in counts.items() if constraint != "exactly" or min(sums) == n)


def count_modulo(n, m, constraint, order):
    """The count modulo a prime, as a Fourier sum over roots of unity: (prime, remainder).

    It is the constant coefficient of prod_j sum_k y_j^-k * (sum_k e_k(y))^m, k being the sums that are allowed:
    a sum over all m-tuples of roots of unity, equal ones up to order together. `order` roots tell the exponents apart.
    """
    allowed = [n] if constraint == "exactly" else list(range(n + 1))
    prime = next(p for p in range(10**6 // order * order + 1, 10**8, order) if all(p % d for d in range(2, 1100)))
    root = next(
        r
        for r in (pow(x, (prime - 1) // order, prime) for x in range(2, prime))
        if len(powers(r, order, prime)) == order
    )
    used, weight = np.zeros(1, np.int64), np.ones(1, np.int64)
    symmetric = np.zeros((1, max(allowed) + 1), np.int64)  # elementary symmetric polynomials of the roots so far
    symmetric[:, 0] = 1
    for point in powers(root, order, prime):
        factor = sum(pow(point, -k, prime) for k in allowed) * pow(order, -1, prime) % prime
        parts, power = [], 1
        for times in range(m + 1):
            fits = used + times <= m if point != 1 else used + times == m  # 1 comes last, and fills up
            ways = np.array([math.comb(m - u, times) % prime if u + times <= m else 0 for u in range(m + 1)])
            parts.append((used[fits] + times, weight[fits] * ways[used[fits]] % prime * power % prime, symmetric[fits]))
            power = power * factor % prime
            symmetric = symmetric.copy()
            symmetric[:, 1:] = (symmetric[:, 1:] + point * symmetric[:, :-1]) % prime
        used, weight, symmetric = (np.concatenate(part) for part in zip(*parts, strict=True))
    row, total = symmetric[:, allowed].sum(axis=1) % prime, weight
    for _ in range(m):
        total = total * row % prime
    return prime, int(total.sum() % prime)


def powers(root, order, prime):
    """The different powers of a root, 1 last."""
    return list(dict.fromkeys(pow(root, k, prime) for k in range(1, order + 1)))


@pytest.mark.parametrize(("n", "m"), SMALL)
def test_every_small_block_equals_brute_force(n, m, constraint):
    assert count_matrices(m, m, n, constraint) == len(naive.all_masks(n, m, constraint))


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (2, 3), (3, 2), (3, 4), (2, 6), (3, 7), (7, 3), (4, 5)])
def test_rectangles_equal_a_count_over_all_column_sums(rows, columns):
    for n in range(max(rows, columns) + 2):
        expected = count_by_column_sums(rows, columns, n, "at_most")
        assert count_matrices(rows, columns, n, "at_most") == expected, n


@pytest.mark.parametrize(("n", "m"), [(2, 5), (3, 5), (2, 6), (3, 6)])
def test_larger_blocks_equal_a_count_over_all_column_sums(n, m, constraint):
    assert count_matrices(m, m, n, constraint) == count_by_column_sums(m, m, n, constraint)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("2:4", 90),
        ("3:6", 297200),
        ("2:8", 187530840),
        ("4:8", 116963796250),
        ("4:9", 315031400802720),
        ("4:10", 1289144584143523800),
        ("5:9", 315031400802720),
        ("5:10", 6736218287430460752),
        ("5:11", 226885231700215713535680),
        ("6:12", 64051375889927380035549804336),
        ("4:14", 12163525741347497524178307740904300),
    ],
)
def test_counts_equal_published_ones(pattern, count):
    """OEIS A001499, A001501, A058528 and A075754, and the numbers that the paper's formula is compared with."""
    n, m = map(int, pattern.split(":"))
    assert count_matrices(m, m, n, "exactly") == count


def test_at_most_at_2_to_4():
    assert count_matrices(4, 4, 2, "at_most") == 7343


@pytest.mark.parametrize("m", [5, 8, 13, 16])
def test_one_a_line_is_a_placement_of_rooks(m):
    assert count_matrices(m, m, 1, "exactly") == math.factorial(m)
    rooks = sum(math.comb(m, k) ** 2 * math.factorial(k) for k in range(m + 1))
    assert count_matrices(m, m, 1, "at_most") == rooks


@pytest.mark.parametrize("m", [5, 8, 11])
def test_one_pruned_at_least_by_inclusion_and_exclusion(m):
    expected = sum(
        (-1) ** (i + j) * math.comb(m, i) * math.comb(m, j) * 2 ** ((m - i) * (m - j))
        for i, j in product(range(m + 1), repeat=2)
    )
    assert count_matrices(m, m, m - 1, "at_most") == expected


@pytest.mark.parametrize(
    ("n", "m", "constraint", "order"),
    [(3, 7, "exactly", 8), (3, 7, "at_most", 8), (5, 8, "at_most", 9), (6, 12, "exactly", 7), (8, 16, "exactly", 9)],
)
def test_counts_equal_a_fourier_sum_modulo_a_prime(n, m, constraint, order):
    prime, remainder = count_modulo(n, m, constraint, order)
    assert prime > 10**6 - order
    assert count_matrices(m, m, n, constraint) % prime == remainder


def test_a_block_without_a_free_line_is_free():
    assert count_matrices(20, 30, 30, "at_most") == 2**600
    assert count_matrices(3, 50, 3, "at_most") == sum(math.comb(50, k) for k in range(4)) ** 3
    assert count_matrices(40, 40, 40, "exactly") == count_matrices(40, 40, 0, "exactly") == 1


def test_counts_are_kept_in_memory():
    count_matrices(9, 9, 4, "exactly")
    hits = count_matrices.cache_info().hits
    count_matrices(9, 9, 4, "exactly")
    assert count_matrices.cache_info().hits == hits + 1


def test_every_pattern_up_to_16_can_be_counted(constraint):
    assert all(is_countable(m, m, n, constraint) for m in range(1, 17) for n in range(m + 1))
    assert not is_countable(32, 32, 16, constraint)
    assert is_countable(32, 32, 4, constraint)
    assert is_countable(32, 32, 28, constraint) is (constraint == "exactly")


def test_what_cannot_be_counted_is_refused_with_a_reason():
    message = r"up to M = 16 for any N, got 32 x 32 entries with at most 16 a line\. No formula is known for 'at_most'"
    with pytest.raises(UnsupportedPatternError, match=message):
        count_matrices(32, 32, 16, "at_most")


def test_the_asymptotic_formula_is_canfield_and_mckays():
    expected = math.comb(6, 2) ** 12 / math.comb(36, 12) * math.exp(-0.5)
    assert asymptotic_log2(Pattern(2, 6)) == pytest.approx(math.log2(expected), abs=1e-12)


def error_log2(n, m):
    return abs(asymptotic_log2(Pattern(n, m)) - math.log2(count_matrices(m, m, n, "exactly")))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_the_error_of_the_asymptotic_formula_falls_with_m(quarters):
    errors = [error_log2(quarters * m // 4, m) for m in (4, 8, 12, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05


@pytest.mark.parametrize(("n", "m"), [(1, 20), (2, 20), (3, 24), (2, 32), (4, 32), (29, 32), (6, 18), (3, 48)])
def test_the_stated_error_holds_where_larger_blocks_can_be_counted(n, m):
    stated = measured_error_log2(Pattern(n, m))
    assert 0.25 * stated < error_log2(n, m) <= stated < 0.05


@pytest.mark.parametrize("n", [4096, 4097, 5000, 30030])
def test_large_binomials_equal_math_comb(n):
    for k in (0, 1, n // 7, n // 2, n - 1, n):
        number = math.comb(n, k)
        assert Binomial(n, k).value() == number
        assert Binomial(n, k).log2 == pytest.approx(math.log2(number), rel=1e-12, abs=1e-9)


def test_a_count_is_an_integer_while_it_has_fewer_than_a_million_digits():
    assert MaskCount(((Integer(10), MAX_DIGITS - 2),)).value == 10 ** (MAX_DIGITS - 2)
    assert MaskCount(((Integer(10), MAX_DIGITS - 1),)).value is None
    assert MaskCount(((Integer(10), MAX_DIGITS - 1),)).log2 == pytest.approx((MAX_DIGITS - 1) * math.log2(10))


def test_counts_multiply():
    first, second = MaskCount(((Integer(90), 3),)), MaskCount(((Integer(90), 2), (Binomial(6, 3), 1)))
    assert (first * second).value == 90**5 * 20
    assert (first * second).powers == ((Integer(90), 5), (Binomial(6, 3), 1))
    assert (first * second).log2 == pytest.approx(first.log2 + second.log2)
    assert MaskCount(()).value == 1


def test_an_estimate_has_no_integer():
    count = MaskCount(((Estimate(10.0, 0.25), 4), (Integer(2), 1)))
    assert (count.value, count.log2, count.log2_error) == (None, 41.0, 1.0)
    assert MaskCount(((Estimate(10.0, 0.0), 1),)).value is None
