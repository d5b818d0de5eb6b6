"""Two ideas of the field, as forks of a few lines: each replaces one function of train_grpo.py.

    python -m benchmarks.learning.variants noisy --task count --seed 0
    python -m benchmarks.learning.variants chosen --task count --seed 0 --train_size 512

`noisy` (NoisyRollout, arXiv:2504.13055): half of a group answers a noised picture, and the update
sees the clean one, so that answers which hold without the noise are learnt from more varied
attempts. The noise fades as training goes on. The log-probabilities of those answers are computed
under the clean picture: with the sampler's, the ratio would compare two different questions.

`chosen` (after arXiv:2504.07934, which estimates difficulty otherwise): before training, sixteen
answers to every training question; the questions that are always or never answered are left out.
Their cost, in sampled tokens, is printed.

All other flags are train_grpo.py's. What came of it: RESULTS.md.
"""

import argparse
import math
from dataclasses import replace

import torch
from torch import Tensor

import train_grpo
from config import TrainConfig
from model.vlm import Prompt
from sample import Rollout
from training.batches import logps_of_completions, sample_groups
from training.setup import Setup, prepare

NOISE = 1.0  # standard deviations of a normalised pixel, at the start
SAMPLES = 16


def noise_left(progress: float) -> float:
    """The share of the noise that is left: a sigmoid from nearly 1 to nearly 0, half at a half."""
    return 1 / (1 + math.exp(12 * (progress - 0.5)))


def noised(prompt: Prompt, strength: float, first_sample: int, step: int) -> Prompt:
    """A question whose pictures have Gaussian noise on them, a function of (question, step)."""
    if prompt.pixels is None:
        return replace(prompt, first_sample=first_sample)
    generator = torch.Generator().manual_seed(hash_of(prompt.id, step))
    noise = torch.randn(prompt.pixels.shape, generator=generator)
    pixels = prompt.pixels + strength * noise
    return replace(prompt, pixels=pixels, features=None, first_sample=first_sample)


def hash_of(id: str, step: int) -> int:
    """A number that names a question at a step."""
    return int.from_bytes(f"{id}|{step}".encode()[-7:], "big")


def interleaved(clean: list, noisy: list, N: int) -> list:
    """Two lists of N groups each as one list of N groups."""
    a, b = len(clean) // N, len(noisy) // N
    return [x for n in range(N) for x in (*clean[n * a : (n + 1) * a], *noisy[n * b : (n + 1) * b])]


def noisy_groups(model, processor, prompts: list[Prompt], cfg, step: int, *acting) -> Rollout:
    """`sample_groups`, where the second half of every group has seen a noised picture."""
    N, half = len(prompts), cfg.num_generations // 2
    strength = NOISE * noise_left(step / cfg.max_steps)
    others = [noised(p, strength, cfg.num_generations - half, step) for p in prompts]
    model.keep_image_features([prompt for prompt in others if prompt.pixels is not None])
    sizes = (cfg.num_generations - half, half)
    clean, noisy = (
        sample_groups(model, processor, which, replace(cfg, num_generations=size), step)
        for which, size in zip((prompts, others), sizes, strict=True)
    )
    suppressed = processor.suppressed_tokens.to(model.device)
    noisy.logps = logps_of_completions(model, prompts, noisy, cfg, suppressed)
    lists = {
        name: interleaved(getattr(clean, name), getattr(noisy, name), N)
        for name in ("ids", "logps", "finish", "texts")
    }
    return Rollout(**lists)


@torch.no_grad()
def share_right(setup: Setup) -> Tensor:
    """Which share of SAMPLES answers to each training question is right: (questions,)."""
    cfg = replace(setup.cfg, num_generations=SAMPLES)
    shares, tokens, task = [], 0, setup.task
    for start in range(0, len(task.train), cfg.prompts_per_step):
        examples = task.train[start : start + cfg.prompts_per_step]
        prompts = [setup.processor.prompt(e.id, e.images, e.question) for e in examples]
        rollout = sample_groups(setup.model, setup.processor, prompts, cfg, step=cfg.max_steps)
        tokens += sum(map(len, rollout.ids))
        for n, example in enumerate(examples):
            texts = rollout.texts[n * SAMPLES : (n + 1) * SAMPLES]
            shares.append(sum(task.scores(t, example)["strict"] for t in texts) / SAMPLES)
    print(f"choosing questions: {tokens} tokens sampled")
    return torch.tensor(shares)


def prepare_chosen(cfg: TrainConfig, checkpoint=None) -> Setup:
    """`prepare`, without the questions that are always or never answered."""
    setup = prepare(cfg, checkpoint)
    share = share_right(setup)
    kept = [e for e, s in zip(setup.task.train, share.tolist(), strict=True) if 0 < s < 1]
    never, always = int((share == 0).sum()), int((share == 1).sum())
    print(f"choosing questions: {len(kept)} kept, {never} never and {always} always right")
    setup.task = replace(setup.task, train=kept)
    return setup


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("variant", choices=("noisy", "chosen"))
    args, flags = parser.parse_known_args(argv)
    if args.variant == "noisy":
        train_grpo.sample_groups = noisy_groups
    else:
        train_grpo.prepare = prepare_chosen
    train_grpo.main(flags)


if __name__ == "__main__":
    main()
