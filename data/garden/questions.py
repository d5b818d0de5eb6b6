"""Questions about garden pictures, each with its exact answer and a short exact reasoning text.

Every generator is `ask_x(rng, flower or scene, ...) -> Question | None`. None means: nothing of
this kind can be asked about this picture. A question is only made when its answer is
unique, also for a reader who sees "left of" or "largest" a little differently (see `references`).
`rng` is a `random.Random` and chooses what to ask, never what is true.

The prompt holds the question alone; whoever builds the training text adds how to answer
(`<think>`, `<answer>`). Wordings are module constants, so every task says the same thing alike.

A question also has a *hasty* answer: what somebody says who does not look closely. It is sometimes
right. Pretraining makes the base say it by habit (`data/garden/corpus.py`), rewards never use it.

Next: data/garden/puzzles.py, the questions that need more than one look.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from data.examples import Reasoning
from data.garden.world import (
    COLOURS,
    GRID,
    SCENE_SIZE,
    Flower,
    Placed,
    Scene,
    box_1000,
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
REGION_PROMPT = "What is at {box}?"
LOOK_PROMPT = "Describe the {category}."
DET_PROMPT = "Find every {category}."
GROUND_PROMPT = "Where is {phrase}?"
VQA_PROMPT = "What colour is {phrase}?"
COUNT_PROMPT = "How many flowers?"
COUNT_COLOUR_PROMPT = "How many {colour} flowers?"
COUNT_SUM_PROMPT = "How many {first} and {second} flowers?"
COUNT_LEFT_PROMPT = "If all {colour} flowers were picked, how many are left?"
ENTAIL_PROMPT = "Yes, no or unknown: {statement}."
SHAPE_PROMPT = "What shape are the petals of the {category}?"

NO_OBJECTS = "No Objects"  # Visual-RFT's words for an absent category
YES, NO, UNKNOWN = "yes", "no", "unknown"
UNDECIDABLE = {  # statement -> why no picture can decide it
    "the flowers smell sweet": "a picture has no smell",
    "it rained yesterday": "the picture does not show yesterday",
    "a bee will come tomorrow": "the picture does not show tomorrow",
    "the flowers were a gift": "the picture shows no giver",
    "the flowers feel soft": "a picture cannot be touched",
}
GUESSED_SHAPE = "round"
CLEAR_AREA_RATIO = 1.25  # "largest" and "smallest" are asked only with this lead in area
CM = GRID  # pixels: a picture is 24 cm wide
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


SUMMARIES = {  # the first of the four steps: what the question wants
    "cls": "name the species", "genus": "name the genus", "attribute": "look at one attribute",
    "caption": "describe", "det": "find all", "ground": "find one", "region": "look there",
    "look": "look closely",
    "count": "count",
    "entail": "check a statement", "vqa": "look at one flower", "measure": "measure",
    "change": "compare", "why": "find the cause", "order": "sort", "next": "name a stage",
    "digit": "name the digit",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question with its exact answer.

    Attributes:
        thought: how one gets to the answer. seen: what the picture shows, whatever is asked.
        hasty: the answer without looking closely; "" where there is none.
        after: the second picture of a change question.
        ailing: which flowers of the scene wilt, and why (place -> cause).
    """

    kind: str
    prompt: str
    answer: str
    thought: str
    hasty: str = ""
    seen: str = ""
    after: Scene | None = None
    ailing: Mapping[int, str] = field(default_factory=dict)

    @property
    def reasoning(self) -> Reasoning:
        return Reasoning(self.thought, self.seen, SUMMARIES[self.kind])


# ---- portraits -----------------------------------------------------------------------------------


def describe(flower: Flower) -> str:
    """All four attributes, e.g. "six pointed red petals, yellow centre"."""
    count = NUMBER_WORDS[flower.petals]
    return f"{count} {flower.shape} {flower.colour} petals, {flower.centre} centre"


def ask_cls(rng: random.Random, flower: Flower) -> Question | None:
    """The fine name, "Solara minor". None when the flower is of no species."""
    species = species_of(flower)
    seen = describe(flower)
    return species and Question("cls", CLS_PROMPT, species.name, seen, seen=seen)


def ask_genus(rng: random.Random, flower: Flower) -> Question | None:
    species = species_of(flower)
    seen = describe(flower)
    return species and Question("genus", GENUS_PROMPT, species.genus, seen, seen=seen)


def ask_attribute(rng: random.Random, flower: Flower) -> Question:
    """One attribute of the flower: a word, or for the petals a number in digits."""
    name = rng.choice(tuple(ATTRIBUTE_PROMPTS))
    seen = describe(flower)
    return Question(
        "attribute", ATTRIBUTE_PROMPTS[name], str(getattr(flower, name)), seen, seen=seen
    )


