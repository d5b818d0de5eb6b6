"""Fair timing: candidates take turns in one process; what is reported is a ratio with its spread.

Memory is measured or counted. A benchmark ends with one line of JSON.
"""

import json
import os
import platform
import statistics
import subprocess
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

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
    candidates: dict[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> Seconds:
    """Seconds of every candidate, A B A B ..., so that a busy moment hits all of them alike."""
    seconds: Seconds = {name: [] for name in candidates}
    for k in range(warmup + rounds):
        for name, run in candidates.items():
            elapsed = seconds_of(run)
            if k >= warmup:
                seconds[name].append(elapsed)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(middle, 6), "low": round(low, 6), "high": round(high, 6)}


def ratio(seconds: Seconds, slow: str, fast: str) -> dict[str, float]:
    """How many times faster `fast` is: median and quartiles of the ratios round by round."""
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])


def milliseconds(seconds: Seconds) -> dict[str, float]:
    """Median of each candidate."""
    return {name: round(1000 * statistics.median(s), 3) for name, s in seconds.items()}


# ---- memory --------------------------------------------------------------------------------------


class CountBytes(TorchDispatchMode):
    """Bytes of all storages that torch makes inside, alive at once: `peak`."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        inputs = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in inputs | self.seen:
                self.seen.add(storage._cdata)
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return out

    def free(self, identity: int, size: int) -> None:
        """A storage of `size` bytes is gone."""
        self.seen.discard(identity)
        self.alive -= size


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in tree_iter(tree) if isinstance(t, torch.Tensor)]


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Peak memory of a call beyond what was held before it.

    A GPU's is measured. On a CPU it is counted, so it is the same on every machine.
    """
    if device.type == "cpu":
        with CountBytes() as count:
            run()
        return count.peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# ---- output --------------------------------------------------------------------------------------


def machine() -> str:
    """What a row of RESULTS.md says of commit, torch and machine."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"commit {commit or '?'}, torch {torch.__version__}, {os.cpu_count()} cores, {where}"


class Table:
    """Results as a Markdown table, printed row by row; `rows` goes into the line of JSON."""

    def __init__(self):
        self.rows: list[dict] = []

    def add(self, **cells: object) -> None:
        """Print a row, the first one below a header. None: no value."""
        if not self.rows:
            print("| " + " | ".join(name.replace("_", " ") for name in cells) + " |")
            print("|---" * len(cells) + "|")
        self.rows.append(cells)
        print("| " + " | ".join(map(cell_text, cells.values())) + " |", flush=True)


def cell_text(value: object) -> str:
    """A cell: spreads with one digit after the point, other floats with four digits in all."""
    if isinstance(value, dict):
        return "{median:.1f} [{low:.1f}, {high:.1f}]".format(**value)
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def report(id: str, **results: object) -> None:
    """The last line of a benchmark: one JSON object."""
    print(json.dumps({"id": id, "machine": machine(), **results}))
