"""What a run on one task leaves of the others: all weights trained, or a LoRA adapter.

    python -m benchmarks.learning.forgetting --seeds 0 1 2 3 4

Trains `cls` from the bundled base, both ways, and evaluates the other tasks with the base and with
each result: the headline metric of 200 held-out questions. Prints a row per run and medians.
"""

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.learning.runs import evaluated, train
from benchmarks.timing import Table, machine
from config import BASE_MODEL
from runtime.run_directory import last_model

WAYS = {
    "all weights": [],
    "LoRA 16": ["--lora_rank", "16", "--learning_rate", "5e-4"],
}
TASKS = ("count", "vqa", "entail", "order", "ground")


def one_run(way: str, seed: int) -> dict[str, float]:
    """Train `cls` and evaluate everything else."""
    with tempfile.TemporaryDirectory() as work:
        run = Path(work) / "run"
        words = ["--task", "cls", "--shots", "1", "--seed", str(seed), *WAYS[way]]
        outcome = train(run, words, threads=1)
        last = last_model(run)
        flags = ["--adapter", str(last)] if last.name == "adapter" else ["--model", str(last)]
        others = {task: evaluated(["--task", task, *flags])["held_out"] for task in TASKS}
        return {"cls": 100 * outcome.final["strict"]} | others


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args(argv)
    table, runs = Table(), []
    base = {task: evaluated(["--task", task])["held_out"] for task in ("cls", *TASKS)}
    table.add(trained="nothing", seed="", **base)
    cases = [(way, seed) for seed in args.seeds for way in WAYS]
    with ThreadPoolExecutor(args.jobs) as pool:
        for (way, seed), found in zip(cases, pool.map(lambda c: one_run(*c), cases), strict=True):
            runs.append({"trained": way, "seed": seed} | found)
            table.add(**runs[-1])
    for way in WAYS:
        medians = {
            task: round(statistics.median(r[task] for r in runs if r["trained"] == way), 1)
            for task in ("cls", *TASKS)
        }
        print(f"{way}: medians {medians}")
    print(json.dumps({"machine": machine(), "base": str(BASE_MODEL.name), "runs": runs}))


if __name__ == "__main__":
    main()
