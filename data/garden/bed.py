"""Flower beds with a gardener in them: a net of cells, a flower in some, and where he stands.

Next: tasks/walk.py.
"""

import random
from collections.abc import Mapping

from PIL import Image, ImageDraw

from data.garden.drawing import SUPERSAMPLE, on_background, paint_flower
from data.garden.questions import Question
from data.garden.world import COLOURS, Flower, random_flower

CELL = 24  # pixels
INSET = 2  # pixels between a cell and its flower
FIGURE = (13, 9, 23, 23)  # of the gardener in his cell, pixels
HAT, COAT = (238, 206, 120), (24, 32, 60)

Cell = tuple[int, int]  # column and row


def sample_bed(rng: random.Random, side: int, n_flowers: int) -> tuple[dict[Cell, Flower], Cell]:
    """Flowers of different colours in different cells, and where the gardener starts: elsewhere."""
    cells = [(column, row) for row in range(side) for column in range(side)]
    *places, start = rng.sample(cells, n_flowers + 1)
    colours = rng.sample(COLOURS, n_flowers)
    flowers = {
        cell: random_flower(rng, [colour]) for cell, colour in zip(places, colours, strict=True)
    }
    return flowers, start


def draw_bed(flowers: Mapping[Cell, Flower], side: int, seed: int, gardener: Cell) -> Image.Image:
    """The bed from above, RGB, a square of whole image tokens (16 pixels)."""
    size = -(-side * CELL // 16) * 16
    margin = (size - side * CELL) // 2
    layer = Image.new("RGBA", (size * SUPERSAMPLE, size * SUPERSAMPLE))
    for (column, row), flower in flowers.items():
        x, y = margin + column * CELL, margin + row * CELL
        box = (x + INSET, y + INSET, x + CELL - INSET, y + CELL - INSET)
        big = tuple(SUPERSAMPLE * pixel for pixel in box)
        paint_flower(layer, flower, big, random.Random(seed << 16 | column << 8 | row))
    x, y = margin + gardener[0] * CELL, margin + gardener[1] * CELL
    x0, y0, x1, y1 = (
        SUPERSAMPLE * (at + pixel) for at, pixel in zip((x, y, x, y), FIGURE, strict=True)
    )
    draw, middle = ImageDraw.Draw(layer), (y0 + y1) / 2
    draw.rounded_rectangle((x0 + 4, middle - 4, x1 - 4, y1), 8, fill=COAT)
    draw.ellipse((x0, y0, x1, middle + 8), fill=HAT, outline=COAT, width=3)
    return on_background(layer, "grass", seed, size)


def ask_way(colour: str) -> Question:
    """The question of a walk; what ends it is always the same word."""
    prompt = f"Walk to the {colour} flower and pick it."
    return Question("walk", prompt, "pick", thought="here", seen=colour)


def way(start: Cell, goal: Cell) -> list[tuple[str, str]]:
    """A shortest way, column first: (what is left of it, the move), each."""
    (x, y), moves = start, []
    while (x, y) != goal:
        dx, dy = goal[0] - x, goal[1] - y
        left = [
            f"{abs(distance)} {word}"
            for distance, word in (
                (dx, "east" if dx > 0 else "west"),
                (dy, "south" if dy > 0 else "north"),
            )
            if distance
        ]
        moves.append((", ".join(left), left[0].split()[1]))
        if dx:
            x += 1 if dx > 0 else -1
        else:
            y += 1 if dy > 0 else -1
    return moves
