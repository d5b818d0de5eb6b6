"""Visual entailment: does the picture make a statement true, false, or say nothing about it?

prompt   "Yes, no or unknown: there are more red than blue flowers."
data     garden scenes, the three answers equally frequent; rows with one of these words as
         solution (data/rows.py)
reward   the right word as the whole answer + format
metric   strict accuracy; "loose" takes the first yes or no anywhere in the text (VLM-R1's rule)
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

from answers import parse_name
from config import TaskConfig
from data.answer_forms import Form, one_of
from data.garden.questions import NO, UNKNOWN, YES, ask_entail
from rewards import classification_reward
from tasks.loose import loose_yes_no
from tasks.scenes import answer_task, one_scene, scene_splits
from tasks.task import Task

FLAGS = ("train_size", "held_out_size")  # what this task reads
VERDICT = Form("one word", "'yes', 'no' or 'unknown'", one_of(YES, NO, UNKNOWN))


def load(cfg: TaskConfig, image_cfg=None) -> Task:
    """Read or generate the entailment task. Raises InputError for data that cannot be used."""
    splits = scene_splits("entail", cfg, one_scene(ask_entail), VERDICT)
    return answer_task("entail", cfg, splits, classification_reward, loose_yes_no, 48, read)


def read(answer: str | None, target: str = "") -> str | None:
    """An answer is one of three words."""
    word = parse_name(answer)
    return word if word in (YES, NO, UNKNOWN) else None
