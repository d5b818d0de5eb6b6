"""The one sampler: G completions for each of N prompts, and a command line to talk to a checkpoint.

    python sample.py --image flower.png --prompt "Which species is this flower?" --num_generations 4

Method: the tower and the prefill run once per prompt. The G completions of a prompt share its keys
and values; what they add lives in a suffix cache of fixed size, and one decoding step advances all
N * G rows together. Finished rows go on being computed until all rows have finished: at these sizes
a step costs the same with or without them.

Randomness is counter-based: every completion has its own stream of numbers, a function of (seed,
step, prompt id, sample index) alone. How prompts are batched cannot change them; the tokens are
then the same up to the rounding of the logits. A token is chosen by inverting the cumulative
distribution at one uniform number, from float32 log-probabilities of the *whole* distribution (no
top-k, no top-p: what is sampled is what is trained), and its log-probability is kept.

Next: evaluate.py, then model/vlm.py.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import config
from answers import MAX_NAME_CHARS, normalise_name
from config import BASE_MODEL, flag, require, require_counts, require_temperature
from model.attention import KVCache, PackLayout
from model.errors import InputError
from model.text import Processor
from model.vlm import VLM, Prompt
from model.weights import load_model
from rewards import FORMATS, classification_reward
from tasks import full_question

CHECK_END_EVERY = 8  # decoding steps between two looks at whether all rows have ended


@dataclass
class Rollout:
    """N * G completions; row b answers prompt b // G. Lists have one entry per row."""

    ids: list[Tensor]  # (C_i,) int64 on the CPU, up to and including the first end token
    logps: list[Tensor]  # (C_i,) fp32 on the CPU, nats, under the distribution that was sampled
    finish: list[str]  # "stop" if the completion ended itself, "length" if it was cut
    texts: list[str]


def completion_uniforms(
    seed: int, step: int, prompt_id: str, sample: int, length: int
) -> np.ndarray:
    """The random numbers of one completion: (length,) fp32 in [0, 1).

    The counter-based generator Philox (Salmon et al., SC 2011), keyed with a hash of the four
    arguments.
    """
    name = f"{seed}|{step}|{sample}|{prompt_id}".encode()
    key = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(length, dtype=np.float32)


def choose_tokens(logp: Tensor, uniforms: Tensor) -> Tensor:
    """Invert the cumulative distribution: (B, V) log-probabilities, (B,) uniforms -> (B,) ids."""
    cumulative = logp.double().exp().cumsum(-1)  # (B, V) fp64: 150,000 terms must not drift
    target = uniforms.double() * cumulative[:, -1]  # (B,)
    chosen = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)  # (B,)
    return chosen.clamp(max=logp.shape[-1] - 1)


