"""The comparison of the field in miniature: base, prompting, SFT, CoT-SFT, GRPO, and both in turn.

    python -m benchmarks.learning.headline                                # every cell; hours on two cores
    python -m benchmarks.learning.headline --tasks cls --shots 1 4 --seeds 0 1 2

A cell is a method on a task at a number of shots with a seed. Its commands are those of the README;
what it gave is kept in `--work_dir`, so a second call goes on where the first stopped. All methods
see the same training images and are judged on the same held-out questions. A training makes the
same number of optimizer steps on as many questions, whatever the method; two stages make twice as
many. Steps and processor seconds stand in the table. "Others" is the mean strict accuracy on tasks
that were not trained, 100 questions each: what was forgotten. "GRPO, loose reward" is the ablation:
paid by the field's loose rules (benchmarks/learning/loose_rewards.py), judged by both.

Rows: mean over seeds with its 95 % interval (Student's t). Nothing here is chosen on `held_out`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import config
from benchmarks.timing import ROOT, machine
from config import BASE_MODEL
from evaluate import EvalConfig
from model.processor import Processor
from model.weights import load_model
from reporting.page.saved_run import read_run
from runtime import console
from runtime.run_directory import last_model, write_atomically
from tasks import load_task
from train_grpo import GRPOConfig
from training.evaluation import evaluate

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
FEW_SHOT = ("cls", "det", "ovd")
OTHERS = ("count", "entail", "vqa", "order")
# What the papers report (Qwen2-VL-2B, per cent), and why it is not the same thing.
PUBLISHED = {
    "cls": "Visual-RFT (arXiv:2503.01785, table 2), mean of four fine-grained sets, base 56.0; SFT "
    "/ RFT at 1 shot 51.7 / 80.3, 2 shots 58.8 / 83.5, 4: 55.6 / 81.9, 8: 60.3 / 85.1, 16: 64.0 / "
    "85.3. Trained and judged by the loose rule (a substring in either direction); single runs.",
    "det": "Visual-RFT, COCO, 8 categories, mAP, base 19.6; SFT / RFT at 1 shot 19.5 / 33.6, "
    "2 shots 21.0 / 41.5, 4: 25.2 / 40.6. Asked only for categories that the base claims to see; "
    "single runs.",
    "ovd": "Visual-RFT, mAP on new categories, base / SFT / RFT: COCO 9.8 / 13.6 / 31.3, LVIS 2.7 "
    "/ 7.6 / 20.7. Asked only for categories that the base claims to see; single runs.",
    "ground": "Visual-RFT, LISA test, mIoU, base / SFT / RFT 26.9 / 28.3 / 37.6. IoU of masks that "
    "SAM makes of the box, so not the IoU of boxes; single runs.",
    "count": "Reason-RFT (arXiv:2503.20752), counting, own distribution / shifted: zero-shot 82.4 "
    "/ 42.7, SFT on answers 96.2 / 51.1, CoT-SFT 85.5 / 49.7, RL alone 98.4 / 58.0, CoT-SFT then "
    "RL 96.8 / 60.0. Single runs.",
}
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


def cells(args) -> Iterator[tuple[str, int, str, int]]:
    """(task, shots, method, seed); prompting alone has no randomness, hence one seed."""
    for task in args.tasks:
        for shots in args.shots if task in FEW_SHOT else (0,):
            for method, scripts in METHODS.items():
                if method not in args.methods:
                    continue
                if method.endswith("loose reward") and task not in LOOSE_REWARD:
                    continue
                for seed in args.seeds if scripts else args.seeds[:1]:
                    yield task, shots, method, seed


def task_flags(task: str, shots: int, method: str, extra: list[str]) -> list[str]:
    flags = ["--task", task, *(["--shots", str(shots)] if shots else []), *extra]
    if method.endswith("loose reward"):
        flags += ["--reward", f"benchmarks/learning/loose_rewards.py:{LOOSE_REWARD[task]}"]
    return flags


def last_evaluation(run: Path) -> dict[str, float]:
    """Held-out and OOD metrics of the end of a run."""
    rows = read_run(run).rows
    judged = [row for row in rows if any(name.startswith("eval/") for name in row)]
    return {k.removeprefix("eval/"): v for k, v in judged[-1].items() if k.startswith("eval/")}


def judge(model_dir: Path, task: str, mode: str, flags: list[str], splits=("held_out", "ood")):
    """Greedy metrics of a checkpoint, as a run with these flags reports them."""
    given = config.given_flags(GRPOConfig, ["--task", task, *flags], "")
    known = {f.name for f in fields(EvalConfig)}
    given = {name: value for name, value in given.items() if name in known}
    cfg = EvalConfig(**given | {"prompt_mode": mode, "model": model_dir})
    processor, model = Processor(cfg.model, cfg.max_pixels), load_model(cfg.model)
    loaded, found = load_task(cfg, processor), {}
    for split in splits:
        metrics, _ = evaluate(
            model, processor, loaded, loaded.splits[split], loaded.max_completion_length
        )
        prefix = "" if split == "held_out" else "ood_"
        found |= {prefix + name: value for name, value in metrics.items()}
    return found


def run_cell(task: str, shots: int, method: str, seed: int, args) -> dict:
    """Run the scripts of a cell, judge the outcome, and measure what else was lost."""
    name = f"{task}-{shots}-{method}-{seed}".replace(" ", "_").replace(",", "")
    kept = args.work_dir / f"{name}.json"
    made_with = {"flags": args.flags, "others_size": args.others_size}
    if kept.is_file():
        result = json.loads(kept.read_text())
        if {name: result[name] for name in made_with} == made_with:
            return result
    began, cpu_began, model_dir, mode = time.time(), children_seconds(), BASE_MODEL, "think"
    steps, flags = 0, task_flags(task, shots, method, args.flags)
    for number, script in enumerate(METHODS[method]):
        run = args.work_dir / f"{name}.{number}.{int(began)}"
        command = [sys.executable, *script, *flags]
        command += ["--model", str(model_dir), "--seed", str(seed), "--output_dir", str(run)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
        model_dir = last_model(run)
        cfg = config.load_run(run / "config.json")
        mode, steps = cfg.prompt_mode, steps + cfg.max_steps
        found = last_evaluation(run)
    seconds, cpu_seconds = time.time() - began, children_seconds() - cpu_began
    if not METHODS[method]:
        mode = PROMPTS[method.split(", ")[1]]
        found = judge(model_dir, task, mode, flags[2:])
    others = [other for other in OTHERS if other != task]
    size = ["--held_out_size", str(args.others_size)]
    lost = [judge(model_dir, other, mode, size, ("held_out",))["strict"] for other in others]
    result = {
        "task": task,
        "shots": shots,
        "method": method,
        "seed": seed,
        "steps": steps,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "metrics": {k: round(v, 4) for k, v in found.items() if isinstance(v, float)},
        "others": round(statistics.mean(lost), 4),
        "machine": machine(),
    }
    result |= made_with
    write_atomically(kept, json.dumps(result) + "\n")
    return result


def children_seconds() -> float:
    """Processor seconds of all finished commands: less disturbed by neighbours than a clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def interval(values: list[float]) -> str:
    """Mean and half width of Student's 95 % interval, in per cent; a single value stands alone."""
    mean = f"{100 * statistics.mean(values):.1f}"
    if len(values) < 2:
        return mean
    half = T_95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {100 * half:.1f}"


