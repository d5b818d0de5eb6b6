"""How much GPU memory a run needs, computed from config.json and the flags before it begins.

    python train_grpo.py --model DIR --dtype bfloat16 --lora_rank 16 --gpu_memory 24 --plan

Weights and what the optimizer keeps of them are counted exactly, on a model without storage. What a
forward keeps for its backward is counted per token and layer of the GPU path (flash attention in
bfloat16, kernels/logprob.py), for the largest prompt that the flags allow. CONTEXT is what CUDA and
its libraries take themselves. Not in it: fragmentation, other programs on the card.

Computed, not measured on a card: tests/gpu/test_rehearsal.py compares the plan with the allocations
that torch would make. Read first: training/setup.py. Next: training/run.py.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch

from acting.episodes import MOST_TOKENS
from config import TrainConfig
from kernels import logprob
from model.config import VLMConfig
from model.lora import LoRAConfig, linears
from model.processor import Processor
from model.vlm import TOWER_PATCHES, VLM
from runtime.errors import InputError
from tasks import later_pictures
from training.batches import MOST_GROUPS

GIB = 2**30
CONTEXT = 1.5 * GIB  # CUDA context, library workspaces, the pool of a recorded graph
ROOM = 0.9  # of the memory at hand is planned for
QUESTION = 128  # tokens of a prompt besides its image
AROUND = 16  # tokens around a picture that a completion is shown
KEPT_MLP = 2  # tensors of the width of the MLP that a layer keeps: gate and up (kernels/swiglu.py)


@dataclass(frozen=True)
class Sizes:
    """What the memory of a run depends on, in tokens and numbers."""

    prompt: int  # tokens of a prompt, P
    image: int  # image tokens in it
    prompts: int  # questions of a step on this GPU, N
    groups: int  # of a micro-batch
    completions: int  # of a question, G
    length: int  # tokens of a completion, at most
    pictures: int = 0  # that a completion is shown, at most

    @property
    def shown(self) -> int:
        """Tokens that a completion is shown, at most."""
        return self.pictures * (self.image + AROUND)


@dataclass(frozen=True)
class Plan:
    """Bytes by part, and what is in memory in each phase of a step."""

    parts: dict[str, float]
    phases: dict[str, float]

    @property
    def peak(self) -> float:
        """Of the largest phase."""
        return max(self.phases.values())

    @property
    def largest(self) -> str:
        """The name of that phase."""
        return max(self.phases, key=self.phases.get)


def sizes_of(cfg: TrainConfig, processor: Processor, ranks: int) -> Sizes:
    """The largest prompt that the flags allow, and how many are in memory at once."""
    image_cfg = processor.image_cfg
    side = image_cfg.patch_size * image_cfg.merge_size  # pixels of an image token
    pixels = min(image_cfg.max_pixels, cfg.max_pixels or image_cfg.max_pixels)
    image = max(1, min(pixels // side**2, cfg.max_prompt_length - QUESTION))
    prompts = -(-cfg.prompts_per_step // ranks)
    return Sizes(
        prompt=image + QUESTION,
        image=image,
        prompts=prompts,
        groups=min(cfg.groups_per_micro_batch or 1, prompts),
        completions=getattr(cfg, "num_generations", 1),
        length=cfg.max_completion_length or 256,
        pictures=later_pictures(cfg.task),
    )


@cache
def parameter_counts(cfg: VLMConfig) -> tuple[int, int, int, int]:
    """Numbers of the whole model, of its tower, of its head, and of an adapter of rank 1."""
    with torch.device("meta"):  # half a second at 7B; a run makes several plans
        model = VLM(cfg)
    adapter = sum(
        module.in_features + count for _, module, rows in linears(model) for count in rows.values()
    )
    total, tower = (sum(p.numel() for p in m.parameters()) for m in (model, model.visual))
    return total, tower, model.head_weight.numel(), adapter


def plan(
    cfg: VLMConfig,
    run: TrainConfig,
    sizes: Sizes,
    ranks: int = 1,
    available: float | None = None,
) -> Plan:
    """The memory of a run on one of `ranks` GPUs with `available` bytes each.

    Notes: with --fsdp what the optimizer keeps is divided by the ranks, the weights are not: a
        rollout gathers them.
    """
    total, tower, head, of_rank_one = parameter_counts(cfg)
    size = 2 if run.dtype == "bfloat16" else 4
    rank = LoRAConfig.from_directory(run.adapter).rank if run.adapter else run.lora_rank
    adapter = rank * of_rank_one
    trained = adapter if rank else total - (tower if run.freeze_vision else 0)
    shards = ranks if run.fsdp else 1
    is_fp32 = size == 4 and not run.fsdp
    head_trained = 0 if rank else head
    kept_of_trained = ((0 if is_fp32 else 4) + 8) * trained / shards  # masters and moments
    pictures = sizes.prompts * (1 + sizes.completions * sizes.pictures)
    feature_count = pictures * sizes.image * cfg.vision.levels * cfg.text.hidden_size
    parts = {
        "context": CONTEXT,
        "weights": total * size,
        "adapter": adapter * size,
        "reference": total * size * run.frozen_models,
        "critic": (run.trained_models - 1) * (total * size + adapter * size + kept_of_trained),
        "masters": 0 if is_fp32 else 4 * trained / shards,
        "moments": 8 * trained / shards,
        "gradients": 4 * trained / shards,
        "image features": size * feature_count if run.freeze_vision else 0,
        "cache": cache_bytes(cfg, sizes, size),
        "sampler": sizes.prompts * sizes.completions * cfg.text.vocab_size * 24,
        "prefill": prefill_tokens(sizes) * layer_bytes(cfg, size, keeps=False),
        "tower": tower_bytes(cfg, run, sizes, size),
        "activations": activation_bytes(cfg, run, sizes, size),
        "head": head_bytes(cfg, sizes, size, head_trained, available),
    }
    kept = ("context", "weights", "adapter", "reference", "critic", "masters", "moments")
    static = sum(parts[name] for name in (*kept, "image features"))
    in_forward = parts["activations"] + parts["head"]
    if sizes.groups < sizes.prompts:  # from the second micro-batch on, beside the gradients
        update = static + in_forward + parts["gradients"]
    else:  # gradients appear as the layers' tensors go
        update = static + max(in_forward, parts["gradients"] + parts["head"])
    rollout = static + parts["cache"] + max(parts["sampler"], parts["prefill"])
    if sizes.pictures and not run.freeze_vision:  # kept from turn to turn, and then forgotten
        rollout += size * feature_count
    phases = {
        "tower": static + (parts["tower"] if run.freeze_vision else 0),
        "rollout": rollout,
        "update": update + (0 if run.freeze_vision else parts["tower"]),
    }
    return Plan(parts, phases)


def cache_bytes(cfg: VLMConfig, sizes: Sizes, size: int) -> int:
    """Keys and values of a rollout: every prompt once, and G completions of it; or of a part of a
    later turn, in which each completion has a history of its own (acting/episodes.py)."""
    text = cfg.text
    slots = sizes.prompts * (sizes.prompt + sizes.completions * sizes.length)
    if sizes.pictures:
        history = sizes.prompt + sizes.shown + sizes.length
        rows = max(1, min(MOST_TOKENS // history, sizes.prompts * sizes.completions))
        slots = max(slots, rows * (history + sizes.length))
    per_slot = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * size
    return slots * per_slot


def prefill_tokens(sizes: Sizes) -> int:
    """Tokens that are prefilled at once: all prompts; of a later turn, parts with their history."""
    history = sizes.prompt + sizes.shown + sizes.length
    later = max(MOST_TOKENS, history) if sizes.pictures else 0
    whole = sizes.prompts * sizes.completions * history
    return max(sizes.prompts * sizes.prompt, min(later, whole))


def layer_bytes(cfg: VLMConfig, size: int, keeps: bool = True) -> int:
    """Bytes per token of one decoder layer: what it keeps for backward, or has at once without.

    Kept: its input and that of the MLP, both also normalised (4 D); queries, keys, values and the
    attention's output (2 H E + 2 K E); with normalised queries and keys what they were before; and
    KEPT_MLP tensors of the MLP.
    """
    text = cfg.text
    heads = (text.num_attention_heads + text.num_key_value_heads) * text.head_dim
    if not keeps:  # the residual stream and the MLP's three tensors, or queries, keys, values
        return size * (2 * text.hidden_size + max(3 * text.intermediate_size, 4 * heads))
    before = heads + text.num_key_value_heads * text.head_dim if text.family.qk_norm else 0
    return size * (4 * text.hidden_size + 2 * heads + before + KEPT_MLP * text.intermediate_size)


def activation_bytes(cfg: VLMConfig, run: TrainConfig, sizes: Sizes, size: int) -> int:
    """What the forward of a micro-batch keeps for its backward, in all layers."""
    text, layers = cfg.text, cfg.text.num_hidden_layers
    length = sizes.length + sizes.shown
    tokens = sizes.groups * (sizes.prompt + sizes.completions * length)
    # A completion's keys and values are gathered behind those of its prefix.
    gathered = sizes.groups * sizes.completions * (sizes.prompt + length)
    keys = 2 * text.num_key_value_heads * text.head_dim * size * gathered
    one_layer = tokens * layer_bytes(cfg, size) + keys
    hidden = tokens * text.hidden_size * size
    if run.gradient_checkpointing:  # inputs of the layers; one layer at a time, and its gradients
        return layers * hidden + 2 * one_layer
    return layers * one_layer + 2 * hidden


def head_bytes(
    cfg: VLMConfig, sizes: Sizes, size: int, trained: int, available: float | None
) -> int:
    """Odds of a chunk of columns, their product, and the gradient of the head's weight."""
    tokens = sizes.groups * sizes.completions * sizes.length
    odds = min(tokens * cfg.text.vocab_size * size, logprob.chunk_bytes(available))
    return odds + 2 * tokens * cfg.text.hidden_size * size + trained * size


