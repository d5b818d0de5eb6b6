"""What every training run does around its updates: judge, log, save, stop, close.

train_grpo.py and train_sft.py share it, so that what they report compares. Nothing is learnt here.
Read first: train_grpo.py. Next: reporting/run_log.py.
"""

import json
import math
import shlex
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from config import TrainConfig
from data.files import write_whole
from evaluate import evaluate
from model.processor import Processor
from model.vlm import VLM
from report import try_report
from reporting.gallery import Gallery
from reporting.page.saved_run import read_run
from reporting.page.verdict import rise
from reporting.run_log import RunLog, about_run
from runtime import distributed
from runtime.errors import InputError
from runtime.signals import Elsewhere, Stopped, signals
from tasks import Example, Task
from training.checkpoint import (
    Checkpoint,
    find_checkpoint,
    last_model,
    log_sizes,
    restore_logs,
    save_checkpoint,
    tidy,
    why_unusable,
)
from training.fsdp import whole
from training.optimizer import Optimizer
from training.setup import EVAL_SPLITS

MAX_NOT_FINITE = 5  # steps in a row with an update that was skipped; then the run stops
T = TypeVar("T")


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
                # Each rank decodes about the rows of its rollout.
                batch_size=max(1, 8 * cfg.prompts_per_step // distributed.world_size()),
                with_interval=with_interval and split == "held_out",
            )
            row |= {prefix + name: value for name, value in metrics.items()}
    return row


def check_same_data(run: Path, about: dict) -> None:
    """Raise InputError if a run is to go on with other questions or pictures than it began with."""
    before = read_run(run).about.get("data", {})
    for name, split in about["data"].items():
        if name in before and before[name] != split:
            raise InputError(
                f"--resume_from_checkpoint {run}: the data has changed, {name} was {before[name]} "
                f"and is {split}; restore it, or start a new run"
            )


