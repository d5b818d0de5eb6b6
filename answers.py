"""Answers: parse the text of a completion into a value, or None. One documented grammar per kind.

A completion ends in one answer block, `<answer>dog rose</answer>`. `parse_answer` finds it, and one
of the other parsers reads its content:

    kind        what the answer looks like                           value
    name        dog rose                                             the normalised name
    number      3    -2    3.5    1,000                              a finite float
    choice      B    (B)                                             "B"
    boxes       [{"Position": [10, 20, 300, 400], "Confidence": 1}]  list of Box, malformed items
    calls       change_colour(f1, red), remove(f3)                   list of (function, value, ...)
    sequence    B, A, C                                              ["B", "A", "C"]

Targets go through the same parsers; rewards.py decides what an answer is worth. Every parser:

1. Returns a value or None (outside the grammar) for any text, never raises; numbers are finite.
2. Covers the whole answer: a number in a sentence is not a number, and a letter in a list of
   letters is not a choice. A parser that searches the text rewards guessing.
3. Evaluates nothing, caps every size, and takes time linear in the length.
"""

import json
import math
import re
import unicodedata
from itertools import accumulate, zip_longest
from typing import Any, NamedTuple

MAX_COMPLETION_CHARS = 100_000  # beyond is noise: 1024 tokens have about 5,000 characters
# Unicode normalisation takes quadratic time on long runs of accents, so names are short by rule.
MAX_NAME_CHARS = 1_000
MAX_LABEL_CHARS = 100  # the same for the label of a box, of which there are many; bytes of UTF-8
MAX_NUMBER_CHARS = 50  # keeps every number finite
MAX_BOXES, MAX_CALLS, MAX_SEQUENCE = 1_000, 64, 32
MAX_DEPTH = 8  # of nested brackets; a list of dicts that hold a list needs 3

# The blocks of a completion: those that hold reasoning, then the answer.
THOUGHTS = ("think", "summary", "caption", "reasoning")
TAGS = tuple(tag for name in (*THOUGHTS, "answer") for tag in (f"<{name}>", f"</{name}>"))


# ---- the answer block ----------------------------------------------------------------------------


def parse_answer(text: str) -> str | None:
    """Return the content of the one answer block, stripped of outer white space, or None.

    There is an answer if all of these hold:
    - `<answer>` and `</answer>` occur exactly once each, in this order, in lower case. Two answers
      are none: otherwise a policy could name every class and be right with one of them.
    - The block is not inside a thought of any kind (`THOUGHTS`): the nearest `think` tag before it
      is not `<think>`, and the nearest one after it is not `</think>`; likewise for the others. An
      unclosed `<think>` thus swallows what follows.
    - Its content has none of the `TAGS` and is not just white space.
    - The text has at most `MAX_COMPLETION_CHARS` characters.

    An answer with words around it, or without thoughts, is an answer (but see `format_reward`).
    """
    if why_no_answer(text) is not None:
        return None
    return text.partition("<answer>")[2].partition("</answer>")[0].strip()


def why_no_answer(text: str) -> str | None:
    """Return which of the rules of `parse_answer` a text breaks, in a few words; None: none."""
    if len(text) > MAX_COMPLETION_CHARS:
        return f"more than {MAX_COMPLETION_CHARS} characters"
    openings, closings = text.count("<answer>"), text.count("</answer>")
    if not openings:
        return "answer block not opened" if closings else "no answer block"
    if openings > 1 or closings > 1:
        return "several answer blocks"
    before, _, rest = text.partition("<answer>")
    answer, closing, after = rest.partition("</answer>")
    if not closing:
        return "answer block not closed"
    if has_tag(answer):
        return "a tag in the answer block"
    for thought in THOUGHTS:
        if _is_inside(thought, before, after):
            return f"answer block inside <{thought}>"
    return None if answer.strip() else "empty answer block"


def has_tag(text: str) -> bool:
    """Whether any of the `TAGS` occurs in the text."""
    return any(tag in text for tag in TAGS)


