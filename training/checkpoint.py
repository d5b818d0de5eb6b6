"""Checkpoints that survive a night: written whole, verified before use, resumed exactly.

    python train_grpo.py --resume_from_checkpoint runs/NAME     # or latest, or runs/NAME/step_100

    runs/NAME/step_100/hf/              the model, as any tool loads it
    runs/NAME/step_100/trainer/         what training needs to go on: optimizer.safetensors and
                                        state.json (no pickle, here or anywhere)
    runs/NAME/step_100/manifest.json    size and sha256 of every file, written last

A checkpoint is made in a hidden directory, flushed to the disk and renamed: whatever happens
meanwhile, `step_100` exists whole or not at all. Older ones are removed only after the new one has
been verified, and a damaged one is passed over. Random numbers need no state: data order and
sampling are functions of (seed, step). Next: training/run.py, which decides when.
"""

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import config
from config import TrainConfig
from model.vlm import VLM
from model.weights import save_model
from runtime.errors import InputError

C = TypeVar("C", bound=TrainConfig)
MANIFEST = "manifest.json"
LOGS = ("metrics.jsonl", "completions.jsonl", "gallery.jsonl")
# Flags that may change when a run goes on: what is kept and told,
KEPT = {"save_steps", "save_total_limit", "report_to", "report_prompts", "report_attention"}
# where things lie (what lies there is compared), and how it is computed, up to rounding.
PLACES = {"model", "data", "data_root", "device"}
FREE = KEPT | PLACES | {"groups_per_micro_batch", "gradient_checkpointing", "fsdp"}


