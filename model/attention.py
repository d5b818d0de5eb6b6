"""Attention, the one place where tokens exchange information.

A *packed* sequence holds whole groups end to end: [prefix | c_1 | .. | c_G] [prefix | c_1 | ..] ...
The prefix is the image and the question, stored once; c_i are the completions sampled for it. The
rule of attention is the whole trick of shared-prefix training: **a completion token sees the prefix
and the earlier tokens of its own completion**, nothing else. The result and its gradients equal
those of G separate sequences [prefix | c_i], but the layers compute P + sum(C_i) tokens, not
G * P + sum(C_i). (Keys and values are gathered per completion, a small part of the whole.)

`packed_attention` is used for training and for the prefill (a pack with no completions);
`decode_attention` for one new token per row against [shared prefix | own suffix]. The first has two
forms: padded rows and a mask, anywhere; on a GPU in half precision one call of a flash kernel
(FlashAttention-2, arXiv:2307.08691), of the package flash-attn where it is installed, else torch's.

Copies to a GPU are `non_blocking`: the driver has read the host's tensor when the call returns, and
the host does not wait until the GPU has done what it was given before.

Letters: N groups, G completions a group, B = N * G rows, P prefix tokens, T packed tokens,
S suffix tokens so far, H query heads, K key/value heads, E head width. Next: model/vision.py.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

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

    def spans(self) -> Iterator[tuple[range, list[range]]]:
        """Packed tokens of every group: those of its prefix, and those of each completion."""
        start = 0
        for P, lengths in zip(self.prefix_lengths, self.completion_lengths, strict=True):
            bounds = [*accumulate((P, *lengths), initial=start)]
            prefix, *completions = (range(*ends) for ends in pairwise(bounds))
            yield prefix, completions
            start = bounds[-1]

    @cached_property
    def prefixes(self) -> Tensor:
        """Packed tokens of the prefixes, one row each, padded on the right with 0: (N, P)."""
        prefixes, _ = _right_padded([prefix for prefix, _ in self.spans()])
        return prefixes.to(self.device, non_blocking=True)

    @cached_property
    def rows(self) -> "Rows":
        """The pack as padded batches of rows, built once and used by every layer.

        The first batch holds the prefixes; the others hold completions of similar length, whose
        keys are their group's prefix and themselves. Rows are padded on the right, so a causal mask
        hides a row's own padding from every query that counts.
        """
        prefixes, completions, owners = [], [], []
        for n, (prefix, spans) in enumerate(self.spans()):
            prefixes.append(prefix)
            completions += spans
            owners += [n] * len(spans)
        prefix, is_prefix = _right_padded(prefixes)  # (N, P_max)
        batches = [(prefix, prefix, _causal(prefix))]
        packed, is_real = [prefix[is_prefix]], [is_prefix.flatten()]
        for batch in similar_lengths([len(span) for span in completions]):
            owner = [owners[b] for b in batch]
            query, is_query = _right_padded([completions[b] for b in batch])  # (rows, C_max)
            P_max = max(self.prefix_lengths[n] for n in owner)
            on_prefix = is_prefix[owner, :P_max]  # (rows, P_max)
            keys = torch.cat((prefix[owner, :P_max], query), dim=1)  # (rows, P_max + C_max)
            on_prefix = on_prefix[:, None, None].expand(-1, 1, query.shape[1], -1)
            on_itself = _causal(query).expand(len(owner), -1, -1, -1)  # (rows, 1, C_max, C_max)
            batches.append((query, keys, torch.cat((on_prefix, on_itself), dim=3)))
            packed.append(query[is_query])
            is_real.append(is_query.flatten())
        # The place of packed token t among the padded rows, batch after batch.
        slots = torch.cat(is_real).nonzero().squeeze(1)[torch.cat(packed).argsort()]  # (T,)
        batches = [
            tuple(part.to(self.device, non_blocking=True) for part in batch) for batch in batches
        ]
        return Rows(batches, slots.to(self.device, non_blocking=True))

    @cached_property
    def sequences(self) -> "Sequences":
        """The pack as sequences without padding: queries [P] [C_1] .., keys [P] [P + C_1] .."""
        queries, keys = [], []
        for prefix, completions in self.spans():
            queries += [len(prefix), *map(len, completions)]
            keys.append(torch.arange(prefix.start, prefix.stop))  # (P,)
            on_itself = [torch.arange(span.start, span.stop) for span in completions]
            keys += [torch.cat((keys[-1], tokens)) for tokens in on_itself]  # (P + C_i,) each
        ends = [
            F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(self.device, non_blocking=True)
            for lengths in (queries, [len(key) for key in keys])
        ]
        keys_of_all = torch.cat(keys).to(self.device, non_blocking=True)
        return Sequences(keys_of_all, *ends, max(queries), max(map(len, keys)))

    def masks(self, R: int, dtype: torch.dtype) -> list[Tensor]:
        """Per batch of `rows` 0 or -inf, (rows or 1, 1, R * T_max, S): what the R query heads of a
        key head see. Built once and used by every layer."""
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
    """Per batch: packed index of every query (rows, T_max) and of every key (rows, S), 0 where
    padded; what a query sees (rows or 1, 1, T_max, S) bool. The first batch: the prefixes."""
    slots: Tensor  # (T,) from packed order to the padded rows


class Sequences(NamedTuple):
    keys: Tensor  # packed index of every key of every sequence, end to end
    query_ends: Tensor  # (sequences + 1,) int32, 0 first
    key_ends: Tensor  # (sequences + 1,) int32, 0 first
    max_query: int
    max_key: int


def similar_lengths(lengths: list[int]) -> list[list[int]]:
    """Indices of the completions, shortest first, cut where a length exceeds twice its batch's
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


