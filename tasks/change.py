"""Spatial transformation: which calls turn the first picture into the second?

After the TRANCE questions of Reason-RFT (arXiv:2503.20752).

    prompt   "What changed? f1 small red, f2 large blue."
    data     pairs of garden scenes; rows with two images and a list of calls as solution
    reward   every call right, and no other (Reason-RFT's "only full"), + format; with
             --dense, partial credit for calls that share the function and the object or the value;
             with --ordered, the order counts as well
    metric   strict: the exact list; "loose": the soft accuracy, with partial credits, that
             Reason-RFT's evaluation reports
    ood      another view: the second picture is taken from another viewpoint
"""

import random
from functools import partial

from answers import parse_answer, parse_calls
from config import TaskConfig
from data.answer_forms import CALLS
from data.garden.drawing import draw_scene
from data.garden.facts import facts_of
from data.garden.puzzles import ask_change
from data.garden.world import sample_scene
from rewards import calls_accuracy, calls_reward
from tasks.scenes import Drawing, answer_task, scene_splits
from tasks.task import Task

FLAGS = ("train_size", "held_out_size", "dense", "ordered")  # what this task reads


def load(cfg: TaskConfig, image_cfg=None) -> Task:
    """Read or generate the transformation task. Raises InputError for data that cannot be used."""
    splits = scene_splits("change", cfg, draw, CALLS)
    reward = partial(calls_reward, ordered=cfg.ordered)

    def loose(text: str, target: str) -> float:
        return calls_accuracy(parse_answer(text), target)

    return answer_task("change", cfg, splits, reward, loose, 144, read)


def read(answer: str | None, target: str) -> list | None:
    """An answer is a list of calls."""
    return parse_calls(answer)


def draw(rng: random.Random, seed: int, is_ood: bool) -> Drawing | None:
    """A question with its two pictures; None if there is no other view of the second."""
    scene = sample_scene(rng, rng.choice((2, 2, 3, 3, 4)))
    question = ask_change(rng, scene, p_shifted=float(is_ood))
    if question is None:
        return None
    images = (draw_scene(scene, seed), draw_scene(question.after, seed))
    return question, images, facts_of(question, scene=scene)
