"""Log-probability of the chosen tokens straight from hidden states, logits never stored whole.

The head of a language model is one large product. With C scored tokens, width D, vocabulary V:

    z_cj   = hidden_c . weight_j / temperature        (forbidden columns are left out)
    logp_c = z_c,y(c) - log sum_j exp z_cj            y(c) is the chosen token
    H_c    = -sum_j p_cj log p_cj                     entropy in nats, p = softmax(z)

and, with g_c = dLoss/dlogp_c (the entropy is a metric and carries no gradient):

    dLoss/dhidden_c = (g_c / temperature) sum_j (1[j = y(c)] - p_cj) weight_j
    dLoss/dweight_j = sum_c (g_c / temperature) (1[j = y(c)] - p_cj) hidden_c

For 8192 tokens and Qwen2-VL's 151936 words the logits alone are 2.5 GB in bf16 and 5 GB in fp32,
and a plain chain of torch operations keeps several such arrays: about 24 bytes moved per logit and
12 held. Here the vocabulary is cut into tiles, as in online softmax (arXiv:1805.02867): a tile
reports three numbers per token: its maximum m and, over its columns other than the target,
R = sum exp(z - m) and sum exp(z - m) (z - m). Tiles are merged exactly afterwards, and the target
joins last: S = exp(z_y - m) + R and logp = z_y - m - log S. Keeping R apart keeps the digits of
1 - p_y = R/S when p_y is nearly 1, which S - exp(z_y - m) in fp32 would lose; policies that have
converged live there. With E = exp(z - m) at the merged m, the backward pass needs

    E'_cj = E_cj, except -R_c in the target column                (so E'/S = p - onehot)
    dhidden = r * (E' weight),   dweight = E'^T (r * hidden),   r_c = -g_c / (temperature S_c)

E' does not depend on g. Backward walks over vocabulary chunks, so each row of dweight is written
once and no fp32 copy of it exists: E' is recomputed chunk by chunk, and both products go to the
matrix library. Where the whole vocabulary fits into one chunk on the torch path (a tiny model on a
CPU), forward keeps E' instead.

Cost in units of C*D*V multiply-adds: 3 for plain torch, 4 here (3 when E' is kept). Traffic of
logit size: about 24 bytes per logit for plain torch; the kernels write E' once and read it twice, 6
bytes in bf16, and hold at most `CHUNK_LOGITS` of it at a time. Forward stores 12 bytes per token
and tile of columns.

Next: `tests/test_kernels_logprob.py`.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import Impl, choose_impl, constexpr, jit, tl, triton

# The one memory knob: logits of a chunk. 2**26 are 128 MiB in bf16 (Triton holds one such array)
# and 256 MiB in fp32 (torch holds up to three). At 8192 tokens a chunk has 8192 columns, large
# enough for the matrix library to run at full speed.
CHUNK_LOGITS = 2**26

# Logit of a forbidden token: exp(z - max) is exactly 0 as for -inf, yet 0 * z is 0 and not NaN.
FORBIDDEN_LOGIT = -1e30

# Tile of one program: BLOCK_C tokens x BLOCK_V columns, walking over D in steps of BLOCK_D.
# bf16 uses the tensor cores: the 128 x 128 fp32 accumulator is 64 registers a thread at 8 warps,
# which leaves room for exp. fp32 products are exact (no TF32) and run on the scalar units.
TILES = {
    torch.bfloat16: dict(BLOCK_C=128, BLOCK_V=128, BLOCK_D=64, num_warps=8, num_stages=3),
    torch.float32: dict(BLOCK_C=64, BLOCK_V=64, BLOCK_D=16, num_warps=8, num_stages=2),
}


# --- Reference -----------------------------------------------------------------------------------
def linear_logprob_ref(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    forbidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification of `linear_logprob`: fp32 (fp64 when given fp64), logits stored."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = hidden.to(dtype) @ weight.to(dtype).T / temperature  # (C, V)
    if forbidden is not None:
        logits = logits.masked_fill(forbidden, -math.inf)  # (C, V)
    all_logp = logits.log_softmax(dim=1)  # (C, V)
    entropy = torch.special.entr(all_logp.detach().exp()).sum(dim=1)  # (C,)
    return all_logp.gather(1, targets[:, None]).squeeze(1), entropy


# --- Triton kernels ------------------------------------------------------------------------------
@jit
def _logits_tile(
    hidden_ptr,
    weight_ptr,
    forbidden_ptr,
    row,
    col,
    C,
    V,
    D,
    stride_hc,
    stride_hd,
    stride_wv,
    stride_wd,
    inverse_temperature,
    FORBIDDEN_LOGIT: constexpr,
    BLOCK_C: constexpr,
    BLOCK_V: constexpr,
    BLOCK_D: constexpr,
):
    """(BLOCK_C, BLOCK_V) fp32 logits; columns that are forbidden or past V get FORBIDDEN_LOGIT."""
    # 64-bit offsets: V * D passes 2**31 from a 7B model's head on.
    hidden_row = hidden_ptr + row.to(tl.int64)[:, None] * stride_hc
    weight_row = weight_ptr + col.to(tl.int64)[None, :] * stride_wv
    logits = tl.zeros((BLOCK_C, BLOCK_V), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        h = tl.load(
            hidden_row + d[None, :] * stride_hd,
            mask=(row < C)[:, None] & (d < D)[None, :],
            other=0.0,
        )
        w = tl.load(
            weight_row + d[:, None] * stride_wd,
            mask=(col < V)[None, :] & (d < D)[:, None],
            other=0.0,
        )
        logits = tl.dot(h, w, logits, input_precision="ieee")
    is_allowed = col < V
    if forbidden_ptr is not None:
        is_allowed = is_allowed & (tl.load(forbidden_ptr + col, mask=col < V, other=1) == 0)
    return tl.where(is_allowed[None, :], logits * inverse_temperature, FORBIDDEN_LOGIT)


@jit
def _linear_logprob_fwd_kernel(
    hidden_ptr,
    weight_ptr,
    targets_ptr,
    forbidden_ptr,
    sums_ptr,  # (3, n_tiles, C) fp32: maximum; sum and moment without the target
    target_logit_ptr,  # (C,) fp32
    C,
    V,
    D,
    stride_hc,
    stride_hd,
    stride_wv,
    stride_wd,
    inverse_temperature,
    FORBIDDEN_LOGIT: constexpr,
    BLOCK_C: constexpr,
    BLOCK_V: constexpr,
    BLOCK_D: constexpr,
):
    """One program reduces one tile of logits to three numbers per token, without atomics."""
    # Token tiles vary fastest, so programs that run together share the large operand, weight.
    row = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    tile = tl.program_id(1)
    col = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    logits = _logits_tile(
        hidden_ptr, weight_ptr, forbidden_ptr, row, col, C, V, D,
        stride_hc, stride_hd, stride_wv, stride_wd, inverse_temperature,
        FORBIDDEN_LOGIT, BLOCK_C, BLOCK_V, BLOCK_D,
    )  # fmt: skip

    # Exactly one tile holds the target column of a row, so a plain store suffices.
    target = tl.load(targets_ptr + row, mask=row < C, other=-1)
    is_target = col[None, :] == target[:, None]
    target_logit = tl.sum(tl.where(is_target, logits, 0.0), axis=1)
    holds_target = (target >= tile * BLOCK_V) & (target < tile * BLOCK_V + BLOCK_V) & (target < V)
    tl.store(target_logit_ptr + row, target_logit, mask=(row < C) & holds_target)

    maximum = tl.max(logits, axis=1)
    below = logits - maximum[:, None]
    odds = tl.where(is_target, 0.0, tl.exp(below))
    # Tiles before rows in memory: neighbouring threads write neighbouring addresses.
    address = sums_ptr + tile.to(tl.int64) * C + row
    plane = tl.num_programs(1).to(tl.int64) * C
    tl.store(address, maximum, mask=row < C)
    tl.store(address + plane, tl.sum(odds, axis=1), mask=row < C)
    tl.store(address + 2 * plane, tl.sum(odds * below, axis=1), mask=row < C)


@jit
def _linear_logprob_bwd_kernel(
    hidden_ptr,
    weight_ptr,
    targets_ptr,
    forbidden_ptr,
    maximum_ptr,  # (C,) fp32
    others_ptr,  # (C,) fp32, R of the formula
    gradient_ptr,  # (C, V) contiguous, dtype of hidden
    C,
    V,
    D,
    stride_hc,
    stride_hd,
    stride_wv,
    stride_wd,
    inverse_temperature,
    FORBIDDEN_LOGIT: constexpr,
    BLOCK_C: constexpr,
    BLOCK_V: constexpr,
    BLOCK_D: constexpr,
):
    """One program writes one tile of E': exp(z - max), and -R in the target column."""
    row = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    col = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    logits = _logits_tile(
        hidden_ptr, weight_ptr, forbidden_ptr, row, col, C, V, D,
        stride_hc, stride_hd, stride_wv, stride_wd, inverse_temperature,
        FORBIDDEN_LOGIT, BLOCK_C, BLOCK_V, BLOCK_D,
    )  # fmt: skip
    maximum = tl.load(maximum_ptr + row, mask=row < C, other=0.0)
    target = tl.load(targets_ptr + row, mask=row < C, other=-1)
    others = tl.load(others_ptr + row, mask=row < C, other=0.0)
    odds = tl.exp(logits - maximum[:, None])
    gradient = tl.where(col[None, :] == target[:, None], -others[:, None], odds)
    address = gradient_ptr + row.to(tl.int64)[:, None] * V + col[None, :]
    mask = (row < C)[:, None] & (col < V)[None, :]
    tl.store(address, gradient.to(gradient_ptr.dtype.element_ty), mask=mask)


