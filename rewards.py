"""Verifiable rewards: a completion goes in, a number comes out. Read this file first.

Visual reinforcement fine-tuning has no learned judge. The policy sees an image and a question and
writes, for example,

    <think>six pink petals round a yellow eye</think> <answer>dog rose</answer>

and plain functions decide what that text is worth. GRPO raises whatever they pay, so every loose
end here becomes a behaviour there: a reward that accepts part of a name teaches the policy to
answer with one letter, and one that accepts the empty answer teaches it silence. Hence four rules:

1. The answer is parsed once, by answers.py, and every correctness reward reads that span only.
   What the thoughts say, or the text around the block, can earn nothing.
2. An answer must be right as a whole. A part of it, or a list that contains it, is wrong.
3. Every part of a reward is in [0, 1], and no text earns more than the exact answer.
4. Malformed text is what a policy writes while it learns: it scores 0 and never raises. A target
   outside the grammar, an unknown mode or a negative weight is a mistake of ours: it raises.

There is one reward per kind of answer, all of one shape:

    f(text, target, mode="think", weights={part: weight}, dense=0.0, ...) -> Reward

- `target` is written in the grammar of the answer.
- `mode` names the blocks that `format_reward` wants; `format` is a part of every reward.
- `weights` says what each part counts, finite and >= 0.
- `dense`, in [0, 1], is what being nearly right is worth: 0 pays exact answers only, 1 the graded
  score of the docstring. A trainer can start high, where no sample is right yet, and anneal to 0.
  It changes nothing where nothing is nearly right (a choice) or all is graded (grounding).

An argument that does not fit raises ValueError. After Visual-RFT (arXiv:2503.01785) for names and
boxes and Reason-RFT (arXiv:2503.20752) for numbers and calls, with departures where they pay for
nothing. What others count as right is in tasks/loose.py, printed beside ours and never paid.

Next: tasks/, which pairs images and questions with these rewards.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from answers import (
    MAX_COMPLETION_CHARS,
    Box,
    has_tag,
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
FORMATS = MappingProxyType(
    {
        "think": ("think", "answer"),
        "direct": ("answer",),
        "steps": ("summary", "caption", "reasoning", "answer"),
    }
)
# What each part counts by default; a reward reads the weights of the parts that it has.
WEIGHTS = MappingProxyType({"correct": 1.0, "iou": 1.0, "confidence": 1.0, "format": 0.5})
CANVAS = (1000, 1000)  # of boxes: Qwen2-VL and Visual-RFT write thousandths of width and height


@dataclass(frozen=True)
class Reward:
    """What one completion earned: `total`, the number GRPO sees, and the parts it was made of.

    The parts are unweighted, each in [0, 1], so that their curves mean the same in every run.
    """

    total: float
    parts: dict[str, float]


def weighted(parts: dict[str, float], weights: Mapping[str, float]) -> Reward:
    """Return the reward with total = sum of weight x part, in the order of the parts.

    Raises:
        ValueError: a part has no weight, or the weight is negative or not finite.
    """
    if missing := parts.keys() - weights.keys():
        raise ValueError(f"weights name {sorted(weights)}, not {sorted(missing)}")
    if not all(0 <= weights[name] < math.inf for name in parts):
        raise ValueError(f"weights must be finite and >= 0, got {dict(weights)}")
    return Reward(total=sum(weights[name] * part for name, part in parts.items()), parts=parts)


def format_reward(text: str, mode: str = "think") -> float:
    """Return 1.0 if the text is exactly the blocks that the mode asks for, else 0.0.

    - "think": one `<think>` block, then one `<answer>` block.
    - "direct": one `<answer>` block; thinking aloud breaks the format.
    - "steps": `<summary>`, `<caption>`, `<reasoning>` and `<answer>`, one block each.

    Each block contains at least one letter or digit, so that dots, dashes and invisible characters
    do not pass for thoughts (the answer `[]` alone needs none: it is a list without boxes), and no
    further tag, so that nothing is nested or repeated. White space before, between and after the
    blocks is free; any other text outside them is not. A text longer than `MAX_COMPLETION_CHARS` is
    worth 0.

    Raises:
        ValueError: unknown mode.
    """
    if mode not in FORMATS:
        raise ValueError(f"mode={mode!r} is not one of {', '.join(FORMATS)}")
    if len(text) > MAX_COMPLETION_CHARS:
        return 0.0
    for name in FORMATS[mode]:
        opened, closing = f"<{name}>", f"</{name}>"
        text = text.lstrip()
        if not text.startswith(opened):
            return 0.0
        content, closed, text = text.removeprefix(opened).partition(closing)
        says_something = _says_something(content) or name == "answer" and content.strip() == "[]"
        if not closed or has_tag(content) or not says_something:
            return 0.0
    return 0.0 if text.strip() else 1.0


def _says_something(text: str) -> bool:
    """Whether there is a letter or digit. Hangul fillers are letters by name but print nothing."""
    return any(char.isalnum() and char not in "\u115f\u1160\u3164\uffa0" for char in text)


@lru_cache(maxsize=65_536)
def target_value(parse: Callable, target: str, *more) -> Any:
    """The value of a target, read once and not once per completion; nobody may change it."""
    value = parse(target, *more)
    if value is None:
        raise ValueError(f"target {target[:100]!r} is outside the grammar of {parse.__name__}")
    return value


def _answer_reward(text, mode, weights, dense, exact: bool, graded: float) -> Reward:
    """The reward of an answer that is exactly right, or else worth `graded` if dense = 1."""
    _require_share("dense", dense)
    correct = 1.0 if exact else dense * graded
    return weighted({"correct": correct, "format": format_reward(text, mode)}, weights)


def _require_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}={value!r} is not in [0, 1]")


# ------------------------------------------------------------------- names, numbers and choices


def classification_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0
) -> Reward:
    """Return what a completion earns for naming the class of an image. Parts:

    - `correct`: 1.0 if the one answer is the target's whole name (`name_correct`). Graded: the F1
      score of its words, for an answer of no more words than the target; more score 0. A list that
      contains the right name has more words, so listing every class earns nothing.
    - `format`: the text is the blocks that `mode` asks for and nothing else (`format_reward`).

    The two are independent: a right name in a sloppy text is still right, and good form around a
    wrong name still earns its part, which is what moves a base model that never uses the tags.
    Visual-RFT accepts a substring in either direction (tasks/loose.py).
    """
    answer = parse_answer(text)
    exact, graded = name_correct(answer, target) == 1.0, _word_f1(answer, target)
    return _answer_reward(text, mode, weights, dense, exact, graded)


def name_correct(answer: str | None, target: str) -> float:
    """Return 1.0 if the answer is the target's whole name after `normalise_name`, else 0.0.

    `name_correct(parse_answer(text), target)` is the strict accuracy that evaluation reports.
    No answer, and an answer of more than `MAX_NAME_CHARS` characters, is wrong.

    Raises:
        ValueError: the target is empty after normalisation, or longer than `MAX_NAME_CHARS`.
    """
    return 1.0 if parse_name(answer) == target_value(parse_name, target) else 0.0


def _word_f1(answer: str | None, target: str) -> float:
    name, true_name = parse_name(answer) or "", target_value(parse_name, target)
    if len(re.findall(r"\w+", name)) > len(re.findall(r"\w+", true_name)):
        return 0.0  # here "rose,daisy" is two words
    found, true = Counter(name.split()), Counter(true_name.split())
    return 2 * (found & true).total() / (found.total() + true.total())


def number_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0, tolerance=0.0
) -> Reward:
    """Return what a completion earns for a number. Parts: `correct`, `format`.

    With d = |answer - target|, `correct` is 1.0 for d <= tolerance x |target|, tolerance in [0, 1].
    Graded:
    - tolerance > 0: Reason-RFT's cosine taper, from 1 at that distance to 0 at four times it (their
      5 % and 20 %). Of the target 0, only 0 is near; their rule pays nothing there.
    - tolerance = 0: exp(-d), for counts.
    """
    _require_share("tolerance", tolerance)
    true, answer = target_value(parse_number, target), parse_number(parse_answer(text))
    distance = math.inf if answer is None else abs(answer - true)
    near = tolerance * abs(true)
    graded = _cosine_taper(distance, near, 4.0 * near) if tolerance else math.exp(-distance)
    return _answer_reward(text, mode, weights, dense, distance <= near, graded)


def _cosine_taper(distance: float, near: float, far: float) -> float:
    if not near < distance < far:
        return float(distance <= near)
    return 0.5 * (1.0 + math.cos(math.pi * (distance - near) / (far - near)))


def choice_reward(text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0) -> Reward:
    """Return what a completion earns for a letter. Parts: `correct`, 1.0 or 0.0, and `format`."""
    exact = parse_choice(parse_answer(text)) == target_value(parse_choice, target)
    return _answer_reward(text, mode, weights, dense, exact, graded=0.0)


def measure_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0, tolerance=0.0
) -> Reward:
    """`number_reward` where the target is a number, otherwise `choice_reward`."""
    if parse_number(target) is None:
        return choice_reward(text, target, mode, weights, dense)
    return number_reward(text, target, mode, weights, dense, tolerance)


# ---------------------------------------------------------------------------------------- boxes


def detection_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0, canvas=CANVAS
) -> Reward:
    """Return what a completion earns for finding every object, after Visual-RFT.

    Found boxes are paired with true ones by `match_boxes`; a pair is a hit if its IoU > 0.5. With
    n = max(number of true boxes, number of found boxes + malformed items), the parts are

    - `iou`: sum of the hits' IoUs / n. Graded: the other pairs add theirs.
    - `confidence`: how well the confidences tell hits from false boxes, by Brier's proper score
      (1950, Monthly Weather Review 78): a hit of confidence c earns 1 - (1 - c)^2, a false box
      costs c^2, all over n and never below 0. So it pays best to say how sure one is. A box without
      a confidence counts as sure.
    - `format`: as everywhere.

    So misses, extra boxes, duplicates and malformed items cost. Visual-RFT pays 1 - c for a false
    box of confidence c, so that boxes of confidence 0 are free money, and takes nothing for a miss.
    Where the target is No Objects, saying so earns 1.0 in both parts and anything else 0.0. A true
    box with a label is only found by a box with that label.
    """
    _require_share("dense", dense)
    found, pairs, n = _paired_boxes(text, target, canvas)
    hits = [(box, overlap) for box, overlap in pairs if overlap > 0.5]
    graded = dense * sum(overlap for _, overlap in pairs if overlap <= 0.5)
    sure = [_confidence(box) for box, _ in hits]
    # Over all boxes -c^2, and for the hits 2c on top: 1 - (1 - c)^2 is 2c - c^2.
    brier = 2 * sum(sure) - sum(_confidence(box) ** 2 for box in found)
    parts = {  # n = 0: there is nothing, and the answer says so
        "iou": (sum(overlap for _, overlap in hits) + graded) / n if n else 1.0,
        "confidence": max(0.0, brier / n) if n else 1.0,
        "format": format_reward(text, mode),
    }
    return weighted(parts, weights)


def boxes_correct(text: str, target: str, canvas: tuple[float, float] = CANVAS) -> float:
    """Return 1.0 if every true box is hit and there is no other item, else 0.0: strict accuracy."""
    _, pairs, n = _paired_boxes(text, target, canvas)
    return 1.0 if sum(overlap > 0.5 for _, overlap in pairs) == n else 0.0


def _paired_boxes(text: str, target: str, canvas: tuple[float, float]) -> tuple[list, list, int]:
    """The boxes, their pairs (`match_boxes`), and n. Outside the grammar is one malformed item."""
    true = target_value(well_formed_boxes, target, canvas)
    found, malformed = parse_boxes(parse_answer(text), canvas) or ([], 1)
    return found, match_boxes(found, true), max(len(true), len(found) + malformed)


def grounding_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0, canvas=CANVAS
) -> Reward:
    """Return what a completion earns for the one box that a phrase refers to.

    Parts: `iou`, the plain IoU if the answer is exactly one well-formed box (labels are not read),
    else 0.0, as in VLM-R1 (arXiv:2504.07615); and `format`.
    """
    _require_share("dense", dense)
    (true,) = target_value(well_formed_box, target, canvas)
    found, malformed = parse_boxes(parse_answer(text), canvas) or ([], 1)
    overlap = iou(found[0], true) if len(found) == 1 and not malformed else 0.0
    return weighted({"iou": overlap, "format": format_reward(text, mode)}, weights)


def iou(a: Box, b: Box) -> float:
    """Return the area of the intersection of two boxes over that of their union, in [0, 1]."""
    width, height = min(a.x2, b.x2) - max(a.x1, b.x1), min(a.y2, b.y2) - max(a.y1, b.y1)
    both = max(0.0, width) * max(0.0, height)
    if both == 0.0:
        return 0.0
    union = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - both
    return min(1.0, both / union)  # rounding alone could lift it above 1


def match_boxes(found: Sequence[Box], true: Sequence[Box]) -> list[tuple[Box, float]]:
    """Pair found boxes with true ones, each at most once; return the paired found boxes and IoUs.

    Greedy, after Visual-RFT: IoUs above 0.5 first, then the higher confidence, then the higher IoU.
    Ties that are left are decided by the boxes themselves, so that the order in which they are
    listed changes nothing. Paired boxes overlap, and have the label of the true one if it has one.
    """
    candidates = []
    for i, box in enumerate(found):
        for j, other in enumerate(true):
            overlap = iou(box, other) if other.label in (None, box.label) else 0.0
            if overlap > 0.0:
                rank = (overlap <= 0.5, -_confidence(box), -overlap, box[:4], box.label or "")
                candidates.append((rank, j, i, overlap))
    pairs, used_found, used_true = [], set(), set()
    for _, j, i, overlap in sorted(candidates):
        if i not in used_found and j not in used_true:
            pairs.append((found[i], overlap))
            used_found.add(i)
            used_true.add(j)
    return pairs


def _confidence(box: Box) -> float:
    return 1.0 if box.confidence is None else box.confidence


def well_formed_boxes(target: str, canvas: tuple[float, float]) -> list[Box] | None:
    boxes, malformed = parse_boxes(target, canvas) or ([], 1)
    return None if malformed else boxes


def well_formed_box(target: str, canvas: tuple[float, float]) -> list[Box] | None:
    boxes = well_formed_boxes(target, canvas)
    return boxes if boxes and len(boxes) == 1 else None


# ------------------------------------------------------------------------- calls and sequences


def calls_reward(
    text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0, ordered=False
) -> Reward:
    """Return what a completion earns for saying in calls what was done.

    Parts: `correct`, 1.0 for exactly the target's calls, in any order unless `ordered`; `format`.
    Graded: Reason-RFT's partial credits over max(number of calls, number of true calls). The true
    call earns 1, the right function with a right value in its place 0.5, the function alone 0.25.
    Calls are paired one to one, in order or else as it earns most; a repeated call is an extra one.
    """
    true, found = target_value(parse_calls, target), parse_calls(parse_answer(text)) or []
    exact = found == true if ordered else sorted(found) == sorted(true)
    graded = _calls_score(found, true, ordered)
    return _answer_reward(text, mode, weights, dense, exact, graded)


def calls_accuracy(answer: str | None, target: str) -> float:
    """Return the graded score of `calls_reward`, the soft accuracy of Reason-RFT's evaluation."""
    return _calls_score(parse_calls(answer) or [], target_value(parse_calls, target), ordered=False)


