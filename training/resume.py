"""Resuming a run exactly where a checkpoint stopped.

    python train_grpo.py --resume_from_checkpoint runs/NAME     # or latest, or runs/NAME/step_120

A finished run is extended by a larger `--max_steps`. Next: training/run.py.
"""

import json
import math
import os
import shutil
from contextlib import ExitStack
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import config
from config import TrainConfig
from model.load import local_directory
from reporting.page.saved_run import read_run
from runtime import distributed
from runtime.errors import InputError
from runtime.run_directory import (
    LOGS,
    REWARD_FILE,
    is_step,
    lock_directory,
    read_json_object,
    saved_steps,
    step_number,
)
from tasks import TASKS
from training.checkpoint import Checkpoint, find_checkpoint

C = TypeVar("C", bound=TrainConfig)
# Flags that may change on resume: what is kept and reported,
REPORTED = {"save_steps", "save_total_limit", "report_to", "report_prompts", "report_attention"}
# where things are (their content is compared), and how it is computed, up to rounding.
PLACES = {"model", "adapter", "data", "data_root", "reward", "reward_model", "device"}
FREE = REPORTED | PLACES | {"groups_per_micro_batch", "gradient_checkpointing", "fsdp"}
FREE |= {"gpu_memory", "plan"}
OF_A_RUN = {
    "max_steps",
    "output_dir",
    "resume_from_checkpoint",
}  # are not the same in all its parts
FILLED_IN = {"coords": "auto", "max_completion_length": None}  # by training/setup.py


def parse_or_resume(
    kind: type[C], argv: list[str] | None, description: str | None
) -> tuple[C, Checkpoint | None]:
    """Settings of a new run, or those of the run to resume and its checkpoint.

    Locks the directory of a run that is resumed, so that what was chosen stays the newest.

    Raises: InputError for a place without a run, a run of another script, and for flags that would
        alter the run: they are listed with both values.
    """
    flags = config.given_flags(kind, argv, description, task=TASKS)
    place = flags.pop("resume_from_checkpoint", None)
    if place is None:
        return kind(**flags), None
    run = run_directory(place, flags.pop("output_dir", None), kind)
    saved = config.load(kind, run / "config.json")
    check_unaltered(place, saved, flags)
    free = {name: value for name, value in flags.items() if name in FREE | {"max_steps"}}
    cfg = replace(saved, **free, output_dir=run)
    with ExitStack() as stack:
        lock = stack.enter_context(lock_directory(run)) if distributed.rank() == 0 else None
        distributed.barrier()
        checkpoint = find_checkpoint(Path(place) if is_step(Path(place).name) else run)
        check_settings(run, checkpoint.state)
        if distributed.rank() == 0:
            check_logs(run, checkpoint)
        if checkpoint.step == cfg.max_steps and is_evaluated(read_run(run).rows, checkpoint.step):
            print(f"{run}: all {cfg.max_steps} steps are done; extend it by a larger --max_steps")
            raise SystemExit(0)
        if not cfg.model.exists():  # a name of the hub's cache
            cfg = replace(cfg, model=local_directory(cfg.model))
        check_same_model(cfg, saved, checkpoint)
        stack.pop_all()  # the run keeps the lock
    return cfg, replace(checkpoint, lock=lock)


def run_directory(place: str, output_dir: Path | None, kind: type[TrainConfig]) -> Path:
    """The run that is meant: named itself, by one of its checkpoints, or the `latest` one."""
    if place != "latest":
        directory = Path(place)
        run = directory.parent if is_step(directory.name) else directory
        if output_dir is not None and output_dir.resolve() != run.resolve():
            raise InputError(f"--output_dir {output_dir}: a run continues in its own, {run}")
    elif output_dir is not None:
        run = output_dir
    else:
        runs = [path.parent for path in Path("runs").glob("*/config.json") if _is_of(kind, path)]
        if not runs:
            raise InputError(
                f"--resume_from_checkpoint latest: there is no run of {kind.script} in runs/, and "
                "latest looks nowhere else; name the run"
            )
        run = max(runs, key=lambda path: (start_time(path), path.name))
        print(f"latest in runs/, by the time at which they started: {run}")
    if not (run / "config.json").is_file():
        raise InputError(f"--resume_from_checkpoint {place}: {run} is no run (no config.json)")
    return run


