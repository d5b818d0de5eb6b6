"""How far the metric of every task rises from the bundled base, over seeds, with intervals.

    python -m benchmarks.learning.task_table                         # all tasks but cls, seeds 0-2
    python -m benchmarks.learning.task_table --tasks det ovd --seeds 0 -- --max_steps 300
    python -m benchmarks.learning.task_table --tasks cls --seeds 0 1 2 3 4   # the README's command
    python -m benchmarks.learning.task_table --tasks cls -- --shuffle_labels         # its control

Everything after `--` goes to train_grpo.py. Each run is a fresh process on `--threads` cores, and
`--jobs` of them run at a time; seconds are those of the whole command, and until its first step was
logged. Prints a row per run as soon as it is there, then medians and a JSON line. Intervals: 95 %,
Wilson for shares, bootstrap over the questions for mAP and mean IoU. `blind` is the trained model
with the pictures of other questions: what it owes to the words alone.
"""

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.learning.runs import evaluated, train
from benchmarks.timing import Table, machine
from tasks import TASKS


def _one_run(task: str, seed: int, threads: int, flags: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as work:
        words = ["--task", task, "--seed", str(seed), *flags]
        outcome = train(Path(work) / "run", words, threads=threads)
        blind = evaluated(["--run", f"{work}/run", "--pictures", "swapped"], threads)
    run = {"task": task, "seed": seed, "metric": outcome.run.headline}
    run |= {"seconds": outcome.seconds, "first_step_seconds": outcome.first_step_seconds}
    return run | {"base": outcome.base, "final": outcome.final, "blind": blind}


def _add_row(table: Table, run: dict) -> None:
    name, base, final = run["metric"], run["base"], run["final"]

    def rise(key: str) -> str | None:
        return f"{base[key]:.1%} -> {final[key]:.1%}" if key in base else None

    ends = [
        f"{e[name]:.1%} [{e[f'{name}_low']:.1%}, {e[f'{name}_high']:.1%}]" for e in (base, final)
    ]
    cells = dict(task=run["task"], metric=name, seed=run["seed"], held_out=" -> ".join(ends))
    cells |= dict(ood=rise(f"ood_{name}"), strict=rise("strict"), loose=rise("loose"))
    cells |= dict(blind=", ".join(f"{value:.1f}%" for value in run["blind"].values()))
    table.add(**cells, first_step_s=run["first_step_seconds"], s=run["seconds"])


def _median_line(task: str, runs: list[dict]) -> str:
    name = runs[0]["metric"]

    def median(when: str, key: str) -> float:
        return statistics.median(run[when].get(key, float("nan")) for run in runs)

    base, final = median("base", name), median("final", name)
    blind = [statistics.median(run["blind"][split] for run in runs) for split in runs[0]["blind"]]
    is_clear = median("final", f"{name}_low") > median("base", f"{name}_high")
    return (
        f"{task}: median {name} {base:.1%} -> {final:.1%} ({100 * (final - base):+.1f} points, "
        f"{final / max(base, 1e-9):.1f} times), "
        f"ood {median('base', 'ood_' + name):.1%} -> {median('final', 'ood_' + name):.1%}; "
        f"blind {', '.join(f'{value:.1f}%' for value in blind)}; "
        f"intervals {'do not overlap' if is_clear else 'OVERLAP'}; "
        f"{statistics.median(run['seconds'] for run in runs):.0f} s"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--tasks", nargs="+", default=[t for t in TASKS if t not in ("cls", "zoom")]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("flags", nargs="*", help="after --: flags of train_grpo.py")
    args = parser.parse_args(argv)
    where = f"{machine()}, {args.jobs} at a time on {args.threads}"
    print(f"train_grpo.py --task TASK {' '.join(args.flags)}; {where}")
    cases = [(task, seed) for seed in args.seeds for task in args.tasks]
    table, runs = Table(), []
    with ThreadPoolExecutor(args.jobs) as pool:
        for run in pool.map(lambda case: _one_run(*case, args.threads, args.flags), cases):
            runs.append(run)
            _add_row(table, run)
    for task in args.tasks:
        print(_median_line(task, [run for run in runs if run["task"] == task]))
    print(json.dumps({"machine": machine(), "flags": args.flags, "runs": runs}))


if __name__ == "__main__":
    main()
