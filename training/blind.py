"""Other pictures in place of the right ones: what a model answers without looking.

A question can often be answered from its words, and reinforcement fine-tuning finds out how
(arXiv:2601.06801). The same model with swapped pictures tells how much of a score is of that kind.
"""

from collections import defaultdict
from dataclasses import replace
from typing import Literal

from PIL import Image

from data.examples import Example, shuffle
from data.pictures import pixel_hash
from model.image import load_image

Pictures = Literal["real", "swapped", "grey"]
GREY = (128, 128, 128)


def with_pictures(examples: list[Example], pictures: Pictures) -> list[Example]:
    """The examples with their own pictures ("real"), those of another question ("swapped"), or
    grey ones of the same size.

    Swapped pictures are those of a question drawn among those with as many pictures: in the order
    of the list they might be alike, as every thirtieth of `cls` is. A question whose partner has
    the same ones, or none, gets grey ones.
    """
    if pictures == "real":
        return examples
    alike: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        alike[len(example.images)].append(example)
    partners: dict[str, Example] = {}
    for group in alike.values():
        drawn = shuffle(group, seed=0)
        following = [*drawn[1:], drawn[0]]
        partners |= {e.id: other for e, other in zip(drawn, following, strict=True)}
    changed = []
    for example in examples:
        images = partners[example.id].images
        if pictures == "grey" or pixel_hash(partners[example.id]) == pixel_hash(example):
            images = tuple(Image.new("RGB", load_image(i).size, GREY) for i in example.images)
        changed.append(replace(example, images=images))
    return changed