def _is_inside(thought: str, before: str, after: str) -> bool:
    opening, closing = f"<{thought}>", f"</{thought}>"
    return opening in before.rpartition(closing)[2] or closing in after.partition(opening)[0]


# ---- names ---------------------------------------------------------------------------------------

# Typographic twins of one keyboard character, after NFKC. "_" is how data sets write a space.
_KEYBOARD = str.maketrans(
    {"_": " "}
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")  # hyphens, en dash, minus
    | dict.fromkeys("\u2018\u2019", "'")
    | dict.fromkeys("\u201c\u201d", '"')
)


def parse_name(answer: str | None) -> str | None:
    """Return the normalised name; None if it is empty or the answer exceeds `MAX_NAME_CHARS`."""
    if answer is None or len(answer) > MAX_NAME_CHARS:
        return None
    return normalise_name(answer) or None


def normalise_name(text: str) -> str:
    """Return the form in which two spellings of one class name are equal.

    1. Unicode NFKC and case folding: composed = decomposed accents, full width = ASCII, STRASSE =
       straße. Accents stay: "pate" is not "pâté".
    2. Underscores become spaces; typographic hyphens and quotes become the keyboard's.
    3. Runs of white space, line breaks included, become one space.
    4. What a sentence or markdown puts around a name is stripped from both ends: spaces, quotes,
       asterisks, backticks and `. , ; : ! ?`.

    Within the name nothing else is dropped. A hyphen is not a space ("737-800"); zero-width and
    control characters stay, so a name with a hidden character is another name. The function is
    idempotent. Distinct strings may normalise alike: `data.files.check_names` refuses such classes.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFKC", text)  # folding may decompose, as with "ǰ"
    return " ".join(text.translate(_KEYBOARD).split()).strip(" .,;:!?\"'`*")


# ---- numbers and choices -------------------------------------------------------------------------

# Commas only where thousands are: "1,000" and "12,345.6", but neither "1,00" nor "0,500".
_NUMBER = re.compile(r"[+-]?(?:(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)", re.ASCII)


def parse_number(answer: str | None) -> float | None:
    """Return the number that the answer is, or None; always finite, and -0 is 0.

    A plain decimal: an optional sign, digits, at most one point, and commas between thousands.
    Quotes, asterisks and white space around it and one final period are allowed. Words, units,
    exponents, fractions, arithmetic, nan and inf are not, nor more than `MAX_NUMBER_CHARS`.
    """
    if answer is None or len(answer) > MAX_NUMBER_CHARS:
        return None
    digits = _unwrapped(answer).translate(_KEYBOARD)
    if not _NUMBER.fullmatch(digits):
        return None
    return float(digits.replace(",", "")) + 0.0  # -0.0 + 0.0 is 0.0


def parse_choice(answer: str | None) -> str | None:
    """Return the letter of a choice, "A" to "H", or None.

    One letter of either case, alone or in round brackets: B, b, (B), each with an optional final
    period and with quotes or asterisks around it. Two letters are no choice, nor is a sentence.
    """
    letter = _unwrapped(answer or "")
    if letter.startswith("(") and letter.endswith(")"):
        letter = letter[1:-1].strip()
    return letter.upper() if len(letter) == 1 and letter in "ABCDEFGHabcdefgh" else None


def _unwrapped(answer: str) -> str:
    """The answer without white space, quotes and asterisks around it, and one final period."""
    wrapping = " \t\n\r\"'`*“”‘’"
    return answer.strip(wrapping).removesuffix(".").strip(wrapping)


# ---- boxes ---------------------------------------------------------------------------------------


class Box(NamedTuple):
    """An upright box inside its canvas: 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height.

    `confidence` is in [0, 1] and `label` is normalised; each is None if the answer has none.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    confidence: float | None = None
    label: str | None = None


