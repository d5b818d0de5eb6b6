"""The generated garden: made-up flower species, scenes of flowers, and their pictures.

Why generated? A picture drawn from attributes has an exact answer for every question, an exact
split, and needs no download. Two kinds of pictures exist:

- a *portrait* shows one flower of a species (64x64). Species carry made-up Latin names, genus +
  epithet. Species of one genus differ in one or two of the four attributes (petal count, petal
  shape, petal colour, centre colour), species of two genera in at least two: fine-grained on
  purpose, yet every species is decided by what can be seen.
- a *scene* shows 1 to 7 flowers from above (96x96) with known boxes. Box corners lie on a grid
  of 4 pixels, so only 25 different coordinates 0-1000 occur, each one cheap to say. A flower's
  category is its colour: "red flower".

Randomness: every picture is a function of (attributes, integer seed). Questions draw from a
`random.Random` the caller owns. Python's salted `hash()` is never used.

Next: data/garden/drawing.py, how it looks.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from config import SPLIT_SEED
from runtime.errors import InputError

PORTRAIT_SIZE, SCENE_SIZE, GRID = 64, 96, 4  # pixels

PETAL_COUNTS = (3, 4, 5, 6, 8)
SHAPES = ("round", "pointed", "heart", "thin")
COLOURS = ("red", "orange", "yellow", "white", "pink", "purple", "blue")
CENTRES = ("yellow", "brown", "white", "green")

STAGES = ("sprout", "bud", "bloom", "seeds")  # how a plant grows
CAUSES = ("snail", "shade", "drought")  # what can make a flower of a scene wilt

# ---- species -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flower:
    """The four visible attributes. Raises InputError for a value the garden cannot draw."""

    petals: int
    shape: str
    colour: str
    centre: str

    def __post_init__(self):
        for name, allowed in (
            ("petals", PETAL_COUNTS),
            ("shape", SHAPES),
            ("colour", COLOURS),
            ("centre", CENTRES),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"Flower: {name}={getattr(self, name)!r} is unknown; use one of {allowed}"
                )
        if self.centre == self.colour:
            raise InputError(
                f"Flower: petals and centre are both {self.colour}, so the centre would be "
                "invisible; choose another centre"
            )


@dataclass(frozen=True)
class Species:
    genus: str
    epithet: str
    flower: Flower

    @property
    def name(self) -> str:
        return f"{self.genus} {self.epithet}"


# Each genus varies two attributes over two values each; the fourth combination, the last row, is
# never trained on in RL (OOD). Epithets recur over five genera, so none identifies a species.
_TABLE = (
    ("Solara", "minor", 5, "pointed", "yellow", "brown"),
    ("Solara", "major", 8, "pointed", "yellow", "brown"),
    ("Solara", "montana", 5, "pointed", "yellow", "green"),
    ("Solara", "borealis", 8, "pointed", "yellow", "green"),
    ("Corella", "major", 5, "round", "red", "yellow"),
    ("Corella", "silvana", 5, "round", "red", "white"),
    ("Corella", "nova", 5, "round", "pink", "yellow"),
    ("Corella", "minor", 5, "round", "pink", "white"),
    ("Nivalia", "montana", 5, "thin", "white", "yellow"),
    ("Nivalia", "rara", 8, "thin", "white", "yellow"),
    ("Nivalia", "vernalis", 5, "thin", "white", "brown"),
    ("Nivalia", "major", 8, "thin", "white", "brown"),
    ("Amantha", "silvana", 3, "heart", "pink", "yellow"),
    ("Amantha", "borealis", 6, "heart", "pink", "yellow"),
    ("Amantha", "minor", 3, "heart", "pink", "green"),
    ("Amantha", "nova", 6, "heart", "pink", "green"),
    ("Violana", "rara", 4, "round", "purple", "yellow"),
    ("Violana", "nova", 6, "round", "purple", "yellow"),
    ("Violana", "vernalis", 4, "round", "purple", "white"),
    ("Violana", "silvana", 6, "round", "purple", "white"),
    ("Celestra", "borealis", 5, "pointed", "blue", "yellow"),
    ("Celestra", "vernalis", 5, "pointed", "blue", "white"),
    ("Celestra", "major", 5, "pointed", "purple", "yellow"),
    ("Celestra", "rara", 5, "pointed", "purple", "white"),
    ("Ignara", "nova", 3, "thin", "red", "green"),
    ("Ignara", "minor", 6, "thin", "red", "green"),
    ("Ignara", "silvana", 3, "thin", "orange", "green"),
    ("Ignara", "montana", 6, "thin", "orange", "green"),
    ("Lunessa", "vernalis", 4, "heart", "white", "green"),
    ("Lunessa", "montana", 4, "heart", "white", "brown"),
    ("Lunessa", "borealis", 4, "heart", "blue", "green"),
    ("Lunessa", "rara", 4, "heart", "blue", "brown"),
    ("Stellina", "minor", 3, "pointed", "white", "brown"),
    ("Stellina", "rara", 6, "pointed", "white", "brown"),
    ("Stellina", "nova", 3, "pointed", "blue", "brown"),
    ("Stellina", "vernalis", 6, "pointed", "blue", "brown"),
    ("Orania", "montana", 3, "round", "orange", "brown"),
    ("Orania", "major", 6, "round", "orange", "brown"),
    ("Orania", "silvana", 3, "round", "yellow", "brown"),
    ("Orania", "borealis", 6, "round", "yellow", "brown"),
)
SPECIES = tuple(Species(row[0], row[1], Flower(*row[2:])) for row in _TABLE)
GENERA = tuple(dict.fromkeys(species.genus for species in SPECIES))
OOD_SPECIES = SPECIES[3::4]  # 10: one per genus
RL_SPECIES = tuple(species for species in SPECIES if species not in OOD_SPECIES)  # 30
_WELL_KNOWN_NAMES = (
    "Solara minor", "Corella silvana", "Nivalia rara", "Amantha borealis", "Violana vernalis",
    "Celestra major", "Ignara nova", "Lunessa montana", "Orania major",
    "Corella minor", "Violana silvana", "Stellina vernalis",  # these three are OOD
)  # fmt: skip
WELL_KNOWN = tuple(species for species in SPECIES if species.name in _WELL_KNOWN_NAMES)  # 12
_SPECIES_OF = {species.flower: species for species in SPECIES}

# How often a pretraining caption gives the fine name rather than the genus alone. The gap between
# what such a base can tell and what it usually says is what reinforcement fine-tuning elicits.
P_FINE = 0.2
P_FINE_WELL_KNOWN = 0.85


def species_of(flower: Flower) -> Species | None:
    """The species with exactly these attributes, or None."""
    return _SPECIES_OF.get(flower)


def coarse_name(species: Species) -> str:
    """The genus alone, e.g. "Solara"."""
    return species.genus


def species_answer(species: Species, rng: random.Random) -> str:
    """A name as the pretraining gives it: fine with P_FINE (or P_FINE_WELL_KNOWN), else coarse."""
    p_fine = P_FINE_WELL_KNOWN if species in WELL_KNOWN else P_FINE
    return species.name if rng.random() < p_fine else coarse_name(species)


# ---- seeds and splits ----------------------------------------------------------------------------

SPLITS = ("train", "val", "test", "pretrain")
SCENE_SUBJECT = 4095  # takes the place of the species index in the seed of a scene


def render_seed(split: str, seed: int, subject: int, index: int) -> int:
    """The seed of one picture, a 62-bit field, so no two (split, seed, subject, index) share one.

    Bits: split (2) | seed (24) | subject (12: row in SPECIES, or SCENE_SUBJECT) | index (24).
    Splits are therefore disjoint whatever the other three are. Raises InputError out of range.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; use one of {SPLITS}")
    for name, value, bits in (("seed", seed, 24), ("subject", subject, 12), ("index", index, 24)):
        if not 0 <= value < 1 << bits:
            raise InputError(f"{name}={value} is out of range; use 0 to {(1 << bits) - 1}")
    return SPLITS.index(split) << 60 | seed << 36 | subject << 24 | index


