"""Weight norms: the mask is optimal for g v / |v|, and what is kept stays what it was, as torch loads it."""

import numpy as np
import pytest
from checkpoint_files import files_in, read_safetensors, same_bits, write_safetensors

import transmask as tm
from transmask.checkpoint import check_checkpoint, plan_pruning, prune_checkpoint
from transmask.solvers.primal_dual import PrimalDual


class InPieces(PrimalDual):
    chunk_entries = 60


def random(shape, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal(shape) * 10.0 ** rng.uniform(-2, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    ).astype(dtype)


def weights_of(g, v):
    """Multiply out in float64; g has ones where slices run."""
    over = tuple(axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1)
    v = v.astype(float)
    return g.astype(float) * v / np.sqrt((v**2).sum(over, keepdims=True))


CASES = [
    ("conv.weight_{}", "vg", (8, 16, 3), (8, 1, 1), np.float32),  # torch.nn.utils.weight_norm
    ("up.weight_{}", "vg", (8, 16, 3), (1, 16, 1), np.float32),  # dim=1, as for a transposed convolution
    ("fc.parametrizations.weight.original{}", "10", (10, 13), (10, 1), np.float64),
    ("fc.parametrizations.weight.original{}", "10", (8, 16), (), np.float32),  # dim=None
]


@pytest.mark.parametrize(("name", "ends", "shape", "norm_shape", "dtype"), CASES)
def test_what_is_kept_stays_what_it_was(tmp_path, name, ends, shape, norm_shape, dtype):
    v, g = random(shape, dtype), np.abs(random(norm_shape or (1,), dtype, seed=1)).reshape(norm_shape)
    direction, norm = (name.format(end) for end in ends)
    path, output = tmp_path / "m.safetensors", tmp_path / "new.safetensors"
    write_safetensors(path, {norm: g, direction: v}, {"format": "pt"})
    plan = plan_pruning(path, "2:4", solver=InPieces())
    assert plan.axes == {direction: (0, 1)}
    assert plan.selections[0].reason == f"norm of {direction!r}, shortened where that is pruned"
    [outcome] = prune_checkpoint(plan, output, masks=tmp_path / "masks.safetensors")
    before = weights_of(g, v)
    best = tm.solve(before, "2:4", axes=(0, 1))
    assert outcome.kept == pytest.approx(best.kept, rel=1e-6)
    after = read_safetensors(output)[1]
    loaded = weights_of(after[norm], after[direction])
    kept = after[direction] != 0
    assert np.allclose(loaded[kept], before[kept], rtol=1e-6)
    assert np.abs(loaded).sum() == pytest.approx(best.kept, rel=1e-6)
    assert not np.allclose(after[norm], g)
    [found] = check_checkpoint(output, "2:4")
    assert found.report.ok
    prune_checkpoint(plan, None, masks=tmp_path / "alone.safetensors", apply=False)
    assert (tmp_path / "alone.safetensors").read_bytes() == (tmp_path / "masks.safetensors").read_bytes()
    prune_checkpoint(plan, output, masks=tmp_path / "alone.safetensors", apply=False)
    assert same_bits(read_safetensors(output)[1][norm], g)


def test_a_slice_that_keeps_nothing_is_refused(tmp_path):
    v = np.array([[4.0, 1, 2, 3], [4, 3, 2, 1], [5, 1, 1, 1], [1, 0, 0, 0]])
    g = np.array([[1.0], [1], [1], [0.01]])
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"a.weight_g": g, "a.weight_v": v})
    before = files_in(tmp_path)
    with pytest.raises(tm.InvalidArgumentError) as caught:
        prune_checkpoint(plan_pruning(path, "2:4"), tmp_path / "new.safetensors")
    assert str(caught.value) == (
        "tensor 'a.weight_v': slice 3 of a weight norm must keep a weight that is not zero, got none. "
        "Remove the weight norm from the model first, or exclude the tensor."
    )
    write_safetensors(path, {"a.weight_g": g, "a.weight_v": v * [[1], [1], [0], [1]]})
    with pytest.raises(tm.InvalidArgumentError, match=r"tensor 'a\.weight_v': `weights` must be finite"):
        prune_checkpoint(plan_pruning(path, "2:4"), tmp_path / "new.safetensors")
    write_safetensors(path, {"a.weight_g": g, "a.weight_v": v})
    assert files_in(tmp_path) == before


def test_the_norm_of_a_skipped_twin_stays(tmp_path):
    v, g = random((8, 8)), np.ones((8, 1), np.float32)
    tensors = {"a.weight_g": g, "a.weight_v": v, "b.weight_g": g, "b.weight_v": v, "c.weight": random((8, 8), seed=1)}
    write_safetensors(tmp_path / "m.safetensors", tensors)
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4", exclude="^b")
    assert (list(plan.axes), plan.scalings) == (["c.weight"], {})
    prune_checkpoint(plan, tmp_path / "new.safetensors")
    after = read_safetensors(tmp_path / "new.safetensors")[1]
    assert all(same_bits(after[name], tensors[name]) for name in list(tensors)[:4])


@pytest.mark.torch
@pytest.mark.parametrize("old", [True, False])
def test_torch_loads_what_was_pruned(tmp_path, old):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    load_file = pytest.importorskip("safetensors.torch").load_file
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(16, 8, 3)
    if old:
        with pytest.warns(FutureWarning, match="weight_norm"):
            conv = torch.nn.utils.weight_norm(conv)
    else:
        conv = torch.nn.utils.parametrizations.weight_norm(conv)
    conv(torch.zeros(1, 16, 3))
    before = conv.weight.detach().numpy().copy()
    save_file({f"conv.{name}": tensor for name, tensor in conv.state_dict().items()}, tmp_path / "m.safetensors")
    prune_checkpoint(plan_pruning(tmp_path / "m.safetensors", "2:4"), tmp_path / "new.safetensors")
    conv.load_state_dict(
        {name.removeprefix("conv."): tensor for name, tensor in load_file(tmp_path / "new.safetensors").items()}
    )
    conv(torch.zeros(1, 16, 3))
    expected = np.where(tm.transposable_mask(before, "2:4", axes=(0, 1)), before, 0)
    assert np.allclose(conv.weight.detach().numpy(), expected, rtol=1e-5)