def parse_boxes(answer: str | None, canvas: tuple[float, float]) -> tuple[list[Box], int] | None:
    """Return the boxes of an answer and how many of its items are malformed, or None.

    The answer is one of these, with or without a ``` fence around it:

        No Objects    None    []                          no box (the words as `normalise_name`s)
        [{"Position": [x1, y1, x2, y2], "Confidence": c}, ...]        Visual-RFT
        [{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}, ...]          Qwen2.5-VL, VLM-R1
        {...}                                             one such item without its list
        [x1, y1, x2, y2]    [[x1, y1, x2, y2], ...]       corners alone
        (x1,y1),(x2,y2)                                   Qwen2-VL, LISA; more pairs may follow

    Lists are JSON, or with single quotes, as in the rows published by Visual-RFT. Text that is none
    of these is outside the grammar: None, as for an answer that was cut off.

    Within the grammar an item is malformed, and the caller counts it as a false positive, if
    - it does not have exactly four corners, or one is not a finite number (strings and true are
      not numbers, nor are NaN and 1e999);
    - as written, x1 < x2 and y1 < y2 do not both hold, or no area is left inside the canvas;
    - it has a confidence that is no number in [0, 1], or a label that is no name of at most
      `MAX_LABEL_CHARS` bytes;
    - it comes after `MAX_BOXES` others.

    Args:
        canvas: (width, height) of the coordinates. Boxes are clipped to it, never refused.
    Raises:
        ValueError: the canvas is not two numbers in (0, 1e9]; beyond, areas could overflow.
    """
    if not (len(canvas) == 2 and all(0.0 < size <= 1e9 for size in canvas)):
        raise ValueError(f"canvas={canvas!r} is not a (width, height), each in (0, 1e9]")
    if answer is None or len(answer) > MAX_COMPLETION_CHARS:
        return None
    if parse_name(answer) in ("no objects", "none"):
        return [], 0
    try:
        items = box_items(answer.strip())
    except ValueError:
        return None
    parsed = [_parse_box(item, canvas) for item in items[:MAX_BOXES]]
    boxes = [box for box in parsed if box is not None]
    return boxes, len(items) - len(boxes)


def box_items(text: str) -> list:
    """The items of an answer with boxes, not yet checked. ValueError: outside the grammar."""
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json").removeprefix("python").strip()
    if text.startswith("("):
        # (1,2),(3,4) (5,6),(7,8): with commas between and the brackets swapped, a list of points.
        # Every two are an item; where one of them is no (x, y), it is [], which is malformed.
        swapped = re.sub(r"\)\s*\(", "),(", text).translate(str.maketrans("()[]", "[]()"))
        points = _decode_json(f"[{swapped}]")
        if not all(isinstance(point, list) for point in points):
            raise ValueError("there is something else between the points")
        pairs = zip_longest(points[::2], points[1::2], fillvalue=[])
        return [a + b if len(a) == len(b) == 2 else [] for a, b in pairs]
    try:
        value = _decode_json(text)
    except ValueError:
        value = _decode_json(_STRING.sub(lambda string: f'"{string[0][1:-1]}"', text))
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise ValueError("a lone word or number is no box")
    is_nested = any(isinstance(item, list | dict) for item in value)
    return value if is_nested or not value else [value]


# Strings in double quotes match as well, so that the single quotes in them stay.
_STRING = re.compile(r"\"[^\"]*\"|'[^'\"\\]*'")


def _decode_json(text: str) -> Any:
    """The JSON value of the text. ValueError: not JSON, or nested deeper than `MAX_DEPTH`.

    The depth is checked first, because the decoder recurses on every bracket. Brackets in
    strings do not count; without escaped characters, every second piece between quotes is one.
    """
    pieces = text.replace("\\\\", "").replace('\\"', "").split('"')
    brackets = re.findall(r"[][{}]", " ".join(pieces[::2]))
    depths = accumulate(1 if bracket in "[{" else -1 for bracket in brackets)
    if max(depths, default=0) > MAX_DEPTH:
        raise ValueError("nested too deep")
    return json.loads(text, parse_int=float)  # 5,000 digits become inf, which no box accepts


