"""Are answers and targets in the same frame? Read the boxes in every other one, and compare.

    overlap as asked 0.02, if the answers are pixels of the original picture 0.61

Answers in one frame and targets in another can look the same: where data are read as pixels and the
model writes thousandths, both "the answers are pixels" and "the data are thousandths" fit equally
well. All readings that fit best are told.

Next: checks/verdict.py.
"""

import math
from collections.abc import Callable, Sequence
from statistics import mean
from typing import NamedTuple

from answers import Box, box_items, parse_answer, parse_boxes
from data.answer_forms import ANY_CANVAS
from data.box_formats import Size, convert_box
from data.examples import Example
from data.frames import NAMES
from data.pictures import size_of
from rewards import iou

Corners = tuple[float, float, float, float]
KEYS = ("Position", "bbox_2d", "position", "bbox", "box_2d", "box")
MOST_BOXES = 20  # of an answer
WRITTEN = ("norm1000", "abs", "abs_resized")  # by models: what --coords takes
EACH = 4  # completions of a question: enough to tell frames apart
SAME = 1e-3  # of IoU: readings that differ by less fit equally well


class Overlap(NamedTuple):
    """Mean IoU of answers with the nearest target: as asked, and in the best other reading."""

    asked: float
    other: float
    reading: str  # of the other, in words; several where they cannot be told apart
    fix: str


def corners_of(answer: str | None) -> list[Corners]:
    """The four numbers of every item of an answer, whatever they mean."""
    try:
        items = box_items((answer or "").strip())
    except ValueError:
        return []
    found = []
    for item in items[:MOST_BOXES]:
        four = item
        if isinstance(item, dict):
            four = next((item[key] for key in KEYS if key in item), None)
        is_box = isinstance(four, list) and len(four) == 4
        if is_box and all(isinstance(v, float) and math.isfinite(v) for v in four):
            found.append(tuple(four))
    return found


def _readings(example: Example, resized: Size) -> dict[tuple[str, str], Callable[..., Corners]]:
    """(in words, what to change) -> corners as answered -> corners to compare with the target.

    Targets that were read wrongly are off by one factor per axis; the answer is divided by it.
    """
    own, read_as, size = example.box_format, example.read_as, size_of(example.images[0])

    def between(source: str, target: str) -> Callable[..., Corners]:
        return lambda *box: convert_box(box, source, target, size, resized)

    found = {
        ("x, y, width, height", "ask for corners"): lambda x, y, w, h: (x, y, x + w, y + h),
        ("y, x, y, x", "ask for x1, y1, x2, y2"): lambda y1, x1, y2, x2: (x1, y1, x2, y2),
    }
    for frame, words in NAMES.items():
        if read_as and frame != read_as:
            what = f"the numbers of the data are {words} ({frame})"
            fix = f"--data_coords {frame}{' (rows alone)' if frame == 'abs_resized' else ''}"
            found[what, fix] = between(read_as, frame)
        if frame != own:
            fix = f"--coords {frame}" if frame in WRITTEN else "ask for other units"
            found[f"the answers are {words} ({frame})", fix] = between(frame, own)
    return found


def _overlap(boxes: Sequence[Corners], true: Sequence[Box]) -> float:
    """Mean over boxes of the largest IoU with a true one; boxes without area overlap nothing."""
    boxes = [Box(*box) for box in boxes]
    return mean(max(iou(box, other) for other in true) for box in boxes)


def overlaps(
    examples: Sequence[Example], texts: Sequence[str], resized: Callable[[Size], Size]
) -> Overlap | None:
    """Compare all readings over completions (the same number of each question); None: no box.

    Args:
        resized: size of a picture -> that of what the model sees.
    """
    K, asked, others = len(texts) // len(examples), [], {}
    for n, example in enumerate(examples):
        true = (parse_boxes(example.target, ANY_CANVAS) or ([], 0))[0]
        if not true:
            continue
        readings = _readings(example, resized(size_of(example.images[0])))
        for text in texts[n * K : n * K + min(K, EACH)]:
            if boxes := corners_of(parse_answer(text)):
                asked.append(_overlap(boxes, true))
                for key, read in readings.items():
                    others.setdefault(key, []).append(_overlap([read(*b) for b in boxes], true))
    if not asked:
        return None
    found = {key: mean(values) for key, values in others.items()}
    best = max(found.values())
    alike = [key for key, value in found.items() if value >= max(best - SAME, SAME)]
    readings, fixes = zip(*(alike or list(found)[:1]), strict=True)
    return Overlap(mean(asked), best, " or ".join(readings), " or ".join(fixes))
