"""In which frame the boxes of a data set are: decided for the whole set, said, and doubted.

    frame = decide(boxes, "auto", "norm1000", "Visual-RFT rows", "rows.json")

The flag `--data_coords` decides, else the default of the schema. The data can only contradict: an
error where that is certain, one line that begins with "warning" where it is plausible. A flag that
is given silences doubts, but for boxes outside of their pictures. Frames: data/box_formats.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from config import MAX_SKIP
from data.box_formats import EDGE, BoxFormat, Size, canvas_size
from data.examples import Picture
from data.files import SkipLog
from data.paths import named, shown
from data.pictures import why_other_size
from runtime.errors import InputError

NAMES = {
    "norm1000": "thousandths of the picture",
    "norm100": "per cent of the picture",
    "norm1": "fractions of the picture, 0 .. 1",
    "abs": "pixels of the original picture",
    "abs_resized": "pixels of the resized picture",
}
MANY = 20  # boxes: what all of them have in common is no accident
MOST = 0.9  # of the boxes
FAR = 0.8  # of a canvas: some of many boxes reach that far
RARE = 0.05  # probability: what is rarer under a frame speaks against it
TOUCHING = 0.03  # of the boxes: by chance one in 250 ends at a given border


class Placed(NamedTuple):
    """A box as it is written: x1, y1, x2, y2 in any frame, on a picture of a size in pixels."""

    where: str
    corners: tuple[float, float, float, float]
    size: Size
    picture: Picture | None = None


def decide(
    boxes: Sequence[Placed],
    flag: str,
    default: BoxFormat,
    schema: str,
    data: str,
    max_skip: float = MAX_SKIP,
    resized: Callable[[Size], Size] | None = None,
    hint: str = "",
) -> BoxFormat:
    """Return the frame of all boxes of a source, and print it with who decided.

    Args:
        flag: `--data_coords`. default: what the schema prescribes. resized: size of a picture ->
            that of what the model sees, for "abs_resized". hint: what else may be wrong.
    Raises:
        InputError: the data certainly contradict the frame.
    """
    frame = default if flag == "auto" else flag
    by = f"by default of {schema}" if flag == "auto" else "by --data_coords"
    change = "; --data_coords to change" if flag == "auto" else ""
    print(f"boxes of {shown(Path(data).name)}: {NAMES[frame]} ({frame}), {by}{change}")
    outside = [box for box in boxes if not fits(box, frame, resized)]
    if outside and (2 * len(outside) >= len(boxes) or len(outside) > max(2, max_skip * len(boxes))):
        others = [name for name in NAMES if name not in (frame, "abs_resized")]
        others = [name for name in others if all(fits(box, name) for box in boxes)]
        hint = hint or why_outside(outside[0], frame, resized).removeprefix("; ")
        fix = hint or "name their frame with --data_coords, or repair them"
        if others:
            fix = f"{hint + '; ' if hint else ''}they fit as {' or '.join(others)}: --data_coords"
        raise InputError(
            f"--data {named(data)}: {len(outside)} of {len(boxes)} boxes lie outside of their "
            f"pictures, read as {NAMES[frame]} ({frame}), first {describe(outside[0])}; {fix}"
        )
    tiny = [box for box in boxes if max(box.corners) <= 1 and _has_area(box)]
    is_open = flag == "auto" and frame != "norm1"
    if is_open and max(2, max_skip * len(boxes)) < len(tiny) < len(boxes):
        what = f"{len(tiny)} of {len(boxes)} boxes end at or below 1, others do not: two frames?"
        fix = f"write all in one, or give --data_coords {frame} if they are right"
        raise InputError(f"--data {named(data)}: {what} First {describe(tiny[0])}; {fix}")
    doubts = _doubts(boxes, frame) or _doubts_of_a_half(boxes, frame)
    doubts = doubts or _doubts_at_borders(boxes, frame)
    for other, what, is_certain in doubts if flag == "auto" else []:
        line = f"{what}: are they {NAMES[other]} ({other})?"
        if is_certain:
            fix = f"say so with --data_coords {other}, or --data_coords {frame} if they are right"
            raise InputError(f"--data {named(data)}: {line} {fix}")
        print(f"warning: {named(data)}: {line} Then give --data_coords {other}")
    return frame


def refuse_half(skips: SkipLog, total: int) -> None:
    """Raise InputError if half of the boxes or more are none: then the convention is another."""
    if 2 * skips.counts["no box"] >= max(total, 1):
        what = f"{skips.counts['no box']} of {total} boxes cannot be read"
        raise InputError(f"--data: {what}: {'; '.join(skips.first)}")


def describe(box: Placed) -> str:
    """Where a box is, and on what."""
    numbers = ", ".join(f"{value:g}" for value in box.corners)
    return f"{box.where}: [{numbers}] on a picture of {box.size[0]} x {box.size[1]}"


def why_outside(
    box: Placed, frame: BoxFormat, resized: Callable[[Size], Size] | None = None
) -> str:
    """What an EXIF orientation has to do with a box outside of its picture; "" for nothing."""
    turned = box.size[::-1]
    if box.picture is None or not fits(box._replace(size=turned), frame, resized):
        return ""
    return why_other_size(box.picture, turned)


def fits(box: Placed, frame: BoxFormat, resized: Callable[[Size], Size] | None = None) -> bool:
    """Whether a box, read in a frame, lies in its picture, up to a pixel or a thousandth."""
    width, height = canvas(frame, box.size, resized)
    edge = EDGE if frame in ("abs", "abs_resized") else max(width, height) / 1000
    x1, y1, x2, y2 = box.corners
    return -edge <= x1 and -edge <= y1 and x2 <= width + edge and y2 <= height + edge


def canvas(
    frame: BoxFormat, size: Size, resized: Callable[[Size], Size] | None = None
) -> tuple[float, float]:
    """Width and height of the plane that the coordinates of a frame span."""
    return canvas_size(frame, size, resized(size) if resized and frame == "abs_resized" else size)


def _has_area(box: Placed) -> bool:
    return box.corners[0] < box.corners[2] and box.corners[1] < box.corners[3]


Doubt = tuple[BoxFormat, str, bool]  # another frame, what suggests it, is it certain


def _doubts_of_a_half(boxes: Sequence[Placed], frame: BoxFormat) -> list[Doubt]:
    """Doubts about either half of the data: two sources, one behind the other."""
    for half, part in (("first", boxes[: len(boxes) // 2]), ("second", boxes[len(boxes) // 2 :])):
        if len(part) >= MANY and (found := _doubts(part, frame)):
            other, what, _ = found[0]
            return [(other, f"of the {half} half of the boxes, {what}", False)]
    return []


def _doubts_at_borders(boxes: Sequence[Placed], frame: BoxFormat) -> list[Doubt]:
    """Boxes that end exactly at the border of their picture, if they are read in another frame.

    Objects are often cut by the border, so that some boxes of a frame end there, whatever the
    order in which two sources were mixed.
    """
    other: BoxFormat = {"norm1000": "abs", "abs": "norm1000"}.get(frame)
    if other is None:
        return []
    count = sum(_touches(box, other) and not _touches(box, frame) for box in boxes)
    if count < max(3, TOUCHING * len(boxes)):
        return []
    what = f"{count} of {len(boxes)} boxes end exactly at the border of their picture"
    return [(other, f"{what} if they are {NAMES[other]}", False)]


def _touches(box: Placed, frame: BoxFormat) -> bool:
    """Whether a box lies in its picture and ends at its right or lower border, within a unit."""
    (width, height), (_, _, right, bottom) = canvas(frame, box.size), box.corners
    return fits(box, frame) and (abs(right - width) <= 1 or abs(bottom - height) <= 1)


def _doubts(boxes: Sequence[Placed], frame: BoxFormat) -> list[Doubt]:
    """Other frames that the whole set suggests."""
    boxes = [box for box in boxes if _has_area(box)]
    if not boxes:
        return []
    n, highest = len(boxes), max(max(box.corners) for box in boxes)
    right, bottom = max(b.corners[2] for b in boxes), max(b.corners[3] for b in boxes)
    smallest = min(min(box.size) for box in boxes)
    if frame != "norm1" and highest <= 1:
        return [("norm1", f"all {n} boxes end at or below 1, normalised", True)]
    if frame in ("abs", "norm1000") and highest <= 100 and smallest > 200:
        far = min(right, bottom) >= 100 * FAR
        if n >= 3:
            return [("norm100", f"all {n} boxes end below 100", far and n >= MANY)]
    if frame == "norm1000":
        small = [box for box in boxes if max(box.size) < 900]
        inside = sum(fits(box, "abs") for box in boxes)
        if len(small) >= 3 and inside >= MOST * n:
            reach = [max(b.corners[2 + k] / b.size[k] for b in boxes) for k in (0, 1)]
            is_certain = inside == n and min(reach) >= FAR
            is_certain = is_certain and len([b for b in small if max(b.size) <= 700]) >= MANY
            what = f"{inside} of {n} boxes end inside their pictures if they are pixels"
            return [("abs", what, is_certain)]
        if inside == n and _beyond_is_missed(boxes):
            what = f"all {n} boxes end inside their pictures if they are pixels"
            return [("abs", what, False)]
    if frame == "abs":
        large = [box for box in boxes if max(box.size) > 1300]
        is_huge = any(max(box.size) > 2000 for box in large)
        if (is_huge or len(large) >= 5) and max(max(box.corners) for box in large) <= 1000:
            is_certain = len(large) >= MANY and min(right, bottom) >= 1000 * FAR
            is_certain = is_certain and min(min(box.size) for box in large) > 1300
            what = f"all {len(large)} boxes on pictures above 1300 pixels end below 1000"
            return [("norm1000", what, is_certain)]
    return []


def _beyond_is_missed(boxes: Sequence[Placed]) -> bool:
    """Whether thousandths would hardly all end below the width and height in pixels, as they do.

    Taken for granted is only half of an even spread: of thousandths on a side of 720 pixels, 14 %
    end beyond 720.
    """
    probability = 1.0
    for box in boxes:
        for side in box.size:
            probability *= 1 - max(0.0, 1 - side / 1000) / 2
    return probability < RARE