class TrainingRun:
    """The log, the gallery, the report and the checkpoints of a run: `with TrainingRun(..) as run`.

    Entering opens the run's directory and judges the model as it starts, or goes on where
    `checkpoint` stopped. A signal inside leaves a checkpoint of the last step that was made, and
    ends the process with the conventional code.

    A step goes through these states. The weights rest (a signal ends the run at once; `done` steps
    can be saved); from `all_totals` on they are moving (signals wait, nothing can be saved); from
    `end_step` on they rest again, and the step's row is `pending`: it is evaluated and logged, and
    only then gone. A checkpoint keeps a pending row, so a run that was stopped in an evaluation
    goes on with that evaluation.

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
        optimizer: Optimizer,
        began: float,
        checkpoint: Checkpoint | None = None,
        num_generations: int = 4,
        temperature: float = 1.0,
    ):
        self.cfg, self.processor, self.task, self.model = cfg, processor, task, model
        self.optimizer, self.began = optimizer, began
        self.done = 0  # steps that are made
        self.is_moving = False  # the weights are on their way to the next one
        self.pending: dict[str, float] | None = {"step": 0}  # their last row, until it is logged
        self.not_finite: list[dict] = []  # the steps in a row with an update that was skipped
        self.waited: Counter[str] = Counter()  # seconds of a step, each rank for slower ones
        self.judged: list[dict[str, float]] = []  # held-out metrics, from the start on
        about = about_run(cfg, task, model)
        distributed.require_same(about["data"], "data")
        if checkpoint is None:
            self.log = RunLog(cfg, about)
        else:
            check_same_data(cfg.output_dir, about)
            self.log = RunLog(cfg, about, done=checkpoint.step)
            self._go_on(checkpoint)
        self.sizes = log_sizes(self.log.directory)
        shown = (num_generations, temperature)
        self.gallery = Gallery(self.log, processor, task, cfg, *shown)

    def _go_on(self, checkpoint: Checkpoint) -> None:
        if distributed.rank() == 0:
            checkpoint.check_newest()
            tidy(self.log.directory, checkpoint.step)
            restore_logs(self.log.directory, checkpoint.state["sizes"])
        # The others read what rank 0 has put in order.
        distributed.require_same(checkpoint.directory.name, "checkpoints")
        headline = f"eval/{self.task.headline}"
        self.judged = [row for row in read_run(self.log.directory).rows if headline in row]
        self.done, self.pending = checkpoint.step, checkpoint.state["pending"]
        self.not_finite = checkpoint.state["not_finite"]
        self.optimizer.restore(checkpoint.optimizer_tensors())
        print(f"going on after step {self.done} of {self.cfg.max_steps}: {checkpoint.directory}")

    def __enter__(self) -> "TrainingRun":
        signals.install(distributed.world_size())
        try:
            if self.pending is not None:
                self._finish_row(self.pending)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Whatever ended the run, save its last step, unless the weights have left it already."""
        if error is None:
            signals.remove()
            return
        signals.held = True
        cause, saved = distributed.leave(error), None
        number = cause.number if isinstance(cause, Stopped) else None
        try:
            if distributed.are_together() and self._can_be_saved(number is not None):
                saved = self._save()
        except Exception as not_saved:  # what ended the run has to be told all the same
            print(f"not saved: {not_saved}", file=sys.stderr)
        with suppress(InputError):  # torchrun ends the others as soon as one has ended
            distributed.all_gather(None)
        signals.remove()
        self.log.close()
        if number is not None:
            what = f"; saved {saved}" if saved is not None else ""
            print(f"stopped by {cause} after step {self.done}{what}")
        if last_model(self.log.directory) is not None:
            flag = f"--resume_from_checkpoint {shlex.quote(str(self.log.directory))}"
            print(f"go on with the same command and {flag}", flush=True)
        if number is not None:
            raise SystemExit(128 + number) from None
        if cause is not error:
            raise cause from None

    def _can_be_saved(self, was_asked_to: bool) -> bool:
        """Whether all ranks are at the same step, and one that is worth it."""
        told = distributed.all_gather([self.is_moving, self.done > 0 or was_asked_to])
        return not any(moving for moving, _ in told) and any(worth for _, worth in told)

    def all_totals(self, totals: T) -> list[T]:
        """What every rank has accumulated. From here to the end of the step the weights are in
        motion, and signals have to wait."""
        signals.held = True
        distributed.all_gather(None)  # so that the wait for the slowest backward is counted
        told = distributed.all_gather([totals, distributed.waited()])
        self.is_moving = True
        for rank, (_, seconds) in enumerate(told):
            self.waited[f"waiting/rank_{rank}"] += seconds
        return [totals for totals, _ in told]

    def is_due(self, step: int, every: int) -> bool:
        """Whether what happens every so many steps (0: never), and at the end, happens now."""
        return step == self.cfg.max_steps or (every > 0 and step % every == 0)

    def end_step(self, row: dict[str, float], asked: list[Example]) -> None:
        """Log a step and what it asked; evaluate, report and save where that is due.

        Metrics that are not finite are left out: JSON has no such numbers, and curves cannot show
        them. Raises InputError after MAX_NOT_FINITE steps in a row that were not finite.
        """
        self.done = row["step"]
        self._keep_not_finite(row, asked)
        if distributed.world_size() > 1:
            row |= self.waited
        self.waited.clear()
        row = {name: value for name, value in row.items() if math.isfinite(value)}
        self.pending, self.is_moving = row, False
        self._at_rest()
        self._finish_row(row)
        if len(self.not_finite) >= MAX_NOT_FINITE:
            raise InputError(
                f"{MAX_NOT_FINITE} steps in a row had a gradient that is not finite, see "
                f"{self.log.directory / 'not_finite.json'}; lower --learning_rate or --beta, or "
                "use --dtype float32"
            )

    def _keep_not_finite(self, row: dict[str, float], asked: list[Example]) -> None:
        """Note the step if a gradient was not finite: its questions, metrics and parameters."""
        if row["steps_skipped_nonfinite"] == 0:
            self.not_finite = []
            return
        metrics = {name: v if math.isfinite(v) else str(v) for name, v in row.items()}
        bad = {"step": self.done, "questions": [example.id for example in asked]}
        bad |= {"metrics": metrics, "parameters": self.optimizer.not_finite}
        self.not_finite = [*self.not_finite, bad]
        if self.log.is_written:
            with self.log.writing():
                write_whole(
                    self.log.directory / "not_finite.json", json.dumps(self.not_finite, indent=1)
                )

    def _at_rest(self) -> None:
        """A point from which the run can go on exactly: weights and logs belong together."""
        self.sizes = log_sizes(self.log.directory)
        signals.release()

    def _finish_row(self, row: dict[str, float]) -> None:
        step, found = row["step"], {}
        if is_judged := self.is_due(step, self.cfg.eval_steps):
            with self.log.timed("eval"), whole(self.model):
                ends = step in (0, self.cfg.max_steps)
                found = held_out_metrics(self.model, self.processor, self.task, self.cfg, ends)
                self.gallery.held_out(step, self.model)
        signals.held = True
        self.judged += [found] if is_judged else []
        self.log.metrics(row | found)
        self.pending = None
        if is_judged and step < self.cfg.max_steps:  # `close` writes the last one
            with self.log.timed("report"):
                self._report()
        self._at_rest()
        if step > 0 and self.is_due(step, self.cfg.save_steps):
            try:
                self._save()
            except InputError as error:  # a full disk, say: the next one may succeed
                if step == self.cfg.max_steps or isinstance(error, Elsewhere):
                    raise
                print(f"{error}; training goes on", file=sys.stderr)
                signals.release()
        distributed.all_gather(None)  # a step ends for all ranks at once
        distributed.waited()  # what they waited for rank 0's files is no news

    def _report(self) -> Path | None:
        return try_report(self.log.directory) if self.log.is_written else None

    def _save(self) -> Path:
        """Write a checkpoint of the last step, unless it is there. A joint act of all ranks."""
        directory, is_last = self.log.directory, self.done == self.cfg.max_steps
        state = {
            "step": self.done,
            "pending": self.pending,
            "sizes": self.sizes,
            "not_finite": self.not_finite,
        }
        place = directory / f"step_{self.done}"
        with signals.holding():
            is_there = why_unusable(place) is None and find_checkpoint(place).state == state
            is_over = is_last and self.pending is None  # not trained on, and judged already
            is_there, is_over = distributed.all_gather([is_there, is_over])[0]  # rank 0 decides
            if is_there:
                return place
            with whole(self.model):
                tensors = {} if is_over else self.optimizer.tensors()
                if self.log.is_written:
                    limit = self.cfg.save_total_limit
                    kept = (self.cfg.model, tensors, state, limit)
                    save_checkpoint(directory, self.model, *kept)
        return place

    def close(self) -> dict[str, float]:
        """Say what the run brought and where it is; returns its last held-out metrics."""
        self.log.close()
        report = self._report()  # once more: now it knows the last checkpoint
        line = rise(self.judged[0], self.judged[-1], self.task.headline)
        seconds = time.time() - self.began
        print(f"{line}; {seconds:.0f} s; {self.log.directory / f'step_{self.done}' / 'hf'}")
        if report is not None:
            print(f"report: {report}")
        return self.judged[-1]
