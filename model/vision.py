"""The vision towers of the Qwen-VL families: patches of an image -> image tokens.

A patch is one row of numbers (channels x time x height x width), so the patch embedding is a plain
Linear: the checkpoint's 3-D convolution has a stride equal to its kernel. The patches attend to all
patches of their own frame, with rotary positions in two dimensions (half of each head turns with
the row, half with the column). At the end each square of `spatial_merge_size`^2 neighbouring
patches, consecutive in `model/image.py`'s order, is merged into one image token.

Qwen2.5-VL: most blocks attend in windows of a few tokens only (`window_order`). Qwen3-VL: learned
positions are added to the patches (`learned_positions`), and the output of a few blocks goes to the
first layers of the language model as well, each through a merger of its own (DeepStack,
arXiv:2406.04334): that is the dimension `levels` of the features.

Sources: arXiv:2409.12191, section 2.1; arXiv:2502.13923, 2.1; arXiv:2511.21631. Letters: M patches,
Q image tokens, D width, E head width. Next: model/language.py.
"""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import apply_rotary, gated_product
from model.attention import Runs, bidirectional_attention
from model.config import VisionConfig

Rotary = tuple[Tensor, Tensor]  # cos and sin, (T, 1, E) each
Grid = tuple[int, int, int]  # time, height, width in patches


