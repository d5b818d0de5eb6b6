"""The language model of the Qwen-VL families: a decoder with grouped-query attention and M-RoPE.

Every token has three positions: time, height and width. For text the three are equal, and M-RoPE is
ordinary RoPE; an image token has its frame, row and column. `mrope_section` divides the rotary
frequencies of a head among the three. In Qwen3-VL queries and keys are normalised before they are
rotated, and features of the tower's middle blocks are added to the image tokens after the first
layers (DeepStack, arXiv:2406.04334).

`LanguageModel.forward` serves training on a packed sequence and, with a cache to fill, the prefill;
`DecodingStep` computes one token more per row.

Source: Qwen2-VL, arXiv:2409.12191, section 2.1 (M-RoPE). Letters: T packed tokens, B rows, D width,
H query heads, K key/value heads, E head width. Next: model/load.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import add_norm, apply_rotary, gated_product, rotate_and_store
from model.adapter import Linear, linear
from model.attention import KVCache, PackLayout, decode_attention, packed_attention
from model.config import TextConfig
from model.vision import Rotary, rotary_table, run_layer


def frequency_axes(cfg: TextConfig) -> list[int]:
    """The axis (0 time, 1 height, 2 width) of each of the E/2 rotary frequencies."""
    section = cfg.mrope_section
    if not cfg.family.interleaved_mrope:
        return [axis for axis, count in enumerate(section) for _ in range(count)]
    return [j % 3 if j < 3 * section[j % 3] else 0 for j in range(cfg.head_dim // 2)]


def mrope(positions: Tensor, cfg: TextConfig) -> Rotary:
    """`rotary_table` of the M-RoPE angles, (T, 1, E) fp32 each.

    Args:
        positions: (3, T) integer: time, height, width.
    """
    half, device = cfg.head_dim // 2, positions.device
    exponent = torch.arange(half, dtype=torch.float32, device=device) / half
    axes = torch.tensor(frequency_axes(cfg)).to(device, non_blocking=True)  # (E/2,)
    return rotary_table(positions[axes].T.float() * cfg.rope_theta**-exponent)


class SelfAttention(nn.Module):
    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.head_dim = cfg.head_dim
        self.heads = (cfg.num_attention_heads, cfg.num_key_value_heads)
        rows = (cfg.num_attention_heads + 2 * cfg.num_key_value_heads) * cfg.head_dim
        # In the files: q_proj, k_proj, v_proj.
        self.qkv_proj = Linear(cfg.hidden_size, rows, bias=cfg.family.qkv_bias)
        self.o_proj = Linear(cfg.num_attention_heads * cfg.head_dim, cfg.hidden_size, bias=False)
        self.eps = cfg.rms_norm_eps
        if cfg.family.qk_norm:
            self.q_norm = nn.RMSNorm(cfg.head_dim, cfg.rms_norm_eps)
            self.k_norm = nn.RMSNorm(cfg.head_dim, cfg.rms_norm_eps)

    def qk_scale(self) -> Tensor | None:
        """Weights of the norms of all query and key heads, (H + K, E); None without norms."""
        if not hasattr(self, "q_norm"):
            return None
        H, K = self.heads
        return torch.cat((self.q_norm.weight.expand(H, -1), self.k_norm.weight.expand(K, -1)))

    def project(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """(T, D) -> queries (T, H, E), keys and values (T, K, E), the first two rotated."""
        H, K = self.heads
        qkv = self.qkv_proj(x).view(len(x), -1, self.head_dim)  # (T, H + 2K, E)
        qk, v = qkv.split((H + K, K), dim=1)
        if (scale := self.qk_scale()) is not None:
            qk = F.rms_norm(qk, (self.head_dim,), eps=self.eps) * scale  # (T, H + K, E)
        q, k = apply_rotary(qk, *rotary).split((H, K), dim=1)  # (T, H, E), (T, K, E)
        return q, k, v

    def forward(self, x: Tensor, rotary, layout: PackLayout, cache: KVCache | None) -> Tensor:
        """(T, D) -> (T, D); `rotary` as in `LanguageModel.forward`."""
        q, k, v = self.project(x, rotary)
        if cache is not None:
            cache.store_prefix(k, v, layout)
        out = packed_attention(q, k, v, layout)  # (T, H, E)
        return self.o_proj(out.flatten(1))  # (T, D)


class MLP(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.gate_proj = Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, D)."""
        return self.down_proj.gated(self.gate_proj(x), self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = SelfAttention(cfg)
        self.post_attention_layernorm = nn.RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, x: Tensor, rotary, layout, cache) -> Tensor:
        """(T, D) -> (T, D); `rotary` as in `LanguageModel.forward`."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, layout, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.cfg = cfg
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = nn.RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        layout: PackLayout,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
        deep: Tensor | None = None,
    ) -> Tensor:
        """Embedded tokens of a pack -> hidden states.

        Args:
            x: (T, D). rotary: `mrope` of their positions. layout: the groups of the pack.
            cache: filled with the keys and values of the prefixes, where given (prefill).
            slots: (Q,) int64, the image tokens. deep: (Q, levels - 1, D), added to them after the
            first levels - 1 layers (DeepStack).
        Returns: (T, D), after the last norm.
        """
        rotary = tuple(table.to(x.dtype) for table in rotary)
        recompute = self.gradient_checkpointing and cache is None
        for number, layer in enumerate(self.layers):
            x = run_layer(layer, x, rotary, layout, cache, recompute=recompute)
            x = add_deep(x, slots, deep, number)
        return self.norm(x)


def add_deep(x: Tensor, slots: Tensor | None, deep: Tensor | None, layer: int) -> Tensor:
    """DeepStack: a layer's output (T, D), with a level of features added to the image tokens."""
    if deep is None or layer >= deep.shape[1]:
        return x
    return x.index_add(0, slots, deep[:, layer].to(x.dtype))


