"""Questions about garden pictures, each with its exact answer and a short exact reasoning text.

Every generator is `ask_x(rng, flower or scene, ...) -> Question | None`. None means: nothing of
this kind can be asked about this picture. A question is only made when its answer is
unique, also for a reader who sees "left of" or "largest" a little differently (see `references`).
`rng` is a `random.Random` and chooses what to ask, never what is true.

The prompt holds the question alone; whoever builds the training text adds how to answer
(`<think>`, `<answer>`). Wordings are module constants, so every task says the same thing alike.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.garden import (
    COLOURS,
    Flower,
    Placed,
    Scene,
    box_1000,
    change_scene,
    species_answer,
    species_of,
)

CLS_PROMPT = "Which species is this flower?"
GENUS_PROMPT = "Which genus is this flower?"
ATTRIBUTE_PROMPTS = {
    "petals": "How many petals?",
    "shape": "What shape are the petals?",
    "colour": "What colour are the petals?",
    "centre": "What colour is the centre?",
}
CAPTION_PROMPT = "Describe the picture."
DET_PROMPT = "Find every {category}."
GROUND_PROMPT = "Where is {phrase}?"
VQA_PROMPT = "What colour is {phrase}?"
COUNT_PROMPT = "How many flowers?"
COUNT_COLOUR_PROMPT = "How many {colour} flowers?"
COUNT_SUM_PROMPT = "How many {first} and {second} flowers?"
COUNT_LEFT_PROMPT = "If all {colour} flowers were picked, how many are left?"
ENTAIL_PROMPT = "Yes, no or unknown: {statement}."
CHANGE_PROMPT = "What changed? {numbered}."

NO_OBJECTS = "No Objects"  # Visual-RFT's words for an absent category
YES, NO, UNKNOWN = "yes", "no", "unknown"
UNDECIDABLE = {  # statement -> why no picture can decide it
    "the flowers smell sweet": "a picture has no smell",
    "it rained yesterday": "the picture does not show yesterday",
    "a bee will come tomorrow": "the picture does not show tomorrow",
    "the flowers were a gift": "the picture shows no giver",
    "the flowers feel soft": "a picture cannot be touched",
}
CLEAR_AREA_RATIO = 1.25  # "largest" and "smallest" are asked only with this lead in area
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True)
class Question:
    """`after` is the second picture of a change question; the other kinds have one picture."""

    kind: str
    prompt: str
    answer: str
    thought: str
    after: Scene | None = None


# ---- portraits -----------------------------------------------------------------------------------


def describe(flower: Flower) -> str:
    """All four attributes, e.g. "six pointed red petals, yellow centre"."""
    count = NUMBER_WORDS[flower.petals]
    return f"{count} {flower.shape} {flower.colour} petals, {flower.centre} centre"


def ask_cls(rng: random.Random, flower: Flower) -> Question | None:
    """The fine name, "Solara minor". None when the flower is of no species."""
    species = species_of(flower)
    return species and Question("cls", CLS_PROMPT, species.name, describe(flower))


def ask_genus(rng: random.Random, flower: Flower) -> Question | None:
    species = species_of(flower)
    return species and Question("genus", GENUS_PROMPT, species.genus, describe(flower))


def ask_attribute(rng: random.Random, flower: Flower) -> Question:
    """One attribute of the flower: a word, or for the petals a number in digits."""
    name = rng.choice(tuple(ATTRIBUTE_PROMPTS))
    answer = str(getattr(flower, name))
    return Question("attribute", ATTRIBUTE_PROMPTS[name], answer, describe(flower))


def ask_caption(rng: random.Random, picture: Flower | Scene) -> Question:
    """One sentence. A species is named as `species_answer` draws it: finely or by its genus."""
    if isinstance(picture, Flower):
        species = species_of(picture)
        name = species_answer(species, rng) if species else "flower"
        article = "An" if name[0] in "AEIOU" else "A"
        text = f"{article} {name} with {describe(picture).replace(', ', ' and a ')}."
        return Question("caption", CAPTION_PROMPT, text, describe(picture))
    counts = colour_counts(picture)
    groups = [
        f"{NUMBER_WORDS[n]} {colour} flower{'s' if n > 1 else ''}" for colour, n in counts.items()
    ]
    text = groups[0] if len(groups) == 1 else f"{', '.join(groups[:-1])} and {groups[-1]}"
    return Question("caption", CAPTION_PROMPT, f"{text.capitalize()}.", listing(picture))


# ---- scenes: boxes -------------------------------------------------------------------------------


def colour_counts(scene: Scene) -> dict[str, int]:
    """How many flowers of each colour that occurs, in order of first occurrence."""
    counts: dict[str, int] = {}
    for placed in scene:
        counts[placed.colour] = counts.get(placed.colour, 0) + 1
    return counts


def listing(scene: Scene) -> str:
    """The colours in reading order, "red, blue, red": the start of most thoughts."""
    return ", ".join(placed.colour for placed in scene)


def _pick_colour(rng: random.Random, scene: Scene, p_present: float) -> str:
    """A colour of the scene with probability `p_present`, else (where possible) one it lacks."""
    present = tuple(colour_counts(scene))
    absent = [colour for colour in COLOURS if colour not in present]
    return rng.choice(present if not absent or rng.random() < p_present else absent)


def det_answer(found: Sequence[Placed], confidence: str = "1.0") -> str:
    """Visual-RFT's answer: a JSON list of Position and Confidence, or "No Objects"."""
    if not found:
        return NO_OBJECTS
    boxes = [
        f'{{"Position": {json.dumps(box_1000(placed))}, "Confidence": {confidence}}}'
        for placed in found
    ]
    return f"[{', '.join(boxes)}]"


