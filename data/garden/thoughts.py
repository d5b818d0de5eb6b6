"""The exact check of a thought: which of its statements are true of the pictures?

A thought is split at its own separators. A colon (or a tag) ends a *part*, the others end a
statement within it: comma, semicolon, full stop, question and exclamation mark, line break, "and".
Each statement is read (data/garden/claims.py) and compared with the facts (data/garden/facts.py).

Places matter in three ways:

- *Lists.* Colours by themselves are a list in reading order: the i-th of a part says that flower i
  has this colour. A list that is too long says that there are more flowers. One that is too short
  says nothing untrue; a number that relies on it does.
- *Measured lists.* "red 5 4, blue 9 3": within a part, each is about another flower. A colour that
  occurs twice belongs to two flowers, first of all to those at the same place of the list.
- *The flower asked for.* Where the question is about one flower, a colour alone in its part names
  it ("...: the blue one"), and attributes without a colour are its own ("red: pointed").

Every claim stands for itself: a later one takes nothing back, and a repeated one earns nothing. A
statement that holds several facts is true if all of them are. Nothing here raises for any text.

Next: data/garden/faithful.py, what follows from a thought.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from answers import MAX_COMPLETION_CHARS
from data.garden.claims import Attributes, Claim, petals_claim, scene_claim, stage_claim
from data.garden.facts import Facts, measures
from data.garden.questions import RELATIONS
from data.garden.world import STAGES, Placed, box_1000

CAPTION = "caption"  # the kind of a text that says what is seen, whatever is asked
_SEPARATOR = re.compile(
    r"(?P<box>\[[\d\s,.]{0,60}\])|(?P<part>:|</?\w{1,12}>)"
    r"|[,;?!\n<>]|(?<!\d)\.|\.(?!\d)|\band\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Statement:
    """One statement of a thought.

    Attributes:
        text: its words. start, end: where they stand, in characters of the thought.
        is_true: None if it cannot be read, or says nothing that the pictures could show.
        claim: what it says, if it can be read.
    """

    text: str
    start: int
    end: int
    is_true: bool | None = None
    claim: Claim | None = None


def check_thought(thought: str, kind: str, facts: Facts) -> list[Statement]:
    """Every statement of a thought, in order, with its truth.

    Args:
        kind: "caption" for a text that only says what is seen, else the kind of the question.
    A thought of more than `answers.MAX_COMPLETION_CHARS` characters is one unreadable statement.
    """
    if len(thought) > MAX_COMPLETION_CHARS:
        return [Statement(thought, 0, len(thought))]
    about = replace(facts, prompt="") if kind == CAPTION else facts
    parts: dict[int, list[Statement]] = defaultdict(list)
    for part, start, end in _pieces(thought):
        text = thought[start:end]
        parts[part].append(Statement(text, start, end, claim=_read(text, about)))
    return [
        checked
        for number, statements in parts.items()
        for checked in _check_part(_placed(statements, number, about), about)
    ]


def _pieces(thought: str) -> Iterator[tuple[int, int, int]]:
    """(Number of the part, start, end) of every statement, without the white space around it."""
    part = begin = 0
    is_empty = True  # the part: a colon or tag in front of everything ends nothing
    for mark in [*_SEPARATOR.finditer(thought), None]:
        if mark and mark["box"]:  # the commas of a box separate nothing
            continue
        end = mark.start() if mark else len(thought)
        if text := thought[begin:end].strip():
            start = thought.index(text, begin)
            yield part, start, start + len(text)
            is_empty = False
        if mark:
            begin = mark.end()
        if mark and mark["part"] and not is_empty:
            part, is_empty = part + 1, True


def _read(text: str, facts: Facts) -> Claim | None:
    if facts.flower:
        return petals_claim(text)
    return stage_claim(text) if facts.stages else scene_claim(text, "centre" in facts.prompt)


def _placed(statements: Sequence[Statement], part: int, facts: Facts) -> list[Statement]:
    """The statements of a part, with lone colours and stages in their places: listed or asked."""
    alone = [s for s in statements if s.claim and s.claim.kind in ("colour", "stage")]
    is_asked = len(alone) == 1 and (part > 0 or facts.names_its_flower) and facts.asked
    place_of = {s.start: place for place, s in enumerate(alone)}
    placed = []
    for s in statements:
        claim = s.claim
        if s.start in place_of:
            (value,) = claim.values
            listed = Claim("listed", (place_of[s.start], value))
            claim = Claim("asked", (value,)) if is_asked else listed
        placed.append(replace(s, claim=claim))
    return placed


def _check_part(statements: Sequence[Statement], facts: Facts) -> list[Statement]:
    """The statements with their truth. Those that are measured alike share out the flowers."""
    alike: dict[str | None, list[Statement]] = defaultdict(list)
    for s in statements:
        if s.claim and s.claim.kind == "measured":
            _, is_at, numbers = s.claim.values
            alike[facts.meaning(len(numbers), is_at)].append(s)
    truths: dict[int, bool | None] = {}
    for meaning, measured in alike.items():
        said = [(s.claim.values[0], s.claim.values[2]) for s in measured]
        found = are_measured(said, meaning, facts) if meaning else [None] * len(said)
        truths |= zip((s.start for s in measured), found, strict=True)
    return [replace(s, is_true=truths.get(s.start, _truth(s.claim, facts))) for s in statements]


def _truth(claim: Claim | None, facts: Facts) -> bool | None:
    check = claim and CHECKS.get(claim.kind)
    return check(facts, *claim.values) if check else None


# ---- what counts as true: one function for each kind of claim ------------------------------------


def is_listed(facts: Facts, place: int, value: str) -> bool:
    """The flower (or the stage) at this place, in reading order, has this colour (or name)."""
    shown = facts.stages or [p.colour for p in facts.scene]
    return place < len(shown) and shown[place] == value


def is_asked(facts: Facts, colour: str) -> bool:
    """The flower that the question is about, or looks for, has this colour."""
    return facts.asked is not None and facts.asked.colour == colour


def is_count(facts: Facts, colour: str, number: float) -> bool:
    """The scene shows exactly so many flowers of this colour."""
    return facts.counts[colour] == number


def is_total(facts: Facts, number: float) -> bool:
    """The scene shows exactly so many flowers."""
    return len(facts.scene) == number


def is_number(facts: Facts, number: float) -> bool | None:
    """A bare number is what the question asks for: a count, a width, a difference of two, ..."""
    if not facts.quantities:
        return None
    return number == result_of(facts.prompt, facts.quantities)


def is_sum(facts: Facts, terms: tuple[float, ...], result: float) -> bool | None:
    """The arithmetic is right, and its terms are the two quantities of the question.

    Without two quantities: each term is the count of a colour or of all, where counts are asked
    for; otherwise right arithmetic says nothing about the picture.
    """
    if abs(sum(terms) - result) > 1e-9:
        return False
    if len(facts.quantities) == 2:
        return len(terms) == 2 and sorted(map(abs, terms)) == sorted(facts.quantities)
    if facts.quantities and "flowers" in facts.prompt:
        return {abs(term) for term in terms} <= {*facts.counts.values(), len(facts.scene)}
    return None


def are_measured(
    said: Sequence[tuple[str, tuple[float, ...]]], meaning: str, facts: Facts
) -> list[bool]:
    """Which of the listed (colour, numbers) are a flower's of this colour, each another flower's.

    A flower at the same place of the list comes first; so a wrong number that is right for another
    flower takes nothing from the statement about that one.
    """
    flowers = [(p.colour, measures(p, meaning, facts.start)) for p in facts.in_order]
    truths = [pair == flower for pair, flower in zip(said, flowers, strict=False)]
    truths += [False] * (len(said) - len(truths))
    free = [k for k in range(len(flowers)) if k >= len(said) or not truths[k]]
    for place, pair in enumerate(said):
        match = next((k for k in free if not truths[place] and flowers[k] == pair), None)
        if match is not None:
            truths[place] = True
            free.remove(match)
    return truths


def is_extreme(facts: Facts, colour: str, word: str) -> bool:
    """A flower of this colour has the largest (smallest) box area; of equal ones, each has."""
    choose = max if word == "largest" else min
    extreme = choose((p.area for p in facts.scene), default=0)
    return any(p.area == extreme and p.colour == colour for p in facts.scene)


def is_related(facts: Facts, words: str, start: str, colour: str) -> bool:
    """The middle of a flower of this colour is left of (...) that of another, the start's."""
    _, by_middle = RELATIONS[words]
    return any(
        by_middle(p, other)
        for p in facts.scene
        for other in facts.scene
        if (p.colour, other.colour) == (colour, start)
    )


