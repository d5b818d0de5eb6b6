"""Two measures of a thought: how much of it is true, and whether the answer follows from it.

A thought is *faithful* where the answer that was given is the one that its statements imply. For
that, they count as they are stated, true or not, and of several about one thing the first; the
question may be used, the picture may not. So a faithful answer can be wrong (it was seen wrongly),
and a right one unfaithful (it was guessed, or known from elsewhere).

    kind            what implies the answer
    cls, genus      the four attributes; attribute: the one that is asked for
    count           the colours of the list; without a list, the counts that are stated
    vqa             sizes or places of all flowers, or else the statement who is largest, left, ...;
                    the stated shape
    why             the cause that is stated of the flower in question
    measure         the stated widths, places or distances
    change          what is stated of every flower of the prompt
    order, next     the stages of all pictures
    entail          what is stated of the flowers in the statement; none of them: unknown

It is not defined for det, ground and region, whose answers are boxes or are about boxes that no
thought tells, nor for descriptions (caption, look). Next: tasks/scenes.py.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from answers import (
    parse_answer,
    parse_calls,
    parse_choice,
    parse_name,
    parse_number,
    parse_sequence,
)
from data.garden import world
from data.garden.claims import Claim, scene_claim
from data.garden.facts import COLOUR, Facts
from data.garden.thoughts import Statement, check_completion, result_of
from data.garden.world import STAGES

_AXES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def share_true(statements: Iterable[Statement]) -> float | None:
    """Of the statements that can be read, how many are true; None where none can be read."""
    truths = [s.is_true for s in statements if s.is_true is not None]
    return sum(truths) / len(truths) if truths else None


def is_faithful(completion: str, facts: Facts) -> bool | None:
    """Whether the answer of a completion follows from what it states; None: undefined (see above).

    False for a completion without an answer, or one whose statements imply none.
    """
    if facts.kind not in IMPLIED:
        return None
    given = parse_answer(completion)
    implied = implied_answer(check_completion(completion, facts), facts)
    if given is None or implied is None:
        return False
    parsers = (parse_number, parse_choice, parse_calls, parse_sequence, parse_name)
    parse = next(parse for parse in parsers if parse(implied) is not None)
    return parse(given) == parse(implied)


def implied_answer(statements: Sequence[Statement], facts: Facts) -> str | None:
    """The answer that follows from the statements and the question alone; None where none does.

    `facts` give the kind and the prompt.
    """
    imply = IMPLIED.get(facts.kind)
    return imply and imply([s.claim for s in statements if s.claim], facts.prompt)


# ---- reading the claims --------------------------------------------------------------------------


def _listed(claims: Sequence[Claim]) -> list[str]:
    """The first list of colours or stages."""
    found: list[str] = []
    for place, value in (claim.values for claim in claims if claim.kind == "listed"):
        if place != len(found):
            break
        found.append(value)
    return found


def _count(claims: Sequence[Claim], colour: str | None) -> float | None:
    """How many flowers of a colour (None: of all) are stated: by the list, or else by a number."""
    if listed := _listed(claims):
        return len(listed) if colour is None else Counter(listed)[colour]
    wanted = ("total",) if colour is None else ("count", colour)
    numbers = (c.values[-1] for c in claims if (c.kind, *c.values[:-1]) == wanted)
    return next(numbers, None)


def _attribute(claims: Sequence[Claim], name: str, colour: str) -> str | None:
    """What is stated of the flower of this colour, by its colour or of the one in question."""
    for claim in claims:
        if claim.kind == "looks" and claim.values[0] in ((), (colour,)):
            if value := dict(claim.values[1]).get(name):
                return value
    return None


def _measured(claims: Sequence[Claim], count: int) -> list[tuple[str, tuple[float, ...]]]:
    """(colour, numbers) of all statements with so many numbers; what is repeated stands once."""
    pairs = [(c.values[0], c.values[2]) for c in claims if c.kind == "measured"]
    return list(dict.fromkeys(pair for pair in pairs if len(pair[1]) == count))


def _lengths(claims: Sequence[Claim]) -> dict[str, float]:
    """The first number that is stated of each colour."""
    return {colour: number for colour, (number,) in reversed(_measured(claims, 1))}


# ---- what follows: one function for each kind of question ----------------------------------------


def _name(claims: Sequence[Claim], prompt: str) -> str | None:
    """The species with these attributes, its genus, or one attribute."""
    said = dict(reversed([pair for c in claims if c.kind == "petals" for pair in c.values[0]]))
    for name, words in (("petals", "many"), ("shape", "shape"), ("centre", "centre")):
        if prompt.startswith((f"How {words}", f"What {words}")) or prompt.endswith(f"{words}?"):
            return str(said[name]).removesuffix(".0") if name in said else None
    if "colour" in prompt:
        return said.get("colour")
    found = (flower for flower in world.SPECIES_OF if vars(flower) == said)
    species = world.SPECIES_OF.get(next(found, None))
    return species and (species.genus if "genus" in prompt else species.name)


def _how_many(claims: Sequence[Claim], prompt: str) -> str | None:
    """The number asked for, of the stated counts."""
    colours = re.findall(rf"\b{COLOUR}\b", prompt)
    asked = [None, *colours] if prompt.startswith("If all") else colours or [None]
    counts = [_count(claims, colour) for colour in asked]
    return None if None in counts else f"{result_of(prompt, counts):g}"


def _which(claims: Sequence[Claim], prompt: str) -> str | None:
    """The colour of the flower that is largest, or left of another; the shape; or the cause."""
    if named := re.search(rf"(?:petals of|does) the ({COLOUR}) flower", prompt):
        return _attribute(claims, "cause" if prompt.startswith("Why") else "shape", named[1])
    if extreme := re.search("largest|smallest", prompt):
        areas = [(w * h, colour) for colour, (w, h) in _measured(claims, 2)]
        if len(areas) > 1:
            return (max if extreme[0] == "largest" else min)(areas)[1]
        wanted = ("extreme", extreme[0])
        return next((c.values[0] for c in claims if (c.kind, c.values[-1]) == wanted), None)
    words, start = re.search(rf"({'|'.join(_AXES)}) the ({COLOUR})", prompt).groups()
    if places := _measured(claims, 2):
        of_start = [numbers for colour, numbers in places if colour == start][:1]
        found = [colour for colour, at in places for s in of_start if _is_beyond(at, s, words)]
        return found[0] if len(found) == 1 else None
    wanted = (words, start)
    said = (c.values for c in claims if c.kind == "relation" and c.values[:2] == wanted)
    return next((values[2] for values in said), None)


def _is_beyond(place: tuple[float, ...], start: tuple[float, ...], words: str) -> bool:
    axis, sign = _AXES[words]
    return sign * (place[axis] - start[axis]) > 0


def _length(claims: Sequence[Claim], prompt: str) -> str | None:
    """A length, a difference of two, or the letter of an option."""
    lengths = _lengths(claims)
    asked, _, listed = prompt.partition("? ")
    options = dict(re.findall(r"([A-D]) (\w+)", listed))
    colours = re.findall(rf"\b{COLOUR}\b", asked)
    if asked.startswith("Which is farthest"):
        letters = [letter for letter, colour in options.items() if colour in lengths]
        is_complete = len(letters) == len(options)
        return max(letters, key=lambda x: lengths[options[x]]) if is_complete else None
    if not all(colour in lengths for colour in colours):
        return None
    length = f"{result_of(prompt, [lengths[colour] for colour in colours]):g}"
    letters = {value: letter for letter, value in options.items()}
    return letters.get(length) if options else length


def _calls(claims: Sequence[Claim], prompt: str) -> str | None:
    """The calls that make the flowers of the prompt what is stated of each."""
    fates: dict[int, dict] = {}
    for claim in claims:
        if claim.kind == "fate":
            fates.setdefault(claim.values[0], dict(claim.values[2]))
    calls = []
    for number, size, colour in re.findall(r"f(\d+) (\w+) (\w+) \[", prompt):
        fate = fates.get(int(number), {})
        new_size, new_colour = fate.get("size"), fate.get("colour")
        if "gone" in fate:
            calls.append(f"remove(f{number})")
        elif new_size is None or new_colour is None:
            return None
        elif new_colour != colour:
            calls.append(f"change_colour(f{number}, {new_colour})")
        elif new_size != size:
            calls.append(f"change_size(f{number}, {new_size})")
    return ", ".join(calls) or None


def _order(claims: Sequence[Claim], prompt: str) -> str | None:
    """The letters of the prompt in the order of their stages, or the stage after the first."""
    if not prompt.startswith("Order"):
        shown = _listed(claims)[:1]
        return "".join(STAGES[STAGES.index(shown[0]) + 1 :][:1]) or None if shown else None
    stage_of = dict(reversed([c.values for c in claims if c.kind == "lettered"]))
    letters = re.findall(r"\b[A-D]\b", prompt)
    if not all("ABCD".index(letter) in stage_of for letter in letters):
        return None
    return ", ".join(sorted(letters, key=lambda x: STAGES.index(stage_of["ABCD".index(x)])))


def _verdict(claims: Sequence[Claim], prompt: str) -> str | None:
    """Yes or no, as the statement of the prompt is what the thought says; or unknown."""
    text = prompt.partition(": ")[2].removesuffix(".")
    asked = scene_claim(text, is_about_centres=True)
    if asked is None or asked.kind not in ("looks", "relation"):
        return None
    colours = asked.values[1:] if asked.kind == "relation" else asked.values[0]
    if any(_count(claims, colour) == 0 for colour in colours):
        return "unknown"
    truth = _agrees(claims, asked)
    return None if truth is None else "yes" if truth else "no"


def _agrees(claims: Sequence[Claim], asked: Claim) -> bool | None:
    """Whether attributes or places as stated make `asked` true; None where they are missing."""
    if asked.kind == "looks":
        (colour,), ((name, value),) = asked.values
        found = _attribute(claims, name, colour)
        return None if found is None else found == value
    words, start, colour = asked.values
    places = dict(reversed(_measured(claims, 2)))
    if colour not in places or start not in places:
        return None
    return _is_beyond(places[colour], places[start], words)


IMPLIED: dict[str, Callable[[Sequence[Claim], str], str | None]] = {
    "cls": _name, "genus": _name, "attribute": _name, "count": _how_many, "vqa": _which,
    "why": _which, "measure": _length, "change": _calls, "order": _order, "next": _order,
    "entail": _verdict,
}  # fmt: skip
