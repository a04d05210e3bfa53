"""Weights stored as entries and scales: the mask is optimal for their products, which numpy alone makes here."""

import math

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import files_in, read_safetensors, same_bits, write_safetensors

import transmask as tm
from transmask.checkpoint import check_checkpoint, plan_pruning, prune_checkpoint, sample_blocks
from transmask.cli import main
from transmask.solvers.primal_dual import PrimalDual

FP8, INT8 = ml_dtypes.float8_e4m3fn, np.int8


def stored(shape, dtype):
    values = np.random.default_rng(0).uniform(-1, 1, shape)
    return np.round(127 * values).astype(np.int8) if dtype is INT8 else (100 * values).astype(FP8)


def wide(shape, dtype=np.float32):
    """Scales over several decades, so that a mask of the entries alone is far from the best."""
    return (10.0 ** np.random.default_rng(1).uniform(-4, 0, shape)).astype(dtype)


def spread(scales, shape, spans):
    """Repeat scales over the entries that they cover."""
    for axis, span in enumerate(spans):
        scales = scales.repeat(span, axis)
    return scales[tuple(slice(side) for side in shape)].astype(np.float32)


CASES = [
    # the dtype and shape of the entries, the name and shape of the scales, their shape in full, entries for each scale
    (FP8, (16, 24), "fc.weight_scale", (16, 1), (16, 1), (1, 24)),  # compressed-tensors, by channel
    (FP8, (16, 24), "fc.weight_scale", (16,), (16, 1), (1, 24)),  # FBGEMM
    (FP8, (16, 24), "fc.weight_scale", (), (1, 1), (16, 24)),
    (FP8, (16, 24), "fc.scale_weight", (1,), (1, 1), (16, 24)),  # ComfyUI
    (FP8, (16, 96), "fc.weight_scale", (16, 3), (16, 3), (1, 32)),  # by group
    (FP8, (200, 300), "fc.weight_scale_inv", (2, 3), (2, 3), (128, 128)),  # DeepSeek-V3
    (FP8, (100, 300), "fc.weight_scale_inv", (1, 3), (1, 3), (128, 128)),
    (FP8, (200, 300), "fc.weight_scale", (2, 3), (2, 3), (128, 128)),  # compressed-tensors, by block
    (FP8, (200, 200), "fc.weight_scale_inv", (4, 4), (4, 4), (64, 64)),
    (INT8, (16, 24), "fc.weight_scale", (16, 1), (16, 1), (1, 24)),
    (INT8, (16, 24), "fc.SCB", (16,), (16, 1), (1, 24)),  # bitsandbytes
    (FP8, (3, 16, 24), "fc.weight_scale", (3, 16, 1), (3, 16, 1), (1, 1, 24)),
    (FP8, (3, 16, 24), "fc.weight_scale", (3, 1, 24), (3, 1, 24), (1, 16, 1)),  # Llama 4, which stores (in, out)
    (FP8, (3, 16, 24), "fc.weight_scale", (3,), (3, 1, 1), (1, 16, 24)),
    (FP8, (3, 200, 130), "fc.weight_scale_inv", (3, 2, 2), (3, 2, 2), (1, 128, 128)),
]


