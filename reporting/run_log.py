"""What a run leaves: config.json, run.json, metrics.jsonl, completions.jsonl, the progress bar.

Names are TRL's, so that curves can be laid side by side. Next: reporting/gallery.py.
"""

import fcntl
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import config
from answers import parse_answer
from config import TrainConfig
from data.files import SkipLog
from model.vlm import VLM
from reporting.page.verdict import RIGHT
from reporting.trackers import Tracker
from runtime import distributed
from runtime.errors import InputError
from sample import Rollout
from tasks import Example, Task

PACKAGES = ("torch", "transformers", "triton", "safetensors", "pillow", "numpy")


def rollout_metrics(rollout: Rollout, rewards: Tensor, parts: list[dict]) -> dict[str, float]:
    """What is logged about completions, under TRL's names."""
    lengths = torch.tensor([len(ids) for ids in rollout.ids], dtype=torch.float32)
    is_flat = (rewards == rewards[:, :1]).all(1)  # (N,)
    metrics = {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std().item(),
        "reward_std_group": rewards.std(dim=1).mean().item(),
        "frac_reward_zero_std": is_flat.float().mean().item(),
        "completions/mean_length": lengths.mean().item(),
        "completions/min_length": lengths.min().item(),
        "completions/max_length": lengths.max().item(),
        "completions/clipped_ratio": rollout.finish.count("length") / len(rollout.finish),
        "completions/no_answer_ratio": sum(parse_answer(text) is None for text in rollout.texts)
        / len(rollout.texts),
        "completion_tokens": lengths.sum().item(),
    }
    for name in parts[0]:
        values = torch.tensor([p[name] for p in parts])
        metrics[f"rewards/{name}/mean"] = values.mean().item()
        metrics[f"rewards/{name}/std"] = values.std().item()
        if name in RIGHT:  # flat since there is nothing left to learn, or since nothing succeeds?
            grid = values.view(rewards.shape)  # (N, G)
            for what, value in (("right", 1.0), ("wrong", 0.0)):
                is_all = is_flat & (grid == value).all(1)
                metrics[f"frac_groups_all_{what}"] = is_all.float().mean().item()
    return metrics


