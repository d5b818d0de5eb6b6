"""Questions and reward of a task for another engine, so that what was tried here runs there.

    python export.py --task count --data rows.jsonl --to trl --output exported
    python export.py --task cls --shots 4 --to verl --output exported --model DIR

`--output` becomes a folder with a parquet file for each split, pictures inside, and reward.py:

    trl    columns prompt and images as TRL's GRPOTrainer takes them; reward.py: `reward`
    verl   columns of verl's RLHFDataset, and those of EasyR1; reward.py: `compute_score`

reward.py pays with the task's own rule from this project (`Rule`), by the flags given here: strict
answers in the asked-for format; or with the function of --reward, which is copied beside it.
Questions about boxes name the frame that --model writes. docs/export.md has the commands. Read
first: rewards.py.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import config
from config import BASE_MODEL, TaskConfig, flag, require
from data.examples import Example, Picture
from data.files import optional_import
from data.frames import NAMES
from model.image import load_image
from model.load import load_processor, local_directory
from runtime import console
from runtime.errors import InputError
from tasks import TASKS, load_task, reads
from tasks.boxes import model_box_format
from training.reward_worker import load_user_reward, read_source
from training.rollout_config import weights_of_parts

ROOT = Path(__file__).resolve().parent
SPLITS = {"held_out": "test"}  # their names elsewhere
OF_THE_DATA = ("data", "data_root", "data_coords", "question", "model", "adapter", "max_pixels")
OF_THE_REWARD = ("correct_weight", "confidence_weight", "format_weight", "dense")
OWN_REWARD = "own_reward.py"  # the file of --reward in the folder
SMALL = ("shots", "train_size", "held_out_per_class", "held_out_size")


@dataclass(frozen=True)
class ExportConfig(TaskConfig):
    """The flags of a task, and what its answers are paid."""

    script: ClassVar[str] = "export.py"

    to: Literal["trl", "verl"] = flag("trl", "the engine: TRL's GRPOTrainer; verl or EasyR1")
    output: Path = flag(Path("exported"), "folder, new or empty")
    correct_weight: float = flag(1.0, "weight of the right answer, or of the boxes' overlap")
    confidence_weight: float = flag(1.0, "det, ovd: weight of well-placed confidence")
    format_weight: float = flag(0.5, "weight of the asked-for format")
    dense: float = flag(0.0, "credit for being nearly right, 0 (sparse) .. 1")
    reward: str | None = flag(None, "path/to/file.py:function, instead of the task's own reward")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("correct_weight", "confidence_weight", "format_weight"):
            require(0 <= getattr(self, name) <= 1e6, name, "in 0 .. 1e6", self)
        require(0 <= self.dense <= 1, "dense", "in 0 .. 1", self)
        for name in OF_THE_REWARD if self.reward is not None else ():
            is_unset = getattr(self, name) == getattr(ExportConfig, name)
            require(is_unset, name, "left out with --reward, which is the whole reward", self)


# ---- the reward ----------------------------------------------------------------------------------


def settings_of(cfg: ExportConfig) -> dict[str, Any]:
    """The flags that a reward depends on, as JSON can hold them; not those of data and model."""
    names = {item.name for item in fields(cfg)} - {*OF_THE_DATA, *SMALL, "output", "to", "reward"}
    raw = config.to_dict(cfg)
    return {name: raw[name] for name in sorted(names)}


def truth_of(example: Example) -> str:
    """What a reward has to know of a question, as one text."""
    names = ("id", "question", "target", "box_format", "canvas")
    known = {name: getattr(example, name) for name in names}
    return json.dumps(known)


class Rule:
    """A task's own reward, or a user's, without the data: `rule(completion, truth)`.

    Args:
        settings: `settings_of` the flags. user: file.py:function instead of the task's reward; its
            examples have no pictures. lost: what a completion earns where that returns None.
        truth: `truth_of` the question.
    Raises: InputError for settings of another version, ValueError for a truth that is none.
    """

    def __init__(
        self, settings: dict[str, Any], user: str | None = None, lost: float | None = None
    ):
        few = {name: 1 for name in SMALL if reads(settings["task"], name)}
        names = {item.name for item in fields(ExportConfig)}
        if unknown := settings.keys() - names:
            raise InputError(f"reward.py: {sorted(unknown)[0]!r} is no flag of this version")
        cfg = ExportConfig(**settings, **few, model=BASE_MODEL)
        self.task, self.dense = load_task(cfg, load_processor(BASE_MODEL)), cfg.dense
        self.weights, self.lost, self.pay = weights_of_parts(cfg), lost, None
        if user is not None:
            self.pay = load_user_reward(user, read_source(user))

    def __call__(self, completion: str, truth: str) -> float | None:
        """What a completion earns."""
        return self.parts(completion, truth)["overall"]

    def parts(self, completion: str, truth: str) -> dict[str, float | None]:
        """`overall`, what it earns, and the parts of that, unweighted; `accuracy`: is it right?"""
        known = json.loads(truth)
        about = known.get("id", ""), (), known.get("question", ""), known["target"]
        example = Example(*about, known["box_format"], tuple(known["canvas"]))
        accuracy = self.task.scores(completion, example)["strict"]
        if self.pay is not None:
            (paid,) = self.pay([completion], example)
            return {"overall": self.lost if paid is None else float(paid), "accuracy": accuracy}
        reward = self.task.reward(completion, example, self.weights, self.dense)
        return {"overall": reward.total, "accuracy": accuracy} | reward.parts


REWARD_FILE = '''"""The reward of nanoVRFT's --task {task}, for {engine}. Written by export.py."""

