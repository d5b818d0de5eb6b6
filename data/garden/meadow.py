"""Meadows: large pictures whose details are lost at first sight, and questions about them.

A meadow is drawn at 384 pixels and first shown at 96: a flower is then six to eight pixels wide,
so that its colour and place remain, and of its shape and centre too little for the bundled model,
which is right by chance (benchmarks/RESULTS.md, "The first view alone"). A crop of 64 x 64 pixels,
enlarged, shows it as large as the largest of the scenes (data/garden/world.py). Half of the
questions need such a look, the other half can be answered at first sight: to look always, or never,
is not the best that can be done.

Next: tasks/zoom.py.
"""

import io
import random

from PIL import Image

from data.garden.drawing import SUPERSAMPLE, background, paint_flower
from data.garden.questions import CM, Question, unique_flowers
from data.garden.world import COLOURS, GRID, Placed, Scene, fits, random_flower, reading_order

MEADOW_SIZE, VIEW_SIZE, CROP_SIZE = 384, 96, 64  # pixels
SIDES = (24, 28, 32)  # of the flowers' boxes
GAP = 16  # pixels between flowers
STEP = 32  # pixels between the corners of crops: so few places that one still shows a whole flower
DETAILS = {  # what a look is for -> the question
    "shape": "What shape are the petals of the {colour} flower?",
    "centre": "What colour is the centre of the {colour} flower?",
}
ORDERS = {"left": (0, min), "right": (0, max), "top": (1, min), "bottom": (1, max)}
CLEAR = 48  # pixels that the outermost flower is ahead of the others


def sample_meadow(rng: random.Random, n_objects: int) -> Scene:
    """`n_objects` small flowers of different colours, far apart, in reading order."""
    colours, scene = rng.sample(COLOURS, n_objects), []
    while len(scene) < n_objects:
        width = rng.choice(SIDES)
        height = rng.choice([side for side in SIDES if abs(side - width) <= GRID])
        x0 = GRID * rng.randint(0, (MEADOW_SIZE - width) // GRID)
        y0 = GRID * rng.randint(0, (MEADOW_SIZE - height) // GRID)
        corners = (x0, y0, x0 + width, y0 + height)
        if fits(corners, scene, GAP, MEADOW_SIZE):
            flower = random_flower(rng, [colours[len(scene)]])
            scene.append(Placed(flower, "small", *corners))
    return reading_order(scene)


def draw_meadow(scene: Scene, seed: int) -> tuple[bytes, Image.Image]:
    """(The meadow, 384 x 384, as JPEG; what is seen of it at first, 96 x 96)."""
    meadow = background(random.Random(seed).choice(("grass", "soil")), seed, MEADOW_SIZE)
    for p in scene:  # each on a layer of its own: one for all takes ten times as long
        width, height = p.x1 - p.x0, p.y1 - p.y0
        layer = Image.new("RGBA", (width * SUPERSAMPLE, height * SUPERSAMPLE))
        rng = random.Random(seed << 20 | p.middle[0] << 10 | p.middle[1])
        paint_flower(layer, p.flower, (0, 0, *layer.size), rng)
        small = layer.resize((width, height), Image.Resampling.LANCZOS)
        meadow.paste(small, (p.x0, p.y0), small)
    encoded = io.BytesIO()
    meadow.save(encoded, "JPEG", quality=95, subsampling=0)  # as PNG it would take 100 ms
    return encoded.getvalue(), meadow.resize((VIEW_SIZE, VIEW_SIZE), Image.Resampling.BOX)


def crop_around(p: Placed) -> tuple[int, int, int, int]:
    """The crop that shows a flower best: as near to its middle as corners on the net allow."""
    corners = []
    for middle in p.middle:
        low = STEP * round((middle - CROP_SIZE / 2) / STEP)
        corners.append(min(max(low, 0), MEADOW_SIZE - CROP_SIZE))
    return (*corners, *(low + CROP_SIZE for low in corners))


def place(p: Placed) -> str:
    """The colour of a flower and its middle in cm of the first view, as thoughts give places."""
    x, y = (part * VIEW_SIZE // MEADOW_SIZE // CM for part in p.middle)
    return f"{p.colour} {x} {y}"


def ask_detail(rng: random.Random, scene: Scene) -> tuple[Question, Placed]:
    """A question that needs a look, and the flower to look at."""
    p, name = rng.choice(unique_flowers(scene)), rng.choice(list(DETAILS))
    answer = str(getattr(p.flower, name))
    words = {"shape": answer, "centre": f"{answer} centre"}[name]
    prompt = DETAILS[name].format(colour=p.colour)
    return Question("vqa", prompt, answer, thought=f"{p.colour}: {words}", seen=place(p)), p


def ask_at_sight(rng: random.Random, scene: Scene) -> tuple[Question | None, Placed]:
    """A question that needs no look: which flower is outermost, and that flower; no question
    without a clear lead."""
    side = rng.choice(list(ORDERS))
    axis, best = ORDERS[side]
    outermost = best(scene, key=lambda p: p.middle[axis])
    lead = min(abs(p.middle[axis] - outermost.middle[axis]) for p in scene if p != outermost)
    if lead < CLEAR:
        return None, outermost
    seen, answer = ", ".join(map(place, scene)), outermost.colour
    prompt = f"What colour is the flower nearest to the {side}?"
    question = Question("vqa", prompt, answer, thought=f"{seen}: {answer}", seen=seen)
    return question, outermost
