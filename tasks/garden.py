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

Method: petals are polygons in unit coordinates, rotated and mapped into a box, painted at four
times the size and reduced (anti-aliasing), then laid over a gradient with two kinds of noise.

Randomness: every picture is a function of (attributes, integer seed). Questions draw from a
`random.Random` the caller owns. Python's salted `hash()` is never used.

Next: `tasks/garden_questions.py`, what can be asked about these pictures.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from model.errors import InputError

RGB = tuple[int, int, int]
GARDEN_SPLIT_SEED = 2503  # the published seed of every split and few-shot subset
PORTRAIT_SIZE, SCENE_SIZE, GRID = 64, 96, 4  # pixels
SUPERSAMPLE = 4  # flowers are painted this many times larger, then reduced

PETAL_COUNTS = (3, 4, 5, 6, 8)
SHAPES = ("round", "pointed", "heart", "thin")
PETAL_RGB: dict[str, RGB] = {
    "red": (208, 28, 34),
    "orange": (245, 128, 12),
    "yellow": (252, 218, 40),
    "white": (246, 245, 240),
    "pink": (248, 140, 184),
    "purple": (136, 44, 170),
    "blue": (44, 82, 214),
}
CENTRE_RGB: dict[str, RGB] = {
    "yellow": (255, 214, 38),
    "brown": (92, 52, 22),
    "white": (250, 248, 242),
    "green": (66, 150, 52),
}
COLOURS, CENTRES = tuple(PETAL_RGB), tuple(CENTRE_RGB)
BACKGROUND_RGB: dict[str, tuple[RGB, RGB]] = {  # colour at the top, colour at the bottom
    "sky": ((138, 182, 214), (192, 216, 222)),
    "grass": ((88, 126, 66), (124, 156, 84)),
    "soil": ((112, 90, 68), (146, 122, 94)),
}


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
    seed: int = GARDEN_SPLIT_SEED,
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


# ---- drawing -------------------------------------------------------------------------------------


@cache
def _petal_outline(shape: str, petals: int) -> np.ndarray:
    """One petal along the x axis, base at 0 and tip at 1, as a polygon (K, 2), float64.

    The half width is what the shape wants, or less where neighbours would hide each other: at
    distance t from the centre, `petals` petals have t * sin(pi / petals) each.
    """
    room = math.sin(math.pi / petals)
    if shape == "heart":  # the classic heart curve, its tip at the flower's centre
        angle = np.linspace(0, 2 * np.pi, 33)[:-1]
        x = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
        along = (x + 17) / (x.max() + 17)  # the notch lies at 0.76
        # Narrow petals get a shallower notch: two deep lobes would read as two petals.
        notch = np.exp(-((np.sin(angle) / 0.5) ** 2)) * (np.cos(angle) > 0)
        along += 0.26 * (1 - room) * notch
        return np.stack([along, np.sin(angle) ** 3 * min(0.42, 0.65 * room)], axis=1)
    if shape == "thin":
        angle = np.linspace(-np.pi / 2, np.pi / 2, 9)
        tip = np.stack([0.89 + 0.11 * np.cos(angle), 0.11 * np.sin(angle)], axis=1)
        return np.concatenate([[(0.0, -0.08)], tip, [(0.0, 0.08)]])
    t = np.linspace(0, 1, 17)
    if shape == "round":
        half = min(0.40, 0.62 * room) * np.sqrt(np.maximum(0, 1 - ((t - 0.58) / 0.42) ** 2))
    else:  # pointed: swells to the middle, then runs straight to a sharp tip
        half = min(0.26, 0.5 * room) * np.where(
            t < 0.45, np.sin(np.pi / 2 * np.minimum(t / 0.45, 1)) ** 0.7, (1 - t) / 0.55
        )
    return np.concatenate([np.stack([t, -half], 1), np.stack([t, half], 1)[::-1]])


def _shade(rgb: RGB, factor: float) -> RGB:
    """Darken (factor < 1) or lighten (factor > 1, towards white) a colour."""
    if factor <= 1:
        return tuple(int(c * factor) for c in rgb)
    return tuple(int(c + (255 - c) * (factor - 1)) for c in rgb)


def _jitter(rgb: RGB, rng: random.Random, light: float) -> RGB:
    """A slightly different colour of the same name, under the light of the picture."""
    return tuple(max(0, min(255, round(c * light + rng.uniform(-9, 9)))) for c in rgb)


