"""The memory of a step, from shapes alone: no number is computed, no GPU is needed.

    python -m tests.gpu.memory      # one group of published sizes, LoRA

What torch's allocator would hold: tensors, in blocks of 512 bytes. Not counted: the CUDA context
(about 0.5 GiB), workspaces of cuBLAS (some 10 MiB), fragmentation.
"""

from types import SimpleNamespace
from unittest.mock import patch

import torch

from benchmarks.speed.workload import QWEN2_5_VL_3B, QWEN2_VL_2B, QWEN3_VL_4B
from model.config import VLMConfig
from model.lora import DEFAULT_ALPHA, AdapterReference, new_adapter
from model.vlm import VLM, Prompt, rope_positions
from sample import Decoder, generate_group
from tests.gpu import shadow
from tests.helpers import make_groups
from train_grpo import GRPOConfig, policy_loss
from training.micro_batches import MicroBatches
from training.optimizer import Optimizer

QWEN2_VL_7B = QWEN2_VL_2B | dict(
    hidden_size=3584,
    num_attention_heads=28,
    num_key_value_heads=4,
    intermediate_size=18944,
    vocab_size=152064,
    tie_word_embeddings=False,
    vision_config=QWEN2_VL_2B["vision_config"] | dict(hidden_size=3584),
)
SIZES = {
    "Qwen2-VL-2B": QWEN2_VL_2B,
    "Qwen2.5-VL-3B": QWEN2_5_VL_3B,
    "Qwen3-VL-4B": QWEN3_VL_4B,
    "Qwen2-VL-7B": QWEN2_VL_7B,
}
LORA = dict(lora_rank=16, gradient_checkpointing=True, dtype="bfloat16", device="cuda")
LORA |= dict(num_generations=8, max_completion_length=512, prompts_per_step=1)


def _prompt(cfg: VLMConfig, name: str, side: int, P: int) -> Prompt:
    """A picture of side x side patches and words, P tokens together."""
    image = torch.full((side**2 // cfg.vision.spatial_merge_size**2,), cfg.image_token_id)
    words = torch.arange(20, 20 + P - len(image))
    ids, grid = torch.cat((words[:5], image, words[5:])), (1, side, side)
    size = cfg.vision.in_channels * cfg.vision.temporal_patch_size * cfg.vision.patch_size**2
    return Prompt(name, ids, rope_positions(ids, [grid], cfg), torch.zeros(side**2, size), [grid])


def measure(config: dict, flags: dict, P: int = 1024, side: int = 60) -> dict[str, int]:
    """Peak bytes of every phase of a step of GRPO.

    Args:
        config: of a checkpoint. flags: of train_grpo; each completion has max_completion_length
            tokens. P: tokens of a prompt, with those of its picture of side x side patches.
    Returns: "weights" that are held, and peaks of "rollout", "update" (forward and backward of all
        micro-batches) and "adamw".
    """
    cfg, model_cfg = GRPOConfig(**flags), VLMConfig.from_dict(config)
    N, G, C = cfg.prompts_per_step, cfg.num_generations, cfg.max_completion_length
    prompts = [_prompt(model_cfg, f"q{n}", side, P) for n in range(N)]
    suppressed = torch.arange(model_cfg.text.vocab_size) >= 151643
    words = dict(end_ids=[], suppressed_tokens=suppressed, decode=lambda ids: "", opening="")
    with shadow.gpu(sizes_only=True) as gpu:
        with gpu.part("weights"):
            model = _model(model_cfg, getattr(torch, cfg.dtype))
            reference = None
            if cfg.beta > 0 and not cfg.lora_rank:
                reference = _model(model_cfg, getattr(torch, cfg.dtype)).requires_grad_(False)
            model.prepare_training(cfg.freeze_vision, cfg.gradient_checkpointing)
            if cfg.lora_rank:
                new_adapter(model, cfg.lora_rank, DEFAULT_ALPHA, cfg.seed)
                reference = AdapterReference(model, None) if cfg.beta > 0 else None
            optimizer = Optimizer(model, cfg)
            optimizer.clip_grad_norm(1.0)
            optimizer.step(0.0)  # the moments of AdamW appear in the first step
        gpu.peaks["weights"] = gpu.bytes
        with gpu.part("rollout"):
            if cfg.freeze_vision:
                with torch.no_grad():
                    model.keep_image_features(prompts)
            # Every decoding step holds the same: eight of them will do.
            with patch.object(Decoder, "unfinished_groups", lambda *_: torch.zeros(0)):
                rollout = generate_group(model, SimpleNamespace(**words), prompts, G, C)
        with gpu.part("update"):
            groups = make_groups(prompts, rollout, torch.ones(N, G), cfg)
            micro_batches, on_gpu = MicroBatches(model, optimizer, cfg), suppressed.cuda()
            for batch in micro_batches.split(groups):
                loss, stats = policy_loss(model, reference, batch, on_gpu, cfg)
                loss.backward()
                micro_batches.add(stats)
            del loss, stats, batch
        with gpu.part("adamw"):
            optimizer.clip_grad_norm(cfg.max_grad_norm)
            optimizer.step(0.0)
        return {name: gpu.peaks[name] for name in ("weights", "rollout", "update", "adamw")}


def _model(cfg: VLMConfig, dtype: torch.dtype) -> VLM:
    with torch.device("meta"):
        model = VLM(cfg)
    return model.to(dtype).to_empty(device="cuda")


def main() -> None:
    for name, config in SIZES.items():
        peaks = measure(config, LORA)
        print(name, ", ".join(f"{phase} {count / 2**30:.2f} GiB" for phase, count in peaks.items()))


if __name__ == "__main__":
    main()
