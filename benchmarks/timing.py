"""Fair timing: candidates take turns, and what is reported is a ratio with its spread.

`interleaved` calls functions of one process in turn. `take_turns` does the same with programs: each
candidate lives in a process of its own, as its users run it, and waits while the others work.
"""

import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
Seconds = dict[str, list[float]]  # candidate -> one number per round


def seconds_of(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call; waits for the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    candidates: dict[str, Callable[[], object]], rounds: int = 20, warmup: int = 2
) -> Seconds:
    """Seconds of every candidate, A B A B ..., so that a busy moment hits all of them alike."""
    for _ in range(warmup):
        for run in candidates.values():
            run()
    seconds: Seconds = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            seconds[name].append(seconds_of(run))
    return seconds


class Turns:
    """The candidate's end of `take_turns`."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def ready(self, evidence: object) -> None:
        """Set-up is done. `evidence` is compared between the candidates before any timing."""
        self.connection.send(evidence)

    def begin(self) -> bool:
        """Wait for the next turn; False: there is none."""
        if not self.connection.recv():
            return False
        self.start = time.perf_counter()
        return True

    def end(self) -> None:
        self.connection.send(time.perf_counter() - self.start)

    def __iter__(self) -> Iterator[int]:
        """The body of the loop is what is timed."""
        k = 0
        while self.begin():
            yield k
            self.end()
            k += 1


def take_turns(
    candidates: dict[str, Callable], rounds: int, warmup: int, *args
) -> tuple[dict[str, object], Seconds]:
    """Run each candidate(turns, *args) in a fresh process; the evidence and the seconds of each."""
    fresh = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    evidence: dict[str, object] = {}
    for name, candidate in candidates.items():
        pipes[name], theirs = fresh.Pipe()
        workers.append(fresh.Process(target=candidate, args=(Turns(theirs), *args), daemon=True))
        workers[-1].start()
        theirs.close()  # so that a worker that dies ends the wait for it
        evidence[name] = pipes[name].recv()
    seconds: Seconds = {name: [] for name in candidates}
    for k in range(warmup + rounds):
        for name, pipe in pipes.items():
            time.sleep(0.05)  # what the last candidate still does after its turn
            pipe.send(True)
            elapsed = pipe.recv()
            if k >= warmup:
                seconds[name].append(elapsed)
    for pipe, worker in zip(pipes.values(), workers, strict=True):
        pipe.send(False)
        worker.join(2)
        worker.kill()
    return evidence, seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(middle, 6), "low": round(low, 6), "high": round(high, 6)}


def ratio(seconds: Seconds, slow: str, fast: str) -> dict[str, float]:
    """How many times faster `fast` is: median and quartiles of the ratios round by round."""
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])


def shown(result: dict[str, float]) -> str:
    return "{median:.1f} [{low:.1f}, {high:.1f}]".format(**result)


def milliseconds(seconds: Seconds) -> dict[str, float]:
    """Median of each candidate."""
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "?"


def machine() -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"commit {commit()}, torch {torch.__version__}, {os.cpu_count()} cores, {where}"


def report(id: str, **results) -> None:
    """The last line of every benchmark: one JSON object."""
    print(json.dumps({"id": id, "machine": machine(), **results}))
