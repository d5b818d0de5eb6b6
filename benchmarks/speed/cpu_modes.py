"""Settings of a CPU run: threads, reduced-precision products, and memory kept by glibc.

    python -m benchmarks.speed.cpu_modes

Rollout and update of the embedded model, 8 prompts x 8 completions x 32 tokens, under each setting
in a process of its own, in turns; and how far the sampler's log-probabilities are from the
trainer's. "bf16 products" is torch.set_float32_matmul_precision("medium").
"""

import argparse
import time
from functools import partial

import torch

import sample
from benchmarks.speed.prompts import garden_prompts
from benchmarks.timing import Turns, machine, milliseconds, report, take_turns
from config import BASE_MODEL
from model.processor import Processor
from model.weights import load_model
from train_grpo import GRPOConfig, accumulate_gradient, keep_features, make_groups

N, G, TOKENS = 8, 8, 32
SETTINGS = {
    "as it is": {},
    "1 thread": {"threads": 1},
    "1 thread for the rollout": {"rollout_threads": 1},
    "bf16 products": {"precision": "medium"},
    "memory given back": {"keep_memory": False},
}


def candidate(
    turns: Turns,
    part: str,
    threads: int | None = None,
    rollout_threads: int | None = None,
    precision: str = "highest",
    keep_memory: bool = True,
) -> None:
    if keep_memory:
        sample.keep_freed_memory()
    torch.set_float32_matmul_precision(precision)
    threads = threads or torch.get_num_threads()
    processor, model = Processor(BASE_MODEL), load_model(BASE_MODEL)
    processor.end_ids = []
    model.visual.requires_grad_(False)
    cfg = GRPOConfig(max_completion_length=TOKENS)
    prompts = garden_prompts(processor, N)
    keep_features(model, prompts)
    advantages = torch.randn(N, G, generator=torch.Generator().manual_seed(0))

    def rollout():
        torch.set_num_threads(rollout_threads or threads)
        drawn = sample.generate_group(model, processor, prompts, G, TOKENS)
        torch.set_num_threads(threads)
        return make_groups(prompts, drawn, advantages, cfg)

    groups = rollout()

    def update():
        model.zero_grad(set_to_none=True)
        return accumulate_gradient(model, None, groups, processor.suppressed_tokens, cfg)

    turns.ready(update()["sampling/sampling_logp_difference/mean"])
    for _ in turns:
        rollout() if part == "rollout" else update()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads")
    candidates = {name: partial(candidate, **setting) for name, setting in SETTINGS.items()}
    results = {}
    for part in ("rollout", "update"):
        mismatch, seconds = take_turns(candidates, args.rounds, 3, part)
        results[part] = {name: round(ms, 1) for name, ms in milliseconds(seconds).items()}
        time.sleep(1)
    print("| setting | rollout ms | update ms | sampler - trainer, nats |\n|---|---|---|---|")
    for name in SETTINGS:
        print(
            f"| {name} | {results['rollout'][name]} | {results['update'][name]} | "
            f"{mismatch[name]:.1e} |"
        )
    report("CPU", **results, mismatch=mismatch)


if __name__ == "__main__":
    main()