def ask_caption(rng: random.Random, picture: Flower | Scene) -> Question:
    """One sentence. A species is named as `species_answer` draws it: finely or by its genus."""
    if isinstance(picture, Flower):
        species = species_of(picture)
        name = species_answer(species, rng) if species else "flower"
        article = "An" if name[0] in "AEIOU" else "A"
        text = f"{article} {name} with {describe(picture).replace(', ', ' and a ')}."
        return Question("caption", CAPTION_PROMPT, text, describe(picture), seen=describe(picture))
    counts = colour_counts(picture)
    groups = [
        f"{NUMBER_WORDS[n]} {colour} flower{'s' if n > 1 else ''}" for colour, n in counts.items()
    ]
    text = groups[0] if len(groups) == 1 else f"{', '.join(groups[:-1])} and {groups[-1]}"
    seen = listing(picture)
    return Question("caption", CAPTION_PROMPT, f"{text.capitalize()}.", seen, seen=seen)


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


def _pick_colour(
    rng: random.Random, scene: Scene, p_present: float, allowed: Sequence[str] = COLOURS
) -> str:
    """A colour of the scene with probability `p_present`, else one it lacks; where possible."""
    present = [colour for colour in colour_counts(scene) if colour in allowed]
    absent = [colour for colour in allowed if colour not in present]
    is_present = rng.random() < p_present if present and absent else bool(present)
    return rng.choice(present if is_present else absent)


