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

Next: acting/zoom.py; acting/episodes.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar

from data.examples import Example, Picture

State = TypeVar("State")
Region = tuple[float, float, float, float]  # x1, y1, x2, y2 in shares of width and height

# What became of a call:
Outcome = Literal[
    "done",  # its result is shown
    "malformed",  # not what stands between such tags
    "outside",  # well formed, but there is no such place or thing
    "repeated",  # the very call was made before
    "late",  # the budget of calls was used up; the next one ends the episode
    "over",  # it ended the episode
]


@dataclass(frozen=True)
class Observation:
    """What is put behind a call: texts and pictures in their order.

    Attributes:
        is_last: the episode is over, and nothing is put there.
        region: where on the first picture it belongs, for the report alone.
    """

    parts: tuple[str | Picture, ...]
    outcome: Outcome
    is_last: bool = False
    region: Region | None = None


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


def last_call(said: str, name: str) -> str | None:
    """What stands between the tags that a text ends with; None where the opening tag is missing.

    It begins behind the last opening tag. What a token brought beyond the closing tag does not
    count.
    """
    before, closing, _ = said.rpartition(f"</{name}>")
    _, opening, argument = before.rpartition(f"<{name}>")
    return argument.strip() if closing and opening else None


# ---- environments that answer calls of one kind --------------------------------------------------

OPEN, CLOSE = "<look>", "</look>"  # around all that is shown


@dataclass(frozen=True)
class Asked:
    """The state of a `Tool`: what was asked of it so far.

    Attributes:
        done: the calls that had a result, as `Tool.read` reads them. outcomes: of all calls.
        forged: how often the model wrote an observation of its own behind a call.
    """

    example: Example
    done: tuple[Any, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    forged: int = 0


class Tool:
    """An environment with one kind of call, `<name>argument</name>`, and a budget of them.

    A call beyond the budget is told so; the next one ends the episode. Subclasses say how an
    argument is read and what it shows.

    Attributes:
        told: outcome -> what is shown instead of a result.
    """

    name: str
    budget: int
    told: Mapping[Outcome, str] = MappingProxyType({})
    weights: Mapping[str, float] = MappingProxyType({})

    @property
    def closings(self) -> tuple[str, ...]:
        """The closing tag."""
        return (f"</{self.name}>",)

    def start(self, example: Example) -> Asked:
        """Nothing was asked yet."""
        return Asked(example)

    def act(self, state: Asked, said: str) -> tuple[Asked, Observation]:
        """Show the result of a call, or say why there is none."""
        state = self._after(state, said)
        outcome = state.outcomes[-1]
        if outcome == "over":
            return state, Observation((), outcome, is_last=True)
        if outcome != "done":
            return state, Observation((f"{OPEN}{self.told[outcome]}{CLOSE}",), outcome)
        parts = (OPEN, *self.show(state), CLOSE)
        return state, Observation(parts, outcome, region=self.region(state))

    def replay(self, example: Example, text: str) -> Asked:
        """The state after all calls of a completion; nothing is shown."""
        state = self.start(example)
        (closing,) = self.closings
        for said in text.split(closing)[:-1]:
            state = self._after(state, said + closing)
        return state

    def _after(self, state: Asked, said: str) -> Asked:
        outcome, thing = self._outcome(state, said)
        return replace(
            state,
            done=(*state.done, thing) if outcome == "done" else state.done,
            outcomes=(*state.outcomes, outcome),
            forged=state.forged + said.count(OPEN),
        )

    def _outcome(self, state: Asked, said: str) -> tuple[Outcome, Any]:
        if len(state.outcomes) >= self.budget:
            return ("over" if "late" in state.outcomes else "late"), None
        argument = last_call(said, self.name)
        return ("malformed", None) if argument is None else self.read(argument, state)

    def last_turn(self, text: str) -> str:
        """What a completion says behind its last call."""
        return text.rpartition(f"</{self.name}>")[2]

    def counts(self, state: Asked, text: str) -> dict[str, float]:
        """Parts of the reward that weigh nothing: how often it called, and how."""
        return {
            "called": float(bool(state.done)),
            "calls": float(len(state.outcomes)),
            "calls_invalid": float(len(state.outcomes) - len(state.done)),
            "calls_forged": float(state.forged + self.last_turn(text).count(OPEN)),
        }

    def read(self, argument: str, state: Asked) -> tuple[Outcome, Any]:
        """("done", what is asked for), or another outcome. Never raises."""
        raise NotImplementedError

    def show(self, state: Asked) -> Sequence[str | Picture]:
        """What the newest call shows."""
        raise NotImplementedError

    def region(self, state: Asked) -> Region | None:
        """Where on the first picture that belongs."""
        return None


COUNTED = MappingProxyType(
    dict.fromkeys(("called", "calls", "calls_invalid", "calls_forged"), 0.0)
)  # weights of `Tool.counts`