class DecodingStep:
    """One new token for every row: the layers of `LanguageModel.forward` written out.

    For a small model on a CPU calling fifty modules, and looking up their weights, takes a sixth of
    a step. So the weights (not copies) are looked up once per rollout. On a GPU what lies between
    the products is one kernel each.
    """

    def __init__(self, model: LanguageModel, cache: KVCache):
        self.cache, self.cfg = cache, model.cfg
        norms = [layer.input_layernorm.weight for layer in model.layers] + [model.norm.weight]
        self.first_norm = norms[0]
        self.layers = [
            (
                layer.self_attn.qkv_proj.for_decoding(),
                layer.self_attn.qk_scale(),
                layer.self_attn.o_proj.for_decoding(),
                layer.post_attention_layernorm.weight,
                layer.mlp.gate_proj.for_decoding(),
                layer.mlp.up_proj.for_decoding(),
                layer.mlp.down_proj.for_decoding(),
                next_norm,
            )
            for layer, next_norm in zip(model.layers, norms[1:], strict=True)
        ]

    def __call__(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Embedded tokens (B, D) and `mrope` of their positions -> (B, D), after the last norm."""
        cfg, (cos, sin) = self.cfg, (table.to(x.dtype) for table in rotary)
        heads, eps = cfg.num_attention_heads + 2 * cfg.num_key_value_heads, cfg.rms_norm_eps
        self.cache.advance()
        h = F.rms_norm(x, (cfg.hidden_size,), self.first_norm, eps)  # (B, D)
        for number, (qkv, scale, o, norm_2, gate, up, down, next_norm) in enumerate(self.layers):
            qkv = linear(h, *qkv).view(len(x), heads, cfg.head_dim)  # (B, H + 2K, E)
            keys_values, newest = self.cache.layers[number], self.cache.newest.index
            q = rotate_and_store(qkv, cos, sin, scale, eps, *keys_values, newest)  # (B, H, E)
            out = decode_attention(q, self.cache, number)  # (B, H, E)
            x, h = add_norm(x, linear(out.flatten(1), *o), norm_2, eps)  # (B, D) each
            update = linear(gated_product(linear(h, *gate), linear(h, *up)), *down)
            x, h = add_norm(x, update, next_norm, eps)
        return h
