"""Repeat the default training run in one process for hours: do memory or open files grow?

    python -m benchmarks.robustness.soak --hours 2

After every run: resident memory, open file descriptors, threads. The first runs warm caches up and
are left out of the slope. Prints a line per run and the slope with its standard error.
"""

import contextlib
import gc
import io
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import config
import train_grpo
from benchmarks.timing import machine

WARM_UP = 3  # runs


def held_now() -> tuple[float, int, int]:
    """(resident MB, open file descriptors, threads) of this process, after a collection."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = len(os.listdir("/proc/self/fd"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, descriptors, threading.active_count()


def slope(values: list[float]) -> tuple[float, float]:
    """Least-squares growth per run and its standard error."""
    (growth, _), covariance = np.polyfit(range(len(values)), values, 1, cov=True)
    return float(growth), float(np.sqrt(covariance[0, 0]))


def main(argv: list[str] | None = None) -> None:
    parser = config.Parser(description=__doc__)
    parser.add_argument("--hours", type=float, default=2.0)
    args, flags = parser.parse_known_args(argv)
    base = config.parse(train_grpo.GRPOConfig, flags, "")
    start, rows = time.time(), []
    while time.time() - start < 3600 * args.hours or len(rows) < WARM_UP + 3:
        with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(io.StringIO()):
            cfg = replace(base, seed=len(rows), output_dir=Path(work) / "run")
            accuracy = train_grpo.train(cfg)["eval/strict"]
        rows.append(held_now())
        line = "{:.1f} MB, {} descriptors, {} threads".format(*rows[-1])
        print(f"run {len(rows)}: {line}, {accuracy:.1%}", file=sys.stderr, flush=True)
    memory, descriptors, threads = (list(column) for column in zip(*rows[WARM_UP:], strict=True))
    growth, error = slope(memory)
    print(f"{machine()}; {time.time() - start:.0f} s; {len(rows)} runs; {' '.join(flags)}")
    print(f"growth {growth:+.3f} MB a run (standard error {error:.3f})")
    results = {"runs": len(rows), "growth_mb": growth, "growth_error": error}
    print(json.dumps(results | {"memory_mb": memory, "descriptors": descriptors}))
    if descriptors[-1] > descriptors[0] or threads[-1] > threads[0]:
        raise SystemExit("open files or threads grow")


if __name__ == "__main__":
    main()
