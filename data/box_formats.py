"""Box formats: the coordinates in which a model writes boxes, and the conversion between them.

A box is (x1, y1, x2, y2) from the top left corner. Mixing up units is the classic mistake (VLM-R1
trained for months on unscaled targets). Models write one of the first three:

| format        | unit                                            | used by                     |
|---------------|-------------------------------------------------|-----------------------------|
| `norm1000`    | thousandths of the image's width and height     | Qwen2-VL, Qwen3-VL;         |
|               |                                                 | Visual-RFT, for any model   |
| `abs`         | pixels of the original image                    | COCO, RefCOCO, VLM-R1 files |
| `abs_resized` | pixels of the image as the vision tower sees it | Qwen2.5-VL                  |
| `norm1`       | fractions of width and height, 0 .. 1           | YOLO and its converters     |
| `norm100`     | per cent of width and height                    | Label Studio                |

Boxes of data sets are read as "abs" (`pixel_box`) and converted once, into the format of the model.
"Original" is the upright image of `model.image.load_image`. Sizes are (width, height) throughout;
the resized one is `model.image.smart_resize(height, width, ...)[::-1]`.

Sources: Qwen2-VL (arXiv:2409.12191), Qwen2.5-VL (arXiv:2502.13923), VLM-R1 (om-ai-lab/VLM-R1).
"""

import math
from typing import Any, Literal

from runtime.errors import InputError

BoxFormat = Literal["norm1000", "abs", "abs_resized", "norm1", "norm100"]
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
    sizes = {"norm1000": (1000, 1000), "norm100": (100, 100), "norm1": (1, 1)}
    return (sizes | {"abs": image_size, "abs_resized": resized})[format]


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


def raw_box(values: Any, where: str, shape: Shape) -> Box:
    """Return (x1, y1, x2, y2) of a box as data write it, in whatever frame.

    Raises:
        InputError: not four numbers, or a side of negative length.
    """
    is_list = isinstance(values, list) and len(values) == 4
    if not is_list or not all(type(v) in (int, float) and abs(v) < 1e9 for v in values):
        raise InputError(f"{where}: box {values!r:.60} is not four numbers; repair it")
    x1, y1, x2, y2 = map(float, values)
    if shape == "xywh":
        if min(x2, y2) < 0:
            raise InputError(f"{where}: box {values} has a negative side; repair the annotation")
        return x1, y1, x1 + x2, y1 + y2
    if x2 < x1 or y2 < y1:
        fix = "is it x, y, width, height? Convert it"
        raise InputError(f"{where}: box {values}, read as {shape}, ends before it begins; {fix}")
    return x1, y1, x2, y2


def clipped(box: Box, size: Size) -> Box | None:
    """The part of a box of pixels that is in its picture, None if that has no area."""
    x1, y1, x2, y2 = box
    x1, x2 = max(x1, 0.0), min(x2, float(size[0]))
    y1, y2 = max(y1, 0.0), min(y2, float(size[1]))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None
