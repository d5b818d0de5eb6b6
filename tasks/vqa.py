"""Open visual questions: attributes, relations, and causes that can be seen.

prompt   "What colour is the flower left of the blue flower?", "What shape are the petals of the
         red flower?", "Why does the pink flower wilt?" (a snail, shade or drought, drawn there)
data     garden scenes; rows with a short text as solution (data/rows.py)
reward   the normalised text as a whole + asked-for format; with --dense, its token F1
metric   strict accuracy; "loose" accepts a substring in either direction, as Visual-RFT does
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

import random

from answers import parse_name
from config import TaskConfig
from data.examples import Example
from data.garden.puzzles import ask_why
from data.garden.questions import ask_vqa
from model.image import ImageConfig
from rewards import classification_reward
from tasks.loose import loose_name_correct
from tasks.scenes import Made, draw_question, garden_splits, record_splits, wire
from tasks.task import Task, Weights

FLAGS = "train_size held_out_size dense".split()  # what this task reads


def load(cfg: TaskConfig, image_cfg: ImageConfig | None = None) -> Task:
    """Read or generate open questions. Raises InputError for data that cannot be used."""
    if cfg.data == "garden":
        splits = garden_splits("vqa", make, cfg)
    else:
        splits = record_splits(cfg, is_target)

    def reward(text: str, example: Example, weights: Weights, dense: float):
        return classification_reward(text, example.target, cfg.prompt_mode, weights, dense)

    return wire("vqa", cfg, splits, reward, scores, max_completion_length=64)


def make(rng: random.Random, seed: int, is_ood: bool) -> Made | None:
    """Every third question asks why a flower wilts; the others for a colour or a shape."""
    return draw_question(ask_vqa if rng.random() < 2 / 3 else ask_why, rng, seed, is_ood)


def is_target(text: str) -> bool:
    return parse_name(text) is not None


def scores(text: str, example: Example) -> dict[str, float]:
    return {
        "strict": classification_reward(text, example.target).parts["correct"],
        "loose": loose_name_correct(text, example.target),
    }
