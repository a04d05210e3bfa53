"""Structures side by side on the same weights."""

import csv
import math
from itertools import combinations

import numpy as np
import pytest
from rich.console import Console

import transmask as tm
from transmask import NM, Block, Channel, Product, Transposable, Unstructured, compare_structures

STRUCTURES = [
    Unstructured(0.5),
    NM(2, 4),
    Transposable(2, 4),
    Transposable(2, 4, "at_most"),
    Block((4, 4), 0.5),
    Channel(0.5),
]


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(0).standard_normal((16, 24))


@pytest.fixture(scope="module")
def comparison(weights):
    return compare_structures(weights, STRUCTURES)


def test_every_row_is_measured_on_the_best_mask(comparison, weights):
    magnitudes = np.sort(np.abs(weights).ravel())[::-1]
    for found, structure in zip(comparison.structures, STRUCTURES, strict=True):
        mask = structure.best_mask(weights)
        assert np.array_equal(found.masks["weights"].unpack(), mask)
        assert (found.label, found.structure) == (str(structure), structure)
        assert (found.kept_entries, found.size, found.density) == (mask.sum(), 384, mask.mean())
        assert found.kept == pytest.approx(np.abs(weights)[mask].sum())
        assert found.relative_kept == pytest.approx(np.abs(weights)[mask].sum() / magnitudes[: mask.sum()].sum())
        assert found.bits_per_weight == tm.mask_diversity(structure, weights.shape).bits_per_weight


def test_the_order_is_that_of_freedom(comparison):
    relative = {found.label: found.relative_kept for found in comparison.structures}
    assert relative["unstructured 0.5"] == 1.0
    assert 1 > relative["2:4 row-wise"] > relative["2:4 transposable"] > relative["blocks 4x4 0.5"]
    assert relative["blocks 4x4 0.5"] > relative["channels 0.5"]
    kept = {found.label: found.kept for found in comparison.structures}
    assert kept["2:4 transposable at most"] >= kept["2:4 transposable"]


def test_the_divergence_is_that_between_any_two_masks(comparison, weights):
    masks = [structure.best_mask(weights) for structure in STRUCTURES]
    divergence = comparison.divergence
    assert not divergence.diagonal().any()
    for i, j in combinations(range(len(masks)), 2):
        assert divergence[i, j] == divergence[j, i] == (masks[i] != masks[j]).sum()


def test_the_table_is_the_same_in_every_form(comparison):
    columns = comparison.to_dict()
    rows = list(csv.DictReader(comparison.to_csv().splitlines()))
    assert [row["structure"] for row in rows] == columns["structure"] == [str(structure) for structure in STRUCTURES]
    for key in ("density", "relative_kept", "bits_per_weight", "kept"):
        assert [float(row[key]) for row in rows] == columns[key]
    assert columns["divergence"] == comparison.divergence.tolist()
    plain = str(comparison)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(comparison)
    for found in comparison.structures:
        for text in (plain, capture.get()):
            assert found.label in text
            assert f"{found.relative_kept:.2%}" in text
            assert f"{found.bits_per_weight:.4f}" in text
    assert f"{comparison.divergence[0, 1] / 384:.1%}" in plain


def test_layers_are_compared_together(weights):
    layers = {"a": weights, "b": 10 * weights[:8, :8]}
    product = Product({"a": Transposable(2, 4), "b": Unstructured(0.25)})
    same, mixed = compare_structures(layers, [Transposable(2, 4), product]).structures
    assert same.diversity.count == 90 ** (24 + 4)
    assert mixed.diversity.count == 90**24 * math.comb(64, 16)
    assert (same.size, same.kept_entries, mixed.kept_entries) == (448, 224, 192 + 16)
    freest = [np.sort(np.abs(layers[name]).ravel())[::-1] for name in "ab"]
    assert same.unstructured == pytest.approx(freest[0][:192].sum() + freest[1][:32].sum())
    assert mixed.unstructured == pytest.approx(freest[0][:192].sum() + freest[1][:16].sum())


def test_a_structure_that_cannot_be_counted_is_compared_without_its_diversity():
    rng = np.random.default_rng(0)
    found = compare_structures(rng.standard_normal((32, 32)), [Transposable(16, 32, "at_most"), Transposable(16, 32)])
    assert [row["bits_per_weight"] is None for row in found.table.rows] == [True, False]
    assert str(found.table).splitlines()[1].split()[-2] == "-"
    assert found.to_csv().splitlines()[1].split(",")[3] == ""


def test_weights_without_magnitude_lose_nothing():
    (found,) = compare_structures(np.zeros((4, 4)), [Transposable(2, 4)]).structures
    assert found.relative_kept == 1.0
    (empty,) = compare_structures(np.zeros((0, 4)), [NM(2, 4)]).structures
    assert (empty.density, empty.relative_kept, empty.bits_per_weight) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((np.eye(4), []), ValueError, "`structures` must have at least one structure, got none"),
        ((np.eye(4), NM(2, 4)), TypeError, "`structures` must be a sequence of structures, got NM.* Put a single one"),
        ((np.eye(4), 3), TypeError, "`structures` must be a sequence of structures, got 3"),
        ((np.eye(4), ["2:4"]), TypeError, r"`structures` must hold structures, got '2:4'\. For example"),
        (({"fc": [[np.nan, 1]]}, [NM(2, 4)]), ValueError, r"`weights\['fc'\]` must be finite"),
        (({"fc": np.eye(4)}, [Product({"a": NM(2, 4)})]), ValueError, "`weights` must have the layers 'a', got 'fc'"),
        ((np.ones(4), [NM(2, 4)]), ValueError, "`weights` must have at least 2 axes"),
    ],
)
def test_bad_input_gets_one_clear_error(arguments, kind, message):
    with pytest.raises(kind, match=message) as raised:
        compare_structures(*arguments)
    assert isinstance(raised.value, tm.TransmaskError)
