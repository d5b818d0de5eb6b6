"""Looking up: a list of titled facts, of which the model chooses what to read.

    call          <fact>round red</fact>, a title of the list, or its number
    observation   <look>the fact</look>; or a few words where there is no such title

The titles are part of the question; the facts are made anew for every question, so no weight can
know them. With fewer reads than facts the right one has to be chosen. Nothing is paid for reading:
the answer cannot be had without. Next: acting/walk.py.
"""

import re
from dataclasses import dataclass
from types import MappingProxyType

from acting.environment import COUNTED, Asked, Outcome, Tool
from answers import MAX_NAME_CHARS, normalise_name
from data.examples import Example


@dataclass(frozen=True)
class Shelf:
    """What `Example.world` holds: titles (as `answers.normalise_name`s), facts, and the one that
    helps, numbered from 1."""

    titles: tuple[str, ...]
    facts: tuple[str, ...]
    needed: int


class Lookup(Tool):
    """The environment."""

    name, budget = "fact", 2
    told = MappingProxyType(
        {
            "malformed": "no title",
            "outside": "no such title",
            "repeated": "read already",
            "late": "no more facts",
        }
    )
    weights = MappingProxyType({"read_needed": 0.0} | COUNTED)

    def read(self, argument: str, state: Asked) -> tuple[Outcome, int | None]:
        """A title of the list or its number in digits: the number."""
        shelf, title = state.example.world, None
        if len(argument) <= MAX_NAME_CHARS:
            title = normalise_name(argument)
        if not title:
            return "malformed", None
        number = int(title) if re.fullmatch(r"[0-9]{1,4}", title) else 0
        if title in shelf.titles:
            number = 1 + shelf.titles.index(title)
        if not 1 <= number <= len(shelf.facts):
            return "outside", None
        return ("repeated" if number in state.done else "done"), number

    def show(self, state: Asked) -> tuple[str]:
        """The fact."""
        return (state.example.world.facts[state.done[-1] - 1],)

    def reward(self, example: Example, state: Asked, text: str) -> dict[str, float]:
        """Counts only: `read_needed` is 1 where the fact that helps was read."""
        needed = float(example.world.needed in state.done)
        return {"read_needed": needed} | self.counts(state, text)
