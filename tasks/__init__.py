"""Tasks: what the model is shown and what a right answer is.

Every source of questions, generated or read from disk, hands over the same thing: a list of
`Example`. A training loop that understands `Example` understands every task, and a new task is
one new file in this folder.

Next: tasks/cls.py; its data come from tasks/readers.py and tasks/garden.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rewards import Reward


@dataclass(frozen=True)
class Example:
    """One question about one or more images, with the answer that a reward can verify.

    Attributes:
        id: stable and unique inside its data set; it keys the random numbers of its completions,
            so that the same example draws the same tokens in any batch.
        images: in the order of the question; a path or an open image, always opened through
            `model.image.load_image`, which is where size, format and orientation are handled.
        question: the text shown to the model, without the instruction on the answer's format.
        target: what the reward compares the parsed answer with.
    """

    id: str
    images: tuple[Image.Image | Path, ...]
    question: str
    target: str


# How to answer, in one sentence per mode. "think" asks for the reasoning before the answer,
# "direct" for the answer alone (arXiv:2503.16188 finds thinking unnecessary for perception).
INSTRUCTIONS = {
    "think": "Think in <think> </think>, then answer in <answer> </answer>.",
    "direct": "Answer in <answer> </answer>.",
}


def full_question(question: str, mode: str) -> str:
    """The text shown to the model: the question and how to answer it.

    A data set whose prompts already say how to answer (Visual-RFT's rows) is left as it is.
    """
    if "<answer>" in question:
        return question
    return f"{question} {INSTRUCTIONS[mode]}"


@dataclass(frozen=True)
class Task:
    """What a training or evaluation script needs to know, and all it needs to know.

    Attributes:
        train: the few shots. splits: examples to be judged on, by name ("held_out", "ood", ...).
        reward: (completion, target) -> what GRPO maximises.
        strict: (completion, target) -> 1.0 or 0.0, the metric that is reported.
        loose: the metric as the field's reference code computes it, printed beside the strict one.
        format: completion -> 1.0 if it has the form that was asked for.
    """

    name: str
    train: list[Example]
    splits: dict[str, list[Example]]
    reward: Callable[[str, str], Reward]
    strict: Callable[[str, str], float]
    loose: Callable[[str, str], float]
    format: Callable[[str], float]
