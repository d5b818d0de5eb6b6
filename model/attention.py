"""The one place where tokens look at each other.

A *packed* sequence holds whole groups end to end: [prefix | c_1 | .. | c_G] [prefix | c_1 | ..] ...
The prefix is the image and the question, stored once; c_i are the completions sampled for it. The
rule of attention is the whole trick of shared-prefix training: **a completion token sees the prefix
and the earlier tokens of its own completion**, nothing else. The result and its gradients equal
those of G separate sequences [prefix | c_i], but the layers compute P + sum(C_i) tokens, not
G * P + sum(C_i). (Keys and values are gathered per completion, a small part of the whole.)

`packed_attention` is used for training and for the prefill (a pack with no completions);
`decode_attention` for one new token per row against [shared prefix | own suffix]. The first has two
forms, chosen by where the tensors are: padded rows and a mask, anywhere, and on a GPU in half
precision one call of a flash kernel for sequences of different lengths (FlashAttention-2,
arXiv:2307.08691), from the package flash-attn where it is installed, else from torch.

Letters: N groups, G completions a group, B = N * G rows, P prefix tokens, T packed tokens,
S suffix tokens so far, H query heads, K key/value heads, E head width. Next: model/vision.py.
"""

import inspect
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import shared_prefix_attention
from kernels.decode import visible_keys

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:  # optional, see requirements.txt
    flash_attn_varlen_func = None


@dataclass
class PackLayout:
    """Where the groups of a packed sequence begin and end.

    Args:
        prefix_lengths: P_n of each group, N entries.
        completion_lengths: C_i of each completion, one list per group; empty lists for a prefill.
    """

    prefix_lengths: list[int]
    completion_lengths: list[list[int]]
    device: torch.device | str = "cpu"
    _masks: dict = field(default_factory=dict, repr=False)

    @cached_property
    def rows(self) -> "Rows":
        """The pack as padded batches of rows, built once and used by every layer.

        The first batch holds the prefixes; the others hold completions of similar length, whose
        keys are their group's prefix and themselves. Rows are padded on the right, so a causal mask
        hides a row's own padding from every query that counts.
        """
        prefixes, owners, starts, lengths = [], [], [], []
        at = 0
        for n, (P, own) in enumerate(
            zip(self.prefix_lengths, self.completion_lengths, strict=True)
        ):
            prefixes.append(at)
            at += P
            for length in own:
                owners.append(n)
                starts.append(at)
                lengths.append(length)
                at += length
        prefix, is_prefix = _right_padded(prefixes, self.prefix_lengths)  # (N, P_max)
        batches = [(prefix, prefix, _causal(prefix))]
        packed, kept = [prefix[is_prefix]], [is_prefix]
        for chosen in similar(lengths):
            owner = [owners[b] for b in chosen]
            query, is_query = _right_padded(
                [starts[b] for b in chosen], [lengths[b] for b in chosen]
            )  # (rows, C_max)
            P_max = max(self.prefix_lengths[n] for n in owner)
            on_prefix = is_prefix[owner, :P_max]  # (rows, P_max)
            keys = torch.cat((prefix[owner, :P_max], query), dim=1)  # (rows, P_max + C_max)
            on_prefix = on_prefix[:, None, None].expand(-1, 1, query.shape[1], -1)
            on_itself = _causal(query).expand(len(owner), -1, -1, -1)  # (rows, 1, C_max, C_max)
            batches.append((query, keys, torch.cat((on_prefix, on_itself), dim=3)))
            packed.append(query[is_query])
            kept.append(is_query)
        # Where packed token t stands among the padded rows, batch after batch.
        kept = torch.cat([is_real.flatten() for is_real in kept]).nonzero().squeeze(1)
        slots = kept[torch.cat(packed).argsort()]  # (T,)
        batches = [tuple(part.to(self.device) for part in batch) for batch in batches]
        return Rows(batches, slots.to(self.device))

    @cached_property
    def sequences(self) -> "Sequences":
        """The pack as sequences without padding: queries [P] [C_1] .., keys [P] [P + C_1] .."""
        queries, keys, at = [], [], 0
        for P, own in zip(self.prefix_lengths, self.completion_lengths, strict=True):
            prefix = torch.arange(at, at + P)
            queries.append(P)
            keys.append(prefix)
            at += P
            for length in own:
                queries.append(length)
                keys.append(torch.cat((prefix, torch.arange(at, at + length))))
                at += length
        ends = [
            F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(self.device, torch.int32)
            for lengths in (queries, [len(key) for key in keys])
        ]
        return Sequences(torch.cat(keys).to(self.device), *ends, max(queries), max(map(len, keys)))

    def masks(self, R: int, dtype: torch.dtype) -> list[Tensor]:
        """Per batch of `rows` 0 or -inf, (rows or 1, 1, R * T_max, S): what R query heads of a key
        head may look at. Built once and used by every layer."""
        if (R, dtype) not in self._masks:
            self._masks[R, dtype] = [
                torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
                .masked_fill_(~allowed, float("-inf"))
                .repeat(1, 1, R, 1)
                for _, _, allowed in self.rows.batches
            ]
        return self._masks[R, dtype]


