"""Procedural and predictive questions: what comes first, what comes next.

prompt   "Order the pictures A, B, C by growth." (three pictures of one plant) and
         "Which stage comes next?" (one picture of a plant that is not yet in seed)
data     generated plants; rows with an order of letters or numbers as solution
reward   the whole sequence, or the stage's name, + format; with --dense, the fraction
         of positions that are right
metric   strict accuracy
ood      four pictures to order instead of three
"""

import random

from answers import parse_name, parse_sequence
from config import TaskConfig
from data.answer_forms import SEQUENCE
from data.garden.drawing import draw_stage
from data.garden.facts import facts_of
from data.garden.puzzles import ask_next, ask_order, sample_stages
from data.garden.world import random_flower
from rewards import Reward, classification_reward, sequence_reward
from tasks.scenes import Drawing, answer_task, scene_splits
from tasks.task import Task

FLAGS = ("train_size", "held_out_size", "dense")  # what this task reads


def load(cfg: TaskConfig, image_cfg=None) -> Task:
    """Read or generate the ordering task. Raises InputError for data that cannot be used."""
    splits = scene_splits("order", cfg, draw, SEQUENCE)
    return answer_task("order", cfg, splits, order_reward, None, 48, read)


def read(answer: str | None, target: str) -> list | str | None:
    """An answer is a sequence where the target is one, else a word."""
    return parse_sequence(answer) if is_sequence(target) else parse_name(answer)


def order_reward(text: str, target: str, *args) -> Reward:
    """That of a sequence or of a word, as the target is."""
    by_kind = sequence_reward if is_sequence(target) else classification_reward
    return by_kind(text, target, *args)


def draw(rng: random.Random, seed: int, is_ood: bool) -> Drawing:
    """Two of three questions are about an order, all of them out of distribution."""
    kind, flower = rng.choice(("next", "order", "order")), random_flower(rng)
    kind = "order" if is_ood else kind
    stages = sample_stages(rng, kind, 4 if is_ood else 3)
    question = (ask_next if kind == "next" else ask_order)(rng, stages)
    images = tuple(draw_stage(flower, stage, seed) for stage in stages)
    return question, images, facts_of(question, stages=stages)


def is_sequence(text: str) -> bool:
    """Whether a target has two items or more."""
    return len(parse_sequence(text) or ()) > 1
