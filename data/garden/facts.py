"""`Facts`: what a generator knows of the pictures that it asks about, and what its words mean.

`Facts` go with an example (`data.examples.Example.facts`), so that a thought can be checked word by
word. The same words say different things in different questions: "red 5 4" is a size where the
largest flower is looked for, and a place where the one left of blue is. The prompt decides.

Next: data/garden/claims.py.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from data.garden import world
from data.garden.puzzles import VIEW_SHIFTS
from data.garden.questions import (
    CM,
    GROUND_PROMPT,
    RELATIONS,
    Question,
    colour_counts,
    references,
    unique_flowers,
)
from data.garden.world import Flower, Placed, Scene, box_1000

HEALTHY = "healthy"
COLOUR = f"(?:{'|'.join(world.COLOURS)})"
# Prompts that name the one flower they are about, and do not compare it with another.
_NAMED = re.compile(
    rf"(?:petals of|Describe|does|wide is|unknown:) the ({COLOUR}) flower"
    rf"(?! is (?:{'|'.join(RELATIONS)}))"
)


@dataclass(frozen=True)
class Facts:
    """What the pictures of one question show. Hashable, and may go to other processes.

    Attributes:
        kind, prompt: of the question, in the generator's words.
        flower: of a portrait. scene: the flowers, in reading order.
        after: what became of each flower of the scene in the second picture; None: it is gone.
        causes: what makes each flower of the scene wilt, or `HEALTHY`.
        stages: of the pictures of a growing plant, in the order shown.
    """

    kind: str
    prompt: str
    flower: Flower | None = None
    scene: Scene = ()
    after: tuple[Placed | None, ...] = ()
    causes: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    @cached_property
    def counts(self) -> Counter[str]:
        """How many flowers of each colour the scene shows."""
        return colour_counts(self.scene)

    @cached_property
    def names_its_flower(self) -> bool:
        """Whether the prompt says the colour of the one flower that it is about."""
        return _NAMED.search(self.prompt) is not None

    @cached_property
    def asked(self) -> Placed | None:
        """The one flower that the question is about or that it looks for, if there is one."""
        if place := re.match(r"What is at (\[[\d, ]+\])( in the second)?", self.prompt):
            middles = [p.middle for p in self.scene if str(box_1000(p)) == place[1]]
            shown = self.after if place[2] else self.scene
            return next((p for p in shown if p and p.middle in middles), None)
        if named := _NAMED.search(self.prompt):
            return self.named(named[1])
        if start := re.search(rf"farthest from the ({COLOUR}) flower\?(.*)", self.prompt):
            others = [p for p in self.scene if p.colour in re.findall(COLOUR, start[2])]
            return max(others, key=lambda p: distance(p, self.start), default=None)
        prompts = (GROUND_PROMPT, "What colour is {phrase}?")
        for reference in (*references(self.scene), *references(self.scene, "flower")):
            if self.prompt in [prompt.format(phrase=reference.phrase) for prompt in prompts]:
                return reference.target
        return None

    @cached_property
    def start(self) -> Placed | None:
        """The flower from which distances are asked for."""
        found = re.search(rf"farthest from the ({COLOUR}) flower", self.prompt)
        return found and self.named(found[1])

    @cached_property
    def in_order(self) -> tuple[Placed, ...]:
        """The flowers as a thought lists them: in reading order, or first those of the prompt."""
        if self.kind not in ("measure", "entail"):
            return self.scene
        colours = re.findall(rf"\b{COLOUR}\b", self.prompt)
        named = [self.named(colour) for colour in colours[self.start is not None :]]
        return tuple(dict.fromkeys([*filter(None, named), *self.scene]))

    @cached_property
    def quantities(self) -> tuple[float, ...]:
        """The numbers that the question is about: one, or two to add or to subtract; or ().

        Counts of flowers, widths in cm, or middles in cm from the left.
        """
        n, total, prompt = self.counts, len(self.scene), self.prompt
        if found := re.match(rf"If all ({COLOUR}) flowers were picked", prompt):
            return total, n[found[1]]
        if found := re.match(rf"How many ({COLOUR}) and ({COLOUR}) flowers", prompt):
            return n[found[1]], n[found[2]]
        if found := re.match(rf"How many ({COLOUR}) flowers", prompt):
            return (n[found[1]],)
        if "How many flowers" in prompt or "the number of flowers is" in prompt:
            return (total,)
        pair = re.search(rf"widths of the ({COLOUR}) and ({COLOUR}) flower", prompt)
        pair = pair or re.search(rf"far is the ({COLOUR}) flower from the ({COLOUR}) one", prompt)
        pair = pair or re.search(rf"wide is the ({COLOUR}) flower", prompt)
        flowers = [self.named(colour) for colour in pair.groups()] if pair else []
        return tuple(measures(p, self.meaning(1), None)[0] for p in flowers if p)

    def meaning(self, count: int, is_at: bool = False) -> str | None:
        """What one or two numbers behind a colour say: a key of `measures`; None: nothing."""
        prompt = self.prompt
        if count == 2:
            if is_at or any(words in prompt for words in RELATIONS):
                return "place"
            return "size" if re.search("largest|smallest|wide|differ", prompt) else None
        if is_at or "How far is" in prompt:
            return "at"
        if "farthest from" in prompt:
            return "distance"
        return "width" if re.search(r"wide|differ|is (?:small|large)\b", prompt) else None

    def named(self, colour: str) -> Placed | None:
        """The only flower of a colour; None where there is none or several."""
        return next((p for p in unique_flowers(self.scene) if p.colour == colour), None)

    def cause(self, place: int) -> str:
        """What makes flower number `place` wilt (from 0), or `HEALTHY`."""
        return self.causes[place] if self.causes else HEALTHY


def distance(p: Placed, start: Placed | None) -> float:
    """Between two middles, in cm; 0 where there is nothing to start from."""
    return math.dist(p.middle, start.middle) / CM if start else 0.0


def measures(p: Placed, meaning: str, start: Placed | None) -> tuple[float, ...]:
    """The numbers that a true thought gives for a flower, rounded as the generators round.

    Sizes, places and widths in whole cm (places rounded down), "at" in cm, distances to the
    nearest cm.
    """
    width, height = (p.x1 - p.x0) // CM, (p.y1 - p.y0) // CM
    return {
        "size": (width, height),
        "width": (width,),
        "place": (p.middle[0] // CM, p.middle[1] // CM),
        "at": (p.middle[0] / CM,),
        "distance": (round(distance(p, start)),),
    }[meaning]


def facts_of(
    question: Question,
    flower: Flower | None = None,
    scene: Scene = (),
    stages: Sequence[str] = (),
) -> Facts:
    """The facts of a question about a flower, a scene, or the stages of a plant."""
    causes = tuple(question.ailing.get(place, HEALTHY) for place in range(len(scene)))
    after = () if question.after is None else _fates(scene, question.after)
    return Facts(question.kind, question.prompt, flower, scene, after, causes, tuple(stages))


def _fates(scene: Scene, after: Scene) -> tuple[Placed | None, ...]:
    """What became of each flower: those that stay keep their middle, but for the viewpoint.

    Flowers are farther apart than the viewpoint moves, so only one step fits (or nothing is left).
    """
    middles = {p.middle for p in scene}
    for dx, dy in [(0, 0), *VIEW_SHIFTS]:
        new_of = {(p.middle[0] - dx, p.middle[1] - dy): p for p in after}
        if new_of.keys() <= middles:
            return tuple(new_of.get(p.middle) for p in scene)
    raise ValueError("the second picture does not show the flowers of the first")