def _launch(kernel, chunk, outputs) -> None:
    """Run `kernel` on all tiles of a chunk; `outputs` are its pointers after `forbidden_ptr`."""
    hidden, weight, targets, forbidden, temperature = chunk
    (C, D), V = hidden.shape, weight.shape[0]
    tile = TILES[hidden.dtype]
    grid = (triton.cdiv(C, tile["BLOCK_C"]), triton.cdiv(V, tile["BLOCK_V"]))
    kernel[grid](
        hidden, weight, targets, forbidden, *outputs, C, V, D,
        *hidden.stride(), *weight.stride(), 1.0 / temperature,
        FORBIDDEN_LOGIT=FORBIDDEN_LOGIT, **tile,
    )  # fmt: skip


# --- The two steps over one vocabulary chunk, in Triton and in torch -----------------------------
# A chunk is (hidden (C, D), weight (V, D), targets (C,), forbidden (V,) or None, temperature);
# V counts its own columns and targets are relative to its first one, so they may lie outside.
def _tile_sums_triton(chunk, target_logit):
    """Reduce the chunk to (3, n_tiles, C) fp32; the second result, E, is never stored whole."""
    hidden, weight = chunk[:2]
    n_tiles = triton.cdiv(weight.shape[0], TILES[hidden.dtype]["BLOCK_V"])
    sums = target_logit.new_empty((3, n_tiles, hidden.shape[0]))  # (3, n_tiles, C)
    _launch(_linear_logprob_fwd_kernel, chunk, (sums, target_logit))
    return sums, None


