"""What a run writes while it runs: config.json, run.json, the two .jsonl logs, the progress bar.

Metrics have TRL's names, so that curves can be compared. Next: reporting/gallery.py.
"""

import json
import os
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

import config
from config import TrainConfig
from reporting.trackers import Tracker
from runtime import distributed
from runtime.errors import InputError, json_line
from runtime.run_directory import (
    check_output_dir,
    lock_directory,
    new_run_directory,
    write_atomically,
)

BETWEEN_STEPS = ("eval", "report")  # phases that are no part of a step's time


def peak_memory_gb() -> float:
    """The most memory held so far: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class RunLog:
    """The logs of a run. Rank 0 writes; the other ranks keep time only.

    Args:
        about: the content of run.json. resumed_at: the step that the run is resumed after; then
            `lock` is held on its directory already.
    """

    def __init__(self, cfg: TrainConfig, about: dict, resumed_at: int | None = None, lock=None):
        self.lock, self.has_failed, self.is_written = lock, False, distributed.rank() == 0
        directory = cfg.output_dir
        if directory is None and self.is_written:
            try:
                directory = new_run_directory(cfg.task)
            except OSError as error:
                raise InputError(f"runs: cannot be written ({error}); give --output_dir") from None
        self.directory = Path(distributed.all_gather(str(directory))[0])
        if self.is_written:
            self._open(cfg, about, resumed_at)
        self.seconds: dict[str, float] = defaultdict(float)  # by phase, of the row to come
        self.lap_start = time.perf_counter()
        tracker = cfg.report_to if self.is_written else "none"
        self.tracker = Tracker(tracker, self.directory, config.to_dict(cfg))
        self.bar = tqdm(
            total=cfg.max_steps,
            initial=resumed_at or 0,
            disable=None if self.is_written else True,  # None: where there is no terminal
            unit="step",
            dynamic_ncols=True,
        )

    def _open(self, cfg: TrainConfig, about: dict, resumed_at: int | None) -> None:
        try:
            if resumed_at is None:
                check_output_dir(self.directory)
                self.directory.mkdir(parents=True, exist_ok=True)
                self.lock = lock_directory(self.directory)
                write_atomically(self.directory / "run.json", json.dumps(about, indent=2) + "\n")
            else:
                self._note_resumption(cfg, resumed_at)
            config.save(cfg, self.directory / "config.json")
        except OSError as error:
            where = f"--output_dir {self.directory}"
            raise InputError(f"{where}: cannot be written ({error})") from None

    def _note_resumption(self, cfg: TrainConfig, resumed_at: int) -> None:
        """Note in run.json that a run is resumed, and with which command if `--max_steps` grows."""
        path = self.directory / "run.json"
        if not path.is_file():
            return
        about = config.read_settings(path)
        before = about.get("resumed_after")
        before = [step for step in before if step < resumed_at] if isinstance(before, list) else []
        about["resumed_after"] = [*before, resumed_at]
        if cfg.max_steps > config.read_settings(self.directory / "config.json")["max_steps"]:
            first = str(about.get("command"))
            more = f"{first.split(' --task')[0]} --resume_from_checkpoint latest"
            about["command"] = f"{first} && {more} --max_steps {cfg.max_steps}"
        write_atomically(path, json.dumps(about, indent=2) + "\n")

    def start_step(self) -> None:
        """Start the first lap of a step."""
        self.lap_start = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Count the time since the last lap for a phase of the step."""
        now = time.perf_counter()
        self.seconds[phase] += now - self.lap_start
        self.lap_start = now

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time inside for a phase between steps."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Training is worth more than its logs: a full disk is reported once and ends nothing."""
        try:
            yield
        except OSError as error:
            if not self.has_failed:
                print(f"{self.directory}: a log cannot be written ({error})", file=sys.stderr)
            self.has_failed = True

    def append(self, file: str, rows: list[dict]) -> None:
        """Append rows to a .jsonl file: all of them, or none where the disk is full."""
        if not self.is_written:
            return
        text = "".join(map(json_line, rows))
        path = self.directory / file
        with self.writing():
            size = path.stat().st_size if path.is_file() else 0
            try:
                with path.open("a", encoding="utf-8") as out:
                    out.write(text)
            except OSError:
                if path.is_file():
                    os.truncate(path, size)  # no half row in the middle of a log
                raise

    def step(self, row: dict) -> dict:
        """Write the row of a step, with the seconds of its phases; returns it."""
        if "completion_tokens" in row:
            row["tokens_per_second"] = row["completion_tokens"] / self.seconds["rollout"]
        row["step_time"] = sum(s for name, s in self.seconds.items() if name not in BETWEEN_STEPS)
        row["memory_gb"] = round(peak_memory_gb(), 3)
        self._show(row)
        return self.write(row)

    def write(self, row: dict) -> dict:
        """Write a row with the seconds of the phases since the last one; returns it."""
        row |= {f"seconds/{phase}": round(s, 4) for phase, s in self.seconds.items()}
        self.seconds.clear()
        self.append("metrics.jsonl", [row])
        self.tracker.log(row)
        return row

    def close(self) -> None:
        """Close the progress bar and the tracker, and release the directory."""
        self.bar.close()
        self.tracker.close()
        if self.lock is not None:
            self.lock.close()

    def _show(self, row: dict) -> None:
        """Advance the progress bar; without a terminal print every tenth step instead."""
        numbers = {name: f"{row[name]:.3f}" for name in ("loss", "grad_norm") if name in row}
        if "reward" in row:
            means = [name for name in row if re.fullmatch("rewards/.*/mean", name)]
            numbers = {"reward": f"{row['reward']:.2f}"}
            numbers |= {name.split("/")[1]: f"{row[name]:.2f}" for name in means}
            unpaid = [name for name in row if re.fullmatch("task/.*/mean", name)]
            numbers |= {f"unpaid {name.split('/')[1]}": f"{row[name]:.2f}" for name in unpaid}
            numbers["length"] = f"{row['completions/mean_length']:.0f}"
            numbers["tok/s"] = f"{row['tokens_per_second']:.0f}"
        self.bar.set_postfix(numbers, refresh=False)
        self.bar.update()
        if self.bar.disable and (row["step"] % 10 == 0 or row["step"] in (1, self.bar.total)):
            print(f"step {row['step']}: " + ", ".join(f"{k} {v}" for k, v in numbers.items()))
