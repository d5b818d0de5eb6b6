"""Guarantees of `kernels/norm.py`: a sum and its RMSNorm, for torch and Triton alike.

Run: python -m pytest tests/kernels/test_norm.py (interpreted without a GPU, else compiled).
"""

import pytest
import torch

from kernels import add_norm, triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(triton is None, reason="triton is not installed")
each_impl = pytest.mark.parametrize("impl", ["torch", pytest.param("triton", marks=needs_triton)])
ROUNDING = 2**-8 if DEVICE == "cuda" else 2**-7  # the interpreter cuts bf16 off


def make_inputs(B=3, D=48, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, D), (B, D), (D,))
    return [torch.randn(s, generator=generator).mul(3).to(dtype).to(DEVICE) for s in shapes]


def truth(x, update, weight, eps):
    total = (x + update).double()  # rounded as its dtype is
    return total, total / (total.square().mean(1, keepdim=True) + eps).sqrt() * weight.double()


@each_impl
@pytest.mark.parametrize("B, D, eps", [(3, 48, 1e-6), (1, 1, 1e-6), (5, 1536, 1e-5), (2, 37, 0.1)])
def test_the_sum_and_its_norm(B, D, eps, impl):
    inputs = make_inputs(B, D)
    total, normed = add_norm(*inputs, eps, impl=impl)
    expected = truth(*inputs, eps)
    assert torch.equal(total.double(), expected[0])
    torch.testing.assert_close(normed.double(), expected[1], rtol=1e-5, atol=1e-6)


@needs_triton
def test_the_kernel_rounds_the_sum_as_torch_does_and_its_norm_once():
    inputs = make_inputs(4, 96, torch.bfloat16)
    total, normed = add_norm(*inputs, 1e-6, impl="triton")
    expected = add_norm(*inputs, 1e-6, impl="torch")[0]
    torch.testing.assert_close(total, expected, rtol=0 if DEVICE == "cuda" else ROUNDING, atol=0)
    square = total.double().square().mean(1, keepdim=True)  # of the sum as it is rounded
    expected = total.double() / (square + 1e-6).sqrt() * inputs[2].double()
    torch.testing.assert_close(normed.double(), expected, rtol=ROUNDING, atol=0)


@each_impl
def test_no_row_is_no_error_and_large_numbers_do_not_overflow(impl):
    assert [len(part) for part in add_norm(*make_inputs(0), 1e-6, impl=impl)] == [0, 0]
    x, update, weight = make_inputs(2, 32, torch.bfloat16)
    _, normed = add_norm(x * 1e15, update, weight, 1e-6, impl=impl)
    assert bool(normed.isfinite().all()) and bool((normed != 0).any())


def test_shapes_and_dtypes_that_do_not_fit_are_refused():
    x, update, weight = make_inputs()
    with pytest.raises(ValueError, match="must be"):
        add_norm(x, update[:2], weight, 1e-6)
    with pytest.raises(ValueError, match="must be"):
        add_norm(x, update, weight[:3], 1e-6)
    with pytest.raises(ValueError, match="share a dtype"):
        add_norm(x, update.double(), weight, 1e-6)


@needs_triton
def test_the_kernel_refuses_strided_rows_and_float64():
    x, update, weight = make_inputs()
    with pytest.raises(ValueError, match="contiguous"):
        add_norm(x.T.contiguous().T, update, weight, 1e-6, impl="triton")
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        add_norm(x.double(), update.double(), weight.double(), 1e-6, impl="triton")
