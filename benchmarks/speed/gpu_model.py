"""A model at the true dimensions of Qwen2-VL-2B with random weights, for benchmarks on one GPU.

`--size small` takes a miniature instead, on any machine: it shows that a script runs, not how fast.
"""

import argparse
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.speed.real_size import CONFIG, random_model
from benchmarks.timing import machine
from model.config import VLMConfig
from model.vlm import VLM, Prompt, rope_positions
from runtime.device import pick_device

TRAINED_IDS = 151657  # of 151936: those from here on are padding of the embedding
MATMUL_TFLOPS = 790.0  # bf16, measured on an H200 with random data


@dataclass(frozen=True)
class Size:
    config: dict
    side: int  # patches along each side of the picture
    P: int  # prompt tokens, the picture's included
    C: int  # tokens of a completion


MINIATURE = CONFIG | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "vision_config": CONFIG["vision_config"]
    | {"depth": 2, "embed_dim": 64, "num_heads": 2, "hidden_size": 64},
}
SIZES = {
    "2b": Size(CONFIG, side=60, P=1000, C=300),
    "small": Size(MINIATURE, side=8, P=40, C=12),
}


def arguments(doc: str) -> tuple[Size, torch.device]:
    """The command line of every GPU benchmark; prints the header line."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="2b")
    args = parser.parse_args()
    device = pick_device("auto")
    if args.size == "2b" and device.type == "cpu":
        raise SystemExit("error: --size 2b needs a GPU; --size small runs anywhere")
    print(f"{machine()}, size {args.size}")
    return SIZES[args.size], device


def build(size: Size, device: torch.device) -> VLM:
    """bf16 on a GPU, float32 on a CPU."""
    model = random_model(VLMConfig.from_dict(size.config)).to(device)
    return model if device.type == "cuda" else model.float()


def stand_in_processor(vocab_size: int) -> SimpleNamespace:
    """What `generate_group` asks of a processor; nobody stops early, no text is made."""
    suppressed = torch.arange(vocab_size) >= TRAINED_IDS
    return SimpleNamespace(suppressed_tokens=suppressed, end_ids=[], decode=lambda ids: "")


def questions(cfg: VLMConfig, size: Size, count: int) -> list[Prompt]:
    """`count` questions of P tokens about pictures of side x side random patches."""
    generator = torch.Generator().manual_seed(0)
    grid, numbers = (1, size.side, size.side), 3 * 2 * 14 * 14
    image = torch.full((size.side**2 // 4,), cfg.image_token_id)
    prompts = []
    for n in range(count):
        words = torch.randint(1000, 100000, (size.P - len(image),), generator=generator)
        ids = torch.cat((words[:5], image, words[5:]))  # (P,)
        pixels = torch.randn(size.side**2, numbers, generator=generator)
        prompts.append(Prompt(f"q{n}", ids, rope_positions(ids, [grid], cfg), pixels, [grid]))
    return prompts


def answers(G: int, C: int, count: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [list(torch.randint(1000, 100000, (G, C), generator=generator)) for _ in range(count)]


def peak_gb(run, device: torch.device) -> float:
    """Peak memory of a call beyond what was allocated before it, GB; 0 on a CPU."""
    if device.type == "cpu":
        run()
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9