def tower_bytes(cfg: VLMConfig, run: TrainConfig, sizes: Sizes, size: int) -> int:
    """The vision tower over the images that are in it at once: of a step, or of a micro-batch."""
    vision = cfg.vision
    patches = sizes.image * vision.spatial_merge_size**2  # of an image
    per_patch = size * (6 * vision.embed_dim + 3 * vision.intermediate_size)
    if run.freeze_vision:
        return min(sizes.prompts * patches, max(patches, TOWER_PATCHES)) * per_patch
    pictures = sizes.groups * (1 + sizes.completions * sizes.pictures)
    return pictures * patches * per_patch * vision.depth


# ---- what is said ------------------------------------------------------------------------------


def in_two_lines(plan: Plan, available: float | None) -> str:
    """The plan for the console, as a run begins."""
    largest = sorted(plan.parts.items(), key=lambda part: -part[1])[:4]
    parts = ", ".join(f"{name} {value / GIB:.1f}" for name, value in largest)
    room = f" of {available / GIB:.1f}" if available else ""
    return (
        f"memory, computed: {plan.peak / GIB:.1f}{room} GiB in the {plan.largest} "
        f"(--plan says more)\n  largest parts in GiB: {parts}"
    )


def in_full(plan: Plan, available: float | None) -> str:
    """Every part and phase, in GiB."""
    lines = [f"{name:<16}{value / GIB:8.2f}" for name, value in plan.parts.items()]
    lines += ["", *(f"{'in ' + name:<16}{value / GIB:8.2f}" for name, value in plan.phases.items())]
    if available:
        lines.append(f"{'available':<16}{available / GIB:8.2f}")
    return "\n".join(lines)


