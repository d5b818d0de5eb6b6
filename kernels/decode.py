"""Attention of one new token per row against [shared prefix | own suffix], no prefix copied.

In decoding, B = N * G rows advance together. The G rows of a group share the keys and values of
their prompt, row b adds its own, and each row has one new query per head:

    out_bh = softmax(scale * q_bh [prefix_n | suffix_b]^T) [prefix_n | suffix_b]      n = b // G

Two things make it cheap. The G * R queries of a group that use one key head (R = H / K,
grouped-query attention) form one matrix product against the prefix, which is then read once for all
of them. And softmax can be computed in parts: a part of the keys gives a maximum m, a sum
l = sum exp(s - m) and a weighted sum of values; parts merge exactly (online softmax,
arXiv:1805.02867; splitting the keys of decoding, "flash-decoding", Dao et al. 2023; a shared prefix
as a part of its own, Hydragen, arXiv:2402.05099).

The kernels: one program per (group, key head, part of the prefix, tile of queries) leaves the three
results of its part; one program per (row, key head) goes over the suffix and merges all parts.
Scores and sums are fp32 whatever the dtype of the cache, as in training.

Letters: N groups, G rows a group, B rows, P prefix tokens (padded), S suffix tokens so far (of at
most S_max), H query heads, K key heads, E head width. Next: `kernels/logprob.py`.
"""

import math

import torch
from torch import Tensor

from kernels import Impl, choose_impl, constexpr, jit, tl, triton

# Tile of one step of a program: BLOCK_KEYS keys, up to MAX_QUERIES queries. fp32 products are exact
# and run on the scalar units, with small tiles so that nothing spills; bf16 uses the tensor cores.
TILES = {
    torch.bfloat16: dict(BLOCK_KEYS=64, MAX_QUERIES=64, num_warps=4),
    torch.float32: dict(BLOCK_KEYS=32, MAX_QUERIES=16, num_warps=4),
}
MIN_QUERIES = 16  # the least number of rows that `tl.dot` takes
PROGRAMS = 264  # enough for two on each of an H100's 132 multiprocessors
HEAD_WIDTHS = (16, 32, 64, 128)


# --- Reference -----------------------------------------------------------------------------------
def shared_prefix_attention_ref(
    q: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    prefix_lengths: Tensor,
    suffix_k: Tensor,
    suffix_v: Tensor,
    suffix_length: Tensor,
) -> Tensor:
    """The specification of `shared_prefix_attention`: row by row, fp32 (fp64 for fp64)."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    (B, H, E), (N, K, _, _), S = q.shape, prefix_k.shape, int(suffix_length)
    rows = []
    for b in range(B):
        n = b // (B // N)
        P = int(prefix_lengths[n])
        k = torch.cat((prefix_k[n, :, :P], suffix_k[b, :, :S]), dim=1).to(dtype)  # (K, P + S, E)
        v = torch.cat((prefix_v[n, :, :P], suffix_v[b, :, :S]), dim=1).to(dtype)  # (K, P + S, E)
        queries = q[b].view(K, H // K, E).to(dtype)  # (K, R, E)
        weights = (queries @ k.transpose(1, 2) / math.sqrt(E)).softmax(-1)  # (K, R, P + S)
        rows.append((weights @ v).view(H, E))
    return torch.stack(rows).to(q.dtype)  # (B, H, E)


# --- Torch ---------------------------------------------------------------------------------------
def _torch(q, prefix_k, prefix_v, prefix_lengths, suffix_k, suffix_v, suffix_length):
    """All rows at once. The prefix is a factor of one product per group, never copied."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    (B, H, E), (N, K, P, _), S = q.shape, prefix_k.shape, int(suffix_length)
    G, R = B // N, H // K
    queries = q.view(N, G, K, R, E).to(dtype) * E**-0.5
    suffix_k, suffix_v = suffix_k[:, :, :S].to(dtype), suffix_v[:, :, :S].to(dtype)  # (B, K, S, E)
    is_padding = torch.arange(P, device=q.device) >= prefix_lengths[:, None]  # (N, P)
    grouped = queries.transpose(1, 2).reshape(N, K, G * R, E)
    to_prefix = grouped @ prefix_k.to(dtype).transpose(2, 3)  # (N, K, G*R, P)
    to_prefix = to_prefix.masked_fill(is_padding[:, None, None], -math.inf)
    to_prefix = to_prefix.view(N, K, G, R, P).transpose(1, 2).reshape(B, K, R, P)
    to_suffix = queries.reshape(B, K, R, E) @ suffix_k.transpose(2, 3)  # (B, K, R, S)
    weights = torch.cat((to_prefix, to_suffix), -1).softmax(-1)  # (B, K, R, P + S)
    on_prefix = weights[..., :P].view(N, G, K, R, P).transpose(1, 2).reshape(N, K, G * R, P)
    from_prefix = (on_prefix @ prefix_v.to(dtype)).view(N, K, G, R, E).transpose(1, 2)
    from_suffix = weights[..., P:] @ suffix_v  # (B, K, R, E)
    return (from_prefix.reshape(B, H, E) + from_suffix.reshape(B, H, E)).to(q.dtype)


