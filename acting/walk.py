"""Walking: a gardener in a bed, moved step by step to the flower that the question means.

    call          <go>north</go>, or south, east, west
    observation   <look>, the bed after the move, </look>; or a few words where the way ends

The walk ends when the model answers "pick", by its own decision. It is right where the gardener
then stands at the flower. Next: acting/episodes.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from PIL import Image

from acting.environment import COUNTED, Asked, Outcome, Region, Tool
from data.examples import Example

Cell = tuple[int, int]  # column and row, from the upper left
MOVES = {"north": (0, -1), "south": (0, 1), "east": (1, 0), "west": (-1, 0)}


@dataclass(frozen=True)
class Bed:
    """What `Example.world` holds.

    Attributes:
        net: cells of a side of the picture. corner: the upper left cell of the bed. side: of the
            bed, in cells. start: where the gardener is at first. goal: of the flower. All cells
            are those of the picture.
        draw: where the gardener is -> the picture.
    """

    net: int
    corner: Cell
    side: int
    start: Cell
    goal: Cell
    draw: Callable[[Cell], Image.Image]

    def holds(self, cell: Cell) -> bool:
        """Whether a cell is one of the bed."""
        pairs = zip(cell, self.corner, strict=True)
        return all(first <= part < first + self.side for part, first in pairs)

    @property
    def distance(self) -> int:
        """Moves of the shortest way: nothing is in it."""
        return sum(abs(a - b) for a, b in zip(self.start, self.goal, strict=True))


class Walk(Tool):
    """The environment. `Asked.done` has the cells that the gardener has come to."""

    name, budget = "go", 9
    told = MappingProxyType(
        {"malformed": "no such way", "outside": "the bed ends here", "late": "no more moves"}
    )
    weights = MappingProxyType({"arrived": 0.0, "detour": 0.0} | COUNTED)

    def read(self, argument: str, state: Asked) -> tuple[Outcome, Cell | None]:
        """The cell that a move leads to."""
        move = MOVES.get(argument.casefold())
        if move is None:
            return "malformed", None
        cell = tuple(a + b for a, b in zip(self.place(state), move, strict=True))
        return ("done" if state.example.world.holds(cell) else "outside"), cell

    def show(self, state: Asked) -> tuple[Image.Image]:
        """The bed with the gardener where the newest move has brought him."""
        return (state.example.world.draw(state.done[-1]),)

    def region(self, state: Asked) -> Region:
        """The cell that the gardener has come to."""
        (column, row), net = state.done[-1], state.example.world.net
        return column / net, row / net, (column + 1) / net, (row + 1) / net

    def place(self, state: Asked) -> Cell:
        """Where the gardener is."""
        return state.done[-1] if state.done else state.example.world.start

    def reward(self, example: Example, state: Asked, text: str) -> dict[str, float]:
        """Counts only: whether he has arrived, and the moves beyond the shortest way."""
        bed = example.world
        has_arrived = self.place(state) == bed.goal
        detour = len(state.done) - bed.distance if has_arrived else 0
        parts = {"arrived": float(has_arrived), "detour": float(detour)}
        return parts | self.counts(state, text)