def start_time(run: Path) -> float:
    """When a run began, as its run.json says, in seconds; -inf where it does not."""
    try:
        return datetime.fromisoformat(read_json_object(run / "run.json")["started"]).timestamp()
    except (InputError, KeyError, TypeError, ValueError, OverflowError, OSError):
        return -math.inf


def _is_of(kind: type[TrainConfig], path: Path) -> bool:
    try:
        return bool(config.load(kind, path))
    except InputError:
        return False


def check_unaltered(place: str, saved: TrainConfig, flags: dict) -> None:
    """Raise InputError for flags that would alter the run. `--max_steps` may grow.

    What a run fills in where a flag is left open may be left open again.
    """
    for name in FILLED_IN.keys() & flags.keys():
        if flags[name] == FILLED_IN[name] != getattr(saved, name):
            print(f"--{name} {flags[name]}: the run goes on with {getattr(saved, name)}")
            flags = {other: value for other, value in flags.items() if other != name}
    altered = {
        f.name: (getattr(saved, f.name), flags[f.name])
        for f in fields(saved)
        if f.name in flags and f.name not in FREE and flags[f.name] != getattr(saved, f.name)
    }
    if "max_steps" in altered and flags["max_steps"] > saved.max_steps:
        del altered["max_steps"]
    if altered:
        table = "; ".join(f"--{n} is {now}, the run has {was}" for n, (was, now) in altered.items())
        raise InputError(f"--resume_from_checkpoint {place}: {table}; leave these flags out")


def check_settings(run: Path, state: dict) -> None:
    """Raise InputError if the run's config.json is not what a checkpoint was trained with."""
    path = run / "config.json"
    raw, trained = config.read_settings(path), state.get("settings", {})
    for name, value in trained.items():
        if name not in FREE | OF_A_RUN and raw.get(name) != value:
            what = f"was trained with {value}; restore it"
            raise InputError(f"{path}: {name} is {raw.get(name)}, but the checkpoint {what}")


def check_logs(run: Path, checkpoint: Checkpoint) -> None:
    """Raise InputError if a log is not what it was up to the checkpoint, before any is cut back.

    There, every row was whole, and none of metrics.jsonl was of a later step.
    """
    for name, size in checkpoint.state["sizes"].items():
        path = run / name
        if not path.is_file() or path.stat().st_size < size:
            continue  # lost: `restore_directory` says so
        with path.open("rb") as file:
            lines = file.read(size).split(b"\n")
        is_whole = lines[-1] == b""
        if is_whole and name == "metrics.jsonl" and len(lines) > 1:
            try:
                is_whole = json.loads(lines[-2])["step"] <= checkpoint.step
            except (ValueError, KeyError, TypeError):
                is_whole = False
        if not is_whole:
            what = (
                f"{checkpoint.directory.name} was saved after {size} bytes of it, where no row of"
            )
            raise InputError(
                f"{path}: was edited: {what} step {checkpoint.step} ends; restore it, or start a "
                f"new run from {checkpoint.directory}"
            )


