"""What a training run needs before its first step: settings filled in, questions, and the model.

Whatever cannot work is refused here, before the run leaves anything. Next: training/run.py.
"""

import time
from dataclasses import dataclass, replace

import torch

from config import TaskConfig, TrainConfig
from data.files import SkipLog
from model.load import check_files_fit, load_model, load_processor, local_directory
from model.lora import DEFAULT_ALPHA, AdapterReference, load_adapter, new_adapter
from model.processor import Processor
from model.transformers_processor import TransformersProcessor
from model.vlm import VLM
from runtime import console, distributed
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.run_directory import check_output_dir
from tasks import load_task, reads
from tasks.boxes import model_box_format
from tasks.task import Task
from training import memory_plan
from training.checkpoint import Checkpoint, check_room
from training.evaluation import EVAL_SPLITS, usable_splits
from training.fsdp import shard
from training.rollout_config import RolloutConfig


@dataclass
class Setup:
    """A run that is ready to begin.

    Attributes:
        cfg: with everything filled in. checkpoint: to resume from, None for a new run.
        start_time: time.time() when the set-up began.
    """

    cfg: TrainConfig
    processor: Processor
    task: Task
    model: VLM
    checkpoint: Checkpoint | None
    start_time: float


def prepare(cfg: TrainConfig, checkpoint: Checkpoint | None = None) -> Setup:
    """Load the task and the model of a training run and fill in what `cfg` left open.

    Raises InputError for anything that cannot work.
    """
    start_time = time.time()
    if checkpoint is None:
        check_output_dir(cfg.output_dir)
    check_ranks(cfg)
    SkipLog.reported.clear()
    cfg = replace(cfg, model=local_directory(cfg.model))
    processor = load_processor(cfg.model, cfg.max_pixels)
    check_model_flags(cfg, processor)
    task = load_task(cfg, processor)
    if cfg.max_completion_length is None:
        cfg = replace(cfg, max_completion_length=task.max_completion_length)
    check_acting(cfg, task, processor)
    processor.check_lengths(cfg.max_prompt_length, cfg.max_completion_length)
    evaluated = {name: task.splits[name] for name in EVAL_SPLITS if name in task.splits}
    usable = usable_splits({"train": task.train} | evaluated, processor, cfg)
    task = replace(task, train=usable.pop("train"), splits=task.splits | usable)
    warn_of_long_targets(task, processor, cfg.max_completion_length)
    if len(task.train) < cfg.prompts_per_step:
        print(
            f"data: {len(task.train)} training examples, fewer than --prompts_per_step "
            f"{cfg.prompts_per_step}: a step asks some of them twice"
        )
    if reads(cfg.task, "coords"):  # a run's config.json says which box format was used
        cfg = replace(cfg, coords=model_box_format(cfg, processor.model_type))
    cfg = with_memory_plan(cfg, processor)
    model = trainable_model(cfg, checkpoint)
    if distributed.rank() == 0:
        check_room(cfg, model, is_resumed=checkpoint is not None)
    example = task.train[0]
    check_files_fit(model, processor.prompt(example.id, example.images, example.question))
    names = {"held_out": "held-out", "ood": "out-of-distribution"}
    sizes = ", ".join(f"{len(task.splits[s])} {n}" for s, n in names.items() if s in task.splits)
    millions, ranks = sum(p.numel() for p in model.parameters()) / 1e6, distributed.world_size()
    print(
        f"{task.name}: {len(task.train)} training examples, {sizes}; "
        f"{millions:.1f} M parameters, {cfg.dtype} on {model.device}"
        + (f", {ranks} processes" if ranks > 1 else "")
    )
    return Setup(cfg, processor, task, model, checkpoint, start_time)


def warn_of_long_targets(task: Task, processor: Processor, limit: int) -> None:
    """Print a line if right answers, without any thought, do not fit into a completion."""
    targets = [f"<answer>{example.target}</answer>" for example in task.train]
    longest = [text for text in dict.fromkeys(targets) if len(text.encode()) >= limit]
    lengths = {text: len(processor.encode(text)) + 1 for text in longest}  # 1: the end token
    if too_long := [text for text in targets if lengths.get(text, 0) > limit]:
        worst = max(too_long, key=lengths.get)
        print(
            f"warning: {len(too_long)} of {len(targets)} right answers do not fit into "
            f"--max_completion_length {limit} and can never be earned: {worst[:60]!r} has "
            f"{lengths[worst]} tokens, without a thought; raise it"
        )


