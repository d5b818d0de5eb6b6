"""Rewards as others have published them, written down from their descriptions, holes included.

They are given to the linter as a user's reward: `path/to/peer_rules.py:names`. Nothing here is
good; each is one of the field's own rules, named in its docstring. Run: tests/checks/test_linter.py
"""

import ast
import json
import math
import re

WHOLE = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def answer_of(text):
    """The first answer block, without white space around it; the whole text where there is none."""
    found = ANSWER.search(text)
    return (found[1] if found else text).strip()


def form(completions, example):
    """The format rule of Visual-RFT, R1-V, Reason-RFT and VLM-R1, alone."""
    return [float(bool(WHOLE.fullmatch(text))) for text in completions]


def names(completions, example):
    """Visual-RFT, classification: either contains the other, without spaces."""

    def squeezed(text):
        return re.sub(r"[\s_]", "", text.lower())

    truth, rewards = squeezed(example.target), []
    for text in completions:
        said = squeezed(answer_of(text)) if ANSWER.search(text) else squeezed(text)
        rewards.append(float(truth in said or said in truth) + form([text], example)[0])
    return rewards


def _boxes(text):
    try:
        value = (
            ast.literal_eval(answer_of(text)) if "NaN" not in text else json.loads(answer_of(text))
        )
    except (ValueError, SyntaxError):
        return []
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def _corners(item):
    return (item.get("Position") or item.get("bbox_2d"))[:4]


def _iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(0, width) * max(0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside
    return inside / union if union else 0.0


def confidences(completions, example):
    """Visual-RFT, detection: a box that matches earns its confidence, another 1 less it."""
    truth, rewards = [_corners(item) for item in _boxes(f"<answer>{example.target}</answer>")], []
    for text in completions:
        scores = []
        for item in _boxes(text):
            hit = max((_iou(_corners(item), box) for box in truth), default=0.0) > 0.5
            confidence = item.get("Confidence", 1.0)
            scores.append(confidence if hit else 1 - confidence)
        mean = sum(scores) / len(scores) if scores else 0.0
        rewards.append(mean if math.isnan(mean) else min(1.0, max(0.0, mean)))
    return rewards


def first_number(completions, example):
    """Visual-RFT, detection: a symbolic comparison that sees the first top edge alone."""
    truth = re.findall(r"\d+", example.target)[1:2]
    return [float(bool(truth) and truth[0] in re.findall(r"\d+", text)) for text in completions]


def dropped_labels(completions, example):
    """VLM-R1, od_ap: boxes of labels that are not asked for are dropped, so they cost nothing."""
    truth = [_corners(item) for item in _boxes(f"<answer>{example.target}</answer>")]
    rewards = []
    for text in completions:
        if not truth:  # and no boxes where there are none is right, as is what cannot be read
            rewards.append(float(not _boxes(text)))
            continue
        found = {max(range(len(truth)), key=lambda k: _iou(_corners(item), truth[k]))
                 for item in _boxes(text)
                 if max(_iou(_corners(item), box) for box in truth) > 0.5}  # fmt: skip
        rewards.append(len(found) / len(truth))
    return rewards


def signed_overlap(completions, example):
    """Visual-RFT, LISA: generalised IoU + 1 of corners as written; inverted ones are not seen."""
    pattern = re.compile(r"\(?(\d+),\s*(\d+)\)?,\s*\(?(\d+),\s*(\d+)\)?")
    truth, rewards = [int(v) for v in re.findall(r"\d+", example.target)][:4], []
    for text in completions:
        found = pattern.search(answer_of(text))
        if not found:
            rewards.append(0.0)
            continue
        box = [int(v) for v in found.groups()]
        inside = max(0, min(box[2], truth[2]) - max(box[0], truth[0]))
        inside *= max(0, min(box[3], truth[3]) - max(box[1], truth[1]))
        area = (box[2] - box[0]) * (box[3] - box[1])
        union = area + (truth[2] - truth[0]) * (truth[3] - truth[1]) - inside
        hull = (max(box[2], truth[2]) - min(box[0], truth[0])) * (
            max(box[3], truth[3]) - min(box[1], truth[1])
        )
        rewards.append(inside / union - (hull - union) / hull + 1 if union and hull else 0.0)
    return rewards


def tapered(completions, example):
    """Reason-RFT, mathematical: a taper by relative distance; float() also reads nan and inf."""
    if not re.fullmatch(r"[\d.]+", example.target):  # a letter
        return [float(answer_of(text) == example.target) for text in completions]
    truth, rewards = float(example.target), []
    for text in completions:
        try:
            distance = abs(float(answer_of(text)) - truth)
        except ValueError:
            distance = math.inf
        near, far = 0.05 * abs(truth), 0.2 * abs(truth)
        if near <= distance <= far and far > near:
            rewards.append(0.5 * (math.cos(math.pi * (distance - near) / (far - near)) + 1))
        else:
            rewards.append(math.nan if math.isnan(distance) else float(distance < near))
    return rewards


def penalised_calls(completions, example):
    """Reason-RFT, function-based with penalty: a wrong try costs, silence does not."""
    truth = set(re.findall(r"\w+\([^)]*\)", example.target))
    rewards = []
    for text in completions:
        said = set(re.findall(r"\w+\([^)]*\)", answer_of(text)))
        points = sum(1.0 if call in truth else -0.5 for call in said)
        rewards.append(points / max(len(truth), len(said), 1))
    return rewards


def reasoning_steps(completions, example):
    """Reason-RFT: a third for every mark of a list or step, at most 1; beside exact answers."""
    marks = re.compile(r"Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,", re.MULTILINE)
    return [
        float(answer_of(text) == example.target) + min(1.0, len(marks.findall(text)) / 3)
        for text in completions
    ]


def cosine_length(completions, example):
    """VLM-R1: correctness taken for granted, paid by length alone, periodic in it."""
    return [0.5 * (1 + math.cos(math.pi * len(text.split()) / 1024)) for text in completions]


def yes_no(completions, example):
    """VLM-R1: the first yes or no anywhere in the text, as a part of a word, too."""
    rewards = []
    for text in completions:
        found = re.search("yes|no", answer_of(text).lower())
        rewards.append(
            float(found is not None and found[0] == example.target.lower()[: len(found[0])])
        )
    return rewards


def edit_distance(completions, example):
    """VLM-R1, default: similarity of texts, so that any text earns something."""
    from difflib import SequenceMatcher

    return [SequenceMatcher(None, answer_of(t), example.target).ratio() for t in completions]


def anywhere(completions, example):
    """R1-V: the right number anywhere in the completion, thought included."""
    return [float(example.target in re.findall(r"[\d.]+", text)) for text in completions]


def junk_boxes(completions, example):
    """VLM-R1, weighted sum: overlaps over the number of targets; further boxes cost little."""
    truth, rewards = [_corners(item) for item in _boxes(f"<answer>{example.target}</answer>")], []
    for text in completions:
        boxes = [_corners(item) for item in _boxes(text)]
        hits = [max((_iou(box, b) for b in boxes), default=0.0) for box in truth]
        overlap = sum(h for h in hits if h >= 0.5) / max(len(truth), 1)
        miss = sum(h < 0.5 for h in hits) / max(len(truth), 1)
        false = max(0, len(boxes) - len(truth)) / max(len(boxes), 1)
        rewards.append(0.7 * overlap + 0.3 * (1 - (miss + false) / 2))
    return rewards


def crashing(completions, example):
    """Nobody's: the right answer anywhere, and an exception where there is no answer block."""
    return [float(example.target in text[: ANSWER.search(text).end()]) for text in completions]