CHANGES = (  # what brings memory down, the cheapest first
    ("--groups_per_micro_batch 1", lambda run: {"groups_per_micro_batch": 1}),
    ("--dtype bfloat16", lambda run: {"dtype": "bfloat16"}),
    ("--gradient_checkpointing", lambda run: {"gradient_checkpointing": True}),
    ("--lora_rank 16", lambda run: {"lora_rank": 16} if not run.trains_adapter else {}),
    ("--max_pixels 401408", lambda run: {"max_pixels": min(run.max_pixels or 10**9, 401408)}),
    ("--max_completion_length 256", lambda run: {"max_completion_length": 256}),
    ("--prompts_per_step 4", lambda run: {"prompts_per_step": min(run.prompts_per_step, 4)}),
)


def plan_of(
    run: TrainConfig, processor: Processor, available: float | None = None, ranks: int = 1
) -> Plan:
    """`plan` of a run's flags and checkpoint."""
    return plan(processor.cfg, run, sizes_of(run, processor, ranks), ranks, available)


def memory_at_hand(run: TrainConfig, device: torch.device) -> float | None:
    """Bytes to plan for: --gpu_memory, or the card's; None on a CPU."""
    if run.gpu_memory is not None:
        return run.gpu_memory * GIB
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory


def fits(planned: Plan, available: float) -> bool:
    """Whether a run fits into `available` bytes: a tenth of them is left to fragmentation."""
    return planned.peak <= ROOM * available


def with_micro_batches(
    run: TrainConfig, processor: Processor, available: float | None, ranks: int
) -> TrainConfig:
    """The run with --groups_per_micro_batch chosen: the largest that fits, at most 8."""
    if run.groups_per_micro_batch is not None:
        return run
    for groups in (MOST_GROUPS, 4, 2, 1):
        chosen = replace(run, groups_per_micro_batch=groups)
        if available is None or fits(plan_of(chosen, processor, available, ranks), available):
            break
    return chosen


def changes_that_fit(
    run: TrainConfig, processor: Processor, available: float, ranks: int = 1
) -> list[str] | None:
    """The flags that make a run fit into `available` bytes, one after the other; None: none do."""
    flags, planned = [], plan_of(run, processor, available, ranks)
    for words, change in CHANGES:
        if fits(planned, available):
            break
        try:
            changed = replace(run, **change(run))
        except InputError:  # not beside the other flags of this run
            continue
        lower = plan_of(changed, processor, available, ranks)
        if lower.peak < planned.peak:
            run, planned, flags = changed, lower, [*flags, words]
    return flags if fits(planned, available) else None


def advice(run: TrainConfig, processor: Processor, available: float, ranks: int = 1) -> str:
    """What to change where memory runs out, or would."""
    flags = changes_that_fit(run, processor, available, ranks)
    if flags is None:
        return "no flags bring it down far enough: a smaller model, or several GPUs with --fsdp"
    return f"try {' '.join(flags)}" if flags else "other programs may use the card"
