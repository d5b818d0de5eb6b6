"""The generated garden: made-up flower species, and scenes of flowers with known boxes.

A picture drawn from attributes has an exact answer for every question, an exact split, and needs no
download. Two kinds of pictures exist:

- a *portrait* shows one flower of a species (64x64), which has a made-up name, genus + epithet.
  Species of one genus differ in one or two of the four attributes (petal count, petal shape, petal
  colour, centre colour), species of two genera in at least two: fine-grained on purpose.
- a *scene* shows 1 to 7 flowers from above (96x96) with known boxes. Box corners lie on a grid
  of 4 pixels, so only 25 different coordinates 0-1000 occur and each becomes one token. A flower's
  category is its colour: "red flower".

Randomness: every picture is a function of (attributes, integer seed), every question of a
`random.Random` that the caller passes. Next: data/garden/drawing.py, how it looks.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType

from config import SPLIT_SEED
from runtime.errors import InputError

PORTRAIT_SIZE, SCENE_SIZE, GRID = 64, 96, 4  # pixels

PETAL_COUNTS = (3, 4, 5, 6, 8)
SHAPES = ("round", "pointed", "heart", "thin")
COLOURS = ("red", "orange", "yellow", "white", "pink", "purple", "blue")
CENTRES = ("yellow", "brown", "white", "green")

STAGES = ("sprout", "bud", "bloom", "seeds")  # how a plant grows
CAUSES = ("snail", "shade", "drought")  # what can make a flower of a scene wilt
NO_CAUSES: Mapping[int, str] = MappingProxyType({})  # place in the scene -> cause


@dataclass(frozen=True)
class Flower:
    """The four visible attributes. Raises InputError for a value the garden cannot draw."""

    petals: int
    shape: str
    colour: str
    centre: str

    def __post_init__(self):
        visible = tuple(c for c in CENTRES if c != self.colour)  # on petals of this colour
        allowed = {"petals": PETAL_COUNTS, "shape": SHAPES, "colour": COLOURS, "centre": visible}
        for name, values in allowed.items():
            if (value := getattr(self, name)) not in values:
                raise InputError(f"Flower: {name}={value!r} cannot be drawn; use one of {values}")


@dataclass(frozen=True)
class Species:
    """A name of two words and the one look that it stands for."""

    genus: str
    epithet: str
    flower: Flower

    @property
    def name(self) -> str:
        """Genus and epithet, the answer of `cls`."""
        return f"{self.genus} {self.epithet}"


# Genus: epithets; shape, colours, centres and petal counts of its species. Two attributes take two
# values each; their fourth combination is never trained on in RL (OOD). Every epithet occurs in
# several genera, so none identifies a species.
_GENERA = {
    "Solara": ("minor major montana borealis", "pointed", "yellow", "brown green", (5, 8)),
    "Corella": ("major silvana nova minor", "round", "red pink", "yellow white", (5,)),
    "Nivalia": ("montana rara vernalis major", "thin", "white", "yellow brown", (5, 8)),
    "Amantha": ("silvana borealis minor nova", "heart", "pink", "yellow green", (3, 6)),
    "Violana": ("rara nova vernalis silvana", "round", "purple", "yellow white", (4, 6)),
    "Celestra": ("borealis vernalis major rara", "pointed", "blue purple", "yellow white", (5,)),
    "Ignara": ("nova minor silvana montana", "thin", "red orange", "green", (3, 6)),
    "Lunessa": ("vernalis montana borealis rara", "heart", "white blue", "green brown", (4,)),
    "Stellina": ("minor rara nova vernalis", "pointed", "white blue", "brown", (3, 6)),
    "Orania": ("montana major silvana borealis", "round", "orange yellow", "brown", (3, 6)),
}
SPECIES = tuple(
    Species(genus, epithet, Flower(petals, shape, colour, centre))
    for genus, (epithets, shape, colours, centres, counts) in _GENERA.items()
    for epithet, (colour, centre, petals) in zip(
        epithets.split(), product(colours.split(), centres.split(), counts), strict=True
    )
)  # 40
OOD_SPECIES = SPECIES[3::4]  # 10: one per genus
RL_SPECIES = tuple(species for species in SPECIES if species not in OOD_SPECIES)  # 30
_WELL_KNOWN_NAMES = (
    "Solara minor", "Corella silvana", "Nivalia rara", "Amantha borealis", "Violana vernalis",
    "Celestra major", "Ignara nova", "Lunessa montana", "Orania major",
    "Corella minor", "Violana silvana", "Stellina vernalis",  # these three are OOD
)  # fmt: skip
WELL_KNOWN = tuple(species for species in SPECIES if species.name in _WELL_KNOWN_NAMES)  # 12
SPECIES_OF = {species.flower: species for species in SPECIES}

# How often a pretraining caption gives the fine name rather than the genus alone. The gap between
# what such a base can name and what it usually says is what reinforcement fine-tuning elicits.
P_FINE, P_FINE_WELL_KNOWN = 0.2, 0.85


def species_answer(species: Species, rng: random.Random) -> str:
    """A name as in pretraining: fine with P_FINE (or P_FINE_WELL_KNOWN), else the genus alone."""
    p_fine = P_FINE_WELL_KNOWN if species in WELL_KNOWN else P_FINE
    return species.name if rng.random() < p_fine else species.genus


# ---- seeds and splits ----------------------------------------------------------------------------

SPLITS = ("train", "val", "test", "pretrain")
SCENE_SUBJECT = 4095  # takes the place of the species index in the seed of a scene


def render_seed(split: str, seed: int, subject: int, index: int) -> int:
    """The seed of one picture, a 62-bit field, so no two (split, seed, subject, index) share one.

    Bits: split (2) | seed (24) | subject (12: row in SPECIES, or SCENE_SUBJECT) | index (24).
    Raises InputError out of range.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; use one of {SPLITS}")
    for name, value, bits in (("seed", seed, 24), ("subject", subject, 12), ("index", index, 24)):
        if not 0 <= value < 1 << bits:
            raise InputError(f"{name}={value} is out of range; use 0 to {(1 << bits) - 1}")
    return SPLITS.index(split) << 60 | seed << 36 | subject << 24 | index


