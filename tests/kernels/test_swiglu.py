"""Guarantees of `kernels/swiglu.py`, for the torch and the Triton implementation alike.

The torch path equals plain autograd bit for bit; Triton equals it to fp32 rounding, and keeps gate
and up alone. Gradients of weights that are frozen cost nothing.

Run: python -m pytest tests/kernels/test_swiglu.py (interpreted without a GPU, else compiled).
"""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from kernels import gated_linear, gated_product, gated_product_ref, triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(triton is None, reason="triton is not installed")
each_impl = pytest.mark.parametrize("impl", ["torch", pytest.param("triton", marks=needs_triton)])


def make_inputs(T=37, width=72, rows=(24, 5), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale=1.0):
        x = torch.randn(shape, generator=generator) * scale
        return x.to(DEVICE, dtype).requires_grad_()

    gate, up = normal(T, width, scale=4.0), normal(T, width)
    return gate, up, [normal(count, width) for count in rows]


def close(actual, expected, impl):
    """Equal to the bit for torch, else to fp32 rounding."""
    if impl == "torch" and DEVICE == "cpu":
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.case("O15")
@each_impl
@pytest.mark.parametrize("shape", [(37, 72), (1, 1), (3, 1024), (2, 5, 411), (0, 8)])
def test_product_and_gradients_equal_plain_autograd(shape, impl):
    gate, up, _ = make_inputs(1, torch.Size(shape).numel())
    gate, up = (x.detach().view(shape) for x in (gate, up))
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    results = []
    for function in (lambda *xs: gated_product(*xs, impl=impl), gated_product_ref):
        leaves = [x.clone().requires_grad_() for x in (gate, up)]
        product = function(*leaves)
        product.backward(grad)
        results.append((product.detach(), *(leaf.grad for leaf in leaves)))
    for actual, expected in zip(*results, strict=True):
        close(actual, expected, impl)
    with torch.no_grad():
        close(gated_product(gate, up, impl=impl), results[1][0], impl)


@pytest.mark.case("O15")
@each_impl
@pytest.mark.parametrize("rows", [(24,), (24, 5)], ids=["down", "down and A"])
def test_products_with_weights_equal_plain_autograd(rows, impl):
    results = []
    for plain in (False, True):
        gate, up, weights = make_inputs(rows=rows)
        if plain:
            product = gated_product_ref(gate, up)
            outs = [F.linear(product, weight) for weight in weights]
        else:
            outs = gated_linear(gate, up, *weights, impl=impl)
        loss = sum(out.square().sum() for out in outs)
        loss.backward()
        results.append([*(out.detach() for out in outs), *(x.grad for x in (gate, up, *weights))])
    for actual, expected in zip(*results, strict=True):
        if impl == "torch" and DEVICE == "cpu":
            assert torch.equal(actual, expected)
        else:
            error = (actual - expected).abs().max() / expected.abs().max()
            assert error < 1e-6


def test_float64_gradients_agree_with_finite_differences():
    gate, up, weights = make_inputs(3, 4, (2, 2), torch.float64)
    assert torch.autograd.gradcheck(
        lambda *xs: gated_linear(*xs, impl="torch"), (gate, up, *weights)
    )


@pytest.mark.case("O15")
@each_impl
def test_bf16_differs_from_the_truth_by_rounding_only(impl):
    roundings = 3  # torch: after each of its operations
    if impl == "triton":
        roundings = 2 if DEVICE == "cpu" else 1  # the interpreter cuts digits off
    gate, up, _ = make_inputs(dtype=torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in (gate, up)]
    gated_product(gate, up, impl=impl).sum().backward()
    gated_product_ref(*exact).sum().backward()
    with torch.no_grad():
        pairs = [(gated_product(gate, up, impl=impl), gated_product_ref(*exact))]
    pairs += [(x.grad, y.grad) for x, y in zip((gate, up), exact, strict=True)]
    for actual, truth in pairs:
        assert actual.dtype == torch.bfloat16
        unit = 2.0**-8 * truth.abs().clamp(min=1e-30)
        assert ((actual.double() - truth).abs() <= roundings * unit + 1e-6).all()


@each_impl
def test_extreme_gates_give_finite_gradients(impl):
    gate = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4], device=DEVICE)
    gate.requires_grad_()
    up = torch.ones(7, device=DEVICE, requires_grad=True)
    gated_product(gate, up, impl=impl).sum().backward()
    expected = torch.tensor([0.0, 0.0, -3.9e-8, 0.5, 1.0, 1.0, 1.0])
    torch.testing.assert_close(gate.grad.cpu(), expected, rtol=1e-5, atol=1e-9)
    expected = torch.tensor([0.0, 0.0, -20 / (1 + 4.85165195e8), 0.0, 20.0, 100.0, 1e4])
    torch.testing.assert_close(up.grad.cpu(), expected, rtol=1e-5, atol=1e-9)


@each_impl
def test_backward_keeps_gate_up_and_weights_only(impl):
    gate, up, weights = make_inputs()
    kept = []
    with saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        gated_product(gate, up, impl=impl)
        gated_linear(gate, up, *weights, impl=impl)
    wanted = [gate, up, gate, up, *weights]
    assert [x.data_ptr() for x in kept] == [x.data_ptr() for x in wanted]


@each_impl
def test_strides_and_frozen_weights(impl):
    gate, up, (weight, A) = make_inputs()
    weight.requires_grad_(False)
    outs = gated_linear(gate.T.contiguous().T, up, weight, A, impl=impl)
    sum(out.sum() for out in outs).backward()
    assert weight.grad is None
    product = gated_product_ref(gate, up).detach()  # (T, I)
    torch.testing.assert_close(A.grad, product.sum(0).expand(5, -1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "up, message",
    [
        (torch.zeros(2, 4), "must share shape"),
        (torch.zeros(2, 3, dtype=torch.float64), "must share shape, dtype"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(up, message):
    gate = torch.zeros(2, 3)
    for function in (gated_product, lambda gate, up: gated_linear(gate, up, torch.zeros(2, 3))):
        with pytest.raises(ValueError, match=message):
            function(gate, up)


@needs_triton
def test_the_kernel_refuses_float64():
    gate = torch.zeros(2, 3, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="takes float32 or bfloat16, got torch.float64"):
        gated_product(gate, gate, impl="triton")