# --- Triton kernels ------------------------------------------------------------------------------
@jit
def _attend(q, k_ptr, v_ptr, start, stop, scale, E: constexpr, BLOCK_KEYS: constexpr):
    """Online softmax of the queries (rows, E) over keys start .. stop of one contiguous (P, E).

    Returns: maximum, sum (rows,) and the weighted sum of values (rows, E), all fp32; -inf, 0 and 0
    where there is no key.
    """
    e = tl.arange(0, E)
    maximum = tl.full((q.shape[0],), -float("inf"), dtype=tl.float32)
    total = tl.zeros((q.shape[0],), dtype=tl.float32)
    values = tl.zeros((q.shape[0], E), dtype=tl.float32)
    for first in range(start, stop, BLOCK_KEYS):
        key = first + tl.arange(0, BLOCK_KEYS)
        address = key[:, None] * E + e[None, :]
        k = tl.load(k_ptr + address, mask=(key < stop)[:, None], other=0.0)
        v = tl.load(v_ptr + address, mask=(key < stop)[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where((key < stop)[None, :], scores, -float("inf"))
        higher = tl.maximum(maximum, tl.max(scores, axis=1))
        odds = tl.exp(scores - higher[:, None])
        shrink = tl.exp(maximum - higher)
        total = total * shrink + tl.sum(odds, axis=1)
        values = values * shrink[:, None]
        values = tl.dot(odds.to(v.dtype), v, values, input_precision="ieee")
        maximum = higher
    return maximum, total, values


@jit
def _prefix_kernel(
    q_ptr,  # (B, H, E)
    k_ptr,  # (N, K, P, E)
    v_ptr,
    lengths_ptr,  # (N,) int32
    sums_ptr,  # (2, parts, B, H) fp32: maximum and sum
    values_ptr,  # (parts, B, H, E) fp32
    scale,
    G,
    P,
    part_length,
    K: constexpr,
    R: constexpr,
    E: constexpr,
    BLOCK_Q: constexpr,
    BLOCK_KEYS: constexpr,
):
    """One part of a group's prefix for BLOCK_Q of the G * R queries that share a key head."""
    group = tl.program_id(0) // K
    head = tl.program_id(0) % K
    part = tl.program_id(1)
    member = tl.program_id(2) * BLOCK_Q + tl.arange(0, BLOCK_Q)  # of the G * R queries
    exists = member < G * R
    e = tl.arange(0, E)
    # Query `member` is head `head * R + member % R` of row `group * G + member // R`.
    query = (group * G + member // R) * (K * R) + head * R + member % R
    address = query.to(tl.int64)[:, None] * E + e[None, :]
    q = tl.load(q_ptr + address, mask=exists[:, None], other=0.0)
    keys = (group * K + head).to(tl.int64) * P * E
    start = part * part_length
    stop = tl.minimum(start + part_length, tl.load(lengths_ptr + group))
    maximum, total, values = _attend(
        q, k_ptr + keys, v_ptr + keys, start, stop, scale, E, BLOCK_KEYS
    )
    queries = tl.num_programs(0).to(tl.int64) * G * R  # B * H
    first = part * queries
    tl.store(sums_ptr + first + query, maximum, mask=exists)
    tl.store(sums_ptr + tl.num_programs(1) * queries + first + query, total, mask=exists)
    tl.store(values_ptr + first * E + address, values, mask=exists[:, None])


@jit
def _suffix_kernel(
    q_ptr,  # (B, H, E)
    k_ptr,  # (B, K, S_max, E)
    v_ptr,
    length_ptr,  # () int32: S
    sums_ptr,  # (2, parts, B, H) fp32
    values_ptr,  # (parts, B, H, E) fp32
    out_ptr,  # (B, H, E)
    scale,
    parts,
    S_max,
    K: constexpr,
    R: constexpr,
    E: constexpr,
    BLOCK_Q: constexpr,
    BLOCK_KEYS: constexpr,
):
    """The suffix of one row for the R queries of one key head, then all parts merged."""
    pair = tl.program_id(0)  # row * K + key head
    member = tl.arange(0, BLOCK_Q)
    exists = member < R
    query = pair * R + member  # of the B * H
    address = query.to(tl.int64)[:, None] * E + tl.arange(0, E)[None, :]
    q = tl.load(q_ptr + address, mask=exists[:, None], other=0.0)
    keys = pair.to(tl.int64) * S_max * E
    maximum, total, values = _attend(
        q, k_ptr + keys, v_ptr + keys, 0, tl.load(length_ptr), scale, E, BLOCK_KEYS
    )
    queries = tl.num_programs(0).to(tl.int64) * R  # B * H
    for part in range(0, parts):
        first = part * queries
        other = tl.load(sums_ptr + first + query, mask=exists, other=0.0)
        other_total = tl.load(sums_ptr + parts * queries + first + query, mask=exists, other=0.0)
        other_values = tl.load(values_ptr + first * E + address, mask=exists[:, None], other=0.0)
        higher = tl.maximum(maximum, other)
        shrink, factor = tl.exp(maximum - higher), tl.exp(other - higher)
        total = total * shrink + other_total * factor
        values = values * shrink[:, None] + other_values * factor[:, None]
        maximum = higher
    out = values / total[:, None]
    tl.store(out_ptr + address, out.to(out_ptr.dtype.element_ty), mask=exists[:, None])


def _triton(q, prefix_k, prefix_v, prefix_lengths, suffix_k, suffix_v, suffix_length):
    (B, H, E), (N, K, P, _) = q.shape, prefix_k.shape
    G, R, S_max = B // N, H // K, suffix_k.shape[2]
    tile = dict(TILES[q.dtype])
    block_q = min(tile.pop("MAX_QUERIES"), max(MIN_QUERIES, triton.next_power_of_2(G * R)))
    tiles = triton.cdiv(G * R, block_q)
    part_length, parts = prefix_parts(P, N * K * tiles, tile["BLOCK_KEYS"])
    sums = torch.empty((2, parts, B, H), dtype=torch.float32, device=q.device)  # (2, parts, B, H)
    values = sums.new_empty((parts, B, H, E))  # (parts, B, H, E)
    out = torch.empty_like(q)  # (B, H, E)
    shape = dict(K=K, R=R, E=E, **tile)
    _prefix_kernel[(N * K, parts, tiles)](
        q, prefix_k, prefix_v, prefix_lengths, sums, values, E**-0.5, G, P, part_length,
        BLOCK_Q=block_q, **shape,
    )  # fmt: skip
    _suffix_kernel[(B * K,)](
        q, suffix_k, suffix_v, suffix_length, sums, values, out, E**-0.5, parts, S_max,
        BLOCK_Q=max(MIN_QUERIES, triton.next_power_of_2(R)), **shape,
    )  # fmt: skip
    return out


def prefix_parts(P: int, programs: int, block: int) -> tuple[int, int]:
    """Keys per part of a prefix, a multiple of `block`, and how many parts, so that `programs` for
    each part fill the GPU."""
    blocks = -(-P // block)
    parts = max(1, min(blocks, PROGRAMS // max(1, programs)))
    blocks_per_part = -(-blocks // parts)
    return blocks_per_part * block, -(-blocks // blocks_per_part)


# --- Public function -----------------------------------------------------------------------------
@torch.no_grad()
def shared_prefix_attention(
    q: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    prefix_lengths: Tensor,
    suffix_k: Tensor,
    suffix_v: Tensor,
    suffix_length: Tensor,
    impl: Impl = "auto",
) -> Tensor:
    """Attention of one new token per row; without gradient. The module docstring has the formula.

    Args:
        q: (B, H, E) fp32 or bf16 (fp64 in torch only); B = N * G, the G rows of a group together.
        prefix_k, prefix_v: (N, K, P, E) same dtype, K divides H; keys beyond a group's length may
            hold anything finite.
        prefix_lengths: (N,) int32, 1 .. P.
        suffix_k, suffix_v: (B, K, S_max, E) same dtype; those beyond `suffix_length` are not read.
        suffix_length: () int32, 1 .. S_max, the new token included. On the device, so that a
            captured CUDA graph reads its present value.
        impl: "auto", "torch" or "triton"; see `kernels.choose_impl`.

    Returns: (B, H, E) in the dtype of `q`; softmax and sums are fp32 (fp64).

    Raises:
        ValueError: shapes or dtypes do not fit. Triton needs contiguous tensors and E in
            HEAD_WIDTHS, and in the interpreter float32.
    """
    impl = choose_impl(impl, q)
    (B, H, E), (N, K, P, _) = q.shape, prefix_k.shape
    expected = {
        "prefix_k": (prefix_k, (N, K, P, E)),
        "prefix_v": (prefix_v, (N, K, P, E)),
        "prefix_lengths": (prefix_lengths, (N,)),
        "suffix_k": (suffix_k, (B, K, suffix_k.shape[2], E)),
        "suffix_v": (suffix_v, tuple(suffix_k.shape)),
        "suffix_length": (suffix_length, ()),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if B % N or H % K:
        raise ValueError(f"{B} rows in {N} groups, {H} heads on {K} key heads: must divide")
    caches = (prefix_k, prefix_v, suffix_k, suffix_v)
    if any(tensor.dtype != q.dtype for tensor in caches):
        raise ValueError(f"q and the caches must share a dtype, got {q.dtype} and others")
    if prefix_lengths.dtype != torch.int32 or suffix_length.dtype != torch.int32:
        raise ValueError("prefix_lengths and suffix_length must be int32")
    if impl == "torch":
        return _torch(q, prefix_k, prefix_v, prefix_lengths, suffix_k, suffix_v, suffix_length)
    if E not in HEAD_WIDTHS:
        raise ValueError(f"the triton kernel takes head widths {HEAD_WIDTHS}, got {E}")
    if not all(tensor.is_contiguous() for tensor in (q, prefix_lengths, *caches)):
        raise ValueError("the triton kernel takes contiguous tensors")
    if q.dtype not in (torch.float32, torch.bfloat16) or not q.is_cuda and q.dtype != torch.float32:
        raise ValueError(f"the triton kernel takes float32, on a GPU also bfloat16, got {q.dtype}")
    return _triton(q, prefix_k, prefix_v, prefix_lengths, suffix_k, suffix_v, suffix_length)
