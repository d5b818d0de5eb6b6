"""`Example`, one question with an answer that can be verified, and the prompt formats.

Next: data/garden/world.py generates examples; data/rows.py and data/grounding.py read them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")
Picture = Path | bytes | Image.Image  # a file, an encoded picture, or one in memory


@dataclass(frozen=True)
class Reasoning:
    """How a careful answer is reached: the texts that SFT on chains of thought learns."""

    thought: str  # from what is seen to the answer
    caption: str = ""  # of the four steps: what the picture shows
    summary: str = ""  # of the four steps: what the question wants
    calls: tuple[tuple[str, str], ...] = ()  # what is done before it: (thought, call), each


@dataclass(frozen=True)
class Example:
    """One question about one or more images, with the answer that a reward can verify.

    Attributes:
        id: stable and unique inside its data set; it keys the random numbers of its completions,
            so that the same example draws the same tokens in any batch.
        images: in the order of the question; a path, encoded bytes or an open image, always opened
            through `model.image.load_image`, where size, format and orientation are handled.
        question: the text shown to the model.
        target: what the reward compares the parsed answer with, written in the answer's grammar.
        box_format: the coordinates of boxes in the target, see data/box_formats.py.
        canvas: width and height of the plane that these coordinates span.
        read_as: the box format in which the data were read, before the target was written in
            `box_format`; "" where nobody doubts it.
        reasoning: how a careful answer is reached, where the source knows it.
        split: "train", "val" or "test" where the source says so (data/splits.py), else "".
        facts: what the source knows of the pictures (`data.garden.facts.Facts`), so that thoughts
            can be checked; None for data from outside. It is in no fingerprint of the data: the
            pictures are.
        world: what the environment of the task knows that is not shown at first (acting/); in no
            fingerprint either: pictures, question and target follow from it.
    """

    id: str
    images: tuple[Picture, ...]
    question: str
    target: str
    box_format: str = "norm1000"
    canvas: tuple[float, float] = (1000.0, 1000.0)
    read_as: str = ""
    reasoning: Reasoning | None = None
    split: str = ""
    facts: Any = field(default=None, repr=False)
    world: Any = field(default=None, repr=False)


# How to answer, in one sentence per mode. "think" asks for the reasoning before the answer; "steps"
# for the four-step chain of thought of LLaVA-CoT (arXiv:2411.10440), its conclusion in the answer
# block; "direct" for the answer alone (arXiv:2503.16188 finds thinking unnecessary for perception).
INSTRUCTIONS = {
    "think": "Think in <think> </think>, then answer in <answer> </answer>.",
    "steps": "Give <summary> </summary>, <caption> </caption> and <reasoning> </reasoning>, then "
    "answer in <answer> </answer>.",
    "direct": "Answer in <answer> </answer>.",
}
STEPS_TOKENS = 48  # what summary and caption add to a completion


def full_question(question: str, mode: str) -> str:
    """The prompt: the question and how to answer it, unless it says so itself (Visual-RFT's)."""
    return question if "<answer>" in question else f"{question} {INSTRUCTIONS[mode]}"


def completion_text(answer: str, mode: str, reasoning: Reasoning | None = None) -> str:
    """A completion in the format that `INSTRUCTIONS[mode]` asks for; all but "direct" reason."""
    blocks = f"<answer>{answer}</answer>"
    if mode == "think":
        return f"<think>{reasoning.thought}</think>{blocks}"
    if mode == "steps":
        summary = f"<summary>{reasoning.summary}</summary><caption>{reasoning.caption}</caption>"
        return f"{summary}<reasoning>{reasoning.thought}</reasoning>{blocks}"
    return blocks


def shuffle(items: Sequence[T], seed: int, key: int = 0) -> list[T]:
    """Sort by Philox's raw output, which numpy promises never to change (unlike `permutation`)."""
    bits = np.random.Philox(key=np.array([seed, key], dtype=np.uint64))
    order = np.argsort(bits.random_raw(len(items)), kind="stable")
    return [items[i] for i in order]
