"""Queries and keys of one new token per row: normalised, rotated, and put where they are read.

In decoding the products of a layer are small, and what lies between them is many operations on
little data. Between the projection to queries, keys and values and their attention it is

    x' = x / sqrt(mean(x^2) + eps) * w          per head, in Qwen3-VL alone (RMSNorm, 1910.07467)
    y_i = x'_i cos_i + x'_{(i + E/2) mod E} sin_i         rotary positions (arXiv:2104.09864)

for queries and keys, and a place in the cache for keys and values. The kernel does it all at once,
where plain torch starts five to nine kernels: one program per (row, BLOCK_HEADS heads) reads each
number of its heads twice, as x_i and as the partner of another, and writes it once, in fp32 until
then. `sin` carries the sign of the partner (`model/vision.py:rotary_table`).

The cache, and the letters B, N, G, L, H, K, E: `decode.py`. Next: `decode.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Impl, choose_impl, constexpr, jit, tl, triton

TILE = dict(BLOCK_HEADS=4, num_warps=2)  # 8 numbers a thread at a width of 128


# --- Reference, which is also the torch path -----------------------------------------------------
def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + E/2}) by its angle: x (T, heads, E); cos, sin (T, 1, E)."""
    partner = x.roll(x.shape[-1] // 2, dims=-1)  # (T, heads, E)
    return torch.addcmul(x * cos, partner, sin)  # (T, heads, E)


def rotate_and_store_ref(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: Tensor | None,
    eps: float,
    keys: Tensor,
    values: Tensor,
    newest: slice | Tensor,
) -> Tensor:
    """The specification of `rotate_and_store`, which has the shapes, in the dtype of `qkv`."""
    (B, heads, E), (N, K, _, _) = qkv.shape, keys.shape
    qk, v = qkv[:, : heads - K], qkv[:, heads - K :]  # (B, H + K, E), (B, K, E)
    if scale is not None:
        qk = F.rms_norm(qk, (E,), eps=eps) * scale
    q, k = apply_rotary(qk, cos, sin).split((heads - 2 * K, K), dim=1)  # (B, H, E), (B, K, E)
    keys[:, :, newest] = k.view(N, B // N, K, E).transpose(1, 2)
    values[:, :, newest] = v.view(N, B // N, K, E).transpose(1, 2)
    return q


# --- Triton kernel -------------------------------------------------------------------------------
@jit(do_not_specialize=("L",))
def _rotate_kernel(
    qkv_ptr,  # (B, H + 2K, E)
    cos_ptr,  # (B, E)
    sin_ptr,
    scale_ptr,  # (H + K, E) or None
    newest_ptr,  # (G,) int64, neighbours
    q_ptr,  # (B, H, E)
    keys_ptr,  # (N, K, L, E)
    values_ptr,
    eps,
    G,
    L,
    H: constexpr,
    K: constexpr,
    E: constexpr,
    BLOCK_E: constexpr,
    BLOCK_HEADS: constexpr,
):
    """BLOCK_HEADS heads of one row."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    e = tl.arange(0, BLOCK_E)
    partner = (e + E // 2) % E
    exists = (head < H + 2 * K)[:, None] & (e < E)[None, :]
    first = (row * (H + 2 * K) + head)[:, None] * E
    x = tl.load(qkv_ptr + first + e[None, :], mask=exists, other=0.0)
    other = tl.load(qkv_ptr + first + partner[None, :], mask=exists, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + row * E + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + row * E + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
    number = x.to(tl.float32)
    if scale_ptr is not None:
        is_normed = exists & (head < H + K)[:, None]
        at = head[:, None] * E
        inverse = tl.rsqrt(tl.sum(number * number, axis=1) / E + eps)[:, None]
        number *= inverse * tl.load(scale_ptr + at + e[None, :], mask=is_normed, other=0.0)
        other *= inverse * tl.load(scale_ptr + at + partner[None, :], mask=is_normed, other=0.0)
    turned = (number * cos + other * sin).to(x.dtype)

    is_query, is_key = (head < H)[:, None], ((head >= H) & (head < H + K))[:, None]
    tl.store(q_ptr + (row * H + head)[:, None] * E + e[None, :], turned, mask=exists & is_query)
    # Key head k of row g of group n: token `newest + g` of that head's L.
    place = tl.load(newest_ptr) + row % G
    k, v = (row // G) * K + head - H, (row // G) * K + head - H - K
    key_at = (k * L + place)[:, None] * E + e[None, :]
    value_at = (v * L + place)[:, None] * E + e[None, :]
    tl.store(keys_ptr + key_at, turned, mask=exists & is_key)
    tl.store(values_ptr + value_at, x, mask=exists & (head >= H + K)[:, None])


def _triton(qkv, cos, sin, scale, eps, keys, values, newest):
    (B, heads, E), (N, K, L, _) = qkv.shape, keys.shape
    H = heads - 2 * K
    q = qkv.new_empty((B, H, E))  # (B, H, E)
    grid = (B, triton.cdiv(heads, TILE["BLOCK_HEADS"]))
    _rotate_kernel[grid](
        qkv, cos, sin, scale, newest, q, keys, values, eps, B // N, L,
        H=H, K=K, E=E, BLOCK_E=triton.next_power_of_2(E), **TILE,
    )  # fmt: skip
    return q


# --- Public function -----------------------------------------------------------------------------
@torch.no_grad()
def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: Tensor | None,
    eps: float,
    keys: Tensor,
    values: Tensor,
    newest: slice | Tensor,
    impl: Impl = "auto",
) -> Tensor:
    """Rotate the queries and keys of one token per row; write keys and values into the cache.

    Args:
        qkv: (B, H + 2K, E), heads of queries, keys, values; fp32 or bf16 (fp64 in torch). B = N G.
        cos, sin: (B, 1, E), the same dtype. scale: (H + K, E) weights of the norms; None: no norm.
        eps: of the norms.
        keys, values: (N, K, L, E), the same dtype; written at `newest`.
        newest: G neighbouring places among the L, one for each row of a group: a slice, or
            (G,) int64 on the device, so that a captured CUDA graph reads its present value.
        impl: "auto", "torch" or "triton"; see `kernels.choose_impl`.

    Returns: the queries (B, H, E). Torch rounds after each operation, Triton once.

    Raises:
        ValueError: shapes or dtypes do not fit; for Triton, not contiguous, or `newest` is a slice.
    """
    impl = choose_impl(impl, qkv)
    (B, heads, E), (N, K, _, _) = qkv.shape, keys.shape
    if keys.shape != values.shape or keys.shape[3] != E or heads <= 2 * K or B % N:
        shapes = ", ".join(str(tuple(x.shape)) for x in (qkv, keys, values))
        raise ValueError(f"want (B, H + 2K, E) and twice (N, K, L, E) with N | B, got {shapes}")
    if cos.shape != (B, 1, E) or sin.shape != (B, 1, E) or E % 2:
        raise ValueError(f"cos and sin must be {(B, 1, E)} with E even, are {tuple(cos.shape)}")
    if scale is not None and scale.shape != (heads - K, E):
        raise ValueError(f"scale must be {(heads - K, E)}, is {tuple(scale.shape)}")
    tensors = [x for x in (qkv, cos, sin, scale, keys, values) if x is not None]
    if len({x.dtype for x in tensors}) > 1:
        raise ValueError(f"all must share a dtype, got {[x.dtype for x in tensors]}")
    arguments = (qkv, cos, sin, scale, eps, keys, values, newest)
    if impl == "torch":
        return rotate_and_store_ref(*arguments)
    if isinstance(newest, slice) or not all(x.is_contiguous() for x in tensors):
        raise ValueError("the triton kernel takes contiguous tensors, and places as a tensor")
    if qkv.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"the triton kernel takes float32 or bfloat16, got {qkv.dtype}")
    return _triton(*arguments)