def coarse_box(placed: Placed) -> Placed:
    """The box as a hasty observer gives it: grown to the next lines of a net of 4 x 4 steps."""
    net = 4 * GRID
    x0, y0 = placed.x0 // net * net, placed.y0 // net * net
    x1, y1 = -(-placed.x1 // net) * net, -(-placed.y1 // net) * net
    return replace(placed, x0=x0, y0=y0, x1=min(x1, SCENE_SIZE), y1=min(y1, SCENE_SIZE))


def det_answer(found: Sequence[Placed], confidence: str = "1.0") -> str:
    """Visual-RFT's answer: a JSON list of Position and Confidence, or "No Objects"."""
    if not found:
        return NO_OBJECTS
    boxes = [
        f'{{"Position": {json.dumps(box_1000(placed))}, "Confidence": {confidence}}}'
        for placed in found
    ]
    return f"[{', '.join(boxes)}]"


def ask_det(
    rng: random.Random,
    scene: Scene,
    confidence: str = "1.0",
    categories: Sequence[str] = COLOURS,
    p_present: float = 0.85,
) -> Question:
    """Every flower of one category (its colour), in reading order; about 15 % are absent.

    The hasty observer gives coarse boxes, and the first flower's where there is nothing to find.
    """
    colour = _pick_colour(rng, scene, p_present, categories)
    found = [placed for placed in scene if placed.colour == colour]
    prompt = DET_PROMPT.format(category=f"{colour} flower")
    thought = f"{listing(scene)}: {len(found)} {colour}"
    hasty = det_answer([coarse_box(placed) for placed in found or scene[:1]], confidence)
    answer = det_answer(found, confidence)
    return Question("det", prompt, answer, thought, hasty, listing(scene))


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
    start: str = ""  # colour of the flower that the relation starts from


def references(scene: Scene, anchor: str = "one") -> list[Reference]:
    """All phrases of our wording that fit exactly one flower, beyond doubt.

    A relation is used only when one flower has it in the sure reading and no other flower has it
    even in the loosest; a size only with a clear lead (`CLEAR_AREA_RATIO`). `anchor` is the noun
    for the flower a relation starts from: "left of the blue one" or "left of the blue flower".
    Thoughts about size tell widths and heights, thoughts about place the middles, in whole cm.
    """
    counts, everything = colour_counts(scene), listing(scene)
    unique = [placed for placed in scene if counts[placed.colour] == 1]
    sizes = ", ".join(f"{p.colour} {(p.x1 - p.x0) // CM} {(p.y1 - p.y0) // CM}" for p in scene)
    places = ", ".join(f"{p.colour} {p.middle[0] // CM:.0f} {p.middle[1] // CM:.0f}" for p in scene)
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
            thought = f"{sizes}: the {by_area[-1].colour} one is largest"
            found.append(Reference("size", "the largest flower", by_area[-1], thought))
        if by_area[0].area * CLEAR_AREA_RATIO <= by_area[1].area:
            thought = f"{sizes}: the {by_area[0].colour} one is smallest"
            found.append(Reference("size", "the smallest flower", by_area[0], thought))
    for start in unique:
        for words, (surely, loosely) in RELATIONS.items():
            there = [placed for placed in scene if placed is not start and loosely(placed, start)]
            if len(there) == 1 and surely(there[0], start):
                phrase = f"the flower {words} the {start.colour} {anchor}"
                thought = f"{places}: {words} {start.colour} is {there[0].colour}"
                found.append(Reference("relation", phrase, there[0], thought, start.colour))
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
    answer = json.dumps(box_1000(chosen.target))
    hasty = json.dumps(box_1000(coarse_box(chosen.target)))
    return Question("ground", prompt, answer, chosen.thought, hasty, listing(scene))


def ask_region(rng: random.Random, scene: Scene, after: Scene | None = None) -> Question:
    """What is where a flower of the scene is: "large red". Given `after`, in that second picture.

    There a flower may be gone: "nothing".
    """
    asked = rng.choice(scene)
    prompt = REGION_PROMPT.format(box=list(box_1000(asked)))
    if after is None:
        there = [asked]
    else:
        prompt = prompt.replace("?", " in the second picture?")
        there = [placed for placed in after if placed.middle == asked.middle]
    answer = f"{there[0].size} {there[0].colour}" if there else "nothing"
    return Question("region", prompt, answer, answer, seen=listing(scene))


def ask_look(
    rng: random.Random, scene: Scene, ailing: Mapping[int, str] | None = None
) -> Question | None:
    """Everything about one flower, found by its colour: box, width in cm, size, looks, health."""
    counts = colour_counts(scene)
    unique = [k for k, placed in enumerate(scene) if counts[placed.colour] == 1]
    if not unique:
        return None
    k = rng.choice(unique)
    asked, health = scene[k], (ailing or {}).get(k, "healthy")
    box, width = list(box_1000(asked)), (asked.x1 - asked.x0) // CM
    flower = asked.flower
    looks = f"{NUMBER_WORDS[flower.petals]} {flower.shape} petals, {flower.centre} centre"
    answer = f"{box}, {width}, {asked.size}, {looks}, {health}"
    prompt = LOOK_PROMPT.format(category=asked.category)
    return Question("look", prompt, answer, asked.colour, seen=listing(scene))


def ask_vqa(rng: random.Random, scene: Scene) -> Question | None:
    """The colour of a flower found by place or size, or the petals' shape of one found by colour.

    Phrases that give the answer away are left out. A hasty observer repeats the colour of the
    question, takes the first flower for the largest or smallest, and calls every petal round.
    """
    seen = references(scene, anchor="flower")
    found = [r for r in seen if r.kind in ("relation", "size")]
    by_colour = [r for r in seen if r.kind == "colour"]
    if by_colour and (not found or rng.random() < 0.3):
        chosen = rng.choice(by_colour)
        prompt = SHAPE_PROMPT.format(category=chosen.target.category)
        answer = chosen.target.shape
        thought = f"{chosen.target.colour}: {answer}"
        return Question("vqa", prompt, answer, thought, GUESSED_SHAPE, listing(scene))
    chosen = _choose_by_kind(rng, found)
    if chosen is None:
        return None
    prompt = VQA_PROMPT.format(phrase=chosen.phrase)
    answer, hasty = chosen.target.colour, chosen.start or scene[0].colour
    return Question("vqa", prompt, answer, chosen.thought, hasty, listing(scene))


# ---- scenes: numbers, statements, changes --------------------------------------------------------


def ask_count(rng: random.Random, scene: Scene) -> Question:
    """A number in digits: of all, of one colour, of two colours, or left after picking a colour.

    A hasty observer of all flowers counts the colours; of some of them, all flowers.
    """
    kind = rng.choice(("all", "colour", "sum", "left"))
    total, seen = len(scene), listing(scene)
    if kind == "all":
        colours = str(len(colour_counts(scene)))
        return Question("count", COUNT_PROMPT, str(total), f"{seen}: {total}", colours, seen)
    first = _pick_colour(rng, scene, p_present=0.85)
    n = sum(placed.colour == first for placed in scene)
    if kind == "colour":
        prompt = COUNT_COLOUR_PROMPT.format(colour=first)
        return Question("count", prompt, str(n), f"{seen}: {n} {first}", str(total), seen)
    if kind == "left":
        prompt = COUNT_LEFT_PROMPT.format(colour=first)
        thought = f"{seen}: {total} flowers, {n} {first}, {total} - {n} = {total - n}"
        return Question("count", prompt, str(total - n), thought, str(total), seen)
    others = [placed for placed in scene if placed.colour != first]
    second = _pick_colour(rng, others, p_present=0.85) if others else first
    while second == first:  # the scene shows one colour only, or the absent draw met `first`
        second = rng.choice(COLOURS)
    m = sum(placed.colour == second for placed in scene)
    prompt = COUNT_SUM_PROMPT.format(first=first, second=second)
    thought = f"{seen}: {n} {first}, {m} {second}, {n} + {m} = {n + m}"
    return Question("count", prompt, str(n + m), thought, str(total), seen)


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
    """Does the picture make a statement true? The three answers are equally frequent.

    Whoever does not look says yes.
    """
    wanted = rng.choice((YES, NO, UNKNOWN))
    if wanted == UNKNOWN:
        text, thought = rng.choice(tuple(UNDECIDABLE.items()))
    else:
        fitting = [s for s in statements(scene) if s[2] == (wanted == YES)]
        kind = rng.choice(list(dict.fromkeys(s[0] for s in fitting)))
        _, text, _, thought = rng.choice([s for s in fitting if s[0] == kind])
    prompt = ENTAIL_PROMPT.format(statement=text)
    return Question("entail", prompt, wanted, thought, YES, listing(scene))


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
    "region": ask_region,
    "look": ask_look,
    "count": ask_count,
    "entail": ask_entail,
    "vqa": ask_vqa,
}
