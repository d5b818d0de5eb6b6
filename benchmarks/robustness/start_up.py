"""How long large data take until training could begin, and the most memory that this takes.

    python -m benchmarks.robustness.start_up          # needs pyarrow

4,000 pictures in a parquet file, 20,000 rows about 500 pictures, and 1,000 class folders, all made
here; each is read in a process of its own, which does what `training.setup.prepare` does with data.
"""

import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.timing import ROOT, Table, machine
from config import BASE_MODEL, TaskConfig
from data.files import optional_import
from model.processor import Processor
from tasks import load_task
from training.evaluation import usable_splits


def picture(rng: np.random.Generator, width: int = 640, height: int = 480) -> bytes:
    """A JPEG of about 100 KB at 640 x 480, as photographs have."""
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def make(kind: str, folder: Path) -> list[str]:
    """Write a data set; the flags that name it."""
    rng = np.random.default_rng(0)
    if kind == "4,000 pictures in parquet":
        pyarrow = optional_import("pyarrow")
        parquet = optional_import("pyarrow.parquet", "pyarrow")
        images = [{"bytes": picture(rng), "path": None} for _ in range(4000)]
        columns = {"image": images, "problem": ["How many?"] * 4000, "solution": ["3"] * 4000}
        parquet.write_table(pyarrow.table(columns), folder / "rows.parquet", row_group_size=500)
        return ["count", str(folder / "rows.parquet")]
    if kind == "20,000 rows, 500 pictures":
        for k in range(500):
            (folder / f"{k}.jpg").write_bytes(picture(rng))
        row = {"problem": "How many?", "solution": "3"}
        rows = [json.dumps({"image": f"{k % 500}.jpg"} | row) for k in range(20_000)]
        (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
        return ["count", str(folder / "rows.jsonl")]
    for k in range(1000):
        (folder / f"class {k}").mkdir()
        for i in range(3):
            (folder / f"class {k}" / f"{i}.jpg").write_bytes(picture(rng, 160, 120))
    return ["cls", str(folder)]


def read(task: str, data: str) -> None:
    """Read a data set in this process, and print seconds and the peak of memory in GB."""
    processor, start = Processor(BASE_MODEL), time.time()
    cfg = TaskConfig(task=task, data=data, **({} if task == "cls" else {"train_size": 10**5}))
    loaded = load_task(cfg, processor)
    usable_splits({"train": loaded.train} | loaded.splits, processor, cfg)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    # Not ru_maxrss, which begins with what the parent had when it forked.
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9
    print(json.dumps({"s": round(time.time() - start, 1), "GB": round(peak, 2)}))


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv:
        read(*argv)
        return
    print(machine())
    table = Table()
    for kind in ("4,000 pictures in parquet", "20,000 rows, 500 pictures", "1,000 classes"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.robustness.start_up"]
            command += make(kind, Path(folder))
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        table.add(data=kind, **json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