def _calls_score(found: list[tuple], true: list[tuple], ordered: bool) -> float:
    n = max(len(found), len(true))
    if ordered:
        pairs = list(zip(found, true, strict=False))
        same, near = sum(a[0] == b[0] for a, b in pairs), sum(_is_near(a, b) for a, b in pairs)
        return (2 * sum(a == b for a, b in pairs) + same + near) / 4 / n
    # A pair is worth 1/4 for the function, 1/4 more for a value, 1/2 more for the whole call. The
    # best pairing holds every equal pair, then most near ones, then any of the same function.
    equal = Counter(found) & Counter(true)
    found = list((Counter(found) - equal).elements())
    true = list((Counter(true) - equal).elements())
    same = Counter(call[0] for call in found) & Counter(call[0] for call in true)
    near = _most_pairs([[j for j, b in enumerate(true) if _is_near(a, b)] for a in found])
    return (4 * equal.total() + same.total() + near) / 4 / n


def _is_near(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether the function and a value in its place are the same, or everything is."""
    return a == b or a[0] == b[0] and any(x == y for x, y in zip(a[1:], b[1:], strict=False))


def _most_pairs(choices: list[list[int]]) -> int:
    """How many rows can have one of their choices, no choice twice: Kuhn's augmenting paths."""
    owner: dict[int, int] = {}

    def settle(row: int, tried: set[int]) -> bool:
        for choice in choices[row]:
            if choice not in tried:
                tried.add(choice)
                if choice not in owner or settle(owner[choice], tried):
                    owner[choice] = row
                    return True
        return False

    return sum(settle(row, set()) for row in range(len(choices)))


def sequence_reward(text: str, target: str, mode="think", weights=WEIGHTS, dense=0.0) -> Reward:
    """Return what a completion earns for putting items in order. Parts: `correct`, `format`.

    `correct` is 1.0 for the whole order. Graded: the share of positions that are right, for an
    answer that has the target's items, each once; any other answer scores 0.
    """
    true, found = target_value(parse_sequence, target), parse_sequence(parse_answer(text)) or []
    in_place = sum(a == b for a, b in zip(found, true, strict=False)) / len(true)
    graded = in_place if sorted(found) == sorted(true) else 0.0
    return _answer_reward(text, mode, weights, dense, found == true, graded)
