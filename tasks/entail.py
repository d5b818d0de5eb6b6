"""Visual entailment: does the picture make a statement true, false, or say nothing about it?

prompt   "Yes, no or unknown: the red flower has round petals." (unknown: there is no red flower)
data     garden scenes, each statement asked of three with three answers; rows with one of these
         words as solution (data/rows.py)
reward   the right word as the whole answer + format
metric   strict accuracy; "loose" takes the first yes or no anywhere in the text (VLM-R1's rule)
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

import random

from answers import parse_name
from config import TaskConfig
from data.answer_forms import Form, one_of
from data.garden.questions import Question
from data.garden.statements import VERDICTS, any_assertion, ask_assertion
from data.garden.world import Scene, index_of
from rewards import classification_reward
from tasks.loose import loose_yes_no
from tasks.scenes import Drawing, answer_task, fitting_scene, scene_splits
from tasks.task import Task

FLAGS = ("train_size", "held_out_size")  # what this task reads
VERDICT = Form("one word", "'yes', 'no' or 'unknown'", one_of(*VERDICTS))


def load(cfg: TaskConfig, image_cfg=None) -> Task:
    """Read or generate the entailment task. Raises InputError for data that cannot be used."""
    splits = scene_splits("entail", cfg, draw, VERDICT)
    return answer_task("entail", cfg, splits, classification_reward, loose_yes_no, 48, read)


def read(answer: str | None, target: str = "") -> str | None:
    """An answer is one of three words."""
    word = parse_name(answer)
    return word if word in VERDICTS else None


def draw(rng: random.Random, seed: int, is_ood: bool) -> Drawing:
    """First the statement and its answer, then a scene in which this is so.

    Three questions in a row have one statement, and the three answers in any order.
    """
    place = index_of(seed) % len(VERDICTS)
    shared = random.Random(f"entail-{seed - place}")
    assertion = any_assertion(shared)
    verdict = shared.sample(VERDICTS, len(VERDICTS))[place]

    def ask(scene: Scene) -> Question | None:
        return ask_assertion(assertion, scene) if assertion.verdict(scene) == verdict else None

    return fitting_scene(rng, seed, is_ood, ask)
