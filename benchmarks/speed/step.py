"""A whole GRPO step: tower, rollout, reward, update and AdamW; on a CPU beside TRL's GRPOTrainer.

    python -m benchmarks.speed.step [--device cpu|cuda] [--size small]

Mismatch is the mean and largest difference, in nats, between the log-probabilities of the sampler
and those of the trainer, on the same weights: what a rollout stores must be what the update
computes, or the ratio of the first pass is not 1. Then the memory of a step with one long group and
layers recomputed.

TRL (benchmarks/requirements.txt; left out where it is not installed) trains the same checkpoint
with the same prompts, reward, group size, lengths, float32, AdamW, beta 0 and a frozen tower; a
step of ours precedes each of its steps. Nobody stops early, and no group has zero std. Before any
time is taken, both must give the same log-probability to the same completions.
"""

import importlib.util
import statistics
import tempfile
import time
from dataclasses import replace

import torch

from benchmarks.speed.workload import (
    Update,
    Workload,
    arguments,
    as_transformers,
    garden_images,
    padded_question,
)
from benchmarks.timing import (
    Table,
    interleaved,
    milliseconds,
    peak_bytes,
    ratio,
    report,
    seconds_of,
)
from config import BASE_MODEL
from kernels import group_advantages
from model.pack import completion_logps, make_pack
from rewards import classification_reward

LENGTHS = {  # of prompts; None: as they are
    "bundled": [None, 256],
    "2b": [1000],
    "qwen3_vl_2b": [1000],
    "small": [40],
}
PARTS = ("rollout", "update", "adamw")  # methods of Step
TARGET = "Solara minor"


def rewards_of(texts: list[str], G: int) -> list[float]:
    """A task's reward, and on top its number in the group: no group has zero std."""
    return [classification_reward(t, TARGET).total + k % G / 1000 for k, t in enumerate(texts)]


class Step(Update):
    """One GRPO step in parts that can be timed."""

    def __init__(self, work: Workload, N: int, G: int, C: int, length: int | None):
        groups = 1 if work.device.type == "cuda" else N  # per micro-batch
        super().__init__(
            work, num_generations=G, max_completion_length=C, groups_per_micro_batch=groups
        )
        self.work, self.shape, self.steps = work, (N, G, C), 0
        self.prompts = work.questions(N, length)

    def rollout(self) -> None:
        """Sample and score the groups of a step."""
        N, G, C = self.shape
        prompts = [replace(prompt) for prompt in self.prompts]  # without features
        with torch.no_grad():
            self.model.keep_image_features(prompts)
        rollout = self.work.rollout(prompts, G, C, self.steps)
        rewards = torch.tensor(rewards_of(rollout.texts, G)).view(N, G)
        self.scored = self.groups(prompts, rollout, group_advantages(rewards))
        self.steps += 1

    def update(self) -> None:
        """The gradient of the last rollout."""
        self.metrics = self.gradient(self.scored)

    def whole(self) -> None:
        """All parts of a step."""
        for part in PARTS:
            getattr(self, part)()


def memory(size: str, device: torch.device, lora_rank: int) -> dict[str, float]:
    """GB of weights, masters and moments (GPU), and what a step with recomputed layers adds."""
    # An optimizer hooks into its model: this one is fresh.
    work = Workload(size, device, lora_rank=lora_rank)
    work.model.model.gradient_checkpointing = True
    step = Step(work, 1, work.size.G, 512 if size.endswith("2b") else work.size.C, work.size.P)
    step.whole()  # the moments of AdamW appear in the first step
    held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    return {"held_gb": held / 1e9, "step_gb": peak_bytes(step.whole, device) / 1e9}


