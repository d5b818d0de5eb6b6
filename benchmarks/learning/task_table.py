"""Every task from the embedded base: how far its metric rises, over seeds, with intervals.

    python -m benchmarks.learning.task_table                                   # all tasks but cls, seeds 0-2
    python -m benchmarks.learning.task_table --tasks det ovd --seeds 0 -- --max_steps 300

Everything after `--` goes to train_grpo.py. Each run is a fresh process on `--threads` cores, and
`--jobs` of them run at a time; seconds are those of the whole command. Prints a row per run as soon
as it is there, then medians and a JSON line per task. Intervals: 95 %, Wilson for shares, bootstrap
over the questions for mAP and mean IoU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.timing import ROOT, machine

TASKS = "det ovd ground count measure change vqa entail order".split()
HEADLINE = {"det": "mAP", "ovd": "mAP", "ground": "iou"}  # strict accuracy for the others


def one_run(task: str, seed: int, threads: int, flags: list[str]) -> dict:
    """Train in a fresh process; returns the first and last evaluation and the seconds it took."""
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        command = [sys.executable, "train_grpo.py", "--task", task, "--seed", str(seed)]
        command += ["--output_dir", str(run), *flags]
        start = time.time()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
        )
        seconds = time.time() - start
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} exited with {done.returncode}: {done.stderr}")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evals = [row for row in rows if "eval/strict" in row]
    first, last = (
        {k.removeprefix("eval/"): v for k, v in row.items() if k.startswith("eval/")}
        for row in (evals[0], evals[-1])
    )
    return {"task": task, "seed": seed, "seconds": round(seconds), "first": first, "last": last}


def table_row(run: dict) -> str:
    name = HEADLINE.get(run["task"], "strict")
    first, last = run["first"], run["last"]

    def rise(key: str) -> str:
        return f"{first[key]:.1%} -> {last[key]:.1%}" if key in first else "-"

    intervals = [f"[{e[f'{name}_low']:.1%}, {e[f'{name}_high']:.1%}]" for e in (first, last)]
    return (
        f"| {run['task']} | {name} | {run['seed']} | {first[name]:.1%} {intervals[0]} -> "
        f"{last[name]:.1%} {intervals[1]} | {rise('ood_' + name)} | {rise('strict')} | "
        f"{rise('loose')} | {run['seconds']} |"
    )


def median_line(task: str, runs: list[dict]) -> str:
    name = HEADLINE.get(task, "strict")

    def middle(when: str, key: str) -> float:
        return statistics.median(run[when][key] for run in runs)

    base, final = middle("first", name), middle("last", name)
    is_clear = middle("last", f"{name}_low") > middle("first", f"{name}_high")
    return (
        f"{task}: median {name} {base:.1%} -> {final:.1%} ({final / max(base, 1e-9):.1f} times), "
        f"ood {middle('first', 'ood_' + name):.1%} -> {middle('last', 'ood_' + name):.1%}; "
        f"intervals {'do not overlap' if is_clear else 'OVERLAP'}; "
        f"{statistics.median(run['seconds'] for run in runs):.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("flags", nargs="*", help="after --: flags of train_grpo.py")
    args = parser.parse_args()
    print(
        f"train_grpo.py --task TASK {' '.join(args.flags)}; {machine()}, {args.jobs} at a time on "
        f"{args.threads}"
    )
    print("| task | metric | seed | held out: base -> final (95 %) | ood | strict | loose | s |")
    print("|---|---|---|---|---|---|---|---|")
    wanted = [(task, seed) for seed in args.seeds for task in args.tasks]
    runs: list[dict] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for run in pool.map(lambda one: one_run(*one, args.threads, args.flags), wanted):
            runs.append(run)
            print(table_row(run), flush=True)
    for task in args.tasks:
        print(median_line(task, [run for run in runs if run["task"] == task]))
    print(json.dumps({"machine": machine(), "flags": args.flags, "runs": runs}))


if __name__ == "__main__":
    main()
