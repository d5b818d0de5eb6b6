"""Reading one statement of a thought: words -> `Claim`, or None where they say nothing we know.

The words are the generators' (data/garden/questions.py, data/garden/puzzles.py), with some room:
articles, "is", "flower" and "one" may stand or fail, numbers are digits or words, colours of
centres may be said of petals. What is *true* is not decided here: "nine green flowers" is a claim.

Next: data/garden/thoughts.py.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from data.garden import world
from data.garden.facts import HEALTHY
from data.garden.questions import NUMBER_WORDS, RELATIONS

MAX_NUMBER_CHARS = 50  # longer ones are infinite: true of nothing


class Claim(NamedTuple):
    """What a statement says: a kind and its values.

    kind                    values                              example
    colour                  colour                              red
    count                   colour, number                      2 red
    total, number           number                              3 flowers; 3
    sum                     numbers (signed), result            3 - 2 = 1
    measured                colour, is "at" said, numbers       red 5 4
    extreme                 colour, word                        the blue one is largest
    relation                relation, start, colour             left of blue is red
    looks                   colours, attributes                 red drought; large; red pointed
    fate                    flower (from 1), box, words         f2 [..] small red same; f1 gone
    petals                  attributes of a portrait            six pointed red petals
    stage, lettered, then   stage; picture (from 0), stage      bud; B bud; then bloom
    nothing                 (none)                              nothing

    `thoughts.check_thought` turns a colour or a stage by itself into one of these:
    listed (place in its list from 0, value) or asked (value).
    """

    kind: str
    values: tuple = ()


Attributes = tuple[tuple[str, str | float], ...]  # pairs of name and value

NUMBERS = {word: float(number) for number, word in enumerate(NUMBER_WORDS)}
NUMBERS |= {"zero": 0.0, "nine": 9.0, "ten": 10.0, "eleven": 11.0, "twelve": 12.0}
COLOURS = tuple(dict.fromkeys(world.COLOURS + world.CENTRES))
_N = rf"(\d+(?:\.\d+)?|{'|'.join(NUMBERS)})"
_C = f"({'|'.join(COLOURS)})"
_R = f"({'|'.join(RELATIONS)})"
_SIZE = f"({'|'.join(world.SIDES)})"
_STAGE = f"({'|'.join(world.STAGES)})"
_VERDICT = "(same|size|colour)"
_BOX = r"\[([\d ,.]*)\]"
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+\d*|\S")
_FILLERS = frozenset("the a an is are there it has have with cm wide now".split())
_MINUS = str.maketrans("\u2010\u2011\u2012\u2013\u2212", "-----")
_ATTRIBUTES = {word: "size" for word in world.SIDES} | {word: "shape" for word in world.SHAPES}
_ATTRIBUTES |= {word: "cause" for word in (*world.CAUSES, HEALTHY)}


def number(text: str) -> float:
    """The value of a number in digits (of any script) or as a word; infinite for a long one."""
    if text in NUMBERS:
        return NUMBERS[text]
    return float(text) if len(text) <= MAX_NUMBER_CHARS else float("inf")


def words_of(text: str) -> list[str]:
    """The words, numbers and signs of a statement in lower case."""
    return _WORD.findall(text.lower().translate(_MINUS))


def scene_claim(text: str, is_about_centres: bool = False) -> Claim | None:
    """What a statement says of a scene; None if it cannot be read.

    `is_about_centres`: the question is about the colour of a centre, so "red yellow" says it.
    """
    words = words_of(text)
    plain = " ".join(word for word in words if word not in _FILLERS)
    plain = re.sub(rf"\b{_C} (?:flowers?|ones?)\b", r"\1", plain)
    for pattern, build in _SCENE_FORMS:
        if found := pattern.fullmatch(plain):
            return build(*found.groups())
    return _sum(plain) or _fate(plain) or _looks(plain.split(), is_about_centres)


def _form(pattern: str, build: Callable[..., Claim]) -> tuple[re.Pattern, Callable[..., Claim]]:
    return re.compile(pattern), build


_SCENE_FORMS = (
    _form(_C, lambda colour: Claim("colour", (colour,))),
    _form(f"{_N} {_C}", lambda n, colour: Claim("count", (colour, number(n)))),
    _form(f"{_N} flowers?", lambda n: Claim("total", (number(n),))),
    _form(rf"(?!no\b){_N}", lambda n: Claim("number", (number(n),))),
    _form(
        rf"{_C}( at)? (?!no\b){_N}(?: {_N})?",
        lambda colour, at, n, m: Claim(
            "measured", (colour, bool(at), tuple(number(k) for k in (n, m) if k))
        ),
    ),
    _form(f"{_C} (largest|smallest)", lambda colour, word: Claim("extreme", (colour, word))),
    _form(f"(largest|smallest) {_C}", lambda word, colour: Claim("extreme", (colour, word))),
    _form(f"{_R} {_C} {_C}", lambda words, start, c: Claim("relation", (words, start, c))),
    _form(f"{_C} {_R} {_C}", lambda c, words, start: Claim("relation", (words, start, c))),
    _form("nothing", lambda: Claim("nothing")),
)


def _sum(plain: str) -> Claim | None:
    """ "3 - 2 = 1": signed terms and their result."""
    left, equals, right = plain.partition(" = ")
    terms = re.split(r" ([+-]) ", left)
    numbers = [*terms[::2], right.removeprefix("- ")]
    if not equals or len(terms) < 3 or not all(re.fullmatch(_N, text) for text in numbers):
        return None
    signs = ["+", *terms[1::2], "-" if right.startswith("- ") else "+"]
    *signed, result = (
        -number(text) if sign == "-" else number(text)
        for sign, text in zip(signs, numbers, strict=True)
    )
    return Claim("sum", (tuple(signed), result))


def _fate(plain: str) -> Claim | None:
    """ "f2 [250, 42, 500, 292] small red same", with any of its parts, or "f2 gone"."""
    found = re.fullmatch(
        rf"f(\d{{1,9}})(?: {_BOX})?(?: {_SIZE})?(?: {_C})?(?: {_VERDICT})?( gone)?", plain
    )
    if not found:
        return None
    flower, corners, size, colour, verdict, gone = found.groups()
    box = None if corners is None else tuple(map(number, re.findall(r"\d+(?:\.\d+)?", corners)))
    pairs = (("size", size), ("colour", colour), ("verdict", verdict), ("gone", gone and "gone"))
    said = tuple((name, value) for name, value in pairs if value)
    return Claim("fate", (int(flower), box, said)) if corners or said else None


def _looks(words: list[str], is_about_centres: bool) -> Claim | None:
    """Attributes in any order, of the flower of a colour or of the one that is asked about."""
    if is_about_centres and len(words) == 2 and {*words} <= {*COLOURS}:
        words = [*words, "centre"]
    colours, said = _attributes(words) or ((), ())
    if not said and len(colours) == 1:
        return Claim("colour", colours)
    return Claim("looks", (colours, said)) if said or colours else None


def petals_claim(text: str) -> Claim | None:
    """What a statement says of the one flower of a portrait; None if it cannot be read.

    Words in any order; a colour is that of the petals unless "centre" follows it.
    """
    words = [word for word in words_of(text) if word not in _FILLERS | {"flower"}]
    colours, said = _attributes(words) or ((), ())
    said += tuple(("colour", colour) for colour in colours)
    return Claim("petals", (said,)) if said else None


def _attributes(words: list[str]) -> tuple[tuple[str, ...], Attributes] | None:
    """(Colours of petals, other attributes); None if a word is not known."""
    colours, said = [], []
    for word, after in zip(words, [*words, ""][1:], strict=True):
        if word in COLOURS:
            if after == "centre":
                said.append(("centre", word))
            else:
                colours.append(word)
        elif word in _ATTRIBUTES:
            said.append((_ATTRIBUTES[word], word))
        elif re.fullmatch(_N, word):
            said.append(("petals", number(word)))
        elif word not in ("petal", "petals", "centre", "flower"):
            return None
    return tuple(colours), tuple(said)


def stage_claim(text: str) -> Claim | None:
    """What a statement says of the pictures of a growing plant; None if it cannot be read.

    A small "a" is an article, other letters in front are those of pictures.
    """
    letter = re.match(r"(?:[Pp]icture\s+)?([A-Hb-h])\s+", text)
    plain = " ".join(words_of(text[letter.end() :] if letter else text))
    found = re.fullmatch(rf"(?:is )?(then )?(?:comes )?(?:the |an? )?{_STAGE}", plain)
    if not found or (letter and found[1]):
        return None
    if letter:
        return Claim("lettered", ("ABCDEFGH".index(letter[1].upper()), found[2]))
    return Claim("then" if found[1] else "stage", (found[2],))
