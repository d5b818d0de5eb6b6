"""The comparison of the field in miniature: base, prompting, SFT, CoT-SFT, GRPO, and both in turn.

    python -m benchmarks.learning.headline                        # every cell; hours on two cores
    python -m benchmarks.learning.headline --tasks cls --shots 1 4 --seeds 0 1 2

A cell is a method on a task at a number of shots with a seed. Its commands are those of the README;
its result is saved in `--work_dir`, so that a second call resumes where the first stopped. All
methods see the same training images and are evaluated on the same held-out questions. A training
makes the same number of optimizer steps on as many questions, whatever the method; two stages make
twice as many. "Others" is the mean strict accuracy on tasks that were not trained, 100 questions
each: what was forgotten. "GRPO, loose reward" is the ablation: paid by the field's loose rules
(benchmarks/learning/loose_rewards.py), evaluated by both.

Rows: mean over seeds with its 95 % interval (Student's t). Nothing here is chosen on `held_out`.
What the papers report, and why it is not the same thing, is in benchmarks/RESULTS.md.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from scipy.stats import t as student_t

import config
from benchmarks.learning.runs import metrics_of, train
from benchmarks.timing import ROOT, Table, machine
from config import BASE_MODEL
from model.processor import Processor
from model.weights import load_model
from runtime import console
from runtime.run_directory import last_model, write_atomically
from tasks import load_task, reads
from train_grpo import GRPOConfig
from training.evaluation import held_out_metrics

# Method -> the scripts it runs, each from the checkpoint of the one before.
METHODS: dict[str, list[list[str]]] = {
    "base, direct prompt": [],
    "base, think prompt": [],
    "base, four-step prompt": [],
    "SFT on answers": [["train_sft.py"]],
    "CoT-SFT": [["train_sft.py", "--cot"]],
    "CoT-SFT, four steps": [["train_sft.py", "--cot", "--prompt_mode", "steps"]],
    "GRPO": [["train_grpo.py"]],
    "GRPO without thinking": [["train_grpo.py", "--prompt_mode", "direct"]],
    "CoT-SFT, then GRPO": [["train_sft.py", "--cot"], ["train_grpo.py"]],
    "GRPO, loose reward": [["train_grpo.py"]],
}
LOOSE_REWARD = {"cls": "name", "count": "number", "entail": "yes_no"}  # of loose_rewards.py
PROMPTS = {"direct prompt": "direct", "think prompt": "think", "four-step prompt": "steps"}
OTHERS = ("count", "entail", "vqa", "order")


def cells(args) -> Iterator[tuple[str, int, str, int]]:
    """(task, shots, method, seed); prompting alone has no randomness, hence one seed."""
    for task in args.tasks:
        for shots in args.shots if reads(task, "shots") else (0,):
            for method in args.methods:
                if method.endswith("loose reward") and task not in LOOSE_REWARD:
                    continue
                for seed in args.seeds if METHODS[method] else args.seeds[:1]:
                    yield task, shots, method, seed


def _task_flags(task: str, shots: int, method: str, more: list[str]) -> list[str]:
    flags = ["--task", task, *(["--shots", str(shots)] if shots else []), *more]
    if method.endswith("loose reward"):
        flags += ["--reward", f"benchmarks/learning/loose_rewards.py:{LOOSE_REWARD[task]}"]
    return flags


def greedy_metrics(
    model_dir: Path, mode: str, flags: list[str], splits=("held_out", "ood")
) -> dict[str, float]:
    """Metrics of a checkpoint, as a run with these flags reports them."""
    cfg = GRPOConfig(**config.given_flags(GRPOConfig, flags, ""))
    cfg = replace(cfg, prompt_mode=mode, model=model_dir)
    processor, model = Processor(cfg.model, cfg.max_pixels), load_model(cfg.model)
    task = load_task(cfg, processor)
    task = replace(task, splits={name: task.splits[name] for name in splits})
    return metrics_of(held_out_metrics(model, processor, task, cfg, with_interval=False))


def run_cell(task: str, shots: int, method: str, seed: int, args) -> dict:
    """Run the scripts of a cell, evaluate the outcome, and measure what was forgotten."""
    name = f"{task}-{shots}-{method}-{seed}".replace(" ", "_").replace(",", "")
    path = args.work_dir / f"{name}.json"
    settings = {"flags": args.flags, "others_size": args.others_size}
    if path.is_file():
        cell = json.loads(path.read_text())
        if {flag: cell[flag] for flag in settings} == settings:
            return cell
    start, cpu_start, steps = time.time(), children_seconds(), 0
    model_dir, mode, flags = BASE_MODEL, "think", _task_flags(task, shots, method, args.flags)
    for number, script in enumerate(METHODS[method]):
        out = args.work_dir / f"{name}.{number}.{int(start)}"
        outcome = train(out, [*flags, "--model", str(model_dir), "--seed", str(seed)], script)
        model_dir, metrics = last_model(out), outcome.final
        mode = outcome.run.settings["prompt_mode"]
        steps += outcome.run.settings["max_steps"]
    seconds, cpu_seconds = time.time() - start, children_seconds() - cpu_start
    if not METHODS[method]:
        mode = PROMPTS[method.split(", ")[1]]
        metrics = greedy_metrics(model_dir, mode, flags)
    others = []
    for other in (name for name in OTHERS if name != task):
        words = ["--task", other, "--held_out_size", str(args.others_size), "--train_size", "1"]
        others.append(greedy_metrics(model_dir, mode, words, ("held_out",))["strict"])
    cell = {"task": task, "shots": shots, "method": method, "seed": seed, "steps": steps}
    cell |= {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}
    cell["metrics"] = {k: round(v, 4) for k, v in metrics.items() if isinstance(v, float)}
    cell |= {"others": round(statistics.mean(others), 4), "machine": machine()} | settings
    write_atomically(path, json.dumps(cell) + "\n")
    return cell


def children_seconds() -> float:
    """Processor seconds of all finished commands: less disturbed by neighbours than a clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def interval(values: list[float]) -> str:
    """Mean and half width of Student's 95 % interval, in per cent; a single value stands alone."""
    mean, n = f"{100 * statistics.mean(values):.1f}", len(values)
    if n < 2:
        return mean
    half = student_t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5
    return f"{mean} ± {100 * half:.1f}"