import os
import sys

sys.path.insert(0, os.environ.get("NANOVRFT", {root!r}))  # where nanoVRFT is

from export import Rule

RULE = Rule({settings}{user})
{functions}'''
USER = ", os.path.join(os.path.dirname(os.path.abspath(__file__)), {name!r}), {lost}"
FUNCTIONS = {
    "trl": '''

def reward(completions, truth, **columns):
    """TRL: `GRPOTrainer(reward_funcs=reward)`. Completions are texts, or lists of messages."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [RULE(text, known) for text, known in zip(texts, truth)]
''',
    "verl": '''

def compute_score(*given, **named):
    """verl: (data_source, solution_str, ground_truth, extra_info) -> number.
    EasyR1: a list of {"response", "ground_truth"} -> a list of {"overall", ..}."""
    first = given[0] if given else named.get("reward_inputs", named.get("data_source"))
    if isinstance(first, list):
        return [RULE.parts(item["response"], item["ground_truth"]) for item in first]
    names = ("data_source", "solution_str", "ground_truth", "extra_info")
    named |= dict(zip(names, given))
    return RULE(named["solution_str"], named["ground_truth"])
''',
}


def reward_file(cfg: ExportConfig) -> str:
    """The source of reward.py."""
    user = ""
    if cfg.reward is not None:
        name = f"{OWN_REWARD}:{cfg.reward.rpartition(':')[2]}"
        user = USER.format(name=name, lost=None if cfg.to == "trl" else 0.0)
    return REWARD_FILE.format(
        task=cfg.task,
        engine={"trl": "TRL", "verl": "verl and EasyR1"}[cfg.to],
        root=str(ROOT),
        settings=settings_of(cfg),
        user=user,
        functions=FUNCTIONS[cfg.to],
    )


# ---- the questions -------------------------------------------------------------------------------


def encoded(picture: Picture) -> bytes:
    """A picture as PNG, upright, without loss."""
    out = io.BytesIO()
    load_image(picture).save(out, "PNG")
    return out.getvalue()


def rows_for(engine: str, task: str, split: str, examples: list[Example]) -> Iterator[dict]:
    """The rows of a split, as an engine reads them."""
    for index, example in enumerate(examples):
        images = [{"bytes": encoded(image), "path": None} for image in example.images]
        if engine == "trl":
            message = {"role": "user", "content": example.question}
            yield {"prompt": [message], "images": images, "truth": truth_of(example)}
            continue
        question = "<image>" * len(images) + example.question
        yield {
            "data_source": f"nanovrft/{task}",
            "prompt": [{"role": "user", "content": question}],
            "images": images,
            "ability": task,
            "reward_model": {"style": "rule", "ground_truth": truth_of(example)},
            "extra_info": {"split": split, "index": index, "id": example.id},
            "problem": question,  # EasyR1's names
            "answer": truth_of(example),
        }


def write(cfg: ExportConfig) -> None:
    """Write the folder. Raises InputError for what cannot be exported."""
    folder = cfg.output
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(is_free, "output", "a folder that is new or empty", cfg)
    pyarrow = optional_import("pyarrow")
    parquet = optional_import("pyarrow.parquet", "pyarrow")
    own = None if cfg.reward is None else read_source(cfg.reward)
    if own is not None:
        load_user_reward(cfg.reward, own)  # or it says why it cannot be used
    processor = load_processor(local_directory(cfg.model), cfg.max_pixels)
    task = load_task(cfg, processor)
    if task.environment is not None:
        raise InputError(
            f"--task {cfg.task}: its completions act; other engines cannot sample them"
        )
    if reads(cfg.task, "coords"):
        cfg = replace(cfg, coords=model_box_format(cfg, processor.model_type))
        print(f"boxes: {NAMES[cfg.coords]}, as asked of --model {cfg.model}; train that one")
    try:
        cfg.output.mkdir(parents=True, exist_ok=True)
        for name, examples in ({"train": task.train} | task.splits).items():
            name = SPLITS.get(name, name)
            rows = list(rows_for(cfg.to, cfg.task, name, examples))
            parquet.write_table(pyarrow.Table.from_pylist(rows), cfg.output / f"{name}.parquet")
            print(f"{cfg.output / name}.parquet: {len(rows)} questions")
        (cfg.output / "reward.py").write_text(reward_file(cfg), encoding="utf-8")
        if own is not None:
            (cfg.output / OWN_REWARD).write_bytes(own)
    except OSError as error:
        raise InputError(f"--output {cfg.output}: cannot be written ({error})") from None
    how = f"--task {cfg.task}" if own is None else f"--reward {cfg.reward}"
    print(f"{cfg.output / 'reward.py'}: pays as {how} does here")


def main(argv: list[str] | None = None) -> None:
    write(config.parse(ExportConfig, argv, __doc__, task=TASKS))


if __name__ == "__main__":
    console.run(main)
