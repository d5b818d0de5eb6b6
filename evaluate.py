"""Held-out metrics of any checkpoint on any task and split, strict and loose, with an interval.

    python evaluate.py --run runs/cls-20260101-120000
    python evaluate.py --task det --model path/to/checkpoint --split ood

Strict: the answer as a whole is right. Loose: the rule of the field's reference code, printed
beside the strict one and never instead of it. Each task adds its own (mAP, mean IoU, ...).
`--pictures swapped` shows what is left of a score without looking. Answers are greedy; `--votes 8
--temperature 1` lets the most frequent of eight count, `--choose` asks a verifier
(train_verifier.py). With `torchrun --nproc_per_node=2
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
from model.scored import ScoredVLM
from model.vlm import VLM
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
from training.search import Method
from training.setup import check_acting
from training.verifier import load_verifier


@dataclass(frozen=True)
class EvalConfig(TaskConfig):
    split: str | None = flag(None, "held_out, ood, val or train; default: held_out and ood")
    run: Path | None = flag(
        None, "a run's directory: its last checkpoint, data, prompt and lengths"
    )
    temperature: float = flag(0.0, "0 is greedy")
    votes: int = flag(1, "completions per question; the most frequent answer counts")
    choose: Method = flag("majority", "which of them counts; all others ask a verifier")
    verifier: Path | None = flag(None, "directory that train_verifier.py has written")
    beam_width: int = flag(2, "beginnings that stay in a beam")
    pictures: Pictures = flag("real", "swapped: those of other questions; grey: none")
    batch_size: int = flag(64, "images at a time")
    output: Path | None = flag(None, "write every answer to this jsonl file")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "batch_size votes beam_width")
        require_temperature(self)
        same = self.votes > 1 and self.temperature == 0
        require(not same, "votes", "1 where --temperature is 0: all would say the same", self)
        has_verifier, is_beam = self.verifier is not None, self.choose == "beam"
        require(has_verifier or self.choose == "majority", "choose", "taken with --verifier", self)
        why = "left out with --choose majority, which asks nobody"
        require(not has_verifier or self.choose != "majority", "verifier", why, self)
        require(is_beam or self.beam_width == 2, "beam_width", "taken with --choose beam", self)
        is_choice = self.choose == "majority" or self.votes > 1
        require(is_choice, "votes", f"above 1 with --choose {self.choose}", self)
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
    apart = {name, f"{name}_low", f"{name}_high", "mean_length", "n", "tokens_computed", *about}
    counts = ("calls", "calls_invalid", "calls_forged", "detour")  # of completions that act
    parts += [
        f"{other} {value:.2f}" if other in counts else f"{other} {value:.1%}"
        for other, value in metrics.items()
        if other not in apart
    ]
    unreadable, top, target = (metrics[name] for name in about)
    parts += [
        f"unreadable {unreadable:.1%}",
        f"most frequent answer {top:.1%} (target {target:.1%})",
    ]
    parts.append(f"mean length {metrics['mean_length']:.1f} tokens")
    if "tokens_computed" in metrics:
        parts.append(f"{metrics['tokens_computed']:.0f} tokens computed per question")
    return ", ".join(parts)


def verifier_for(cfg: EvalConfig, task: Task, model: VLM) -> ScoredVLM:
    """The verifier of --verifier; raises InputError where it cannot choose as --choose says."""
    dtype = getattr(torch, cfg.dtype)
    verifier, about = load_verifier(cfg.verifier, dtype, model.device, policy=cfg.model)
    learnt = about.get("labels")
    if cfg.choose == "weighted" and learnt != "outcome":
        what = f"adds up probabilities of right answers; this one has learnt {learnt}"
        raise InputError(f"--verifier {cfg.verifier}: --choose weighted {what}, take best")
    if cfg.choose == "beam" and learnt != "process":
        what = f"needs one of statements (--labels process); this one has learnt {learnt}"
        raise InputError(f"--verifier {cfg.verifier}: --choose beam {what}")
    if cfg.choose == "beam" and task.environment is not None:
        raise InputError(f"--choose beam: not for {task.name}, whose completions act")
    if cfg.choose == "beam" and not isinstance(model, VLM):
        raise InputError("--choose beam: only for the hand-written families")
    if about.get("task") != task.name:
        print(f"warning: --verifier {cfg.verifier}: has learnt the task {about.get('task')}")
    return verifier


@distributed.process_group()
def main(argv: list[str] | None = None) -> None:
    given = config.given_flags(EvalConfig, argv, __doc__, task=TASKS)
    cfg = EvalConfig(**given)
    if cfg.output is not None:
        check_output(cfg.output)
    if cfg.run is not None:
        cfg = as_in_run(cfg, given)
    cfg = replace(cfg, model=local_directory(cfg.model))
    processor = load_processor(cfg.model, cfg.max_pixels)
    task = load_task(cfg, processor)
    check_acting(cfg, task, processor)
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
    verifier = None if cfg.verifier is None else verifier_for(cfg, task, model)
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
            method=cfg.choose,
            verifier=verifier,
            width=cfg.beam_width,
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


def check_output(path: Path) -> None:
    """Raise InputError unless a new file can be written there, before anything is computed."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--output {path}: must be a file in a folder that exists")
    if path.is_file():
        raise InputError(f"--output {path}: exists already; name another file, or delete it")


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
