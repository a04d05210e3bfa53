"""Mask diversity: the published comparison, its correction, and what is refused."""

import math
import re

import naive
import pytest

import transmask as tm
from transmask import NM, Block, Channel, Product, Transposable, Unstructured, mask_diversity

PATTERNS = [(n, m) for m in range(1, 5) for n in range(m + 1)]


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_a_block_has_as_many_masks_as_brute_force_finds(n, m, constraint):
    found = mask_diversity(Transposable(n, m, constraint), (m, m))
    masks = len(naive.all_masks(n, m, constraint))
    assert (found.count, found.log2_error) == (masks, 0.0)
    assert found.log2_count == pytest.approx(math.log2(masks))
    assert found.bits_per_weight == pytest.approx(math.log2(masks) / m**2)


def test_the_published_comparison_of_an_8_by_8_block_is_reversed_by_the_exact_count():
    structures = [Unstructured(0.5), NM(2, 4), NM(4, 8), Transposable(2, 4), Transposable(4, 8)]
    exact, paper = (
        [mask_diversity(s, (8, 8), method=method).count for s in structures] for method in tm.diversity.METHODS
    )
    assert exact == [math.comb(64, 32), 6**16, 70**8, 90**4, 116963796250]
    assert paper == [math.comb(64, 32), 6**16, 70**8, 144**4, 17557585920000]
    assert f"{paper[-1]:.2e}" == "1.76e+13"
    assert paper[-1] > paper[1]  # the paper's remark: 4:8 transposable is more diverse than 2:4 row-wise
    assert exact[-1] < exact[1]  # it is not


def test_the_papers_formula_is_the_product_of_factorials():
    for n, m in ((1, 4), (2, 8), (3, 5), (8, 16)):
        expected = math.prod(math.factorial(m - i) for i in range(n)) ** 6
        assert mask_diversity(Transposable(n, m), (2 * m, 3 * m), method="hubara2021").count == expected


def test_the_papers_formula_exceeds_at_8_to_16_what_holds_in_rows_alone():
    paper = mask_diversity(Transposable(8, 16), (16, 16), method="hubara2021")
    rows = mask_diversity(NM(8, 16), (16, 16), method="hubara2021")
    exact = mask_diversity(Transposable(8, 16), (16, 16))
    assert exact.log2_count < rows.log2_count < paper.log2_count
    assert [round(found.bits_per_weight, 3) for found in (exact, rows, paper)] == [0.721, 0.853, 0.968]


@pytest.mark.parametrize("structure", [Unstructured(0.3), NM(2, 4), Block((3, 2), 0.5), Channel(0.4)], ids=str)
def test_no_structure_is_freer_than_unstructured(structure):
    shape = (10, 12)
    found = mask_diversity(structure, shape)
    assert 0 < found.bits_per_weight < 1
    assert found.count == structure.count(shape).value
    assert found.size == 120
    assert found.count <= sum(math.comb(120, kept) for kept in range(121))


def test_a_cut_block_is_counted_as_at_most():
    counted = tm.counting.count_matrices
    expected = 90**2 * counted(4, 2, 2, "at_most") * counted(1, 4, 2, "at_most") ** 2 * counted(1, 2, 2, "at_most")
    assert mask_diversity(Transposable(2, 4), (5, 10)).count == expected
    assert mask_diversity(NM(2, 4), (3, 5)).count == (6 * 2) ** 3


def test_large_matrices_have_a_logarithm_and_no_integer():
    found = mask_diversity(Transposable(2, 4), (4096, 4096))
    assert found.count is None
    assert found.log2_count == pytest.approx(1024**2 * math.log2(90), rel=1e-12)
    free = mask_diversity(Unstructured(0.5), (4096, 4096))
    n = 4096**2
    stirling = n - 0.5 * math.log2(math.pi * n / 2)
    assert free.log2_count == pytest.approx(stirling, abs=1e-4)
    assert free.bits_per_weight < 1


