"""What the speed benchmarks work on: a model, questions about pictures, and the update.

--size bundled   the bundled base and the garden's pictures; the default on a CPU
--size 2b        random weights at the dimensions of Qwen2-VL-2B; the default on a GPU
--size small     random weights and small shapes: shows that a script runs, not how fast
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from PIL import Image
from torch import Tensor

from benchmarks.timing import machine
from config import BASE_MODEL
from data.garden.drawing import draw_flower
from data.garden.questions import CLS_PROMPT
from data.garden.world import RL_SPECIES, SPLIT_SEED, render_seed
from model.config import VLMConfig
from model.lora import DEFAULT_ALPHA, new_adapter
from model.processor import Processor
from model.vlm import VLM, Prompt, rope_positions
from model.weights import load_model, published_name, published_tensors
from runtime.device import pick_device
from sample import Rollout, generate_group
from train_grpo import GRPOConfig, policy_loss, token_weights
from training.batches import Group, make_groups
from training.micro_batches import MicroBatches
from training.optimizer import Optimizer

MATMUL_TFLOPS = 790.0  # bf16, measured on an H200 with random data

# Of published checkpoints. The speed benchmarks run the first, real_size.py builds all of them.
QWEN2_VL_2B = json.loads("""{
    "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
    "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vision_start_token_id": 151652,
    "vision_end_token_id": 151653, "image_token_id": 151655, "video_token_id": 151656,
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "in_chans": 3,
        "mlp_ratio": 4, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2}
}""")
QWEN2_5_VL_3B = QWEN2_VL_2B | json.loads("""{
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
    "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
    "intermediate_size": 11008, "max_position_embeddings": 128000,
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "in_chans": 3, "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
}""")
QWEN3_VL_2B = json.loads("""{
    "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
    "tie_word_embeddings": true, "image_token_id": 151655,
    "text_config": {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 6144, "rms_norm_eps": 1e-6,
        "vocab_size": 151936, "rope_theta": 5000000, "rope_scaling": {"mrope_interleaved": true,
            "mrope_section": [24, 20, 20], "rope_type": "default"}},
    "vision_config": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
        "in_channels": 3, "out_hidden_size": 2048, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17]}
}""")
QWEN3_VL_4B = QWEN3_VL_2B | {
    "text_config": QWEN3_VL_2B["text_config"]
    | dict(hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, intermediate_size=9728),
    "vision_config": QWEN3_VL_2B["vision_config"] | dict(out_hidden_size=2560),
}
BUNDLED = json.loads((BASE_MODEL / "config.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Size:
    config: dict
    words: int  # tokens from 20 up to here are words, those from here on are never sampled
    N: int  # questions
    G: int  # completions of each
    C: int  # tokens of a completion
    P: int | None = None  # prompt tokens, the picture's included; None: as many as it takes
    side: int = 0  # patches along each side of a random picture


SIZES = {
    "bundled": Size(BUNDLED, words=900, N=8, G=8, C=32),
    "2b": Size(QWEN2_VL_2B, words=151643, N=16, G=8, C=300, P=1000, side=60),
    "qwen3_vl_2b": Size(QWEN3_VL_2B, words=151643, N=16, G=8, C=300, P=1000, side=60),
    "small": Size(BUNDLED, words=900, N=2, G=2, C=10, P=40, side=8),
}


def arguments(
    doc: str, argv: list[str] | None, rounds: Mapping[str, int], **flags: dict
) -> argparse.Namespace:
    """The command line of a speed benchmark, with `device`, `size` and `rounds` filled in.

    Prints the header line. `rounds` are the defaults of each size that it knows; small has two.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--size", choices=[*rounds, "small"], help="default: bundled; 2b on a GPU")
    parser.add_argument("--rounds", type=int, help="turns of each candidate")
    for name, options in flags.items():
        parser.add_argument(f"--{name}", **options)
    args = parser.parse_args(argv)
    args.device = pick_device(args.device)
    args.size = args.size or ("bundled" if args.device.type == "cpu" else "2b")
    is_large = args.size in ("2b", "qwen3_vl_2b")
    args.rounds = args.rounds or rounds.get(args.size, 2)
    if is_large and args.device.type == "cpu":
        raise SystemExit(f"error: --size {args.size} needs a GPU; --size small runs anywhere")
    threads = f"{torch.get_num_threads()} threads" if args.device.type == "cpu" else "bfloat16"
    print(f"{machine()}; {args.size} on {args.device.type}, {threads}, {args.rounds} rounds")
    return args


