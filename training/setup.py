"""What a training run needs before its first step: settings filled in, questions, and the model.

Whatever cannot work is said here, before the run leaves anything. Next: training/run.py.
"""

from dataclasses import replace

import torch

from config import TrainConfig
from data.files import SkipLog
from evaluate import READ_BY, frame_spoken, load_task, usable_examples
from model.processor import Processor
from model.vlm import VLM
from model.weights import load_model
from reporting.run_log import check_output_dir
from runtime import distributed
from runtime.errors import InputError
from sample import pick_device
from tasks import Task
from training.checkpoint import Checkpoint
from training.fsdp import shard

EVAL_SPLITS = {"held_out": "eval/", "ood": "eval/ood_"}  # split -> prefix of its metrics


def with_usable_prompts(task: Task, processor: Processor, cfg: TrainConfig) -> Task:
    """The task without examples whose prompt cannot be built, before the run leaves anything.

    Raises InputError when more than a few are lost, or none is left.
    """
    skips = SkipLog()
    judged = {name: task.splits[name] for name in EVAL_SPLITS if name in task.splits}
    kept = {
        name: usable_examples(examples, processor, cfg.max_prompt_length, skips)
        for name, examples in ({"train": task.train} | judged).items()
    }
    skips.check(len(task.train) + sum(map(len, judged.values())), cfg.max_skip)
    if empty := [name for name, examples in kept.items() if not examples]:
        raise InputError(f"--data: no example is left in {empty[0]}; {skips.first[0]}")
    return replace(task, train=kept.pop("train"), splits=task.splits | kept)


def prepare(
    cfg: TrainConfig, checkpoint: Checkpoint | None = None
) -> tuple[TrainConfig, Processor, Task, VLM]:
    """Task and model of a training run, before the run leaves anything; what was left open in
    `cfg` is filled in. Raises InputError for anything that cannot work."""
    if checkpoint is None:
        check_output_dir(cfg.output_dir)
    ranks = distributed.world_size()
    if cfg.prompts_per_step < ranks:
        count = cfg.prompts_per_step
        raise InputError(f"--prompts_per_step {count}: must be at least {ranks}, one for each rank")
    if cfg.fsdp and ranks == 1:
        raise InputError("--fsdp: needs several ranks; start with torchrun, or give --no-fsdp")
    SkipLog.reported.clear()
    processor = Processor(cfg.model, cfg.max_pixels)
    task = with_usable_prompts(load_task(cfg, processor), processor, cfg)
    if len(task.train) < cfg.prompts_per_step:
        print(
            f"data: {len(task.train)} training examples, fewer than --prompts_per_step "
            f"{cfg.prompts_per_step}: a step asks some of them twice"
        )
    if cfg.task in READ_BY["coords"]:  # a run's config.json says which frame was used
        cfg = replace(cfg, coords=frame_spoken(cfg, processor))
    if cfg.max_completion_length is None:
        cfg = replace(cfg, max_completion_length=task.max_completion_length)
    device, dtype = pick_device(cfg.device, cfg.dtype), getattr(torch, cfg.dtype)
    source = cfg.model if checkpoint is None else checkpoint.hf
    model = load_model(source, dtype, torch.device("cpu") if cfg.fsdp else device)
    model.visual.requires_grad_(not cfg.freeze_vision)
    for part in (model.model, model.visual):
        part.gradient_checkpointing = cfg.gradient_checkpointing
    if cfg.fsdp:
        shard(model.float(), dtype, device)  # the shards are what the optimizer works on
    sizes = ", ".join(f"{len(task.splits[s])} {s}" for s in EVAL_SPLITS if s in task.splits)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{task.name}: {len(task.train)} training examples, {sizes}; "
        f"{millions:.1f} M parameters, {cfg.dtype} on {device}"
        + (f", {ranks} processes" if ranks > 1 else "")
    )
    return cfg, processor, task, model
