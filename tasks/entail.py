"""Visual entailment: does the picture make a statement true, false, or say nothing about it?

prompt   "Yes, no or unknown: there are more red than blue flowers."
data     garden scenes, the three answers equally frequent; rows with one of these words as
         solution (data/rows.py)
reward   the right word as the whole answer + asked-for format
metric   strict accuracy; "loose" takes the first yes or no anywhere in the text (VLM-R1's rule)
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

from functools import partial

from answers import parse_name
from config import TaskConfig
from data.examples import Example
from data.garden.questions import NO, UNKNOWN, YES, ask_entail
from model.image import ImageConfig
from rewards import classification_reward
from tasks.loose import loose_yes_no
from tasks.scenes import draw_question, garden_splits, record_splits, wire
from tasks.task import Task, Weights

FLAGS = "train_size held_out_size".split()  # what this task reads


def load(cfg: TaskConfig, image_cfg: ImageConfig | None = None) -> Task:
    """Read or generate the entailment task. Raises InputError for data that cannot be used."""
    if cfg.data == "garden":
        splits = garden_splits("entail", partial(draw_question, ask_entail), cfg)
    else:
        splits = record_splits(cfg, lambda text: parse_name(text) in (YES, NO, UNKNOWN))

    def reward(text: str, example: Example, weights: Weights, dense: float):
        # Three words have no near misses: `dense` grades nothing here.
        return classification_reward(text, example.target, cfg.prompt_mode, weights)

    return wire("entail", cfg, splits, reward, scores, max_completion_length=48)


def scores(text: str, example: Example) -> dict[str, float]:
    return {
        "strict": classification_reward(text, example.target).parts["correct"],
        "loose": loose_yes_no(text, example.target),
    }
