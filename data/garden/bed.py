"""Flower beds with a gardener in them: a square of cells, a flower in some, and where he stands.

A picture is a lawn of NET x NET cells; the bed is a square of them, somewhere on it. So small and
large beds show flowers of the same size at the same places: a larger one has longer ways.

Next: tasks/walk.py.
"""

import random
from functools import lru_cache

from PIL import Image, ImageDraw

from data.garden.drawing import SUPERSAMPLE, background, paint_flower
from data.garden.questions import CM, Question
from data.garden.world import COLOURS, SCENE_SIZE, Flower, random_flower

NET = 4  # cells
CELL = SCENE_SIZE // NET  # pixels
INSET = 2  # pixels between a cell and its flower
FIGURE = (0.55, 0.38, 0.95, 0.95)  # of the gardener in his cell: x0, y0, x1, y1 in shares of it
HAT, COAT = (238, 206, 120), (24, 32, 60)

Cell = tuple[int, int]  # column and row


def sample_bed(
    rng: random.Random, side: int, n_flowers: int
) -> tuple[Cell, dict[Cell, Flower], Cell]:
    """The upper left cell of a bed of side x side, flowers of different colours in different cells
    of it, and where the gardener starts: elsewhere."""
    left, top = (rng.randint(0, NET - side) for _ in range(2))
    cells = [(left + column, top + row) for row in range(side) for column in range(side)]
    *places, start = rng.sample(cells, n_flowers + 1)
    colours = rng.sample(COLOURS, n_flowers)
    flowers = {
        cell: random_flower(rng, [colour]) for cell, colour in zip(places, colours, strict=True)
    }
    return (left, top), flowers, start


@lru_cache(512)  # the walks of a group come to the same cells
def draw_bed(
    flowers: tuple[tuple[Cell, Flower], ...], corner: Cell, side: int, seed: int, gardener: Cell
) -> Image.Image:
    """The bed from above on its lawn, RGB, 96 x 96."""
    picture = background("grass", seed, SCENE_SIZE)
    left, top = (CELL * part for part in corner)
    area = (left, top, left + CELL * side, top + CELL * side)
    picture.paste(background("soil", seed, SCENE_SIZE).crop(area), area)
    layer = Image.new("RGBA", (SCENE_SIZE * SUPERSAMPLE,) * 2)
    for (column, row), flower in flowers:
        x, y = column * CELL, row * CELL
        box = (x + INSET, y + INSET, x + CELL - INSET, y + CELL - INSET)
        big = tuple(SUPERSAMPLE * pixel for pixel in box)
        paint_flower(layer, flower, big, random.Random(seed << 16 | column << 8 | row))
    corners = [part * CELL for part in (*gardener, *gardener)]
    x0, y0, x1, y1 = (
        SUPERSAMPLE * (at + share * CELL) for at, share in zip(corners, FIGURE, strict=True)
    )
    draw, middle = ImageDraw.Draw(layer), (y0 + y1) / 2
    draw.rounded_rectangle((x0 + 4, middle - 4, x1 - 4, y1), 8, fill=COAT)
    draw.ellipse((x0, y0, x1, middle + 8), fill=HAT, outline=COAT, width=3)
    layer = layer.resize(picture.size, Image.Resampling.LANCZOS)
    picture.paste(layer, (0, 0), layer)
    return picture


def place(cell: Cell) -> str:
    """The middle of a cell in cm from the upper left, as thoughts give places: "9 15"."""
    return " ".join(str((part * CELL + CELL // 2) // CM) for part in cell)


def ask_way(colour: str, goal: Cell) -> Question:
    """The question of a walk; what ends it is always the same word."""
    prompt = f"Walk to the {colour} flower and pick it."
    return Question("walk", prompt, "pick", f"at {place(goal)}, {colour} here", seen=colour)


def way(start: Cell, goal: Cell, colour: str) -> list[tuple[str, str]]:
    """A shortest way, column first: (where he and the flower are, the move), each."""
    (x, y), moves, there = start, [], place(goal)
    while (x, y) != goal:
        thought = f"at {place((x, y))}, {colour} {there}"
        if x != goal[0]:
            move, x = ("east", x + 1) if x < goal[0] else ("west", x - 1)
        else:
            move, y = ("south", y + 1) if y < goal[1] else ("north", y - 1)
        moves.append((thought, move))
    return moves
