"""Acting before answering: state, action, transition, termination and reward, each by its name.

    state        what an `Environment` remembers of an episode (`start`)
    action       a token; where the text ends in a closing tag, a call: "<zoom>[..]</zoom>"
    transition   `act`: the next state, and an `Observation` that is put behind the call
    termination  the end token, the token limit, or an observation that is the last
    reward       `reward`: parts that come on top of the task's own, once at the end; no discount

An environment is a pure function of (example, what was said): it draws nothing at random and keeps
nothing between episodes, so that an episode is a function of (seed, step, question, sample) alone.
Nothing that a model writes is run, opened or looked up by name: a call is a tag with numbers or a
word of a short list inside, and everything else has an outcome with a name and a count.

Next: training/episodes.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeVar

from data.examples import Example, Picture

State = TypeVar("State")

# What became of a call:
Outcome = Literal[
    "done",  # its result is shown
    "malformed",  # not what stands between such tags
    "outside",  # well formed, but there is no such place or thing
    "repeated",  # the very call was made before
    "late",  # the budget of calls was used up; the next one ends the episode
    "over",  # it ended the episode
]


class Call(NamedTuple):
    """A call as it was written: the name of its tags, and what stands between them."""

    name: str
    argument: str


@dataclass(frozen=True)
class Observation:
    """What is put behind a call: texts and pictures in their order.

    Attributes:
        is_last: the episode is over, and nothing is put there.
    """

    parts: tuple[str | Picture, ...]
    outcome: Outcome
    is_last: bool = False


class Environment(Protocol[State]):
    """What a model acts in.

    Attributes:
        closings: texts behind which it is the environment's turn.
        weights: of the parts of its reward; those that weigh nothing are only logged.
    """

    closings: tuple[str, ...]
    weights: Mapping[str, float]

    def start(self, example: Example) -> State:
        """The state before the first token."""

    def act(self, state: State, said: str) -> tuple[State, Observation]:
        """One transition. `said`: the text since the last observation, a closing at its end."""

    def reward(self, example: Example, state: State, text: str) -> dict[str, float]:
        """Further parts of the reward. `text`: all that was sampled, without observations."""


def last_call(said: str, names: tuple[str, ...]) -> Call | None:
    """The call that a text ends with; None where its opening tag is missing.

    The argument begins behind the last opening tag, so it contains none. What a token brought
    beyond the closing tag does not count.
    """
    calls = "|".join(re.escape(name) for name in names)
    found = [*re.finditer(rf"<({calls})>((?:(?!<(?:{calls})>).)*?)</\1>", said, re.DOTALL)]
    return Call(found[-1][1], found[-1][2].strip()) if found else None
