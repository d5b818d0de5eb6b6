"""Attention of one new token per row against [shared prefix | own suffix], no prefix copied.

In decoding, B = N * G rows advance together. The G rows of a group share the keys and values of
their prompt, row g adds its suffix, and each row has one new query per head:

    out_bh = softmax(scale * q_bh [prefix_n | suffix_b]^T) [prefix_n | suffix_b]     b = n * G + g

A group is *one* sequence of keys: its prompt, then the tokens of all rows in step 0, in step 1, and
so on. So a step appends G keys in one piece, and the suffix of a row is every G-th key:

    key       0 .. P-1     P .. P+G-1           P+G .. P+2G-1        ..
              prompt       step 0, rows 0..G-1  step 1, rows 0..G-1

Two things make it cheap. The G * R queries of a group that use one key head (R = H / K) form one
matrix product against the prefix, which is read once for all of them. And softmax can be computed
in parts that merge exactly: a part of the keys gives a maximum m, a sum l = sum exp(s - m) and a
weighted sum of values (online softmax, arXiv:1805.02867; "flash-decoding", Dao et al. 2023; a
shared prefix as a part of its own, Hydragen, arXiv:2402.05099).

The kernels: one program per (group, key head, part of the prefix, tile of queries) stores the three
results of its part, one per (row, key head) those of the suffix, which is a part like the others;
one per (row, query head) merges all parts in fp32, PARTS_AT_ONCE side by side. The torch path masks
the other rows' suffixes: more products, but one operation instead of twenty.

Letters: N groups, G rows a group, B rows, P prompt tokens (padded), S suffix tokens so far (of at
most S_max), L = P + S_max * G keys, H query heads, K key heads, E head width. Next:
`kernels/logprob.py`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Impl, choose_impl, constexpr, jit, tl, triton

# Tile of one step of a program: BLOCK_KEYS keys, up to MAX_QUERIES queries. fp32 products are exact
# and run on the scalar units, with small tiles so that nothing spills; bf16 uses the tensor cores.
TILES = {
    torch.bfloat16: dict(BLOCK_KEYS=64, MAX_QUERIES=64, num_warps=4),
    torch.float32: dict(BLOCK_KEYS=32, MAX_QUERIES=16, num_warps=4),
}
MIN_QUERIES = 16  # the least number of rows, and of columns, that `tl.dot` takes
PROGRAMS = 264  # enough for two on each of an H100's 132 multiprocessors
PARTS_AT_ONCE = 16
MAX_WIDTH = 128  # of a head
# Arguments that change with the length of the prompts. Triton would compile a variant for each of
# them that is 1, or a multiple of 16: now and then a rollout would wait for a compiler.
OF_THE_PROMPTS = ("L", "part_length", "parts", "prefix_size")


# --- Reference -----------------------------------------------------------------------------------
def shared_prefix_attention_ref(
    q: Tensor, k: Tensor, v: Tensor, prefix_lengths: Tensor, prefix_size: int, suffix_length: Tensor
) -> Tensor:
    """The specification of `shared_prefix_attention`, which has the shapes: fp32, fp64 for fp64."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    (B, H, E), (N, K, _, _), S = q.shape, k.shape, int(suffix_length)
    G = B // N
    rows = []
    for b in range(B):
        n, g = divmod(b, G)
        keys = [*range(int(prefix_lengths[n])), *range(prefix_size + g, prefix_size + S * G, G)]
        queries = q[b].view(K, H // K, E).to(dtype)  # (K, R, E)
        scores = queries @ k[n, :, keys].to(dtype).transpose(1, 2) / math.sqrt(E)  # (K, R, P_n + S)
        rows.append((scores.softmax(-1) @ v[n, :, keys].to(dtype)).view(H, E))
    return torch.stack(rows).to(q.dtype)  # (B, H, E)


# --- Torch ---------------------------------------------------------------------------------------
def visible_keys(
    prefix_lengths: Tensor, prefix_size: int, G: int, R: int, L: int, dtype: torch.dtype
) -> Tensor:
    """Mask of the torch path, (N, 1, G * R, L): 0 at the prefix and the row's suffix, else -inf."""
    key = torch.arange(L, device=prefix_lengths.device)
    row = torch.arange(G, device=key.device).repeat_interleave(R)[:, None]  # (G * R, 1)
    in_prefix = key < prefix_lengths[:, None, None]  # (N, 1, L)
    in_suffix = (key >= prefix_size) & ((key - prefix_size) % G == row)  # (G * R, L)
    mask = torch.zeros(len(prefix_lengths), G * R, L, device=key.device, dtype=dtype)
    return mask.masked_fill_(~(in_prefix | in_suffix), -math.inf)[:, None]


def _torch(q, k, v, prefix_lengths, prefix_size, suffix_length, mask):
    (B, H, E), (N, K, L, _) = q.shape, k.shape
    G, R = B // N, H // K
    if mask is None:
        mask = visible_keys(prefix_lengths, prefix_size, G, R, L, q.dtype)
    used = prefix_size + G * int(suffix_length)
    grouped = q.reshape(N, G, K, R, E).transpose(1, 2).reshape(N, K, G * R, E)
    out = F.scaled_dot_product_attention(
        grouped, k[:, :, :used], v[:, :, :used], attn_mask=mask[..., :used]
    )  # (N, K, G * R, E)
    return out.view(N, K, G, R, E).transpose(1, 2).reshape(B, H, E)


# --- Triton kernels ------------------------------------------------------------------------------
@jit
def _attend(
    q,
    k_ptr,
    v_ptr,
    stride,
    start,
    stop,
    scale,
    E: constexpr,
    BLOCK_E: constexpr,
    BLOCK_KEYS: constexpr,
):
    """Online softmax of the queries (rows, BLOCK_E) over keys start .. stop, `stride` apart.

    Returns: maximum, sum (rows,) and the weighted sum of values (rows, BLOCK_E), all fp32; -inf, 0
    and 0 where there is no key.
    """
    e = tl.arange(0, BLOCK_E)
    maximum = tl.full((q.shape[0],), -float("inf"), dtype=tl.float32)
    total = tl.zeros((q.shape[0],), dtype=tl.float32)
    values = tl.zeros((q.shape[0], BLOCK_E), dtype=tl.float32)
    for first in range(start, stop, BLOCK_KEYS):
        key = first + tl.arange(0, BLOCK_KEYS)
        address = key[:, None] * stride + e[None, :]
        is_read = (key < stop)[:, None] & (e < E)[None, :]
        k = tl.load(k_ptr + address, mask=is_read, other=0.0)
        v = tl.load(v_ptr + address, mask=is_read, other=0.0)
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


@jit(do_not_specialize=OF_THE_PROMPTS)
def _prefix_kernel(
    q_ptr,  # (B, H, E), rows stride_q apart
    k_ptr,  # (N, K, L, E)
    v_ptr,
    lengths_ptr,  # (N,) int32
    sums_ptr,  # (2, parts + 1, B, H) fp32: maximum and sum
    values_ptr,  # (parts + 1, B, H, E) fp32
    scale,
    stride_q,
    G,
    L,
    part_length,
    K: constexpr,
    R: constexpr,
    E: constexpr,
    BLOCK_E: constexpr,
    BLOCK_Q: constexpr,
    BLOCK_KEYS: constexpr,
):
    """One part of a group's prefix for BLOCK_Q of the G * R queries that share a key head."""
    group = tl.program_id(0) // K
    head = tl.program_id(0) % K
    part = tl.program_id(1)
    member = tl.program_id(2) * BLOCK_Q + tl.arange(0, BLOCK_Q)  # of the G * R queries
    e = tl.arange(0, BLOCK_E)
    exists = (member < G * R)[:, None] & (e < E)[None, :]
    # Query `member` is head `head * R + member % R` of row `group * G + member // R`.
    row = (group * G + member // R).to(tl.int64)
    query_head = head * R + member % R
    address = (row * stride_q + query_head * E)[:, None] + e[None, :]
    q = tl.load(q_ptr + address, mask=exists, other=0.0)
    keys = (group * K + head).to(tl.int64) * L * E
    start = part * part_length
    stop = tl.minimum(start + part_length, tl.load(lengths_ptr + group))
    maximum, total, values = _attend(
        q, k_ptr + keys, v_ptr + keys, E, start, stop, scale, E, BLOCK_E, BLOCK_KEYS
    )
    queries = tl.num_programs(0).to(tl.int64) * G * R  # B * H
    query = part * queries + row * (K * R) + query_head
    plane = (tl.num_programs(1) + 1) * queries
    tl.store(sums_ptr + query, maximum, mask=member < G * R)
    tl.store(sums_ptr + plane + query, total, mask=member < G * R)
    tl.store(values_ptr + query[:, None] * E + e[None, :], values, mask=exists)


@jit(do_not_specialize=OF_THE_PROMPTS)
def _suffix_kernel(
    q_ptr,  # (B, H, E), rows stride_q apart
    k_ptr,  # (N, K, L, E)
    v_ptr,
    length_ptr,  # () int32: S
    sums_ptr,  # (2, parts + 1, B, H) fp32
    values_ptr,  # (parts + 1, B, H, E) fp32
    scale,
    stride_q,
    parts,
    prefix_size,
    G,
    L,
    K: constexpr,
    R: constexpr,
    E: constexpr,
    BLOCK_E: constexpr,
    BLOCK_Q: constexpr,
    BLOCK_KEYS: constexpr,
):
    """The suffix of one row for the R queries of one key head: the last part."""
    row = tl.program_id(0) // K
    head = tl.program_id(0) % K
    member = tl.arange(0, BLOCK_Q)
    e = tl.arange(0, BLOCK_E)
    exists = (member < R)[:, None] & (e < E)[None, :]
    address = row.to(tl.int64) * stride_q + ((head * R + member) * E)[:, None] + e[None, :]
    q = tl.load(q_ptr + address, mask=exists, other=0.0)
    # The suffix of row g of its group is at the keys prefix_size + g, prefix_size + g + G, ...
    first_key = ((row // G) * K + head).to(tl.int64) * L + prefix_size + row % G
    maximum, total, values = _attend(
        q, k_ptr + first_key * E, v_ptr + first_key * E, G * E, 0, tl.load(length_ptr), scale, E,
        BLOCK_E, BLOCK_KEYS,
    )  # fmt: skip
    queries = tl.num_programs(0).to(tl.int64) * R  # B * H
    query = parts * queries + tl.program_id(0) * R + member
    plane = (parts + 1) * queries
    tl.store(sums_ptr + query, maximum, mask=member < R)
    tl.store(sums_ptr + plane + query, total, mask=member < R)
    tl.store(values_ptr + query[:, None] * E + e[None, :], values, mask=exists)


@jit(do_not_specialize=OF_THE_PROMPTS)
def _merge_kernel(
    sums_ptr,  # (2, parts + 1, B, H) fp32
    values_ptr,  # (parts + 1, B, H, E) fp32
    out_ptr,  # (B, H, E)
    parts,
    E: constexpr,
    BLOCK_E: constexpr,
    BLOCK_PARTS: constexpr,
):
    """All parts of one query, the suffix included, merged."""
    query, queries = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    # The first part is never empty, so `higher` below is finite.
    maximum, total = -float("inf"), 0.0
    values = tl.zeros((BLOCK_E,), dtype=tl.float32)
    for first in range(0, parts + 1, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)
        at, exists = part * queries + query, part <= parts
        maxima = tl.load(sums_ptr + at, mask=exists, other=-float("inf"))
        sums = tl.load(sums_ptr + (parts + 1) * queries + at, mask=exists, other=0.0)
        address, is_read = at[:, None] * E + e[None, :], exists[:, None] & (e < E)[None, :]
        part_values = tl.load(values_ptr + address, mask=is_read, other=0.0)
        higher = tl.maximum(maximum, tl.max(maxima, axis=0))
        shrink, factor = tl.exp(maximum - higher), tl.exp(maxima - higher)
        total = total * shrink + tl.sum(sums * factor, axis=0)
        values = values * shrink + tl.sum(part_values * factor[:, None], axis=0)
        maximum = higher
    out = (values / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + query * E + e, out, mask=e < E)


def _triton(q, k, v, prefix_lengths, prefix_size, suffix_length):
    (B, H, E), (N, K, L, _) = q.shape, k.shape
    G, R = B // N, H // K
    tile = dict(TILES[q.dtype])
    block_q = min(tile.pop("MAX_QUERIES"), max(MIN_QUERIES, triton.next_power_of_2(G * R)))
    tiles = triton.cdiv(G * R, block_q)
    part_length, parts = prefix_parts(prefix_size, N * K * tiles, tile["BLOCK_KEYS"])
    sums = torch.empty((2, parts + 1, B, H), dtype=torch.float32, device=q.device)
    values = sums.new_empty((parts + 1, B, H, E))  # (parts + 1, B, H, E)
    out = q.new_empty((B, H, E))  # (B, H, E)
    width = dict(E=E, BLOCK_E=max(MIN_QUERIES, triton.next_power_of_2(E)))
    shape = dict(K=K, R=R, **width, **tile)
    _prefix_kernel[(N * K, parts, tiles)](
        q, k, v, prefix_lengths, sums, values, E**-0.5, q.stride(0), G, L, part_length,
        BLOCK_Q=block_q, **shape,
    )  # fmt: skip
    _suffix_kernel[(B * K,)](
        q, k, v, suffix_length, sums, values, E**-0.5, q.stride(0), parts, prefix_size, G, L,
        BLOCK_Q=max(MIN_QUERIES, triton.next_power_of_2(R)), **shape,
    )  # fmt: skip
    _merge_kernel[(B * H,)](sums, values, out, parts, BLOCK_PARTS=PARTS_AT_ONCE, **width)
    return out


def prefix_parts(P: int, programs: int, block: int) -> tuple[int, int]:
    """Keys per part of a prefix (a multiple of `block`), and how many parts of `programs` each fill
    the GPU."""
    blocks = -(-P // block)
    parts = max(1, min(blocks, PROGRAMS // max(1, programs)))
    blocks_per_part = -(-blocks // parts)
    return blocks_per_part * block, -(-blocks // blocks_per_part)


# --- Public function -----------------------------------------------------------------------------
def shared_prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_lengths: Tensor,
    prefix_size: int,
    suffix_length: Tensor,
    mask: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Attention of one new token per row, for inference. The module docstring has the formula.

    Args:
        q: (B, H, E) fp32 or bf16 (fp64 in torch only); B = N * G, the G rows of a group together.
            Rows may lie further apart than H * E.
        k, v: (N, K, L, E) same dtype, K divides H; a group's keys in the order of the module
            docstring. Beyond a group's prefix length they may be anything finite.
        prefix_lengths: (N,) int32, 1 .. P. prefix_size: P.
        suffix_length: () int32, 1 .. S_max, the new token included. On the device, so that a
            captured CUDA graph reads its present value.
        mask: `visible_keys` for these groups, made once for many steps; only the torch path reads
            it, and makes it where it is absent.
        impl: "auto", "torch" or "triton"; see `kernels.choose_impl`.

    Returns: (B, H, E) contiguous, in the dtype of `q`; softmax and sums are fp32 (fp64).

    Raises:
        ValueError: shapes or dtypes do not fit. Triton needs contiguous heads and caches, heads of
            at most MAX_WIDTH, and in the interpreter float32.
    """
    impl = choose_impl(impl, q)
    (B, H, E), (N, K, _, _) = q.shape, k.shape
    if k.shape != v.shape or k.shape[3] != E:
        raise ValueError(f"k and v must be (N, K, L, {E}), got {tuple(k.shape)}, {tuple(v.shape)}")
    if B % N or H % K:
        raise ValueError(f"{B} rows in {N} groups, {H} heads on {K} key heads: must divide")
    is_int32 = prefix_lengths.dtype == suffix_length.dtype == torch.int32
    if prefix_lengths.shape != (N,) or suffix_length.shape != () or not is_int32:
        raise ValueError(f"prefix_lengths must be ({N},) and suffix_length (), both int32")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must share a dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if impl == "torch":
        return _torch(q, k, v, prefix_lengths, prefix_size, suffix_length, mask)
    if E > MAX_WIDTH:
        raise ValueError(f"the triton kernel takes heads of at most {MAX_WIDTH}, got {E}")
    if q.stride()[1:] != (E, 1) or not (k.is_contiguous() and v.is_contiguous()):
        raise ValueError("the triton kernel takes contiguous heads and caches")
    if q.dtype not in (torch.float32, torch.bfloat16) or not q.is_cuda and q.dtype != torch.float32:
        raise ValueError(f"the triton kernel takes float32, on a GPU also bfloat16, got {q.dtype}")
    return _triton(q, k, v, prefix_lengths, prefix_size, suffix_length)
