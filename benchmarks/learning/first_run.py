"""The README's first command, timed and repeated over seeds.

    python -m benchmarks.learning.first_run                                    # the default run, seeds 0-4
    python -m benchmarks.learning.first_run --name shuffled -- --shuffle_labels
    python -m benchmarks.learning.first_run --name digits -- --data digits --held_out_per_class 80

Everything after `--` goes to train_grpo.py. Each run is a fresh process, as a user starts it.
Prints one row per seed, the median, and a JSON line; seconds are counted from the start of the
command.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import ROOT, machine


def rows_of(run: Path) -> list[dict]:
    """Complete lines of metrics.jsonl, [] before there are any."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return []
    return [
        json.loads(line) for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]


def one_run(run: Path, seed: int, flags: list[str]) -> dict:
    """Start train_grpo.py, note when its first optimizer step is logged, and read the outcome."""
    command = [sys.executable, "train_grpo.py", "--task", "cls", "--seed", str(seed)]
    command += ["--output_dir", str(run), *flags]
    start, first_step = time.time(), None
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if first_step is None and any(row["step"] == 1 for row in rows_of(run)):
            first_step = time.time() - start
        time.sleep(0.05)
    seconds = time.time() - start
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}")
    rows = rows_of(run)
    evals = [row for row in rows if "eval/strict" in row]
    outcome = {
        "seed": seed,
        "first_step_s": round(first_step or seconds, 1),
        "run_s": round(seconds, 1),
    }
    for name in ("strict", "loose", "ood_strict"):
        key = f"eval/{name}"
        if key in evals[0]:
            outcome |= {f"{name}_base": evals[0][key], f"{name}_final": evals[-1][key]}
    outcome["strict_low"], outcome["strict_high"] = (
        evals[-1]["eval/strict_low"],
        evals[-1]["eval/strict_high"],
    )
    outcome["gain"] = outcome["strict_final"] - outcome["strict_base"]
    outcome["n"] = evals[0]["eval/n"]
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--name", default="default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("flags", nargs="*", help="after --: flags of train_grpo.py")
    args = parser.parse_args()
    print(f"{args.name}: train_grpo.py --task cls {' '.join(args.flags)}; {machine()}")
    print("| seed | first step s | run s | strict base -> final (95 %) | loose | OOD strict |")
    print("|---|---|---|---|---|---|")
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for seed in args.seeds:
            r = one_run(Path(directory) / f"seed{seed}", seed, args.flags)
            results.append(r)
            ood = "-"
            if "ood_strict_base" in r:
                ood = f"{r['ood_strict_base']:.1%} -> {r['ood_strict_final']:.1%}"
            print(
                f"| {seed} | {r['first_step_s']} | {r['run_s']} | {r['strict_base']:.1%} -> "
                f"{r['strict_final']:.1%} [{r['strict_low']:.1%}, {r['strict_high']:.1%}] | "
                f"{r['loose_base']:.1%} -> {r['loose_final']:.1%} | {ood} |",
                flush=True,
            )
    median = {
        key: statistics.median(r[key] for r in results)
        for key in ("gain", "strict_base", "strict_final", "run_s", "first_step_s")
    }
    print(f"median gain {median['gain'] * 100:+.1f} points, run {median['run_s']:.0f} s")
    print(json.dumps({"name": args.name, "machine": machine(), "median": median, "runs": results}))


if __name__ == "__main__":
    main()
