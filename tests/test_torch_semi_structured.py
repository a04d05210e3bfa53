"""Packed 2:4 matrices are those of torch's own converter, and the hand-over to sparse tensor cores."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUTLASS  # noqa: E402
from torch.sparse._semi_structured_conversions import (  # noqa: E402
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402
from transmask.torch import semi_structured  # noqa: E402

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}


def matrix(name, row_groups, column_groups, seed, density=0.5):
    """A 2:4 matrix, with groups that hold fewer than two values at low densities."""
    rows, columns = row_groups * (16 if name == "int8" else 32), column_groups * (64 if name == "int8" else 32)
    rng = np.random.default_rng(seed)
    values = rng.integers(-127, 128, (rows, columns)).astype(np.float64)
    kept = tm.nm_mask(rng.random((rows, columns)), "2:4") & (rng.random((rows, columns)) < 2 * density)
    return torch.from_numpy(values * kept).to(DTYPES[name])


@pytest.mark.parametrize("name", DTYPES)
@given(
    row_groups=st.integers(1, 5),
    column_groups=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.0, 0.05, 0.3, 0.5]),
)
def test_packing_is_that_of_torch_and_comes_back(name, row_groups, column_groups, seed, density):
    dense = matrix(name, row_groups, column_groups, seed, density)
    packed = tmt.pack(dense)
    values, metadata = sparse_semi_structured_from_dense_cutlass(dense)
    assert np.array_equal(packed.metadata, metadata.numpy())
    assert packed.metadata.dtype == metadata.numpy().dtype
    assert np.array_equal(packed.values.astype(np.float64), values.double().numpy())
    back = tmt.unpack(packed)
    assert back.dtype == packed.values.dtype
    assert np.array_equal(back.astype(np.float64), dense.double().numpy())


@pytest.mark.parametrize("name", DTYPES)
def test_torch_reads_what_numpy_packed_and_the_other_way_round(name):
    dense = matrix(name, 2, 3, seed=5)
    packed = tmt.pack(dense)
    values = packed.values.view(np.int16) if name == "bfloat16" else packed.values
    tensor = torch.from_numpy(values).view(DTYPES[name])
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(tensor, torch.from_numpy(packed.metadata)), dense)
    values, metadata = sparse_semi_structured_from_dense_cutlass(dense)
    array = values.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if name == "bfloat16" else values.numpy()
    unpacked = tmt.unpack(tmt.Packed(array, metadata.numpy()))
    assert np.array_equal(unpacked.astype(np.float64), dense.double().numpy())


def network(dtype=torch.bfloat16):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64, bias=False)).to(dtype)
    tmt.sparsify(model, "2:4").remove()
    return model


def test_a_cpu_is_refused_with_the_reason_and_the_model_unchanged():
    model = network()
    with pytest.raises(
        tm.InvalidArgumentError,
        match=r"got none: 0.weight: on cpu, where torch has no sparse tensor cores; .* transmask.packing.pack packs",
    ):
        tmt.to_sparse_semi_structured(model)
    assert type(model[0].weight) is nn.Parameter
    assert model[0].weight.layout == torch.strided


def test_an_old_device_is_refused(monkeypatch):
    weight = SimpleNamespace(device=torch.device("cuda", 0))
    for capability, refusal in (((7, 5), "on a device of compute capability 7.5, older than 8.0"), ((8, 0), "")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert semi_structured._device_refusal(weight) == refusal


@pytest.fixture
def pretended_cuda(monkeypatch):
    """Torch's own compression, which is plain tensor code, with the product of a device replaced by a dense one."""
    products = []

    def multiply(self, other, *, bias=None, should_transpose_dense=False, **_):
        products.append(tuple(self.shape))
        dense = sparse_semi_structured_to_dense_cutlass(self.packed, self.meta)
        result = dense @ (other.t() if should_transpose_dense else other)
        result = result if bias is None else result + bias[:, None]
        return result.t() if should_transpose_dense else result

    monkeypatch.setattr(SparseSemiStructuredTensor, "_FORCE_CUTLASS", True)
    monkeypatch.setattr(SparseSemiStructuredTensor, "_PROTOTYPE_WARNING_SHOWN", False)
    monkeypatch.setattr(
        SparseSemiStructuredTensorCUTLASS, "_validate_device_dim_dtype_shape", classmethod(lambda cls, tensor: None)
    )
    monkeypatch.setattr(SparseSemiStructuredTensorCUTLASS, "_mm", multiply)
    monkeypatch.setattr(semi_structured, "_device_refusal", lambda weight: "")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor is in prototype stage")
        yield products


def test_forward_and_backward_products_are_both_sparse(pretended_cuda):
    model = network()
    dense = copy.deepcopy(model)
    report = tmt.to_sparse_semi_structured(model)
    assert [choice.name for choice in report.taken] == ["0.weight", "2.weight"]
    assert isinstance(model[0].weight, SparseSemiStructuredTensor)
    assert not model[0].weight.requires_grad
    results = []
    for net in (dense, model):
        inputs = torch.randn(8, 128, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
        outputs = net(inputs)
        outputs.float().square().sum().backward()
        results.append((outputs, inputs.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0.02, atol=0.02)
    assert pretended_cuda == [(64, 128), (64, 64), (64, 64), (128, 64)]  # W, W, then W.T, W.T


def test_without_the_transpose_a_plain_mask_will_do(pretended_cuda):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 64)).half()
    tmt.sparsify(model, "2:4", transposable=False).remove()
    with pytest.raises(tm.InvalidArgumentError, match=r"0\.weight: not 2:4: column"):
        tmt.to_sparse_semi_structured(model)
    tmt.to_sparse_semi_structured(model, transpose=False, layers="1")
    assert model[1].weight.packed_t is None
    assert type(model[0].weight) is nn.Parameter


def test_what_is_left_out_is_explained(pretended_cuda):
    model = nn.ModuleDict(
        {
            "dense": nn.Linear(64, 64).half(),
            "single": nn.Linear(64, 64),
            "conv": nn.Conv2d(8, 8, 3).half(),
            "masked": nn.Linear(64, 64).half(),
            "good": network(torch.float16),
        }
    )
    tmt.sparsify(model, "2:4", layers="masked")
    reasons = {choice.name: choice.reason for choice in tmt.to_sparse_semi_structured(model)}
    assert reasons["dense.weight"].startswith("not 2:4: row 0, columns 0 to 3 keeps 4")
    assert reasons["single.weight"] == "dtype torch.float32, neither float16 nor bfloat16"
    assert reasons["conv.weight"] == "a Conv2d, not a linear layer"
    assert reasons["masked.parametrizations.weight.original"] == "already parametrised; remove that first"
    assert reasons["good.0.weight"] == "2:4 on a matrix of 64 x 128"


def test_a_shape_that_torch_cannot_compress_is_named(pretended_cuda):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 40)).half()
    tmt.sparsify(model, "2:4").remove()
    with pytest.raises(tm.InvalidArgumentError, match=r"can compress, got 1.weight of shape \(40, 64\): Number of"):
        tmt.to_sparse_semi_structured(model)
    assert type(model[0].weight) is nn.Parameter


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device with sparse tensor cores")
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning")
def test_on_cuda():
    model = network().cuda()
    dense = copy.deepcopy(model)
    tmt.to_sparse_semi_structured(model)
    results = []
    for net in (dense, model):
        inputs = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).bfloat16().cuda().requires_grad_()
        outputs = net(inputs)
        outputs.float().square().sum().backward()
        results.append((outputs, inputs.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0.02, atol=0.02)
