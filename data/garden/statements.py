"""Statements about a scene that are true, false, or cannot be decided: the questions of `entail`.

No words give an answer away. Every statement presupposes one or two flowers, "the red flower has
round petals", and is true of some scenes and false of others; a scene without a red flower leaves
it undecided. So each can be asked of three pictures with three answers (tasks/entail.py).

Next: data/garden/puzzles.py, the questions that need more than one look.
"""

import random
from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

from data.garden.questions import CM, RELATIONS, Question, colour_counts, listing, unique_flowers
from data.garden.world import CENTRES, COLOURS, SHAPES, SIDES, Placed, Scene

YES, NO, UNKNOWN = VERDICTS = ("yes", "no", "unknown")


class Assertion(NamedTuple):
    """A statement about the only flower of a colour, and for "place" about that of another, too.

    `value` is a size, a shape, the colour of a centre, or a relation.
    """

    kind: str
    text: str
    colours: tuple[str, ...]
    value: str

    def verdict(self, scene: Scene) -> str | None:
        """One of VERDICTS; None where it is not clear which flower or which place is meant."""
        counts = colour_counts(scene)
        if any(counts[colour] == 0 for colour in self.colours):
            return UNKNOWN
        if any(counts[colour] > 1 for colour in self.colours):
            return None
        first, *others = _named(scene, self.colours)
        if self.kind != "place":
            return YES if looks(first)[self.kind] == self.value else NO
        surely, loosely = RELATIONS[self.value]
        if surely(first, *others):
            return YES
        return None if loosely(first, *others) else NO

    def thought(self, scene: Scene) -> str:
        """What decides it: the missing flower, places of the two in cm, or how the flower is."""
        for colour in self.colours:
            if colour not in colour_counts(scene):
                return f"{listing(scene)}: no {colour}"
        flowers = _named(scene, self.colours)
        if self.kind == "place":
            return ", ".join(f"{p.colour} {p.middle[0] // CM} {p.middle[1] // CM}" for p in flowers)
        centre = " centre" if self.kind == "centre" else ""
        return f"{listing(scene)}: {flowers[0].colour} {looks(flowers[0])[self.kind]}{centre}"


def looks(p: Placed) -> dict[str, str]:
    """What statements say of a single flower, by kind."""
    return {"size": p.size, "shape": p.flower.shape, "centre": p.flower.centre}


def _named(scene: Scene, colours) -> list[Placed]:
    by_colour = {p.colour: p for p in unique_flowers(scene)}
    return [by_colour[colour] for colour in colours if colour in by_colour]


def _assertions() -> Iterator[Assertion]:
    for colour in COLOURS:
        subject = f"the {colour} flower"
        for size in SIDES:
            yield Assertion("size", f"{subject} is {size}", (colour,), size)
        for shape in SHAPES:
            yield Assertion("shape", f"{subject} has {shape} petals", (colour,), shape)
        for centre in CENTRES:
            if centre != colour:
                yield Assertion("centre", f"{subject} has a {centre} centre", (colour,), centre)
    for first, second in permutations(COLOURS, 2):
        for words in RELATIONS:
            text = f"the {first} flower is {words} the {second} one"
            yield Assertion("place", text, (first, second), words)


ASSERTIONS = tuple(_assertions())  # 236
KINDS = ("size", "shape", "centre", "place")


def any_assertion(rng: random.Random) -> Assertion:
    """First the kind, then one of it: the many about places drown no other."""
    kind = rng.choice(KINDS)
    return rng.choice([assertion for assertion in ASSERTIONS if assertion.kind == kind])


def ask_assertion(assertion: Assertion, scene: Scene) -> Question | None:
    """Does the picture make a statement true? None where that is not clear.

    The hasty observer says yes.
    """
    verdict = assertion.verdict(scene)
    if verdict is None:
        return None
    prompt, thought = f"Yes, no or unknown: {assertion.text}.", assertion.thought(scene)
    return Question("entail", prompt, verdict, thought, hasty=YES, seen=listing(scene))


def ask_entail(rng: random.Random, scene: Scene) -> Question | None:
    """A statement about a given scene; the three answers are wanted equally often.

    None where no statement has the wanted one: no colour identifies a flower, or all are shown.
    """
    wanted, verdicts = rng.choice(VERDICTS), {a: a.verdict(scene) for a in ASSERTIONS}
    fitting = [a for a, verdict in verdicts.items() if verdict == wanted]
    if not fitting:
        return None
    kind = rng.choice(list(dict.fromkeys(a.kind for a in fitting)))
    return ask_assertion(rng.choice([a for a in fitting if a.kind == kind]), scene)