def _gradient_triton(chunk, maximum, others):
    """E' of the chunk, (C, V) in the dtype of hidden."""
    gradient = chunk[0].new_empty((chunk[0].shape[0], chunk[1].shape[0]))  # (C, V)
    _launch(_linear_logprob_bwd_kernel, chunk, (maximum, others, gradient))
    return gradient


def _logits_torch(chunk):
    """(C, V) logits of the chunk in fp32, fp64 when given fp64."""
    hidden, weight, _, forbidden, temperature = chunk
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    hidden, weight = hidden.to(dtype), weight.to(dtype)  # (C, D), (V, D)
    unused = hidden.new_empty(())  # beta=0 ignores it; alpha divides inside the product, for free
    logits = torch.addmm(unused, hidden, weight.T, beta=0, alpha=1.0 / temperature)  # (C, V)
    if forbidden is not None:  # few columns as a rule: cheaper by index than by a mask over all
        logits.index_fill_(1, forbidden.nonzero().squeeze(1), FORBIDDEN_LOGIT)  # (C, V)
    return logits


def _target_column(targets, V):
    """The target's column clamped into the chunk, (C, 1), and whether it lies there, (C, 1)."""
    column = targets[:, None]  # (C, 1)
    return column.clamp(0, V - 1), (column >= 0) & (column < V)


def _tile_sums_torch(chunk, target_logit):
    """Reduce the chunk, one tile here, to (3, 1, C); also return E, target zeroed, (C, V)."""
    logits = _logits_torch(chunk)  # (C, V)
    column, is_inside = _target_column(chunk[2], logits.shape[1])  # (C, 1), (C, 1)
    found = torch.where(is_inside, logits.gather(1, column), target_logit[:, None])  # (C, 1)
    target_logit.copy_(found[:, 0])
    maximum = logits.amax(dim=1)  # (C,)
    below = logits.sub_(maximum[:, None])  # (C, V)
    odds = _put_target_(below.exp(), chunk[2], torch.zeros_like(maximum))  # (C, V)
    moment = below.mul_(odds).sum(dim=1)  # (C,)
    return torch.stack((maximum, odds.sum(dim=1), moment))[:, None], odds


