"""What the box tasks share: targets in the model's box format, and COCO's average precision.

Intersection over union does not change when both axes are scaled: the *targets* are written once in
the box format of the model (`--coords`, by default what its family was taught:
data/box_formats.py), and compared there. Next: tasks/det.py.
"""

import contextlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from answers import Box, parse_answer, parse_boxes
from config import TaskConfig
from data.answer_forms import ANY_CANVAS, Form, corners
from data.box_formats import (
    BoxFormat,
    Size,
    canvas_size,
    convert_box,
    default_box_format,
    round_box,
)
from data.examples import Example
from data.files import SkipLog, optional_import
from data.frames import Placed, decide, describe, fits, why_outside
from data.garden.questions import NO_OBJECTS
from data.paths import shown
from data.pictures import size_of
from model.image import ImageConfig, smart_resize
from runtime.errors import InputError
from tasks.scenes import Splits, read_targets, split_examples

_THOUSANDTHS = re.compile(r"\b0?\s*(?:-|to|and|,)\s*(?:1000|999)\b|normali[sz]ed", re.IGNORECASE)
BOX_ANSWER = "Answer with a JSON list of"  # how `box_instruction` begins


def box_list(boxes: Sequence[Sequence[int]]) -> str:
    """A detection answer in Visual-RFT's grammar, in JSON."""
    items = [{"Position": list(box), "Confidence": 1.0} for box in boxes]
    return json.dumps(items) if items else NO_OBJECTS


def boxes_of(answer: str | None, example: Example) -> list[Box]:
    """The well-formed boxes of an answer, on the example's canvas."""
    boxes, _ = parse_boxes(answer, example.canvas) or ([], 1)
    return boxes


def model_box_format(cfg: TaskConfig, model_type: str) -> BoxFormat:
    """The format in which the model writes boxes: `--coords`, or that of its family.

    Raises InputError for a family without a known one, for which the user has to say it.
    """
    return default_box_format(model_type) if cfg.coords == "auto" else cfg.coords


def box_rows(cfg: TaskConfig, form: Form, image_cfg: ImageConfig | None) -> Splits:
    """Splits of the rows that `--data` names, their boxes in one frame, decided for all of them.

    Rows with a box outside of its picture are skipped and counted. Raises InputError for boxes
    that are certainly in another frame (data/frames.py).
    """
    schema, examples = read_targets(cfg, form)
    resized = resizer(image_cfg)
    placed = {
        e.id: [Placed(e.id, box, size_of(e.images[0]), e.images[0]) for box in corners(e.target)]
        for e in examples
    }
    by_default: BoxFormat = examples[0].box_format if examples else "norm1000"
    about = (cfg.data_coords, by_default, f"{schema} rows", cfg.data, cfg.max_skip, resized)
    frame = decide([*chain.from_iterable(placed.values())], *about)
    skips, kept = SkipLog(), []
    for example in examples:
        outside = [box for box in placed[example.id] if not fits(box, frame, resized)]
        if not outside:
            kept.append(replace(example, box_format=frame))
            continue
        why = describe(outside[0]) + why_outside(outside[0], frame, resized)
        skips.add("box outside of its picture", why)
    skips.check(len(examples), cfg.max_skip)
    return split_examples(kept, cfg)


def refuse_resized(cfg: TaskConfig) -> None:
    """Raise InputError for annotations of pixels that only a model's processor knows."""
    if cfg.data_coords == "abs_resized":
        raise InputError("--data_coords abs_resized: annotations know no model; use abs")


def resizer(image_cfg: ImageConfig | None) -> Callable[[Size], Size]:
    """Size of a picture -> that of what the model sees (the same where transformers decides)."""

    def resized(size: Size) -> Size:
        factor = image_cfg.patch_size * image_cfg.merge_size
        area = image_cfg.min_pixels, image_cfg.max_pixels
        return smart_resize(size[1], size[0], factor, *area)[::-1]

    return resized if image_cfg is not None else lambda size: size


def in_model_format(splits: Splits, cfg: TaskConfig, image_cfg: ImageConfig | None) -> Splits:
    """The splits with the boxes of their targets in `cfg.coords` (not "auto")."""
    train, evaluated = splits
    asked = [e.question for e in train if _THOUSANDTHS.search(e.question)]
    if asked and cfg.coords != "norm1000" and cfg.data != "garden":
        what = f"{len(asked)} of {len(train)} questions seem to ask for thousandths or fractions"
        fix = f"but answers are paid in {cfg.coords}: reword them, or give --coords norm1000"
        print(f"warning: {what}, {fix}; first {shown(asked[0])}")
    return [converted(e, cfg, image_cfg) for e in train], {
        name: [converted(e, cfg, image_cfg) for e in examples]
        for name, examples in evaluated.items()
    }


def box_instruction(box_format: BoxFormat, canvas: tuple[float, float]) -> str:
    """What a question from outside is told: the form that Qwen2.5-VL and Qwen3-VL were taught, and
    what its numbers count."""
    unit = "0-1000 of the image's width and height"
    if box_format != "norm1000":
        unit = "pixels of an image of {:g} x {:g}".format(*canvas)
    item = '{"bbox_2d": [x1, y1, x2, y2], "label": "..."}'
    return f"{BOX_ANSWER} {item}, coordinates in {unit}; [] if there is none."