@dataclass
class Rows:
    batches: list[tuple[Tensor, Tensor, Tensor]]
    """Per batch: packed index of every query (rows, T_max) and of what it may look at (rows, S),
    0 where padded; allowed (rows or 1, 1, T_max, S) bool. The first batch: the prefixes."""
    slots: Tensor  # (T,) from packed order to the padded rows


@dataclass
class Sequences:
    keys: Tensor  # packed index of every key of every sequence, end to end
    query_ends: Tensor  # (sequences + 1,) int32, 0 first
    key_ends: Tensor  # (sequences + 1,) int32, 0 first
    max_query: int
    max_key: int


def similar(lengths: list[int]) -> list[list[int]]:
    """Numbers of the completions, shortest first, cut where a length exceeds twice its batch's
    shortest: padding costs attention time in proportion to it."""
    batches: list[list[int]] = []
    for b in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or lengths[b] > max(16, 2 * lengths[batches[-1][0]]):
            batches.append([])
        batches[-1].append(b)
    return batches


def _causal(query: Tensor) -> Tensor:
    """Earlier tokens and itself: (rows, T_max) -> (1, 1, T_max, T_max) bool."""
    return torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).tril()[None, None]


def _right_padded(starts: list[int], lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Indices of runs as padded rows, and which of them are real: (rows, longest) each."""
    offset = torch.arange(max(lengths))
    is_real = offset < torch.tensor(lengths)[:, None]
    return (torch.tensor(starts)[:, None] + offset) * is_real, is_real


def full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(E) + mask) v over dense batches: q (B, H, T, E), k and v (B, H, S, E).

    `mask`: (B or 1, 1, T, S) in the dtype of q; None lets everything see everything.

    On a CPU with reduced float32 products (`torch.set_float32_matmul_precision("medium")`) torch's
    own fused kernel becomes several times slower, while plain matrix products become faster: there
    the textbook form is used.
    """
    if q.device.type != "cpu" or torch.get_float32_matmul_precision() == "highest":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # (B, H, T, S)
    if mask is not None:
        scores += mask
    return scores.softmax(-1) @ v  # (B, H, T, E)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackLayout) -> Tensor:
    """Attention of packed groups.

    Args:
        q: (T, H, E). k, v: (T, K, E). layout: where the groups are.
    Returns: (T, H, E).
    """
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        return varlen_attention(q, k, v, layout)
    (_, H, E), K = q.shape, k.shape[1]
    rows, out = layout.rows, []
    for (query, keys, _), mask in zip(rows.batches, layout.masks(H // K, q.dtype), strict=True):
        B, C_max = query.shape
        # The H / K query heads of a key head become rows of one product: keys are not repeated.
        folded = _take(q, query).reshape(B, K, H // K * C_max, E)
        part = full_attention(folded, _take(k, keys), _take(v, keys), mask)
        out.append(part.view(B, H, C_max, E).transpose(1, 2).reshape(-1, H * E))
    return torch.cat(out).index_select(0, rows.slots).view(-1, H, E)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackLayout) -> Tensor:
    """`packed_attention` without padding: one call for all sequences of the pack.

    Packed order is the order of the queries already. A completion's keys are its prefix and itself,
    so there are more keys than queries; causal then has to mean that the *last* query sees the last
    key (aligned at the bottom right), as flash kernels do it.
    """
    own = layout.sequences
    k, v = k.index_select(0, own.keys), v.index_select(0, own.keys)  # (sum of keys, K, E)
    return flash_varlen(
        q.contiguous(), k, v, own.query_ends, own.key_ends, own.max_query, own.max_key
    )


def flash_varlen(
    q: Tensor, k: Tensor, v: Tensor, query_ends: Tensor, key_ends: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Causal attention of sequences end to end, q (Tq, H, E), k and v (Tk, K, E) -> (Tq, H, E)."""
    bounds = (query_ends, key_ends, max_q, max_k)
    if flash_attn_varlen_func is not None:
        return flash_attn_varlen_func(q, k, v, *bounds, causal=True)
    from torch.nn.attention.varlen import varlen_attn  # its import takes a while

    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if grouped and "enable_gqa" not in inspect.signature(varlen_attn).parameters:  # torch < 2.12
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        grouped = {}
    return varlen_attn(q, k, v, *bounds, window_size=(-1, 0), **grouped)  # (Tq, H, E)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of packed tokens: x (T, heads, E), index (B, S) -> (B, heads, S, E)."""
    taken = x.flatten(1).index_select(0, index.flatten())  # (B * S, heads * E)
    return taken.view(*index.shape, *x.shape[1:]).transpose(1, 2)


class Span:
    """`size` neighbouring indices that move on together, as an index of a tensor's dimension.

    On a CPU a slice: that is cheapest. On a GPU a tensor changed in place: a captured CUDA graph
    reads its present value, and the host is never asked.
    """

    def __init__(self, start: int, size: int, device: torch.device | str = "cpu"):
        self.size, stop = size, start + size
        self.index: slice | Tensor = slice(start, stop)
        if torch.device(device).type != "cpu":
            self.index = torch.arange(start, stop, device=device)

    def advance(self) -> None:
        if isinstance(self.index, slice):
            self.index = slice(self.index.stop, self.index.stop + self.size)
        else:
            self.index += self.size


class KVCache:
    """Keys and values of N groups: each group one sequence of keys, see `kernels/decode.py`.

    layers: per layer k and v (N, K, P + S_max * G, E). The prefill writes the prompts, padded to
    P, once per group; each step appends one token of each of the G rows. All rows advance together,
    so one number, kept on the device, says how long the suffixes are.
    """

    def __init__(self, group_size: int, max_suffix: int, device: torch.device | str = "cpu"):
        self.group_size, self.max_suffix = group_size, max_suffix
        self.length = torch.zeros((), dtype=torch.int32, device=device)  # S
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.prefix_lengths: Tensor | None = None  # (N,) int32
        self.prefix_size = 0  # P
        self.newest: Span | None = None  # where the last step's G tokens are among the keys
        self.mask: Tensor | None = None  # (N, 1, G * R, keys), see `visible_keys`

    def store_prefix(self, k: Tensor, v: Tensor, layout: PackLayout) -> None:
        """Keep one layer's prefill: k, v (T, K, E) packed."""
        prefix = layout.rows.batches[0][0]  # (N, P)
        (N, P), G, device = prefix.shape, self.group_size, k.device
        layer = tuple(
            x.new_empty((N, x.shape[1], P + self.max_suffix * G, x.shape[2])) for x in (k, v)
        )
        for kept, x in zip(layer, (k, v), strict=True):
            kept[:, :, :P] = _take(x, prefix)
        self.layers.append(layer)
        if self.prefix_lengths is None:
            lengths = torch.tensor(layout.prefix_lengths, dtype=torch.int32)
            self.prefix_lengths, self.prefix_size = lengths.to(device), P
            self.newest = Span(P - G, G, device)

    def advance(self) -> None:
        """Make room for the next token of every row; called once per step, before the layers."""
        self.length += 1
        self.newest.advance()

    def keep(self, groups: Tensor) -> None:
        """Let all other groups go: groups (N',) int64."""
        self.layers = [tuple(x.index_select(0, groups) for x in layer) for layer in self.layers]
        self.prefix_lengths, self.mask = self.prefix_lengths[groups], None


def decode_attention(q: Tensor, k: Tensor, v: Tensor, cache: KVCache, layer: int) -> Tensor:
    """One new token per row against [shared prefix | own suffix, itself included].

    Args:
        q: (B, H, E). k, v: (B, K, E) of the new token, written into the cache.
    Returns: (B, H, E).
    """
    keys, values = cache.layers[layer]  # (N, K, L, E)
    (N, K, L, E), G, R = keys.shape, cache.group_size, q.shape[1] // k.shape[1]
    keys[:, :, cache.newest.index] = k.view(N, G, K, E).transpose(1, 2)
    values[:, :, cache.newest.index] = v.view(N, G, K, E).transpose(1, 2)
    if cache.mask is None and not q.is_cuda:
        cache.mask = visible_keys(cache.prefix_lengths, cache.prefix_size, G, R, L, q.dtype)
    return shared_prefix_attention(
        q, keys, values, cache.prefix_lengths, cache.prefix_size, cache.length, cache.mask
    )