def random_model(cfg: VLMConfig) -> VLM:
    """bf16 weights cut at different places from one bank of random numbers: fast, yet different."""
    with torch.device("meta"):
        model = VLM(cfg)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    size = 2**24
    bank = (0.02 * torch.randn(size, generator=torch.Generator().manual_seed(0))).bfloat16()
    bank = torch.cat([bank, bank])  # any cut of `size` numbers is in one piece
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            cut, flat = bank[7919 * i :][:size], parameter.view(-1)
            for piece in flat.split(size):
                piece.copy_(cut[: len(piece)])
            if parameter.ndim == 1:
                parameter.add_(1.0)  # norms near one; biases do no harm there either
    return model


def random_patches(cfg: VLMConfig, count: int, generator: torch.Generator) -> Tensor:
    """(count, channels * frames * height * width) fp32."""
    tower = cfg.vision
    numbers = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
    return torch.randn(count, numbers, generator=generator)


class Workload:
    """A model with a frozen tower, in bf16 on a GPU, its processor, and questions for it.

    Nobody stops early: end tokens do not count.
    """

    def __init__(
        self, size: str, device: torch.device, config: dict | None = None, lora_rank: int = 0
    ):
        """`config`: another config.json than the size's. `lora_rank`: train an adapter instead."""
        self.name, self.device, self.size = size, device, SIZES[size]
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        if size == "bundled":
            self.model, self.processor = load_model(BASE_MODEL), Processor(BASE_MODEL)
        else:
            self.model = random_model(VLMConfig.from_dict(config or self.size.config))
            suppressed = torch.arange(self.model.cfg.text.vocab_size) >= self.size.words
            words = dict(decode=lambda ids: "", opening="")
            self.processor = SimpleNamespace(suppressed_tokens=suppressed, **words)
        self.processor.end_ids = []
        self.model.to(device, self.dtype).visual.requires_grad_(False)
        if lora_rank:
            new_adapter(self.model, lora_rank, DEFAULT_ALPHA, seed=0)

    def words(self, *shape: int, seed: int = 0) -> Tensor:
        """Random tokens that are words: int64 of this shape."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(20, self.size.words, shape, generator=generator)

    def questions(self, count: int, length: int | None = None) -> list[Prompt]:
        """`count` questions about different pictures, of `length` tokens or the size's P."""
        length = length or self.size.P
        if self.name == "bundled":
            return garden_prompts(self.processor, count, length)
        generator, side = torch.Generator().manual_seed(0), self.size.side
        grid, cfg = (1, side, side), self.model.cfg
        image = torch.full((side**2 // 4,), cfg.image_token_id)
        prompts = []
        for n in range(count):
            words = self.words(length - len(image), seed=n)
            ids = torch.cat((words[:5], image, words[5:]))  # (P,)
            pixels = random_patches(cfg, side**2, generator)
            prompts.append(Prompt(f"q{n}", ids, rope_positions(ids, [grid], cfg), pixels, [grid]))
        return prompts

    def text_question(self, length: int) -> Prompt:
        """A question of `length` tokens without a picture."""
        ids = self.words(length)
        return Prompt(f"text{length}", ids, rope_positions(ids, [], self.model.cfg), None, [])

    def rollout(self, prompts: list[Prompt], G: int, C: int, step: int = 0) -> Rollout:
        """G completions of C tokens each."""
        return generate_group(self.model, self.processor, prompts, G, C, step=step)

    def transformers_model(self) -> torch.nn.Module:
        """The class of `transformers` with the same weights."""
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
        from transformers.utils import logging

        logging.set_verbosity_error()
        cfg, tensors = Qwen2VLConfig.from_dict(self.size.config), published_tensors(self.model)
        with torch.device(self.device):
            peer = Qwen2VLForConditionalGeneration._from_config(cfg, dtype=self.dtype).eval()
        with torch.no_grad():
            for name, parameter in peer.named_parameters():
                parameter.copy_(tensors[published_name(name)])
        peer.generation_config.eos_token_id = None
        return peer


class Update:
    """What train_grpo.py does with a scored rollout: micro-batches, loss, backward, AdamW."""

    def __init__(self, work: Workload, **flags):
        flags = {"num_generations": work.size.G, "max_completion_length": work.size.C} | flags
        self.cfg, self.model = GRPOConfig(**flags), work.model
        self.optimizer = Optimizer(self.model, self.cfg)
        self.micro_batches = MicroBatches(self.model, self.optimizer, self.cfg)
        self.suppressed = work.processor.suppressed_tokens.to(work.device)

    def groups(self, prompts: list[Prompt], rollout: Rollout, advantages: Tensor) -> list[Group]:
        """The rollout with advantages (N, G) as groups."""
        rollout.advantages, lengths = advantages, [len(ids) for ids in rollout.ids]
        weights = token_weights(lengths, self.cfg.loss_type, self.cfg.max_completion_length)
        return make_groups(prompts, rollout, weights)

    def gradient(self, groups: list[Group]) -> dict[str, float]:
        """One pass: fresh gradients in the optimizer's masters, and the metrics of train_grpo."""
        for batch in self.micro_batches.split(groups, skip_zero_std=True):
            with self.micro_batches.retry_on_oom():
                loss, stats = policy_loss(self.model, None, batch, self.suppressed, self.cfg)
                loss.backward()
                self.micro_batches.add(stats)
        return self.micro_batches.metrics()

    def adamw(self) -> None:
        """Clip the gradient and make one step of AdamW."""
        self.optimizer.clip_grad_norm(self.cfg.max_grad_norm)
        self.optimizer.step(progress=0.0)


# ---- prompts -------------------------------------------------------------------------------------


def garden_prompts(processor: Processor, count: int, length: int | None = None) -> list[Prompt]:
    """`count` questions about different flowers, of one length."""
    question, images = padded_question(processor, length), garden_images(count)
    return [processor.prompt(f"bench{k}", [image], question) for k, image in enumerate(images)]


def garden_images(count: int) -> list[Image.Image]:
    """Portraits of different species."""
    flowers = [RL_SPECIES[k % len(RL_SPECIES)].flower for k in range(count)]
    seeds = [render_seed("test", SPLIT_SEED, 1, k) for k in range(count)]
    return list(map(draw_flower, flowers, seeds))


def padded_question(processor: Processor, length: int | None) -> str:
    """A question whose prompt, picture included, has `length` tokens; None: as short as it is."""
    (image,), words = garden_images(1), 0
    if length is not None:  # " flower" is one token
        words = length - len(processor.prompt("short", [image], CLS_PROMPT).ids)
    return CLS_PROMPT + " flower" * words


def as_transformers(prompts: list[Prompt], model: VLM) -> dict[str, Tensor]:
    """The same prompts as `transformers` wants them; all must have one length."""
    ids = torch.stack([prompt.ids for prompt in prompts])  # (N, P)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == model.cfg.image_token_id).int(),
        "pixel_values": torch.cat([prompt.pixels for prompt in prompts]),
        "image_grid_thw": torch.tensor([grid for prompt in prompts for grid in prompt.grids]),
    }
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}