def converted(example: Example, cfg: TaskConfig, image_cfg: ImageConfig | None = None) -> Example:
    """The example with the boxes of its target in the model's format, `cfg.coords`.

    They come in the example's own format. A target that is one bare box stays one; labels are
    kept. Boxes refer to the upright first image. A question from outside that does not say how to
    answer is told (`box_instruction`).

    Args:
        image_cfg: preprocessing of the model, which decides the size of a resized image.
    """
    source, size = example.box_format, size_of(example.images[0])
    resized = resizer(image_cfg)(size)
    canvas = canvas_size(cfg.coords, size, resized)
    boxes, _ = parse_boxes(example.target, ANY_CANVAS)
    rounded = [
        list(round_box(convert_box(box[:4], source, cfg.coords, size, resized), canvas))
        for box in boxes
    ]
    labels = [{} if box.label is None else {"label": box.label} for box in boxes]
    if len(boxes) == 1 and "{" not in example.target:
        target = json.dumps(rounded[0])
    elif any(labels):
        items = zip(rounded, labels, strict=True)
        target = json.dumps([{"bbox_2d": box} | label for box, label in items])
    else:
        target = box_list(rounded)
    question = example.question
    if cfg.data != "garden" and not re.search("<answer>|bbox|Position", question):
        question = f"{question} {box_instruction(cfg.coords, canvas)}"
    known = dict(box_format=cfg.coords, canvas=canvas)
    read_as = source if cfg.data_coords == "auto" else cfg.data_coords
    known["read_as"] = "" if cfg.data == "garden" else read_as
    return replace(example, question=question, target=target, **known)


def average_precision(examples: list[Example], texts: list[str]) -> dict[str, float]:
    """COCO's mAP (mean over IoU 0.50 to 0.95) and AP50, by pycocotools.

    Every example is a question about one category in one image, and the question, which names the
    category, is COCO's category, together with the label where true boxes have one. Categories
    without a true box in the split do not count, as in COCO. An answer outside the grammar has no
    boxes; a box without confidence has confidence 1.
    """
    coco = optional_import("pycocotools.coco", "pycocotools")
    cocoeval = optional_import("pycocotools.cocoeval", "pycocotools")
    categories: dict[tuple[str, str], int] = {}  # (question, label) -> id
    truths, detections = [], []
    labelled = {  # questions whose true boxes have labels
        question_of(e) for e in examples if any(box.label for box in boxes_of(e.target, e))
    }
    for image_id, (example, text) in enumerate(zip(examples, texts, strict=True), 1):
        question = question_of(example)
        for answer, rows in ((example.target, truths), (parse_answer(text), detections)):
            for box in boxes_of(answer, example):
                name = (question, (question in labelled and box.label) or "")
                row = {"id": len(rows) + 1, "image_id": image_id, "area": area(box), "iscrowd": 0}
                row["category_id"] = categories.setdefault(name, len(categories) + 1)
                row["bbox"] = [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]
                row["score"] = 1.0 if box.confidence is None else box.confidence
                rows.append(row)
    if not detections or not truths:
        return {"mAP": 0.0, "AP50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # the library reports its progress
        truth = coco.COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": k} for k in range(1, len(examples) + 1)],
            "annotations": truths,
            "categories": [{"id": k, "name": str(name)} for name, k in categories.items()],
        }
        truth.createIndex()
        evaluation = cocoeval.COCOeval(truth, truth.loadRes(detections), "bbox")
        params = evaluation.params
        params.areaRng, params.areaRngLbl = params.areaRng[:1], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (thresholds, recalls, categories)
    precision = precision[:, :, precision[0, 0] > -1]
    return {"mAP": float(precision.mean()), "AP50": float(precision[0].mean())}


def question_of(example: Example) -> str:
    """The question without the instruction, which depends on the size of the image."""
    return example.question.partition(BOX_ANSWER)[0]


def area(box: Box) -> float:
    """In square units of the box format."""
    return (box.x2 - box.x1) * (box.y2 - box.y1)


def cumulative_iou(examples: list[Example], texts: list[str]) -> dict[str, float]:
    """LISA's cIoU (arXiv:2308.00692) on boxes: all intersections over all unions of the split.

    An answer that is not exactly one box has no intersection, and its union is the true box.
    """
    intersections, unions = [], []  # as fractions of the canvas
    for example, text in zip(examples, texts, strict=True):
        canvas = example.canvas[0] * example.canvas[1]
        (true,), boxes = boxes_of(example.target, example), boxes_of(parse_answer(text), example)
        intersections.append(0.0)
        unions.append(area(true) / canvas)
        if len(boxes) == 1:
            (box,) = boxes
            width = max(0.0, min(box.x2, true.x2) - max(box.x1, true.x1))
            height = max(0.0, min(box.y2, true.y2) - max(box.y1, true.y1))
            intersections[-1] = width * height / canvas
            unions[-1] += area(box) / canvas - intersections[-1]
    return {"cIoU": float(np.sum(intersections) / np.sum(unions))}