def _put_target_(odds, targets, value):
    """Overwrite, in place, the target column of each row that has its target in this chunk."""
    column, is_inside = _target_column(targets, odds.shape[1])  # (C, 1), (C, 1)
    value = torch.where(is_inside, value[:, None], odds.gather(1, column))  # (C, 1)
    return odds.scatter_(1, column, value)  # (C, V)


def _gradient_torch(chunk, maximum, others):
    """E' of the chunk, (C, V) fp32 or fp64."""
    odds = _logits_torch(chunk).sub_(maximum[:, None]).exp_()  # (C, V)
    return _put_target_(odds, chunk[2], -others)  # (C, V)


def _merge(sums, target_logit):
    """Merge tiles (3, n_tiles, C) to maximum, R, S, logp and entropy of whole rows, (C,) each."""
    tile_maximum, tile_sum, tile_moment = sums  # (n_tiles, C) each
    maximum = tile_maximum.amax(dim=0)  # (C,)
    below = tile_maximum - maximum  # (n_tiles, C), finite as FORBIDDEN_LOGIT is
    factor = below.exp()  # (n_tiles, C)
    others = (tile_sum * factor).sum(dim=0)  # (C,)
    moment = (factor * (tile_moment + tile_sum * below)).sum(dim=0)  # (C,)

    target_below = target_logit - maximum  # (C,)
    target_odds = target_below.exp()  # (C,)
    total = target_odds + others  # (C,)
    log_total = torch.log1p((target_odds - 1) + others)  # (C,), log S that keeps a tiny R
    logp = target_below - log_total  # (C,)
    entropy = log_total - (moment + target_odds * target_below) / total  # (C,)
    return maximum, others, total, logp, entropy


def _product(a, b):
    """a @ b in the dtype of a, but bf16 is summed and returned in fp32."""
    if a.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b.to(a.dtype)


# --- Autograd ------------------------------------------------------------------------------------
class _LinearLogprob(torch.autograd.Function):
    """Saves the inputs, three numbers per token, and E' where one chunk of torch holds it."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, forbidden, impl):
        (C, _), V = hidden.shape, weight.shape[0]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        # A target outside [0, V) is in no chunk and keeps NaN: loud, and without a device check.
        target_logit = hidden.new_full((C,), math.nan, dtype=dtype)  # (C,)
        step = V if impl == "triton" else _chunk_columns(C)  # the kernel stores no logits
        tile_sums = _tile_sums_triton if impl == "triton" else _tile_sums_torch
        sums = []
        for start in range(0, V, step):
            chunk = _chunk(hidden, weight, targets, forbidden, temperature, start, step)
            part, odds = tile_sums(chunk, target_logit)
            sums.append(part)
        sums = torch.cat(sums, dim=1)  # (3, n_tiles, C)
        maximum, others, total, logp, entropy = _merge(sums, target_logit)  # (C,) each
        logp.masked_fill_(target_logit <= FORBIDDEN_LOGIT, -math.inf)

        needs_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        kept = None
        if needs_gradient and odds is not None and step >= V:
            kept = _put_target_(odds, targets, -others)  # (C, V)
        ctx.save_for_backward(hidden, weight, targets, forbidden, maximum, others, total, kept)
        ctx.temperature, ctx.impl = temperature, impl
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logp, _):
        hidden, weight, targets, forbidden, maximum, others, total, kept = ctx.saved_tensors
        (C, _), V = hidden.shape, weight.shape[0]
        gradient = _gradient_triton if ctx.impl == "triton" else _gradient_torch
        scale = (-grad_logp / (ctx.temperature * total))[:, None]  # (C, 1), r of the formula
        grad_hidden = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_hidden = torch.zeros_like(hidden, dtype=total.dtype)  # (C, D)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)  # (V, D)
            # The other factor, E', has the dtype of hidden in Triton and of the sums in torch.
            factor_dtype = hidden.dtype if ctx.impl == "triton" else total.dtype
            scaled_hidden = (hidden * scale).to(factor_dtype)  # (C, D)
        step = V if kept is not None else _chunk_columns(C)
        for start in range(0, V, step):
            chunk = _chunk(hidden, weight, targets, forbidden, ctx.temperature, start, step)
            tile = kept if kept is not None else gradient(chunk, maximum, others)  # (C, step)
            if grad_hidden is not None:
                grad_hidden += _product(tile, chunk[1])  # (C, D)
            if grad_weight is not None:
                grad_weight[start : start + step] = _product(tile.T, scaled_hidden)  # (step, D)
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * scale).to(hidden.dtype)  # (C, D)
        return grad_hidden, grad_weight, None, None, None, None


def _chunk_columns(C: int) -> int:
    """Columns of a vocabulary chunk: `CHUNK_LOGITS` logits, a multiple of every tile width."""
    return max(128, CHUNK_LOGITS // max(C, 1) // 128 * 128)


def _chunk(hidden, weight, targets, forbidden, temperature, start, step):
    """Columns start .. start + step of the head, with targets counted from `start`."""
    columns = slice(start, start + step)
    forbidden = None if forbidden is None else forbidden[columns]  # (step,)
    return hidden, weight[columns], targets - start, forbidden, temperature


# --- Public function -----------------------------------------------------------------------------
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    forbidden: Tensor | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under softmax(hidden @ weight.T / temperature), and entropy.

    Args:
        hidden: (C, D) fp32 or bf16, any strides; C = 0 is allowed. fp64 in torch only.
        weight: (V, D) same dtype and device: the head, which may be the tied embedding.
        targets: (C,) int64 in [0, V): the tokens that were chosen.
        temperature: > 0; the sampler's, so that both score the same distribution.
        forbidden: (V,) bool, True for tokens that can never be chosen: their logit is -inf.
        impl: "auto", "torch" or "triton"; see `kernels.choose_impl`.

    Returns:
        logp: (C,) fp32 (fp64 for fp64) in nats, <= 0; differentiable in hidden and weight, once.
        entropy: (C,) same dtype, in nats, >= 0, of the same distribution and WITHOUT gradient: it
            is a metric here, not a bonus.

    Raises:
        ValueError: shapes, dtypes, devices or temperature are wrong; on CPU also when a target is
            outside [0, V) or forbidden. On a GPU that check would stop the stream, so there such a
            target yields logp NaN (outside) or -inf (forbidden) and no exception.

    Notes:
        Sums are fp32 whatever the input dtype. A row whose upstream gradient is zero contributes
        exactly zero. Inputs are not modified.
    """
    impl = choose_impl(impl, hidden)
    _validate(hidden, weight, targets, temperature, forbidden, impl)
    if hidden.shape[0] == 0:
        impl = "torch"  # a grid cannot be empty
    targets = targets.contiguous()  # (C,): the kernels take strides of the two matrices only
    forbidden = None if forbidden is None else forbidden.contiguous()  # (V,)
    with torch.autocast(hidden.device.type, enabled=False):  # it would round the torch products
        return _LinearLogprob.apply(hidden, weight, targets, temperature, forbidden, impl)


