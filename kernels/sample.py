"""One token of each row, drawn from softmax(logits / temperature), and its log-probability.

With z = logits / temperature (-inf where suppressed), one uniform number u per row and

    F_j = sum_{i <= j} exp(z_i - max z)        Z = F_{V-1}

the token is the first j with F_j > u Z (inversion of the cumulative distribution; Devroye,
"Non-Uniform Random Variate Generation", 1986, III.2), and its log-probability is
z_j - max z - log Z. Temperature 0 is greedy: the first j with the largest logit, its
log-probability that at temperature 1.

The torch path walks over whole rows five times, twice in fp64. The kernels read the logits once:
one program per (row, tile of the vocabulary) stores the maximum and the sum of exponentials of its
tile (online softmax, arXiv:1805.02867); one program per row adds the sums up in fp64, finds the
tile in which F passes u Z, and reads that tile again for the token.

*The same token.* Both paths draw from one distribution of fp32 numbers z and differ by rounding:
torch rounds every log-probability to fp32, the kernels every exponential in a tile's sum, so their
F / Z differ by less than BOUNDARY. Only where u lies that close to a boundary F_j / Z may one path
choose j and the other its neighbour. Greedy: torch compares log-probabilities, the kernels logits;
only logits whose log-probabilities are equal in fp32 can be told apart by one and not the other.

Letters: B rows, V vocabulary. Next: `norm.py`.
"""

import math

import torch
from torch import Tensor

from kernels import Impl, choose_impl, constexpr, jit, tl, triton

# Half a unit in the last place of a log-probability of -8 to -16, as most of 150,000 tokens have.
# Reached if all of them round to one side; where their errors average out it is below 1e-7.
BOUNDARY = 5e-7
TILE = dict(BLOCK=2048, num_warps=4)  # 16 logits a thread


# --- Reference, which is also the torch path -----------------------------------------------------
def choose_tokens(logp: Tensor, uniforms: Tensor) -> Tensor:
    """Invert the cumulative distribution: (B, V) log-probs, (B, 1) uniforms -> (B, 1) ids."""
    cumulative = logp.double().exp_().cumsum_(-1)  # (B, V) fp64: 150,000 terms must not drift
    target = uniforms.double() * cumulative[:, -1:]  # (B, 1)
    ids = torch.searchsorted(cumulative, target, right=True)  # (B, 1)
    return ids.clamp(max=logp.shape[-1] - 1)


def sample_tokens_ref(
    logits: Tensor, uniforms: Tensor, temperature: float, suppressed: Tensor
) -> tuple[Tensor, Tensor]:
    """The specification of `sample_tokens`, which has the shapes; overwrites `logits`."""
    logits.index_fill_(1, suppressed.nonzero().squeeze(1), -math.inf)  # few columns as a rule
    if temperature not in (0.0, 1.0):
        logits /= temperature
    logp = logits.log_softmax(-1)  # (B, V)
    if temperature > 0:
        ids = choose_tokens(logp, uniforms[:, None])  # (B, 1)
    else:
        ids = logp.argmax(-1, keepdim=True)  # (B, 1)
    return ids.squeeze(1), logp.gather(1, ids).squeeze(1)


# --- Triton kernels ------------------------------------------------------------------------------
@jit
def _scaled_logits(row_ptr, suppressed_ptr, start, V, temperature, BLOCK: constexpr):
    """BLOCK logits of a row from column `start`, over the temperature; -inf where suppressed."""
    col = start + tl.arange(0, BLOCK)
    exists = col < V
    is_allowed = tl.load(suppressed_ptr + col, mask=exists, other=1) == 0
    logits = tl.load(row_ptr + col, mask=exists, other=-float("inf"))
    return tl.where(is_allowed, tl.div_rn(logits, temperature), -float("inf"))


@jit
def _tile_kernel(
    logits_ptr,  # (B, V) fp32, rows stride_b apart
    suppressed_ptr,  # (V,) bool
    maxima_ptr,  # (B, tiles) fp32
    sums_ptr,  # (B, tiles) fp64, in units of exp(maximum of the tile)
    stride_b,
    V,
    temperature,
    BLOCK: constexpr,
):
    """One tile of one row: its maximum and its sum of exponentials."""
    row, tile = tl.program_id(0), tl.program_id(1)
    row_ptr = logits_ptr + row.to(tl.int64) * stride_b
    logits = _scaled_logits(row_ptr, suppressed_ptr, tile * BLOCK, V, temperature, BLOCK)
    maximum = tl.max(logits, axis=0)
    # Where all are suppressed: exp(-inf - 0) is 0, exp(-inf - -inf) would be NaN.
    shift = tl.where(maximum == -float("inf"), 0.0, maximum)
    # The exponentials are fp32 as their errors average out, the sum fp64 as its error would not.
    total = tl.sum(tl.exp(logits - shift).to(tl.float64), axis=0)
    at = row * tl.num_programs(1) + tile
    tl.store(maxima_ptr + at, maximum)
    tl.store(sums_ptr + at, total)


