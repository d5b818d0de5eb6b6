"""Open visual questions: attributes, relations, and causes that can be seen.

prompt   "What colour is the flower left of the blue flower?", "What shape are the petals of the
         red flower?", "Why does the pink flower wilt?" (a snail, shade or drought, drawn there)
data     garden scenes; rows with a short text as solution (data/rows.py)
reward   the normalised text as a whole + format; with --dense, its token F1
metric   strict accuracy; "loose" accepts a substring in either direction, as Visual-RFT does
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

import random

from config import TaskConfig
from data.answer_forms import WORD
from data.garden.puzzles import ask_why
from data.garden.questions import ask_vqa
from rewards import classification_reward
from tasks.loose import loose_name_correct
from tasks.scenes import Drawing, answer_task, one_scene, scene_splits
from tasks.task import Task

FLAGS = ("train_size", "held_out_size", "dense")  # what this task reads


def load(cfg: TaskConfig, image_cfg=None) -> Task:
    """Read or generate open questions. Raises InputError for data that cannot be used."""
    splits = scene_splits("vqa", cfg, draw, WORD)
    return answer_task("vqa", cfg, splits, classification_reward, loose_name_correct, 64)


def draw(rng: random.Random, seed: int, is_ood: bool) -> Drawing | None:
    """Every third question asks why a flower wilts; the others for a colour or a shape."""
    ask = ask_vqa if rng.random() < 2 / 3 else ask_why
    return one_scene(ask)(rng, seed, is_ood)
