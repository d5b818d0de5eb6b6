"""Held-out metrics of any checkpoint on any task and split, strict and loose, with an interval.

    python evaluate.py --run runs/cls-20260101-120000
    python evaluate.py --task det --model path/to/checkpoint --split ood

Strict: the answer as a whole is right. Loose: the rule of the field's reference code, printed
beside the strict one and never instead of it. Each task adds its own (mAP, mean IoU, ...).
`--pictures swapped` shows what is left of a score without looking. Answers are greedy; `--votes 8
--temperature 1` lets the most frequent of eight count. With `torchrun --nproc_per_node=2
evaluate.py ...` each GPU answers its share of the questions.
"""

import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

import config
from config import BASE_MODEL, TaskConfig, flag, require, require_counts, require_temperature
from model.load import check_files_fit, load_model, load_processor, local_directory
from reporting.verdict import doubts
from runtime import console, distributed
from runtime.device import pick_device
from runtime.errors import InputError, json_line
from runtime.run_directory import last_model, read_json_object
from tasks import TASKS, load_task
from tasks.task import Task
from training.blind import Pictures, with_pictures
from training.checkpoint import why_unusable
from training.evaluation import evaluate, usable_splits
from training.resume import check_settings


@dataclass(frozen=True)
class EvalConfig(TaskConfig):
    split: str | None = flag(None, "held_out, ood, val or train; default: held_out and ood")
    run: Path | None = flag(
        None, "a run's directory: its last checkpoint, data, prompt and lengths"
    )
    temperature: float = flag(0.0, "0 is greedy")
    votes: int = flag(1, "completions per question; the most frequent answer counts")
    pictures: Pictures = flag("real", "swapped: those of other questions; grey: none")
    batch_size: int = flag(64, "images at a time")
    output: Path | None = flag(None, "write every answer to this jsonl file")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "batch_size votes")
        require_temperature(self)
        same = self.votes > 1 and self.temperature == 0
        require(not same, "votes", "1 where --temperature is 0: all would say the same", self)
        if self.run is not None:
            require(self.model == BASE_MODEL, "model", "left out when --run is given", self)
            require(self.adapter is None, "adapter", "left out when --run is given", self)


def as_in_run(cfg: EvalConfig, given: dict) -> EvalConfig:
    """Take the run's last checkpoint, and its settings wherever no flag was given.

    Raises InputError for a directory that is no run, or one that has no checkpoint yet; for a
    damaged checkpoint, or settings that it was not trained with; and for another task.
    """
    trained = config.load(TaskConfig, cfg.run / "config.json", strict=False)
    last = last_model(cfg.run)
    if last is None:
        raise InputError(f"--run {cfg.run}: has no checkpoint (step_N) yet")
    if (reason := why_unusable(last.parent, to_train=False)) is not None:
        fix = "restore it, or name another checkpoint with --model"
        raise InputError(f"--run {cfg.run}: {last.parent.name}: {reason}; {fix}")
    check_settings(cfg.run, read_json_object(last.parent / "trainer" / "state.json"))
    if given.get("task", trained.task) != trained.task:
        fix = f"leave it out, or ask its model another task with --model {last}"
        raise InputError(f"--task {cfg.task}: the run's task is {trained.task}; {fix}")
    excluded = {"seed", "device", *given}  # of this evaluation, not of the run
    place = {"adapter": last} if last.name == "adapter" else {"model": last, "adapter": None}
    values = {
        field.name: getattr(trained, field.name)
        for field in fields(TaskConfig)
        if field.name not in excluded
    }
    return replace(cfg, run=None, **values | place)


def result_line(task: Task, metrics: dict[str, float]) -> str:
    """The headline metric with its interval, then the others, as one line."""
    name = task.headline
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    parts = [f"{name} {metrics[name]:.1%} [{low:.1%}, {high:.1%}]"]
    about = ("no_answer_ratio", "top_answer_share", "top_target_share")
    apart = {name, f"{name}_low", f"{name}_high", "mean_length", "n", *about}
    parts += [f"{other} {value:.1%}" for other, value in metrics.items() if other not in apart]
    unreadable, top, target = (metrics[name] for name in about)
    parts += [
        f"unreadable {unreadable:.1%}",
        f"most frequent answer {top:.1%} (target {target:.1%})",
    ]
    return ", ".join([*parts, f"mean length {metrics['mean_length']:.1f} tokens"])


@distributed.process_group()
def main(argv: list[str] | None = None) -> None:
    given = config.given_flags(EvalConfig, argv, __doc__, task=TASKS)
    cfg = EvalConfig(**given)
    if cfg.output is not None and (cfg.output.is_dir() or not cfg.output.parent.is_dir()):
        raise InputError(f"--output {cfg.output}: must be a file in a folder that exists")
    if cfg.run is not None:
        cfg = as_in_run(cfg, given)
    cfg = replace(cfg, model=local_directory(cfg.model))
    processor = load_processor(cfg.model, cfg.max_pixels)
    task = load_task(cfg, processor)
    length = cfg.max_completion_length or task.max_completion_length
    processor.check_lengths(cfg.max_prompt_length, length)
    splits = task.splits | {"train": task.train}
    names = [name for name in ("held_out", "ood") if name in splits]
    if cfg.split is not None:
        names = [cfg.split]
    if names[0] not in splits:
        raise InputError(f"--split {cfg.split}: this data has {', '.join(splits)}")
    usable = usable_splits({name: splits[name] for name in names}, processor, cfg)
    device = pick_device(cfg.device, cfg.dtype)
    model = load_model(cfg.model, getattr(torch, cfg.dtype), device, cfg.adapter)
    first = next(iter(usable.values()))[0]
    check_files_fit(model, processor.prompt(first.id, first.images, first.question))
    answers = []
    for name, examples in usable.items():
        start = time.time()
        metrics, records = evaluate(
            model,
            processor,
            task,
            with_pictures(examples, cfg.pictures),
            cfg.max_completion_length,
            temperature=cfg.temperature,
            batch_size=cfg.batch_size,
            seed=cfg.seed,
            with_interval=True,
            votes=cfg.votes,
        )
        answers += [{"split": name} | record for record in records]
        line, seconds = result_line(task, metrics), time.time() - start
        shown = "" if cfg.pictures == "real" else f" with {cfg.pictures} pictures"
        what = f"{cfg.task} {name}, {metrics['n']} questions{shown}"
        print(f"{what}: {line}, {seconds:.1f} s", flush=True)
        for doubt in doubts(metrics, task.headline, prefix=""):
            print(f"warning: {name}: {doubt}", file=sys.stderr)
    if cfg.output is not None and distributed.rank() == 0:
        write_answers(cfg.output, answers)


def write_answers(path: Path, answers: list[dict]) -> None:
    """Write a jsonl file; InputError if it cannot be written."""
    try:
        path.write_text(
            "".join(map(json_line, answers)), encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error})") from None


if __name__ == "__main__":
    console.run(main, memory_flags="--batch_size, --max_completion_length, --max_pixels")
