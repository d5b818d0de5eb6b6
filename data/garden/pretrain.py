"""Pretraining of the embedded base model from scratch: `assets/garden-vlm/`.

    python data/garden/pretrain.py --output_dir runs/garden-vlm      # two hours on two cores

Two stages, as real vision-language models are made. First the vision tower learns to see:
throw-away linear heads predict, for every image token, the attributes and the box of the flower
there. (Without this stage the same network shows no box at all after 1000 joint steps.) Then tower
and language model learn the dialogues of `data/garden/corpus.py`, with the heads as a side loss;
several dialogues about one picture are packed behind it, so that a picture is encoded once. The
result is a complete checkpoint directory, read by the same code as a published Qwen2-VL.

`--model_dir` goes on from such a directory with both stages and fresh heads. The committed base was
made so, in three goes of 1800, 2600 and 950 joint steps (benchmarks/RESULTS.md).
"""

import json
import math
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import config
from config import flag, require
from data.garden.corpus import NOT_ASKED, TARGETS, Picture, digit_pictures, draw_pool, sample_texts
from model.image import patchify
from model.new_checkpoint import init_model, write_scratch_directory
from model.processor import Processor
from model.vlm import Pack, completion_logps, make_pack
from model.weights import load_model, plan_slots, save_model
from runtime import console
from runtime.errors import InputError
from runtime.run_directory import check_output_dir

SIZES = dict(
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=512,
    vision_depth=3,
    vision_embed_dim=192,
    vision_num_heads=6,
    vision_mlp_ratio=4,
    patch_size=8,
)
VOCAB_SIZE = 1000  # upper bound; the tokenizer stops earlier when its corpus has no more merges
POOL = {"portrait": 12000, "scene": 16000, "change": 10000, "wilting": 5000, "growth": 3000}
SEE_BATCH = {"portrait": 18, "scene": 13, "wilting": 5}  # pictures a step of the vision stage
BATCH = {"portrait": 4, "scene": 10, "change": 13, "wilting": 6, "growth": 2, "digit": 2}
SIDE_LOSS = 0.3  # weight of the perception heads in the joint stage


@dataclass(frozen=True)
class PretrainConfig:
    output_dir: Path = flag(Path("runs/garden-vlm"), "checkpoint directory to write")
    model_dir: Path | None = flag(None, "go on from this checkpoint, with its tokenizer")
    see_steps: int = flag(1500, "steps of the vision stage")
    talk_steps: int = flag(5000, "steps of the joint stage")
    learning_rate: float = flag(1e-3, "peak of both stages")
    seed: int = flag(0, "of pictures, dialogues and initial weights")
    pool_scale: float = flag(1.0, "fraction of the pictures to draw")

    def __post_init__(self) -> None:
        for name in ("see_steps", "talk_steps"):
            require(getattr(self, name) >= 1, name, "at least 1", self)
        for name in ("learning_rate", "pool_scale"):
            require(0 < getattr(self, name) < math.inf, name, "a positive number", self)


@dataclass(frozen=True)
class PatchedPicture:
    """One picture of a batch: its image patches and the truth about them."""

    picture: Picture
    patches: list


