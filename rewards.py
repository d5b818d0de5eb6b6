"""Verifiable rewards: a completion goes in, a number comes out. Read this file first.

Visual reinforcement fine-tuning has no learned judge. The policy sees an image and a question and
writes, for example,

    <think>six pink petals round a yellow eye</think> <answer>dog rose</answer>

and plain functions decide what that text is worth. GRPO raises whatever they pay, so every loose
end here becomes a behaviour there: a reward that accepts part of a name teaches the policy to
answer with one letter, and one that accepts the empty answer teaches it silence. Hence four rules:

1. The answer is parsed once, by `parse_answer`, and every correctness reward reads that span only.
   What the thoughts say, or the text around the block, can earn nothing.
2. A name must be right as a whole. A part of it, or a list that contains it, is wrong.
3. Text is text. Nothing is evaluated, no pattern can backtrack, the time is linear in the length,
   and a completion beyond `MAX_COMPLETION_CHARS` is worth 0.
4. Malformed text is what a policy writes while it learns: it scores 0 and never raises. An empty
   class name, an unknown mode or a negative weight is a mistake of ours or the data: it raises.

A task's reward has three steps: parse the span, score the named parts, each in [0, 1], and weigh
them. `classification_reward`, at the end, is the model for the others.

After Visual-RFT (arXiv:2503.01785), whose classification reward is accuracy + format, with one
departure: accuracy here is equality of normalised names. Visual-RFT's own rule, substring in either
direction, is kept as `loose_name_correct`, to be printed beside the strict metric and never paid.

Next: tasks/, which pairs images and questions with these rewards.
"""

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# A completion of 1024 tokens has about 5,000 characters. Longer than this is noise, worth 0.
MAX_COMPLETION_CHARS = 100_000
# Unicode normalisation takes quadratic time on long runs of accents, so names are short by rule.
MAX_NAME_CHARS = 1_000

# The blocks of a completion, in order. "direct" is answering without thinking.
FORMATS = MappingProxyType({"think": ("think", "answer"), "direct": ("answer",)})
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

CLASSIFICATION_WEIGHTS = MappingProxyType({"correct": 1.0, "format": 0.5})


@dataclass(frozen=True)
class Reward:
    """What one completion earned: `total`, the number GRPO sees, and the parts it was made of.

    The parts are unweighted, each in [0, 1], so that their curves mean the same in every run.
    """

    total: float
    parts: dict[str, float]


# ---------------------------------------------------------------------- the answer and its format


def parse_answer(text: str) -> str | None:
    """Return the content of the one answer block, stripped of outer white space, or None.

    There is an answer when all of these hold, and None otherwise:
    - `<answer>` and `</answer>` occur exactly once each, in this order. Two answers are no answer:
      otherwise a policy could name every class and be right with one of them. A draft answer
      within the thoughts counts as one of the two.
    - The block is not inside a thought: the nearest think tag before it is not `<think>`, and the
      nearest one after it is not `</think>`. An unclosed `<think>` thus swallows what follows.
    - Its content has no think tag and is not just white space.
    - The text has at most `MAX_COMPLETION_CHARS` characters.

    Tags are matched as written, in lower case. The text need not satisfy `format_reward`: an answer
    with words around it, or without thoughts, is still an answer.
    """
    if len(text) > MAX_COMPLETION_CHARS:
        return None
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    before, _, rest = text.partition("<answer>")
    answer, closed, after = rest.partition("</answer>")
    if not closed or _has_tag(answer) or _ends_in_thought(before) or _starts_in_thought(after):
        return None
    return answer.strip() or None


def format_reward(text: str, mode: str = "think") -> float:
    """Return 1.0 if the text is exactly the blocks that the mode asks for, else 0.0.

    - "think": one `<think>` block, then one `<answer>` block.
    - "direct": one `<answer>` block; thinking aloud breaks the format.

    Each block contains at least one letter or digit, so that dots, dashes and invisible characters
    do not pass for thoughts, and no further tag, so that nothing is nested or repeated. White space
    before, between and after the blocks is free; any other text outside them is not. A text longer
    than `MAX_COMPLETION_CHARS` is worth 0.

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
        if not closed or _has_tag(content) or not _says_something(content):
            return 0.0
    return 0.0 if text.strip() else 1.0


def _has_tag(text: str) -> bool:
    return any(tag in text for tag in TAGS)


def _ends_in_thought(before: str) -> bool:
    return before.rfind("<think>") > before.rfind("</think>")


def _starts_in_thought(after: str) -> bool:
    head, closed, _ = after.partition("</think>")
    return bool(closed) and "<think>" not in head


def _says_something(text: str) -> bool:
    """Whether there is a letter or digit. Hangul fillers are letters by name but print nothing."""
    return any(char.isalnum() and char not in "\u115f\u1160\u3164\uffa0" for char in text)


# ------------------------------------------------------------------------------- names of classes

# Typographic twins of one keyboard character, after NFKC. "_" is how data sets write a space.
_KEYBOARD = str.maketrans(
    {"_": " "}
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")  # hyphens, en dash, minus
    | dict.fromkeys("\u2018\u2019", "'")
    | dict.fromkeys("\u201c\u201d", '"')
)
_SURROUNDING = " .,;:!?\"'`*"  # what a sentence or markdown puts around a name


def normalise_name(text: str) -> str:
    """Return the form in which two spellings of one class name are equal.

    1. Unicode NFKC and case folding: composed = decomposed accents, full width = ASCII, STRASSE =
       straße. Accents stay: "pate" is not "pâté".
    2. Underscores become spaces; typographic hyphens and quotes become the keyboard's.
    3. Runs of white space, line breaks included, become one space.
    4. Spaces, quotes, asterisks, backticks and `. , ; : ! ?` are stripped from both ends.

    Within the name nothing else is dropped. A hyphen is not a space, for "737-800" and "737 800"
    may be two rows of a table; a zero-width or control character stays, so a name with a hidden
    character is another name; look-alike letters of other scripts stay other letters. The function
    is idempotent. It cannot be injective on all strings, so whoever reads a class list must refuse
    two classes that normalise alike.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFKC", text)  # folding may decompose, as with "ǰ"
    return " ".join(text.translate(_KEYBOARD).split()).strip(_SURROUNDING)