def completion_records(step, examples, rollout, rewards, parts, advantages) -> list[dict]:
    """One record per completion for completions.jsonl."""
    G = rewards.shape[1]
    return [
        {
            "step": step,
            "id": examples[b // G].id,
            "target": examples[b // G].target,
            "completion": text,
            "reward": rewards[b // G, b % G].item(),
            "parts": parts[b],
            "advantage": round(advantages[b // G, b % G].item(), 4),
            "length": len(rollout.ids[b]),
            "finish": rollout.finish[b],
        }
        for b, text in enumerate(rollout.texts)
    ]


def check_output_dir(directory: Path | None) -> None:
    """Raise InputError for a place where a run would mix with something that is there already."""
    try:
        if directory is None or not directory.exists():
            return
        if not directory.is_dir():
            raise InputError(f"--output_dir {directory}: is a file; choose another name")
        if any(directory.iterdir()):
            raise InputError(f"--output_dir {directory}: not empty; choose another name")
    except OSError as error:
        raise InputError(f"--output_dir: cannot be used ({error})") from None


def data_hash(examples: list[Example]) -> str:
    """A fingerprint of all that examples are made of: text, frames, reasoning and pictures.

    Raises InputError for a picture that cannot be read any more.
    """
    digest = hashlib.sha256()
    for e in examples:
        text = repr((e.id, e.question, e.target, e.frame, e.reasoning))
        digest.update(text.encode("utf-8", "replace"))
        for image in e.images:
            if isinstance(image, Image.Image):
                digest.update(repr((image.mode, image.size)).encode() + image.tobytes())
                continue
            try:
                digest.update(Path(image).read_bytes())
            except OSError as error:
                raise InputError(f"{image}: cannot be read ({error})") from None
    return digest.hexdigest()[:16]


def about_run(cfg: TrainConfig, task: Task, model: VLM) -> dict:
    """What else one must know to repeat a run: run.json."""
    if cfg.max_completion_length == task.max_completion_length:  # filled in by `prepare`
        cfg = replace(cfg, max_completion_length=None)
    return {
        "command": config.command(cfg, distributed.world_size()),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _commit(),
        "headline": task.headline,
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": _device_name(model.device),
        "versions": {"python": platform.python_version()} | _versions(),
        "data": {
            name: {"examples": len(examples), "sha256": data_hash(examples)}
            for name, examples in ({"train": task.train} | task.splits).items()
        },
        "skipped": list(SkipLog.reported),
    }


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads of {os.cpu_count()}"


def _peak_memory_gb() -> float:
    """The most memory held so far: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def lock_directory(directory: Path) -> TextIO:
    """Keep other runs out of a directory until the file that is returned is closed, or we die."""
    lock = (directory / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InputError(f"--output_dir {directory}: another run is writing there") from None
    return lock


class RunLog:
    """What a run leaves: config.json, run.json, metrics.jsonl, completions.jsonl; and the bar."""

    def __init__(self, cfg: TrainConfig, about: dict, done: int | None = None):
        """A new run's directory, or one where `done` steps are made already (a resumed run)."""
        name = f"{cfg.task}-{datetime.now():%Y%m%d-%H%M%S}"
        directory = str(cfg.output_dir or Path("runs") / name)
        self.directory = Path(distributed.all_gather(directory)[0])  # clocks differ
        self.is_written = distributed.rank() == 0  # the other ranks say and log nothing
        if done is None and self.is_written:
            check_output_dir(self.directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.lock = lock_directory(self.directory) if self.is_written else None
            if done is None and self.is_written:
                config.save(cfg, self.directory / "config.json")
                text = json.dumps(about, indent=2) + "\n"
                (self.directory / "run.json").write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"--output_dir {self.directory}: cannot be written ({error})"
            ) from None
        self.seconds: dict[str, float] = {}
        self.has_lost = False
        told_to = cfg.report_to if self.is_written else "none"
        self.tracker = Tracker(told_to, self.directory, config.to_dict(cfg))
        self.bar = tqdm(
            total=cfg.max_steps,
            initial=done or 0,
            disable=None if self.is_written else True,  # None: where there is no terminal
            unit="step",
            dynamic_ncols=True,
        )

    @contextmanager
    def timed(self, phase: str):
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    @contextmanager
    def writing(self):
        """Training is worth more than its logs: a full disk is told once and does not end it."""
        try:
            yield
        except OSError as error:
            if not self.has_lost:
                print(f"{self.directory}: a log cannot be written ({error})", file=sys.stderr)
            self.has_lost = True

    def append(self, file: str, rows: list[dict]) -> None:
        if not self.is_written:
            return
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
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

    def metrics(self, row: dict) -> None:
        """Write one row of metrics.jsonl, with the seconds of each phase since the last one."""
        row |= {f"seconds/{phase}": round(s, 4) for phase, s in self.seconds.items()}
        if "completion_tokens" in row and "rollout" in self.seconds:  # not where a run goes on
            row["tokens_per_second"] = row["completion_tokens"] / self.seconds["rollout"]
        if row["step"] > 0:
            between = ("eval", "report")  # steps
            row["step_time"] = sum(s for name, s in self.seconds.items() if name not in between)
            row["memory_gb"] = round(_peak_memory_gb(), 3)
            self._show(row)
        self.seconds = {}
        self.append("metrics.jsonl", [row])
        self.tracker.log(row)

    def close(self) -> None:
        self.bar.close()
        self.tracker.close()
        if self.lock is not None:
            self.lock.close()

    def _show(self, row: dict) -> None:
        if "reward" in row:
            shown = {
                "reward": f"{row['reward']:.2f}",
                **{
                    name.split("/")[1]: f"{value:.2f}"
                    for name, value in row.items()
                    if name.startswith("rewards/") and name.endswith("/mean")
                },
                "length": f"{row['completions/mean_length']:.0f}",
            }
            if "tokens_per_second" in row:
                shown["tok/s"] = f"{row['tokens_per_second']:.0f}"
        else:
            shown = {n: f"{row[n]:.3f}" for n in ("loss", "grad_norm") if n in row}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        is_shown = row["step"] % 10 == 0 or row["step"] in (1, self.bar.total)
        if self.bar.disable and is_shown:  # no terminal: plain lines instead
            print(f"step {row['step']}: " + ", ".join(f"{k} {v}" for k, v in shown.items()))
