"""Whole training runs, each in a fresh process as a user starts it, and what their metrics say."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import ROOT
from reporting.page.saved_run import Run, read_run


@dataclass
class Outcome:
    """A finished run and what it achieved.

    Attributes:
        base, final: metrics of its first and last evaluation.
        seconds, first_step_seconds: from the start of the command.
    """

    run: Run
    base: dict[str, float]
    final: dict[str, float]
    seconds: float
    first_step_seconds: float


def train(
    out: Path, flags: Sequence[str], script=("train_grpo.py",), threads: int | None = None
) -> Outcome:
    """Run a training script with these flags into `out`; SystemExit with its output if it fails."""
    command = [sys.executable, *script, *flags, "--output_dir", str(out)]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    start, first_step, output = time.time(), 0.0, []
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        for line in process.stdout:
            output.append(line)
            if line.startswith("step 1:"):
                first_step = time.time() - start
    if process.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed: {''.join(output[-20:])}")
    return outcome(out, round(time.time() - start, 1), round(first_step, 1))


def evaluated(flags: Sequence[str], threads: int = 1) -> dict[str, float]:
    """The first number that evaluate.py prints for each split, in percent."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "evaluate.py", *flags]
    pipes = dict(capture_output=True, text=True, check=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, **pipes)
    found = re.findall(r"^\w+ (\w+), \d+ questions[^:]*: \S+ ([\d.]+)%", done.stdout, re.MULTILINE)
    return {split: float(value) for split, value in found}


def outcome(out: Path, seconds: float, first_step_seconds: float) -> Outcome:
    """Read what a finished run left."""
    run = read_run(out)
    base, final = (metrics_of(evaluations(run)[k]) for k in (0, -1))
    return Outcome(run, base, final, seconds, first_step_seconds)


def metrics_of(row: dict) -> dict[str, float]:
    """The held-out metrics in a row: "strict", "ood_strict", ..."""
    return {k.removeprefix("eval/"): v for k, v in row.items() if k.startswith("eval/")}


def evaluations(run: Run) -> list[dict]:
    """The rows of held-out metrics."""
    return [row for row in run.rows if "eval/strict" in row]
