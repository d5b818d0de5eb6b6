"""Repeat the default training run in one process for hours: do memory or open files grow?

    python -m benchmarks.robustness.soak --hours 2

After every run: resident memory, open file descriptors, threads. The first runs warm caches up and
are left out of the slope. Prints a line per run and the slopes with their standard errors.
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


def now_held() -> tuple[float, int, int]:
    """(resident MB, open file descriptors, threads) of this process, after a collection."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = len(os.listdir("/proc/self/fd"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, descriptors, threading.active_count()


def slope(values: list[float]) -> tuple[float, float]:
    """Least squares growth per run and its standard error."""
    place = np.arange(len(values)) - (len(values) - 1) / 2
    growth = place @ np.array(values) / (place @ place)
    rest = np.array(values) - np.mean(values) - growth * place
    return float(growth), float(np.sqrt(rest @ rest / (len(values) - 2) / (place @ place)))


def main() -> None:
    parser = config.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--hours", type=float, default=2.0)
    args, flags = parser.parse_known_args()
    base = config.parse(config.Config, flags, "")
    began, rows = time.time(), []
    while time.time() - began < 3600 * args.hours or len(rows) < WARM_UP + 3:
        with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(io.StringIO()):
            cfg = replace(base, seed=len(rows), output_dir=Path(work) / "run")
            accuracy = train_grpo.train(cfg)["eval/strict"]
        rows.append(now_held())
        memory, descriptors, threads = rows[-1]
        told = f"{memory:.1f} MB, {descriptors} descriptors, {threads} threads, {accuracy:.1%}"
        print(f"run {len(rows)}, {time.time() - began:.0f} s: {told}", file=sys.stderr, flush=True)
    kept = rows[WARM_UP:]
    memory, descriptors, threads = ([row[i] for row in kept] for i in range(3))
    growth, error = slope(memory)
    print(f"{machine()}; {time.time() - began:.0f} s; {len(rows)} runs; {' '.join(flags)}")
    print(
        f"memory {memory[0]:.1f} MB at first, {memory[-1]:.1f} MB at last, most {max(memory):.1f}"
    )
    print(f"growth {growth:+.3f} MB a run (standard error {error:.3f})")
    print(f"descriptors {min(descriptors)} .. {max(descriptors)}, threads {max(threads)}")
    report = {"runs": len(rows), "growth_mb": growth, "growth_error": error}
    print(json.dumps(report | {"memory_mb": memory, "descriptors": descriptors}))
    if descriptors[-1] > descriptors[0] or threads[-1] > threads[0]:
        raise SystemExit("open files or threads grow")


if __name__ == "__main__":
    main()
