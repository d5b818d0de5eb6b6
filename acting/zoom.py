"""Looking closer: the model asks for a region of the picture and is shown it, in full detail.

    call          <zoom>[x1, y1, x2, y2]</zoom>, in the box format of the example
    observation   <look>, the region of the *original* picture, </look>; or <look>, a few words,
                  </look> where there is no such region

What is paid beside the task's own reward is a bonus for a look that was needed, hit the region that
matters, and was followed by the right answer: a bonus for every look teaches to look always, and
none at all to look never (DeepEyes, arXiv:2505.14362; Pixel Reasoner, arXiv:2505.15966).

Next: acting/lookup.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from PIL import Image

from acting.environment import COUNTED, Asked, Outcome, Region, Tool
from answers import Box, box_items, parse_boxes
from data.box_formats import Size
from data.examples import Example, Picture
from data.pictures import size_of
from model.image import load_image

MIN_SIDE = 16  # pixels of the original: smaller regions are widened
ENLARGED = 1.5  # times: a small region is shown larger, so that it fills more image tokens
MAX_ASPECT = 100.0  # of a region in pixels; a processor refuses 200
LARGE = 0.5  # share of the picture from which on a region is no look
COVERED = 0.5  # share of the region that matters, for a look to hit it


@dataclass(frozen=True)
class Sight:
    """What `Example.world` holds: the picture in full, which is seen reduced at first.

    Attributes:
        view: width and height of the first view.
        region: what has to be looked at for the answer; None: nothing.
        is_known: whether anybody knows that.
    """

    original: Picture
    view: Size
    region: Region | None = None
    is_known: bool = True


class Zoom(Tool):
    """The environment.

    Args:
        is_right: (completion, example) -> whether it answers rightly.
        bonus: for a needed look that helped.
    """

    name, budget = "zoom", 3
    told = MappingProxyType(
        {
            "malformed": "no such box",
            "outside": "nothing there",
            "repeated": "seen already",
            "late": "no more looks",
        }
    )

    def __init__(self, is_right: Callable[[str, Example], bool], bonus: float):
        self.is_right = is_right
        self.weights = MappingProxyType({"look_bonus": bonus} | COUNTED)

    def read(self, argument: str, state: Asked) -> tuple[Outcome, Region | None]:
        """The region of a box."""
        box = read_box(argument, state.example.canvas)
        if not isinstance(box, Box):
            return box or "malformed", None
        width, height = state.example.canvas
        region = (box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height)
        (x1, x2), (y1, y2) = in_pixels(region, size_of(state.example.world.original))
        if max(x2 - x1, y2 - y1) > MAX_ASPECT * min(x2 - x1, y2 - y1):
            return "malformed", None
        return ("repeated" if region in state.done else "done"), region

    def show(self, state: Asked) -> tuple[Image.Image]:
        """The region, cut out and enlarged."""
        sight = state.example.world
        return (enlarged(cut(sight.original, state.done[-1]), sight.view),)

    def region(self, state: Asked) -> Region:
        """The region itself."""
        return state.done[-1]

    def reward(self, example: Example, state: Asked, text: str) -> dict[str, float]:
        """`look_bonus` is 1 or 0, as described above; the others are counts."""
        hit = any(hits(region, example.world.region) for region in state.done)
        bonus = float(hit and self.is_right(text, example))
        return {"look_bonus": bonus} | self.counts(state, text)


def read_box(argument: str, canvas: tuple[float, float]) -> Box | Outcome | None:
    """The one box of a call, clipped to the canvas; "outside" where nothing is left of it; None
    for anything else."""
    boxes, malformed = parse_boxes(argument, canvas) or ([], 0)
    if len(boxes) == 1 and not malformed:
        return boxes[0]
    if boxes or malformed != 1:
        return None
    try:
        (corners,) = box_items(argument)
        x1, y1, x2, y2 = corners
        is_box = all(type(x) is float and math.isfinite(x) for x in corners)
        is_box = is_box and x1 < x2 and y1 < y2
        return "outside" if is_box else None
    except (TypeError, ValueError):  # no list of four numbers
        return None


def cut(original: Picture, region: Region) -> Image.Image:
    """The region of a picture, at least MIN_SIDE pixels wide and high where the picture is."""
    image = load_image(original)
    (x1, x2), (y1, y2) = in_pixels(region, image.size)
    return image.crop((x1, y1, x2, y2))


def enlarged(crop: Image.Image, view: Size) -> Image.Image:
    """The crop ENLARGED times as wide and high, if it has no more pixels then than the first view:
    more would be taken away again."""
    width, height = (round(side * ENLARGED) for side in crop.size)
    if width * height > view[0] * view[1]:
        return crop
    return crop.resize((width, height), Image.Resampling.BICUBIC)


def in_pixels(region: Region, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The region of a picture of this (width, height): first and last column, first and last row,
    widened to MIN_SIDE."""
    return [_widened(region[k], region[k + 2], side) for k, side in enumerate(size)]


def _widened(low: float, high: float, size: int) -> tuple[int, int]:
    """The side of a region in whole pixels: at least MIN_SIDE of them, inside the picture."""
    first, last = round(low * size), round(high * size)
    length = min(max(last - first, MIN_SIDE), size)
    first = min(max((first + last - length) // 2, 0), size - length)
    return first, first + length


def hits(region: Region, target: Region | None) -> bool:
    """Whether a look at a region was needed, shows half of what matters, and is a look."""
    if target is None or area(region) >= LARGE:
        return False
    sides = [min(region[k + 2], target[k + 2]) - max(region[k], target[k]) for k in (0, 1)]
    return min(sides) > 0 and sides[0] * sides[1] >= COVERED * area(target)


def area(region: Region) -> float:
    """As a share of the picture."""
    return (region[2] - region[0]) * (region[3] - region[1])