def index_of(render_seed: int) -> int:
    """The index of a picture, of its rendering seed."""
    return render_seed % (1 << 24)


def class_examples(
    species_list: Sequence[Species], images_per_species: int, split: str, seed: int = SPLIT_SEED
) -> Iterator[tuple[str, int, Species]]:
    """Yield (id, rendering seed, species), image by image over all species: any prefix is balanced.

    The first k images per species are the same whatever `images_per_species` is, so the 1-shot set
    is part of the 2-shot set, and so on. Seeds: see `render_seed`. Raises InputError as it does.
    """
    for index in range(images_per_species):
        for species in species_list:
            id = f"{split}-{seed}-{species.name.lower().replace(' ', '-')}-{index}"
            yield id, render_seed(split, seed, SPECIES.index(species), index), species


# ---- scenes --------------------------------------------------------------------------------------

SIDES = {"small": (20, 24, 28), "large": (36, 40, 44)}  # of boxes, in pixels
SIZE_STEP = 16  # pixels that a change of size adds or takes
P_SMALL, P_SMALL_IN_CROWD = 0.5, 0.7  # many large flowers find no room in a crowded scene
MAX_ID_OBJECTS, MAX_OBJECTS = 4, 7  # scenes of 5 to 7 flowers are out of distribution
P_REPEAT = 0.3  # a flower takes the colour of an earlier one: there must be something to count

Corners = tuple[int, int, int, int]  # x0, y0, x1, y1


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
    def colour(self) -> str:
        """Colour of the petals."""
        return self.flower.colour

    @property
    def corners(self) -> Corners:
        """The box in pixels."""
        return self.x0, self.y0, self.x1, self.y1

    @property
    def middle(self) -> tuple[int, int]:
        """Box centre (x, y) in pixels; a whole number because box sides are multiples of 4."""
        return (self.x0 + self.x1) // 2, (self.y0 + self.y1) // 2

    @property
    def area(self) -> int:
        """Of the box, in square pixels."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)


Scene = tuple[Placed, ...]  # in reading order; flower number k of a question is scene[k - 1]


def reading_order(placed: Sequence[Placed]) -> Scene:
    """Top to bottom by box centre, equal heights left to right."""
    return tuple(sorted(placed, key=lambda p: (p.middle[1], p.middle[0])))


def box_1000(placed: Placed) -> list[int]:
    """The box as integers 0-1000, [x0, y0, x1, y1]: Qwen2-VL's box format."""
    return [round(pixel * 1000 / SCENE_SIZE) for pixel in placed.corners]


