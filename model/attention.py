"""The one place where tokens look at each other.

A *packed* sequence holds whole groups end to end: [prefix | c_1 | .. | c_G] [prefix | c_1 | ..] ...
The prefix is the image and the question, stored once; c_i are the completions sampled for it. The
rule of attention is the whole trick of shared-prefix training: **a completion token sees the prefix
and the earlier tokens of its own completion**, nothing else. The result and its gradients equal
those of G separate sequences [prefix | c_i], but the layers compute P + sum(C_i) tokens, not
G * P + sum(C_i). (Keys and values are gathered per completion, a small part of the whole.)

`packed_attention` is used for training and for the prefill (a pack with no completions);
`decode_attention` for one new token per row against [shared prefix | own suffix].

Letters: N groups, G completions a group, B = N * G rows, P prefix tokens, T packed tokens,
S suffix tokens so far, H query heads, K key/value heads, E head width. Next: model/vision.py.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import shared_prefix_attention


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


@dataclass
class Rows:
    batches: list[tuple[Tensor, Tensor, Tensor]]
    """Per batch: packed index of every query (rows, T_max) and of what it may look at (rows, S),
    0 where padded; allowed (rows or 1, 1, T_max, S) bool. The first batch: the prefixes."""
    slots: Tensor  # (T,) from packed order to the padded rows


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


def full_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(E)) v over dense batches: q (B, H, T, E), k and v (B, H, S, E).

    `allowed`: (B or 1, 1, T, S) bool; None lets everything see everything.

    On a CPU with reduced float32 products (`torch.set_float32_matmul_precision("medium")`) torch's
    own fused kernel becomes several times slower, while plain matrix products become faster: there
    the textbook form is used.
    """
    if q.device.type != "cpu" or torch.get_float32_matmul_precision() == "highest":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # (B, H, T, S)
    if allowed is not None:
        scores += torch.zeros(allowed.shape, dtype=q.dtype).masked_fill_(~allowed, float("-inf"))
    return scores.softmax(-1) @ v  # (B, H, T, E)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackLayout) -> Tensor:
    """Attention of packed groups.

    Args:
        q: (T, H, E). k, v: (T, K, E). layout: where the groups are.
    Returns: (T, H, E).
    """
    rows, (_, H, E) = layout.rows, q.shape

    def part(query: Tensor, keys: Tensor, allowed: Tensor) -> Tensor:
        (B, C_max), K = query.shape, k.shape[1]
        # The H / K query heads of a key head become rows of one product: keys are not repeated.
        folded = _take(q, query).reshape(B, K, H // K * C_max, E)
        allowed = allowed.repeat(1, 1, H // K, 1)  # (B, 1, H/K * C_max, S)
        out = full_attention(folded, _take(k, keys), _take(v, keys), allowed)
        return out.view(B, H, C_max, E).transpose(1, 2).reshape(-1, H * E)  # (B * C_max, H * E)

    out = torch.cat([part(*batch) for batch in rows.batches])
    return out.index_select(0, rows.slots).view(-1, H, E)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of packed tokens: x (T, heads, E), index (B, S) -> (B, heads, S, E)."""
    taken = x.flatten(1).index_select(0, index.flatten())  # (B * S, heads * E)
    return taken.view(*index.shape, *x.shape[1:]).transpose(1, 2)


class KVCache:
    """Keys and values of N groups: the prefix once per group, the suffix once per row.

    prefix: per layer k and v (N, K, P, E), filled by the prefill; suffix: per layer k and v
    (B, K, S_max, E), allocated once and written in place. All rows advance together, so `length`,
    the number of suffix tokens, is one number; it lives on the device, and so a step never asks the
    host anything.
    """

    def __init__(self, group_size: int, max_suffix: int, device: torch.device | str = "cpu"):
        self.group_size = group_size
        self.max_suffix = max_suffix
        self.length = torch.zeros((), dtype=torch.int32, device=device)
        self.slot = torch.full((1,), -1, device=device)  # int64: where the newest token is
        self.prefix: list[tuple[Tensor, Tensor]] = []
        self.suffix: list[tuple[Tensor, Tensor]] = []
        self.prefix_lengths: Tensor | None = None  # (N,) int32

    def store_prefix(self, k: Tensor, v: Tensor, layout: PackLayout) -> None:
        """Keep one layer's prefill: k, v (T, K, E) packed."""
        k, v = (_take(x, layout.rows.batches[0][0]).contiguous() for x in (k, v))  # (N, K, P, E)
        self.prefix.append((k, v))
        N, K, P, E = k.shape
        shape = (N * self.group_size, K, self.max_suffix, E)
        self.suffix.append((k.new_zeros(shape), k.new_zeros(shape)))
        if self.prefix_lengths is None:
            lengths = torch.tensor(layout.prefix_lengths, dtype=torch.int32)
            self.prefix_lengths = lengths.to(k.device)

    def advance(self) -> None:
        """Make room for the next token of every row; called once per step, before the layers."""
        self.length += 1
        self.slot += 1


def decode_attention(q: Tensor, k: Tensor, v: Tensor, cache: KVCache, layer: int) -> Tensor:
    """One new token per row against [shared prefix | own suffix, itself included].

    Args:
        q: (B, H, E). k, v: (B, K, E) of the new token, written into the suffix.
    Returns: (B, H, E).
    """
    prefix_k, prefix_v = cache.prefix[layer]
    suffix_k, suffix_v = cache.suffix[layer]
    suffix_k.index_copy_(2, cache.slot, k[:, :, None])
    suffix_v.index_copy_(2, cache.slot, v[:, :, None])
    return shared_prefix_attention(
        q, prefix_k, prefix_v, cache.prefix_lengths, suffix_k, suffix_v, cache.length
    )
