"""Box formats: the coordinates in which a model writes boxes, and the conversion between them.

A box is (x1, y1, x2, y2) from the top left corner. Three formats are in use, and mixing them up is
the classic mistake (VLM-R1 trained for months on unscaled targets):

| format        | unit                                            | used by                     |
|---------------|-------------------------------------------------|-----------------------------|
| `norm1000`    | thousandths of the image's width and height     | Qwen2-VL, Qwen3-VL;         |
|               |                                                 | Visual-RFT, for any model   |
| `abs`         | pixels of the original image                    | COCO, RefCOCO, VLM-R1 files |
| `abs_resized` | pixels of the image as the vision tower sees it | Qwen2.5-VL                  |

Boxes of data sets are read as "abs" (`pixel_box`) and converted once, into the format of the model.
"Original" is the upright image of `model.image.load_image`. Sizes are (width, height) throughout;
the resized one is `model.image.smart_resize(height, width, ...)[::-1]`.

Sources: Qwen2-VL (arXiv:2409.12191), Qwen2.5-VL (arXiv:2502.13923), VLM-R1 (om-ai-lab/VLM-R1).
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

from runtime.errors import InputError

BoxFormat = Literal["norm1000", "abs", "abs_resized"]
Box = tuple[float, float, float, float]
Size = tuple[int, int]
Shape = Literal["xywh", "xyxy", "extent"]  # what four numbers mean
EDGE = 1.0  # pixels by which rounded annotations may leave the image; they are clipped

DEFAULT_BOX_FORMATS: dict[str, BoxFormat] = {
    "qwen2_vl": "norm1000",
    "qwen2_5_vl": "abs_resized",
    "qwen3_vl": "norm1000",
}


def default_box_format(model_type: str) -> BoxFormat:
    """Return the box format that models of this `model_type` (config.json) were taught.

    Raises:
        InputError: the model type is unknown, so that only the user can tell.
    """
    if model_type not in DEFAULT_BOX_FORMATS:
        defaults = ", ".join(f"{name}: {format}" for name, format in DEFAULT_BOX_FORMATS.items())
        raise InputError(
            f"--coords: no default for model_type {model_type!r} ({defaults}); "
            "name one of norm1000, abs, abs_resized"
        )
    return DEFAULT_BOX_FORMATS[model_type]


def canvas_size(format: BoxFormat, image_size: Size, resized: Size) -> Size:
    """Return (width, height) of the canvas: where the bottom right corner of the image lies."""
    return {"norm1000": (1000, 1000), "abs": image_size, "abs_resized": resized}[format]


def convert_box(
    box: Box, source: BoxFormat, target: BoxFormat, image_size: Size, resized: Size
) -> Box:
    """Return the same region of the image in another format, unrounded: one scale per axis.

    Args:
        image_size: (width, height) of the upright original. resized: of what the model sees.
    """
    old, new = (canvas_size(format, image_size, resized) for format in (source, target))
    return tuple(v * n / o for v, n, o in zip(box, new * 2, old * 2, strict=True))


def round_box(box: Box, size: Size) -> tuple[int, int, int, int]:
    """Return the box in integers, as answers are written: within `size`, at least one unit wide.

    Rounds to the nearest integer, halves up, so that no coordinate inside the canvas moves by more
    than half a unit; only a box that would lose its area is widened to one unit.
    """

    def side(low: float, high: float, limit: int) -> tuple[int, int]:
        low, high = (min(max(math.floor(v + 0.5), 0), limit) for v in (low, high))
        return (low, high) if low < high else (min(low, limit - 1), min(low, limit - 1) + 1)

    (x1, x2), (y1, y2) = side(box[0], box[2], size[0]), side(box[1], box[3], size[1])
    return x1, y1, x2, y2


def pixel_box(values: Any, size: Size, where: str, shape: Shape) -> Box | None:
    """Return (x1, y1, x2, y2) clipped to the image, None if it has no area.

    Raises:
        InputError: not four numbers, negative, or more than EDGE pixels outside of the image (an
            "extent", of a hand-drawn polygon, is clipped wherever it ends).
    """
    is_list = isinstance(values, list) and len(values) == 4
    if not is_list or not all(type(v) in (int, float) and abs(v) < 1e9 for v in values):
        raise InputError(f"{where}: box {values!r:.60} is not four pixel coordinates; repair it")
    x1, y1, x2, y2 = map(float, values)
    if shape == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    width, height = size
    if shape != "extent":
        if min(x1, y1) < -EDGE or min(values[2:]) < 0:
            raise InputError(f"{where}: box {values} is negative; repair the annotation")
        other = {"xywh": "x1, y1, x2, y2", "xyxy": "x, y, width, height"}[shape]
        fix = f"is it {other}, normalised, or made for another image? Convert it"
        ends_early = x2 < x1 or y2 < y1
        if ends_early or x2 > width + EDGE or y2 > height + EDGE:
            what = "ends before it begins" if ends_early else f"leaves the image of {size}"
            raise InputError(f"{where}: box {values}, read as {shape}, {what}; {fix}")
    x1, x2 = max(x1, 0.0), min(x2, float(width))
    y1, y2 = max(y1, 0.0), min(y2, float(height))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def warn_if_normalised(boxes: Iterable[tuple[Box, Size]]) -> None:
    """Print one line if there are images above 2000 pixels, and none of their boxes leaves 1000.

    Such boxes in pixels are possible, but more likely they are `norm1000`.
    """
    on_large = [box for box, size in boxes if max(size) > 2000]
    if on_large and max(map(max, on_large)) <= 1000:
        print(
            f"data: all {len(on_large)} boxes on images above 2000 pixels end below 1000: "
            "are they thousandths of the image and not pixels? Then convert them"
        )