def paint_flower(
    image: Image.Image,
    flower: Flower,
    box: tuple[float, float, float, float],
    rng: random.Random,
    stem: bool = False,
) -> None:
    """Paint the petals so that they touch all four sides of `box` (pixels of `image`), in place."""
    draw = ImageDraw.Draw(image)
    turn = rng.uniform(0, 2 * math.pi)
    light = rng.uniform(0.93, 1.04)
    petal_rgb = _jitter(PETAL_RGB[flower.colour], rng, light)
    centre_rgb = _jitter(CENTRE_RGB[flower.centre], rng, light)
    outline = _petal_outline(flower.shape, flower.petals)  # (K, 2)
    angles = turn + 2 * np.pi * np.arange(flower.petals) / flower.petals
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    petals = np.stack(
        [outline[:, 0] * cos - outline[:, 1] * sin, outline[:, 0] * sin + outline[:, 1] * cos], -1
    )  # (petals, K, 2)
    low, high = petals.min((0, 1)), petals.max((0, 1))
    scale = (np.array([box[2] - box[0], box[3] - box[1]]) - 1) / (
        high - low
    )  # last pixel is inside
    origin = np.array(box[:2]) - low * scale
    radius = float(min(scale))
    petals = petals * scale + origin
    x, y = origin
    if stem:
        _paint_stem(draw, x, y, radius, image.size, rng)
    edge = max(2, round(radius * 0.035))
    for petal in petals:
        points = petal.ravel().tolist()
        draw.polygon(points, fill=petal_rgb, outline=_shade(petal_rgb, 0.62), width=edge)
        if flower.shape != "thin":  # a lighter blade and a darker vein make the petal a petal
            middle = petal.mean(0)
            blade = (middle + (petal - middle) * 0.55).ravel().tolist()
            draw.polygon(blade, fill=_shade(petal_rgb, 1.16))
            if flower.shape == "heart":
                continue  # a vein down to the notch would split the petal in two
            vein = (*(origin + (middle - origin) * 0.5), *(origin + (middle - origin) * 1.2))
            draw.line(vein, fill=_shade(petal_rgb, 0.8), width=max(1, edge // 2))
    r = radius * 0.21
    draw.ellipse(
        (x - r, y - r, x + r, y + r), fill=centre_rgb, outline=_shade(centre_rgb, 0.6), width=edge
    )


def _paint_stem(draw, x, y, radius, image_size, rng) -> None:
    """A curved stem from the flower's centre to the lower edge, with one leaf."""
    green = _jitter((64, 112, 44), rng, 1.0)
    foot = x + rng.uniform(-0.5, 0.5) * radius
    t = np.linspace(0, 1, 9)
    stem_x = x + (foot - x) * t**2
    stem_y = y + (image_size[1] - y) * t
    draw.line(np.stack([stem_x, stem_y], 1).ravel().tolist(), fill=green, width=round(radius * 0.1))
    angle = rng.choice((-0.4, -2.7))  # up to the right or to the left
    along, across = _petal_outline("pointed", 8).T * 0.8 * radius
    leaf_x = stem_x[7] + along * math.cos(angle) - across * math.sin(angle)
    leaf_y = stem_y[7] + along * math.sin(angle) + across * math.cos(angle)
    leaf = np.stack([leaf_x, leaf_y], 1).ravel().tolist()
    draw.polygon(leaf, fill=_shade(green, 1.12), outline=_shade(green, 0.7), width=2)


def background(kind: str, seed: int, size: int) -> Image.Image:
    """A vertical gradient with soft patches and fine grain, RGB, `size` x `size`."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    top, bottom = np.array(BACKGROUND_RGB[kind], dtype=np.float32)
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    patches = Image.fromarray(rng.normal(0, 7, (7, 7)).astype(np.float32))
    patches = np.asarray(patches.resize((size, size), Image.Resampling.BICUBIC))
    grain = rng.standard_normal((size, size), dtype=np.float32) * 3
    pixels = top + (bottom - top) * ramp + (patches + grain)[:, :, None]  # (size, size, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_flower(flower: Flower, seed: int, size: int = PORTRAIT_SIZE) -> Image.Image:
    """A portrait of one flower, RGB, `size` x `size`; its width is 70 to 95 % of the frame.

    Position, scale, rotation, tilt, colours, light and background vary with `seed`; the four
    attributes never do.
    """
    rng = random.Random(seed)
    big = size * SUPERSAMPLE
    width = big * rng.uniform(0.70, 0.95)
    height = width * rng.uniform(0.93, 1.0)  # seen slightly from the side
    x0, y0 = rng.uniform(0, big - width), rng.uniform(0, big - height)
    layer = Image.new("RGBA", (big, big))
    paint_flower(layer, flower, (x0, y0, x0 + width, y0 + height), rng, stem=True)
    layer = layer.resize((size, size), Image.Resampling.LANCZOS)
    picture = background(rng.choice(tuple(BACKGROUND_RGB)), seed, size)
    picture.paste(layer, (0, 0), layer)
    return picture


def draw_scene(scene: Scene, seed: int, size: int = SCENE_SIZE) -> Image.Image:
    """Flowers seen from above, RGB, `size` x `size`.

    A flower's rotation and tint depend on (seed, its centre) alone, so drawing a changed scene with
    the same seed changes only what the calls say.
    """
    big = size * SUPERSAMPLE
    scale = big / SCENE_SIZE
    layer = Image.new("RGBA", (big, big))
    for placed in scene:
        x, y = placed.middle
        box = tuple(scale * pixel for pixel in (placed.x0, placed.y0, placed.x1, placed.y1))
        paint_flower(layer, placed.flower, box, random.Random(seed << 16 | x << 8 | y))
    layer = layer.resize((size, size), Image.Resampling.LANCZOS)
    picture = background(random.Random(seed).choice(("grass", "soil")), seed, size)
    picture.paste(layer, (0, 0), layer)
    return picture
