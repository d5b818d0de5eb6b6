"""What every training run does around its updates: prepare, judge, log, save, close.

train_grpo.py and train_sft.py share it, so that what they report compares. Nothing is learnt here.
Read first: train_grpo.py. Next: reporting/runlog.py.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch

from config import TrainConfig
from evaluate import READ_BY, evaluate, frame_spoken, load_task, usable_examples
from model.errors import InputError
from model.text import Processor
from model.vlm import VLM
from model.weights import load_model, save_model
from report import try_report
from reporting.gallery import Gallery
from reporting.runlog import RunLog, about_run, check_output_dir
from sample import pick_device
from tasks import Task
from tasks.files import SkipLog

EVAL_SPLITS = {"held_out": "eval/", "ood": "eval/ood_"}  # split -> prefix of its metrics


def with_usable_prompts(task: Task, processor: Processor, max_prompt_length: int) -> Task:
    """The task without examples whose prompt cannot be built, before the run leaves anything.

    Raises InputError when more than a few are lost, or none is left.
    """
    skips = SkipLog()
    judged = {name: task.splits[name] for name in EVAL_SPLITS if name in task.splits}
    kept = {
        name: usable_examples(examples, processor, max_prompt_length, skips)
        for name, examples in ({"train": task.train} | judged).items()
    }
    skips.check(len(task.train) + sum(map(len, judged.values())))
    if empty := [name for name, examples in kept.items() if not examples]:
        raise InputError(f"--data: no example is left in {empty[0]}; {skips.first[0]}")
    return replace(task, train=kept.pop("train"), splits=task.splits | kept)


def prepare(cfg: TrainConfig) -> tuple[TrainConfig, Processor, Task, VLM]:
    """Task and model of a training run, before the run leaves anything; what was left open in
    `cfg` is filled in. Raises InputError for anything that cannot work."""
    check_output_dir(cfg.output_dir)
    SkipLog.reported.clear()
    processor = Processor(cfg.model, cfg.max_pixels)
    task = with_usable_prompts(load_task(cfg, processor), processor, cfg.max_prompt_length)
    if len(task.train) < cfg.prompts_per_step:
        print(
            f"data: {len(task.train)} training examples, fewer than --prompts_per_step "
            f"{cfg.prompts_per_step}: a step asks some of them twice"
        )
    if cfg.task in READ_BY["coords"]:  # a run's config.json says which frame was used
        cfg = replace(cfg, coords=frame_spoken(cfg, processor))
    if cfg.max_completion_length is None:
        cfg = replace(cfg, max_completion_length=task.max_completion_length)
    device = pick_device(cfg.device)
    model = load_model(cfg.model, getattr(torch, cfg.dtype), device)
    model.visual.requires_grad_(not cfg.freeze_vision)
    for part in (model.model, model.visual):
        part.gradient_checkpointing = cfg.gradient_checkpointing
    sizes = ", ".join(f"{len(task.splits[s])} {s}" for s in EVAL_SPLITS if s in task.splits)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{task.name}: {len(task.train)} training examples, {sizes}; "
        f"{millions:.1f} M parameters, {cfg.dtype} on {device}"
    )
    return cfg, processor, task, model


def held_out_metrics(
    model: VLM, processor: Processor, task: Task, cfg: TrainConfig, with_interval: bool
) -> dict[str, float]:
    """Metrics of greedy answers: held out (eval/...) and out of distribution (eval/ood_...)."""
    row = {}
    for split, prefix in EVAL_SPLITS.items():
        if split in task.splits:
            metrics, _ = evaluate(
                model,
                processor,
                task,
                task.splits[split],
                cfg.max_completion_length,
                batch_size=8 * cfg.prompts_per_step,  # about the rows of a rollout
                with_interval=with_interval and split == "held_out",
            )
            row |= {prefix + name: value for name, value in metrics.items()}
    return row


class TrainingRun:
    """The log, the gallery and the report of a run, from before its first step to its end.

    Making one opens the run's directory and judges the model as it starts.

    Args:
        began: time.time() when the script began. num_generations, temperature: of the completions
            that the report shows.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        processor: Processor,
        task: Task,
        model: VLM,
        began: float,
        num_generations: int = 4,
        temperature: float = 1.0,
    ):
        self.cfg, self.processor, self.task, self.model = cfg, processor, task, model
        self.began = began
        self.log = RunLog(cfg, about_run(cfg, task, model))
        shown = (num_generations, temperature)
        self.gallery = Gallery(self.log.directory, processor, task, cfg, *shown)
        self.first: dict[str, float] = {}  # held-out metrics of the start, and the last ones
        self.last: dict[str, float] = {}
        self._judge({"step": 0})
        self.first = self.last

    def is_due(self, step: int, every: int) -> bool:
        """Whether what happens every so many steps (0: never), and at the end, happens now."""
        return step == self.cfg.max_steps or (every > 0 and step % every == 0)

    def end_step(self, row: dict[str, float]) -> None:
        """Log a step; evaluate, report and save where that is due."""
        step = row["step"]
        if self.is_due(step, self.cfg.eval_steps):
            self._judge(row)
        else:
            self.log.metrics(row)
        if self.is_due(step, self.cfg.save_steps):
            save_model(self.model, self._checkpoint(step), companions=self.cfg.model)

    def _judge(self, row: dict[str, float]) -> None:
        cfg, step = self.cfg, row["step"]
        with self.log.timed("eval"):
            ends = step in (0, cfg.max_steps)
            self.last = held_out_metrics(self.model, self.processor, self.task, cfg, ends)
            self.gallery.held_out(step, self.model)
        self.log.metrics(row | self.last)
        with self.log.timed("report"):
            try_report(self.log.directory)

    def _checkpoint(self, step: int) -> Path:
        return self.log.directory / f"step_{step}" / "hf"

    def close(self) -> dict[str, float]:
        """Say what the run brought and where it is; returns its last held-out metrics."""
        self.log.close()
        report = try_report(self.log.directory)  # once more: now it knows the last checkpoint
        line, seconds = closing_line(self.task, self.first, self.last), time.time() - self.began
        print(f"{line}; {seconds:.0f} s; {self._checkpoint(self.cfg.max_steps)}")
        if report is not None:
            print(f"report: {report}")
        return self.last


def closing_line(task: Task, first: dict[str, float], last: dict[str, float]) -> str:
    """base -> final, in words: the task's headline metric, the loose one, out of distribution."""

    def rise(name: str) -> str:
        return f"{first[name]:.1%} -> {last[name]:.1%}"

    line = f"held-out {task.headline} {rise(f'eval/{task.headline}')}"
    if "eval/loose" in last:
        line += f" (loose {rise('eval/loose')})"
    if f"eval/ood_{task.headline}" in last:
        line += f", out of distribution {rise(f'eval/ood_{task.headline}')}"
    return line