def against_trl(step: Step, length: int | None, rounds: int) -> dict[str, list[float]]:
    """Seconds of our steps and of TRL's, in turns."""
    from datasets import Dataset
    from transformers import AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    work, model = step.work, step.work.transformers_model().train()
    model.model.visual.requires_grad_(False)
    _require_same_logps(work, model, step.prompts)
    seconds = {"ours": [], "trl": []}

    class InTurns(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            seconds["ours"].append(seconds_of(step.whole))
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            seconds["trl"].append(time.perf_counter() - self.start)

    N, G, C = step.shape
    cfg, question, warmup = step.cfg, padded_question(work.processor, length), 2
    rows = [
        {"prompt": [{"role": "user", "content": question}], "image": image}
        for image in garden_images(N)
    ]
    with tempfile.TemporaryDirectory() as directory:
        trainer = GRPOTrainer(
            model=model,
            processing_class=AutoProcessor.from_pretrained(BASE_MODEL),
            reward_funcs=lambda completions, **_: rewards_of(
                [completion[0]["content"] for completion in completions], G
            ),
            train_dataset=Dataset.from_list(rows),
            args=GRPOConfig(
                output_dir=directory,
                per_device_train_batch_size=N * G,
                num_generations=G,
                max_completion_length=C,
                generation_kwargs={"min_new_tokens": C},
                learning_rate=cfg.learning_rate,
                weight_decay=cfg.weight_decay,
                max_grad_norm=cfg.max_grad_norm,
                beta=0.0,
                max_steps=warmup + rounds,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                logging_strategy="no",
                shuffle_dataset=False,
            ),
            callbacks=[InTurns()],
        )
        trainer.train()
    return {name: values[warmup:] for name, values in seconds.items()}


@torch.no_grad()
def _require_same_logps(work: Workload, model, prompts: list) -> None:
    completions = work.words(len(prompts), 8)
    pack = make_pack(prompts, [[ids] for ids in completions], work.device)
    inputs = as_transformers(prompts, work.model)
    inputs["input_ids"] = torch.cat((inputs["input_ids"], completions), dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    is_image = inputs["input_ids"] == work.model.cfg.image_token_id
    logits = model(**inputs | {"mm_token_type_ids": is_image.int()}).logits[:, -9:-1]  # (N, 8, V)
    logp = logits.log_softmax(-1).gather(2, completions[:, :, None]).flatten()  # (8 N,)
    ours, _ = completion_logps(work.model, pack)  # (8 N,)
    torch.testing.assert_close(ours, logp, rtol=1e-4, atol=1e-4)


def main(argv: list[str] | None = None) -> None:
    rank = dict(type=int, default=0, help="train an adapter of this rank")
    rounds = {"bundled": 20, "2b": 3, "qwen3_vl_2b": 3}
    args = arguments(__doc__, argv, rounds=rounds, lora_rank=rank)
    has_peer = args.size == "bundled" and args.device.type == "cpu" and not args.lora_rank
    if has_peer and not (has_peer := importlib.util.find_spec("trl") is not None):
        print("trl is not installed: left out")
    table = Table()
    for length in LENGTHS[args.size]:
        work = Workload(args.size, args.device, lora_rank=args.lora_rank)
        step = Step(work, work.size.N, work.size.G, work.size.C, length)
        parts = interleaved({p: getattr(step, p) for p in PARTS}, args.rounds, warmup=1)
        peer = against_trl(step, length, args.rounds) if has_peer else {}
        ms = {f"{part}_ms": value for part, value in milliseconds(parts).items()}
        ms["step_ms"] = 1000 * statistics.median(map(sum, zip(*parts.values(), strict=True)))
        ms["trl_ms"] = milliseconds(peer).get("trl")
        over = ratio(peer, slow="trl", fast="ours") if peer else None
        mismatch = {
            f"mismatch_{name}": step.metrics[f"sampling/sampling_logp_difference/{name}"]
            for name in ("mean", "max")
        }
        table.add(P=len(step.prompts[0].ids), **ms, over_trl=over, **mismatch)
    del work, step  # make room
    gigabytes = memory(args.size, args.device, args.lora_rank)
    print(f"a step of one group, layers recomputed: {gigabytes}")
    report("step", size=args.size, lora_rank=args.lora_rank, rows=table.rows, memory=gigabytes)


if __name__ == "__main__":
    main()