def class_examples(
    species_list: Sequence[Species],
    images_per_species: int,
    split: str,
    seed: int = SPLIT_SEED,
) -> Iterator[tuple[str, int, Species]]:
    """Yield (id, rendering seed, species), image by image over all species: any prefix is balanced.

    The first k images per species are the same whatever `images_per_species` is, so the 1-shot set
    is part of the 2-shot set, and so on. Seeds: see `render_seed`. Raises InputError as it does.
    """
    for index in range(images_per_species):
        for species in species_list:
            name = species.name.lower().replace(" ", "-")
            subject = SPECIES.index(species)
            yield (
                f"{split}-{seed}-{name}-{index}",
                render_seed(split, seed, subject, index),
                species,
            )


# ---- scenes --------------------------------------------------------------------------------------

SMALL_SIDES, LARGE_SIDES = (20, 24, 28), (36, 40, 44)  # pixels; a change of size adds or takes 16
SIZE_STEP = LARGE_SIDES[0] - SMALL_SIDES[0]
MAX_ID_OBJECTS, MAX_OBJECTS = 4, 7  # scenes of 5 to 7 flowers are out of distribution


@dataclass(frozen=True)
class Placed:
    """A flower in a scene; its petals touch the box: pixels, x1 and y1 exclusive."""

    flower: Flower
    size: str  # "small" or "large"
    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def petals(self) -> int:
        return self.flower.petals

    @property
    def shape(self) -> str:
        return self.flower.shape

    @property
    def colour(self) -> str:
        return self.flower.colour

    @property
    def centre(self) -> str:
        return self.flower.centre

    @property
    def category(self) -> str:
        return f"{self.colour} flower"

    @property
    def middle(self) -> tuple[int, int]:
        """Box centre (x, y) in pixels; a whole number because box sides are multiples of 4."""
        return (self.x0 + self.x1) // 2, (self.y0 + self.y1) // 2

    @property
    def area(self) -> int:
        return (self.x1 - self.x0) * (self.y1 - self.y0)


