"""What one must know to repeat a run: command, commit, versions, and fingerprints of the data.

Next: reporting/run_log.py, which writes it to run.json.
"""

import hashlib
import os
import platform
import subprocess
from dataclasses import replace
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path

import torch
from PIL import Image

import config
from config import TrainConfig
from data.examples import INSTRUCTIONS, Example
from data.files import SkipLog
from data.pictures import look
from model.vlm import VLM
from runtime import distributed
from tasks.task import Task

PACKAGES = ("torch", "transformers", "triton", "safetensors", "pillow", "numpy")


def data_hash(examples: list[Example]) -> str:
    """A fingerprint of all that examples are made of: text, box format, reasoning and pictures.

    Raises InputError for a picture that cannot be read any more.
    """
    digest = hashlib.sha256()
    for e in examples:
        text = repr((e.id, e.question, e.target, e.canvas, e.reasoning))
        digest.update(text.encode("utf-8", "replace"))
        for image in e.images:
            if isinstance(image, Image.Image):
                digest.update(repr((image.mode, image.size)).encode() + image.tobytes())
                continue
            digest.update(look(image).content.encode())  # of the file, read once
    return digest.hexdigest()[:16]


def about_run(cfg: TrainConfig, task: Task, model: VLM) -> dict:
    """The content of run.json."""
    if cfg.max_completion_length == task.max_completion_length:  # filled in by training/setup.py
        cfg = replace(cfg, max_completion_length=None)
    instruction = INSTRUCTIONS[cfg.prompt_mode]  # which full_question added
    installed = {d.name: d.version for d in distributions() if str(d.name).lower() in PACKAGES}
    return {
        "command": config.command(cfg, distributed.world_size()),
        "changed_flags": config.changed_flags(cfg),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _commit(),
        "headline": task.headline,
        "question": task.splits["held_out"][0].question.removesuffix(instruction).strip(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": _device_name(model.device),
        "versions": {"python": platform.python_version()} | installed,
        "data": {
            name: {"examples": len(examples), "sha256": data_hash(examples)}
            for name, examples in ({"train": task.train} | task.splits).items()
        },
        "skipped": list(SkipLog.reported),
    }


def _commit() -> str | None:
    command, place = ["git", "describe", "--always", "--dirty"], Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    counted = f"{threads} thread{'s' if threads > 1 else ''} of {os.cpu_count()}"
    return f"{platform.machine()} CPU, {counted}"
