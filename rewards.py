"""Verifiable rewards: a completion goes in, a number comes out. Read this file first.

The policy sees an image and a question and writes, for example,

    <think>six pink petals round a yellow eye</think> <answer>dog rose</answer>

and plain functions, no learned model, decide what that is worth. GRPO raises whatever they pay: a
reward that accepts part of a name teaches the policy to answer with one letter, and one that
accepts the empty answer teaches it silence. Hence four rules:

1. The answer is parsed once, by answers.py, and every correctness reward reads that span only.
2. An answer must be right as a whole. A part of it, or a list that contains it, is wrong.
3. Every part of a reward is in [0, 1], and no text earns more than the exact answer.
4. Malformed text scores 0 and never raises. A target outside the grammar, an unknown mode or a
   negative weight is our mistake: ValueError.

There is one reward per kind of answer, all with one signature:

    f(text, target, mode="think", weights=WEIGHTS, dense=0.0, ...) -> Reward

- `target` is the right answer, written in the grammar of its kind (answers.py).
- `mode` names the blocks that `format_reward` expects; `format` is a part of every reward.
- `dense`, in [0, 1], scales the partial credit of a nearly right answer; 0: exact answers only.

Names and boxes follow Visual-RFT (arXiv:2503.01785), numbers and calls Reason-RFT
(arXiv:2503.20752), with departures where theirs pay for nothing. Their looser rules are in
tasks/loose.py: reported beside ours, never paid. Next: tasks/cls.py.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from answers import (
    MAX_COMPLETION_CHARS,
    TAGS,
    Box,
    parse_answer,
    parse_boxes,
    parse_calls,
    parse_choice,
    parse_name,
    parse_number,
    parse_sequence,
)

# The blocks of a completion, in order. "direct" is answering without thinking, "steps" the
# four-step chain of thought of LLaVA-CoT (arXiv:2411.10440) with its conclusion as the answer.
FORMATS = {
    "think": ("think", "answer"),
    "direct": ("answer",),
    "steps": ("summary", "caption", "reasoning", "answer"),
}
# The default weight of each part; a reward reads the weights of the parts that it has.
WEIGHTS = MappingProxyType({"correct": 1.0, "iou": 1.0, "confidence": 1.0, "format": 0.5})
CANVAS = (1000, 1000)  # of boxes: Qwen2-VL and Visual-RFT write thousandths of width and height


@dataclass(frozen=True)
class Reward:
    """What a completion earned: the total, which GRPO sees, and the parts that it is made of, each
    in [0, 1] and unweighted, so that their curves mean the same in every run."""

    total: float
    parts: dict[str, float]


def weighted(parts: dict[str, float], weights: Mapping[str, float]) -> Reward:
    """Return the reward with total = sum of weight x part, in the order of the parts.

    Raises:
        ValueError: a part has no weight, or the weights are negative or not finite (in sum).
    """
    if missing := parts.keys() - weights.keys():
        raise ValueError(f"weights name {sorted(weights)}, not {sorted(missing)}")
    used = [weights[name] for name in parts]
    if not math.isfinite(sum(used)) or any(weight < 0 for weight in used):
        raise ValueError(f"weights must be finite and >= 0, got {dict(weights)}")
    return Reward(total=sum(weights[name] * part for name, part in parts.items()), parts=parts)


def format_reward(text: str, mode: str = "think") -> float:
    """Return 1.0 if the text is exactly the blocks of the mode (`FORMATS`), in order, else 0.0.

    Each block contains a letter or digit, so that dots and invisible characters do not pass for
    thoughts (except the answer `[]`), and no further tag, so that nothing is nested or repeated.
    Nothing but white space is around the blocks. Beyond `MAX_COMPLETION_CHARS` a text earns 0.

    Raises:
        ValueError: unknown mode.
    """
    if mode not in FORMATS:
        raise ValueError(f"mode={mode!r} is not one of {', '.join(FORMATS)}")
    if len(text) > MAX_COMPLETION_CHARS:
        return 0.0
    pieces = re.split(f"({'|'.join(TAGS)})", text)  # around, <tag>, block, </tag>, around, ...
    around, tags, blocks = pieces[0::4], pieces[1::2], pieces[2::4]
    expected = [tag for name in FORMATS[mode] for tag in (f"<{name}>", f"</{name}>")]
    if tags != expected or any(map(str.strip, around)):
        return 0.0
    if blocks[-1].strip() == "[]":
        blocks.pop()
    return 1.0 if all(map(_has_letter, blocks)) else 0.0


def _has_letter(text: str) -> bool:
    """Whether there is a letter or digit. Hangul fillers are letters by name but print nothing."""
    return any(char.isalnum() and char not in "\u115f\u1160\u3164\uffa0" for char in text)


@lru_cache(maxsize=65_536)
def target_value(parse: Callable, target: str, *arguments) -> Any:
    """The value of a target, parsed once instead of once per completion. Do not modify it."""
    value = parse(target, *arguments)
    if value is None:
        raise ValueError(f"target {target[:100]!r} is outside the grammar of {parse.__name__}")
    return value


def _answer_reward(text, mode, weights, dense, is_exact: bool, partial_credit: float) -> Reward:
    """The reward of an answer that is either exact or earns `dense` times its partial credit."""
    _require_fraction("dense", dense)
    correct = 1.0 if is_exact else dense * partial_credit
    return weighted({"correct": correct, "format": format_reward(text, mode)}, weights)


def _require_fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}={value!r} is not in [0, 1]")


def classification_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0
) -> Reward:
    """Reward the name of the class of an image. Parts:

    - `correct`: 1.0 if the answer is the target's whole name (`name_correct`). Partial credit: the
      F1 score of its words, if it has no more words than the target. A list that contains the
      right name has more words, so listing every class earns nothing.
    - `format`: the text is the blocks of `mode` and nothing else (`format_reward`).

    The two are independent: good form around a wrong name moves a base model that never uses tags.
    """
    answer = parse_answer(text)
    is_exact, f1 = name_correct(answer, target) == 1.0, _word_f1(answer, target)
    return _answer_reward(text, mode, weights, dense, is_exact, f1)


def name_correct(answer: str | None, target: str) -> float:
    """Return 1.0 if the answer is the target's whole name after `normalise_name`, else 0.0.

    `name_correct(parse_answer(text), target)` is the strict accuracy that evaluation reports.

    Raises:
        ValueError: the target is empty after normalisation, or longer than `MAX_NAME_CHARS`.
    """
    return 1.0 if parse_name(answer) == target_value(parse_name, target) else 0.0


def _word_f1(answer: str | None, target: str) -> float:
    name, true_name = parse_name(answer) or "", target_value(parse_name, target)
    if len(re.findall(r"\w+", name)) > len(re.findall(r"\w+", true_name)):
        return 0.0  # here "rose,daisy" is two words
    words, true_words = Counter(name.split()), Counter(true_name.split())
    return 2 * (words & true_words).total() / (words.total() + true_words.total())


def number_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0, tolerance=0.0
) -> Reward:
    """Reward a number. Parts: `correct`, `format`.

    With d = |answer - target|, `correct` is 1.0 for d <= tolerance x |target|, tolerance in [0, 1].
    Partial credit:
    - tolerance > 0: Reason-RFT's cosine taper, from 1 at that distance to 0 at four times it (their
      5 % and 20 %). Of the target 0, only 0 is near; their rule pays nothing there.
    - tolerance = 0: exp(-d), for counts.
    """
    _require_fraction("tolerance", tolerance)
    true, answer = target_value(parse_number, target), parse_number(parse_answer(text))
    distance = math.inf if answer is None else abs(answer - true)
    near = tolerance * abs(true)
    far = 4.0 * near
    credit = math.exp(-distance) if tolerance == 0.0 else 0.0
    if near < distance < far:
        credit = 0.5 * (1.0 + math.cos(math.pi * (distance - near) / (far - near)))
    return _answer_reward(text, mode, weights, dense, distance <= near, credit)


def choice_reward(text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0) -> Reward:
    """Reward the letter of a choice. Parts: `correct`, 1.0 or 0.0, and `format`."""
    is_exact = parse_choice(parse_answer(text)) == target_value(parse_choice, target)
    return _answer_reward(text, mode, weights, dense, is_exact, partial_credit=0.0)


def measure_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0, tolerance=0.0
) -> Reward:
    """`number_reward` where the target is a number, otherwise `choice_reward`."""
    if parse_number(target) is None:
        return choice_reward(text, target, mode, weights, dense)
    return number_reward(text, target, mode, weights, dense, tolerance)


def detection_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0, canvas=CANVAS
) -> Reward:
    """Reward the boxes of all objects that are asked for, after Visual-RFT.

    Predicted boxes are paired with true ones by `match_boxes`; a pair is a hit if its IoU > 0.5.
    With n = max(true boxes, predicted boxes + malformed items), the parts are `format` and

    - `iou`: sum of the hits' IoUs / n. Partial credit: the IoUs of the other pairs.
    - `confidence`: Brier's score (1950, Monthly Weather Review 78), which is proper: the best
      confidence of a box is the probability that it is a hit, unless there are more boxes than
      objects. A hit of confidence c (1 if there is none) earns 1 - (1 - c)^2, any other box costs
      c^2. A sum above 0 is divided by n; one below 0 by the true boxes, so that boxes of
      confidence 0 do not dilute it, and is -1 at least.

    So misses, extra boxes, duplicates and malformed items cost. Visual-RFT pays 1 - c for a false
    positive, so that boxes of confidence 0 are free reward, and nothing is lost by a miss. If the
    target is No Objects, that answer earns 1.0 in both parts, any other no more than 0. A true box
    with a label is matched by boxes of that label only.
    """
    _require_fraction("dense", dense)
    boxes, pairs, n = _match_answer(text, target, canvas)
    true = max(1, len(target_value(well_formed_boxes, target, canvas)))
    hits = [(box, overlap) for box, overlap in pairs if overlap > 0.5]
    credit = dense * sum(overlap for _, overlap in pairs if overlap <= 0.5)
    # Every box costs c^2, and a hit earns 2c on top: 1 - (1 - c)^2 is 2c - c^2.
    brier = 2 * sum(_confidence(box) for box, _ in hits)
    brier -= sum(_confidence(box) ** 2 for box in boxes)
    parts = {  # n = 0: there is no object, and the answer says so
        "iou": (sum(overlap for _, overlap in hits) + credit) / n if n else 1.0,
        "confidence": (brier / n if brier > 0 else max(-1.0, brier / true)) if n else 1.0,
        "format": format_reward(text, mode),
    }
    return weighted(parts, weights)


def boxes_correct(text: str, target: str, canvas: tuple[float, float] = CANVAS) -> float:
    """Strict accuracy: 1.0 if every true box is matched at IoU > 0.5 and no item is left over."""
    _, pairs, n = _match_answer(text, target, canvas)
    return 1.0 if sum(overlap > 0.5 for _, overlap in pairs) == n else 0.0


def _match_answer(text: str, target: str, canvas: tuple[float, float]) -> tuple[list, list, int]:
    """Predicted boxes, `match_boxes`, and n. Text outside the grammar is one malformed item."""
    true = target_value(well_formed_boxes, target, canvas)
    boxes, malformed = parse_boxes(parse_answer(text), canvas) or ([], 1)
    return boxes, match_boxes(boxes, true), max(len(true), len(boxes) + malformed)


def grounding_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0, canvas=CANVAS
) -> Reward:
    """Reward the one box that a phrase refers to.

    Parts: `iou`, the plain IoU if the answer is exactly one well-formed box (labels are not read),
    else 0.0, as in VLM-R1 (arXiv:2504.07615); and `format`. `dense` changes nothing.
    """
    _require_fraction("dense", dense)
    (true,) = target_value(well_formed_box, target, canvas)
    boxes, malformed = parse_boxes(parse_answer(text), canvas) or ([], 1)
    overlap = iou(boxes[0], true) if len(boxes) == 1 and not malformed else 0.0
    return weighted({"iou": overlap, "format": format_reward(text, mode)}, weights)


def iou(a: Box, b: Box) -> float:
    """Return the area of the intersection of two boxes over that of their union, in [0, 1]."""
    width, height = min(a.x2, b.x2) - max(a.x1, b.x1), min(a.y2, b.y2) - max(a.y1, b.y1)
    intersection = max(0.0, width) * max(0.0, height)
    if intersection == 0.0:
        return 0.0
    union = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - intersection
    return min(1.0, intersection / union)  # rounding alone could lift it above 1


def match_boxes(predicted: Sequence[Box], true: Sequence[Box]) -> list[tuple[Box, float]]:
    """Pair predicted boxes with true ones, each at most once; return (predicted box, IoU) pairs.

    Greedy, after Visual-RFT: IoUs above 0.5 first, then the higher confidence, then the higher IoU,
    then the boxes themselves, so that the order of an answer's list changes nothing. Paired boxes
    overlap, and have the label of the true one if it has one.
    """
    candidates = []
    for i, box in enumerate(predicted):
        for j, other in enumerate(true):
            overlap = iou(box, other) if other.label in (None, box.label) else 0.0
            if overlap > 0.0:
                rank = (overlap <= 0.5, -_confidence(box), -overlap, box[:4], box.label or "")
                candidates.append((rank, j, i, overlap))
    pairs, used_predicted, used_true = [], set(), set()
    for _, j, i, overlap in sorted(candidates):
        if i not in used_predicted and j not in used_true:
            pairs.append((predicted[i], overlap))
            used_predicted.add(i)
            used_true.add(j)
    return pairs


def _confidence(box: Box) -> float:
    return 1.0 if box.confidence is None else box.confidence


def well_formed_boxes(target: str, canvas: tuple[float, float]) -> list[Box] | None:
    """The boxes of a target, or None: unlike an answer, it may have no malformed item."""
    boxes, malformed = parse_boxes(target, canvas) or ([], 1)
    return None if malformed else boxes


def well_formed_box(target: str, canvas: tuple[float, float]) -> list[Box] | None:
    """The one box of a target, or None."""
    boxes = well_formed_boxes(target, canvas) or []
    return boxes if len(boxes) == 1 else None


def calls_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0, ordered=False
) -> Reward:
    """Reward a list of calls that say what was done.

    Parts: `correct`, 1.0 for exactly the target's calls, in any order unless `ordered`; `format`.
    Partial credit: Reason-RFT's (`_call_credit`), summed over pairs / max(calls, true calls). Calls
    are paired in order if `ordered`, else one to one as it earns most; repeated ones are extra.
    """
    true, calls = target_value(parse_calls, target), parse_calls(parse_answer(text)) or []
    is_exact = calls == true if ordered else sorted(calls) == sorted(true)
    credit = _calls_score(calls, true, ordered)
    return _answer_reward(text, mode, weights, dense, is_exact, credit)


def calls_accuracy(answer: str | None, target: str) -> float:
    """Return `calls_reward`'s partial credit, the soft accuracy of Reason-RFT's evaluation."""
    return _calls_score(parse_calls(answer) or [], target_value(parse_calls, target), ordered=False)


def _calls_score(calls: list[tuple], true: list[tuple], ordered: bool) -> float:
    if not calls:
        return 0.0
    from scipy.optimize import linear_sum_assignment  # here: its import takes a third of a second

    credit = np.array([[_call_credit(a, b) for b in true] for a in calls])  # (calls, true calls)
    pairs = linear_sum_assignment(credit, maximize=True)
    total = credit.trace() if ordered else credit[pairs].sum()
    return float(total) / max(credit.shape)


def _call_credit(a: tuple[str, ...], b: tuple[str, ...]) -> float:
    """Equal calls 1, the same function 0.5 with an equal value in its place, else 0.25."""
    if a == b or a[0] != b[0]:
        return float(a == b)
    return 0.5 if any(x == y for x, y in zip(a[1:], b[1:], strict=False)) else 0.25


def sequence_reward(text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0) -> Reward:
    """Reward putting items in order. Parts: `correct`, `format`.

    `correct` is 1.0 for the whole order. Partial credit: the fraction of positions that are right,
    if the answer has the target's items, each once.
    """
    true, items = target_value(parse_sequence, target), parse_sequence(parse_answer(text)) or []
    in_place = sum(a == b for a, b in zip(items, true, strict=False)) / len(true)
    credit = in_place if sorted(items) == sorted(true) else 0.0
    return _answer_reward(text, mode, weights, dense, items == true, credit)