def table(results: list[dict], headline: str) -> list[str]:
    """A row per task, shots and method."""
    names = [headline, "strict", "loose", f"ood_{headline}"]
    rows = ["| task | shots | method | " + " | ".join(dict.fromkeys(names))]
    rows[0] += " | others | steps | cpu s |"
    rows.append("|---" * (len(dict.fromkeys(names)) + 6) + "|")
    for key in dict.fromkeys((r["task"], r["shots"], r["method"]) for r in results):
        own = [r for r in results if (r["task"], r["shots"], r["method"]) == key]
        cells = [
            interval([r["metrics"][name] for r in own]) if name in own[0]["metrics"] else "-"
            for name in dict.fromkeys(names)
        ]
        others = interval([r["others"] for r in own])
        seconds = f"{statistics.mean(r['cpu_seconds'] for r in own):.0f}"
        row = [key[0], str(key[1] or "-"), key[2], *cells, others, str(own[0]["steps"]), seconds]
        rows.append("| " + " | ".join(row) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["cls", "det", "ovd", "ground", "count"])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--others_size", type=int, default=100, help="questions per other task")
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "headline")
    parser.add_argument("flags", nargs="*", help="after --: flags of both training scripts")
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    todo, results = list(cells(args)), []
    for number, cell in enumerate(todo, start=1):
        results.append(run_cell(*cell, args))
        print(f"{number}/{len(todo)} {results[-1]}", file=sys.stderr, flush=True)
    print(f"{machine()}; seeds {args.seeds}; flags {args.flags}")
    for task in args.tasks:
        headline = {"det": "mAP", "ovd": "mAP", "ground": "iou"}.get(task, "strict")
        print("\n".join(table([r for r in results if r["task"] == task], headline)))
        print(f"Published: {PUBLISHED.get(task, '-')}", flush=True)
    print(json.dumps({"machine": machine(), "cells": results}))


if __name__ == "__main__":
    console.run(main)