Scene = tuple[Placed, ...]  # in reading order; flower number k of a question is scene[k - 1]


def reading_order(placed: Sequence[Placed]) -> Scene:
    """Top to bottom by box centre, equal heights left to right."""
    return tuple(sorted(placed, key=lambda p: (p.middle[1], p.middle[0])))


def box_1000(placed: Placed, frame: int = SCENE_SIZE) -> tuple[int, int, int, int]:
    """The box as integers 0-1000, round(pixel * 1000 / frame), as Qwen2-VL speaks boxes."""
    corners = (placed.x0, placed.y0, placed.x1, placed.y1)
    x0, y0, x1, y1 = (round(pixel * 1000 / frame) for pixel in corners)
    return x0, y0, x1, y1


def random_flower(rng: random.Random, colours: Sequence[str] = COLOURS) -> Flower:
    """Any drawable flower, most of them no species: colour, then centre, shape and petal count."""
    colour = rng.choice(colours)
    centre = rng.choice([name for name in CENTRES if name != colour])
    return Flower(rng.choice(PETAL_COUNTS), rng.choice(SHAPES), colour, centre)


def _fits(x0: int, y0: int, x1: int, y1: int, others: Sequence[Placed], gap: int) -> bool:
    """Is the box inside the frame and at least `gap` pixels away from every other box?"""
    if min(x0, y0) < 0 or max(x1, y1) > SCENE_SIZE:
        return False
    return all(
        x1 + gap <= other.x0 or other.x1 + gap <= x0 or y1 + gap <= other.y0 or other.y1 + gap <= y0
        for other in others
    )


