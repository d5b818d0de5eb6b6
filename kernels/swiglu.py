"""SwiGLU, and the projection behind it, with gate and up as all that backward keeps.

    product = silu(gate) * up        silu(x) = x sigmoid(x)            (arXiv:2002.05202)
    y_w     = product W_w^T          of every weight that reads the product

Backward, with s = sigmoid(gate) and dproduct = sum_w dy_w W_w:

    dup = dproduct * gate s          dgate = dproduct * up s (1 + gate (1 - s))
    dW_w = dy_w^T product

Plain autograd keeps four tensors of the MLP's width for that: gate, silu(gate), up, the product.
Here backward computes silu(gate) and the product once more from gate and up, which it reads anyway:
at Qwen2-VL-2B's 8960 columns this saves 35 of 70 KiB per token and layer in bf16.

Cost: both kernels are bound by memory. Forward reads two tensors and writes one, where plain torch
reads three and writes two; backward reads three and writes three at most. Next: `sample.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import Impl, choose_impl, constexpr, jit, tl, triton

TILE = dict(BLOCK=1024, num_warps=4)  # 8 numbers a thread: one access of 16 bytes in bf16


# --- Reference, which is also the torch path -----------------------------------------------------
def gated_product_ref(gate: Tensor, up: Tensor) -> Tensor:
    """The specification of `gated_product`, in the dtype of `gate` and `up` (.., I)."""
    return F.silu(gate) * up


def gated_product_backward_ref(
    grad: Tensor, gate: Tensor, up: Tensor, need_product: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of gate and up from that of the product, and the product once more: the operations
    of autograd in its order, so that not a bit differs from plain torch."""
    silu = F.silu(gate)
    product = silu * up if need_product else None
    return torch.ops.aten.silu_backward(grad * up, gate), grad * silu, product


# --- Triton kernels ------------------------------------------------------------------------------
@jit
def _forward_kernel(gate_ptr, up_ptr, product_ptr, size, BLOCK: constexpr):
    """BLOCK numbers of the product; all arithmetic in fp32, one rounding."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = at < size
    gate = tl.load(gate_ptr + at, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=exists, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(product_ptr + at, product.to(product_ptr.dtype.element_ty), mask=exists)


@jit
def _backward_kernel(
    grad_ptr,  # of the product
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    product_ptr,  # or None
    size,
    BLOCK: constexpr,
):
    """BLOCK numbers of both gradients and, where it is asked for, of the product."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = at < size
    dtype = gate_ptr.dtype.element_ty
    grad = tl.load(grad_ptr + at, mask=exists, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=exists, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(grad_gate_ptr + at, (grad * up * slope).to(dtype), mask=exists)
    tl.store(grad_up_ptr + at, (grad * silu).to(dtype), mask=exists)
    if product_ptr is not None:
        tl.store(product_ptr + at, (silu * up).to(dtype), mask=exists)


def _forward_triton(gate, up):
    gate, up = gate.contiguous(), up.contiguous()
    product = torch.empty_like(gate)  # (.., I)
    if size := gate.numel():  # a grid cannot be empty
        grid = (triton.cdiv(size, TILE["BLOCK"]),)
        _forward_kernel[grid](gate, up, product, size, **TILE)
    return product


def _backward_triton(grad, gate, up, need_product):
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(gate)  # (.., I) each
    product = torch.empty_like(gate) if need_product else None  # (.., I)
    if size := gate.numel():
        grid = (triton.cdiv(size, TILE["BLOCK"]),)
        _backward_kernel[grid](grad, gate, up, grad_gate, grad_up, product, size, **TILE)
    return grad_gate, grad_up, product


# --- Autograd ------------------------------------------------------------------------------------
FORWARD = {"torch": gated_product_ref, "triton": _forward_triton}
BACKWARD = {"torch": gated_product_backward_ref, "triton": _backward_triton}


class _GatedProduct(torch.autograd.Function):
    """Saves gate and up."""

    @staticmethod
    def forward(ctx, gate, up, impl):
        ctx.save_for_backward(gate, up)
        ctx.impl = impl
        return FORWARD[impl](gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *BACKWARD[ctx.impl](grad, *ctx.saved_tensors, False)[:2], None


class _GatedLinear(torch.autograd.Function):
    """Saves gate and up; the product of forward is gone when it returns."""

    @staticmethod
    def forward(ctx, gate, up, impl, *weights):
        ctx.save_for_backward(gate, up, *weights)
        ctx.impl = impl
        product = FORWARD[impl](gate, up)  # (T, I)
        return tuple(F.linear(product, weight) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        gate, up, *weights = ctx.saved_tensors
        needs_weight = ctx.needs_input_grad[3:]
        grad = grads[0] @ weights[0]  # (T, I), the others are added in place
        for dy, weight in zip(grads[1:], weights[1:], strict=True):
            grad.addmm_(dy, weight)
        *inner, product = BACKWARD[ctx.impl](grad, gate, up, any(needs_weight))
        outer = [
            dy.T @ product if needed else None
            for dy, needed in zip(grads, needs_weight, strict=True)
        ]  # (rows, I) each
        return *inner, None, *outer


# --- Public functions ----------------------------------------------------------------------------
def gated_product(gate: Tensor, up: Tensor, impl: Impl = "auto") -> Tensor:
    """silu(gate) * up, which keeps `gate` and `up` for backward and nothing else.

    Args:
        gate, up: (.., I), both fp32 or both bf16 (other floating-point types in torch only).
        impl: "auto", "torch" or "triton"; see `kernels.choose_impl`.

    Returns: (.., I) in their dtype; differentiable once. Triton computes in fp32 and rounds once,
        torch rounds after each of its two operations.

    Raises:
        ValueError: shapes, dtypes or devices differ, or Triton does not take the dtype.
    """
    impl = _checked(gate, up, impl)
    if not torch.is_grad_enabled():
        return FORWARD[impl](gate, up)
    return _GatedProduct.apply(gate, up, impl)


def gated_linear(
    gate: Tensor, up: Tensor, *weights: Tensor, impl: Impl = "auto"
) -> tuple[Tensor, ...]:
    """gated_product(gate, up) @ weight.T for each weight; the product is not kept for backward.

    Args:
        gate, up: (T, I), as in `gated_product`. weights: (rows, I) each, same dtype.
        impl: "auto", "torch" or "triton"; see `kernels.choose_impl`.

    Returns: (T, rows) of each weight, in their dtype; differentiable once. Backward computes the
        product once more, and that only if some weight needs a gradient.

    Raises:
        ValueError: as `gated_product`.
    """
    impl = _checked(gate, up, impl)
    return _GatedLinear.apply(gate, up, impl, *weights)


def _checked(gate: Tensor, up: Tensor, impl: Impl) -> str:
    impl = choose_impl(impl, gate)
    if gate.shape != up.shape or gate.dtype != up.dtype or gate.device != up.device:
        got = " and ".join(f"{tuple(x.shape)} {x.dtype} on {x.device}" for x in (gate, up))
        raise ValueError(f"gate and up must share shape, dtype and device, got {got}")
    if impl == "triton" and gate.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"the triton kernel takes float32 or bfloat16, got {gate.dtype}")
    return impl
