"""Spatial transformation: which calls turn the first picture into the second?

After Reason-RFT (arXiv:2503.20752), whose TRANCE questions show two images and list the objects of
the first; the answer is a list of calls.

    prompt   "What changed? f1 small red, f2 large blue."
    data     pairs of garden scenes; rows with two images and a list of calls as solution
    reward   every call right, and no other (Reason-RFT's "only full"), + asked-for format; with
             --dense, partial credit for calls that share the function and the object or the value;
             with --ordered, the order counts as well
    metric   strict: the exact list; "loose": the soft accuracy, with partial credits, that
             Reason-RFT's evaluation reports
    ood      another view: the second picture is taken from a step aside
"""

import random
from dataclasses import replace
from functools import partial

from answers import parse_answer, parse_calls
from config import TaskConfig
from data.examples import Example
from data.garden.drawing import draw_scene
from data.garden.puzzles import another_view, ask_change
from data.garden.world import sample_scene
from model.image import ImageConfig
from rewards import calls_accuracy, calls_reward
from tasks.scenes import Made, garden_splits, record_splits, wire
from tasks.task import Task, Weights

FLAGS = "train_size held_out_size dense ordered".split()  # what this task reads


def load(cfg: TaskConfig, image_cfg: ImageConfig | None = None) -> Task:
    """Read or generate the transformation task. Raises InputError for data that cannot be used."""
    if cfg.data == "garden":
        splits = garden_splits("change", make, cfg)
    else:
        splits = record_splits(cfg, lambda text: bool(parse_calls(text)))

    def reward(text: str, example: Example, weights: Weights, dense: float):
        return calls_reward(text, example.target, cfg.prompt_mode, weights, dense, cfg.ordered)

    return wire("change", cfg, splits, reward, partial(scores, cfg.ordered), 144)


def make(rng: random.Random, seed: int, is_ood: bool) -> Made | None:
    scene = sample_scene(rng, rng.choice((2, 2, 3, 3, 4)))
    question = ask_change(rng, scene)
    if is_ood:
        after = another_view(rng, question.after)
        if not after:  # nothing is left to be seen, or no step keeps it in the frame
            return None
        question = replace(question, after=after)
    return question, (draw_scene(scene, seed), draw_scene(question.after, seed))


def scores(ordered: bool, text: str, example: Example) -> dict[str, float]:
    return {
        "strict": calls_reward(text, example.target, ordered=ordered).parts["correct"],
        "loose": calls_accuracy(parse_answer(text), example.target),
    }
