"""The plain functions take tensors; the tensor function answers with tensors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import naive  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402


def tensor(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8],
)
def test_plain_functions_take_tensors_of_every_dtype(dtype):
    weights = tensor(8, 12, seed=1).mul(20).to(dtype)
    result = tm.solve(weights, "2:4")
    assert isinstance(result.mask, np.ndarray)
    scores = np.abs(weights.to(torch.float64).numpy())
    assert naive.kept_value(scores, result.mask) == naive.matrix_value(scores, 2, 4, "exactly")
    assert np.array_equal(tm.transposable_mask(weights, "2:4"), result.mask)


def test_a_tensor_may_require_a_gradient_or_be_a_parameter():
    weights = tensor(8, 8).requires_grad_()
    expected = tm.transposable_mask(weights.detach().numpy(), "2:4")
    assert np.array_equal(tm.transposable_mask(weights, "2:4"), expected)
    assert np.array_equal(tm.transposable_mask(torch.nn.Parameter(weights.detach()), "2:4"), expected)
    assert np.array_equal(tm.nm_mask(weights, "2:4"), tm.nm_mask(weights.detach().numpy(), "2:4"))
    assert tm.certify(weights, torch.from_numpy(expected), "2:4").gap < 1e-12


def test_a_transposed_or_strided_tensor_is_seen_as_it_is():
    weights = tensor(12, 8, seed=2)
    assert np.array_equal(tm.transposable_mask(weights.T, "2:4"), tm.transposable_mask(weights.T.numpy().copy(), "2:4"))
    half = weights.to(torch.bfloat16)[:, ::2]
    expected = tm.transposable_mask(half.float().numpy(), "2:4")
    assert np.array_equal(tm.transposable_mask(half, "2:4"), expected)


def test_masks_may_be_tensors():
    mask = torch.tensor([[1, 1, 1, 0]] * 4)
    report = tm.check_mask(mask, "2:4")
    assert not report.ok
    assert report.row_violations == 4
    assert tm.check_mask(torch.eye(4, dtype=torch.bool), "1:4").ok


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        (
            torch.empty(4, 4, device="meta"),
            tm.InvalidArgumentError,
            "`weights` must have values, got a tensor on the meta",
        ),
        (
            torch.eye(4).to_sparse(),
            tm.InvalidTypeError,
            "must be a dense tensor, got layout torch.sparse_coo",
        ),
        (
            torch.eye(4, dtype=torch.complex64),
            tm.InvalidTypeError,
            "must hold real numbers, got dtype complex",
        ),
        (torch.full((4, 4), float("nan")), tm.InvalidArgumentError, "got 16 of 16 entries NaN or infinite"),
    ],
)
def test_tensors_that_cannot_be_used(weights, error, text):
    with pytest.raises(error, match=text):
        tm.transposable_mask(weights, "2:4")


def test_the_tensor_function_answers_with_a_tensor_on_the_same_device():
    weights = tensor(6, 9, 8, seed=3).requires_grad_()
    mask = tmt.transposable_mask(weights, "2:4", axes=(0, 2), constraint="at_most")
    assert mask.dtype == torch.bool
    assert mask.device == weights.device
    expected = tm.transposable_mask(weights.detach().numpy(), "2:4", axes=(0, 2), constraint="at_most")
    assert np.array_equal(mask.numpy(), expected)
    with pytest.raises(tm.InvalidTypeError, match=r"`weights` must be a torch.Tensor, got ndarray"):
        tmt.transposable_mask(np.ones((4, 4)), "2:4")


def test_plain_functions_import_no_torch():
    code = "import sys, transmask; transmask.transposable_mask([[1.0, 2.0]] * 2, '1:2'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_torch_the_message_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    import transmask.torch\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        'MissingDependencyError transmask.torch needs PyTorch. Run: pip install "transmask[torch]"'
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda():
    weights = tensor(16, 16, seed=4)
    mask = tmt.transposable_mask(weights.cuda(), "2:4")
    assert mask.is_cuda
    assert torch.equal(mask.cpu(), tmt.transposable_mask(weights, "2:4"))
    with pytest.raises(tm.InvalidArgumentError, match="on cuda:0"):
        tm.transposable_mask(weights.cuda(), "2:4")
