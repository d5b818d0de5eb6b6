"""The step from one half of a decoder layer to the next: add to the residual stream, then RMSNorm.

    s = x + update              h = s / sqrt(mean(s^2) + eps) * w        (RMSNorm, arXiv:1910.07467)

Both s and h are needed, s for the next addition. In decoding this lies between two products and is
bound by the time that a kernel takes to start: one program per row does both, where plain torch
starts two kernels and reads s again. The mean is that of the rounded s, as in torch; all arithmetic
is fp32.

For inference only: the trainer uses torch, whose backward it would have to have too. Next:
`rotary.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Impl, choose_impl, constexpr, jit, tl, triton

MAX_WIDTH = 2**14
NUM_WARPS = 8  # 16 numbers a thread at a width of 4096


# --- Reference, which is also the torch path -----------------------------------------------------
def add_norm_ref(x: Tensor, update: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The specification of `add_norm`, which has the shapes, in the dtype of `x`."""
    total = x + update  # (B, D)
    return total, F.rms_norm(total, weight.shape, weight, eps)


# --- Triton kernel -------------------------------------------------------------------------------
@jit
def _add_norm_kernel(
    x_ptr,  # (B, D)
    update_ptr,  # (B, D)
    weight_ptr,  # (D,)
    total_ptr,  # (B, D)
    normed_ptr,  # (B, D)
    D,
    eps,
    BLOCK_D: constexpr,  # power of two, at least D
):
    """One row."""
    d = tl.arange(0, BLOCK_D)
    at, exists = tl.program_id(0).to(tl.int64) * D + d, d < D
    x = tl.load(x_ptr + at, mask=exists, other=0.0)
    update = tl.load(update_ptr + at, mask=exists, other=0.0).to(tl.float32)
    total = (x.to(tl.float32) + update).to(x.dtype)
    tl.store(total_ptr + at, total, mask=exists)
    total = total.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(total * total, axis=0) / D + eps)
    weight = tl.load(weight_ptr + d, mask=exists, other=0.0).to(tl.float32)
    tl.store(normed_ptr + at, (total * inverse * weight).to(x.dtype), mask=exists)


# --- Public function -----------------------------------------------------------------------------
@torch.no_grad()
def add_norm(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """x + update, and its RMSNorm. The module docstring has the formula.

    Args:
        x, update: (B, D), weight: (D,), contiguous, all fp32 or all bf16 (fp64 in torch).
        eps: added to the mean square. impl: "auto", "torch" or "triton"; see `kernels.choose_impl`.

    Returns: the sum (B, D) and its norm (B, D), without gradient.

    Raises:
        ValueError: shapes or dtypes differ, or D > 16384 for Triton.
    """
    impl = choose_impl(impl, x)
    if x.dim() != 2 or x.shape != update.shape or weight.shape != x.shape[1:]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (x, update, weight))
        raise ValueError(f"x and update must be (B, D), weight (D,), got {shapes}")
    if not x.dtype == update.dtype == weight.dtype:
        raise ValueError(f"must share a dtype, got {x.dtype}, {update.dtype}, {weight.dtype}")
    if impl == "torch" or len(x) == 0:  # a grid cannot be empty
        return add_norm_ref(x, update, weight, eps)
    is_contiguous = x.is_contiguous() and update.is_contiguous() and weight.is_contiguous()
    if x.dtype not in (torch.float32, torch.bfloat16) or x.shape[1] > MAX_WIDTH:
        raise ValueError(
            f"the triton kernel takes float32 or bfloat16 of width {MAX_WIDTH} at most"
        )
    if not is_contiguous:
        raise ValueError("the triton kernel takes contiguous tensors")
    total, normed = torch.empty_like(x), torch.empty_like(x)  # (B, D) each
    _add_norm_kernel[(len(x),)](
        x, update, weight, total, normed, x.shape[1], eps,
        BLOCK_D=triton.next_power_of_2(x.shape[1]), num_warps=NUM_WARPS,
    )  # fmt: skip
    return total, normed