def check_acting(cfg: TaskConfig, task: Task, processor: Processor) -> None:
    """Raise InputError for what cannot follow completions that act."""
    if task.environment is None:
        return
    if isinstance(processor, TransformersProcessor):
        name = processor.family.name
        raise InputError(f"--task {task.name}: not for {name}, which runs through transformers")
    if cfg.question is not None:
        raise InputError(f"--question: the question of --task {task.name} says how to act")
    if getattr(cfg, "pictures", "real") != "real":
        what = "what it is shown later would be real"
        raise InputError(f"--pictures {cfg.pictures}: not for --task {task.name}, {what}")
    for flag in ("replay_buffer_size", "dynamic_sample", "reward_model", "report_attention"):
        if getattr(cfg, flag, None):
            raise InputError(f"--{flag}: not for --task {task.name}, whose completions act")
    if getattr(cfg, "votes", 1) > 1 and len({example.target for example in task.train}) == 1:
        what = f"all answers of --task {task.name} are the same, how they are reached is not"
        raise InputError(f"--votes {cfg.votes}: {what}; leave it out")
    if cfg.script == "train_verifier.py":
        raise InputError(f"--task {task.name}: its completions act, which no verifier reads yet")


def check_model_flags(cfg: TrainConfig, processor: Processor) -> None:
    """Raise InputError for a flag that the model cannot serve."""
    if isinstance(processor, TransformersProcessor):
        name = processor.family.name
        for flag in ("fsdp", "gradient_checkpointing", "report_attention", "lora_rank", "adapter"):
            if getattr(cfg, flag):
                raise InputError(f"--{flag}: not for {name}, which runs through transformers")
        print(f"{name} runs through transformers: the slow path (docs/models.md)")


def with_memory_plan(cfg: TrainConfig, processor: Processor) -> TrainConfig:
    """Choose the micro-batches, and say what memory the run needs; with --plan end there."""
    if isinstance(processor, TransformersProcessor):
        if cfg.plan:
            raise InputError("--plan: only for the hand-written families")
        return replace(cfg, groups_per_micro_batch=cfg.groups_per_micro_batch or 1)
    device, ranks = pick_device(cfg.device, cfg.dtype), distributed.world_size()
    available = memory_plan.memory_at_hand(cfg, device)
    cfg = memory_plan.with_micro_batches(cfg, processor, available, ranks)
    if available is None and not cfg.plan:  # on a CPU nobody asks
        return cfg
    planned = memory_plan.plan_of(cfg, processor, available, ranks)
    print((memory_plan.in_full if cfg.plan else memory_plan.in_two_lines)(planned, available))
    if available is not None:
        console.advice = memory_plan.advice(cfg, processor, available, ranks)
        if not memory_plan.fits(planned, available):
            print(f"warning: this does not fit; {console.advice}")
    if cfg.plan:
        raise SystemExit(0)
    return cfg


def check_ranks(cfg: TrainConfig) -> None:
    """Raise InputError unless the number of ranks fits the settings."""
    count, ranks = cfg.prompts_per_step, distributed.world_size()
    if count < ranks:
        raise InputError(f"--prompts_per_step {count}: must be at least {ranks}, one for each rank")
    if cfg.fsdp and ranks == 1:
        raise InputError("--fsdp: needs several ranks; start with torchrun, or give --no-fsdp")


def trainable_model(cfg: TrainConfig, checkpoint: Checkpoint | None) -> VLM:
    """The model on its device, sharded with --fsdp, with gradients where `cfg` wants them."""
    device, dtype = pick_device(cfg.device, cfg.dtype), getattr(torch, cfg.dtype)
    source = cfg.model if checkpoint is None else checkpoint.hf or cfg.model
    model = load_model(source, dtype, torch.device("cpu") if cfg.fsdp else device)
    model.prepare_training(cfg.freeze_vision, cfg.gradient_checkpointing)
    if cfg.trains_adapter:
        adapter = cfg.adapter if checkpoint is None else checkpoint.adapter
        if adapter is None:
            new_adapter(model, cfg.lora_rank, cfg.lora_alpha or DEFAULT_ALPHA, cfg.seed)
        else:
            load_adapter(model, adapter, cfg.lora_rank, trains=True)
    if cfg.fsdp:
        shard(model.float(), dtype, device)  # the shards are what the optimizer works on
    return model


def load_reference(model: VLM, cfg: RolloutConfig) -> VLM | None:
    """The reference of the KL term, the policy as it was before the first step; None at beta 0."""
    if cfg.beta == 0:
        return None
    if cfg.trains_adapter:  # no second model: the base, with the adapter that the run began from
        return AdapterReference(model, cfg.adapter)
    return load_model(cfg.model, getattr(torch, cfg.dtype), model.device).requires_grad_(False)
