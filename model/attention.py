"""The one place where tokens look at each other.

A *packed* sequence holds whole groups end to end: [prefix | c_1 | .. | c_G] [prefix | c_1 | ..] ...
The prefix is the image and the question, stored once; c_i are the completions sampled for it. The
rule of attention is the whole trick of shared-prefix training: **a completion token sees the prefix
and the earlier tokens of its own completion**, nothing else. The result and its gradients equal
those of G separate sequences [prefix | c_i], at the cost of P + sum(C_i) tokens, not
G * P + sum(C_i).

`packed_attention` is used for training and for the prefill (a pack with no completions);
`decode_attention` for one new token per row against [shared prefix | own suffix].

Letters: N groups, G completions a group, B = N * G rows, P prefix tokens, T packed tokens,
S suffix tokens so far, H query heads, K key/value heads, E head width. Next: model/vision.py.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


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
    _dense: "tuple[Tensor, Tensor, Tensor] | None" = field(default=None, repr=False)

    @property
    def group_lengths(self) -> list[int]:
        return [p + sum(c) for p, c in zip(self.prefix_lengths, self.completion_lengths, strict=True)]

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices and mask of the padded form (N, T_max), built once per pack.

        Returns `gather` (N, T_max) into the packed tokens, `slots` (T,) back into N * T_max, and
        `allowed` (N, 1, T_max, T_max) bool. Padding rows see themselves, so no softmax is empty.
        """
        if self._dense is None:
            longest = max(self.group_lengths)
            segment = torch.full((len(self.prefix_lengths), longest), -1)  # (N, T_max)
            gather = torch.zeros_like(segment)  # (N, T_max)
            start = 0
            for n, (prefix, lengths) in enumerate(
                zip(self.prefix_lengths, self.completion_lengths, strict=True)
            ):
                # segment 0 is the prefix, i the i-th completion, -1 padding
                ids = torch.arange(len(lengths) + 1)
                own = ids.repeat_interleave(torch.tensor([prefix, *lengths]))  # (T_n,)
                segment[n, : len(own)] = own
                gather[n, : len(own)] = torch.arange(start, start + len(own))
                start += len(own)
            slots = (segment >= 0).flatten().nonzero().squeeze(1)  # (T,)
            key, query = segment[:, None, :], segment[:, :, None]
            allowed = torch.ones(longest, longest, dtype=torch.bool).tril() & (
                (key == 0) | (key == query)
            )  # (N, T_max, T_max)
            self._dense = (
                gather.to(self.device),
                slots.to(self.device),
                allowed[:, None].to(self.device),
            )
        return self._dense


