"""What a run leaves behind: config.json, metrics.jsonl, completions.jsonl, and the progress bar.

Names are TRL's, so that curves can be laid side by side.
"""

import json
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import config
from config import TrainConfig
from model.errors import InputError
from sample import Rollout


def rollout_metrics(rewards: Tensor, parts: list[dict], rollout: Rollout) -> dict[str, float]:
    """What is logged about completions, under TRL's names."""
    lengths = torch.tensor([len(ids) for ids in rollout.ids], dtype=torch.float32)
    metrics = {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std().item(),
        "reward_std_group": rewards.std(dim=1).mean().item(),
        "frac_reward_zero_std": (rewards == rewards[:, :1]).all(1).float().mean().item(),
        "completions/mean_length": lengths.mean().item(),
        "completions/min_length": lengths.min().item(),
        "completions/max_length": lengths.max().item(),
        "completions/clipped_ratio": rollout.finish.count("length") / len(rollout.finish),
        "completion_tokens": lengths.sum().item(),
    }
    for name in parts[0]:
        values = torch.tensor([p[name] for p in parts])
        metrics[f"rewards/{name}/mean"] = values.mean().item()
        metrics[f"rewards/{name}/std"] = values.std().item()
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


class RunLog:
    """What a run leaves: config.json, metrics.jsonl, completions.jsonl; and the progress bar."""

    def __init__(self, cfg: TrainConfig):
        name = f"{cfg.task}-{datetime.now():%Y%m%d-%H%M%S}"
        self.directory = cfg.output_dir or Path("runs") / name
        check_output_dir(self.directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            config.save(cfg, self.directory / "config.json")
        except OSError as error:
            raise InputError(
                f"--output_dir {self.directory}: cannot be written ({error})"
            ) from None
        self.seconds: dict[str, float] = {}
        self.bar = tqdm(total=cfg.max_steps, disable=None, unit="step", dynamic_ncols=True)

    @contextmanager
    def timed(self, phase: str):
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def append(self, file: str, rows: list[dict]) -> None:
        with (self.directory / file).open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def metrics(self, row: dict) -> None:
        """Write one row of metrics.jsonl, with the seconds of each phase since the last one."""
        row |= {f"seconds/{phase}": round(s, 4) for phase, s in self.seconds.items()}
        if "completion_tokens" in row:
            row["tokens_per_second"] = row["completion_tokens"] / self.seconds["rollout"]
        if row["step"] > 0:
            row["step_time"] = sum(self.seconds.values()) - self.seconds.get("eval", 0.0)
            self._show(row)
        self.seconds = {}
        self.append("metrics.jsonl", [row])

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
                "tok/s": f"{row['tokens_per_second']:.0f}",
            }
        else:
            shown = {"loss": f"{row['loss']:.3f}", "grad_norm": f"{row['grad_norm']:.2f}"}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        is_shown = row["step"] % 10 == 0 or row["step"] in (1, self.bar.total)
        if self.bar.disable and is_shown:  # no terminal: plain lines instead
            print(f"step {row['step']}: " + ", ".join(f"{k} {v}" for k, v in shown.items()))
