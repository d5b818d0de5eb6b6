"""The questions as they are: labels, lengths, and pictures that are in training and held out alike.

Next: checks/page.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from data.examples import Example, Picture
from data.files import optional_import
from data.pictures import pixel_hash
from model.image import load_image
from model.processor import Processor
from tasks.task import Task

MOST_PICTURES = 2000  # of a split that are compared
NEAR = 6  # bits of 256 in which the hashes of two pictures may differ
HASH_SIDE = 16


@dataclass(frozen=True)
class Survey:
    """What can be said of the questions before any is asked.

    Attributes:
        labels: (target, how many training questions have it), the most frequent first.
        top_share: of the most frequent target among the training questions.
        prompt, target: (least, median, most) tokens.
        same: (training question, held-out question) with the very same pictures. near: whose first
            pictures look alike. compared: pictures of either split that were looked at.
    """

    sizes: dict[str, int]
    labels: list[tuple[str, int]]
    top_share: float
    prompt: tuple[int, float, int]
    target: tuple[int, float, int]
    same: list[tuple[str, str]]
    near: list[tuple[str, str]]
    compared: tuple[int, int]


def survey(task: Task, processor: Processor, asked: Sequence[Example]) -> Survey:
    """Count. `asked`: the questions whose prompts are built to know their lengths."""
    counts = Counter(example.target for example in task.train)
    prompts = [len(processor.prompt(e.id, e.images, e.question).ids) for e in asked]
    targets = [len(processor.encode(target)) for target in counts]
    held_out = task.splits.get("held_out", [])
    same, near = alike(task.train[:MOST_PICTURES], held_out[:MOST_PICTURES])
    splits = {"train": task.train} | task.splits
    return Survey(
        sizes={name: len(examples) for name, examples in splits.items()},
        labels=counts.most_common(),
        top_share=counts.most_common(1)[0][1] / len(task.train),
        prompt=spread(prompts),
        target=spread(targets),
        same=same,
        near=near,
        compared=(min(len(task.train), MOST_PICTURES), min(len(held_out), MOST_PICTURES)),
    )


def spread(numbers: Sequence[int]) -> tuple[int, float, int]:
    """Least, median, most."""
    return min(numbers), median(numbers), max(numbers)


def alike(
    train: Sequence[Example], held_out: Sequence[Example]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs of a training and a held-out question about the same pictures, or about near ones.

    Near: the perceptual hashes of the first pictures (imagehash: the signs of a coarse cosine
    transform) differ in at most `NEAR` bits. Of several pairs of a held-out question one is told.
    """
    by_pixels = {pixel_hash(example): example.id for example in train}
    pairs = [(by_pixels.get(pixel_hash(example)), example.id) for example in held_out]
    same = [(first, second) for first, second in pairs if first is not None]
    known = [e for e in train if e.images]
    found = {second for _, second in same}
    others = [e for e in held_out if e.images and e.id not in found]
    near = []
    if known and others:
        codes = np.stack([code_of(e.images[0]) for e in known])  # (train, 256) bool
        for example in others:
            differing = (codes != code_of(example.images[0])).sum(1)
            if differing.min() <= NEAR:
                near.append((known[int(differing.argmin())].id, example.id))
    return same, near


def code_of(picture: Picture) -> np.ndarray:
    """The perceptual hash of a picture: (256,) bool."""
    imagehash = optional_import("imagehash", "ImageHash")
    return imagehash.phash(load_image(picture), hash_size=HASH_SIDE).hash.flatten()
