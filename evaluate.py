"""Held-out accuracy of any checkpoint on any split, strict and loose, with its uncertainty.

    python evaluate.py --run runs/cls-20260101-120000 --split ood
    python evaluate.py --task cls --split ood --model path/to/checkpoint

Strict: the one answer must be the whole name. Loose: the rule of the field's reference code, which
accepts a substring in either direction; printed beside the strict number and never instead of it.
Answers are greedy (temperature 0) unless --temperature says otherwise.
"""

import json
import math
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

import config
from config import BASE_MODEL, Config, flag, require, require_counts, require_temperature
from model.errors import InputError
from model.text import Processor
from model.vlm import VLM
from model.weights import load_model
from sample import generate_group, pick_device
from tasks import Example, Task, cls
from tasks.garden import GARDEN_SPLIT_SEED


@dataclass(frozen=True)
class EvalConfig:
    task: Literal["cls"] = flag("cls", "what is asked")
    split: str = flag("held_out", "held_out, ood, val, or train")
    model: Path = flag(BASE_MODEL, "checkpoint directory")
    run: Path | None = flag(
        None, "a run's directory: its last checkpoint, data, prompt and lengths"
    )
    data: str = flag("garden", "as in train_grpo.py")
    question: str | None = flag(None, "asked of every image; default: the data's own question")
    shots: int = flag(1, "as in training: the shots are excluded from the held-out images")
    split_seed: int = flag(GARDEN_SPLIT_SEED, "as in training")
    held_out_per_class: int = flag(10, "images per class")
    prompt_mode: Literal["think", "direct"] = flag("think", "reason before the answer, or not")
    max_completion_length: int = flag(40, "tokens")
    temperature: float = flag(0.0, "0 is greedy")
    max_prompt_length: int = flag(2048, "tokens; a longer prompt is an error, never cut")
    max_pixels: int | None = flag(None, "as in training; default: the checkpoint's")
    batch_size: int = flag(64, "images at a time")
    device: str = flag("auto", "cpu, cuda, ...; auto takes a GPU if there is one")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "of the weights")
    seed: int = flag(0, "of sampling")
    output: Path | None = flag(None, "write every answer to this jsonl file")

    def __post_init__(self) -> None:
        require_counts(
            self,
            "shots held_out_per_class max_completion_length max_prompt_length batch_size",
        )
        require_temperature(self)
        both = self.run is not None and self.model != BASE_MODEL
        require(not both, "model", "left out when --run is given", self)
        require(0 <= self.split_seed < 2**24, "split_seed", "in 0 .. 2^24 - 1", self)


def as_in_run(cfg: EvalConfig) -> EvalConfig:
    """Take the run's last checkpoint, and its settings wherever a flag was left at its default.

    Raises InputError for a directory that is no run, or one that has no checkpoint yet.
    """
    trained = config.load(Config, cfg.run / "config.json")
    saved = [path for path in cfg.run.glob("step_*/hf") if path.parent.name[5:].isdigit()]
    steps = {int(path.parent.name[5:]): path for path in saved}
    if not steps:
        raise InputError(f"--run {cfg.run}: has no checkpoint (step_N/hf) yet")
    own = {"temperature", "seed", "device", "model"}  # of this evaluation, not of the run
    shared = {field.name for field in fields(Config)} - own
    values = {
        field.name: getattr(trained, field.name)
        for field in fields(EvalConfig)
        if field.name in shared and getattr(cfg, field.name) == field.default
    }
    return replace(cfg, run=None, model=steps[max(steps)], **values)


TASKS = {"cls": cls.load}  # --task name -> function that reads its data and wires its rewards


def load_task(cfg: Config | EvalConfig, **training: Any) -> Task:
    """The task that a config of either script names; `training` holds what only training needs."""
    return TASKS[cfg.task](
        data=cfg.data,
        shots=cfg.shots,
        split_seed=cfg.split_seed,
        held_out_per_class=cfg.held_out_per_class,
        prompt_mode=cfg.prompt_mode,
        question=cfg.question,
        **training,
    )


def wilson_interval(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a fraction p of n trials. Wilson (1927), JASA 22, page 209."""
    centre = p + z * z / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)
    return max(low, 0.0), min(high, 1.0)


def evaluate(
    model: VLM,
    processor: Processor,
    task: Task,
    examples: list[Example],
    max_completion_length: int,
    max_prompt_length: int | None = None,
    temperature: float = 0.0,
    batch_size: int = 64,
    seed: int = 0,
) -> tuple[dict[str, float], list[dict]]:
    """Answer every example once and score the answers.

    Returns: fractions `strict`, `loose`, `format`, the Wilson interval of `strict`, `mean_length`
    in tokens, `n`; and one record per answer.
    """
    records = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        prompts = [processor.prompt(e.id, e.images, e.question, max_prompt_length) for e in batch]
        rollout = generate_group(
            model, processor, prompts, 1, max_completion_length, temperature, seed
        )
        for example, text, ids in zip(batch, rollout.texts, rollout.ids, strict=True):
            records.append(
                {
                    "id": example.id,
                    "target": example.target,
                    "text": text,
                    "length": len(ids),
                    "strict": task.strict(text, example.target),
                    "loose": task.loose(text, example.target),
                    "format": task.format(text),
                }
            )
    n = len(records)
    metrics = {
        name: sum(record[name] for record in records) / n for name in ("strict", "loose", "format")
    }
    low, high = wilson_interval(metrics["strict"], n)
    metrics |= {"strict_low": low, "strict_high": high, "n": n}
    metrics["mean_length"] = sum(record["length"] for record in records) / n
    return metrics, records


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(EvalConfig, argv, __doc__.split("\n\n")[0])
    if cfg.output is not None and (cfg.output.is_dir() or not cfg.output.parent.is_dir()):
        raise InputError(f"--output {cfg.output}: must be a file in a folder that exists")
    if cfg.run is not None:
        cfg = as_in_run(cfg)
    task = load_task(cfg)
    splits = task.splits | {"train": task.train}
    if cfg.split not in splits:
        raise InputError(f"--split {cfg.split}: this data has {', '.join(splits)}")
    processor = Processor(cfg.model, cfg.max_pixels)
    model = load_model(cfg.model, getattr(torch, cfg.dtype), pick_device(cfg.device))
    start = time.time()
    metrics, records = evaluate(
        model,
        processor,
        task,
        splits[cfg.split],
        cfg.max_completion_length,
        cfg.max_prompt_length,
        temperature=cfg.temperature,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
    )
    if cfg.output is not None:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        try:
            cfg.output.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise InputError(f"--output {cfg.output}: cannot be written ({error})") from None
    interval = f"[{metrics['strict_low']:.1%}, {metrics['strict_high']:.1%}]"
    print(
        f"{cfg.task} {cfg.split}, {metrics['n']} images: "
        f"strict {metrics['strict']:.1%} {interval}, loose {metrics['loose']:.1%}, "
        f"format {metrics['format']:.1%}, "
        f"mean length {metrics['mean_length']:.1f} tokens, {time.time() - start:.1f} s"
    )


if __name__ == "__main__":
    config.run(main)
