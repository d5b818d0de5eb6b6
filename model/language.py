"""The language model of Qwen2-VL: a decoder with grouped-query attention and M-RoPE.

Every token carries three positions: time, height and width. For text the three are equal, and
M-RoPE is ordinary RoPE; an image token has its frame, row and column. Each head's rotary
frequencies are shared out among the three (`mrope_section`). Positions are arguments of a pure
function here, so prefill, decoding and training cannot disagree about them.

The same forward serves three uses, told apart by its arguments alone: training on a packed sequence
(`layout`), prefill (`layout` and `cache`: the prefix is stored), one decoding step (`cache` alone).

Source: Qwen2-VL, arXiv:2409.12191, section 2.1 (M-RoPE). Letters: T packed tokens, B rows, D width,
H query heads, K key/value heads, E head width. Next: model/image.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import KVCache, PackLayout, decode_attention, packed_attention
from model.config import TextConfig
from model.vision import apply_rotary, rotary_table, through


def mrope(positions: Tensor, cfg: TextConfig) -> tuple[Tensor, Tensor]:
    """`rotary_table` of the M-RoPE angles, (T, 1, E) fp32 each.

    Args:
        positions: (3, T) integer: time, height, width.
    """
    half = cfg.head_dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=positions.device) / half
    angle = positions[:, :, None].float() * cfg.rope_theta**-exponent  # (3, T, E/2)
    parts = angle.split(list(cfg.mrope_section), dim=-1)
    return rotary_table(torch.cat([part[axis] for axis, part in enumerate(parts)], dim=-1))


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class SelfAttention(nn.Module):
    def __init__(self, cfg: TextConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, cfg.head_dim
        self.heads = (cfg.num_attention_heads, cfg.num_key_value_heads)
        rows = (cfg.num_attention_heads + 2 * cfg.num_key_value_heads) * cfg.head_dim
        self.qkv_proj = nn.Linear(cfg.hidden_size, rows)  # in the files: q_proj, k_proj, v_proj
        self.o_proj = nn.Linear(cfg.num_attention_heads * cfg.head_dim, cfg.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        layout: PackLayout | None,
        cache: KVCache | None,
    ) -> Tensor:
        H, K = self.heads
        qkv = self.qkv_proj(x).view(len(x), -1, self.head_dim)  # (T, H + 2K, E)
        qk, v = qkv.split((H + K, K), dim=1)
        q, k = apply_rotary(qk, *rotary).split((H, K), dim=1)  # (T, H, E), (T, K, E)
        if layout is None:
            out = decode_attention(q, k, v, cache, self.layer)  # (B, H, E)
        else:
            if cache is not None:
                cache.store_prefix(k, v, layout)
            out = packed_attention(q, k, v, layout)  # (T, H, E)
        return self.o_proj(out.flatten(1))  # (T, D)


class MLP(nn.Module):
    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, cfg: TextConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = SelfAttention(cfg, layer)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, x: Tensor, rotary, layout, cache) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, layout, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.cfg = cfg
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(cfg, i) for i in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        layout: PackLayout | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Embedded tokens -> hidden states.

        Args:
            x: (T, D) packed tokens, or (B, D) one new token per row when `layout` is None.
            rotary: `mrope` of their positions.
            layout: groups of the pack; None means one decoding step.
            cache: filled when a layout is given (prefill), read and extended otherwise.
        Returns: (T, D) or (B, D), after the last norm.
        """
        rotary = tuple(table.to(x.dtype) for table in rotary)
        if layout is None:
            cache.advance()
        recompute = self.gradient_checkpointing and cache is None
        return self.norm(through(self.layers, x, rotary, layout, cache, recompute=recompute))