def name_correct(answer: str | None, target: str) -> float:
    """Return 1.0 if the answer is the target's whole name after `normalise_name`, else 0.0.

    `name_correct(parse_answer(text), target)` is the strict accuracy that evaluation reports.
    No answer, and an answer of more than `MAX_NAME_CHARS` characters, is wrong.

    Raises:
        ValueError: the target is empty after normalisation, or longer than `MAX_NAME_CHARS`.
    """
    name = _target_name(target)
    if answer is None or len(answer) > MAX_NAME_CHARS:
        return 0.0
    return 1.0 if normalise_name(answer) == name else 0.0


def loose_name_correct(text: str, target: str) -> float:
    """Return 1.0 if answer or target contains the other: Visual-RFT's rule, only for comparison.

    `accuracy_reward` in src/virft/src/open_r1/grpo_classification.py of Liuziyu77/Visual-RFT, less
    its symbolic maths: take the first answer block that opens and closes on one line, or else the
    whole text; strip, lower, drop spaces and underscores; accept a substring in either direction.
    The empty completion, the answer "a" and a list of all classes all count as right, so this
    number flatters. It is printed beside the strict one, never trained on.

    Raises:
        ValueError: the target is empty after normalisation, or longer than `MAX_NAME_CHARS`.
    """
    _target_name(target)
    answer = text
    for line in text.split("\n"):
        _, opened, rest = line.partition("<answer>")
        content, closed, _ = rest.partition("</answer>")
        if opened and closed:
            answer = content
            break
    answer, target = (s.strip().replace(" ", "").replace("_", "").lower() for s in (answer, target))
    return 1.0 if target in answer or answer in target else 0.0


def _target_name(target: str) -> str:
    if len(target) > MAX_NAME_CHARS:
        raise ValueError(f"target has {len(target)} characters, expected <= {MAX_NAME_CHARS}")
    name = normalise_name(target)
    if not name:
        raise ValueError(
            f"target {target!r} is empty after normalisation: every class needs a name"
        )
    return name


# ------------------------------------------------------------------------------------ the rewards


def classification_reward(
    text: str,
    target: str,
    mode: str = "think",
    weights: Mapping[str, float] = CLASSIFICATION_WEIGHTS,
) -> Reward:
    """Return what a completion earns for naming the class of an image.

    Parts, each 0.0 or 1.0:
    - `correct`: the one answer is the target's whole name (`parse_answer`, `name_correct`).
    - `format`: the text is the blocks that `mode` asks for and nothing else (`format_reward`).

    The two are independent: a right name in a sloppy text is still right, and good form around a
    wrong name still earns its part, which is what moves a base model that never uses the tags.

    Args:
        weights: what each part counts, finite and >= 0. The total is in [0, sum of the weights].

    Raises:
        ValueError: empty target, unknown mode, or weights that do not fit the parts.
    """
    parts = {
        "correct": name_correct(parse_answer(text), target),
        "format": format_reward(text, mode),
    }
    return weighted(parts, weights)


def weighted(parts: dict[str, float], weights: Mapping[str, float]) -> Reward:
    """Return the reward with total = sum of weight x part, in the order of the parts.

    Raises:
        ValueError: the weights do not name exactly the parts, or are negative, or not finite.
    """
    if weights.keys() != parts.keys():
        raise ValueError(f"weights name {sorted(weights)}, expected {sorted(parts)}")
    if not math.isfinite(sum(weights.values())) or any(w < 0 for w in weights.values()):
        raise ValueError(f"weights must be finite and >= 0, got {dict(weights)}")
    return Reward(total=sum(weights[name] * part for name, part in parts.items()), parts=parts)
