"""Prompts for the benchmarks: garden pictures with a question, of a wanted length."""

import torch
from PIL import Image

from data.garden.drawing import draw_flower
from data.garden.questions import CLS_PROMPT
from data.garden.world import RL_SPECIES, SPLIT_SEED, render_seed
from model.processor import Processor
from model.vlm import Prompt


def garden_images(count: int) -> list[Image.Image]:
    """Portraits of different species."""
    chosen = [RL_SPECIES[k % len(RL_SPECIES)] for k in range(count)]
    seeds = [render_seed("test", SPLIT_SEED, 1, k) for k in range(count)]
    return [draw_flower(one.flower, seed) for one, seed in zip(chosen, seeds, strict=True)]


def padded_question(processor: Processor, length: int | None) -> str:
    """A question whose prompt, picture included, has `length` tokens; None: as short as it is."""
    (image,), question = garden_images(1), CLS_PROMPT
    missing = 1
    while length is not None and missing > 0:
        missing = length - len(processor.prompt("bench", [image], question).ids)
        question += " flower" * missing
    if length is not None and missing:
        raise ValueError(f"no question gives a prompt of exactly {length} tokens")
    return question


def garden_prompts(processor: Processor, count: int, length: int | None = None) -> list[Prompt]:
    """`count` questions about different flowers, of one length."""
    question = padded_question(processor, length)
    return [
        processor.prompt(f"bench{k}", [image], question)
        for k, image in enumerate(garden_images(count))
    ]


def as_transformers(prompts: list[Prompt], image_token: int) -> dict[str, torch.Tensor]:
    """The same prompts as `transformers` wants them; all must have one length."""
    ids = torch.stack([prompt.ids for prompt in prompts])  # (N, P)
    grids = [grid for prompt in prompts for grid in prompt.grids]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == image_token).int(),
        "pixel_values": torch.cat([prompt.pixels for prompt in prompts]),
        "image_grid_thw": torch.tensor(grids),
    }
