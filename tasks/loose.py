"""Loose metrics: how the field's reference code counts; beside the strict metric, not paid.

Each function states whose rule it is. They flatter: with `loose_name_correct` the empty answer is
right. They are here so that a strict number is never mistaken for a published one.
"""

import re

from answers import parse_boxes, parse_name, parse_number
from rewards import CANVAS, iou, target_value, well_formed_box

# What is enough for each task's loose metric, in words.
RULES = dict.fromkeys(("cls", "vqa"), "a part of the name is enough, or a text that holds it")
RULES |= dict.fromkeys(("count", "measure"), "the number anywhere in the text is enough")
RULES |= {"entail": "the first yes or no in the text counts", "change": "partial credit for calls"}


def loose_name_correct(text: str, target: str) -> float:
    """Return 1.0 if answer or target contains the other: Visual-RFT's rule.

    `accuracy_reward` in src/virft/src/open_r1/grpo_classification.py of Liuziyu77/Visual-RFT, less
    its symbolic maths: take the first answer block that opens and closes on one line, or else the
    whole text; strip, lower, drop spaces and underscores; accept a substring in either direction.

    Raises:
        ValueError: the target is empty after normalisation, or longer than `MAX_NAME_CHARS`.
    """
    target_value(parse_name, target)
    answer = text
    for line in text.split("\n"):
        _, opened, rest = line.partition("<answer>")
        content, closed, _ = rest.partition("</answer>")
        if opened and closed:
            answer = content
            break
    answer, target = (s.strip().replace(" ", "").replace("_", "").lower() for s in (answer, target))
    return 1.0 if target in answer or answer in target else 0.0


def loose_number_correct(text: str, target: str, tolerance: float = 0.0) -> float:
    """Return 1.0 if any number of the whole completion is the target: R1-V's rule, less its
    symbolic maths. It reads the thoughts too, so whoever mentions many numbers is often right.
    `tolerance` is relative, as in `rewards.number_reward`."""
    true = target_value(parse_number, target)
    numbers = re.findall(r"(?<!\d)[+-]?\d+(?:,\d{3})*(?:\.\d+)?", text, re.ASCII)
    near = tolerance * abs(true)
    return float(any(abs(float(number.replace(",", "")) - true) <= near for number in numbers))


def loose_yes_no(text: str, target: str) -> float:
    """Return 1.0 if the first "yes" or "no" in the answer is the first one in the target.

    `yes_no_reward` of om-ai-lab/VLM-R1: the first answer block, or else the whole text. It looks
    inside words, so "I know it is yes" says no, and so does the target "unknown".
    """
    block = _first_block(text)
    match = re.search("yes|no", (text if block is None else block).lower())
    true = re.search("yes|no", target.lower())
    if true is None:
        raise ValueError(f"target {target[:100]!r} says neither yes nor no")
    return 1.0 if match and match[0] == true[0] else 0.0


def first_box_iou(text: str, target: str, canvas: tuple[float, float] = CANVAS) -> float:
    """Return the IoU of the first [x1, y1, x2, y2] of integers in the first answer block, or 0.0.

    The rule of VLM-R1 for referring expressions: further boxes and words around them are ignored.
    """
    (true,) = target_value(well_formed_box, target, canvas)
    match = re.search(r"\[\d+,\s*\d+,\s*\d+,\s*\d+\]", _first_block(text) or "", re.ASCII)
    boxes, _ = parse_boxes(match and match[0], canvas) or ([], 1)
    return iou(boxes[0], true) if boxes else 0.0


def _first_block(text: str) -> str | None:
    _, _, rest = text.partition("<answer>")
    answer, closed, _ = rest.partition("</answer>")
    return answer if closed else None