def ask_det(rng: random.Random, scene: Scene, confidence: str = "1.0") -> Question:
    """Every flower of one category, in reading order; the category is absent in about 15 %."""
    colour = _pick_colour(rng, scene, p_present=0.85)
    found = [placed for placed in scene if placed.colour == colour]
    prompt = DET_PROMPT.format(category=f"{colour} flower")
    thought = f"{listing(scene)}: {len(found)} {colour}"
    return Question("det", prompt, det_answer(found, confidence), thought)


# For each relation: the sure reading (the boxes do not reach over) and the loosest one (centres).
RELATIONS: dict[str, tuple[Callable, Callable]] = {
    "left of": (lambda a, b: a.x1 <= b.x0, lambda a, b: a.middle[0] < b.middle[0]),
    "right of": (lambda a, b: a.x0 >= b.x1, lambda a, b: a.middle[0] > b.middle[0]),
    "above": (lambda a, b: a.y1 <= b.y0, lambda a, b: a.middle[1] < b.middle[1]),
    "below": (lambda a, b: a.y0 >= b.y1, lambda a, b: a.middle[1] > b.middle[1]),
}


@dataclass(frozen=True)
class Reference:
    """A phrase that fits exactly one flower of a scene."""

    kind: str
    phrase: str
    target: Placed
    thought: str


def references(scene: Scene, anchor: str = "one") -> list[Reference]:
    """All phrases of our wording that fit exactly one flower, beyond doubt.

    A relation is used only when one flower has it in the sure reading and no other flower has it
    even in the loosest; a size only with a clear lead (`CLEAR_AREA_RATIO`). `anchor` is the noun
    for the flower a relation starts from: "left of the blue one" or "left of the blue flower".
    """
    counts, everything = colour_counts(scene), listing(scene)
    unique = [placed for placed in scene if counts[placed.colour] == 1]
    found = []
    for placed in unique:
        found.append(Reference("colour", f"the {placed.category}", placed, everything))
    for colour, n in counts.items():
        if n == len(scene) - 1:
            odd = next(placed for placed in scene if placed.colour != colour)
            phrase = f"the flower that is not {colour}"
            found.append(Reference("not", phrase, odd, f"{everything}: the {odd.colour} one"))
    if len(scene) > 1:
        by_area = sorted(scene, key=lambda placed: placed.area)
        if by_area[-1].area >= CLEAR_AREA_RATIO * by_area[-2].area:
            thought = f"{everything}: the {by_area[-1].colour} one is largest"
            found.append(Reference("size", "the largest flower", by_area[-1], thought))
        if by_area[0].area * CLEAR_AREA_RATIO <= by_area[1].area:
            thought = f"{everything}: the {by_area[0].colour} one is smallest"
            found.append(Reference("size", "the smallest flower", by_area[0], thought))
    for start in unique:
        for words, (surely, loosely) in RELATIONS.items():
            there = [placed for placed in scene if placed is not start and loosely(placed, start)]
            if len(there) == 1 and surely(there[0], start):
                phrase = f"the flower {words} the {start.colour} {anchor}"
                thought = f"{everything}: {words} {start.colour} is {there[0].colour}"
                found.append(Reference("relation", phrase, there[0], thought))
    return found


def _choose_by_kind(rng: random.Random, found: Sequence[Reference]) -> Reference | None:
    """First a kind, then a phrase of it, so that the frequent kinds do not drown the rare ones."""
    if not found:
        return None
    kind = rng.choice(list(dict.fromkeys(reference.kind for reference in found)))
    return rng.choice([reference for reference in found if reference.kind == kind])


def ask_ground(rng: random.Random, scene: Scene) -> Question | None:
    """The box of one flower, "[x1, y1, x2, y2]" in 0-1000."""
    chosen = _choose_by_kind(rng, references(scene))
    if chosen is None:
        return None
    prompt = GROUND_PROMPT.format(phrase=chosen.phrase)
    return Question("ground", prompt, json.dumps(box_1000(chosen.target)), chosen.thought)


def ask_vqa(rng: random.Random, scene: Scene) -> Question | None:
    """The colour of a flower found by place or size; phrases that give it away are left out."""
    found = [r for r in references(scene, anchor="flower") if r.kind in ("relation", "size")]
    chosen = _choose_by_kind(rng, found)
    if chosen is None:
        return None
    prompt = VQA_PROMPT.format(phrase=chosen.phrase)
    return Question("vqa", prompt, chosen.target.colour, chosen.thought)


