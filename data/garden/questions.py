"""Questions about garden pictures, each with its exact answer and a short exact reasoning text.

Every generator is `ask_x(rng, flower or scene, ...) -> Question | None`. None means: nothing of
this kind can be asked about this picture. A question is only generated when its answer is unique,
also for a reader with a slightly different notion of "left of" or "largest" (see `references`).
`rng` selects what to ask and never affects what is true.

A question also has a *hasty* answer: what somebody says who does not look closely. Pretraining
makes it the base's habit (`data/garden/corpus.py`), rewards never use it.

Next: data/garden/statements.py, the questions of yes, no or unknown.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import NamedTuple

from data.examples import Reasoning
from data.garden import world
from data.garden.world import COLOURS, GRID, NO_CAUSES, SCENE_SIZE, Flower, Placed, Scene, box_1000

# Prompts that several modules use; the others are beside their answers.
CLS_PROMPT = "Which species is this flower?"
DET_PROMPT = "Find every {category}."
GROUND_PROMPT = "Where is {phrase}?"
ATTRIBUTE_PROMPTS = {
    "petals": "How many petals?",
    "shape": "What shape are the petals?",
    "colour": "What colour are the petals?",
    "centre": "What colour is the centre?",
}

NO_OBJECTS = "No Objects"  # Visual-RFT's words for an absent category
P_PRESENT = 0.85  # questions about a colour are about one that the scene shows
CLEAR_AREA_RATIO = 1.25  # "largest" and "smallest" are asked only with this lead in area
CM = GRID  # pixels: a scene is 24 cm wide
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")

SUMMARIES = {  # kind of question -> the first of the four steps: what is asked for
    "cls": "name the species", "genus": "name the genus", "attribute": "look at one attribute",
    "caption": "describe", "det": "find all", "ground": "find one", "region": "look there",
    "look": "look closely", "count": "count", "entail": "check a statement",
    "vqa": "look at one flower", "measure": "measure", "change": "compare",
    "why": "find the cause", "order": "sort", "next": "name a stage", "digit": "name the digit",
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
        """The pieces of a right completion."""
        return Reasoning(self.thought, self.seen, SUMMARIES.get(self.kind, "answer"))


def describe(flower: Flower) -> str:
    """All four attributes, e.g. "six pointed red petals, yellow centre"."""
    count = NUMBER_WORDS[flower.petals]
    return f"{count} {flower.shape} {flower.colour} petals, {flower.centre} centre"


def _about(flower: Flower, kind: str, prompt: str, answer: str) -> Question:
    return Question(kind, prompt, answer, thought=describe(flower), seen=describe(flower))


def ask_cls(rng: random.Random, flower: Flower) -> Question | None:
    """The fine name, "Solara minor". None when the flower is of no species."""
    species = world.SPECIES_OF.get(flower)
    return species and _about(flower, "cls", CLS_PROMPT, species.name)


def ask_genus(rng: random.Random, flower: Flower) -> Question | None:
    """The coarse name, "Solara". None when the flower is of no species."""
    species = world.SPECIES_OF.get(flower)
    return species and _about(flower, "genus", "Which genus is this flower?", species.genus)


def ask_attribute(rng: random.Random, flower: Flower) -> Question:
    """One attribute of the flower: a word, or for the petals a number in digits."""
    name = rng.choice(tuple(ATTRIBUTE_PROMPTS))
    return _about(flower, "attribute", ATTRIBUTE_PROMPTS[name], str(getattr(flower, name)))


def ask_caption(rng: random.Random, picture: Flower | Scene) -> Question:
    """One sentence. A species is named as `species_answer` draws it: finely or by its genus."""
    prompt = "Describe the picture."
    if isinstance(picture, Flower):
        species = world.SPECIES_OF.get(picture)
        name = world.species_answer(species, rng) if species else "flower"
        article = "An" if name[0] in "AEIOU" else "A"
        text = f"{article} {name} with {describe(picture).replace(', ', ' and a ')}."
        return _about(picture, "caption", prompt, text)
    *groups, last = (
        f"{NUMBER_WORDS[n]} {colour} flower{'s' if n > 1 else ''}"
        for colour, n in colour_counts(picture).items()
    )
    text = f"{', '.join(groups)} and {last}" if groups else last
    seen = listing(picture)
    return Question("caption", prompt, f"{text.capitalize()}.", seen, seen=seen)


def colour_counts(scene: Sequence[Placed]) -> Counter[str]:
    """How many flowers of each colour, in order of first occurrence."""
    return Counter(placed.colour for placed in scene)


def unique_flowers(scene: Scene) -> list[Placed]:
    """The flowers that their colour identifies."""
    counts = colour_counts(scene)
    return [placed for placed in scene if counts[placed.colour] == 1]


def listing(scene: Scene) -> str:
    """The colours in reading order, "red, blue, red": the start of most thoughts."""
    return ", ".join(placed.colour for placed in scene)


def _pick_colour(rng, scene: Sequence[Placed], allowed: Sequence[str] = COLOURS) -> str:
    """A colour of the scene with probability P_PRESENT, else one it lacks; where possible."""
    present = [colour for colour in colour_counts(scene) if colour in allowed]
    absent = [colour for colour in allowed if colour not in present]
    is_present = rng.random() < P_PRESENT if present and absent else bool(present)
    return rng.choice(present if is_present else absent)


def coarse_box(p: Placed) -> Placed:
    """The box as a hasty observer gives it: grown to the next lines of a net of 4 x 4 steps."""
    net = 4 * GRID
    low = [pixel // net * net for pixel in (p.x0, p.y0)]
    high = [min(-(-pixel // net) * net, SCENE_SIZE) for pixel in (p.x1, p.y1)]
    return Placed(p.flower, p.size, *low, *high)


def det_answer(flowers: Sequence[Placed], confidence: str = "1.0") -> str:
    """Visual-RFT's answer: a JSON list of Position and Confidence, or "No Objects"."""
    boxes = [f'{{"Position": {box_1000(p)}, "Confidence": {confidence}}}' for p in flowers]
    return f"[{', '.join(boxes)}]" if boxes else NO_OBJECTS


