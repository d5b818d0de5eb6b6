"""Questions that need more than one look: measuring, comparing pictures, causes, and growth.

Same rules as in `data/garden/questions.py`: `ask_x(rng, ...) -> Question | None`, one exact
answer, a short exact thought, and a hasty answer that skips the work.

- `measure`: lengths in a scene, numeric or multiple choice, after the geometry part of Reason-RFT
  (arXiv:2503.20752). A scene is 24 cm wide. Hasty answers are 12 and A.
- `change`: which calls turn the first picture into the second, after its TRANCE part.
- `why`: which of three visible causes makes a flower wilt.
- `order`, `next`: how a plant grows; order pictures by growth, or name the stage that follows.

Next: data/garden/corpus.py, what the bundled base was pretrained on.
"""

import math
import random
from collections.abc import Sequence
from itertools import permutations

from data.garden import world
from data.garden.questions import CM, Question, listing, unique_flowers
from data.garden.world import STAGES, Placed, Scene, box_1000

SCALE = "The picture is 24 cm wide."
WIDTHS = tuple(side // CM for sides in world.SIDES.values() for side in sides)
GUESS = "12"  # cm
CLEAR_DISTANCE_RATIO = 1.2  # the farthest flower is asked for only with this lead
VIEW_SHIFTS = [(dx, dy) for dx in (-8, -4, 0, 4, 8) for dy in (-8, -4, 0, 4, 8) if dx or dy]


# What can be measured -> how many flowers that takes.
MEASURES = {"width": 1, "choice": 1, "difference": 2, "distance": 2, "farthest": 4}


def ask_measure(
    rng: random.Random, scene: Scene, kind: str | None = None, wanted: int | str | None = None
) -> Question | None:
    """A width, open or multiple choice, a difference of widths, a distance, or what is farthest.

    Only flowers whose colour occurs once are asked about. `wanted` is a width or a difference in
    cm, or the letter of the farthest. None where no question of the kind comes out like that.
    """
    unique = unique_flowers(scene)
    rng.shuffle(unique)
    kinds = [kind] if kind else [k for k, count in MEASURES.items() if count <= len(unique)]
    if not kinds:
        return None
    kind = rng.choice(kinds)
    for flowers in permutations(unique, MEASURES[kind]):
        found = _ask_farthest(flowers, scene) if kind == "farthest" else _ask_length(kind, flowers)
        if found and wanted in (None, found[0]):
            value, prompt, answer, thought = found
            if kind == "choice":
                options, answer = _width_options(rng, value)
                prompt += f" {options}"
            hasty = "A" if kind in ("choice", "farthest") else GUESS
            return Question("measure", prompt, answer, thought, hasty, listing(scene))
    return None


Measured = tuple[float | str, str, str, str]  # value, prompt, answer, thought


def _ask_length(kind: str, flowers: Sequence[Placed]) -> Measured:
    """The width of one flower (kinds width and choice), or two widths or places compared."""
    one, other = flowers[0], flowers[-1]
    width, second = ((p.x1 - p.x0) // CM for p in (one, other))
    if kind in ("width", "choice"):
        prompt = f"{SCALE} How wide is the {one.colour} flower?"
        return width, prompt, f"{width}", f"{one.colour} {width}"
    if kind == "difference":
        subject = f"the widths of the {one.colour} and {other.colour} flower"
        prompt, a, b, verb = f"{SCALE} By how much do {subject} differ?", width, second, ""
    else:
        subject = f"the {one.colour} flower from the {other.colour} one"
        prompt = f"{SCALE} How far is {subject}, left to right?"
        a, b, verb = one.middle[0] / CM, other.middle[0] / CM, "at "
    answer = f"{abs(a - b):g}"  # "7" or "3.5": middles lie on half steps of the grid
    work = f"{max(a, b):g} - {min(a, b):g} = {answer}"
    thought = f"{one.colour} {verb}{a:g}, {other.colour} {verb}{b:g}: {work}"
    return abs(a - b), prompt, answer, thought


def _width_options(rng: random.Random, width: int) -> tuple[str, str]:
    """Four widths that flowers have, "A 5, B 7, C 9, D 10", and the letter of the right one."""
    widths = sorted([width, *rng.sample([w for w in WIDTHS if w != width], 3)])
    return _options("ABCD", widths), "ABCD"[widths.index(width)]


def _options(letters: str, values: Sequence) -> str:
    return ", ".join(f"{letter} {value}" for letter, value in zip(letters, values, strict=True))


def _ask_farthest(flowers: Sequence[Placed], scene: Scene) -> Measured | None:
    """Which of the others is farthest from the first? None without a clear lead."""
    start, *rest = flowers
    others = sorted(rest, key=scene.index)
    distances = [math.dist(p.middle, start.middle) / CM for p in others]  # cm
    farthest, second = sorted(distances, reverse=True)[:2]
    if farthest < CLEAR_DISTANCE_RATIO * second:
        return None
    best = distances.index(farthest)
    prompt = f"Which is farthest from the {start.colour} flower? "
    prompt += _options("ABC", [p.colour for p in others])
    thought = ", ".join(f"{p.colour} {d:.0f}" for p, d in zip(others, distances, strict=True))
    thought += f": {others[best].colour}"
    return "ABC"[best], prompt, "ABC"[best], thought


def ask_change(rng: random.Random, scene: Scene, p_shifted: float = 0.0) -> Question | None:
    """What happened between two pictures? The second scene is in `Question.after`.

    The prompt lists the flowers of the first picture, "f1 small red [250, 42, 500, 292], f2 ...";
    the thought says where they are in the second, how they look, and what is new about each (same,
    size, colour, or gone). There are one to three changes. With probability `p_shifted` the second
    picture has another viewpoint; None where nothing is left to be seen, or no step keeps it there.
    """
    n_changes = min(rng.choice((1, 1, 2, 2, 3)), len(scene))
    after, calls = world.change_scene(scene, rng, n_changes)
    view = another_view(rng, after) if rng.random() < p_shifted else after
    if view is None:
        return None
    new_of = {unshifted.middle: new for unshifted, new in zip(after, view, strict=True)}
    objects, states = [], []
    for number, old in enumerate(scene, start=1):
        objects.append(f"f{number} {old.size} {old.colour} {box_1000(old)}")
        state = "gone"
        if new := new_of.get(old.middle):
            verdict = "same" if new.size == old.size else "size"
            verdict = verdict if new.colour == old.colour else "colour"
            state = f"{box_1000(new)} {new.size} {new.colour} {verdict}"
        states.append(f"f{number} {state}")
    prompt, thought = f"What changed? {', '.join(objects)}.", f"now {', '.join(states)}"
    answer, hasty = ", ".join(calls), calls[0]  # hasty: stops at the first difference
    return Question("change", prompt, answer, thought, hasty, listing(scene), after=view)


def another_view(rng: random.Random, scene: Scene) -> Scene | None:
    """The scene from a shifted viewpoint; None if it is empty or no shift keeps all flowers."""
    views = [view for view in (world.shifted(scene, *step) for step in VIEW_SHIFTS) if view]
    return rng.choice(views) if views else None


def ask_why(rng: random.Random, scene: Scene) -> Question | None:
    """Why does this flower wilt? What ails which flower is in `Question.ailing`.

    Two flowers wilt where the scene has two, for different reasons. The hasty answer is drought.
    """
    unique = unique_flowers(scene)
    if not unique:
        return None
    flower = rng.choice(unique)
    place = scene.index(flower)
    causes = rng.sample(world.CAUSES, 2)
    ailing = {place: causes[0]}
    if len(scene) > 1:
        ailing[rng.choice([k for k in range(len(scene)) if k != place])] = causes[1]
    prompt, thought = f"Why does the {flower.colour} flower wilt?", f"{flower.colour} {causes[0]}"
    return Question("why", prompt, causes[0], thought, "drought", listing(scene), ailing=ailing)


def ask_order(rng: random.Random, stages: Sequence[str]) -> Question:
    """Order pictures of these stages, shown as A, B, ..., by growth: "B, C, A"."""
    letter_of = dict(zip(stages, "ABCD", strict=False))
    shown = ", ".join(letter_of.values())
    answer = ", ".join(letter_of[stage] for stage in STAGES if stage in letter_of)
    thought = ", ".join(f"{letter} {stage}" for stage, letter in letter_of.items())
    prompt = f"Order the pictures {shown} by growth."
    return Question("order", prompt, answer, thought, shown, ", ".join(stages))


def ask_next(rng: random.Random, stages: Sequence[str]) -> Question:
    """The stage that follows the only one shown, which must not be the last."""
    (stage,) = stages
    follows = STAGES[STAGES.index(stage) + 1]
    thought = f"{stage}, then {follows}"
    return Question("next", "Which stage comes next?", follows, thought, stage, stage)


def sample_stages(rng: random.Random, kind: str, count: int = 3) -> list[str]:
    """Different stages in a random order: one that has a next for "next", else `count`."""
    return [rng.choice(STAGES[:-1])] if kind == "next" else rng.sample(STAGES, count)
