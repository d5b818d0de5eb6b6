"""The vision tower of Qwen2-VL: patches of an image -> image tokens of the language model's width.

A patch is one row of numbers (channels x time x height x width), so the patch embedding is a plain
Linear: the checkpoint's 3-D convolution has a stride equal to its kernel. The patches attend to all
patches of their own image, with rotary positions in two dimensions (half of each head turns with
the row, half with the column). At the end each square of `spatial_merge_size`^2 neighbouring
patches, consecutive in `model/image.py`'s order, is merged into one image token.

Source: Qwen2-VL, arXiv:2409.12191, section 2.1. Letters: M patches, Q image tokens, D width, E head
width. Next: model/language.py.
"""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import full_attention
from model.config import VisionConfig

Rotary = tuple[Tensor, Tensor]  # cos and sin, (T, 1, E) each


def rotary_table(angle: Tensor) -> Rotary:
    """cos and sin of angles (T, E/2) as `apply_rotary` takes them: (T, 1, E) fp32 each."""
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + E/2}) by its angle: x (T, heads, E); `rotary_table` (T, 1, E)."""
    partner = x.roll(x.shape[-1] // 2, dims=-1)  # (T, heads, E)
    return torch.addcmul(x * cos, partner, sin)  # (T, heads, E)


def patch_positions(grid: tuple[int, int, int], merge: int) -> Tensor:
    """Row and column of every patch in merge-block order: (M, 2) for one image."""
    t, h, w = grid
    places = torch.cartesian_prod(torch.arange(h), torch.arange(w))  # (h * w, 2)
    blocks = places.view(h // merge, merge, w // merge, merge, 2).transpose(1, 2)
    return blocks.reshape(h * w, 2).repeat(t, 1)  # (M, 2)


def vision_rotary(grids: list[tuple[int, int, int]], cfg: VisionConfig, device) -> Rotary:
    """`rotary_table` of the two-dimensional rotary angles."""
    quarter = cfg.embed_dim // cfg.num_heads // 4  # frequencies per axis
    frequency = 10000.0 ** -(torch.arange(quarter, dtype=torch.float32) / quarter)  # (E/4,)
    place = torch.cat([patch_positions(g, cfg.spatial_merge_size) for g in grids])  # (M, 2)
    return rotary_table((place[:, :, None] * frequency).flatten(1).to(device))


def through(layers: nn.ModuleList, x: Tensor, *context, recompute: bool) -> Tensor:
    """One layer after the other. With `recompute` only a layer's input is stored, and backward
    computes its activations once more (activation checkpointing, arXiv:1604.06174)."""
    for layer in layers:
        if recompute and torch.is_grad_enabled():
            x = checkpoint(layer, x, *context, use_reentrant=False)
        else:
            x = layer(x, *context)
    return x


class PatchEmbed(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        # Only the container of the weight: shape (D, channels, time, height, width), no bias.
        patch = (cfg.temporal_patch_size, cfg.patch_size, cfg.patch_size)
        self.proj = nn.Conv3d(cfg.in_channels, cfg.embed_dim, patch, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(M, patch numbers) -> (M, D)."""
        weight = self.proj.weight.flatten(1)  # (D, patch numbers)
        return F.linear(pixels.to(weight.dtype), weight)  # (M, D)


class VisionAttention(nn.Module):
    """Attention of every patch to all patches of its frame."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.num_heads = cfg.num_heads
        self.qkv = nn.Linear(cfg.embed_dim, 3 * cfg.embed_dim)
        self.proj = nn.Linear(cfg.embed_dim, cfg.embed_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, frames: list[tuple[int, int]]) -> Tensor:
        """(M, D) -> (M, D); `frames`: (consecutive frames, patches of each)."""
        qkv = self.qkv(x).view(len(x), 3 * self.num_heads, -1)  # (M, 3H, E)
        qk, v = qkv.split((2 * self.num_heads, self.num_heads), dim=1)
        # The angles are fp32; in bf16 the product would lose the low bits of far positions.
        q, k = apply_rotary(qk.float(), cos, sin).to(v.dtype).chunk(2, dim=1)  # (M, H, E) each
        lengths, out = [count * size for count, size in frames], []
        # Consecutive frames of equal size go through one dense call: (count, H, size, E) each.
        for (count, size), *run in zip(frames, *(x.split(lengths) for x in (q, k, v)), strict=True):
            dense = [x.view(count, size, *x.shape[1:]).transpose(1, 2) for x in run]
            out.append(full_attention(*dense).transpose(1, 2).reshape(count * size, -1))
        return self.proj(torch.cat(out))  # (M, D)


class VisionMLP(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        hidden = int(cfg.embed_dim * cfg.mlp_ratio)
        self.fc1 = nn.Linear(cfg.embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, cfg.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) -> (M, D)."""
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # "quick" GELU, as the checkpoint was trained


class VisionBlock(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.attn = VisionAttention(cfg)
        self.mlp = VisionMLP(cfg)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, frames: list[tuple[int, int]]) -> Tensor:
        """(M, D) -> (M, D); arguments as of `VisionAttention.forward`."""
        x = x + self.attn(self.norm1(x), cos, sin, frames)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """Concatenate the patches of a merge block and project them to the language model's width."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.merged = cfg.embed_dim * cfg.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(self.merged, self.merged), nn.GELU(), nn.Linear(self.merged, cfg.hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) -> (Q, hidden_size)."""
        return self.mlp(self.ln_q(x).view(-1, self.merged))  # (Q, hidden_size)


class VisionTower(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.cfg = cfg
        self.gradient_checkpointing = False
        self.patch_embed = PatchEmbed(cfg)
        self.blocks = nn.ModuleList(VisionBlock(cfg) for _ in range(cfg.depth))
        self.merger = PatchMerger(cfg)

    def forward(self, pixels: Tensor, grids: list[tuple[int, int, int]]) -> Tensor:
        """Encode images.

        Args:
            pixels: (M, patch numbers) of all images end to end, from `model.image.patchify`.
            grids: (t, h, w) in patches of each image; the products sum to M.
        Returns: (Q, hidden_size), image after image.
        """
        if sum(t * h * w for t, h, w in grids) != len(pixels):
            raise ValueError(f"grids {grids} do not describe {len(pixels)} patches")
        sizes = [h * w for t, h, w in grids for _ in range(t)]  # patches of every frame
        frames = [(len([*run]), size) for size, run in groupby(sizes)]  # (consecutive frames, size)
        cos, sin = vision_rotary(grids, self.cfg, pixels.device)
        x = self.patch_embed(pixels)  # (M, D)
        x = through(self.blocks, x, cos, sin, frames, recompute=self.gradient_checkpointing)
        return self.merger(x)