def _parse_box(item: Any, canvas: tuple[float, float]) -> Box | None:
    """The box of one item, clipped to the canvas, or None if it is malformed."""
    fields = item if isinstance(item, dict) else {"bbox_2d": item}
    corners = fields.get("Position", fields.get("bbox_2d"))
    if not isinstance(corners, list) or len(corners) != 4 or not all(map(_is_finite, corners)):
        return None
    if not (corners[0] < corners[2] and corners[1] < corners[3]):
        return None
    x1, y1, x2, y2 = (
        float(min(max(0.0, corner), size))  # max in this order turns -0.0 into 0.0
        for corner, size in zip(corners, (*canvas, *canvas), strict=True)
    )
    if not (x2 - x1) * (y2 - y1) > 0.0:
        return None
    confidence, label = fields.get("Confidence"), fields.get("label")
    if "Confidence" in fields and not (_is_finite(confidence) and 0.0 <= confidence <= 1.0):
        return None
    if "label" in fields:
        # Before it is normalised: what NFKC makes 18 characters of has three bytes.
        is_short = isinstance(label, str) and len(label) <= MAX_LABEL_CHARS
        is_short = is_short and len(label.encode("utf-8", "replace")) <= MAX_LABEL_CHARS
        label = parse_name(label) if is_short else None
        if label is None:
            return None
    return Box(x1, y1, x2, y2, confidence, label)


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


# ---- calls and sequences -------------------------------------------------------------------------

_VALUE = r"""(?:\w+|'\w+'|"\w+")"""
_CALL = re.compile(  # function(value, ...), and the separator after it
    rf"\s*(\w+)\s*\(\s*((?:{_VALUE}(?:\s*,\s*{_VALUE})*\s*)?)\)\s*[,;]?"
)


def parse_calls(answer: str | None) -> list[tuple[str, ...]] | None:
    """Return the calls of an answer, each (function, value, ...) in folded case, or None.

    "change_colour(f1, red), remove(f3)" gives [("change_colour", "f1", "red"), ("remove", "f3")].
    Names and values are letters, digits and underscores; a value may have quotes around it. White
    space is free between tokens. Calls are separated by a comma, a semicolon or white space, and
    [ ] may surround them all. There are 1 to `MAX_CALLS` of them and nothing else.
    """
    if answer is None or len(answer) > MAX_COMPLETION_CHARS:
        return None
    rest, calls = _without_brackets(answer).casefold(), []
    while rest and len(calls) < MAX_CALLS:
        call = _CALL.match(rest)
        if call is None:
            return None
        calls.append((call[1], *re.findall(r"\w+", call[2])))
        rest = rest[call.end() :]
    return calls if calls and not rest else None


def parse_sequence(answer: str | None) -> list[str] | None:
    """Return the items of an ordering, or None.

    B, A, C = B A C = B > A > C = B -> A -> C = [B, A, C] = BAC, the last for capital letters only.
    An item is a single letter, returned as a capital, or a number of one or two digits, without
    leading zeros. There are 1 to `MAX_SEQUENCE` items, and none occurs twice.
    """
    if answer is None or len(answer) > MAX_NAME_CHARS:
        return None
    items = re.sub("->|[→>,]", " ", _without_brackets(_unwrapped(answer))).split()
    if len(items) == 1 and re.fullmatch("[A-Z]+", items[0]):
        items = list(items[0])
    if not all(re.fullmatch("[A-Za-z]|[0-9]{1,2}", item) for item in items):
        return None
    items = [item.upper() if item.isalpha() else str(int(item)) for item in items]
    has_repeats = len(set(items)) < len(items)
    return items if 1 <= len(items) <= MAX_SEQUENCE and not has_repeats else None


def _without_brackets(answer: str) -> str:
    text = answer.strip()
    return text[1:-1].strip() if text.startswith("[") and text.endswith("]") else text
