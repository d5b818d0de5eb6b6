"""Questions and reward of a task for another engine, so that what was tried here runs there.

    python export.py --task count --data rows.jsonl --to trl --output exported
    python export.py --task cls --shots 4 --to verl --output exported

`--output` becomes a folder with a parquet file for each split, pictures inside, and reward.py:

    trl    columns prompt and images as TRL's GRPOTrainer takes them; reward.py: `reward`
    verl   columns of verl's RLHFDataset, and those of EasyR1; reward.py: `compute_score`

reward.py pays with the task's own rule from this project (`Rule`), by the flags given here: strict
answers in the asked-for format. docs/export.md has the commands. Read first: rewards.py.
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
from model.image import load_image
from model.load import load_processor, local_directory
from runtime import console
from runtime.errors import InputError
from tasks import TASKS, load_task, reads
from tasks.boxes import model_box_format
from training.rollout_config import weights_of_parts

ROOT = Path(__file__).resolve().parent
NAMES = {"held_out": "test"}  # of splits, elsewhere
OF_THE_DATA = ("data", "data_root", "data_coords", "question", "model", "adapter", "max_pixels")
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("correct_weight", "confidence_weight", "format_weight"):
            require(0 <= getattr(self, name) <= 1e6, name, "in 0 .. 1e6", self)
        require(0 <= self.dense <= 1, "dense", "in 0 .. 1", self)


# ---- the reward ----------------------------------------------------------------------------------


def settings_of(cfg: ExportConfig) -> dict[str, Any]:
    """The flags that a reward depends on, as JSON can hold them; not those of data and model."""
    names = {item.name for item in fields(cfg)} - {*OF_THE_DATA, *SMALL, "output", "to"}
    raw = config.to_dict(cfg)
    return {name: raw[name] for name in sorted(names)}


def truth_of(example: Example) -> str:
    """What a reward has to know of a question, as one text."""
    known = {name: getattr(example, name) for name in ("target", "box_format", "canvas")}
    return json.dumps(known)


class Rule:
    """A task's own reward, without its data: `rule(completion, truth)`.

    Args:
        settings: `settings_of` the flags. truth: `truth_of` the question.
    Raises: InputError for settings of another version, ValueError for a truth that is none.
    """

    def __init__(self, settings: dict[str, Any]):
        few = {name: 1 for name in SMALL if reads(settings["task"], name)}
        names = {item.name for item in fields(ExportConfig)}
        if unknown := settings.keys() - names:
            raise InputError(f"reward.py: {sorted(unknown)[0]!r} is no flag of this version")
        cfg = ExportConfig(**settings, **few, model=BASE_MODEL)
        self.task, self.dense = load_task(cfg, load_processor(BASE_MODEL)), cfg.dense
        self.weights = weights_of_parts(cfg)

    def __call__(self, completion: str, truth: str) -> float:
        """What a completion earns."""
        return self.parts(completion, truth)["overall"]

    def parts(self, completion: str, truth: str) -> dict[str, float]:
        """`overall`, what it earns, and the parts of that, unweighted; `accuracy`: is it right?"""
        known = json.loads(truth)
        example = Example("", (), "", known["target"], known["box_format"], tuple(known["canvas"]))
        reward = self.task.reward(completion, example, self.weights, self.dense)
        accuracy = self.task.scores(completion, example)["strict"]
        return {"overall": reward.total, "accuracy": accuracy} | reward.parts


REWARD_FILE = '''"""The reward of nanoVRFT's --task {task}, for {engine}. Written by export.py."""

import os
import sys

sys.path.insert(0, os.environ.get("NANOVRFT", {root!r}))  # where nanoVRFT is

from export import Rule

RULE = Rule({settings})
{functions}'''
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
    return REWARD_FILE.format(
        task=cfg.task,
        engine={"trl": "TRL", "verl": "verl and EasyR1"}[cfg.to],
        root=str(ROOT),
        settings=settings_of(cfg),
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
    processor = load_processor(local_directory(cfg.model), cfg.max_pixels)
    task = load_task(cfg, processor)
    if task.environment is not None:
        raise InputError(
            f"--task {cfg.task}: its completions act; other engines cannot sample them"
        )
    if reads(cfg.task, "coords"):
        cfg = replace(cfg, coords=model_box_format(cfg, processor.model_type))
    try:
        cfg.output.mkdir(parents=True, exist_ok=True)
        for name, examples in ({"train": task.train} | task.splits).items():
            name = NAMES.get(name, name)
            rows = list(rows_for(cfg.to, cfg.task, name, examples))
            parquet.write_table(pyarrow.Table.from_pylist(rows), cfg.output / f"{name}.parquet")
            print(f"{cfg.output / name}.parquet: {len(rows)} questions")
        (cfg.output / "reward.py").write_text(reward_file(cfg), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {cfg.output}: cannot be written ({error})") from None
    print(f"{cfg.output / 'reward.py'}: pays as --task {cfg.task} does here")


def main(argv: list[str] | None = None) -> None:
    write(config.parse(ExportConfig, argv, __doc__, task=TASKS))


if __name__ == "__main__":
    console.run(main)
