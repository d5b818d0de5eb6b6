r"""The forms in which the field's data write their answers -> the grammar of answers.py.

    NUMBER.read("$\boxed{145^\circ}$")    # after `plain`: "145"
    BOXES.read("<|box_start|>(10,20),(300,400)<|box_end|>")

`plain` takes LaTeX away, for every task. A `Form` is what a task reads as its target: one stated
rule, with examples that a refusal shows. Nothing is computed ("1/2" is no number) and nothing is
searched for in a sentence.

- NUMBER: a number, alone or with a currency before it or one unit after it, which is dropped:
  "145°", "12 cm", "50 %" (50), "$5", "1,250". A unit without a space is a sign or one of `UNITS`.
  "12 thousand" is no number: `_MULTIPLES` are no units.
- CHOICE: a letter, alone or before the text of its choice: "A", "(B)", "C. red", "D) 5 cm". Where
  a short text is asked for, only if most questions offer such choices (`are_choices`).
- BOXES, ONE_BOX: what `answers.parse_boxes` reads, "position" for "Position", and the special
  tokens of Qwen-VL and InternVL. "bbox" and "box_2d" are refused: the former may mean x, y, width,
  height, the latter is y, x, y, x.

Next: data/rows.py.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from answers import (
    MAX_DEPTH,
    box_items,
    parse_calls,
    parse_choice,
    parse_name,
    parse_number,
    parse_sequence,
)
from data.paths import shown
from rewards import well_formed_box, well_formed_boxes
from runtime import unique_json
from runtime.errors import InputError

ANY_CANVAS = (1e6, 1e6)  # of boxes whose frame is not known yet
Corners = tuple[float, float, float, float]  # as written: x1, y1, x2, y2


class Form(NamedTuple):
    """A kind of target: its name and examples, for messages, and text -> target, or None."""

    name: str
    examples: str
    read: Callable[[str], str | None]


# ---- LaTeX ---------------------------------------------------------------------------------------

_STYLES = r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|textrm|mbox|operatorname)\s*\{([^{}]*)\}"
_SIGNS = {
    r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|\\circ\b": "°",
    r"\\([%$&_#])": r"\1",
    r"\\[,;:! ]|\\quad\b|~": " ",
    r"\\(?:left|right|displaystyle)\b": "",
}


def plain(text: str) -> str:
    r"""A solution without LaTeX: the content of its last \boxed{..}, of \text{..} and the like.

    Dollars and \( \) around the whole are dropped. What is no LaTeX stays as it is.
    """
    text = text.strip()
    if text[:1] in "[{" and not text.startswith(r"\["):  # JSON has backslashes of its own
        return text
    text = _boxed(text) or text
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inner = text[len(opening) : -len(closing)]
        is_around = text.startswith(opening) and text.endswith(closing)
        if is_around and len(text) > len(opening + closing) and opening not in inner:
            text = inner.strip()
    if "\\" not in text:
        return text
    for _ in range(MAX_DEPTH):  # of \text{} in \text{}
        text = re.sub(_STYLES, r"\1", text)
    for pattern, sign in _SIGNS.items():
        text = re.sub(pattern, sign, text)
    return " ".join(text.split())


def _boxed(text: str) -> str | None:
    r"""What is in the last \boxed{..}, None if there is none that is closed."""
    _, opening, rest = text.rpartition(r"\boxed{")
    depth = 1
    for place, char in enumerate(rest if opening else ""):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[:place].strip() or None
    return None


# ---- numbers and letters -------------------------------------------------------------------------

UNITS = "mm cm dm m km in ft mg g kg t ml cl l s ms min h px deg rad degrees degree"
_UNIT = rf"\s*(?:°\s?[CF]?|[%‰€£¥′″]|(?:{'|'.join(UNITS.split())})(?:\^?[23]|[²³])?)"
_WORD = r"\s+[^\W\d_]{1,20}(?:\^?[23]|[²³])?(?:/[^\W\d_]{1,10})?"
_MULTIPLES = r"\s*(?:hundreds?|thousands?|[mb]illions?|trillions?|bn|dozens?|(?-i:[kMB]))\b"
_AMOUNT = re.compile(
    rf"[$€£¥]?\s*([+−-]?[\d.,]+)(?!{_MULTIPLES})(?:{_UNIT}|{_WORD})?", re.IGNORECASE
)
_LETTER = re.compile(r"\(?([A-Ha-h])(?:\)|\.|:|\)\.)\s*(\S.*)", re.DOTALL)
_LISTED = re.compile(r"""\s*[\[{]\s*["']""")


def number(text: str) -> str | None:
    """The number of a text that is a number with at most a currency or a unit, else None."""
    if parse_number(text) is not None:
        return text
    match = _AMOUNT.fullmatch(text.strip().removesuffix("."))
    return match[1] if match and parse_number(match[1]) is not None else None


def choice(text: str) -> str | None:
    """The letter of a text that is a letter, or begins with one and a sign that ends it."""
    if parse_choice(text) is not None:
        return text
    match = _LETTER.fullmatch(text.strip())
    return match[1].upper() if match else None


def number_or_choice(text: str) -> str | None:
    """A number, otherwise a letter."""
    return number(text) or choice(text)


# ---- boxes ---------------------------------------------------------------------------------------

_TOKENS = {
    "<|object_ref_start|>": "<ref>",
    "<|object_ref_end|>": "</ref>",
    "<|box_start|>": "<box>",
    "<|box_end|>": "</box>",
}
_POSITION = re.compile(r"([\"'])position\1(?=\s*:)")
_MARKED = re.compile(r"(?:<ref>([^<]*)</ref>)?\s*<box>([^<]*)</box>[\s,]*")


def boxes(text: str) -> str | None:
    """A text of well-formed boxes and nothing else, in a form that answers.py reads, else None."""
    text = _without_tokens(text)
    if text is None:
        return None
    if _POSITION.search(text):
        if "bbox_2d" in text or "Position" in text:  # two names for a box at once
            return None
        text = _POSITION.sub(r"\1bbox_2d\1", text)
    return text if well_formed_boxes(text, ANY_CANVAS) is not None else None


def one_box(text: str) -> str | None:
    """A text of one well-formed box."""
    text = boxes(text)
    return text if text is not None and well_formed_box(text, ANY_CANVAS) is not None else None


def _without_tokens(text: str) -> str | None:
    """Boxes in special tokens as JSON, other text as it is; None where more is around them."""
    for token, tag in _TOKENS.items():
        text = text.replace(token, tag)
    if "<box>" not in text:
        return text
    if _MARKED.sub("", text).strip():
        return None
    items = []
    for label, content in _MARKED.findall(text):
        try:
            found = box_items(content.strip())
        except ValueError:
            return None
        items += [{"bbox_2d": box} | ({"label": label.strip()} if label else {}) for box in found]
    return json.dumps(items)


def corners(target: str) -> list[Corners]:
    """The boxes of a target that `boxes` has read, as they are written: no limits, unclipped."""
    target = target.strip()
    if parse_name(target) in ("no objects", "none"):
        return []
    items = [item if isinstance(item, dict) else {"bbox_2d": item} for item in box_items(target)]
    return [tuple(map(float, item.get("Position", item.get("bbox_2d")))) for item in items]


def check_keys(text: str, where: str) -> None:
    """Raise InputError for a JSON solution with a key that occurs twice in an object."""
    if "{" in text:
        try:
            unique_json.loads(text.strip().removeprefix("```json").strip("` \n"))
        except unique_json.DuplicateKeyError as error:
            raise InputError(f"{where}: the solution: {error}; remove one") from None
        except (ValueError, RecursionError):  # no JSON: the task says what it is
            pass


# ---- the forms -----------------------------------------------------------------------------------


def word(text: str) -> str | None:
    """Any short text; a list of several, or an object, is what no answer repeats."""
    is_list = _LISTED.match(text) is not None
    return text if parse_name(text) is not None and not is_list else None


def are_choices(asked: Sequence[tuple[str, str]]) -> bool:
    """Whether most solutions of (question, solution) pairs are letters before the text of a choice,
    "B. red", that the question offers; "E. coli" is a name where it does not.
    """
    found = [(question, _LETTER.fullmatch(text.strip())) for question, text in asked]
    offered = [match for question, match in found if match and match[2] in question]
    return 2 * len(offered) > len(asked)


def one_of(*words: str) -> Callable[[str], str | None]:
    """A reader of these words alone."""
    return lambda text: text if parse_name(text) in words else None


def _if(parse: Callable[[str], object]) -> Callable[[str], str | None]:
    return lambda text: text if parse(text) else None


NUMBER = Form("a number", "'3', '1,250', '145°' or '12 cm'", number)
NUMBER_OR_CHOICE = Form("a number or a letter", "'4.5', '145°', 'B' or 'B. 5 cm'", number_or_choice)
BOXES = Form(
    "a list of boxes x1 < x2, y1 < y2",
    '\'[{"bbox_2d": [10, 20, 300, 400], "label": "cat"}]\', \'[[10, 20, 300, 400]]\' or '
    "'(10,20),(300,400)'; keys bbox_2d, Position or position, 'No Objects' for none",
    boxes,
)
ONE_BOX = Form(
    "one box x1 < x2, y1 < y2",
    "'[10, 20, 300, 400]' or '{\"bbox_2d\": [10, 20, 300, 400]}'; keys bbox_2d, Position, position",
    one_box,
)
CALLS = Form("a list of calls", "'change_color(cube_1, red), remove(ball_2)'", _if(parse_calls))
SEQUENCE = Form(
    "an order of letters or numbers",
    "'B, A, C'",
    lambda text: text if len(parse_sequence(text) or ()) > 1 else None,
)
WORD = Form("a short text", "'in the shade'", word)
LETTER_OR_WORD = Form(
    "a letter or a short text", "'B', 'B. red'", lambda text: choice(text) or word(text)
)


def say_rewritten(pairs: Iterable[tuple[str, str]]) -> None:
    """One line about solutions that are read as something else than they say, (before, after)."""
    if changed := [(before, after) for before, after in pairs if before != after]:
        before, after = changed[0]
        what = f"{len(changed)} solutions are read by their form, {shown(before)} as {shown(after)}"
        print(f"data: {what}")
