"""The algorithms of docs/algorithms.md side by side: the same questions, the same sampled tokens.

    python -m benchmarks.learning.algorithms                                  # nine, three tasks
    python -m benchmarks.learning.algorithms --tasks count --only GRPO PPO --seeds 0 1

Every algorithm is the row of that table, or train_ppo.py; nothing is tuned to it. A run is a fresh
process, and its result is appended to `--out` as soon as it is there: started again, the command
goes on where it stopped. Intervals are Student's, 95 %, over the seeds.
"""

import argparse
import json
import re
import shlex
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.learning.headline import interval
from benchmarks.learning.runs import train
from benchmarks.timing import ROOT, Table, machine

PPO = {"PPO": ("train_ppo.py", [])}


def algorithms() -> dict[str, tuple[str, list[str]]]:
    """Name -> (script, flags), from the table of docs/algorithms.md; and PPO."""
    text = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| `(--[^`]+)` \|", text, re.MULTILINE)
    named = {name.strip(): ("train_grpo.py", shlex.split(flags)) for name, flags in rows}
    return named | PPO


def one_run(name: str, task: str, seed: int, flags: list[str], threads: int) -> dict:
    """Train once; returns what is compared."""
    script, own = algorithms()[name]
    with tempfile.TemporaryDirectory() as work:
        words = ["--task", task, "--seed", str(seed), *own, *flags]
        result = train(Path(work) / "run", words, (script,), threads)
        tokens = sum(row.get("completion_tokens", 0) for row in result.run.rows)
    metric = result.run.headline
    run = {"algorithm": name, "task": task, "seed": seed, "metric": metric, "tokens": tokens}
    run |= {"base": result.base[metric], "held_out": result.final[metric]}
    return run | {"ood": result.final.get(f"ood_{metric}"), "seconds": result.seconds}


def table_of(runs: list[dict]) -> Table:
    """One row per task and algorithm."""
    table = Table()
    for task, name in dict.fromkeys((run["task"], run["algorithm"]) for run in runs):
        those = [run for run in runs if (run["task"], run["algorithm"]) == (task, name)]
        columns = {key: [run[key] for run in those] for key in ("held_out", "ood", "base")}
        table.add(
            task=task,
            algorithm=name,
            seeds=len(those),
            base=interval(columns["base"][:1]),
            held_out=interval(columns["held_out"]),
            ood=interval(columns["ood"]),
            thousand_tokens=f"{statistics.mean(run['tokens'] for run in those) / 1e3:.0f}",
            s=f"{statistics.median(run['seconds'] for run in those):.0f}",
        )
    return table


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["cls", "count", "ground"])
    parser.add_argument("--only", nargs="+", default=list(algorithms()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("algorithms.jsonl"))
    parser.add_argument("flags", nargs="*", help="after --: flags of all")
    args = parser.parse_args(argv)
    lines = args.out.read_text(encoding="utf-8").splitlines() if args.out.is_file() else []
    runs = [json.loads(line) for line in lines]
    done = {(run["algorithm"], run["task"], run["seed"]) for run in runs}
    cases = [(n, t, s) for s in args.seeds for t in args.tasks for n in args.only]
    print(f"{machine()}, {args.jobs} at a time on {args.threads}; {' '.join(args.flags)}")
    with ThreadPoolExecutor(args.jobs) as pool:
        todo = [case for case in cases if case not in done]
        for run in pool.map(lambda case: one_run(*case, args.flags, args.threads), todo):
            runs.append(run)
            with args.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(run) + "\n")
    table_of(sorted(runs, key=lambda run: args.tasks.index(run["task"])))


if __name__ == "__main__":
    main()