def check_same_model(cfg: TrainConfig, saved: TrainConfig, checkpoint: Checkpoint) -> None:
    """Raise InputError unless --model is the directory from which the run began, perhaps moved.

    A resumed run reads only the other files of that directory, which its checkpoints hold too; with
    --beta or a critic also the weights: those are not compared, so then it has to be where it was.
    """
    if not cfg.model.is_dir():
        fix = "if it or the data was moved, give --model or --data anew"
        raise InputError(f"--model {cfg.model}: from there the run began, but it is gone; {fix}")
    if cfg.model.resolve() == saved.model.resolve():
        return
    needs_weights = getattr(saved, "beta", 0.0) > 0 or saved.trained_models > 1
    if needs_weights and checkpoint.hf:
        raise InputError(
            f"--model {cfg.model}: for its reference or critic the run needs the weights that were "
            f"in {saved.model}; put them back there, a link will do"
        )
    if checkpoint.hf is None:
        return  # an adapter knows the weights of its base
    for path in sorted(checkpoint.hf.rglob("*")):
        other = cfg.model / path.relative_to(checkpoint.hf)
        if path.is_dir() or "safetensors" in path.name:  # the weights, the index of their shards
            continue
        if not other.is_file() or path.read_bytes() != other.read_bytes():
            raise InputError(
                f"--model {cfg.model}: the run began from another, {path.name} differs"
            )


def check_same_data(run: Path, about: dict) -> None:
    """Raise InputError if a run would continue with other questions or pictures."""
    before = read_run(run).about.get("data")
    if not isinstance(before, dict):
        what = "has no fingerprints of the data, so nobody can tell whether they are the same"
        raise InputError(f"{run / 'run.json'}: {what}; restore it, or start a new run")
    for name, split in about["data"].items():
        if before.get(name) != split:
            raise InputError(
                f"--resume_from_checkpoint {run}: the data has changed, {name} was "
                f"{before.get(name)} and is {split}; restore it, or start a new run"
            )


def check_same_reward(run: Path, about: dict) -> None:
    """Raise InputError if a run would continue with another reward."""
    saved = read_run(run).about
    if saved.get("reward_model") != about.get("reward_model"):
        fix = "name it as it was with --reward_model, or start a new run"
        raise InputError(f"--resume_from_checkpoint {run}: the reward model has changed; {fix}")
    before, now = saved.get("reward"), about.get("reward")
    if before == now:
        return
    if not before:
        what = "is paid by the task's own reward; leave out --reward, or start a new run"
        raise InputError(f"--resume_from_checkpoint {run}: {what}")
    imports = [{*reward.get("imports", {}).items()} for reward in (before, now or {})]
    changed = sorted(dict(imports[0] ^ imports[1])) or ["its file"]
    if (now or {}).get("function") != before.get("function"):
        changed = [f"the function, which was {before.get('function')}"]
    raise InputError(
        f"--resume_from_checkpoint {run}: the reward has changed ({changed[0]}); restore it, as in "
        f"{run / REWARD_FILE}, or start a new run"
    )


def restore_directory(run: Path, checkpoint: Checkpoint) -> None:
    """Make the run's directory what it was when the checkpoint was made.

    Unfinished saves are removed, later checkpoints renamed, logs cut back to their size of then.
    """
    for path in run.glob(".step_*.unfinished"):
        shutil.rmtree(path, ignore_errors=True)
    for path in saved_steps(run):
        if step_number(path) > checkpoint.step:
            abandoned = path.with_name(f"abandoned_{path.name}")
            shutil.rmtree(abandoned, ignore_errors=True)
            os.replace(path, abandoned)
    sizes = checkpoint.state["sizes"]
    for name in LOGS:
        path = run / name
        actual, wanted = path.stat().st_size if path.is_file() else 0, sizes.get(name, 0)
        if actual < wanted:
            print(f"{path}: {wanted - actual} bytes are lost; the run continues without them")
            if actual:  # what is left may end in the middle of a row
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        elif wanted:
            os.truncate(path, wanted)
        else:  # begun after the checkpoint
            path.unlink(missing_ok=True)


def is_evaluated(rows: list[dict], step: int) -> bool:
    """Whether the held-out metrics after this step are among the rows of metrics.jsonl."""
    return any(row["step"] == step and any(n.startswith("eval/") for n in row) for row in rows)


def log_sizes(run: Path) -> dict[str, int]:
    """The logs as they are: name -> bytes."""
    return {name: (run / name).stat().st_size for name in LOGS if (run / name).is_file()}