def ask_det(
    rng: random.Random, scene: Scene, confidence: str = "1.0", categories: Sequence[str] = COLOURS
) -> Question:
    """Every flower of one category (its colour), in reading order; about 15 % are absent.

    The hasty observer gives coarse boxes, and the first flower's where there is nothing to find.
    """
    colour = _pick_colour(rng, scene, categories)
    matches = [placed for placed in scene if placed.colour == colour]
    prompt = DET_PROMPT.format(category=f"{colour} flower")
    thought = f"{listing(scene)}: {len(matches)} {colour}"
    hasty = det_answer([coarse_box(placed) for placed in matches or scene[:1]], confidence)
    answer = det_answer(matches, confidence)
    return Question("det", prompt, answer, thought, hasty, listing(scene))


# For each relation: the sure reading (the boxes do not reach over) and the loosest one (centres).
RELATIONS: dict[str, tuple[Callable, Callable]] = {
    "left of": (lambda a, b: a.x1 <= b.x0, lambda a, b: a.middle[0] < b.middle[0]),
    "right of": (lambda a, b: a.x0 >= b.x1, lambda a, b: a.middle[0] > b.middle[0]),
    "above": (lambda a, b: a.y1 <= b.y0, lambda a, b: a.middle[1] < b.middle[1]),
    "below": (lambda a, b: a.y0 >= b.y1, lambda a, b: a.middle[1] > b.middle[1]),
}


class Reference(NamedTuple):
    """A phrase that fits exactly one flower of a scene."""

    kind: str
    phrase: str
    target: Placed
    thought: str
    start: str = ""  # colour of the flower that the relation starts from


def references(scene: Scene, anchor: str = "one") -> Iterator[Reference]:
    """All phrases of our wording that fit exactly one flower, beyond doubt.

    A relation is used only when one flower has it in the sure reading and no other flower has it
    even in the loosest; a size only with a clear lead (`CLEAR_AREA_RATIO`). `anchor` is the noun
    for the flower a relation starts from. Thoughts give sizes and middles in whole cm.
    """
    unique, everything = unique_flowers(scene), listing(scene)
    sizes = ", ".join(f"{p.colour} {(p.x1 - p.x0) // CM} {(p.y1 - p.y0) // CM}" for p in scene)
    places = ", ".join(f"{p.colour} {p.middle[0] // CM} {p.middle[1] // CM}" for p in scene)
    for p in unique:
        yield Reference("colour", f"the {p.colour} flower", p, everything)
    for colour, n in colour_counts(scene).items():
        if n == len(scene) - 1:
            odd = next(placed for placed in scene if placed.colour != colour)
            thought = f"{everything}: the {odd.colour} one"
            yield Reference("not", f"the flower that is not {colour}", odd, thought)
    if len(scene) > 1:
        by_area = sorted(scene, key=lambda placed: placed.area)
        for word, (low, high) in (("largest", by_area[-2:]), ("smallest", by_area[:2])):
            if high.area >= CLEAR_AREA_RATIO * low.area:
                target = high if word == "largest" else low
                thought = f"{sizes}: the {target.colour} one is {word}"
                yield Reference("size", f"the {word} flower", target, thought)
    for start in unique:
        for words, (surely, loosely) in RELATIONS.items():
            matches = [p for p in scene if p is not start and loosely(p, start)]
            if len(matches) == 1 and surely(matches[0], start):
                phrase = f"the flower {words} the {start.colour} {anchor}"
                thought = f"{places}: {words} {start.colour} is {matches[0].colour}"
                yield Reference("relation", phrase, matches[0], thought, start.colour)


def _choose_by_kind(rng: random.Random, items: Iterable[tuple]) -> tuple | None:
    """First a kind, an item's first entry, then an item of it: frequent kinds drown no rare one."""
    if not (items := list(items)):
        return None
    kind = rng.choice(list(dict.fromkeys(item[0] for item in items)))
    return rng.choice([item for item in items if item[0] == kind])