def test_a_count_of_thousands_of_digits_is_exact():
    found = mask_diversity(Unstructured(0.5), (128, 128))
    assert found.count == math.comb(128 * 128, 64 * 128)
    assert mask_diversity(Transposable(2, 4), (256, 256)).count == 90**4096


def test_blocks_too_large_to_count_are_estimated_with_a_measured_error():
    found = mask_diversity(Transposable(16, 32), (64, 96))
    assert found.count is None
    per_block = 64 * math.log2(math.comb(32, 16)) - math.log2(math.comb(1024, 512)) - 0.5 * math.log2(math.e)
    assert found.log2_count == pytest.approx(6 * per_block, rel=1e-12)
    exact = mask_diversity(Transposable(8, 16), (16, 16)).log2_count
    formula = 32 * math.log2(math.comb(16, 8)) - math.log2(math.comb(256, 128)) - 0.5 * math.log2(math.e)
    assert found.log2_error == pytest.approx(6 * (exact - formula))
    assert re.search(r"2\^5082\.\d+ \+- 0\.268 masks, 0\.8272 bits", repr(found))


def test_large_blocks_that_can_be_counted_are():
    found = mask_diversity(Transposable(1, 32), (32, 64))
    assert found.count == math.factorial(32) ** 2
    assert mask_diversity(Transposable(31, 32), (32, 32)).count == math.factorial(32)


def test_a_structure_counts_the_layers_of_a_network():
    shapes = {"a": (4, 8), "b": (4, 4)}
    assert mask_diversity(Transposable(2, 4), shapes).count == 90**3
    network = Product({"a": Transposable(2, 4), "b": NM(2, 4)})
    found = mask_diversity(network, shapes)
    assert (found.count, found.size) == (90**2 * 6**4, 48)
    assert mask_diversity(network, shapes, method="hubara2021").count == 144**2 * 6**4
    assert mask_diversity(NM(2, 4), {}).bits_per_weight == 0.0


@pytest.mark.parametrize(
    ("arguments", "method", "kind", "message"),
    [
        (
            (NM(2, 4), (4, 4)),
            "exakt",
            ValueError,
            "`method` must be one of 'exact', 'hubara2021', got 'exakt'. Did you",
        ),
        (("2:4", (4, 4)), "exact", TypeError, "`structure` must be a Structure or a Product, got '2:4'"),
        ((Product({"a": NM(2, 4)}), (4, 4)), "exact", TypeError, r"`shape` must map .* to their shapes, got \(4, 4\)"),
        ((Product({"a": NM(2, 4)}), {}), "exact", ValueError, "`shape` must have the layers 'a', got none"),
        ((NM(2, 4), (8,)), "exact", ValueError, r"`shape` must have at least 2 axes, got \(8,\)"),
        ((NM(2, 4), (4, 6)), "hubara2021", ValueError, r"`shape` must be a multiple of M = 4 .*, got \(4, 6\)"),
        ((Transposable(2, 4), (6, 4)), "hubara2021", ValueError, "`shape` must be a multiple of M = 4"),
        ((Block((2, 2), 0.5), (4, 4)), "hubara2021", ValueError, "`method` 'hubara2021' must be given"),
        ((Transposable(2, 4, "at_most"), (4, 4)), "hubara2021", ValueError, "keeps exactly N, got '2:4 .* at most'"),
        ((Transposable(16, 32, "at_most"), (32, 32)), "exact", ValueError, "No formula is known for 'at_most'"),
        ((Transposable(16, 32), (50, 32)), "exact", ValueError, "got 18 x 32 entries with at most 16 a line"),
    ],
)
def test_bad_input_gets_one_clear_error(arguments, method, kind, message):
    with pytest.raises(kind, match=message) as raised:
        mask_diversity(*arguments, method=method)
    assert isinstance(raised.value, tm.TransmaskError)
