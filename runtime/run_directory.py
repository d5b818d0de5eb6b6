"""The directory of a run: what lies where, who may write there, and files that are never partial.

config.json, run.json                   settings; versions, command, fingerprints of the data
metrics.jsonl, completions.jsonl        a row per step and evaluation; every completion
reward_faults.jsonl                     the first fault of each kind of a --reward
gallery.jsonl, images/, report.html     what the report shows, and the report
ratings.jsonl                           what people think of completions (data/ratings.py)
reward.py                               the source of --reward, as the run began with it
step_N/                                 checkpoints (training/checkpoint.py)
"""

import fcntl
import os
import re
import socket
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TextIO

from runtime import unique_json
from runtime.errors import InputError

REWARD_FILE, FAULT_LOG, LOCK = "reward.py", "reward_faults.jsonl", ".lock"
LOGS = ("metrics.jsonl", "completions.jsonl", "gallery.jsonl", FAULT_LOG)


def check_output_dir(directory: Path | None) -> None:
    """Raise InputError for a directory that a new run would share with other files."""
    try:
        if directory is None or not directory.exists():
            return
        if not directory.is_dir():
            raise InputError(f"--output_dir {directory}: is a file; choose another name")
        if (directory / LOCK).is_file():
            lock_directory(directory).close()  # raises where the run is going on
        if any(directory.iterdir()):
            raise InputError(f"--output_dir {directory}: not empty; choose another name")
    except OSError as error:
        raise InputError(f"--output_dir: cannot be used ({error})") from None


def new_run_directory(task: str) -> Path:
    """Make runs/TASK-TIME, a directory of its own for each of the runs that start in one second.

    Raises OSError where it cannot be made.
    """
    first = Path("runs") / f"{task}-{datetime.now():%Y%m%d-%H%M%S}"
    first.parent.mkdir(exist_ok=True)
    directory = first
    for number in count(2):
        try:
            directory.mkdir()
            return directory
        except FileExistsError:
            directory = first.with_name(f"{first.name}-{number}")


def lock_directory(directory: Path) -> TextIO:
    """Lock a directory against other runs until the returned file is closed or this process ends.

    Raises InputError if another run holds the lock, naming its process and host, or if the
    directory cannot be written.
    """
    try:
        lock = (directory / LOCK).open("a+")
    except OSError as error:
        raise InputError(f"--output_dir {directory}: cannot be written ({error})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read(200).strip() or "another process"
        lock.close()
        what = f"another run is writing there ({holder})"
        raise InputError(f"--output_dir {directory}: {what}") from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def is_running(directory: Path) -> bool:
    """Whether a process holds the lock of a run's directory."""
    try:
        with (directory / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, or none that can be asked
        return False
    return False


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers and crashes see the old content or the new, never a part."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def is_lfs_pointer(path: Path) -> bool:
    """Whether git-lfs has left a pointer in the place of a file."""
    try:
        with path.open("rb") as file:
            return file.read(40).startswith(b"version https://git-lfs")
    except OSError:
        return False


def read_json_object(path: Path) -> dict:
    """The JSON object in a file; raises InputError naming a file that holds anything else."""
    try:
        content = unique_json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; is its directory complete?") from None
    except (OSError, ValueError, RecursionError) as error:
        if is_lfs_pointer(path):
            raise InputError(f"{path}: a git-lfs pointer; run git lfs pull") from None
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object, not {type(content).__name__}")
    return content


def is_step(name: str) -> bool:
    """Whether this is the name of a checkpoint, step_N."""
    return re.fullmatch(r"step_[0-9]{1,9}", name) is not None


def step_number(checkpoint: Path) -> int:
    """N of a directory step_N."""
    return int(checkpoint.name[5:])


def saved_steps(run: Path) -> list[Path]:
    """All directories step_N of a run, the newest first, by number and not by clock."""
    steps = [path for path in run.glob("step_*") if is_step(path.name) and path.is_dir()]
    return sorted(steps, key=step_number, reverse=True)


def last_model(run: Path) -> Path | None:
    """The model, or the adapter, of the newest checkpoint of a run, verified or not."""
    places = [path / kind for path in saved_steps(run) for kind in ("hf", "adapter")]
    return next((place for place in places if place.is_dir()), None)
