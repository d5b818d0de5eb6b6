"""Tasks: what the model sees and what a right answer is. `TASKS` is the one table of them.

    cls      name the class of an image              count    a number
    det      boxes of one category                   measure  a length, or a letter
    ovd      the same, evaluated on other categories change   calls that turn picture 1 into 2
    ground   the one box that a phrase means         vqa      a word
    order    what comes first, what comes next       entail   yes, no or unknown
    zoom     a word, after looking closer            lookup   a colour, after reading a fact
    walk     moves through a flower bed

A new task is one file here and its name in `NAMES`, which every script and every test that is about
all tasks reads. The file has `load(cfg, image_cfg) -> Task` and
`FLAGS`, the command-line flags that it reads and that not every task does. `image_cfg` is the
model's image preprocessing, which box tasks need; `cfg.coords` of a box task is never "auto". Where
completions are shown pictures, `LATER_PICTURES` says how many at most.
Next: tasks/cls.py. The others follow the same pattern, on tasks/scenes.py.
"""

from dataclasses import fields, replace
from importlib import import_module

from config import TaskConfig
from model.processor import Processor
from runtime.errors import InputError
from tasks.boxes import model_box_format
from tasks.task import Task

NAMES = "cls det ovd ground count measure change vqa entail order zoom lookup walk".split()
TASKS = {name: import_module(f"tasks.{name}") for name in NAMES}  # --task -> its file


def load_task(cfg: TaskConfig, processor: Processor) -> Task:
    """Read or generate the task that `cfg` names, with boxes in the model's format.

    Raises InputError for what `check_flags` refuses, and for unusable data.
    """
    check_flags(cfg)
    processor.check_prompt_mode(cfg.prompt_mode)
    if reads(cfg.task, "coords"):
        cfg = replace(cfg, coords=model_box_format(cfg, processor.model_type))
        for flag in ("coords", "data_coords"):
            if getattr(cfg, flag) == "abs_resized" and processor.image_cfg is None:
                what = "only the model's own processor knows the resized image; use norm1000 or abs"
                raise InputError(f"--{flag} abs_resized: {what}")
    return TASKS[cfg.task].load(cfg, processor.image_cfg)


def reads(task: str, flag: str) -> bool:
    """Whether a task reads a flag: all do, unless the flag is in the FLAGS of other tasks."""
    readers = [name for name, module in TASKS.items() if flag in module.FLAGS]
    return not readers or task in readers


def later_pictures(task: str) -> int:
    """How many pictures a completion of a task may be shown, at most."""
    return getattr(TASKS[task], "LATER_PICTURES", 0)


def check_flags(cfg: TaskConfig) -> None:
    """Raise InputError for an unknown task, and for a flag that is set and that nothing reads."""
    if cfg.task not in TASKS:
        raise InputError(f"--task {cfg.task}: must be one of {', '.join(TASKS)}")
    if cfg.data_root is not None and cfg.data in ("garden", "digits"):
        what = f"--data {cfg.data} has no pictures on disk; give --data as well, or leave it out"
        raise InputError(f"--data_root {cfg.data_root}: {what}")
    if cfg.data_coords != "auto" and cfg.data == "garden" and reads(cfg.task, "data_coords"):
        what = "the garden's boxes are known; it is about those of --data, leave it out"
        raise InputError(f"--data_coords {cfg.data_coords}: {what}")
    for field in fields(cfg):
        if getattr(cfg, field.name) != field.default and not reads(cfg.task, field.name):
            raise InputError(f"--{field.name}: --task {cfg.task} does not use it; leave it out")
