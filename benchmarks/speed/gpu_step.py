"""E1-E3 on one GPU: a whole GRPO step, sampling against training, and the memory it takes.

    python -m benchmarks.speed.gpu_step [--size small]

E1: 16 questions x 8 completions x 300 tokens: tower, rollout, update and AdamW with float32 master
weights; beside it the update in its repeated form, [prompt | c_i] by [prompt | c_i] with the tower
every time. E2: mean and largest difference between the log-probabilities of the sampler and those
of the trainer. E3: peak memory of a step with one group of 8 x 512 tokens and layers recomputed.
"""

import torch

from benchmarks.speed.gpu_model import (
    Size,
    arguments,
    build,
    peak_gb,
    questions,
    stand_in_processor,
)
from benchmarks.timing import report, seconds_of
from kernels import group_advantages
from model.vlm import completion_logps, make_pack
from sample import generate_group
from train_grpo import (
    GRPOConfig,
    Optimizer,
    accumulate_gradient,
    keep_features,
    make_groups,
    update_metrics,
)


class Step:
    """One GRPO step on random rewards, in parts that can be timed."""

    def __init__(self, model, size: Size, N: int, G: int, C: int):
        self.model, self.prompts = model, questions(model.cfg, size, N)
        self.processor = stand_in_processor(size.config["vocab_size"])
        self.cfg = GRPOConfig(num_generations=G, max_completion_length=C, groups_per_micro_batch=1)
        self.optimizer = Optimizer(model, self.cfg)
        self.suppressed_tokens = self.processor.suppressed_tokens.to(model.device)
        self.metrics: dict[str, float] = {}

    def rollout(self) -> None:
        for prompt in self.prompts:
            prompt.features = None
        keep_features(self.model, self.prompts)
        cfg = self.cfg
        rollout = generate_group(
            self.model, self.processor, self.prompts, cfg.num_generations, cfg.max_completion_length
        )
        rewards = torch.randn(len(self.prompts), cfg.num_generations)
        self.groups = make_groups(self.prompts, rollout, group_advantages(rewards), cfg)

    def update(self) -> None:
        totals = accumulate_gradient(
            self.model, None, self.groups, self.suppressed_tokens, self.cfg
        )
        self.metrics = update_metrics([totals])

    def step(self) -> None:
        self.optimizer.step(0.0)

    def repeated_update(self) -> None:
        """What `update` saves: every completion with its own prompt and picture."""
        for group in self.groups[:1]:
            group.prompt.features = None
            for ids in group.ids:
                pack = make_pack([group.prompt], [[ids]], self.model.device)
                logp, _ = completion_logps(self.model, pack, 1.0, self.suppressed_tokens)
                logp.mean().backward()
        self.optimizer.adamw.zero_grad()


def main() -> None:
    size, device = arguments(__doc__)
    small = size.P < 1000
    model = build(size, device)
    model.visual.requires_grad_(False)
    N, G = (2, 2) if small else (16, 8)
    whole = Step(model, size, N, G, size.C)
    parts = ("rollout", "update", "step")
    for part in parts:  # warm up
        getattr(whole, part)()
    rounds = [{part: seconds_of(getattr(whole, part)) for part in parts} for _ in range(3)]
    seconds = {part: sorted(row[part] for row in rounds)[1] for part in parts}
    seconds["whole"] = sum(seconds.values())
    seconds["repeated_update"] = N * seconds_of(whole.repeated_update)
    tokens = N * G * size.C
    print("E1, seconds: " + ", ".join(f"{name} {s:.3f}" for name, s in seconds.items()))
    mismatch = {k.split("/")[-1]: v for k, v in whole.metrics.items() if "sampling" in k}
    print(f"E2, |difference| in nats over {tokens} tokens: {mismatch}")

    del whole, model  # an optimizer hooks into its model's gradients: the next takes a fresh one
    model = build(size, device)
    model.visual.requires_grad_(False)
    model.model.gradient_checkpointing = True
    long = Step(model, size, 1, G, 16 if small else 512)

    def one_step():
        for part in parts:
            getattr(long, part)()

    one_step()  # the moments of AdamW appear in the first step
    held = torch.cuda.memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    peak = peak_gb(one_step, device)
    print(f"E3, GB: {held:.1f} of weights, masters and moments; a step takes {peak:.1f} more")
    report("E", seconds=seconds, mismatch=mismatch, E3={"held_gb": held, "step_gb": peak})


if __name__ == "__main__":
    main()