def random_flower(rng: random.Random, colours: Sequence[str] = COLOURS) -> Flower:
    """Any drawable flower, most of them no species: colour, then centre, shape and petal count."""
    colour = rng.choice(colours)
    centre = rng.choice([name for name in CENTRES if name != colour])
    return Flower(rng.choice(PETAL_COUNTS), rng.choice(SHAPES), colour, centre)


def fits(corners: Corners, others: Sequence[Placed], gap: int, size: int = SCENE_SIZE) -> bool:
    """Whether a box is inside the picture and at least `gap` pixels away from every other box."""
    x0, y0, x1, y1 = corners
    if min(corners) < 0 or max(corners) > size:
        return False
    return all(
        x1 + gap <= other.x0 or other.x1 + gap <= x0 or y1 + gap <= other.y0 or other.y1 + gap <= y0
        for other in others
    )


def sample_scene(rng: random.Random, n_objects: int) -> Scene:
    """A scene of `n_objects` flowers without overlap, in reading order.

    Up to four flowers are 4 pixels apart; five to seven may touch, and few of them are large.
    Raises InputError unless 1 <= n_objects <= 7.
    """
    if not 1 <= n_objects <= MAX_OBJECTS:
        raise InputError(f"n_objects={n_objects} is out of range; use 1 to {MAX_OBJECTS}")
    crowded = n_objects > MAX_ID_OBJECTS
    p_small = P_SMALL_IN_CROWD if crowded else P_SMALL
    while True:  # a full scene can leave no room for the next flower: then begin again
        scene: list[Placed] = []
        for _ in range(60):
            size = "small" if rng.random() < p_small else "large"
            width = rng.choice(SIDES[size])
            height = rng.choice([side for side in SIDES[size] if abs(side - width) <= GRID])
            x0 = GRID * rng.randint(0, (SCENE_SIZE - width) // GRID)
            y0 = GRID * rng.randint(0, (SCENE_SIZE - height) // GRID)
            corners = (x0, y0, x0 + width, y0 + height)
            if not fits(corners, scene, 0 if crowded else GRID):
                continue
            repeats = scene and rng.random() < P_REPEAT
            flower = random_flower(rng, [rng.choice(scene).colour] if repeats else COLOURS)
            scene.append(Placed(flower, size, *corners))
            if len(scene) == n_objects:
                return reading_order(scene)


def _resized(p: Placed) -> Placed:
    """The same flower in the other size about the same centre; the corners stay on the grid."""
    size, step = ("large", SIZE_STEP // 2) if p.size == "small" else ("small", -SIZE_STEP // 2)
    return Placed(p.flower, size, p.x0 - step, p.y0 - step, p.x1 + step, p.y1 + step)


def change_scene(scene: Scene, rng: random.Random, n_changes: int) -> tuple[Scene, list[str]]:
    """Change `n_changes` of the flowers; return the new scene and the calls, by flower number.

    Calls are "change_colour(f1, red)", "change_size(f2, small)" and "remove(f3)", where f1, f2, ...
    number the first scene. Flowers that stay keep their centre: the pictures determine the calls.
    """
    after = dict(enumerate(scene, start=1))
    calls = []
    for number in sorted(rng.sample(sorted(after), n_changes)):
        old = after.pop(number)
        resized = _resized(old)
        # There must be room in both pictures, so the calls hold in whatever order they are applied.
        others = [p for p in scene if p != old] + list(after.values())
        can_resize = fits(resized.corners, others, gap=0)
        action = rng.choice(["change_colour", "remove"] + ["change_size"] * can_resize)
        if action == "remove":
            calls.append(f"remove(f{number})")
        elif action == "change_size":
            after[number] = resized
            calls.append(f"change_size(f{number}, {resized.size})")
        else:
            colour = rng.choice([c for c in COLOURS if c not in (old.colour, old.flower.centre)])
            after[number] = replace(old, flower=replace(old.flower, colour=colour))
            calls.append(f"change_colour(f{number}, {colour})")
    return reading_order(list(after.values())), calls


def shifted(scene: Scene, dx: int, dy: int) -> Scene | None:
    """The same flowers from a shifted viewpoint (pixels); None if one would leave the picture."""
    moved = tuple(replace(p, x0=p.x0 + dx, y0=p.y0 + dy, x1=p.x1 + dx, y1=p.y1 + dy) for p in scene)
    return moved if all(fits(p.corners, (), gap=0) for p in moved) else None