def ask_ground(rng: random.Random, scene: Scene) -> Question | None:
    """The box of one flower, "[x1, y1, x2, y2]" in 0-1000."""
    reference = _choose_by_kind(rng, references(scene))
    if reference is None:
        return None
    prompt = GROUND_PROMPT.format(phrase=reference.phrase)
    answer = json.dumps(box_1000(reference.target))
    hasty = json.dumps(box_1000(coarse_box(reference.target)))
    return Question("ground", prompt, answer, reference.thought, hasty, listing(scene))


def ask_region(rng: random.Random, scene: Scene, after: Scene | None = None) -> Question:
    """What is where a flower of the scene is, or was before `after`: "large red" or "nothing"."""
    place = rng.choice(scene)
    prompt = f"What is at {box_1000(place)}{' in the second picture' if after is not None else ''}?"
    matches = [p for p in (scene if after is None else after) if p.middle == place.middle]
    answer = f"{matches[0].size} {matches[0].colour}" if matches else "nothing"
    return Question("region", prompt, answer, answer, seen=listing(scene))


def ask_look(rng: random.Random, scene: Scene, ailing: Mapping = NO_CAUSES) -> Question | None:
    """Everything about one flower, found by its colour: box, width in cm, size, looks, health."""
    unique = unique_flowers(scene)
    if not unique:
        return None
    p = rng.choice(unique)
    health = ailing.get(scene.index(p), "healthy")
    looks = f"{NUMBER_WORDS[p.flower.petals]} {p.flower.shape} petals, {p.flower.centre} centre"
    answer = f"{box_1000(p)}, {(p.x1 - p.x0) // CM}, {p.size}, {looks}, {health}"
    prompt = f"Describe the {p.colour} flower."
    return Question("look", prompt, answer, thought=p.colour, seen=listing(scene))


def ask_vqa(rng: random.Random, scene: Scene) -> Question | None:
    """The colour of a flower found by place or size, or the petals' shape of one found by colour.

    Phrases that contain the answer are left out. A hasty observer repeats the colour of the
    question, takes the first flower for the largest or smallest, and calls every petal round.
    """
    phrases = list(references(scene, anchor="flower"))
    by_colour = [r for r in phrases if r.kind == "colour"]
    others = [r for r in phrases if r.kind in ("relation", "size")]
    if by_colour and (not others or rng.random() < 0.3):
        target = rng.choice(by_colour).target
        prompt = f"What shape are the petals of the {target.colour} flower?"
        answer = target.flower.shape
        thought = f"{target.colour}: {answer}"
        return Question("vqa", prompt, answer, thought, "round", listing(scene))
    reference = _choose_by_kind(rng, others)
    if reference is None:
        return None
    prompt = f"What colour is {reference.phrase}?"
    answer, hasty = reference.target.colour, reference.start or scene[0].colour
    return Question("vqa", prompt, answer, reference.thought, hasty, listing(scene))


COUNTS = ("all", "colour", "sum", "left")  # what can be counted


def count_questions(scene: Scene, kind: str) -> Iterator[tuple[int, str, str]]:
    """All questions of a kind about the numbers of a scene: (answer, prompt, thought)."""
    counts, total = colour_counts(scene), len(scene)
    if kind == "all":
        yield total, "How many flowers?", f"{total}"
    elif kind == "sum":
        for first, second in permutations(COLOURS, 2):
            n, m = counts[first], counts[second]
            work = f"{n} {first}, {m} {second}, {n} + {m} = {n + m}"
            yield n + m, f"How many {first} and {second} flowers?", work
    else:
        for colour in COLOURS:
            n, left = counts[colour], total - counts[colour]
            if kind == "colour":
                yield n, f"How many {colour} flowers?", f"{n} {colour}"
            else:
                prompt = f"If all {colour} flowers were picked, how many are left?"
                yield left, prompt, f"{total} flowers, {n} {colour}, {total} - {n} = {left}"


def ask_count(
    rng: random.Random, scene: Scene, kind: str | None = None, answer: int | None = None
) -> Question | None:
    """A number in digits: of all, of one colour, of two colours, or left after picking a colour.

    None where no question of the wanted kind has the wanted answer. Without a wish, answers that
    the scene seldom gives are asked for as often as the others. A hasty observer of all flowers
    counts the colours; of some of them, all flowers.
    """
    kind = kind or rng.choice(COUNTS)
    items = list(count_questions(scene, kind))
    if answer is not None:
        items = [item for item in items if item[0] == answer]
    item = _choose_by_kind(rng, items)
    if item is None:
        return None
    number, prompt, work = item
    hasty = len(colour_counts(scene)) if kind == "all" else len(scene)
    seen = listing(scene)
    return Question("count", prompt, f"{number}", f"{seen}: {work}", f"{hasty}", seen)