# ---- scenes: numbers, statements, changes --------------------------------------------------------


def ask_count(rng: random.Random, scene: Scene) -> Question:
    """A number in digits: of all, of one colour, of two colours, or left after picking a colour."""
    kind = rng.choice(("all", "colour", "sum", "left"))
    total, everything = len(scene), listing(scene)
    if kind == "all":
        return Question("count", COUNT_PROMPT, str(total), f"{everything}: {total}")
    first = _pick_colour(rng, scene, p_present=0.85)
    n = sum(placed.colour == first for placed in scene)
    if kind == "colour":
        prompt = COUNT_COLOUR_PROMPT.format(colour=first)
        return Question("count", prompt, str(n), f"{everything}: {n} {first}")
    if kind == "left":
        prompt = COUNT_LEFT_PROMPT.format(colour=first)
        thought = f"{everything}: {total} flowers, {n} {first}, {total} - {n} = {total - n}"
        return Question("count", prompt, str(total - n), thought)
    others = [placed for placed in scene if placed.colour != first]
    second = _pick_colour(rng, others, p_present=0.85) if others else first
    while second == first:  # the scene shows one colour only, or the absent draw met `first`
        second = rng.choice(COLOURS)
    m = sum(placed.colour == second for placed in scene)
    prompt = COUNT_SUM_PROMPT.format(first=first, second=second)
    thought = f"{everything}: {n} {first}, {m} {second}, {n} + {m} = {n + m}"
    return Question("count", prompt, str(n + m), thought)


def statements(scene: Scene) -> list[tuple[str, str, bool, str]]:
    """Decidable statements about a scene: (kind, statement, is it true, thought)."""
    counts, everything, total = colour_counts(scene), listing(scene), len(scene)
    made = []
    for colour in COLOURS:
        n = counts.get(colour, 0)
        made.append(("exists", f"there is a {colour} flower", n > 0, f"{everything}: {n} {colour}"))
    for number in range(max(1, total - 1), total + 2):
        text = f"the number of flowers is {number}"
        made.append(("number", text, number == total, f"{everything}: {total}"))
    for first, n in counts.items():
        for second, m in counts.items():
            if first != second:
                text = f"there are more {first} than {second} flowers"
                made.append(("more", text, n > m, f"{everything}: {n} {first}, {m} {second}"))
    for placed in scene:
        if counts[placed.colour] == 1:
            for size in ("small", "large"):
                text = f"the {placed.category} is {size}"
                thought = f"the {placed.category} is {placed.size}"
                made.append(("size", text, size == placed.size, thought))
    return made


def ask_entail(rng: random.Random, scene: Scene) -> Question:
    """Does the picture make a statement true? The three answers are equally frequent."""
    wanted = rng.choice((YES, NO, UNKNOWN))
    if wanted == UNKNOWN:
        text, thought = rng.choice(tuple(UNDECIDABLE.items()))
    else:
        fitting = [s for s in statements(scene) if s[2] == (wanted == YES)]
        kind = rng.choice(list(dict.fromkeys(s[0] for s in fitting)))
        _, text, _, thought = rng.choice([s for s in fitting if s[0] == kind])
    return Question("entail", ENTAIL_PROMPT.format(statement=text), wanted, thought)


def ask_change(rng: random.Random, scene: Scene, n_changes: int | None = None) -> Question:
    """What happened between two pictures? The second scene is in `Question.after`.

    The prompt numbers the flowers of the first picture with their colours: "f1 red, f2 blue". One
    or two changes are drawn unless `n_changes` says how many. Raises InputError as `change_scene`.
    """
    if n_changes is None:
        n_changes = rng.randint(1, min(2, len(scene)))
    after, calls = change_scene(scene, rng, n_changes)
    numbered = ", ".join(f"f{k} {placed.colour}" for k, placed in enumerate(scene, start=1))
    still_there = {placed.middle: placed for placed in after}
    events = []
    for number, old in enumerate(scene, start=1):
        new = still_there.get(old.middle)
        if new is None:
            events.append(f"f{number} is gone")
        elif new.colour != old.colour:
            events.append(f"f{number} {old.colour} to {new.colour}")
        elif new.size != old.size:
            events.append(f"f{number} {old.size} to {new.size}")
    prompt = CHANGE_PROMPT.format(numbered=numbered)
    return Question("change", prompt, ", ".join(calls), ", ".join(events), after)


PORTRAIT_QUESTIONS = {
    "cls": ask_cls,
    "genus": ask_genus,
    "attribute": ask_attribute,
    "caption": ask_caption,
}
SCENE_QUESTIONS = {
    "caption": ask_caption,
    "det": ask_det,
    "ground": ask_ground,
    "count": ask_count,
    "entail": ask_entail,
    "change": ask_change,
    "vqa": ask_vqa,
}
