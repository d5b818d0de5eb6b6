"""Held-out metrics of any checkpoint on any task and split, strict and loose, with an interval.

    python evaluate.py --run runs/cls-20260101-120000
    python evaluate.py --task det --model path/to/checkpoint --split ood

`TASKS` is the one table of the tasks: name -> what reads its data and wires its reward.

Strict: the answer as a whole is right. Loose: the rule of the field's reference code, printed
beside the strict one and never instead of it. Each task adds its own (mAP, mean IoU, ...).
With `torchrun --nproc_per_node=2 evaluate.py ...` each GPU answers its share of the questions.
Answers are greedy (temperature 0) unless --temperature says otherwise; `--votes 8 --temperature 1`
lets the most frequent of eight answers count.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

import config
from answers import parse_answer
from config import (
    BASE_MODEL,
    TaskConfig,
    flag,
    require,
    require_counts,
    require_temperature,
)
from data.box_formats import default_frame
from data.files import SkipLog
from model.processor import Processor
from model.vlm import VLM
from model.weights import load_model
from runtime import console, distributed
from runtime.errors import InputError
from sample import generate_group, pick_device
from tasks import (
    Example,
    Settings,
    Task,
    change,
    cls,
    count,
    det,
    entail,
    ground,
    measure,
    order,
    ovd,
    vqa,
)
from training.checkpoint import last_model


@dataclass(frozen=True)
class EvalConfig(TaskConfig):
    split: str | None = flag(None, "held_out, ood, val or train; default: held_out and ood")
    run: Path | None = flag(
        None, "a run's directory: its last checkpoint, data, prompt and lengths"
    )
    temperature: float = flag(0.0, "0 is greedy")
    votes: int = flag(1, "completions per question; the most frequent answer counts")
    batch_size: int = flag(64, "images at a time")
    output: Path | None = flag(None, "write every answer to this jsonl file")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "batch_size votes")
        require_temperature(self)
        same = self.votes > 1 and self.temperature == 0
        require(not same, "votes", "1 where --temperature is 0: all would say the same", self)
        both = self.run is not None and self.model != BASE_MODEL
        require(not both, "model", "left out when --run is given", self)


def as_in_run(cfg: EvalConfig) -> EvalConfig:
    """Take the run's last checkpoint, and its settings wherever a flag was left at its default.

    Raises InputError for a directory that is no run, or one that has no checkpoint yet.
    """
    trained = config.load_run(cfg.run / "config.json")
    last = last_model(cfg.run)
    if last is None:
        raise InputError(f"--run {cfg.run}: has no checkpoint (step_N/hf) yet")
    own = {"seed", "device", "model"}  # of this evaluation, not of the run
    values = {
        field.name: getattr(trained, field.name)
        for field in fields(TaskConfig)
        if field.name not in own and getattr(cfg, field.name) == field.default
    }
    return replace(cfg, run=None, model=last, **values)


TASKS: dict[str, Callable[[Settings], Task]] = {  # --task name -> what reads and wires it
    "cls": cls.load,
    "det": det.load,
    "ovd": ovd.load,
    "ground": ground.load,
    "count": count.load,
    "measure": measure.load,
    "change": change.load,
    "vqa": vqa.load,
    "entail": entail.load,
    "order": order.load,
}


def frame_spoken(cfg: TaskConfig, processor: Processor) -> str:
    """The frame in which the model writes boxes: as flagged, else what its family was taught."""
    return default_frame(processor.cfg.model_type) if cfg.coords == "auto" else cfg.coords


def load_task(cfg: TaskConfig, processor: Processor) -> Task:
    """The task that a config of either script names, with boxes in the frame the model speaks."""
    check_flags(cfg)
    given = {f.name: getattr(cfg, f.name) for f in fields(Settings) if hasattr(cfg, f.name)}
    given["coords"] = frame_spoken(cfg, processor)
    return TASKS[cfg.task](Settings(**given, image_config=processor.image_cfg))


# Flags that only some tasks read; elsewhere they would change nothing, so they are refused.
READ_BY = {
    "shots": ("cls", "det", "ovd"),
    "held_out_per_class": ("cls",),
    "shuffle_labels": ("cls",),
    "confidence_weight": ("det", "ovd"),
    "tolerance": ("measure",),
    "ordered": ("change",),
    "coords": ("det", "ovd", "ground"),
    "data_coords": ("det", "ovd", "ground"),
    "dense": tuple(task for task in TASKS if task != "ground"),  # IoU is graded as it is
    "train_size": tuple(task for task in TASKS if task != "cls"),
    "held_out_size": tuple(task for task in TASKS if task != "cls"),
}


def check_flags(cfg: TaskConfig) -> None:
    """Raise InputError for a flag that is set and that the task does not read."""
    for field in fields(cfg):
        tasks = READ_BY.get(field.name, TASKS)
        if cfg.task not in tasks and getattr(cfg, field.name) != field.default:
            raise InputError(f"--{field.name}: --task {cfg.task} does not use it; leave it out")


def usable_examples(
    examples: list[Example], processor: Processor, max_prompt_length: int, skips: SkipLog
) -> list[Example]:
    """Those whose prompt can be built; the others (too long, a damaged image) are counted.

    Prompts are never cut: that would separate image slots from image tokens.
    """
    usable = []
    for e in examples:
        try:
            processor.prompt(e.id, e.images, e.question, max_prompt_length)
            usable.append(e)
        except InputError as error:
            skips.add("no prompt", str(error))
    return usable


def wilson_interval(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a fraction p of n trials. Wilson (1927), JASA 22, page 209."""
    centre = p + z * z / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)
    return max(low, 0.0), min(high, 1.0)