@torch.inference_mode()
def generate_group(
    model: VLM,
    processor: Processor,
    prompts: list[Prompt],
    num_generations: int,
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    step: int = 0,
) -> Rollout:
    """Draw `num_generations` completions for every prompt.

    Args:
        temperature: 0 takes the likeliest token (its log-probability is that at temperature 1).
        seed, step: with the prompt's id and the sample's index, the key of the random numbers.
    Returns: a Rollout of N * G rows, the G rows of a prompt next to each other.
    Raises: InputError if a log-probability is not finite, before anything can learn from it.
    """
    N, G, device = len(prompts), num_generations, model.device
    B = N * G
    forbidden = processor.forbidden.to(device)  # (V,)
    end_ids = torch.tensor(processor.end_ids, device=device)
    uniforms = torch.zeros(B, max_completion_length)  # (B, C_max)
    if temperature > 0:
        for b in range(B):
            key = (seed, step, prompts[b // G].id, b % G)
            uniforms[b] = torch.from_numpy(completion_uniforms(*key, max_completion_length))
    uniforms = uniforms.to(device)

    # Prefill: every prompt once.
    cache = KVCache(G, max_completion_length, device)
    layout = PackLayout([len(p.ids) for p in prompts], [[] for _ in prompts], device)
    ids = torch.cat([p.ids for p in prompts]).to(device)  # (T,)
    positions = torch.cat([p.positions for p in prompts], dim=1).to(device)  # (3, T)
    hidden = model(ids, positions, layout, model.image_features(prompts), cache)  # (T, D)
    ends = torch.tensor(layout.prefix_lengths, device=device).cumsum(0) - 1  # (N,)
    hidden = hidden[ends].repeat_interleave(G, 0)  # (B, D)
    position = torch.tensor([p.next_position for p in prompts], device=device)  # (N,)
    position = position.repeat_interleave(G).expand(3, B)  # (3, B)

    # Decode: one token for all rows at a time.
    tokens = torch.zeros(B, max_completion_length, dtype=torch.int64, device=device)
    logps = torch.zeros(B, max_completion_length, device=device)  # (B, C_max) fp32
    is_finished = torch.zeros(B, dtype=torch.bool, device=device)
    for t in range(max_completion_length):
        logits = model.logits(hidden).float()  # (B, V)
        logits = logits.masked_fill(forbidden, float("-inf")) / (temperature or 1.0)
        logp = logits.log_softmax(-1)  # (B, V) fp32
        chosen = choose_tokens(logp, uniforms[:, t]) if temperature > 0 else logp.argmax(-1)  # (B,)
        tokens[:, t] = chosen
        logps[:, t] = logp.gather(1, chosen[:, None]).squeeze(1)
        is_finished |= torch.isin(chosen, end_ids)
        if t + 1 == max_completion_length:
            break
        if (t + 1) % CHECK_END_EVERY == 0 and bool(is_finished.all()):
            break
        hidden = model(chosen, position + t, None, cache=cache)  # (B, D)

    tokens, logps, end_ids = tokens[:, : t + 1].cpu(), logps[:, : t + 1].cpu(), end_ids.cpu()
    if not bool(torch.isfinite(logps).all()):
        raise InputError(
            "the model's probabilities are not finite numbers: its weights are damaged, or "
            "--learning_rate was too high"
        )
    is_end = torch.isin(tokens, end_ids)  # (B, t + 1)
    lengths = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, t + 1).tolist()
    return Rollout(
        ids=[row[:n].clone() for row, n in zip(tokens, lengths, strict=True)],
        logps=[row[:n].clone() for row, n in zip(logps, lengths, strict=True)],
        finish=["stop" if ended else "length" for ended in is_end.any(1).tolist()],
        texts=[processor.decode(row[:n]) for row, n in zip(tokens, lengths, strict=True)],
    )


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU if there is one. Raises InputError for a device that cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only cpu and cuda are supported")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: not usable here ({reason}); try --device cpu") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches on the current device
    return device


# ---- command line --------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleConfig:
    prompt: str = flag("Which species is this flower?", "the question")
    image: Path | None = flag(None, "picture to ask about; leave out for a question without one")
    target: str | None = flag(None, "the right name: prints the reward of each answer")
    prompt_mode: Literal["think", "direct", "plain"] = flag(
        "think", "how to answer; plain adds nothing"
    )
    model: Path = flag(BASE_MODEL, "checkpoint directory")
    num_generations: int = flag(4, "answers to draw")
    max_completion_length: int = flag(64, "tokens")
    max_prompt_length: int = flag(2048, "tokens; a longer prompt is an error, never cut")
    max_pixels: int | None = flag(None, "larger images are downscaled; default: the checkpoint's")
    temperature: float = flag(1.0, "0 takes the likeliest token every time")
    seed: int = flag(0, "another seed draws other answers")
    device: str = flag("auto", "cpu, cuda, ...; auto takes a GPU if there is one")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "of the weights")

    def __post_init__(self) -> None:
        require_counts(self, "num_generations max_completion_length max_prompt_length")
        require_temperature(self)
        if self.target is not None:
            named = len(self.target) <= MAX_NAME_CHARS and normalise_name(self.target)
            require(bool(named), "target", "a name", self)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(SampleConfig, argv, __doc__.split("\n\n")[0])
    processor = Processor(cfg.model, cfg.max_pixels)
    model = load_model(cfg.model, getattr(torch, cfg.dtype), pick_device(cfg.device))
    question = (
        cfg.prompt if cfg.prompt_mode == "plain" else full_question(cfg.prompt, cfg.prompt_mode)
    )
    images = [cfg.image] if cfg.image else []
    prompt = processor.prompt("cli", images, question, cfg.max_prompt_length)
    start = time.perf_counter()
    rollout = generate_group(
        model,
        processor,
        [prompt],
        cfg.num_generations,
        cfg.max_completion_length,
        cfg.temperature,
        cfg.seed,
    )
    seconds = time.perf_counter() - start
    for text, logp, finish in zip(rollout.texts, rollout.logps, rollout.finish, strict=True):
        print(f"{text}  [{len(logp)} tokens, log-probability {logp.sum():.2f}, {finish}]")
        if cfg.target is not None:
            mode = cfg.prompt_mode if cfg.prompt_mode in FORMATS else "direct"
            reward = classification_reward(text, cfg.target, mode)
            print(f"    reward {reward.total:g}: {reward.parts}")
    tokens = sum(len(ids) for ids in rollout.ids)
    print(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} tokens/s")


if __name__ == "__main__":
    config.run(main)
