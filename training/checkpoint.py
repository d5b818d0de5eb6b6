"""Checkpoints that survive a night: never half written, verified before use, resumed exactly.

    runs/NAME/step_120/hf/              the model, as any tool loads it; of a LoRA run instead
    runs/NAME/step_120/adapter/         the adapter, as PEFT loads it
    runs/NAME/step_120/trainer/         what training needs to continue: optimizer.safetensors and
                                        state.json; no pickle
    runs/NAME/step_120/manifest.json    size and sha256 of every file, written last

A checkpoint is made in a hidden directory, flushed to the disk and renamed: `step_120` is complete
or absent. Older ones are removed only after the new one has been verified. Random numbers need no
state: data order and sampling are functions of (seed, step). Next: training/resume.py.
"""

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from config import TrainConfig
from model.load import save_model
from model.lora import has_adapter, save_adapter
from model.vlm import VLM
from model.weights import saved_bytes
from runtime.errors import InputError
from runtime.run_directory import LOGS, is_step, saved_steps, step_number

MANIFEST = "manifest.json"
OPTIMIZER = "trainer/optimizer.safetensors"
PARTS = {"trainer/state.json", OPTIMIZER}
MODELS = {"hf/config.json", "adapter/adapter_config.json"}  # one of them


@dataclass(frozen=True)
class Checkpoint:
    """A verified directory step_N of a run.

    Attributes:
        state: what its state.json says: step; sizes of the logs; not_finite, the bad updates;
            settings, those of config.json.
        lock: held on the run's directory since the checkpoint was chosen (rank 0).
    """

    directory: Path
    state: dict
    lock: TextIO | None = None

    @property
    def step(self) -> int:
        """The finished step that it holds."""
        return self.state["step"]

    @property
    def hf(self) -> Path | None:
        """The model's directory; None for a checkpoint of an adapter."""
        return None if self.adapter else self.directory / "hf"

    @property
    def adapter(self) -> Path | None:
        """The adapter's directory; None for a checkpoint of a whole model."""
        place = self.directory / "adapter"
        return place if place.is_dir() else None

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Masters and moments by name; moments only from the first update on."""
        path = self.directory / OPTIMIZER
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None


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
        companions: the directory that the model came from: its other files are copied
            (`save_model`), or it is named as the adapter's base.
        optimizer_tensors: by name, see `TrainingRun`.
        keep: how many checkpoints may stay; None keeps all.
    Raises: InputError if it cannot be written; older checkpoints are untouched then.
    """
    final = run / f"step_{state['step']}"
    unfinished = run / f".{final.name}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        state_bytes = sum(tensor.nbytes for tensor in optimizer_tensors.values())
        needed = model_bytes(model, companions) + state_bytes
        free = shutil.disk_usage(run).free
        if free < 1.05 * needed:
            raise OSError(f"needs about {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")
        (unfinished / "trainer").mkdir(parents=True)
        if has_adapter(model):
            save_adapter(model, unfinished / "adapter", companions)
        else:
            save_model(model, unfinished / "hf", companions)
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
        if final.exists():  # damaged: a sound one is not written again
            shutil.rmtree(final)
        os.replace(unfinished, final)
        _flush(run)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{final}: cannot be saved ({error})") from error
    except InputError as error:  # of the model's directory
        raise InputError(str(error).replace(str(unfinished), str(final))) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    if keep is not None and why_unusable(final) is None:
        older = [path for path in saved_steps(run) if step_number(path) < state["step"]]
        for path in older[keep - 1 :]:
            shutil.rmtree(path, ignore_errors=True)  # a half-removed one does not verify
    return final


def trained_numbers(model: VLM) -> int:
    """How many numbers of a model are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def model_bytes(model: VLM, companions: Path) -> int:
    """The size of the model, or of its adapter, in a checkpoint."""
    return 4 * trained_numbers(model) if has_adapter(model) else saved_bytes(companions)


def checkpoint_bytes(model: VLM, companions: Path, models: int = 1) -> int:
    """The size of a checkpoint: the model, and masters and moments in fp32 of all `models`, that
    is one, or also a critic."""
    return model_bytes(model, companions) + 12 * models * trained_numbers(model)


def check_room(cfg: TrainConfig, model: VLM, is_resumed: bool) -> None:
    """Raise InputError unless the disk has room for all checkpoints that will be there at once.

    An old one goes after the new one has been written. What the run holds already is counted.
    """
    run, every = (cfg.output_dir or Path("runs")).resolve(), cfg.steps_between_saves
    count = math.ceil(cfg.max_steps / every) if every else 1
    if cfg.save_total_limit is not None:
        count = min(count, cfg.save_total_limit + 1)
    there = len(saved_steps(run)) if is_resumed else 0
    needed = max(1, count - there) * checkpoint_bytes(model, cfg.model, cfg.trained_models)
    free = shutil.disk_usage(next(path for path in (run, *run.parents) if path.exists())).free
    if free < 1.05 * needed:
        raise InputError(
            f"--output_dir {cfg.output_dir or 'runs'}: {max(1, count - there)} checkpoints at once "
            f"need about {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; choose another disk, "
            "or keep fewer with --save_total_limit 1 or --save_steps 0"
        )


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


def why_unusable(directory: Path, to_train: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None: every file is there with its size and sha256.

    Args:
        to_train: also what the optimizer needs, most of the bytes.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            path = directory / name
            if name == OPTIMIZER and not to_train:
                continue
            if path.stat().st_size != entry["bytes"] or _hash(path) != entry["sha256"]:
                return f"{name} is damaged"
        if not PARTS <= manifest.keys() or not MODELS & manifest.keys():
            return f"{MANIFEST} is incomplete"
        state = _state(directory)
        sizes, bad = state["sizes"], state["not_finite"]
        is_size = all(type(size) is int and size >= 0 for size in sizes.values())
        is_settings = isinstance(state.get("settings", {}), dict)
        if not (is_size and is_settings and sizes.keys() <= {*LOGS} and isinstance(bad, list)):
            return "state.json was edited"
        return None if state["step"] == step_number(directory) else "state.json is of another step"
    except OSError as error:
        return f"{Path(error.filename or directory).name} cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} or state.json is damaged ({error})"


def _state(directory: Path) -> dict:
    return json.loads((directory / "trainer" / "state.json").read_text(encoding="utf-8"))


def find_checkpoint(place: Path) -> Checkpoint:
    """The newest usable checkpoint of a run, or the one that `place` names itself.

    A damaged one of a run is skipped with a line. Raises InputError if none is left, or if the one
    that was named is damaged.
    """
    if is_step(place.name) and not place.is_dir():
        names = ", ".join(path.name for path in saved_steps(place.parent)) or "none"
        raise InputError(f"--resume_from_checkpoint {place}: no such checkpoint; there is {names}")
    damaged = []
    for directory in [place] if is_step(place.name) else saved_steps(place):
        reason = why_unusable(directory)
        if reason is None:
            for line in damaged:
                print(f"skipped {line}")
            return Checkpoint(directory, _state(directory))
        damaged.append(f"{directory}: {reason}")
    reasons = "; ".join(damaged) or "has no checkpoint (step_N)"
    raise InputError(f"--resume_from_checkpoint {place}: {reasons}")
