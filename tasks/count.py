"""Counting: how many flowers?

prompt   "How many red flowers?", "If all red flowers were picked, how many are left?"
data     garden scenes; rows with a number as solution (data/rows.py)
reward   the exact number as the whole answer + format; with --dense, less for being off by one, ...
metric   strict accuracy; "loose" finds the number anywhere in the text
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

import random

from answers import parse_number
from config import TaskConfig
from data.answer_forms import NUMBER
from data.garden.questions import ask_count
from rewards import number_reward
from tasks.loose import loose_number_correct
from tasks.scenes import Drawing, answer_task, fitting_scene, scene_splits
from tasks.task import Task

FLAGS = ("train_size", "held_out_size", "dense")  # what this task reads

# Kind of question -> the answers, equally frequent: of scenes as they come, most would be 0 or 1.
ANSWERS = {"all": range(1, 5), "colour": range(4), "sum": range(5), "left": range(5)}
OOD_ANSWERS = {"all": range(5, 8), "colour": range(5), "sum": range(6), "left": range(2, 8)}


def load(cfg: TaskConfig, image_cfg=None) -> Task:
    """Read or generate the counting task. Raises InputError for data that cannot be used."""
    splits = scene_splits("count", cfg, draw, NUMBER)
    return answer_task("count", cfg, splits, number_reward, loose_number_correct, 64, read)


def read(answer: str | None, target: str) -> float | None:
    """An answer is a number."""
    return parse_number(answer)


def draw(rng: random.Random, seed: int, is_ood: bool) -> Drawing:
    """First what is counted and how many there are, then a scene that has so many."""
    kind, numbers = rng.choice(list((OOD_ANSWERS if is_ood else ANSWERS).items()))
    number = rng.choice(numbers)
    return fitting_scene(rng, seed, is_ood, lambda scene: ask_count(rng, scene, kind, number))
