"""What every training run does around its updates: log, evaluate, save, stop, close.

train_grpo.py and train_sft.py share it, so that what they report compares. Nothing is learnt here.
Read first: train_grpo.py. Next: model/vlm.py.
"""

import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

import config
from data.examples import Example
from reporting.gallery import Gallery
from reporting.lights import new_warnings
from reporting.metrics import completion_records, rollout_metrics, unpaid_parts
from reporting.page.render import try_report
from reporting.page.saved_run import read_run
from reporting.provenance import about_run
from reporting.run_log import RunLog
from reporting.verdict import rise
from runtime import distributed
from runtime.errors import InputError
from runtime.run_directory import REWARD_FILE, last_model, write_atomically
from runtime.signals import Stopped, signals
from sample import Rollout
from training.checkpoint import Checkpoint, save_checkpoint, why_unusable
from training.evaluation import held_out_metrics
from training.fsdp import unsharded
from training.optimizer import Optimizer
from training.resume import (
    check_same_data,
    check_same_reward,
    is_evaluated,
    log_sizes,
    restore_directory,
)
from training.reward_worker import Workers
from training.setup import Setup
from training.verifier import fingerprint

NOTHING: Mapping = MappingProxyType({})
MAX_NOT_FINITE = 5  # steps in a row with an update that was skipped; then the run stops
WARN_EVERY = 10  # steps


class HasState(Protocol):
    """What a checkpoint can hold."""

    def tensors(self) -> dict[str, Tensor]:
        """The state, by name."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from it bit for bit."""


