"""Log-probability of given tokens straight from hidden states, logits never stored whole.

The head of a language model is one large product. With C scored tokens, width D, vocabulary V:

    z_cj   = hidden_c . weight_j / temperature        (suppressed columns are left out)
    logp_c = z_c,y(c) - log sum_j exp z_cj            y(c) is the target
    H_c    = -sum_j p_cj log p_cj                     entropy in nats, p = softmax(z)

and, with g_c = dLoss/dlogp_c (the entropy is a metric and carries no gradient):

    dLoss/dhidden_c = (g_c / temperature) sum_j (1[j = y(c)] - p_cj) weight_j
    dLoss/dweight_j = sum_c (g_c / temperature) (1[j = y(c)] - p_cj) hidden_c

For 8192 tokens and Qwen2-VL's 151936 words the fp32 logits alone are 5 GB, and plain torch holds 12
bytes per logit. What is computed instead are *odds*, relative to the target's own logit s_c:

    O_cj = exp(z_cj - s_c), with 0 in the target column      R_c = sum_j O_cj
    logp_c = -log(1 + R_c)         H_c = log(1 + R_c) - sum_j O_cj (z_cj - s_c) / (1 + R_c)

No maximum has to be known first, so tiles of columns are simply added up; and R apart from the
target's 1 keeps the digits of 1 - p_y = R / (1 + R) when p_y is nearly 1. Where some other logit is
more than MAX_ABOVE higher, large numbers would cancel: then everything is computed once more
relative to the row's maximum m (O, R and the target's "1" are then in units of exp(m - s_c)). With
O', which has -R_c in the target column, the gradients are two plain products:

    dhidden = r * (O' weight),   dweight = O'^T (r * hidden),   r_c = -g_c / (temperature (1 + R_c))

O' does not depend on g. So where the odds of all columns fit into `chunk_bytes`, forward stores
them (a bf16 odd is off by 2^-9 of itself, a bf16 logit would be off by up to 0.06 nats). Where they
do not fit, forward stores three numbers per token and tile of 128 columns, and backward computes
the odds of one chunk of the vocabulary after the other: every row of dweight is written once.

Cost in units of C*D*V multiply-adds: 3 with stored odds, as in plain torch, else 4.

Next: `tests/kernels/test_logprob.py`.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import Impl, choose_impl, constexpr, jit, tl, triton

# The memory knobs: what the odds of one chunk of columns may take, all of them or a part, is
# CHUNK_BYTES or a 32nd of a GPU's memory, whichever is more. (Of all its memory, not of what is
# free: that changes from step to step, and with the chunks the rounding of the gradients.) On 24 GB
# these are 0.75 GB: 2400 tokens and 151936 words in bf16, stored.
CHUNK_BYTES, CHUNK_SHARE = 2**29, 32

# Nats by which another logit may exceed the target's. A sampled token is never (once in 10^8) that
# unlikely, so on-policy training computes the logits once.
MAX_ABOVE = 20.0

# Logit of a suppressed token: its odds are exactly 0 as for -inf, yet 0 * z is 0 and not NaN.
SUPPRESSED_LOGIT = -1e30

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
    suppressed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification of `linear_logprob`, which has the shapes: fp32 (fp64 for fp64)."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = hidden.to(dtype) @ weight.to(dtype).T / temperature  # (C, V)
    if suppressed is not None:
        logits = logits.masked_fill(suppressed, -math.inf)  # (C, V)
    all_logp = logits.log_softmax(dim=1)  # (C, V)
    entropy = torch.special.entr(all_logp.detach().exp()).sum(dim=1)  # (C,)
    return all_logp.gather(1, targets[:, None]).squeeze(1), entropy


# --- Triton kernels ------------------------------------------------------------------------------
@jit
def _odds_kernel(
    hidden_ptr,
    weight_ptr,
    targets_ptr,
    suppressed_ptr,
    shift_ptr,  # (C,) fp32
    sums_ptr,  # (3, n_tiles, C) fp32: maximum logit, sum of odds, their first moment; or None
    odds_ptr,  # (C, V) contiguous, dtype of hidden; or None
    C,
    V,
    D,
    stride_hc,
    stride_hd,
    stride_wv,
    stride_wd,
    inverse_temperature,
    SUPPRESSED_LOGIT: constexpr,
    BLOCK_C: constexpr,
    BLOCK_V: constexpr,
    BLOCK_D: constexpr,
):
    """One program turns one tile of logits into odds: reduces them, stores them, or both."""
    # Token tiles vary fastest, so programs that run together share the large operand, weight.
    row = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    tile = tl.program_id(1)
    col = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    has_row, has_col = row < C, col < V
    # 64-bit offsets: V * D passes 2**31 from a 7B model's head on.
    hidden_row = hidden_ptr + row.to(tl.int64)[:, None] * stride_hc
    weight_row = weight_ptr + col.to(tl.int64)[None, :] * stride_wv
    logits = tl.zeros((BLOCK_C, BLOCK_V), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        h_mask = has_row[:, None] & (d < D)[None, :]
        w_mask = has_col[None, :] & (d < D)[:, None]
        h = tl.load(hidden_row + d[None, :] * stride_hd, mask=h_mask, other=0.0)
        w = tl.load(weight_row + d[:, None] * stride_wd, mask=w_mask, other=0.0)
        logits = tl.dot(h, w, logits, input_precision="ieee")
    is_allowed = has_col
    if suppressed_ptr is not None:
        is_allowed = is_allowed & (tl.load(suppressed_ptr + col, mask=has_col, other=1) == 0)
    logits = tl.where(is_allowed[None, :], logits * inverse_temperature, SUPPRESSED_LOGIT)

    target = tl.load(targets_ptr + row, mask=has_row, other=-1)
    below = logits - tl.load(shift_ptr + row, mask=has_row, other=0.0)[:, None]
    odds = tl.where(col[None, :] == target[:, None], 0.0, tl.exp(below))
    if sums_ptr is not None:
        # Tiles before rows in memory: neighbouring threads write neighbouring addresses.
        address = sums_ptr + tile.to(tl.int64) * C + row
        plane = tl.num_programs(1).to(tl.int64) * C
        tl.store(address, tl.max(logits, axis=1), mask=has_row)
        tl.store(address + plane, tl.sum(odds, axis=1), mask=has_row)
        tl.store(address + 2 * plane, tl.sum(odds * below, axis=1), mask=has_row)
    if odds_ptr is not None:
        address = odds_ptr + row.to(tl.int64)[:, None] * V + col[None, :]
        mask = has_row[:, None] & has_col[None, :]
        tl.store(address, odds.to(odds_ptr.dtype.element_ty), mask=mask)


# --- Odds of one vocabulary chunk, in Triton and in torch ----------------------------------------
# A chunk is (hidden (C, D), weight (V, D), targets (C,), suppressed (V,) or None, temperature);
# V counts its own columns and targets are relative to its first one, so they may be outside.
def _odds_triton(chunk, shift, reduce, store):
    """(3, n_tiles, C) fp32 sums where `reduce`, (C, V) odds in hidden's dtype where `store`."""
    hidden, weight, targets, suppressed, temperature = chunk
    (C, D), V = hidden.shape, weight.shape[0]
    tile = TILES[hidden.dtype]
    grid = (triton.cdiv(C, tile["BLOCK_C"]), triton.cdiv(V, tile["BLOCK_V"]))
    sums = shift.new_empty((3, grid[1], C)) if reduce else None  # (3, n_tiles, C)
    odds = hidden.new_empty((C, V)) if store else None  # (C, V)
    _odds_kernel[grid](
        hidden, weight, targets, suppressed, shift, sums, odds, C, V, D,
        *hidden.stride(), *weight.stride(), 1.0 / temperature,
        SUPPRESSED_LOGIT=SUPPRESSED_LOGIT, **tile,
    )  # fmt: skip
    return sums, odds


