"""Structure perception: lengths and distances, numeric or multiple choice, after the geometry part
of Reason-RFT (arXiv:2503.20752).

    prompt   "The picture is 24 cm wide. How wide is the red flower?", "... By how much do the
             widths of the red and blue flower differ?" (0 is a possible answer), "Which is farthest
             from the red flower? A blue, B pink", "How wide is ...? A 5, B 7, C 9, D 10"
    data     garden scenes; rows with a number or a letter as solution (data/rows.py)
    reward   a number within --tolerance (relative; only 0 itself is within reach of 0), or the
             letter; + format; with --dense, less for numbers up to four times as far off
    metric   strict accuracy: the same rule; "loose" finds the number anywhere in the text
    ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

import random
from functools import partial

from answers import parse_choice, parse_number
from config import TaskConfig
from data.answer_forms import NUMBER_OR_CHOICE
from data.garden.puzzles import MEASURES, WIDTHS, ask_measure
from rewards import measure_reward
from tasks.loose import loose_number_correct
from tasks.scenes import Drawing, answer_task, fitting_scene, scene_splits
from tasks.task import Task

FLAGS = ("train_size", "held_out_size", "dense", "tolerance")  # what this task reads

# What is measured -> the values, equally frequent; distances as they come.
VALUES = dict.fromkeys(MEASURES, (None,)) | {
    "width": WIDTHS, "choice": WIDTHS, "difference": range(7), "farthest": "ABC"
}  # fmt: skip


def load(cfg: TaskConfig, image_cfg=None) -> Task:
    """Read or generate the measuring task. Raises InputError for data that cannot be used."""
    splits = scene_splits("measure", cfg, draw, NUMBER_OR_CHOICE)
    reward = partial(measure_reward, tolerance=cfg.tolerance)

    def loose(text: str, target: str) -> float:
        if parse_number(target) is None:
            return reward(text, target).parts["correct"]  # no peer has a looser rule for letters
        return loose_number_correct(text, target, cfg.tolerance)

    return answer_task("measure", cfg, splits, reward, loose, 64, read)


def read(answer: str | None, target: str) -> float | str | None:
    """An answer is a number where the target is one, else a letter."""
    return parse_choice(answer) if parse_number(target) is None else parse_number(answer)


def draw(rng: random.Random, seed: int, is_ood: bool) -> Drawing:
    """First what is measured and what comes out, then a scene in which it does."""
    kind, values = rng.choice(list(VALUES.items()))
    value = rng.choice(values)
    return fitting_scene(rng, seed, is_ood, lambda scene: ask_measure(rng, scene, kind, value))