@pytest.mark.parametrize(("dtype", "shape", "name", "scale_shape", "full", "spans"), CASES)
def test_the_mask_is_that_of_entries_times_scales(tmp_path, dtype, shape, name, scale_shape, full, spans):
    class InPieces(PrimalDual):
        chunk_entries = math.prod(shape) // 5

    entries, scales = stored(shape, dtype), wide(scale_shape)
    path, output = tmp_path / "m.safetensors", tmp_path / "new.safetensors"
    write_safetensors(path, {"fc.weight": entries, name: scales})
    plan = plan_pruning(path, "2:4", axes={"weight$": (-2, -1)}, solver=InPieces())
    assert list(plan.axes) == ["fc.weight"]
    weights = entries.astype(np.float32) * spread(scales.reshape(full), shape, spans)
    if name.endswith("SCB"):
        weights = weights / 127
    [outcome] = prune_checkpoint(plan, output)
    best = tm.solve(weights, "2:4")
    assert outcome.kept == pytest.approx(best.kept, rel=1e-6)
    assert outcome.total == pytest.approx(best.total, rel=1e-6)
    assert outcome.unproven == 0
    _, after = read_safetensors(output)
    assert same_bits(after[name], scales)
    pruned = after["fc.weight"]
    kept = pruned != 0
    assert np.array_equal(pruned[kept], entries[kept])
    assert np.abs(weights[kept]).sum(dtype=float) == pytest.approx(best.kept, rel=1e-6)
    matrices = kept[..., : shape[-2] // 4 * 4, : shape[-1] // 4 * 4]
    for lines in (matrices, matrices.swapaxes(-1, -2)):
        assert lines.reshape(-1, 4).sum(1).max() == 2
    if scales.size > 1 and min(spans[-2:]) < 4:  # else all entries of a block share their scale
        plain = tm.transposable_mask(entries.astype(np.float32), "2:4")
        assert np.abs(weights[plain]).sum(dtype=float) < 0.999 * best.kept
    [found] = check_checkpoint(output, "2:4")
    assert found.report.ok


def test_blocks_are_sampled_of_the_effective_weights(tmp_path):
    entries, scales = stored((4, 8), INT8), wide((4, 1))
    np.savez(tmp_path / "m.npz", **{"fc.weight": entries, "fc.weight_scale": scales})
    blocks, n_all = sample_blocks(plan_pruning(tmp_path / "m.npz", "2:4"), 9)
    assert (blocks.dtype, n_all) == (np.float32, 2)
    assert np.array_equal(np.concatenate(list(blocks), axis=1), entries * scales)


@pytest.mark.parametrize(
    ("shape", "name", "scale_shape"),
    [
        ((16, 24), "fc.weight_scale", (24,)),
        ((16, 24), "fc.weight_scale", (16, 5)),
        ((16, 24), "fc.weight_scale", (16, 25)),
        ((16, 24), "fc.weight_scale", (16, 1, 2)),
        ((16, 24), "fc.weight_scale", (0,)),
        ((300, 300), "fc.weight_scale_inv", (2, 3)),
        ((300, 300), "fc.weight_scale_inv", (3, 299)),
    ],
)
def test_scales_that_cannot_fit_are_refused(tmp_path, capsys, shape, name, scale_shape):
    path, output = tmp_path / "m.safetensors", tmp_path / "new.safetensors"
    write_safetensors(path, {"fc.weight": stored(shape, FP8), name: np.ones(scale_shape, np.float32), "b": np.eye(4)})
    before = files_in(tmp_path)
    with pytest.raises(tm.InvalidArgumentError) as caught:
        plan_pruning(path, "2:4")
    assert str(caught.value) == (
        f"`model` must hold scales that fit their tensor, got {name!r} of shape {scale_shape} for 'fc.weight' of "
        f"shape {shape}. Exclude that tensor, or correct the file."
    )
    assert main(["prune", str(path), "-p", "2:4", "-o", str(output)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert files_in(tmp_path) == before
    assert list(plan_pruning(path, "2:4", exclude="^fc").axes) == ["b"]


def test_a_scale_that_is_no_number_is_named(tmp_path):
    scales = np.ones((8, 1), np.float32)
    scales[3] = np.inf
    write_safetensors(tmp_path / "m.safetensors", {"fc.weight": stored((8, 8), INT8), "fc.weight_scale": scales})
    with pytest.raises(tm.InvalidArgumentError, match=r"tensor 'fc\.weight'.*(infinite|finite)"):
        prune_checkpoint(plan_pruning(tmp_path / "m.safetensors", "2:4"), tmp_path / "new.safetensors")


INTEGERS = np.arange(64).reshape(8, 8)
PACKED = "packed integers: prune the weight before it is quantised"
SKIPPED = [
    ({"q.qweight": INTEGERS.astype(np.int32), "q.scales": np.ones((8, 8), np.float16)}, f"I32, {PACKED}"),  # GPTQ, AWQ
    ({"q.weight_packed": INTEGERS.astype(np.int32)}, f"I32, {PACKED}"),  # compressed-tensors
    (
        {"q.weight": INTEGERS.astype(np.uint8), "q.scales": np.ones((8, 1)), "q.biases": np.ones((8, 1))},
        f"uint8, {PACKED}",
    ),
    ({"q.weight": INTEGERS.astype(np.uint8), "q.weight.absmax": np.ones(8)}, f"uint8, {PACKED}"),  # bitsandbytes, 4 bit
    ({"experts.gate_up_proj_blocks": INTEGERS.astype(np.uint8)}, f"uint8, {PACKED}"),  # gpt-oss
    (
        {
            "q.weight": INTEGERS.astype(np.int8),
            "q.weight_scale": np.ones((8, 1)),
            "q.weight_zero_point": np.ones((8, 1), np.int8),
        },
        "quantised with a zero point: a stored zero is no zero of the weight",
    ),
    (
        {"q.weight": INTEGERS.astype(FP8), "q.weight_scale": np.full((8, 8), 127, np.uint8)},  # E8M0 of MXFP8
        "its scales, 'q.weight_scale', are uint8, not floating",
    ),
    ({"q.weight": INTEGERS.astype(np.int8)}, "int8 is not floating"),
    (
        {"q.parametrizations.weight.original1": np.eye(8), "q.parametrizations.weight.original0": np.ones((2, 8))},
        "part of a parametrisation, which is not known to be a weight norm",
    ),
]


@pytest.mark.parametrize(("tensors", "reason"), SKIPPED)
def test_what_zeros_would_not_prune_is_skipped(tmp_path, tensors, reason):
    write_safetensors(tmp_path / "m.safetensors", tensors | {"fc.weight": np.tri(8)})
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4")
    assert list(plan.axes) == ["fc.weight"]
    assert plan.selections[0].reason == reason