def _odds_torch(chunk, shift, reduce, _store):
    """(3, 1, C) sums where `reduce`, and always the odds (C, V), fp32 or fp64."""
    hidden, weight, targets, suppressed, temperature = chunk
    hidden, weight = hidden.to(shift.dtype), weight.to(shift.dtype)  # (C, D), (V, D)
    unused = hidden.new_empty(())  # beta=0 ignores it; alpha divides inside the product, for free
    logits = torch.addmm(unused, hidden, weight.T, beta=0, alpha=1.0 / temperature)  # (C, V)
    if suppressed is not None:  # few columns as a rule: cheaper by index than by a mask over all
        logits.index_fill_(1, suppressed.nonzero().squeeze(1), SUPPRESSED_LOGIT)  # (C, V)
    maximum = logits.amax(dim=1) if reduce else None  # (C,)
    below = logits.sub_(shift[:, None])  # (C, V)
    odds = _put_target_(below.exp() if reduce else below.exp_(), targets, torch.zeros_like(shift))
    if not reduce:
        return None, odds
    return torch.stack((maximum, odds.sum(1), below.mul_(odds).sum(1)))[:, None], odds


def _put_target_(odds, targets, value):
    """Overwrite, in place, the target column of each row that has its target in this chunk."""
    column = targets[:, None]  # (C, 1)
    is_inside = (column >= 0) & (column < odds.shape[1])  # (C, 1)
    column = column.clamp(0, odds.shape[1] - 1)  # (C, 1)
    value = torch.where(is_inside, value[:, None].to(odds.dtype), odds.gather(1, column))  # (C, 1)
    return odds.scatter_(1, column, value)  # (C, V)


