"""E2, mismatch: the sampler's log-probabilities against the trainer's, same weights.

    python -m benchmarks.speed.sampler_vs_trainer

What a rollout stores must be what the update computes, or the ratio of the first pass is not 1.
"""

import argparse

import torch

from benchmarks.speed.prompts import garden_prompts
from benchmarks.timing import machine, report
from config import BASE_MODEL
from model.processor import Processor
from model.vlm import completion_logps, make_pack
from model.weights import load_model
from sample import generate_group


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    processor, model = Processor(BASE_MODEL), load_model(BASE_MODEL)
    prompts = garden_prompts(processor, 8, None) + garden_prompts(processor, 2, 256)
    rollout = generate_group(model, processor, prompts, 8, 64, 1.0)
    groups = [rollout.ids[8 * n : 8 * n + 8] for n in range(len(prompts))]
    with torch.no_grad():
        logp, _ = completion_logps(
            model, make_pack(prompts, groups), 1.0, processor.suppressed_tokens
        )
    difference = (logp - torch.cat(rollout.logps)).abs()
    mean, largest = float(difference.mean()), float(difference.max())
    k1 = float((torch.cat(rollout.logps) - logp).mean())
    print(f"{machine()}: {len(logp)} tokens, mean {mean:.1e}, largest {largest:.1e}, k1 {k1:.1e}")
    report("E2", mean=mean, largest=largest, k1=k1, tokens=len(logp))


if __name__ == "__main__":
    main()
