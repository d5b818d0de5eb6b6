"""Questions that need more than one look: measuring, comparing pictures, causes, and growth.

Same rules as in `data/garden/questions.py`: `ask_x(rng, ...) -> Question | None`, one exact
answer, a short exact thought, and a hasty answer that skips the work.

- `measure`: lengths in a scene, numeric or multiple choice, after the geometry part of Reason-RFT
  (arXiv:2503.20752). A picture is 24 cm wide, so one grid step is 1 cm. Whoever does not measure
  says 12, the half of it, or A.
- `change`: which calls turn the first picture into the second, after its spatial transformation
  part (TRANCE). The prompt lists the objects of the first picture with their places, as there.
- `why`: which of three visible causes makes a flower wilt.
- `order`, `next`: how a plant grows; order pictures by growth, or name the stage that follows.
"""

import random
from collections.abc import Sequence

from data.garden.questions import CM, Question, colour_counts, listing
from data.garden.world import (
    CAUSES,
    LARGE_SIDES,
    SCENE_SIZE,
    SMALL_SIDES,
    STAGES,
    Placed,
    Scene,
    box_1000,
    change_scene,
    shifted,
)

SCALE = "The picture is 24 cm wide."
WIDTH_PROMPT = SCALE + " How wide is the {colour} flower?"
CHOICE_PROMPT = WIDTH_PROMPT + " {options}"
DIFFERENCE_PROMPT = SCALE + " By how much do the widths of the {first} and {second} flower differ?"
DISTANCE_PROMPT = SCALE + " How far is the {first} flower from the {second} one, left to right?"
FARTHEST_PROMPT = "Which is farthest from the {colour} flower? {options}"
CHANGE_PROMPT = "What changed? {numbered}."
WHY_PROMPT = "Why does the {colour} flower wilt?"
ORDER_PROMPT = "Order the pictures {letters} by growth."
NEXT_PROMPT = "Which stage comes next?"
WIDTHS = tuple(side // CM for side in SMALL_SIDES + LARGE_SIDES)
GUESS = "12"  # cm
CLEAR_DISTANCE_RATIO = 1.2  # the farthest flower is asked for only with this lead
VIEW_SHIFTS = [(dx, dy) for dx in (-8, -4, 0, 4, 8) for dy in (-8, -4, 0, 4, 8) if dx or dy]


def in_cm(pixels: float) -> str:
    """Pixels as a number of cm: "7" or "3.5" (middles lie on half steps of the grid)."""
    return f"{pixels / CM:g}"


def ask_measure(rng: random.Random, scene: Scene) -> Question | None:
    """A width, asked for or to be chosen, a difference of widths, a distance, or what is farthest.

    Only flowers whose colour occurs once are asked about. None if the scene has too few of them.
    """
    counts = colour_counts(scene)
    unique = [placed for placed in scene if counts[placed.colour] == 1]
    rng.shuffle(unique)
    kinds = ["width", "choice"] * (len(unique) >= 1)
    kinds += ["difference", "distance"] * (len(unique) >= 2)
    kinds += ["farthest"] * (len(unique) >= 3)
    if not kinds:
        return None
    kind = rng.choice(kinds)
    if kind == "farthest":
        return _ask_farthest(unique[0], sorted(unique[1:4], key=scene.index), scene)
    first = unique[0]
    wide = first.x1 - first.x0
    if kind == "width":
        prompt, answer = WIDTH_PROMPT.format(colour=first.colour), in_cm(wide)
        thought = f"{first.colour} {answer}"
        return Question("measure", prompt, answer, thought, GUESS, listing(scene))
    if kind == "choice":
        # The wrong ones are widths of other flowers, so the options alone say little.
        widths = rng.sample([w for w in WIDTHS if w != wide // CM], 3) + [wide // CM]
        widths.sort()
        options = ", ".join(f"{k} {width}" for k, width in zip("ABCD", widths, strict=True))
        prompt = CHOICE_PROMPT.format(colour=first.colour, options=options)
        letter, thought = "ABCD"[widths.index(wide // CM)], f"{first.colour} {in_cm(wide)}"
        return Question("measure", prompt, letter, thought, "A", listing(scene))
    second = unique[1]
    if kind == "difference":
        prompt = DIFFERENCE_PROMPT.format(first=first.colour, second=second.colour)
        a, b = sorted((wide, second.x1 - second.x0), reverse=True)
        thought = f"{first.colour} {in_cm(wide)}, {second.colour} {in_cm(second.x1 - second.x0)}"
    else:
        prompt = DISTANCE_PROMPT.format(first=first.colour, second=second.colour)
        a, b = sorted((first.middle[0], second.middle[0]), reverse=True)
        thought = f"{first.colour} at {in_cm(first.middle[0])}, "
        thought += f"{second.colour} at {in_cm(second.middle[0])}"
    answer = in_cm(a - b)
    thought += f": {in_cm(a)} - {in_cm(b)} = {answer}"
    return Question("measure", prompt, answer, thought, GUESS, listing(scene))


def _ask_farthest(start: Placed, others: Sequence[Placed], scene: Scene) -> Question | None:
    def distance(placed: Placed) -> float:
        (x, y), (u, v) = placed.middle, start.middle
        return ((x - u) ** 2 + (y - v) ** 2) ** 0.5

    ranked = sorted(others, key=distance, reverse=True)
    if distance(ranked[0]) < CLEAR_DISTANCE_RATIO * distance(ranked[1]):
        return None
    letters = "ABC"[: len(others)]
    options = ", ".join(f"{k} {p.colour}" for k, p in zip(letters, others, strict=True))
    prompt = FARTHEST_PROMPT.format(colour=start.colour, options=options)
    thought = ", ".join(f"{p.colour} {distance(p) / CM:.0f}" for p in others)
    thought += f": {ranked[0].colour}"
    return Question(
        "measure", prompt, letters[others.index(ranked[0])], thought, "A", listing(scene)
    )


# ---- two pictures --------------------------------------------------------------------------------


def ask_change(
    rng: random.Random, scene: Scene, n_changes: int | None = None, p_shifted: float = 0.0
) -> Question:
    """What happened between two pictures? The second scene is in `Question.after`.

    The prompt lists the flowers of the first picture, "f1 small red [250, 42, 500, 292], f2 ...";
    the thought says where they are in the second, how they look, and what is new about each (same,
    size, colour, or gone). One to three changes are drawn unless `n_changes` says how many. With
    `p_shifted` the second picture is taken from a step aside (another view).
    Raises InputError as `change_scene`.
    """
    if n_changes is None:
        n_changes = min(rng.choice((1, 1, 2, 2, 3)), len(scene))
    after, calls = change_scene(scene, rng, n_changes)
    view = (another_view(rng, after) if rng.random() < p_shifted else None) or after
    still_there = {was.middle: new for was, new in zip(after, view, strict=True)}
    states = []
    for number, old in enumerate(scene, start=1):
        new = still_there.get(old.middle)
        state = "gone"
        if new:
            verdict = "colour" if new.colour != old.colour else "size"
            verdict = "same" if (new.size, new.colour) == (old.size, old.colour) else verdict
            state = f"{list(box_1000(new))} {new.size} {new.colour} {verdict}"
        states.append(f"f{number} {state}")
    numbered = ", ".join(
        f"f{k} {p.size} {p.colour} {list(box_1000(p))}" for k, p in enumerate(scene, start=1)
    )
    return Question(
        kind="change",
        prompt=CHANGE_PROMPT.format(numbered=numbered),
        answer=", ".join(calls),
        thought=f"now {', '.join(states)}",
        hasty=calls[0],  # stops at the first difference
        seen=listing(scene),
        after=view,
    )


def another_view(rng: random.Random, scene: Scene) -> Scene | None:
    """The scene from a step aside; None if no step keeps all flowers in the frame."""
    views = [view for view in (shifted(scene, *step) for step in VIEW_SHIFTS) if view]
    return rng.choice(views) if views else None


# ---- causes --------------------------------------------------------------------------------------


def ask_why(rng: random.Random, scene: Scene) -> Question | None:
    """Why does this flower wilt? What ails which flower is in `Question.ailing`.

    Two flowers wilt where the scene has two, for different reasons, so that the right cause must be
    found at the right place. The hasty answer is what makes flowers wilt most often: drought. None
    if no flower has a colour of its own.
    """
    counts = colour_counts(scene)
    unique = [place for place, placed in enumerate(scene) if counts[placed.colour] == 1]
    if not unique:
        return None
    asked = rng.choice(unique)
    causes = rng.sample(CAUSES, 2)
    ailing = {asked: causes[0]}
    if len(scene) > 1:
        ailing[rng.choice([place for place in range(len(scene)) if place != asked])] = causes[1]
    colour = scene[asked].colour
    thought = f"{colour} {causes[0]}"
    prompt = WHY_PROMPT.format(colour=colour)
    return Question("why", prompt, causes[0], thought, "drought", listing(scene), ailing=ailing)


# ---- growth --------------------------------------------------------------------------------------


def ask_order(rng: random.Random, stages: Sequence[str]) -> Question:
    """Order pictures of these stages, shown as A, B, ..., by growth: "B, C, A"."""
    letters = "ABCD"[: len(stages)]
    letter_of = dict(zip(stages, letters, strict=True))
    answer = ", ".join(letter_of[stage] for stage in STAGES if stage in letter_of)
    thought = ", ".join(f"{letter} {stage}" for stage, letter in letter_of.items())
    prompt = ORDER_PROMPT.format(letters=", ".join(letters))
    return Question("order", prompt, answer, thought, ", ".join(letters), ", ".join(stages))


def ask_next(rng: random.Random, stages: Sequence[str]) -> Question:
    """The stage that follows the only one shown, which must not be the last."""
    (stage,) = stages
    follows = STAGES[STAGES.index(stage) + 1]
    return Question("next", NEXT_PROMPT, follows, f"{stage}, then {follows}", stage, stage)


def sample_stages(rng: random.Random, kind: str, count: int = 3) -> list[str]:
    """Different stages in a random order: one that has a next for "next", else `count`."""
    return [rng.choice(STAGES[:-1])] if kind == "next" else rng.sample(STAGES, count)


assert SCENE_SIZE == 24 * CM, "the prompts say that a picture is 24 cm wide"
