"""Add a LoRA adapter to the weights of its base and write a whole checkpoint.

    python merge.py --model BASE --adapter runs/NAME/step_200/adapter --output merged

The sum is computed in fp32 and rounded once. What rounding leaves of the update is printed: the
relative error of the change that the weights hold, and its cosine with the change that was wanted.
Updates of reinforcement learning are small against a step of bfloat16; where little is left of one,
write `--dtype float32`, or serve the adapter beside its base. Read first: model/lora.py.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

import config
from config import BASE_MODEL, flag, require
from model.load import load_model, local_directory
from model.lora import merge
from model.weights import read_slots, save_model
from runtime import console
from runtime.errors import InputError
from runtime.run_directory import read_json_object, write_atomically


@dataclass(frozen=True)
class MergeConfig:
    adapter: Path = flag(Path(), "directory of the LoRA adapter")
    output: Path = flag(Path(), "directory to write; must not exist")
    model: Path = flag(BASE_MODEL, "the base that the adapter was trained on")
    dtype: Literal["bfloat16", "float32"] = flag("bfloat16", "of the merged weights")

    def __post_init__(self) -> None:
        for name in ("adapter", "output"):
            require(getattr(self, name) != Path(), name, "given", self)
        require(not self.output.exists(), "output", "a directory that does not exist yet", self)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(MergeConfig, argv, __doc__)
    source, dtype = local_directory(cfg.model), getattr(torch, cfg.dtype)
    model = load_model(source, dtype, adapter=cfg.adapter)
    error, cosine = merge(model)
    slots = {key: replace(slot, dtype=dtype) for key, slot in read_slots(source).items()}
    save_model(model, cfg.output, source, slots)
    name_dtype(cfg.output / "config.json", cfg.dtype)
    print(f"the merged weights miss {error:.1%} of the update (cosine {cosine:.3f}): {cfg.output}")
    if error > 0.5:
        print("warning: most of the update is lost to rounding; merge with --dtype float32")


def name_dtype(path: Path, dtype: str) -> None:
    """Say in a config.json which dtype the files have; readers convert to what it says."""
    raw = read_json_object(path)
    for fields in (raw, raw.get("text_config") or {}, raw.get("vision_config") or {}):
        fields |= {name: dtype for name in ("dtype", "torch_dtype") if name in fields}
    try:
        write_atomically(path, json.dumps(raw, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error})") from None


if __name__ == "__main__":
    console.run(main)