def full_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(E)) v over dense batches: (B, H, T, E) each, mask (B, 1, T, T) bool.

    On a CPU with reduced float32 products (`torch.set_float32_matmul_precision("medium")`) torch's
    own fused kernel becomes several times slower, while plain matrix products become faster: there
    the textbook form is used.
    """
    if q.device.type != "cpu" or torch.get_float32_matmul_precision() == "highest":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    B, H, T, E = q.shape
    q, k, v = q.reshape(B * H, T, E), k.reshape(B * H, T, E), v.reshape(B * H, T, E)
    if allowed is None:
        scores = torch.bmm(q * E**-0.5, k.transpose(1, 2))  # (B*H, T, T)
    else:
        bias = torch.zeros(allowed.shape, dtype=q.dtype).masked_fill_(~allowed, float("-inf"))
        bias = bias.expand(B, H, T, T).reshape(B * H, T, T)
        scores = torch.baddbmm(bias, q * E**-0.5, k.transpose(1, 2))  # (B*H, T, T)
    return torch.bmm(scores.softmax(-1), v).view(B, H, T, E)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackLayout) -> Tensor:
    """Attention of packed groups.

    Args:
        q: (T, H, E). k, v: (T, K, E). layout: where the groups are.
    Returns: (T, H, E).
    """
    gather, slots, allowed = layout.dense()
    N, longest = gather.shape
    if N * longest == q.shape[0]:  # equal groups: the padded form is a view
        q, k, v = (x.view(N, longest, *x.shape[1:]) for x in (q, k, v))
    else:
        q, k, v = (x[gather] for x in (q, k, v))  # (N, T_max, heads, E)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (N, heads, T_max, E)
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)  # (N, H, T_max, E)
    out = full_attention(q, k, v, allowed).transpose(1, 2).flatten(0, 1)  # (N*T_max, H, E)
    return out if len(slots) == len(out) else out[slots]


class KVCache:
    """Keys and values of N groups: the prefix once per group, the suffix once per row.

    prefix: per layer k and v (N, K, P, E), filled by the prefill; suffix: per layer k and v
    (B, K, C_max, E), allocated once and written in place. All rows advance together, so `length` is one number.
    """

    def __init__(self, group_size: int, max_suffix: int):
        self.group_size = group_size
        self.max_suffix = max_suffix
        self.length = 0  # suffix tokens already written
        self.prefix: list[tuple[Tensor, Tensor]] = []
        self.suffix: list[tuple[Tensor, Tensor]] = []
        self.prefix_bias: Tensor | None = None  # (N, 1, 1, P) 0 or -inf beyond P_n

    def store_prefix(self, k: Tensor, v: Tensor, layout: PackLayout) -> None:
        """Keep one layer's prefill: k, v (T, K, E) packed."""
        gather, _, _ = layout.dense()
        k, v = (x[gather].transpose(1, 2).contiguous() for x in (k, v))  # (N, K, P, E)
        self.prefix.append((k, v))
        N, K, P, E = k.shape
        shape = (N * self.group_size, K, self.max_suffix, E)
        self.suffix.append((k.new_zeros(shape), k.new_zeros(shape)))
        if self.prefix_bias is None:
            lengths = torch.tensor(layout.prefix_lengths, device=k.device)
            beyond = torch.arange(P, device=k.device) >= lengths[:, None]  # (N, P)
            self.prefix_bias = torch.zeros(beyond.shape, device=k.device, dtype=k.dtype)
            self.prefix_bias = self.prefix_bias.masked_fill_(beyond, float("-inf"))[:, None, None]


def decode_attention(q: Tensor, k: Tensor, v: Tensor, cache: KVCache, layer: int) -> Tensor:
    """One new token per row against [shared prefix | own suffix, itself included].

    Args:
        q: (B, H, E). k, v: (B, K, E) of the new token, written into the suffix at `cache.length`.
    Returns: (B, H, E).
    """
    prefix_k, prefix_v = cache.prefix[layer]
    suffix_k, suffix_v = cache.suffix[layer]
    suffix_k[:, :, cache.length] = k
    suffix_v[:, :, cache.length] = v
    suffix_k = suffix_k[:, :, : cache.length + 1]  # (B, K, S, E)
    suffix_v = suffix_v[:, :, : cache.length + 1]
    N, K, P, E = prefix_k.shape
    B, H, _ = q.shape
    G, R = B // N, H // K  # rows a group, query heads a key head
    q = q.view(N, G, K, R, E) * E**-0.5
    # The G * R queries that share a prefix key form one matrix product: no copy of the prefix.
    grouped = q.transpose(1, 2).reshape(N, K, G * R, E)
    to_prefix = grouped @ prefix_k.transpose(2, 3) + cache.prefix_bias  # (N, K, G*R, P)
    to_prefix = to_prefix.view(N, K, G, R, P).transpose(1, 2).reshape(B, K, R, P)
    to_suffix = q.reshape(B, K, R, E) @ suffix_k.transpose(2, 3)  # (B, K, R, S)
    weights = torch.cat((to_prefix, to_suffix), -1).softmax(-1)  # (B, K, R, P+S)
    on_prefix = weights[..., :P].view(N, G, K, R, P).transpose(1, 2).reshape(N, K, G * R, P)
    from_prefix = (on_prefix @ prefix_v).view(N, K, G, R, E).transpose(1, 2)  # (N, G, K, R, E)
    from_suffix = weights[..., P:] @ suffix_v  # (B, K, R, E)
    return from_prefix.reshape(B, H, E) + from_suffix.reshape(B, H, E)