def print_table(task: str, results: list[dict]) -> None:
    """A row per shots and method."""
    headline = {"det": "mAP", "ovd": "mAP", "ground": "iou"}.get(task, "strict")
    names = list(dict.fromkeys((headline, "strict", "loose", f"ood_{headline}")))
    table = Table()
    for shots, method in dict.fromkeys((r["shots"], r["method"]) for r in results):
        cells = [r for r in results if (r["shots"], r["method"]) == (shots, method)]
        metrics = {
            name: interval([cell["metrics"][name] for cell in cells])
            for name in names
            if name in cells[0]["metrics"]
        }
        table.add(
            task=task,
            shots=shots or None,
            method=method,
            **dict.fromkeys(names) | metrics,
            others=interval([cell["others"] for cell in cells]),
            steps=cells[0]["steps"],
            cpu_s=round(statistics.mean(cell["cpu_seconds"] for cell in cells)),
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["cls", "det", "ovd", "ground", "count"])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--others_size", type=int, default=100, help="questions per other task")
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "headline")
    parser.add_argument("flags", nargs="*", help="after --: flags of both training scripts")
    args = parser.parse_args(argv)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    todo, results = list(cells(args)), []
    for number, cell in enumerate(todo, start=1):
        results.append(run_cell(*cell, args))
        print(f"{number}/{len(todo)} {results[-1]}", file=sys.stderr, flush=True)
    print(f"{machine()}; seeds {args.seeds}; flags {args.flags}")
    for task in args.tasks:
        print_table(task, [cell for cell in results if cell["task"] == task])
    print(json.dumps({"machine": machine(), "cells": results}))


if __name__ == "__main__":
    console.run(main)