def bootstrap_interval(
    metric: Callable[[np.ndarray], float], n: int, resamples: int = 100
) -> tuple[float, float]:
    """95 % percentile interval of a metric of n examples (Efron 1979): resample them, recompute.

    `metric` takes indices (n,) int64 into the examples. The seed is fixed, and so the interval.
    """
    rng = np.random.Generator(np.random.Philox(key=n))
    values = [metric(rng.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def headline_interval(
    task: Task, examples: list[Example], records: list[dict]
) -> tuple[float, float]:
    """95 % interval of the task's headline metric: Wilson's for a share, else a bootstrap."""
    n = len(records)
    if task.headline == "strict":
        return wilson_interval(sum(record["strict"] for record in records) / n, n)
    if task.headline in records[0]:
        values = np.array([record[task.headline] for record in records])
        return bootstrap_interval(lambda index: float(values[index].mean()), n, 1000)

    def resampled(index: np.ndarray) -> float:
        texts = [records[i]["text"] for i in index]
        return task.summary([examples[i] for i in index], texts)[task.headline]

    return bootstrap_interval(resampled, n)


def majority(texts: list[str]) -> int:
    """Which completion speaks for all: the first with the most frequent answer (self-consistency,
    arXiv:2203.11171). Completions without an answer have no vote."""
    answers = [parse_answer(text) for text in texts]
    cast = Counter(answer for answer in answers if answer is not None)
    return answers.index(cast.most_common(1)[0][0]) if cast else 0


def evaluate(
    model: VLM,
    processor: Processor,
    task: Task,
    examples: list[Example],
    max_completion_length: int | None = None,
    temperature: float = 0.0,
    batch_size: int = 64,
    seed: int = 0,
    with_interval: bool = False,
    votes: int = 1,
) -> tuple[dict[str, float], list[dict]]:
    """Answer every example, once or by a vote of several completions, and score the answers.

    Returns: the means of the task's scores, its summary metrics, `mean_length` in tokens, `n`, on
    request the 95 % interval of the headline metric as `<headline>_low` and `_high`; and one record
    per answer.
    """
    length = max_completion_length or task.max_completion_length
    distributed.require_same([e.id for e in examples], "questions")
    own, own_records = distributed.share(examples), []
    for start in range(0, len(own), batch_size):
        batch = own[start : start + batch_size]
        prompts = [processor.prompt(e.id, e.images, e.question) for e in batch]
        rollout = generate_group(model, processor, prompts, votes, length, temperature, seed)
        for n, example in enumerate(batch):
            elected = n * votes + majority(rollout.texts[n * votes : (n + 1) * votes])
            text, ids = rollout.texts[elected], rollout.ids[elected]
            record = {"id": example.id, "target": example.target, "text": text, "length": len(ids)}
            own_records.append(record | task.scores(text, example))
    records = [record for of_rank in distributed.all_gather(own_records) for record in of_rank]
    n = len(records)
    names = [name for name in records[0] if name not in ("id", "target", "text", "length")]
    metrics = {name: sum(record[name] for record in records) / n for name in names}
    if task.summary is not None:
        metrics |= task.summary(examples, [record["text"] for record in records])
    if with_interval:
        low, high = headline_interval(task, examples, records)
        metrics |= {f"{task.headline}_low": low, f"{task.headline}_high": high}
    metrics |= {"mean_length": sum(record["length"] for record in records) / n, "n": n}
    return metrics, records


def result_line(task: Task, metrics: dict[str, float]) -> str:
    """The headline metric with its interval, then the others, as one line."""
    name = task.headline
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    shown = [f"{name} {metrics[name]:.1%} [{low:.1%}, {high:.1%}]"]
    known = {name, f"{name}_low", f"{name}_high", "mean_length", "n"}
    shown += [f"{other} {value:.1%}" for other, value in metrics.items() if other not in known]
    return ", ".join([*shown, f"mean length {metrics['mean_length']:.1f} tokens"])


@distributed.processes()
def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(EvalConfig, argv, __doc__.split("\n\n")[0])
    if cfg.output is not None and (cfg.output.is_dir() or not cfg.output.parent.is_dir()):
        raise InputError(f"--output {cfg.output}: must be a file in a folder that exists")
    if cfg.run is not None:
        cfg = as_in_run(cfg)
    processor = Processor(cfg.model, cfg.max_pixels)
    task = load_task(cfg, processor)
    splits = task.splits | {"train": task.train}
    chosen = [name for name in ("held_out", "ood") if name in splits]
    if cfg.split is not None:
        chosen = [cfg.split]
    if chosen[0] not in splits:
        raise InputError(f"--split {cfg.split}: this data has {', '.join(splits)}")
    usable = {name: judged_examples(name, splits[name], processor, cfg) for name in chosen}
    model = load_model(cfg.model, getattr(torch, cfg.dtype), pick_device(cfg.device, cfg.dtype))
    answers = []
    for name, examples in usable.items():
        start = time.time()
        metrics, records = evaluate(
            model,
            processor,
            task,
            examples,
            cfg.max_completion_length,
            temperature=cfg.temperature,
            batch_size=cfg.batch_size,
            seed=cfg.seed,
            with_interval=True,
            votes=cfg.votes,
        )
        answers += [{"split": name} | record for record in records]
        line, seconds = result_line(task, metrics), time.time() - start
        print(f"{cfg.task} {name}, {metrics['n']} questions: {line}, {seconds:.1f} s", flush=True)
    if cfg.output is not None and distributed.rank() == 0:
        write_answers(cfg.output, answers)


def judged_examples(
    split: str, examples: list[Example], processor: Processor, cfg: EvalConfig
) -> list[Example]:
    """The usable ones of a split. Raises InputError where too many, or all, are not."""
    skips = SkipLog()
    usable = usable_examples(examples, processor, cfg.max_prompt_length, skips)
    skips.check(len(examples), cfg.max_skip)
    if not usable:
        raise InputError(f"--split {split}: no example is left; {skips.first[0]}")
    return usable


def write_answers(path: Path, answers: list[dict]) -> None:
    lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
    try:
        path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error})") from None


if __name__ == "__main__":
    console.run(main)