def rotary_table(angle: Tensor) -> Rotary:
    """cos and sin of angles (T, E/2) as `apply_rotary` takes them: (T, 1, E) fp32 each."""
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def patch_positions(grid: Grid, merge: int) -> Tensor:
    """Row and column of every patch in merge-block order: (M, 2) for one image."""
    t, h, w = grid
    places = torch.cartesian_prod(torch.arange(h), torch.arange(w))  # (h * w, 2)
    blocks = places.view(h // merge, merge, w // merge, merge, 2).transpose(1, 2)
    return blocks.reshape(h * w, 2).repeat(t, 1)  # (M, 2)


def vision_rotary(grids: list[Grid], cfg: VisionConfig, device) -> Rotary:
    """`rotary_table` of the two-dimensional rotary angles."""
    quarter = cfg.embed_dim // cfg.num_heads // 4  # frequencies per axis
    exponent = torch.arange(quarter, dtype=torch.float32) / quarter
    place = torch.cat([patch_positions(g, cfg.spatial_merge_size) for g in grids])  # (M, 2)
    angle = place[:, :, None] * cfg.rope_theta**-exponent  # (M, 2, E/4)
    return rotary_table(angle.flatten(1).to(device, non_blocking=True))


def learned_positions(table: Tensor, grids: list[Grid], cfg: VisionConfig) -> Tensor:
    """The square table (side^2, D), read bilinearly with aligned corners: (M, D) fp32."""
    parts = []
    for grid in grids:
        place = patch_positions(grid, cfg.spatial_merge_size)  # (M, 2)
        last = torch.tensor(grid[1:]) - 1  # row and column of the last patch
        at = place * (cfg.position_side - 1) / last.clamp(min=1)  # (M, 2) in the table
        at = at.to(table.device, non_blocking=True)
        low = at.floor().long()  # (M, 2)
        high, part = (low + 1).clamp(max=cfg.position_side - 1), at - low  # (M, 2) each
        corners = [
            (row[:, 0] * cfg.position_side + column[:, 1], a[:, 0] * b[:, 1])
            for row, a in ((low, 1 - part), (high, part))
            for column, b in ((low, 1 - part), (high, part))
        ]
        parts.append(sum(table[index].float() * weight[:, None] for index, weight in corners))
    return torch.cat(parts)


def window_order(grids: list[Grid], cfg: VisionConfig) -> tuple[Tensor, list[tuple[int, int]]]:
    """The image tokens sorted by windows, and the runs of windows of one size.

    Windows of `window_side`^2 tokens start at the upper left of each frame; those at the right and
    lower edge are what is left. Their order is free, so windows of one size stand together.

    Returns: token of every place (Q,), and (count, patches of each) of the windows.
    """
    side, patches = cfg.window_side, cfg.spatial_merge_size**2
    order, runs, start = [], [], 0
    for t, h, w in grids:
        H, W = h // cfg.spatial_merge_size, w // cfg.spatial_merge_size
        for _ in range(t):
            tokens = torch.arange(start, start + H * W).view(H, W)
            rows = tokens.split((H - H % side, H % side))
            for part in [part for row in rows for part in row.split((W - W % side, W % side), 1)]:
                if part.numel() > 0:
                    a, b = min(side, part.shape[0]), min(side, part.shape[1])
                    windows = part.view(part.shape[0] // a, a, part.shape[1] // b, b)
                    order.append(windows.transpose(1, 2).flatten())
                    runs.append((part.numel() // (a * b), a * b * patches))
            start += H * W
    return torch.cat(order), runs


def run_layer(layer: nn.Module, x: Tensor, *context, recompute: bool) -> Tensor:
    """A layer's output. With `recompute` only its input is stored, and backward computes its
    activations once more (activation checkpointing, arXiv:1604.06174)."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, x, *context, use_reentrant=False)
    return layer(x, *context)


def _norm(width: int, cfg: VisionConfig) -> nn.Module:
    return (nn.RMSNorm if cfg.family.gated_vision else nn.LayerNorm)(width, eps=1e-6)


class PatchEmbed(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        # Only the container of the weight: shape (D, channels, time, height, width).
        patch = (cfg.temporal_patch_size, cfg.patch_size, cfg.patch_size)
        self.proj = nn.Conv3d(cfg.in_channels, cfg.embed_dim, patch, bias=cfg.family.patch_bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """(M, patch numbers) -> (M, D)."""
        weight = self.proj.weight.flatten(1)  # (D, patch numbers)
        return F.linear(pixels.to(weight.dtype), weight, self.proj.bias)  # (M, D)


class VisionAttention(nn.Module):
    """Attention of every patch to all patches of its frame, or of its window."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.num_heads = cfg.num_heads
        self.qkv = nn.Linear(cfg.embed_dim, 3 * cfg.embed_dim)
        self.proj = nn.Linear(cfg.embed_dim, cfg.embed_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, runs: Runs) -> Tensor:
        """(M, D) -> (M, D); `runs`: which patches stand together."""
        qkv = self.qkv(x).view(len(x), 3 * self.num_heads, -1)  # (M, 3H, E)
        qk, v = qkv.split((2 * self.num_heads, self.num_heads), dim=1)
        # The angles are fp32; in bf16 the product would lose the low bits of far positions.
        q, k = apply_rotary(qk.float(), cos, sin).to(v.dtype).chunk(2, dim=1)  # (M, H, E) each
        return self.proj(bidirectional_attention(q, k, v, runs).flatten(1))  # (M, D)


class VisionMLP(nn.Module):
    """Two linear layers with GELU: its "quick" form in Qwen2-VL, the tanh form in Qwen3-VL."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.is_quick = cfg.family.vision_act == "quick_gelu"
        self.fc1 = nn.Linear(cfg.embed_dim, cfg.intermediate_size)
        self.fc2 = nn.Linear(cfg.intermediate_size, cfg.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) -> (M, D)."""
        x = self.fc1(x)
        return self.fc2(
            x * torch.sigmoid(1.702 * x) if self.is_quick else F.gelu(x, approximate="tanh")
        )


class GatedVisionMLP(nn.Module):
    """SwiGLU with biases, in Qwen2.5-VL."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.embed_dim, cfg.intermediate_size)
        self.up_proj = nn.Linear(cfg.embed_dim, cfg.intermediate_size)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) -> (M, D)."""
        return self.down_proj(gated_product(self.gate_proj(x), self.up_proj(x)))


class VisionBlock(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.norm1, self.norm2 = _norm(cfg.embed_dim, cfg), _norm(cfg.embed_dim, cfg)
        self.attn = VisionAttention(cfg)
        self.mlp = (GatedVisionMLP if cfg.family.gated_vision else VisionMLP)(cfg)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, runs: Runs) -> Tensor:
        """(M, D) -> (M, D); arguments as of `VisionAttention.forward`."""
        x = x + self.attn(self.norm1(x), cos, sin, runs)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """Concatenate the patches of a merge block and project them to the language model's width."""

    def __init__(self, cfg: VisionConfig, norm_merged: bool = False):
        super().__init__()
        self.merged = cfg.embed_dim * cfg.spatial_merge_size**2
        self.norm_merged = norm_merged  # normalise what is concatenated, not each patch
        self.ln_q = _norm(self.merged if norm_merged else cfg.embed_dim, cfg)
        self.mlp = nn.Sequential(
            nn.Linear(self.merged, self.merged), nn.GELU(), nn.Linear(self.merged, cfg.hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) -> (Q, hidden_size)."""
        if self.norm_merged:
            return self.mlp(self.ln_q(x.view(-1, self.merged)))  # (Q, hidden_size)
        return self.mlp(self.ln_q(x).view(-1, self.merged))  # (Q, hidden_size)


class VisionTower(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.cfg = cfg
        self.gradient_checkpointing = False
        self.patch_embed = PatchEmbed(cfg)
        if cfg.position_side:
            self.pos_embed = nn.Embedding(cfg.position_side**2, cfg.embed_dim)
        self.blocks = nn.ModuleList(VisionBlock(cfg) for _ in range(cfg.depth))
        self.merger = PatchMerger(cfg)
        self.deepstack_merger_list = nn.ModuleList(
            PatchMerger(cfg, norm_merged=True) for _ in cfg.deep_blocks
        )

    def forward(self, pixels: Tensor, grids: list[Grid]) -> Tensor:
        """Encode images.

        Args:
            pixels: (M, patch numbers) of all images end to end, from `model.image.patchify`.
            grids: (t, h, w) in patches of each image; the products sum to M.
        Returns: (Q, levels, hidden_size), image after image.
        """
        cfg, device = self.cfg, pixels.device
        if sum(t * h * w for t, h, w in grids) != len(pixels):
            raise ValueError(f"grids {grids} do not describe {len(pixels)} patches")
        x = self.patch_embed(pixels)  # (M, D)
        if cfg.position_side:
            x = x + learned_positions(self.pos_embed.weight, grids, cfg).to(x.dtype)
        cos, sin = vision_rotary(grids, cfg, device)  # (M, 1, E) each
        sizes = [h * w for t, h, w in grids for _ in range(t)]  # patches of every frame
        frames = windows = Runs([(len([*run]), size) for size, run in groupby(sizes)], device)
        if cfg.window_side:
            order, runs = window_order(grids, cfg)  # (Q,)
            order, windows = order.to(device, non_blocking=True), Runs(runs, device)
            x, cos, sin = (_reordered(part, order) for part in (x, cos, sin))
        levels = []  # (Q, hidden_size) each
        for number, block in enumerate(self.blocks):
            runs = frames if number in cfg.full_blocks else windows
            x = run_layer(block, x, cos, sin, runs, recompute=self.gradient_checkpointing)
            if number in cfg.deep_blocks:
                levels.append(self.deepstack_merger_list[len(levels)](x))
        features = torch.stack([self.merger(x), *levels], dim=1)  # (Q, levels, hidden_size)
        return features[order.argsort()] if cfg.window_side else features


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    """The patches of the image tokens in another order: (M, ..) -> (M, ..)."""
    return x.view(len(order), -1, *x.shape[1:])[order].flatten(0, 1)