@dataclass(frozen=True)
class Checkpoint:
    """A directory step_N of a run, and what its state.json says."""

    directory: Path
    state: dict  # step; pending: a row that is not logged yet; sizes of the logs; not_finite
    beside: tuple[str, ...] = ()  # all checkpoints of the run, when this one was chosen

    @property
    def step(self) -> int:
        return self.state["step"]

    @property
    def hf(self) -> Path:
        return self.directory / "hf"

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Masters and moments by name; moments only from the first update on."""
        return load_file(self.directory / "trainer" / "optimizer.safetensors")

    def check_newest(self) -> None:
        """Raise InputError if another process has saved or removed checkpoints of the run since
        this one was chosen. Asked when no other can write any more."""
        is_as_it_was = why_unusable(self.directory) is None and _state(self.directory) == self.state
        if not is_as_it_was or _names(_saved(self.directory.parent)) != self.beside:
            raise InputError(
                f"{self.directory.parent}: another process has just written there; once more"
            )


# ---- writing -------------------------------------------------------------------------------------


def save_checkpoint(
    run: Path,
    model: VLM,
    companions: Path,
    optimizer_tensors: dict[str, Tensor],
    state: dict,
    keep: int | None = None,
) -> Path:
    """Write run/step_N, N = state["step"]; returns it.

    Args:
        companions: directory whose other files belong to the model (`save_model`).
        optimizer_tensors: by name; left out where they are not needed any more.
        keep: how many checkpoints may stay; None keeps all.
    Raises: InputError if it cannot be written; then older checkpoints are untouched.
    """
    final = run / f"step_{state['step']}"
    unfinished = run / f".{final.name}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        _check_space(run, model, optimizer_tensors)
        (unfinished / "trainer").mkdir(parents=True)
        save_model(model, unfinished / "hf", companions)
        if optimizer_tensors:
            save_file(optimizer_tensors, unfinished / "trainer" / "optimizer.safetensors")
        (unfinished / "trainer" / "state.json").write_text(json.dumps(state), encoding="utf-8")
        manifest = {
            str(path.relative_to(unfinished)): {"bytes": path.stat().st_size, "sha256": _hash(path)}
            for path in sorted(unfinished.rglob("*"))
            if path.is_file()
        }
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        logs = [run / name for name in LOGS if (run / name).is_file()]
        for path in [*logs, *unfinished.rglob("*"), unfinished]:
            _flush(path)
        _swap(unfinished, final)
        _flush(run)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{final}: cannot be saved ({error})") from error
    except InputError as error:  # of the model's directory
        raise InputError(str(error).replace(str(unfinished), str(final))) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    if keep is not None and why_unusable(final) is None:
        older = [path for path in _saved(run) if _number(path) < state["step"]]
        _prune(older[keep - 1 :])
    return final


def _check_space(run: Path, model: VLM, optimizer_tensors: dict[str, Tensor]) -> None:
    tensors = [*model.parameters(), *optimizer_tensors.values()]
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    free = shutil.disk_usage(run).free
    if free < 1.05 * needed:
        raise OSError(f"needs about {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Make a file, or the names in a directory, safe against a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(unfinished: Path, final: Path) -> None:
    """Put a finished directory in its place. Between the two renames the one before is set aside,
    where `_bring_back` finds it."""
    aside = final.with_name(f".{final.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        os.replace(final, aside)
    os.replace(unfinished, final)
    shutil.rmtree(aside, ignore_errors=True)


def _prune(old: list[Path]) -> None:
    """Remove checkpoints: renamed first, since a half-deleted one must not look like one."""
    for directory in old:
        doomed = directory.with_name(f".{directory.name}.pruned")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(directory, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def tidy(run: Path, step: int) -> None:
    """Make a run's directory what it was after `step`, for a run that goes on from there.

    Leftovers of saves that were cut are removed; later checkpoints, damaged or not wanted, get
    another name, so that none of them is taken for a part of what follows.
    """
    _bring_back(run)
    for name in (".step_*.unfinished", ".step_*.aside", ".step_*.pruned"):
        for path in run.glob(name):
            shutil.rmtree(path, ignore_errors=True)
    for path in _saved(run):
        if _number(path) > step:
            abandoned = path.with_name(f"abandoned_{path.name}")
            shutil.rmtree(abandoned, ignore_errors=True)
            os.replace(path, abandoned)


def _bring_back(run: Path) -> None:
    """Undo a `_swap` that was cut in two."""
    for aside in run.glob(".step_*.aside"):
        final = aside.with_name(aside.name[1:].removesuffix(".aside"))
        if not final.exists():
            with suppress(FileNotFoundError):  # another rank has done it
                os.replace(aside, final)


# ---- finding -------------------------------------------------------------------------------------


def _is_step(name: str) -> bool:
    return re.fullmatch(r"step_[0-9]{1,9}", name) is not None


def _number(directory: Path) -> int:
    return int(directory.name[5:])


def _saved(run: Path) -> list[Path]:
    """All directories step_N, the newest first, by number and not by clock."""
    found = [path for path in run.glob("step_*") if _is_step(path.name) and path.is_dir()]
    return sorted(found, key=_number, reverse=True)


def _names(checkpoints: list[Path]) -> tuple[str, ...]:
    return tuple(path.name for path in checkpoints)


def last_model(run: Path) -> Path | None:
    """The model directory of the newest checkpoint of a run, verified or not."""
    return next((path / "hf" for path in _saved(run) if (path / "hf").is_dir()), None)


def why_unusable(directory: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file is there with its size and sha256."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        for name, kept in manifest.items():
            path = directory / name
            if path.stat().st_size != kept["bytes"] or _hash(path) != kept["sha256"]:
                return f"{name} is damaged"
        if {"trainer/state.json", "hf/config.json"} - manifest.keys():
            return f"{MANIFEST} is incomplete"
        is_its_own = _state(directory)["step"] == _number(directory)
        return None if is_its_own else "state.json is of another step"
    except OSError as error:
        return f"{Path(error.filename or directory).name} cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} or state.json is damaged ({error})"


def _state(directory: Path) -> dict:
    return json.loads((directory / "trainer" / "state.json").read_text(encoding="utf-8"))


def find_checkpoint(place: Path) -> Checkpoint:
    """The newest usable checkpoint of a run, or the one that is named itself.

    A damaged one of a run is passed over with a line. Raises InputError if none is left, or if the
    one that was named is damaged.
    """
    is_one = _is_step(place.name)
    _bring_back(place.parent if is_one else place)
    tried, saved = [], _saved(place.parent if is_one else place)
    for directory in [place] if is_one else saved:
        reason = why_unusable(directory)
        if reason is None:
            for line in tried:
                print(f"passed over {line}")
            return Checkpoint(directory, _state(directory), _names(saved))
        tried.append(f"{directory}: {reason}")
    found = "; ".join(tried) or "has no checkpoint (step_N)"
    raise InputError(f"--resume_from_checkpoint {place}: {found}")


def parse_or_resume(
    kind: type[C], argv: list[str] | None, description: str
) -> tuple[C, Checkpoint | None]:
    """Settings of a new run, or those of the run that is to go on, and where it stopped.

    Raises InputError for a place without a run, a run of another script, and for flags that would
    alter the run: they are listed with both values.
    """
    given = config.given_flags(kind, argv, description)
    place = given.pop("resume_from_checkpoint", None)
    if place is None:
        return kind(**given), None
    run = _run_directory(place, given.pop("output_dir", None), kind)
    saved = config.load_run(run / "config.json")
    if type(saved) is not kind:
        raise InputError(f"--resume_from_checkpoint {place}: is a run of {saved.script}")
    changed = {
        f.name: (getattr(saved, f.name), given[f.name])
        for f in fields(kind)
        if f.name in given and f.name not in FREE and given[f.name] != getattr(saved, f.name)
    }
    if changed:
        table = "; ".join(f"--{n} is {now}, the run has {was}" for n, (was, now) in changed.items())
        raise InputError(f"--resume_from_checkpoint {place}: {table}; leave these flags out")
    free = {name: value for name, value in given.items() if name in FREE}
    checkpoint = find_checkpoint(Path(place) if _is_step(Path(place).name) else run)
    if checkpoint.step == saved.max_steps and checkpoint.state["pending"] is None:
        print(f"{run}: all {saved.max_steps} steps are done; there is nothing to resume")
        raise SystemExit(0)
    cfg = replace(saved, **free, output_dir=run)
    _check_same_model(cfg, saved, checkpoint)
    return cfg, checkpoint


def _check_same_model(cfg: TrainConfig, saved: TrainConfig, checkpoint: Checkpoint) -> None:
    """Raise InputError unless --model is the directory from which the run began, perhaps moved.

    A run that goes on reads only the other files of that directory, which its checkpoints hold
    too, and with --beta the weights: those are not compared, so then it has to be where it was.
    """
    if not cfg.model.is_dir():
        fix = "if it or the data was moved, give --model or --data anew"
        raise InputError(f"--model {cfg.model}: from there the run began, but it is gone; {fix}")
    if cfg.model.resolve() == saved.model.resolve():
        return
    if getattr(saved, "beta", 0.0) > 0:
        raise InputError(
            f"--model {cfg.model}: with --beta the run needs the weights that were in "
            f"{saved.model}; put them back there, a link will do"
        )
    for ours in sorted(checkpoint.hf.iterdir()):
        theirs = cfg.model / ours.name
        if "safetensors" in ours.name:  # the weights, and the index of their shards
            continue
        if not theirs.is_file() or ours.read_bytes() != theirs.read_bytes():
            raise InputError(
                f"--model {cfg.model}: the run began from another, {ours.name} differs"
            )


def _run_directory(place: str, output_dir: Path | None, kind: type[TrainConfig]) -> Path:
    """The run that is meant: named itself, by one of its checkpoints, or the `latest` one."""
    if place != "latest":
        directory = Path(place)
        run = directory.parent if _is_step(directory.name) else directory
        if output_dir is not None and output_dir.resolve() != run.resolve():
            raise InputError(f"--output_dir {output_dir}: a run goes on in its own, {run}")
    elif output_dir is not None:
        run = output_dir
    else:
        runs = [path.parent for path in Path("runs").glob("*/config.json") if _is_of(kind, path)]
        if not runs:
            raise InputError(
                f"--resume_from_checkpoint latest: there is no run of {kind.script} in runs/"
            )
        run = max(runs, key=lambda path: (path / "config.json").stat().st_mtime)
    if not (run / "config.json").is_file():
        raise InputError(f"--resume_from_checkpoint {place}: {run} is no run (no config.json)")
    return run


def _is_of(kind: type[TrainConfig], path: Path) -> bool:
    try:
        return type(config.load_run(path)) is kind
    except InputError:
        return False


def restore_logs(run: Path, sizes: dict[str, int]) -> None:
    """Cut the logs back to what they held when the checkpoint was made."""
    for name, size in sizes.items():
        path = run / name
        held = path.stat().st_size if path.is_file() else 0
        if held < size:
            print(f"{path}: {size - held} bytes are lost; the run goes on without them")
        else:
            os.truncate(path, size)
    for name in LOGS:
        if name not in sizes:  # begun after the checkpoint
            (run / name).unlink(missing_ok=True)


def log_sizes(run: Path) -> dict[str, int]:
    """The logs as they are: name -> bytes."""
    return {name: (run / name).stat().st_size for name in LOGS if (run / name).is_file()}