def is_looking(facts: Facts, colours: Sequence[str], said: Attributes) -> bool | None:
    """A flower of the colour has all the attributes; no flower has two colours of petals.

    Without a colour it is the flower that the question is about; None where there is none.
    """
    if facts.prompt.startswith("What is at"):
        candidates = [facts.asked] if facts.asked else []
    elif colours:
        candidates = facts.scene
    elif not facts.asked:
        return None
    else:
        candidates = [facts.asked]
    wanted = {*said, *(("colour", colour) for colour in colours)}
    return any(wanted <= _attributes_of(p, facts) for p in candidates)


def _attributes_of(p: Placed, facts: Facts) -> set[tuple[str, str | float]]:
    health = facts.cause(facts.scene.index(p)) if p in facts.scene else ""
    portrait = {(name, value) for name, value in vars(p.flower).items()}
    return portrait | {("size", p.size), ("cause", health)}


def is_fate(
    facts: Facts, number: int, box: tuple[float, ...] | None, said: Attributes
) -> bool | None:
    """Flower `number` of the prompt (from 1) is gone from the second picture, or has all of this:
    the box, the size, the colour, and the verdict same, size or colour."""
    if not facts.after:
        return None
    if not 1 <= number <= len(facts.after):
        return False
    old, new = facts.scene[number - 1], facts.after[number - 1]
    if new is None:
        return box is None and said == (("gone", "gone"),)
    verdict = "same" if new.size == old.size else "size"
    verdict = verdict if new.colour == old.colour else "colour"
    found = {("size", new.size), ("colour", new.colour), ("verdict", verdict)}
    return {*said} <= found and box in (None, tuple(box_1000(new)))


