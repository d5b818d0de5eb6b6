"""Names of classes as data give them: which differ, which are one, which no answer can say.

Next: data/labelled.py.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from answers import MAX_NAME_CHARS, normalise_name, parse_answer
from data.paths import shown
from runtime.errors import InputError, visible

HIDDEN = ("Cf", "Cc")  # Unicode categories: format and control characters
BLANK = "\u115f\u1160\u3164\uffa0\u2800" + "".join(map(chr, range(0xFE00, 0xFE10)))
# A number that a folder carries for the order only: CUB's "001.Black_footed_Albatross", and the
# WordNet ids of ImageNet and Stanford Dogs, "n02085620-Chihuahua".
_NUMBER = re.compile(r"(?P<number>\d+)[ ._-]+(?P<name>\D.*)")
_WORDNET = re.compile(r"(?P<number>n\d{8})[ ._-]+(?P<name>.+)")


def check_names(names: Iterable[Any], where: str) -> None:
    """Raise InputError unless these are names of classes that differ after `normalise_name`.

    Names that differ in characters nobody sees are refused, too, and names that no answer block
    can hold.
    """
    spelling: dict[str, str] = {}
    looks: dict[str, str] = {}
    for name in names:
        normalised = normalise_name(name[: MAX_NAME_CHARS + 1]) if isinstance(name, str) else ""
        if not normalised or len(name) > MAX_NAME_CHARS:
            raise InputError(f"{where}: {shown(name)} cannot be a class name; rename it")
        check_sayable(name, where)
        if normalised in spelling:
            pair = f"{shown(spelling[normalised])} and {shown(name)}"
            raise InputError(f"{where}: {pair} are the same answer; rename one")
        seen = seen_form(normalised)
        if seen in looks:
            pair = f"{visible(looks[seen])!r} and {visible(name)!r}"
            raise InputError(f"{where}: {pair} differ in hidden characters only; remove these")
        spelling[normalised] = looks[seen] = name


def check_sayable(name: str, where: str) -> None:
    """Raise InputError for a name that cannot stand in an answer block, or in any text."""
    if re.search("[\ud800-\udfff]", name):
        raise InputError(f"{where}: {shown(name)} has half a surrogate pair; repair the name")
    if parse_answer(f"<answer>{name}</answer>") is None:
        what = f"{shown(name)} holds a tag of the answer format, so no answer can say it"
        raise InputError(f"{where}: {what}; rename it")


def seen_form(name: str) -> str:
    """A normalised name without the characters that print nothing."""
    if name.isascii():
        return name
    return "".join(c for c in name if c not in BLANK and unicodedata.category(c) not in HIDDEN)


def spellings(names: Iterable[str]) -> dict[str, list[str]]:
    """The spellings of each class, in order, by normalised name."""
    classes: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        classes.setdefault(normalise_name(name), []).append(name)
    return classes


def without_numbers(names: list[str]) -> dict[str, str]:
    """Folder -> class name, less the numbers that put the folders of CUB or ImageNet in order.

    Numbers are dropped if every folder has one, they count on or are padded with zeros, and the
    rest are different names; "737-800" and "747-400" stay as they are. Says so in one line.
    """
    for pattern in (_NUMBER, _WORDNET):
        matches = [pattern.fullmatch(name) for name in names]
        if len(names) < 2 or not all(matches):
            continue
        numbers = [match["number"] for match in matches]
        padded = len({*map(len, numbers)}) == 1 and any(n[0] == "0" for n in numbers)
        counts = pattern is _WORDNET or padded
        if not counts:
            values = sorted(map(int, numbers))
            counts = values == [*range(values[0], values[0] + len(values))]
        rest = {normalise_name(match["name"]) for match in matches}
        if counts and len(rest) == len(names) and "" not in rest:
            first = f"{names[0]!r} is the class {matches[0]['name']!r}"
            print(f"data: the numbers in front of the folders' names are dropped: {first}")
            return {name: match["name"] for name, match in zip(names, matches, strict=True)}
    return {name: name for name in names}
