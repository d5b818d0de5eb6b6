"""Other pictures in place of the right ones: what a model answers without looking.

A question can often be answered from its words, and reinforcement fine-tuning finds out how
(arXiv:2601.06801). The same model with swapped pictures tells how much of a score is of that kind.
"""

from collections import defaultdict
from dataclasses import replace
from typing import Literal

from PIL import Image

from data.examples import Example
from data.pictures import pixel_hash
from model.image import load_image

Pictures = Literal["real", "swapped", "grey"]
GREY = (128, 128, 128)


def with_pictures(examples: list[Example], pictures: Pictures) -> list[Example]:
    """The examples with their own pictures ("real"), those of another question ("swapped"), or
    grey ones of the same size.

    Swapped pictures are those of the question half of the list further on, among the questions with
    as many pictures; a question whose partner has the same ones, or none, gets grey ones.
    """
    if pictures == "real":
        return examples
    alike: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        alike[len(example.images)].append(example)
    partners = {
        example.id: group[(place + len(group) // 2) % len(group)]
        for group in alike.values()
        for place, example in enumerate(group)
    }
    changed = []
    for example in examples:
        images = partners[example.id].images
        if pictures == "grey" or pixel_hash(partners[example.id]) == pixel_hash(example):
            images = tuple(Image.new("RGB", load_image(i).size, GREY) for i in example.images)
        changed.append(replace(example, images=images))
    return changed
