"""Visual counting with arithmetic, after Reason-RFT (arXiv:2503.20752) and R1-V.

prompt   "How many red flowers?", "How many red and blue flowers?", and the counterfactual
         "If all red flowers were picked, how many are left?" (CLEVR-Math's subtraction)
data     garden scenes; rows with a number as solution (data/rows.py)
reward   the right number + asked-for format; with --dense, exp(-|error|) for a wrong one
metric   strict accuracy; "loose" finds the number anywhere in the text, as R1-V's rule does
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

from functools import partial

from answers import parse_number
from config import TaskConfig
from data.examples import Example
from data.garden.questions import ask_count
from model.image import ImageConfig
from rewards import number_reward
from tasks.loose import loose_number_correct
from tasks.scenes import draw_question, garden_splits, record_splits, wire
from tasks.task import Task, Weights

FLAGS = "train_size held_out_size dense".split()  # what this task reads


def load(cfg: TaskConfig, image_cfg: ImageConfig | None = None) -> Task:
    """Read or generate the counting task. Raises InputError for data that cannot be used."""
    if cfg.data == "garden":
        splits = garden_splits("count", partial(draw_question, ask_count), cfg)
    else:
        splits = record_splits(cfg, lambda text: parse_number(text) is not None)

    def reward(text: str, example: Example, weights: Weights, dense: float):
        return number_reward(text, example.target, cfg.prompt_mode, weights, dense)

    return wire("count", cfg, splits, reward, scores, max_completion_length=64)


def scores(text: str, example: Example) -> dict[str, float]:
    return {
        "strict": number_reward(text, example.target).parts["correct"],
        "loose": loose_number_correct(text, example.target),
    }