def is_of_petals(facts: Facts, said: Attributes) -> bool:
    """The flower of the portrait has all the attributes."""
    return {*said} <= {*vars(facts.flower).items()}


def is_lettered(facts: Facts, place: int, stage: str) -> bool:
    """The picture with this letter (A is 0) shows this stage."""
    return place < len(facts.stages) and facts.stages[place] == stage


def is_next(facts: Facts, stage: str) -> bool | None:
    """This stage follows the one that is shown; None where several are."""
    if len(facts.stages) != 1:
        return None
    return STAGES.index(stage) == STAGES.index(facts.stages[0]) + 1


def is_nothing(facts: Facts) -> bool | None:
    """There is no flower at the place that is asked about."""
    return facts.asked is None if facts.prompt.startswith("What is at") else None


def result_of(prompt: str, quantities: Sequence[float]) -> float:
    """The number that a question asks for, of its quantities: one, their sum, or difference."""
    if len(quantities) == 1:
        return quantities[0]
    first, second = quantities
    return first + second if prompt.startswith("How many") else abs(first - second)


CHECKS = {
    "listed": is_listed, "asked": is_asked, "count": is_count, "total": is_total,
    "number": is_number, "sum": is_sum, "extreme": is_extreme, "relation": is_related,
    "looks": is_looking, "fate": is_fate, "petals": is_of_petals, "lettered": is_lettered,
    "then": is_next, "nothing": is_nothing,
}  # fmt: skip


# ---- whole completions ---------------------------------------------------------------------------


class Block(NamedTuple):
    """A piece of a completion: the block that it stands in ("": none), and its first character."""

    name: str
    text: str
    start: int


def check_completion(text: str, facts: Facts) -> list[Statement]:
    """Every statement of a completion, with its place in the completion's characters.

    Thoughts and captions are read, and words outside any block; the answer is not. What stands in
    the summary or behind the answer is no part of the thought: of it, only what is untrue counts.
    """
    if len(text) > MAX_COMPLETION_CHARS:
        return [Statement(text, 0, len(text))]
    found = []
    for block in _blocks(text):
        kind = CAPTION if block.name in ("caption", "summary") else facts.kind
        statements = check_thought(block.text, kind, facts)
        if block.name in ("summary", "after"):
            statements = [s for s in statements if s.is_true is False]
        found += [
            replace(s, start=s.start + block.start, end=s.end + block.start) for s in statements
        ]
    return found


def _blocks(text: str) -> Iterator[Block]:
    """Everything but the answer, cut at the tags of the other blocks.

    Only between `<caption>` (or `<summary>`) and the next tag is a caption (a summary).
    """
    before, _, rest = text.partition("<answer>")
    begin, name = 0, ""
    for tag in re.finditer("<(/?)(think|reasoning|caption|summary)>", before):
        yield Block(name, before[begin : tag.start()], begin)
        is_thought = tag[1] or tag[2] in ("think", "reasoning")
        begin, name = tag.end(), "" if is_thought else tag[2]
    yield Block(name, before[begin:], begin)
    after = rest.partition("</answer>")[2]
    yield Block("after", after, len(text) - len(after))