def _right_padded(spans: list[range]) -> tuple[Tensor, Tensor]:
    """Packed tokens as padded rows, and which of them are real: (rows, longest) each."""
    starts, lengths = torch.tensor([(span.start, len(span)) for span in spans]).T[:, :, None]
    offset = torch.arange(int(lengths.max()))
    is_real = offset < lengths
    return (starts + offset) * is_real, is_real


def full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(E) + mask) v over dense batches: q (B, H, T, E), k and v (B, H, S, E).

    `mask`: (B or 1, 1, T, S) in the dtype of q; None masks nothing.

    With `torch.set_float32_matmul_precision("medium")` the fused kernel for CPUs becomes several
    times slower and plain products faster: there the textbook form is used.
    """
    if q.device.type != "cpu" or torch.get_float32_matmul_precision() == "highest":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # (B, H, T, S)
    if mask is not None:
        scores += mask
    return scores.softmax(-1) @ v  # (B, H, T, E)


class Runs:
    """Sequences end to end in which every token sees all others: runs of (count, size)."""

    def __init__(self, runs: list[tuple[int, int]], device: torch.device | str = "cpu"):
        self.runs, self.device = runs, device

    @cached_property
    def ends(self) -> Tensor:
        """(sequences + 1,) int32, 0 first."""
        sizes = torch.tensor([size for count, size in self.runs for _ in range(count)])
        return F.pad(sizes.cumsum(0), (1, 0)).int().to(self.device, non_blocking=True)


def bidirectional_attention(q: Tensor, k: Tensor, v: Tensor, runs: Runs) -> Tensor:
    """Attention inside each sequence, in both directions: (T, H, E) each -> (T, H, E)."""
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        longest = max(size for _, size in runs.runs)
        return flash_varlen(q, k, v, runs.ends, runs.ends, longest, longest, causal=False)
    lengths, out = [count * size for count, size in runs.runs], []
    # A run goes through one dense call: (count, H, size, E) each.
    parts = zip(runs.runs, *(x.split(lengths) for x in (q, k, v)), strict=True)
    for (count, size), *run in parts:
        dense = [x.view(count, size, *x.shape[1:]).transpose(1, 2) for x in run]
        out.append(full_attention(*dense).transpose(1, 2).flatten(0, 1))
    return torch.cat(out)  # (T, H, E)


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
    keys, *bounds = layout.sequences
    k, v = k.index_select(0, keys), v.index_select(0, keys)  # (sum of keys, K, E)
    return flash_varlen(q.contiguous(), k, v, *bounds)


def flash_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    max_q: int,
    max_k: int,
    causal: bool = True,
) -> Tensor:
    """Attention of sequences end to end: q (Tq, H, E), k and v (Tk, K, E) -> (Tq, H, E).

    `query_ends`, `key_ends`: (sequences + 1,) int32, 0 first.
    """
    bounds = (query_ends, key_ends, max_q, max_k)
    if flash_attn_varlen_func is not None:
        return flash_attn_varlen_func(q, k, v, *bounds, causal=causal)
    from torch.nn.attention.varlen import varlen_attn  # its import takes a while

    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if grouped and "enable_gqa" not in inspect.signature(varlen_attn).parameters:  # torch < 2.12
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        grouped = {}
    window = (-1, 0 if causal else -1)
    return varlen_attn(q, k, v, *bounds, window_size=window, **grouped)  # (Tq, H, E)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of packed tokens: x (T, heads, E), index (B, S) -> (B, heads, S, E)."""
    rows = x.flatten(1).index_select(0, index.flatten())  # (B * S, heads * E)
    return rows.view(*index.shape, *x.shape[1:]).transpose(1, 2)