@jit
def _row_kernel(
    logits_ptr,  # (B, V) fp32, rows stride_b apart
    suppressed_ptr,  # (V,) bool
    uniforms_ptr,  # (B,) fp32, stride_u apart
    maxima_ptr,  # (B, tiles) fp32
    sums_ptr,  # (B, tiles) fp64
    ids_ptr,  # (B,) int64
    logps_ptr,  # (B,) fp32
    stride_b,
    stride_u,
    V,
    tiles,
    temperature,
    GREEDY: constexpr,
    BLOCK: constexpr,
    BLOCK_TILES: constexpr,  # power of two, at least `tiles`
):
    """One row: the tile in which the token is, then the token. A row with NaN gets logp NaN."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, BLOCK_TILES)
    exists = tile < tiles
    maxima = tl.load(maxima_ptr + row * tiles + tile, mask=exists, other=-float("inf"))
    sums = tl.load(sums_ptr + row * tiles + tile, mask=exists, other=0.0)
    maximum = tl.max(maxima, axis=0).to(tl.float64)
    sums = sums * tl.exp(maxima.to(tl.float64) - maximum)
    total = tl.sum(sums, axis=0)
    target = tl.load(uniforms_ptr + row * stride_u).to(tl.float64) * total
    # Not the number of sums up to the target: a scan adds in an order of its own, so that sums in a
    # row may fall by a rounding error. No token, and no tile, of probability 0 is ever a candidate.
    if GREEDY:
        is_candidate = maxima == maximum
    else:
        is_candidate = (tl.cumsum(sums, axis=0) > target) & (sums > 0)
    chosen = tl.min(tl.where(is_candidate, tile, tiles - 1), axis=0)

    start = chosen * BLOCK
    row_ptr = logits_ptr + row * stride_b
    logits = _scaled_logits(row_ptr, suppressed_ptr, start, V, temperature, BLOCK)
    col = start + tl.arange(0, BLOCK)
    if GREEDY:
        is_candidate = logits == maximum
    else:
        odds = tl.exp(logits.to(tl.float64) - maximum)
        # The same share of this tile's fp64 odds as of the sum that the other kernel rounded.
        before = tl.sum(tl.where(tile < chosen, sums, 0.0), axis=0)
        share = (target - before) / tl.sum(tl.where(tile == chosen, sums, 0.0), axis=0)
        is_candidate = (tl.cumsum(odds, axis=0) > share * tl.sum(odds, axis=0)) & (odds > 0)
    # Where a share rounds to 1 there is no candidate: the last token that can be drawn.
    last = tl.max(tl.where(logits > -float("inf"), col, 0), axis=0)
    chosen_col = tl.min(tl.where(is_candidate, col, last), axis=0)
    logit = tl.sum(tl.where(col == chosen_col, logits, 0.0), axis=0).to(tl.float64)
    tl.store(ids_ptr + row, chosen_col.to(tl.int64))
    tl.store(logps_ptr + row, (logit - maximum - tl.log(total)).to(tl.float32))


def _triton(logits, uniforms, temperature, suppressed):
    B, V = logits.shape
    tiles = triton.cdiv(V, TILE["BLOCK"])
    maxima = logits.new_empty((B, tiles))  # (B, tiles)
    sums = torch.empty_like(maxima, dtype=torch.float64)  # (B, tiles)
    ids = torch.empty(B, dtype=torch.int64, device=logits.device)  # (B,)
    logps = logits.new_empty(B)  # (B,)
    divisor = temperature if temperature > 0 else 1.0
    _tile_kernel[(B, tiles)](
        logits, suppressed, maxima, sums, logits.stride(0), V, divisor, **TILE
    )  # fmt: skip
    _row_kernel[(B,)](
        logits, suppressed, uniforms, maxima, sums, ids, logps, logits.stride(0),
        uniforms.stride(0), V, tiles, divisor, GREEDY=temperature == 0,
        BLOCK_TILES=triton.next_power_of_2(tiles), **TILE,
    )  # fmt: skip
    return ids, logps


# --- Public function -----------------------------------------------------------------------------
@torch.no_grad()
def sample_tokens(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float,
    suppressed: Tensor,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Draw one token of each row. The module docstring has the formula.

    Args:
        logits: (B, V) fp32, rows contiguous. The torch path overwrites them.
        uniforms: (B,) fp32 in [0, 1), any stride; not read at temperature 0.
        temperature: >= 0; 0 is greedy.
        suppressed: (V,) bool, contiguous: True for tokens that are never drawn.
        impl: "auto", "torch" or "triton"; see `kernels.choose_impl`.

    Returns: ids (B,) int64, and their log-probabilities (B,) fp32 in nats. A row whose logits are
        not finite numbers has log-probability NaN and some id in [0, V). Triton never asks the
        host, so that a CUDA graph can record it.

    Raises:
        ValueError: shapes or dtypes do not fit, or the temperature is negative.
    """
    impl = choose_impl(impl, logits)
    if logits.dim() != 2 or logits.dtype != torch.float32 or logits.shape[1] == 0:
        raise ValueError(f"logits must be (B, V) float32, got {_described(logits)}")
    B, V = logits.shape
    if uniforms.shape != (B,) or uniforms.dtype != torch.float32:
        raise ValueError(f"uniforms must be ({B},) float32, got {_described(uniforms)}")
    if suppressed.shape != (V,) or suppressed.dtype != torch.bool:
        raise ValueError(f"suppressed must be ({V},) bool, got {_described(suppressed)}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be finite and >= 0, got {temperature}")
    if impl == "torch" or B == 0:  # a grid cannot be empty
        return sample_tokens_ref(logits, uniforms, temperature, suppressed)
    if logits.stride(1) != 1 or not suppressed.is_contiguous():
        raise ValueError("the triton kernel takes contiguous rows of logits and a contiguous mask")
    return _triton(logits, uniforms, temperature, suppressed)


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
