"""Visual counting with arithmetic, after Reason-RFT (arXiv:2503.20752) and R1-V.

prompt   "How many red flowers?", "How many red and blue flowers?", and the counterfactual
         "If all red flowers were picked, how many are left?" (CLEVR-Math's subtraction)
data     garden scenes; rows with a number as solution (data/rows.py)
reward   the right number + format; with --dense, exp(-|error|) for a wrong one
metric   strict accuracy; "loose" finds the number anywhere in the text, as R1-V's rule does
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

from answers import parse_number
from config import TaskConfig
from data.answer_forms import NUMBER
from data.garden.questions import ask_count
from rewards import number_reward
from tasks.loose import loose_number_correct
from tasks.scenes import answer_task, one_scene, scene_splits
from tasks.task import Task

FLAGS = ("train_size", "held_out_size", "dense")  # what this task reads


def load(cfg: TaskConfig, image_cfg=None) -> Task:
    """Read or generate the counting task. Raises InputError for data that cannot be used."""
    splits = scene_splits("count", cfg, one_scene(ask_count), NUMBER)
    return answer_task("count", cfg, splits, number_reward, loose_number_correct, 64, read)


def read(answer: str | None, target: str) -> float | None:
    """An answer is a number."""
    return parse_number(answer)
