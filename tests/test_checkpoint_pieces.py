"""A tensor is pruned piece by piece; where it is cut changes neither masks nor sums nor what is said of its errors."""

import math
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import read_safetensors, write_safetensors
from hypothesis import given
from hypothesis import strategies as st

import transmask as tm
from transmask.checkpoint import open_checkpoint, plan_pruning, prune_checkpoint, read_masks
from transmask.checkpoint.pieces import cut_into_pieces
from transmask.pipeline import in_order
from transmask.solvers import Enumeration, PrimalDual, SolverInfo


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 300),
)
def test_pieces_are_the_tensor_in_order_and_cut_no_block(shape, first, more, m, limit):
    axes = first % len(shape), (first + 1 + (more - 1) % (len(shape) - 1)) % len(shape)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    row_block, column_block = (np.indices(shape)[axis] // m for axis in axes)
    others = [np.indices(shape)[axis] for axis in range(len(shape)) if axis not in axes]
    block = np.ravel_multi_index([row_block, column_block, *others], (9, 9, *[9] * len(others)))
    seen, start = [], 0
    for piece in cut_into_pieces(shape, axes, m, limit):
        size = math.prod(piece)
        part = slice(start, start + size)
        at = np.unravel_index(start, shape)
        window = tuple(slice(i, i + n) for i, n in zip(at, piece, strict=True))
        assert np.array_equal(numbers[window].ravel(), numbers.ravel()[part])  # a box of the tensor, and a stretch
        here = set(block.ravel()[part].tolist())
        assert not here & set(seen)
        seen += here
        assert size <= max(limit, m * math.prod(shape[min(axes) + 1 :]))
        start += size
    assert start == numbers.size


TENSORS = {
    "linear.weight": np.random.default_rng(0).standard_normal((203, 90)).astype(np.float32),
    "half.weight": np.random.default_rng(1).standard_normal((64, 120)).astype(ml_dtypes.bfloat16),
    "experts.weight": np.random.default_rng(2).standard_normal((5, 30, 44)),
    "conv.weight": np.random.default_rng(3).standard_normal((36, 20, 3, 3)).astype(np.float16),
    "bias": np.ones(50, np.float32),
}


@pytest.mark.parametrize("limit", [1, 100, 1000, 1 << 20])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_pieces_of_any_size_give_the_same_files(tmp_path, monkeypatch, limit, threads, suffix):
    monkeypatch.setattr(PrimalDual, "chunk_entries", limit)
    if suffix == ".npz":
        np.savez(tmp_path / "m.npz", **(TENSORS | {"fortran": np.asfortranarray(TENSORS["linear.weight"])}))
    else:
        write_safetensors(tmp_path / "m.safetensors", TENSORS)
    plan = plan_pruning(tmp_path / f"m{suffix}", "2:4")
    outcomes = prune_checkpoint(plan, tmp_path / f"new{suffix}", masks=tmp_path / "masks.safetensors", threads=threads)
    masks = read_masks(tmp_path / "masks.safetensors")
    new = dict(np.load(tmp_path / "new.npz")) if suffix == ".npz" else read_safetensors(tmp_path / "new.safetensors")[1]
    assert [outcome.tensor.name for outcome in outcomes] == list(plan.axes)
    for outcome in outcomes:
        name = outcome.tensor.name
        weights = TENSORS["linear.weight" if name == "fortran" else name]
        wanted = tm.solve(weights, "2:4", axes=outcome.axes)
        assert np.array_equal(masks[name], wanted.mask)
        assert np.array_equal(
            new[name].view(weights.dtype), np.where(wanted.mask, weights, np.zeros((), weights.dtype))
        )
        for field in ("kept", "total", "upper_bound"):
            assert getattr(outcome, field) == pytest.approx(getattr(wanted, field), rel=1e-13)
        assert (outcome.n_blocks, outcome.unproven) == (wanted.n_blocks, 0)
    assert np.array_equal(new["bias"], TENSORS["bias"])


def test_a_nan_in_a_later_piece_is_found_by_what_the_error_says(tmp_path, monkeypatch):
    monkeypatch.setattr(PrimalDual, "chunk_entries", 720)
    weights = TENSORS["linear.weight"].copy()
    weights[150, 3] = weights[190, 80] = np.nan
    write_safetensors(tmp_path / "m.safetensors", {"w": weights})
    text = (
        r"tensor 'w', the part that begins at index \(144, 0\): `weights` must be finite, got 1 of 720 entries NaN or "
        r"infinite, the first at index \(6, 3\): nan"
    )
    with pytest.raises(tm.InvalidArgumentError, match=text):
        prune_checkpoint(plan_pruning(tmp_path / "m.safetensors", "2:4"), tmp_path / "new.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


class BreaksTheLast(Enumeration):
    """Keeps everything in the block that holds a 99."""

    chunk_entries = 128
    info = SolverInfo("breaks", "BreaksTheLast", "exact", ("exactly", "at_most"), None, "numpy", "unpublished")

    def solve_scores(self, scores, pattern, constraint):
        return super().solve_scores(scores, pattern, constraint) | (scores == 99).any(axis=(1, 2), keepdims=True)


def test_a_line_that_a_solver_breaks_is_found_by_what_the_error_says(tmp_path):
    weights = np.random.default_rng(0).random((64, 16), np.float32)
    weights[41, 2] = 99
    write_safetensors(tmp_path / "m.safetensors", {"w": weights})
    where = r"tensor 'w', the part that begins at index \(40, 0\)"
    text = where + ": `solver` 'breaks' .* but row 0, columns 0 to 3 keeps 4"
    with pytest.raises(tm.SolverError, match=text):
        prune_checkpoint(
            plan_pruning(tmp_path / "m.safetensors", "2:4", solver=BreaksTheLast()), tmp_path / "new.safetensors"
        )


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_and_few_items_are_on_their_way(threads):
    made, done = [], []

    def items():
        for number in range(50):
            made.append(number)
            yield number

    for result in in_order(lambda number: -number, items(), threads, is_small=lambda number: number % 3 == 0):
        assert len(made) - len(done) <= threads + 2
        done.append(result)
    assert done == [-number for number in range(50)]


@pytest.mark.parametrize("where", ["items", "function", "consumer"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("small", [False, True])
def test_an_error_anywhere_ends_the_threads(where, threads, small):
    begun = []

    def items():
        for number in range(1000):
            if where == "items" and number == 20:
                raise KeyboardInterrupt
            yield number

    def work(number):
        begun.append(number)
        if where == "function" and number == 20:
            raise KeyError(number)
        return number

    before = threading.active_count()

    def consume():
        results = in_order(work, items(), threads, is_small=lambda number: small and number == 20)
        try:
            for number in results:
                if where == "consumer" and number == 20:
                    raise OSError
        finally:
            results.close()

    with pytest.raises((KeyboardInterrupt, KeyError, OSError)):
        consume()
    assert threading.active_count() == before
    assert len(begun) <= 21 + threads + 2


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "longdouble", ml_dtypes.bfloat16, ">f4"])
def test_what_is_pruned_becomes_zero_and_the_rest_stays(tmp_path, dtype):
    weights = np.random.default_rng(0).standard_normal((8, 12))
    weights[0, :4] = 7, -7, 6, 6
    weights = (10 * weights).astype(dtype)
    np.savez(tmp_path / "m.npz", w=weights.view("V2") if dtype == ml_dtypes.bfloat16 else weights, other=np.ones(3))
    plan = plan_pruning(tmp_path / "m.npz", "2:4")
    prune_checkpoint(plan, tmp_path / "new.npz", masks=tmp_path / "masks.safetensors")
    mask = read_masks(tmp_path / "masks.safetensors")["w"]
    found = np.load(tmp_path / "new.npz")["w"].view(weights.dtype)
    assert mask.sum() == mask.size // 2
    assert np.array_equal(found, np.where(mask, weights, weights.dtype.type(0)))


def test_an_archive_is_read_by_two_at_once_and_in_another_process(tmp_path):
    arrays = {name: np.random.default_rng(i).random((64, 64)) for i, name in enumerate("ab")}
    np.savez_compressed(tmp_path / "m.npz", **arrays)
    checkpoint = pickle.loads(pickle.dumps(open_checkpoint(tmp_path / "m.npz")))
    first, second = checkpoint.tensors
    pieces = zip(checkpoint.stretches(first, [1024] * 4), checkpoint.stretches(second, [1024] * 4), strict=True)
    found = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
    assert np.array_equal(found[0], arrays["a"].ravel())
    assert np.array_equal(found[1], arrays["b"].ravel())
