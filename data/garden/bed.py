"""Flower beds with a gardener in them: a net of cells, a flower in some, and where he stands.

Next: tasks/walk.py.
"""

import random
from collections.abc import Mapping

from PIL import Image, ImageDraw

from data.garden.drawing import SUPERSAMPLE, on_background, paint_flower
from data.garden.questions import CM, Question
from data.garden.world import COLOURS, SCENE_SIZE, Flower, random_flower

BED_SIZE = SCENE_SIZE  # pixels, of beds with few and with many cells
INSET = 2  # pixels between a cell and its flower
FIGURE = (0.55, 0.38, 0.95, 0.95)  # of the gardener in his cell: x0, y0, x1, y1 in shares of it
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


def cell_of(side: int) -> int:
    """Pixels of a cell in a bed of side x side."""
    return BED_SIZE // side


def draw_bed(flowers: Mapping[Cell, Flower], side: int, seed: int, gardener: Cell) -> Image.Image:
    """The bed from above, RGB."""
    cell, layer = cell_of(side), Image.new("RGBA", (BED_SIZE * SUPERSAMPLE,) * 2)
    for (column, row), flower in flowers.items():
        x, y = column * cell, row * cell
        box = (x + INSET, y + INSET, x + cell - INSET, y + cell - INSET)
        big = tuple(SUPERSAMPLE * pixel for pixel in box)
        paint_flower(layer, flower, big, random.Random(seed << 16 | column << 8 | row))
    corner = [part * cell for part in (*gardener, *gardener)]
    x0, y0, x1, y1 = (
        SUPERSAMPLE * (at + share * cell) for at, share in zip(corner, FIGURE, strict=True)
    )
    draw, middle = ImageDraw.Draw(layer), (y0 + y1) / 2
    draw.rounded_rectangle((x0 + 4, middle - 4, x1 - 4, y1), 8, fill=COAT)
    draw.ellipse((x0, y0, x1, middle + 8), fill=HAT, outline=COAT, width=3)
    return on_background(layer, "grass", seed, BED_SIZE)


def place(cell: Cell, side: int) -> str:
    """The middle of a cell in cm from the upper left, as thoughts give places: "9 15"."""
    middles = ((part * cell_of(side) + cell_of(side) // 2) // CM for part in cell)
    return " ".join(map(str, middles))


def ask_way(colour: str, goal: Cell, side: int) -> Question:
    """The question of a walk; what ends it is always the same word."""
    prompt, there = f"Walk to the {colour} flower and pick it.", place(goal, side)
    return Question("walk", prompt, "pick", f"at {there}, {colour} {there}", seen=colour)


def way(start: Cell, goal: Cell, colour: str, side: int) -> list[tuple[str, str]]:
    """A shortest way, column first: (where he and the flower are, the move), each."""
    (x, y), moves, there = start, [], place(goal, side)
    while (x, y) != goal:
        thought = f"at {place((x, y), side)}, {colour} {there}"
        if x != goal[0]:
            move, x = ("east", x + 1) if x < goal[0] else ("west", x - 1)
        else:
            move, y = ("south", y + 1) if y < goal[1] else ("north", y - 1)
        moves.append((thought, move))
    return moves