def _validate(hidden, weight, targets, temperature, forbidden, impl) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        got = f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"hidden and weight must have shapes (C, D) and (V, D), got {got}")
    C, V = hidden.shape[0], weight.shape[0]
    if V == 0:
        raise ValueError("weight must have at least one row, got V=0")
    if targets.shape != (C,) or targets.dtype != torch.int64:
        got = f"{tuple(targets.shape)} {targets.dtype}"
        raise ValueError(f"targets must have shape ({C},) and dtype int64, got {got}")
    if forbidden is not None and (forbidden.shape != (V,) or forbidden.dtype != torch.bool):
        got = f"{tuple(forbidden.shape)} {forbidden.dtype}"
        raise ValueError(f"forbidden must have shape ({V},) and dtype bool, got {got}")
    tensors = (
        (hidden, weight, targets) if forbidden is None else (hidden, weight, targets, forbidden)
    )
    if len({tensor.device for tensor in tensors}) > 1:
        raise ValueError(f"all tensors must share a device, got {[str(t.device) for t in tensors]}")
    dtypes = TILES if impl == "triton" else (*TILES, torch.float64)
    if hidden.dtype != weight.dtype or hidden.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = f"{hidden.dtype} and {weight.dtype}"
        raise ValueError(f"hidden and weight must both be {expected} for {impl}, got {got}")
    if impl == "triton" and not hidden.is_cuda and hidden.dtype == torch.bfloat16:
        raise ValueError("the Triton interpreter cannot multiply bfloat16: use float32")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and > 0, got {temperature}")
    if C > 0 and not targets.is_cuda:
        lowest, highest = targets.aminmax()
        if lowest < 0 or highest >= V:
            raise ValueError(f"targets must be in [0, {V}), got {lowest} .. {highest}")
        if forbidden is not None and forbidden[targets].any():
            token = targets[forbidden[targets]][0].item()
            raise ValueError(f"target {token} is forbidden: it cannot have been chosen")
