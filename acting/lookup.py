"""Looking up: a list of titled facts, of which the model chooses what to read.

    call          <fact>3</fact>, a number of the list
    observation   <look>the fact</look>; or a few words where there is no such number

The titles are part of the question; the facts are made anew for every question, so no weight can
know them. With fewer reads than facts the right one has to be chosen. Nothing is paid for reading:
the answer cannot be had without. Next: tasks/lookup.py.
"""

import re
from dataclasses import dataclass
from types import MappingProxyType

from acting.environment import COUNTED, Asked, Outcome, Tool
from data.examples import Example


@dataclass(frozen=True)
class Shelf:
    """What `Example.world` holds: the facts in the order of their titles, and which one helps."""

    facts: tuple[str, ...]
    needed: int  # from 1


class Lookup(Tool):
    """The environment."""

    name, budget = "fact", 2
    told = MappingProxyType(
        {
            "malformed": "no number",
            "outside": "no such fact",
            "repeated": "read already",
            "late": "no more facts",
        }
    )
    weights = MappingProxyType({"read_needed": 0.0} | COUNTED)

    def read(self, argument: str, state: Asked) -> tuple[Outcome, int | None]:
        """A number of the list, in digits."""
        if not re.fullmatch(r"[0-9]{1,4}", argument):
            return "malformed", None
        number = int(argument)
        if not 1 <= number <= len(state.example.world.facts):
            return "outside", None
        return ("repeated" if number in state.done else "done"), number

    def show(self, state: Asked) -> tuple[str]:
        """The fact."""
        return (state.example.world.facts[state.done[-1] - 1],)

    def reward(self, example: Example, state: Asked, text: str) -> dict[str, float]:
        """Counts only: `read_needed` is 1 where the fact that helps was read."""
        needed = float(example.world.needed in state.done)
        return {"read_needed": needed} | self.counts(state, text)