class PerceptionHeads(nn.Module):
    """Linear read-outs of the image tokens, thrown away after pretraining."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, sum(TARGETS.values()))

    def forward(self, features: Tensor, pictures: list[Picture]) -> tuple[Tensor, Tensor]:
        """Loss and accuracy over every place that is asked about: features (Q, D)."""
        places = torch.from_numpy(np.concatenate([p.places for p in pictures]))  # (Q, 12)
        whole = torch.from_numpy(np.stack([p.whole for p in pictures]))  # (pictures, 12)
        counts = torch.tensor([len(p.places) for p in pictures])
        owner = torch.arange(len(pictures)).repeat_interleave(counts)  # (Q,)
        mean = torch.zeros(len(pictures), features.shape[1]).index_add(0, owner, features)
        mean = mean / counts[:, None]  # (pictures, D)
        scores = self.linear(torch.cat((features, mean))).split(list(TARGETS.values()), dim=-1)
        targets = torch.cat((places, whole))  # (Q + pictures, 12)
        loss, right, asked = 0.0, 0, 0
        for column, score in enumerate(scores):
            target = targets[:, column]
            known = target != NOT_ASKED
            if known.any():
                loss = loss + F.cross_entropy(score[known], target[known])
                right += (score[known].argmax(-1) == target[known]).sum()
                asked += known.sum()
        return loss, right / asked


def make_batch(
    pools: dict[str, list[Picture]], counts: dict[str, int], processor: Processor, rng
) -> dict:
    """Pictures of one step by kind, with patches."""
    return {
        kind: [
            PatchedPicture(
                picture, [patchify(image, processor.image_cfg) for image in picture.images]
            )
            for picture in rng.sample(pools[kind], count)
        ]
        for kind, count in counts.items()
    }


def dialogue_pack(
    examples: list[PatchedPicture], processor: Processor, rng: random.Random
) -> tuple[Pack, Tensor]:
    """Pack dialogues behind their pictures; only the responses are learned.

    Returns: the pack restricted to response tokens, and their weights (C,), 1 / sqrt(length) so
    that long box lists do not drown one-word answers.
    """
    prompts, completions, learned, weights = [], [], [], []
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for number, example in enumerate(examples):
        before, after = processor.template(len(example.patches))
        prompts.append(processor.assemble(str(number), before, example.patches))
        group = []
        for question, response in example.picture.talk(rng):
            asked = processor.encode(question) + after
            said = processor.encode(response) + [end]
            group.append(torch.tensor(asked + said))
            learned += [False] * len(asked) + [True] * len(said)
            weights += [len(said) ** -0.5] * len(said)
        completions.append(group)
    pack = make_pack(prompts, completions)
    keep = torch.tensor(learned)
    pack = replace(pack, predictors=pack.predictors[keep], targets=pack.targets[keep])
    return pack, torch.tensor(weights)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


def run_stage(
    name: str,
    steps: int,
    peak: float,
    parameters: list[nn.Parameter],
    step_loss,
    log,
    every: int = 100,
    checkpoint=None,
) -> None:
    """AdamW over `steps` calls of `step_loss() -> metrics`, which leaves gradients behind."""
    matrices = [p for p in parameters if p.ndim > 1]
    rest = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    start, sums = time.time(), {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        for key, value in step_loss().items():
            sums[key] = sums.get(key, 0.0) + float(value)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % every == 0 or step + 1 == steps:
            count = (step % every) + 1
            row = {"stage": name, "step": step + 1, "seconds": round(time.time() - start, 1)}
            log(row | {key: round(value / count, 4) for key, value in sums.items()})
            sums = {}
        if checkpoint is not None and (step + 1) % (5 * every) == 0:
            checkpoint()


def draw_pools(seed: int, scale: float) -> dict[str, list[Picture]]:
    """Draw all pictures, 500 at a time, on all cores. Raises InputError for less than a batch."""
    for kind, count in POOL.items():
        most = max(BATCH[kind], SEE_BATCH.get(kind, 0))
        if not most <= count * scale < math.inf:
            needed = f"a step shows {most} of {count * scale:.0f} {kind} pictures"
            raise InputError(f"--pool_scale {scale}: {needed}; it must be larger, and finite")
    cell = 2 * SIZES["patch_size"]
    jobs = [
        (kind, start, min(500, int(count * scale) - start), cell, seed)
        for kind, count in POOL.items()
        for start in range(0, int(count * scale), 500)
    ]
    pools: dict[str, list[Picture]] = {kind: [] for kind in POOL}
    with ProcessPoolExecutor() as workers:
        for job, pictures in zip(
            jobs, workers.map(draw_pool, *zip(*jobs, strict=True)), strict=True
        ):
            pools[job[0]] += pictures
    pools["digit"] = digit_pictures(cell)
    return pools


def pretrain(cfg: PretrainConfig) -> None:
    """Make the embedded base: a checkpoint directory, and a journal of the two stages beside it."""
    # bf16 products inside fp32 layers: several times faster where the CPU has them, same result
    # to the eye. Fine-tuning, whose log-probabilities must be exact, keeps full float32.
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(cfg.seed)
    rng = random.Random(cfg.seed)
    began = time.time()
    output_dir = cfg.output_dir.resolve()
    check_output_dir(output_dir)
    journal = output_dir.with_name(output_dir.name + ".pretrain.jsonl")
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        journal.write_text("", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output_dir: cannot be written ({error})") from None

    def log(row: dict) -> None:
        line = json.dumps(row)
        print(line, flush=True)
        with journal.open("a", encoding="utf-8") as out:
            out.write(line + "\n")

    if cfg.model_dir is not None:  # read before the minute of drawing, so that a typo costs none
        skeleton = cfg.model_dir
        processor, model = Processor(skeleton), load_model(skeleton)
    pools = draw_pools(cfg.seed, cfg.pool_scale)
    if cfg.model_dir is None:
        skeleton = output_dir.with_name(output_dir.name + ".skeleton")
        texts = sample_texts(pools, count=2000, seed=cfg.seed)
        write_scratch_directory(skeleton, texts, VOCAB_SIZE, max_side=128, **SIZES)
        processor = Processor(skeleton)
        model = init_model(processor.cfg, cfg.seed)
    heads = PerceptionHeads(processor.cfg.text.hidden_size)
    log(
        {
            "stage": "start",
            "seconds": round(time.time() - began, 1),
            "parameters": sum(p.numel() for p in model.parameters()),
            "vocabulary": processor.cfg.text.vocab_size,
            "pictures": {kind: len(pool) for kind, pool in pools.items()},
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
    )

    def features_of(examples: list[PatchedPicture]) -> Tensor:
        patches = [patch for example in examples for patch in example.patches]
        return model.visual(torch.cat([p for p, _ in patches]), [g for _, g in patches])

    def see() -> dict:
        batch = make_batch(pools, SEE_BATCH, processor, rng)
        examples = [example for kind in batch.values() for example in kind]
        loss, accuracy = heads(features_of(examples), [e.picture for e in examples])
        loss.backward()
        return {"loss": loss.detach(), "accuracy": accuracy}

    def talk() -> dict:
        batch = make_batch(pools, BATCH, processor, rng)
        packs = {kind: dialogue_pack(examples, processor, rng) for kind, examples in batch.items()}
        total = sum(weights.sum() for _, weights in packs.values())
        metrics = {"loss": 0.0}
        for kind, (pack, weights) in packs.items():
            features = features_of(batch[kind])
            counts = [len(p.places) for p in (e.picture for e in batch[kind])]
            for prompt, own in zip(pack.prompts, features.split(counts), strict=True):
                prompt.features = own  # the tower's output serves dialogue and heads alike
            logp, _ = completion_logps(model, pack)
            loss = -(logp * weights).sum() / total
            metrics["loss"] += loss.detach()
            metrics[f"nll/{kind}"] = -(logp.detach() * weights).sum() / weights.sum()
            if kind not in ("growth", "digit"):
                side, metrics[f"seen/{kind}"] = heads(features, [e.picture for e in batch[kind]])
                loss = loss + SIDE_LOSS * side * len(batch[kind]) / sum(BATCH.values())
            loss.backward()
        return metrics

    def checkpoint() -> None:
        save_model(model, output_dir, skeleton, plan_slots(model, torch.float32))

    peak, tower = cfg.learning_rate, [*model.visual.parameters(), *heads.parameters()]
    run_stage("see", cfg.see_steps, peak, tower, see, log)
    everything = [*model.parameters(), *heads.parameters()]
    run_stage("talk", cfg.talk_steps, peak, everything, talk, log, checkpoint=checkpoint)
    checkpoint()
    log({"stage": "done", "seconds": round(time.time() - began, 1)})


def main(argv: list[str] | None = None) -> None:
    pretrain(config.parse(PretrainConfig, argv, __doc__.split("\n\n")[0]))


if __name__ == "__main__":
    console.run(main, trains=True)
