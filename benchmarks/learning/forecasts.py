"""Does preflight foretell what training brings? Forecasts and gains of tasks and prompt modes.

    python -m benchmarks.learning.forecasts                        # 30 runs, half an hour
    python -m benchmarks.learning.forecasts --tasks cls count --modes think --no-train

For each task and prompt mode: what preflight.py says of the default run (its verdict, pass@1, the
share of teachable questions, the room between pass@1 and pass@16, accuracy with the pictures of
other questions), then that run itself: held-out accuracy before and after. At the end Spearman's
rank correlations of the gain with what was foretold, with 95 % intervals from resampling the tasks.
Rows that `--output` holds already are not made again, so that a stopped benchmark goes on.
Seconds compare only where OMP_NUM_THREADS=1 is set and nothing else runs (--jobs 1).
"""

import argparse
import contextlib
import io
import itertools
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.learning.runs import train
from benchmarks.timing import Table, machine
from checks.verdict import judge
from preflight import PreflightConfig, check, short_run
from training.scoring import Scorer
from training.setup import prepare

TASKS = "cls det ovd ground count measure change vqa entail order".split()
MODES = ("think", "direct", "steps")
FORETOLD = ("pass@1", "teachable", "room")


def foretell(task: str, mode: str) -> dict:
    """What preflight says of the default run."""
    start = time.time()
    with contextlib.redirect_stdout(io.StringIO()):
        cfg = PreflightConfig(task=task, prompt_mode=mode)
        setup = prepare(cfg)
        begin = time.time() - start
        found, *_ = check(setup, setup.cfg, Scorer(setup.task, setup.cfg))
        cost = short_run(setup.cfg, begin)
    forecast, blind = found.forecast, found.blind
    return {
        "task": task,
        "mode": mode,
        "verdict": judge(found)[0].name,
        "pass@1": float(forecast.pass_1),
        "teachable": float(forecast.teachable),
        "room": forecast.room,
        "swapped": float(blind.swapped),
        "gain by picture": float(blind.gain),
        "its interval": (round(blind.gain.low, 3), round(blind.gain.high, 3)),
        "changes": blind.changes,
        "known": blind.known,
        "holes": len(found.attacked.holes),
        "s": time.time() - start,
        "s of a run": cost.total,
    }


def run(row: dict) -> dict:
    """What training brought."""
    with tempfile.TemporaryDirectory() as work:
        words = ["--task", row["task"], "--prompt_mode", row["mode"], "--seed", "0"]
        result = train(Path(work) / "run", words, threads=1)
    before, after = (metrics["strict"] for metrics in (result.base, result.final))
    return row | {"before": before, "after": after, "gain": after - before, "took": result.seconds}


def correlation(rows: list[dict], name: str) -> str:
    """Spearman's rank correlation of the gain with a column, with its interval."""
    gain, told = (np.array([row[key] for row in rows]) for key in ("gain", name))
    rng, values, of_task = np.random.default_rng(0), [], {}
    for k, row in enumerate(rows):
        of_task.setdefault(row["task"], []).append(k)
    tasks = list(of_task)
    for _ in range(2000):
        drawn = rng.integers(0, len(tasks), len(tasks))
        index = [k for n in drawn for k in of_task[tasks[n]]]
        values.append(spearmanr(gain[index], told[index]).statistic)
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return f"{spearmanr(gain, told).statistic:.2f} [{low:.2f}, {high:.2f}]"


def made_before(output: Path | None, with_gain: bool) -> list[dict]:
    """The rows of a benchmark that was stopped. `with_gain`: those whose run was made, too."""
    if output is None or not output.exists():
        return []
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    return [row for row in rows if "gain" in row or not with_gain]


def show(table: Table, rows: list[dict], output: Path | None) -> None:
    """The newest row, and all of them in a file."""
    table.add(**{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in rows[-1].items()})
    if output is not None:
        output.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, help="the rows as jsonl")
    args = parser.parse_args(argv)
    print(machine())
    rows, table = [], Table()
    earlier = made_before(args.output, args.train)
    made = {(row["task"], row["mode"]) for row in earlier}
    cases = [case for case in itertools.product(args.tasks, args.modes) if case not in made]
    told = (foretell(*case) for case in cases)
    with ThreadPoolExecutor(args.jobs) as pool:
        later = pool.map(run, list(told)) if args.train else told
        for row in itertools.chain(earlier, later):
            rows.append(row)
            show(table, rows, None if len(rows) <= len(earlier) else args.output)
    if args.train and len(rows) > 2:
        for name in FORETOLD:
            print(f"gain and {name}: {correlation(rows, name)}")


if __name__ == "__main__":
    main()