class Span:
    """`size` neighbouring indices of a dimension that advance together.

    On a CPU a slice, which is cheapest. On a GPU a tensor changed in place: a captured CUDA graph
    reads its present value, and the host never waits.
    """

    def __init__(self, start: int, size: int, device: torch.device | str = "cpu"):
        self.size, stop = size, start + size
        self.index: slice | Tensor = slice(start, stop)
        if torch.device(device).type != "cpu":
            self.index = torch.arange(start, stop, device=device)

    def advance(self) -> None:
        """Move on by `size`."""
        if isinstance(self.index, slice):
            self.index = slice(self.index.stop, self.index.stop + self.size)
        else:
            self.index += self.size


class KVCache:
    """Keys and values of N groups: each group one sequence of keys, see `kernels/decode.py`.

    layers: per layer k and v (N, K, P + S_max * G, E). The prefill writes the prompts, padded to
    P, once per group; each step appends one token of each of the G rows. All rows advance together,
    so the length of the suffixes is one number, kept on the device.
    """

    def __init__(self, group_size: int, max_suffix: int, device: torch.device | str = "cpu"):
        self.group_size, self.max_suffix = group_size, max_suffix
        self.length = torch.zeros((), dtype=torch.int32, device=device)  # S
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.prefix_lengths: Tensor | None = None  # (N,) int32
        self.prefix_size = 0  # P
        self.newest: Span | None = None  # the last step's G tokens among the keys
        self.mask: Tensor | None = None  # (N, 1, G * R, keys), see `visible_keys`

    def store_prefix(self, k: Tensor, v: Tensor, layout: PackLayout) -> None:
        """Store one layer's prefill: k, v (T, K, E) packed."""
        prefix = layout.prefixes  # (N, P)
        (N, P), (_, K, E), G, device = prefix.shape, k.shape, self.group_size, k.device
        keys, values = (x.new_empty((N, K, P + self.max_suffix * G, E)) for x in (k, v))
        keys[:, :, :P], values[:, :, :P] = _take(k, prefix), _take(v, prefix)
        self.layers.append((keys, values))
        if self.prefix_lengths is None:
            lengths = torch.tensor(layout.prefix_lengths, dtype=torch.int32)
            self.prefix_lengths, self.prefix_size = lengths.to(device, non_blocking=True), P
            self.newest = Span(P - G, G, device)

    def advance(self) -> None:
        """Make room for the next token of every row; called once per step, before the layers."""
        self.length += 1
        self.newest.advance()

    def keep(self, groups: Tensor) -> None:
        """Drop all groups but these: (N',) int64."""
        self.layers = [tuple(x.index_select(0, groups) for x in layer) for layer in self.layers]
        self.prefix_lengths, self.mask = self.prefix_lengths[groups], None


def decode_attention(q: Tensor, cache: KVCache, layer: int) -> Tensor:
    """One new token per row against [shared prefix | own suffix, itself included].

    Args:
        q: (B, H, E); its keys and values are in the cache (`kernels.rotate_and_store`).
    Returns: (B, H, E).
    """
    keys, values = cache.layers[layer]  # (N, K, L, E)
    if cache.mask is None and not q.is_cuda:
        (_, K, L, _), G, P = keys.shape, cache.group_size, cache.prefix_size
        cache.mask = visible_keys(cache.prefix_lengths, P, G, q.shape[1] // K, L, q.dtype)
    return shared_prefix_attention(
        q, keys, values, cache.prefix_lengths, cache.prefix_size, cache.length, cache.mask
    )
