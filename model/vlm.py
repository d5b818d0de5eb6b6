"""The vision-language model: pixels and tokens in, log-probabilities of completions out.

    VLM                 the tower computes image tokens, which replace the embedded
                        `<|image_pad|>` tokens
    Prompt              one question with its images, ready for the model
    DecodingRows        N * G rows after the prefill, one token more at each call

| letter | meaning                                | letter | meaning                             |
|--------|----------------------------------------|--------|-------------------------------------|
| N      | prompts (= groups)                     | V, D   | vocabulary, width                   |
| G      | completions per prompt                 | H, K   | query heads, key/value heads        |
| B      | rows in decoding, N * G                | E      | head width                          |
| P      | prompt tokens, image tokens included   | M, Q   | patches; image tokens after merging |
| C_i, C | tokens of completion i; C = sum C_i    | T      | tokens of a packed sequence         |

Next: model/pack.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import triton
from model.attention import KVCache, PackLayout
from model.config import VLMConfig
from model.language import DecodingStep, LanguageModel, mrope
from model.vision import Grid, VisionTower

T = TypeVar("T")
TOWER_PATCHES = 2**15  # that a tower without gradients sees at once: eight large pictures


@dataclass
class Prompt:
    """A question with its images: what the prefill needs, once per group."""

    id: str
    ids: Tensor  # (P,) int64, every image slot already repeated to its number of image tokens
    positions: Tensor  # (3, P) int64
    pixels: Tensor | None  # (M, patch numbers) fp32; None for a question without image
    grids: list[Grid]
    features: Tensor | None = None  # (Q, levels, D): the tower's output, kept while that is fixed
    first_sample: int = 0  # number of the first completion: the others follow
    said: int = 0  # how many of its last tokens are the beginning of a completion

    @property
    def next_position(self) -> int:
        """Position of the first completion token, the same on all three axes."""
        return int(self.positions.max()) + 1


def rope_positions(ids: Tensor, grids: list[Grid], cfg: VLMConfig) -> Tensor:
    """M-RoPE positions of a prompt: (P,) ids -> (3, P).

    Text counts up on all three axes together. An image's tokens count (frame, row, column) from the
    position after the text, and the text after it continues from the largest of them.
    Source: Qwen2-VL, arXiv:2409.12191, figure 3. ValueError: an image does not fit its slot.
    """
    merge = cfg.vision.spatial_merge_size
    image_tokens = (ids == cfg.image_token_id).nonzero().squeeze(1)  # (Q,)
    parts, at, position = [], 0, 0
    for t, h, w in grids:
        h, w, size = h // merge, w // merge, t * h * w // merge**2
        slot, image_tokens = image_tokens[:size], image_tokens[size:]
        if len(slot) < size or int(slot[-1] - slot[0]) >= size:
            raise ValueError(f"an image of {size} tokens does not fit its slot after token {at}")
        text = int(slot[0]) - at  # tokens before the image
        parts.append((torch.arange(text) + position).expand(3, -1))
        places = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w))
        parts.append(places.T + position + text)  # (3, size)
        at, position = at + text + size, position + text + max(h, w)
    if len(image_tokens) > 0:
        raise ValueError("more image tokens than the images have")
    parts.append((torch.arange(len(ids) - at) + position).expand(3, -1))
    return torch.cat(parts, dim=1)


class VLM(nn.Module):
    """Module names equal the keys of the published checkpoints (visual.*, model.*, lm_head), except
    `qkv_proj`, which they store as three: see `model/weights.py`."""

    def __init__(self, cfg: VLMConfig):
        super().__init__()
        self.cfg = cfg
        self.fingerprint = ""  # of the weights that it was filled with
        self.visual = VisionTower(cfg.vision)
        self.model = LanguageModel(cfg.text)
        if not cfg.tie_word_embeddings:
            self.lm_head = nn.Linear(cfg.text.hidden_size, cfg.text.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the output layer, or the embedding it is tied to."""
        if self.cfg.tie_word_embeddings:
            return self.model.embed_tokens.weight
        return self.lm_head.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.norm.weight.device

    def image_features(self, prompts: list[Prompt]) -> Tensor | None:
        """Run the tower once over all images: (Q, levels, D), or None without images."""
        prompts = [prompt for prompt in prompts if prompt.pixels is not None]
        if not prompts:
            return None
        if all(prompt.features is not None for prompt in prompts):
            return torch.cat([prompt.features for prompt in prompts])
        if not torch.is_grad_enabled() and len(chunks := chunks_of_images(prompts)) > 1:
            return torch.cat([self.image_features(chunk) for chunk in chunks])
        pixels = torch.cat([prompt.pixels for prompt in prompts])  # (M, numbers)
        pixels = pixels.to(self.device, non_blocking=True)
        return self.visual(pixels, [grid for prompt in prompts for grid in prompt.grids])

    def keep_image_features(self, prompts: list[Prompt]) -> Tensor | None:
        """`image_features` (Q, levels, D), stored in the prompts for every later use."""
        features = self.image_features(prompts)  # (Q, levels, D)
        if features is not None:
            merge = self.cfg.vision.spatial_merge_size**2
            counts = [sum(t * h * w for t, h, w in p.grids) // merge for p in prompts]
            for prompt, part in zip(prompts, features.split(counts), strict=True):
                prompt.features = part if prompt.grids else None
        return features

    def image_slots(self, pieces: list[Prompt], starts: Sequence[int]) -> Tensor:
        """The packed tokens that stand for image tokens: (Q,) int64, found on the host."""
        slots = [
            (piece.ids == self.cfg.image_token_id).nonzero().squeeze(1) + start
            for piece, start in zip(pieces, starts, strict=True)
        ]
        return torch.cat(slots).to(self.device, non_blocking=True)

    def embed(
        self, ids: Tensor, features: Tensor | None = None, slots: Tensor | None = None
    ) -> Tensor:
        """Text from the embedding, image slots from the tower's last level: (T,) -> (T, D)."""
        x = F.embedding(ids, self.model.embed_tokens.weight)  # (T, D)
        if features is None:
            return x
        if len(slots) != len(features):
            raise ValueError(f"{len(slots)} image slots but {len(features)} image tokens")
        return x.index_copy(0, slots, features[:, 0].to(x.dtype))

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        layout: PackLayout,
        pieces: list[Prompt],
        cache: KVCache | None = None,
        starts: Sequence[int] | None = None,
    ) -> Tensor:
        """A pack -> hidden states (T, D); fills `cache` with keys and values of the prefixes.

        Args:
            ids: (T,) int64. positions: (3, T). pieces: whose images fill the slots among `ids`.
            starts: where each piece begins; None: they are the prefixes.
        """
        features, slots = self.image_features(pieces), None  # (Q, levels, D)
        if features is not None:
            starts = starts or [prefix.start for prefix, _ in layout.spans()]
            slots = self.image_slots(pieces, starts)  # (Q,)
        x, rotary = self.embed(ids, features, slots), mrope(positions, self.cfg.text)  # (T, D)
        if features is None or features.shape[1] == 1:
            return self.model(x, rotary, layout, cache)
        return self.model(x, rotary, layout, cache, slots, features[:, 1:])

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, D) -> (B, V) in fp32."""
        return head_logits(hidden, self.head_weight)

    def prefill(
        self, prompts: list[Prompt], group_size: int, max_completion_length: int
    ) -> tuple[Tensor, "DecodingRows"]:
        """Compute every prompt once, then stand ready to decode G rows of each.

        Returns: the logits (B, V) fp32 of each row's first token, and the rows.
        """
        cache = KVCache(group_size, max_completion_length, self.device)
        layout = PackLayout([len(p.ids) for p in prompts], [[] for _ in prompts], self.device)
        ids = torch.cat([p.ids for p in prompts])  # (T,)
        positions = torch.cat([p.positions for p in prompts], dim=1)  # (3, T)
        ends = torch.tensor(layout.prefix_lengths).cumsum(0) - 1  # (N,)
        ids, positions, ends = (
            x.to(self.device, non_blocking=True) for x in (ids, positions, ends)
        )
        hidden = self(ids, positions, layout, prompts, cache)  # (T, D)
        logits = self.logits(hidden[ends].repeat_interleave(group_size, 0))  # (B, V)
        return logits, DecodingRows(self, cache, [p.next_position for p in prompts])

    def completion_hidden(self, pack) -> Tensor:
        """The hidden states (C, D) that predict the completion tokens of a `model.pack.Pack`."""
        terms = (pack.ids, pack.positions, pack.layout, pack.pieces)
        hidden = self(*terms, starts=pack.starts)  # (T, D)
        # Not hidden[..]: a group shares its first predictor, and on a CPU the gradients of an index
        # that repeats are then added up in whatever order the threads come. (On a GPU such sums
        # have no fixed order, here and in attention.)
        return hidden.index_select(0, pack.predictors)

    def prepare_training(self, freeze_vision: bool, gradient_checkpointing: bool) -> None:
        """Choose the trained parameters, and whether backward computes the layers a second time."""
        self.visual.requires_grad_(not freeze_vision)
        for part in (self.model, self.visual):
            part.gradient_checkpointing = gradient_checkpointing


class DecodingRows:
    """N * G rows after their prefill; the rows of a prompt share its keys and values.

    Attributes:
        is_recordable: a call never asks the host anything, so that a CUDA graph can record it.
    """

    # Without Triton the attention asks the host for a length.
    is_recordable = triton is not None

    def __init__(self, model: VLM, cache: KVCache, starts: list[int]):
        """`starts`: where the completions of each group begin, N positions."""
        self.model, self.cache, self.group_size = model, cache, cache.group_size
        position = torch.tensor(starts).repeat_interleave(self.group_size)
        self.position = position.to(model.device, non_blocking=True)  # (B,) int64
        self.layers = DecodingStep(model.model, cache)
        # A completion is text: its three positions are equal, and all angles fit one table.
        places = torch.arange(max(starts) + cache.max_suffix, device=model.device)
        self.rotary = mrope(places.expand(3, -1), model.cfg.text)

    def __call__(self, ids: Tensor) -> Tensor:
        """The newest token of each row (B,) -> logits (B, V) fp32 of the next one."""
        rotary = tuple(table.index_select(0, self.position) for table in self.rotary)
        hidden = self.layers(self.model.embed(ids), rotary)  # (B, D)
        self.position += 1
        return self.model.logits(hidden)

    def keep(self, groups: Tensor) -> Tensor:
        """Drop all groups but these (N',); returns the rows (B',) int64 that stay."""
        rows = rows_of_groups(groups, self.group_size)  # (B',)
        self.cache.keep(groups)
        self.position = self.position[rows]
        return rows


def head_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """(B, D), (V, D) -> (B, V) in fp32: logits rounded to bf16 are off by up to 0.06 nats."""
    if hidden.is_cuda and hidden.dtype == torch.bfloat16:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return F.linear(hidden.float(), weight.float())


def chunks_of_images(prompts: list[Prompt]) -> list[list[Prompt]]:
    """Prompts with images in parts of `TOWER_PATCHES` patches at most, one prompt at least."""
    return in_parts(prompts, [len(prompt.pixels) for prompt in prompts], TOWER_PATCHES)


def in_parts(items: Sequence[T], sizes: Sequence[int], most: int) -> list[list[T]]:
    """Items in their order, in parts whose sizes add up to `most`, one item at least."""
    parts, room = [], 0
    for item, size in zip(items, sizes, strict=True):
        if not parts or size > room:
            parts, room = [*parts, []], most
        parts[-1].append(item)
        room -= size
    return parts


def rows_of_groups(groups: Tensor, group_size: int) -> Tensor:
    """Numbers of groups (N,) -> those of their rows (N * G,)."""
    places = torch.arange(group_size, device=groups.device)  # (G,)
    return (groups[:, None] * group_size + places).flatten()
