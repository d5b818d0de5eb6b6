"""Tasks: what the model is shown and what a right answer is.

Every source of questions, generated or read from disk, hands over the same thing: a list of
`Example`. A training loop that understands `Task` understands every task, and a new task is one new
file in this folder with a function `load(settings) -> Task`.

    cls      name the class of an image              count    a number
    det      boxes of one category                   measure  a length, or a letter
    ovd      the same, judged on other categories    change   calls that turn picture 1 into 2
    ground   the one box that a phrase means         vqa      a word
    order    what comes first, what comes next       entail   yes, no or unknown

Next: tasks/cls.py; its data come from data/labelled.py and data/garden/world.py. The others are made
alike, on tasks/scenes.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.files import MAX_SKIP
from data.garden.world import GARDEN_SPLIT_SEED
from model.image import ImageConfig
from rewards import Reward


@dataclass(frozen=True)
class Reasoning:
    """How a careful answer is reached: the texts that SFT on chains of thought learns.

    Attributes:
        thought: from what is seen to the answer.
        caption, summary: of the four steps: what the picture shows, and what the question wants.
    """

    thought: str
    caption: str = ""
    summary: str = ""


@dataclass(frozen=True)
class Example:
    """One question about one or more images, with the answer that a reward can verify.

    Attributes:
        id: stable and unique inside its data set; it keys the random numbers of its completions,
            so that the same example draws the same tokens in any batch.
        images: in the order of the question; a path or an open image, always opened through
            `model.image.load_image`, which is where size, format and orientation are handled.
        question: the text shown to the model.
        target: what the reward compares the parsed answer with, written in the answer's grammar.
        frame: width and height of the frame that the boxes of the target are written in.
        reasoning: where the source knows it.
    """

    id: str
    images: tuple[Image.Image | Path, ...]
    question: str
    target: str
    frame: tuple[float, float] = (1000.0, 1000.0)
    reasoning: Reasoning | None = None


@dataclass(frozen=True)
class Settings:
    """What a task is asked to load: the flags of the same names (config.py), and two resolved ones.

    `coords` is the frame in which the model speaks boxes, `image_config` its preprocessing, which
    decides the size of a resized image. They matter to box tasks only.
    """

    data: str = "garden"
    data_root: Path | None = None
    shots: int = 1
    train_size: int = 256
    held_out_per_class: int = 10
    held_out_size: int = 200
    split_seed: int = GARDEN_SPLIT_SEED
    max_skip: float = MAX_SKIP
    prompt_mode: str = "think"
    question: str | None = None
    shuffle_labels: bool = False
    correct_weight: float = 1.0
    confidence_weight: float = 1.0
    format_weight: float = 0.5
    tolerance: float = 0.04
    ordered: bool = False
    data_coords: str = "auto"
    coords: str = "norm1000"
    image_config: ImageConfig | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Of the two parts that most rewards have."""
        return {"correct": self.correct_weight, "format": self.format_weight}


@dataclass(frozen=True)
class Task:
    """What a training or evaluation script needs to know, and all it needs to know.

    Attributes:
        train: the few shots. splits: examples to be judged on, by name ("held_out", "ood", ...).
        reward: (completion, example, dense) -> what GRPO maximises. `dense` in [0, 1] is how much
            credit a nearly right answer gets (rewards.py).
        scores: (completion, example) -> numbers whose means are reported: "strict" (the whole
            answer is right), "format", and, where the field's reference code computes a metric in
            a softer way, "loose", which is printed beside the strict one and never instead of it.
        summary: (examples, completions) -> metrics of a whole split that are no means.
        headline: the metric that the task is known by, "strict" or another of the above.
        max_completion_length: tokens that an answer of this task needs in the garden.
    """

    name: str
    train: list[Example]
    splits: dict[str, list[Example]]
    reward: Callable[[str, Example, float], Reward]
    scores: Callable[[str, Example], dict[str, float]]
    summary: Callable[[list[Example], list[str]], dict[str, float]] | None = None
    headline: str = "strict"
    max_completion_length: int = 40


# How to answer, in one sentence per mode. "think" asks for the reasoning before the answer; "steps"
# for the four-step chain of thought of LLaVA-CoT (arXiv:2411.10440), its conclusion in the answer
# block; "direct" for the answer alone (arXiv:2503.16188 finds thinking unnecessary for perception).
INSTRUCTIONS = {
    "think": "Think in <think> </think>, then answer in <answer> </answer>.",
    "steps": "Give <summary> </summary>, <caption> </caption> and <reasoning> </reasoning>, then "
    "answer in <answer> </answer>.",
    "direct": "Answer in <answer> </answer>.",
}
STEPS_TOKENS = 48  # what summary and caption add to a completion


def full_question(question: str, mode: str) -> str:
    """The text shown to the model: the question and how to answer it.

    A data set whose prompts already say how to answer (Visual-RFT's rows) is left as it is.
    """
    if "<answer>" in question:
        return question
    return f"{question} {INSTRUCTIONS[mode]}"


def written(answer: str, mode: str, reasoning: Reasoning | None = None) -> str:
    """A completion in the format that `INSTRUCTIONS[mode]` asks for; all but "direct" reason."""
    blocks = f"<answer>{answer}</answer>"
    if mode == "think":
        return f"<think>{reasoning.thought}</think>{blocks}"
    if mode == "steps":
        summary = f"<summary>{reasoning.summary}</summary><caption>{reasoning.caption}</caption>"
        return f"{summary}<reasoning>{reasoning.thought}</reasoning>{blocks}"
    return blocks
