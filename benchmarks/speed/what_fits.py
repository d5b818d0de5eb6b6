"""What fits which card, by the memory plan: the table of docs/models.md.

    python -m benchmarks.speed.what_fits

Computed from the published shapes, not measured on a card: bfloat16, four questions a step with 8
completions of 512 tokens, one group per micro-batch, images of a million pixels, tower frozen.
"""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

from benchmarks.speed.workload import QWEN2_5_VL_3B, QWEN2_VL_2B, QWEN3_VL_2B, QWEN3_VL_4B
from model.config import VLMConfig
from train_grpo import GRPOConfig
from training.memory_plan import GIB, fits, plan_of

CARDS = {16: 15.5, 24: 23.5, 48: 45.0, 80: 79.0, 141: 139.0}  # GB on the box: usable GiB
RUN = GRPOConfig(
    dtype="bfloat16",
    groups_per_micro_batch=1,
    prompts_per_step=4,
    max_completion_length=512,
    max_pixels=1003520,
)
RECIPES = {
    "LoRA 16, recomputing": replace(RUN, lora_rank=16, gradient_checkpointing=True),
    "LoRA 64, recomputing": replace(RUN, lora_rank=64, gradient_checkpointing=True),
    "LoRA 16": replace(RUN, lora_rank=16),
    "all weights, recomputing": replace(RUN, gradient_checkpointing=True),
    "all weights": RUN,
}


def larger(config: dict, text: dict, tied: bool, **vision) -> dict:
    """A config.json with other sizes."""
    config = deepcopy(config)
    (config.get("text_config") or config).update(text)
    config["vision_config"].update(vision)
    return config | {"tie_word_embeddings": tied}


SEVEN = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
SEVEN |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
EIGHT = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36}
EIGHT |= {"num_attention_heads": 32, "num_key_value_heads": 8}
TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096}
MODELS = {
    "Qwen2-VL-2B": QWEN2_VL_2B,
    "Qwen2-VL-7B": larger(QWEN2_VL_2B, SEVEN, False, hidden_size=3584),
    "Qwen2.5-VL-3B": QWEN2_5_VL_3B,
    "Qwen2.5-VL-7B": larger(QWEN2_5_VL_3B, SEVEN, False, out_hidden_size=3584),
    "Qwen3-VL-2B": QWEN3_VL_2B,
    "Qwen3-VL-4B": QWEN3_VL_4B,
    "Qwen3-VL-8B": larger(QWEN3_VL_4B, EIGHT, False, **TOWER),
}


def processor_of(config: dict) -> SimpleNamespace:
    """As much of a `Processor` as a plan reads."""
    cfg = VLMConfig.from_dict(config)
    image = SimpleNamespace(patch_size=cfg.vision.patch_size, merge_size=2, max_pixels=10**7)
    return SimpleNamespace(cfg=cfg, image_cfg=image)


def table() -> str:
    """The table in Markdown: GiB, and the smallest card that has them."""
    lines = [f"| | {' | '.join(RECIPES)} |", "|---|" + "---|" * len(RECIPES)]
    for name, config in MODELS.items():
        cells = []
        for run in RECIPES.values():
            plans = {
                card: plan_of(run, processor_of(config), room * GIB) for card, room in CARDS.items()
            }
            card = next((c for c, room in CARDS.items() if fits(plans[c], room * GIB)), None)
            peak = plans[card or max(CARDS)].peak / GIB
            cells.append(f"{peak:.1f}: {f'{card} GB' if card else 'none'}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