def _target_logits(hidden, weight, targets, temperature, suppressed, dtype):
    """Row products (C,): SUPPRESSED_LOGIT for a suppressed target, NaN for one outside [0, V)."""
    inside = targets.clamp(0, weight.shape[0] - 1)  # (C,)
    parts = zip(hidden.split(2048), inside.split(2048), strict=True)  # fp32 copies stay small
    logit = torch.cat([(h.to(dtype) * weight[y].to(dtype)).sum(1) for h, y in parts])  # (C,)
    logit = logit / temperature
    if suppressed is not None:
        logit.masked_fill_(suppressed[inside], SUPPRESSED_LOGIT)
    return logit.masked_fill_(inside != targets, math.nan)


def _merge(sums, shift, target_logit):
    """R, 1 + R, logp and entropy of whole rows, (C,) each, from the sums of all tiles.

    All in units of exp(shift - target_logit): "1" is 1 where the shift is the target's logit.
    """
    others, moment = sums[1].sum(dim=0), sums[2].sum(dim=0)  # (C,) each
    target_below = target_logit - shift  # (C,)
    target_odds = target_below.exp()  # (C,)
    total = target_odds + others  # (C,)
    log_total = torch.log1p((target_odds - 1) + others)  # (C,), keeps a tiny R
    logp = target_below - log_total  # (C,)
    entropy = log_total - (moment + target_odds * target_below) / total  # (C,)
    return others, total, logp, entropy