def sample_scene(
    rng: random.Random, n_objects: int, colours: Sequence[str] = COLOURS, p_repeat: float = 0.3
) -> Scene:
    """A scene of `n_objects` flowers without overlap, in reading order.

    Up to four flowers are small or large and 4 pixels apart; five to seven are small and may touch.
    With `p_repeat` a flower takes the colour of an earlier one: there must be something to count.
    Raises InputError unless 1 <= n_objects <= 7.
    """
    if not 1 <= n_objects <= MAX_OBJECTS:
        raise InputError(f"n_objects={n_objects} is out of range; use 1 to {MAX_OBJECTS}")
    crowded = n_objects > MAX_ID_OBJECTS
    while True:  # a full scene can leave no room for the next flower: then start afresh
        scene: list[Placed] = []
        for _ in range(60):
            size = "small" if crowded or rng.random() < 0.5 else "large"
            width = rng.choice(SMALL_SIDES if size == "small" else LARGE_SIDES)
            sides = SMALL_SIDES if size == "small" else LARGE_SIDES
            height = rng.choice([side for side in sides if abs(side - width) <= GRID])
            x0 = GRID * rng.randint(0, (SCENE_SIZE - width) // GRID)
            y0 = GRID * rng.randint(0, (SCENE_SIZE - height) // GRID)
            if not _fits(x0, y0, x0 + width, y0 + height, scene, 0 if crowded else GRID):
                continue
            repeated = scene and rng.random() < p_repeat
            flower = random_flower(rng, [rng.choice(scene).colour] if repeated else colours)
            scene.append(Placed(flower, size, x0, y0, x0 + width, y0 + height))
            if len(scene) == n_objects:
                return reading_order(scene)


def _resized(placed: Placed) -> Placed:
    """The same flower in the other size about the same centre; the corners stay on the grid."""
    step = SIZE_STEP // 2 if placed.size == "small" else -SIZE_STEP // 2
    size = "large" if placed.size == "small" else "small"
    box = (placed.x0 - step, placed.y0 - step, placed.x1 + step, placed.y1 + step)
    return Placed(placed.flower, size, *box)


def change_scene(scene: Scene, rng: random.Random, n_changes: int) -> tuple[Scene, list[str]]:
    """Change `n_changes` different flowers; return the new scene and the calls, by flower number.

    Calls are "change_colour(f1, red)", "change_size(f2, small)" and "remove(f3)", where f1, f2, ...
    number the first scene in reading order. Flowers that stay keep their centre, so the calls can
    be read off the two pictures without doubt.

    Raises InputError unless 1 <= n_changes <= len(scene).
    """
    if not 1 <= n_changes <= len(scene):
        raise InputError(f"n_changes={n_changes} is out of range; use 1 to {len(scene)}")
    after = dict(enumerate(scene, start=1))
    calls = []
    for number in sorted(rng.sample(sorted(after), n_changes)):
        old = after.pop(number)
        resized = _resized(old)
        # Room is asked of both pictures, so the calls hold in whatever order they are applied.
        rest = [p for p in scene if p != old] + list(after.values())
        actions = ["change_colour", "remove"]
        if _fits(resized.x0, resized.y0, resized.x1, resized.y1, rest, 0):
            actions.append("change_size")
        action = rng.choice(actions)
        if action == "remove":
            calls.append(f"remove(f{number})")
        elif action == "change_size":
            after[number] = resized
            calls.append(f"change_size(f{number}, {resized.size})")
        else:
            colour = rng.choice([c for c in COLOURS if c not in (old.colour, old.centre)])
            after[number] = replace(old, flower=replace(old.flower, colour=colour))
            calls.append(f"change_colour(f{number}, {colour})")
    return reading_order(list(after.values())), calls


def shifted(scene: Scene, dx: int, dy: int) -> Scene | None:
    """The same flowers seen from a step aside (pixels); None if one would leave the frame."""
    moved = [replace(p, x0=p.x0 + dx, y0=p.y0 + dy, x1=p.x1 + dx, y1=p.y1 + dy) for p in scene]
    return tuple(moved) if all(_fits(p.x0, p.y0, p.x1, p.y1, (), 0) for p in moved) else None
