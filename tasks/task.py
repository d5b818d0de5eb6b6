"""`Task`: what training and evaluation need to know of a task, and all they need to know."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from acting.environment import Environment
from answers import parse_answer, parse_name
from data.examples import Example
from data.garden.thoughts import Statement
from rewards import Reward
from runtime.errors import InputError

Weights = Mapping[str, float]  # of the parts of a reward, by name (rewards.WEIGHTS)


@dataclass(frozen=True)
class Task:
    """Questions with a reward and metrics.

    Attributes:
        train: the few shots. splits: examples to evaluate on, by name ("held_out", "ood", ...).
        reward: (completion, example, weights, dense) -> what GRPO maximises. `dense` in [0, 1] is
            the credit for a nearly right answer (rewards.py).
        scores: (completion, example) -> numbers whose means are reported: "strict" (the whole
            answer is right), "format", and "loose" where the field's code counts in a softer way.
        summary: (examples, completions) -> metrics of a whole split that are no means.
        headline: the metric that stands for the task, "strict" or another of the above.
        read: (answer, example) -> its value in the grammar of the example's target, None for what
            cannot be read: no number, no box, ... By default any name can. Equal answers have
            values that print alike.
        statements: (completion, example) -> the statements of its thought, each true, untrue or
            unreadable, with their places in the completion's characters. None: the source of the
            examples knows no facts, as with all data from outside.
        is_faithful: (completion, example) -> whether its answer follows from its statements; None
            where that has no meaning.
        environment: what completions act in (acting/environment.py); None: they only answer.
        last_turn: the part of a completion that answers, behind all that it asked for.
        max_completion_length: tokens that an answer of this task needs in the garden.
    """

    name: str
    train: list[Example]
    splits: dict[str, list[Example]]
    reward: Callable[[str, Example, Weights, float], Reward]
    scores: Callable[[str, Example], dict[str, float]]
    summary: Callable[[list[Example], list[str]], dict[str, float]] | None = None
    headline: str = "strict"
    max_completion_length: int = 40
    read: Callable[[str | None, Example], object | None] = lambda answer, _: parse_name(answer)
    statements: Callable[[str, Example], list[Statement]] | None = None
    is_faithful: Callable[[str, Example], bool | None] = lambda text, example: None
    environment: Environment | None = None
    last_turn: Callable[[str], str] = lambda text: text

    def answer(self, text: str, example: Example) -> str | None:
        """What a completion answers, in one spelling for equal answers; None: unreadable."""
        value = self.read(parse_answer(self.last_turn(text)), example)
        return None if value is None else str(value)


def finite_reward(
    task: Task, text: str, example: Example, weights: Weights, dense: float
) -> Reward:
    """The task's reward; raises InputError if it is not finite."""
    reward = task.reward(text, example, weights, dense)
    if not math.isfinite(reward.total):
        what = f"reward {reward.total} ({reward.parts}) for a completion of example {example.id}"
        raise InputError(f"{what}: rewards must be finite numbers; fix tasks/{task.name}.py")
    return reward
