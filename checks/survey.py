"""The questions as they are: labels, lengths, and pictures that are in training and held out alike.

Next: checks/page.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import numpy as np

from checks.linter import asks_boxes
from data.examples import INSTRUCTIONS, Example, Picture
from data.files import optional_import
from data.pictures import pixel_hash
from model.image import load_image
from model.processor import Processor
from tasks.boxes import boxes_of, question_of
from tasks.task import Task

MOST_PICTURES = 2000  # of a split that are compared
NEAR = 6  # bits of 256 in which the hashes of two pictures may differ
HASH_SIDE = 16
CONSTANTS, QUESTIONS = 20, 200  # answers that are tried on so many questions


@dataclass(frozen=True)
class Survey:
    """What can be said of the questions before any is asked.

    Attributes:
        labels: (target, how many training questions have it), the most frequent first; of boxes,
            where no target is like another, (label or question, how many boxes it has).
        boxes: of a question -> how many training questions have so many; None: no box task.
        top_share: of the most frequent target among the training questions.
        constant: share of right answers of the best of a few constant ones.
        prompt, target: (least, median, most) tokens; prompts of the sampled questions.
        same: (training question, other question) with the very same pictures. near: whose first
            pictures look alike. compared: pictures of training and of the other splits.
    """

    sizes: dict[str, int]
    labels: list[tuple[str, int]]
    boxes: dict[int, int] | None
    top_share: float
    constant: float
    prompt: tuple[int, float, int]
    target: tuple[int, float, int]
    same: list[tuple[str, str]]
    near: list[tuple[str, str]]
    compared: tuple[int, int]


def survey(task: Task, processor: Processor, asked: Sequence[Example]) -> Survey:
    """Count. `asked`: the questions whose prompts are built to know their lengths."""
    counts = Counter(example.target for example in task.train)
    prompts = [len(processor.prompt(e.id, e.images, e.question).ids) for e in asked]
    lengths = {target: len(processor.encode(target)) for target in counts}
    targets = [lengths[example.target] for example in task.train]
    others = [e for examples in task.splits.values() for e in examples[:MOST_PICTURES]]
    same, near = alike(task.train[:MOST_PICTURES], others)
    splits = {"train": task.train} | task.splits
    labels, boxes = boxes_asked(task) if asks_boxes(task) else (counts, None)
    return Survey(
        sizes={name: len(examples) for name, examples in splits.items()},
        labels=labels.most_common(),
        boxes=boxes,
        top_share=counts.most_common(1)[0][1] / len(task.train),
        constant=best_constant(task, [target for target, _ in counts.most_common(CONSTANTS)]),
        prompt=spread(prompts),
        target=spread(targets),
        same=same,
        near=near,
        compared=(min(len(task.train), MOST_PICTURES), len(others)),
    )


def boxes_asked(task: Task) -> tuple[Counter, dict[int, int]]:
    """How many boxes each label has (each question, where boxes have none), and how many questions
    have how many boxes."""
    labels, sizes = Counter(), Counter()
    for example in task.train:
        boxes = boxes_of(example.target, example)
        sizes[len(boxes)] += 1
        question = question_of(example)
        for how in INSTRUCTIONS.values():
            question = question.removesuffix(how)
        labels.update(box.label or question.strip() for box in boxes)
    return labels, dict(sorted(sizes.items()))


def best_constant(task: Task, targets: Sequence[str]) -> float:
    """Accuracy of the best of some answers that are always the same."""
    asked = task.train[:QUESTIONS]

    def accuracy(target: str) -> float:
        return mean(task.scores(f"<answer>{target}</answer>", e)["strict"] for e in asked)

    return max(map(accuracy, targets))


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