class TrainingRun:
    """The log, the gallery, the report and the checkpoints of a run: `with TrainingRun(..) as run`.

    Entering evaluates the model as it starts, or as the checkpoint left it. Between two steps the
    weights, the logs and `done` belong together: that is what a checkpoint holds. From the
    `begin_update` until `end_step` they do not, and a signal waits. Whatever ends the run while
    they do leaves a checkpoint; of several ranks a signal alone, since only then all are there.
    """

    def __init__(
        self,
        setup: Setup,
        optimizer: Optimizer,
        reward: Workers | None = None,
        also: Mapping[str, HasState] = NOTHING,
    ):
        """`also`: by name, what else a checkpoint holds: a critic's optimizer, past groups."""
        self.cfg, self.processor, self.task = setup.cfg, setup.processor, setup.task
        self.model, self.optimizer, self.start_time = setup.model, optimizer, setup.start_time
        self.also = also
        self.done = 0  # finished steps
        self.not_finite: list[dict] = []  # the steps in a row with an update that was skipped
        about, checkpoint = about_run(self.cfg, self.task, self.model), setup.checkpoint
        distributed.require_same(about["data"], "data")
        if getattr(self.cfg, "reward_model", None) is not None:
            about["reward_model"] = fingerprint(self.cfg.reward_model)
        if reward is not None:
            about["reward"] = reward.fingerprint
            distributed.require_same(about["reward"], "--reward")
        if checkpoint is not None:
            check_same_data(self.cfg.output_dir, about)
            check_same_reward(self.cfg.output_dir, about)
            self._restore(checkpoint)  # before the logs are cut back
        self.rows: list[dict] = []  # of metrics.jsonl
        self.warned: set[str] = set()
        if checkpoint is None:
            self.log = RunLog(self.cfg, about)
        else:
            self.log = RunLog(self.cfg, about, checkpoint.step, checkpoint.lock)
            self._resume(checkpoint)
        if reward is not None and self.log.is_written:
            with self.log.writing():
                (self.log.directory / REWARD_FILE).write_bytes(reward.source)
        self.gallery = Gallery(self.log, self.processor, self.task, self.cfg)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Continue from the tensors of a checkpoint; the names of `also` stand before a colon."""
        tensors: dict[str, dict[str, Tensor]] = {name: {} for name in ("", *self.also)}
        for key, tensor in checkpoint.optimizer_tensors().items():
            owner, _, name = key.rpartition(":")
            tensors.setdefault(owner, {})[name] = tensor
        if unknown := tensors.keys() - {"", *self.also}:
            raise InputError(f"{checkpoint.directory}: holds {sorted(unknown)[0]}, unknown here")
        self.optimizer.restore(tensors[""])
        for name, other in self.also.items():
            other.restore(tensors[name])

    def _tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides the model. A collective."""
        tensors = self.optimizer.tensors()
        for owner, other in self.also.items():
            tensors |= {f"{owner}:{name}": value for name, value in other.tensors().items()}
        return tensors

    def _resume(self, checkpoint: Checkpoint) -> None:
        if distributed.rank() == 0:
            restore_directory(self.log.directory, checkpoint)
        # The others read what rank 0 has put in order.
        distributed.require_same(checkpoint.directory.name, "checkpoints")
        self.rows = read_run(self.log.directory).rows
        self.done, self.not_finite = checkpoint.step, checkpoint.state["not_finite"]
        steps = f"step {self.done} of {self.cfg.max_steps}"
        print(f"resuming after {steps}: {checkpoint.directory}")

    def __enter__(self) -> "TrainingRun":
        signals.install(distributed.world_size())
        self.sizes = log_sizes(self.log.directory)
        try:
            if not is_evaluated(self.rows, self.done):
                self._evaluate_if_due()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Save the last finished step, whatever ended the run, if the weights still are at it."""
        if error is None:
            signals.remove()
            return
        is_stopped, in_progress, saved = isinstance(error, Stopped), signals.deferred, None
        signals.deferred = True
        can_save = (is_stopped or distributed.world_size() == 1) and not in_progress
        if can_save and (is_stopped or self.done > 0):
            try:
                saved = self._save()
            except Exception as not_saved:  # what ended the run is reported all the same
                print(f"not saved: {not_saved}", file=sys.stderr)
        signals.remove()
        self.log.close()
        if is_stopped:
            where = f"; saved {saved}" if saved is not None else ""
            self._warn(at_end=True)
            if self.log.is_written:
                try_report(self.log.directory)
            print(f"stopped by {error} after step {self.done}{where}")
        if last_model(self.log.directory) is not None:
            flag = f"--resume_from_checkpoint {shlex.quote(str(self.log.directory))}"
            print(f"resume with the same command and {flag}", flush=True)
        if is_stopped:
            raise SystemExit(128 + error.number) from None

    def steps(self) -> Iterator[int]:
        """The steps that are still to be made, each with a fresh clock."""
        for step in range(self.done, self.cfg.max_steps):
            self.log.start_step()
            yield step

    def begin_update(self) -> None:
        """From here until `end_step` the weights belong to no finished step: a signal waits."""
        signals.deferred = True

    def end_step(
        self, metrics: dict[str, float], examples: list[Example], rollout: Rollout | None = None
    ) -> None:
        """Log a step; evaluate, report and save where that is due. A collective.

        Metrics that are not finite are left out: JSON has no such numbers, and curves cannot show
        them. Raises InputError after MAX_NOT_FINITE steps in a row that were not finite.

        Args:
            examples: what all ranks asked. rollout: what all ranks sampled, scored and compared.
        """
        step = self.done + 1
        row = {"step": step}
        if rollout is not None:
            unpaid = None
            if self.cfg.reward is not None:  # which may know nothing of right and wrong
                unpaid = unpaid_parts(rollout, examples, self.task)
            row |= rollout_metrics(rollout, examples, self.task, unpaid)
            records = completion_records(step, examples, rollout, unpaid)
            self.log.append("completions.jsonl", records)
            if self._is_due(step, self.cfg.eval_steps):
                self.gallery.training(step, examples, rollout)
        row |= metrics
        if distributed.world_size() > 1:
            waits = distributed.all_gather(distributed.seconds_waited())
            row |= {f"waiting/rank_{rank}": seconds for rank, seconds in enumerate(waits)}
        self._note_not_finite(row, step, examples)
        row = {name: value for name, value in row.items() if math.isfinite(value)}
        self.rows.append(self.log.step(row))
        self._finish(step)
        self._evaluate_if_due()
        self._warn(at_end=False)
        self._save_if_due()
        if len(self.not_finite) >= MAX_NOT_FINITE:
            raise InputError(
                f"{MAX_NOT_FINITE} steps in a row had a gradient that is not finite, see "
                f"{self.log.directory / 'not_finite.json'}; start a new run, from a checkpoint of "
                "this one if you like, with a lower --learning_rate or --beta, or --dtype float32"
            )
        distributed.barrier()  # a step ends for all ranks at once
        distributed.seconds_waited()  # what they waited for rank 0's files does not count

    def _is_due(self, step: int, every: int) -> bool:
        """Whether what happens every so many steps (0: never), and at the end, happens now."""
        return step == self.cfg.max_steps or (every > 0 and step % every == 0)

    def _finish(self, step: int) -> None:
        """From here on a checkpoint holds this step, and a signal may stop the run."""
        self.done, self.sizes = step, log_sizes(self.log.directory)
        signals.deferred = False
        distributed.barrier()

    def _note_not_finite(self, row: dict[str, float], step: int, examples: list[Example]) -> None:
        """Note the step if a gradient was not finite: its questions, metrics and parameters."""
        if row["steps_skipped_nonfinite"] == 0:
            self.not_finite = []
            return
        metrics = {name: v if math.isfinite(v) else str(v) for name, v in row.items()}
        bad = {"step": step, "questions": [example.id for example in examples]}
        bad |= {"metrics": metrics, "parameters": self.optimizer.not_finite}
        self.not_finite = [*self.not_finite, bad]
        if self.log.is_written:
            path = self.log.directory / "not_finite.json"
            with self.log.writing():
                write_atomically(path, json.dumps(self.not_finite, indent=1))

    def _evaluate_if_due(self) -> None:
        step = self.done
        if not self._is_due(step, self.cfg.eval_steps):
            return
        with self.log.timed("eval"), unsharded(self.model):
            with_interval = step in (0, self.cfg.max_steps)
            about = (self.processor, self.task, self.cfg)
            metrics = held_out_metrics(self.model, *about, with_interval)
            self.gallery.held_out(step, self.model)
        self.rows.append(self.log.write({"step": step} | metrics))
        self.sizes = log_sizes(self.log.directory)
        if step < self.cfg.max_steps and self.log.is_written:  # `close` writes the last one
            with self.log.timed("report"):
                try_report(self.log.directory)

    def _warn(self, at_end: bool) -> None:
        """Say on the console what the report's red lights say, each of them once while it lasts."""
        if at_end or (self.done % WARN_EVERY == 0 and self.done < self.cfg.max_steps):
            warned = set() if at_end else self.warned
            reward = getattr(self.cfg, "reward", None)
            for line in new_warnings(self.rows, self.task.headline, warned, reward):
                self.log.bar.write(line)

    def _save_if_due(self) -> None:
        if self._is_due(self.done, self.cfg.steps_between_saves):
            try:
                self._save()
            except InputError as error:  # a full disk, say: the next one may succeed
                if self.done == self.cfg.max_steps:
                    raise
                print(f"{error}; training continues", file=sys.stderr)

    def _save(self) -> Path:
        """Write a checkpoint of the last finished step, unless it is there. A collective."""
        directory = self.log.directory
        place = directory / f"step_{self.done}"
        state = {"step": self.done, "sizes": self.sizes, "not_finite": self.not_finite}
        state["settings"] = config.to_dict(self.cfg)
        if distributed.all_gather(why_unusable(place) is None)[0]:  # rank 0 decides
            return place
        with unsharded(self.model):
            tensors = self._tensors()
            if self.log.is_written:
                limit = self.cfg.save_total_limit
                save_checkpoint(directory, self.model, self.cfg.model, tensors, state, limit)
        return place

    def close(self) -> dict[str, float]:
        """Say what the run achieved and where it is; returns its last held-out metrics."""
        self.log.close()
        self._warn(at_end=True)
        report = try_report(self.log.directory) if self.log.is_written else None
        evaluations = [row for row in self.rows if f"eval/{self.task.headline}" in row]
        line = rise(evaluations[0], evaluations[-1], self.task.headline)
        seconds = time.time() - self.start_time
        print(f"{line}; {seconds:.0f} s; {last_model(self.log.directory)}")
        if report is not None:
            print(f"report: {report}")
        return evaluations[-1]