# --- Autograd ------------------------------------------------------------------------------------
class _LinearLogprob(torch.autograd.Function):
    """Saves the inputs, three numbers per token, and the odds where they fit into one chunk."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, suppressed, impl, is_training):
        V, dtype = weight.shape[0], torch.promote_types(hidden.dtype, torch.float32)
        compute = _odds_triton if impl == "triton" else _odds_torch
        step = _chunk_columns(hidden, dtype, impl)
        store = step >= V and is_training and any(ctx.needs_input_grad[:2])
        if impl == "triton":
            step = V  # without storing, the kernel needs no chunks

        def all_sums(shift):
            sums = []
            for _, chunk in _chunks(hidden, weight, targets, suppressed, temperature, step):
                part, odds = compute(chunk, shift, True, store)
                sums.append(part)
            sums = sums[0] if len(sums) == 1 else torch.cat(sums, dim=1)  # (3, n_tiles, C)
            return sums, odds if store else None

        target_logit = _target_logits(hidden, weight, targets, temperature, suppressed, dtype)
        shift = target_logit  # (C,)
        sums, odds = all_sums(shift)
        maximum = sums[0].amax(dim=0)  # (C,)
        if bool((maximum - target_logit > MAX_ABOVE).any()):  # one synchronisation
            shift = torch.maximum(target_logit, maximum)  # (C,)
            sums, odds = all_sums(shift)
        others, total, logp, entropy = _merge(sums, shift, target_logit)  # (C,) each
        logp.masked_fill_(target_logit <= SUPPRESSED_LOGIT, -math.inf)
        if odds is not None:
            odds = _put_target_(odds, targets, -others)  # (C, V)
        ctx.save_for_backward(hidden, weight, targets, suppressed, shift, others, total, odds)
        ctx.temperature, ctx.impl = temperature, impl
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logp, _):
        hidden, weight, targets, suppressed, shift, others, total, stored = ctx.saved_tensors
        compute = _odds_triton if ctx.impl == "triton" else _odds_torch
        scale = (-grad_logp / (ctx.temperature * total))[:, None]  # (C, 1), r of the formula
        grad_hidden = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_hidden = torch.zeros_like(hidden, dtype=total.dtype)  # (C, D)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)  # (V, D)
            scaled_hidden = hidden * scale  # (C, D) fp32 (fp64), as the odds of the torch path
            if ctx.impl == "triton":
                scaled_hidden = scaled_hidden.to(hidden.dtype)  # (C, D)
        step = _chunk_columns(hidden, total.dtype, ctx.impl)  # all of them where odds are stored
        for columns, chunk in _chunks(hidden, weight, targets, suppressed, ctx.temperature, step):
            odds = stored  # (C, step)
            if odds is None:
                odds = _put_target_(compute(chunk, shift, False, True)[1], chunk[2], -others)
            if grad_hidden is not None:
                grad_hidden += _product(odds, chunk[1])  # (C, D)
            if grad_weight is not None:
                # Summed over all tokens inside the product and rounded once.
                if odds.dtype == grad_weight.dtype == scaled_hidden.dtype:
                    torch.mm(odds.T, scaled_hidden, out=grad_weight[columns])  # (step, D)
                else:
                    grad_weight[columns] = odds.T @ scaled_hidden  # (step, D)
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * scale).to(hidden.dtype)  # (C, D)
        return grad_hidden, grad_weight, None, None, None, None, None


def _product(a, b):
    """a @ b in the dtype of a, but bf16 is summed and returned in fp32."""
    if a.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b.to(a.dtype)


def chunk_bytes(memory: float | None) -> int:
    """What the odds of a chunk may take with a GPU of `memory` bytes; None: on a CPU."""
    return max(CHUNK_BYTES, int(memory or 0) // CHUNK_SHARE)


def _chunk_columns(hidden, dtype, impl):
    """Columns of a chunk within `chunk_bytes`, a multiple of every tile width. Triton holds the
    odds once, torch up to three arrays of their size in `dtype`."""
    size = hidden.element_size() if impl == "triton" else 3 * torch.finfo(dtype).bits // 8
    memory = None
    if hidden.is_cuda:
        memory = torch.cuda.get_device_properties(hidden.device).total_memory
    return max(128, chunk_bytes(memory) // (size * max(hidden.shape[0], 1)) // 128 * 128)


def _chunks(hidden, weight, targets, suppressed, temperature, step):
    """Yield the head in pieces of `step` columns: (slice of the vocabulary, chunk)."""
    for start in range(0, weight.shape[0], step):
        columns = slice(start, start + step)
        mask = None if suppressed is None else suppressed[columns]  # (step,)
        yield columns, (hidden, weight[columns], targets - start, mask, temperature)


# --- Public function -----------------------------------------------------------------------------
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    suppressed: Tensor | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under softmax(hidden @ weight.T / temperature), and entropy.

    Args:
        hidden: (C, D) fp32 or bf16, any strides; C = 0 is allowed. fp64 in torch only.
        weight: (V, D) same dtype and device: the head, which may be the tied embedding.
        targets: (C,) int64 in [0, V).
        temperature: > 0; the sampler's, so that both score the same distribution.
        suppressed: (V,) bool, True for tokens that cannot be sampled: their logit is -inf.
        impl: "auto", "torch" or "triton"; see `kernels.choose_impl`.

    Returns:
        logp: (C,) fp32 (fp64 for fp64) in nats, <= 0; differentiable in hidden and weight, once.
        entropy: (C,) same dtype, in nats, >= 0, of the same distribution and WITHOUT gradient: it
            is a metric here, not a bonus.

    Raises:
        ValueError: shapes, dtypes, devices or temperature are wrong; on CPU also when a target is
            outside [0, V) or suppressed. On a GPU such a target yields logp NaN (outside) or -inf
            (suppressed) and no exception.

    Sums are fp32. A row whose upstream gradient is zero contributes exactly zero.
    """
    impl = choose_impl(impl, hidden)
    _validate(hidden, weight, targets, temperature, suppressed, impl)
    if hidden.shape[0] == 0:
        impl = "torch"  # a grid cannot be empty
    targets = targets.contiguous()  # (C,): the kernels take strides of the two matrices only
    suppressed = None if suppressed is None else suppressed.contiguous()  # (V,)
    with torch.autocast(hidden.device.type, enabled=False):  # it would round the torch products
        return _LinearLogprob.apply(
            hidden, weight, targets, temperature, suppressed, impl, torch.is_grad_enabled()
        )


def _validate(hidden, weight, targets, temperature, suppressed, impl) -> None:
    C, V = hidden.shape[0], weight.shape[0]
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or V == 0:
        got = f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"hidden and weight must be (C, D) and (V, D) with V > 0, got {got}")
    if targets.shape != (C,) or targets.dtype != torch.int64:
        got = f"{tuple(targets.shape)} {targets.dtype}"
        raise ValueError(f"targets must have shape ({C},) and dtype int64, got {got}")
    if suppressed is not None and (suppressed.shape != (V,) or suppressed.dtype != torch.bool):
        got = f"{tuple(suppressed.shape)} {suppressed.dtype}"
        raise ValueError(f"suppressed must have shape ({V},) and dtype bool, got {got}")
    tensors = [hidden, weight, targets] + ([] if suppressed is None else [suppressed])
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
        if suppressed is not None and suppressed[targets].any():
            token = targets[suppressed[targets]][0].item()
            raise ValueError(f"target {token} is suppressed: it cannot have been sampled")
