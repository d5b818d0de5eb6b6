"""Pretraining of the bundled base model from scratch: `assets/garden-vlm/`.

    python -m data.garden.pretrain --output_dir runs/garden-vlm

Run it from the repository's root; it takes about two hours on two cores. First the vision tower
is trained alone: auxiliary linear heads, discarded afterwards, predict for every image token the
attributes and the box of the flower there. (Without this stage the same network shows no box at all
after 1000 joint steps.) Then tower and language model learn the dialogues of
`data/garden/corpus.py`, with the heads as an auxiliary loss; the dialogues about one picture are
packed behind it. The result is a complete checkpoint directory.

The committed base was made in four runs, each but the first with `--start` from the last one
(benchmarks/RESULTS.md). One run of 5000 joint steps, the default, has not been tried.
"""

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import config
from config import flag, require, require_counts
from data.garden.corpus import IGNORED, TARGETS, Picture, digit_pictures, draw_picture, sample_texts
from model.image import patchify
from model.new_checkpoint import init_model, write_new_checkpoint
from model.pack import Pack, completion_logps, make_pack
from model.processor import Processor
from model.vlm import VLM, Prompt
from model.weights import load_model, save_model, single_file
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
CELL = 2 * SIZES["patch_size"]  # pixels of an image token
VOCAB_SIZE = 1000  # upper bound; the tokenizer stops earlier when its corpus has no more merges
POOL = {"portrait": 12000, "scene": 16000, "change": 10000, "wilting": 5000, "growth": 3000}
VISION_BATCH = {"portrait": 18, "scene": 13, "wilting": 5}  # pictures per step of the vision stage
BATCH = {"portrait": 4, "scene": 10, "change": 13, "wilting": 6, "growth": 2, "digit": 2}
SIDE_LOSS = 0.3  # weight of the perception heads in the joint stage
LOG_STEPS, SAVE_STEPS = 100, 500

PromptedPicture = tuple[Picture, Prompt]
Batch = dict[str, list[PromptedPicture]]  # by kind of picture


@dataclass(frozen=True)
class PretrainConfig:
    output_dir: Path = flag(Path("runs/garden-vlm"), "checkpoint directory to write")
    start: Path | None = flag(None, "bundled base to go on from; default: from scratch")
    vision_steps: int = flag(1500, "steps of the vision stage")
    joint_steps: int = flag(5000, "steps of the joint stage")
    learning_rate: float = flag(1e-3, "peak of both stages")
    seed: int = flag(0, "of pictures, dialogues and initial weights")

    def __post_init__(self) -> None:
        require_counts(self, "vision_steps joint_steps")
        require(0 < self.learning_rate < math.inf, "learning_rate", "a positive number", self)


class PerceptionHeads(nn.Module):
    """Linear heads on the image tokens, discarded after pretraining."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, sum(TARGETS.values()))

    def forward(self, features: Tensor, pictures: list[Picture]) -> tuple[Tensor, Tensor]:
        """Loss and accuracy over every target of the pictures: features (Q, D)."""
        places = torch.from_numpy(np.concatenate([p.places for p in pictures]))  # (Q, 12)
        whole = torch.from_numpy(np.stack([p.whole for p in pictures]))  # (pictures, 12)
        parts = features.split([len(p.places) for p in pictures])
        means = torch.stack([tokens.mean(0) for tokens in parts])  # (pictures, D)
        scores = self.linear(torch.cat((features, means))).split(list(TARGETS.values()), dim=-1)
        targets = torch.cat((places, whole))  # (Q + pictures, 12)
        loss, right, total = 0.0, 0, 0
        for score, target in zip(scores, targets.unbind(1), strict=True):
            mask = target != IGNORED
            if mask.any():
                loss = loss + F.cross_entropy(score[mask], target[mask])
                right += (score[mask].argmax(-1) == target[mask]).sum()
                total += mask.sum()
        return loss, right / total


def draw_pools(seed: int) -> dict[str, list[Picture]]:
    """Draw all pictures, 500 at a time, on all cores."""
    pools = {"digit": digit_pictures(CELL)}
    with ProcessPoolExecutor() as workers:
        for kind, count in POOL.items():
            draw = partial(draw_picture, kind, CELL, seed)
            pools[kind] = list(workers.map(draw, range(count), chunksize=500))
    return pools


def make_batch(pools: dict[str, list[Picture]], counts: dict[str, int], processor, rng) -> Batch:
    """Draw the pictures of one step by kind, each with its prompt.

    A prompt is a user's turn up to its words: the dialogues about the picture are its completions.
    """
    batch = {kind: [] for kind in counts}
    for kind, count in counts.items():
        for picture in rng.sample(pools[kind], count):
            before, _ = processor.template(len(picture.images))
            patches = [patchify(image, processor.image_cfg) for image in picture.images]
            batch[kind].append((picture, processor.assemble(kind, before, patches)))
    return batch


def dialogue_pack(examples: list[PromptedPicture], processor, rng) -> tuple[Pack, Tensor]:
    """Pack dialogues behind their pictures; only the responses are learned.

    Returns: the pack restricted to response tokens, and their weights (C,), 1 / sqrt(length) so
    that long box lists do not drown one-word answers.
    """
    completions, is_response, weights = [], [], []
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    _, after = processor.template(1)
    for picture, _ in examples:
        completions.append([])
        for question, response in picture.talk(rng):
            question_ids = processor.encode(question) + after
            response_ids = processor.encode(response) + [end]
            completions[-1].append(torch.tensor(question_ids + response_ids))
            is_response += [False] * len(question_ids) + [True] * len(response_ids)
            weights += [len(response_ids) ** -0.5] * len(response_ids)
    pack = make_pack([prompt for _, prompt in examples], completions)
    mask = torch.tensor(is_response)
    pack = replace(pack, predictors=pack.predictors[mask], targets=pack.targets[mask])
    return pack, torch.tensor(weights)


def vision_stage(model: VLM, heads: PerceptionHeads, batch: Batch) -> dict[str, Tensor]:
    """Forward and backward of the vision stage; returns the metrics."""
    pictures, prompts = zip(*sum(batch.values(), []), strict=True)
    loss, accuracy = heads(model.image_features(prompts)[:, 0], pictures)
    loss.backward()
    return {"loss": loss.detach(), "accuracy": accuracy}


def joint_stage(
    model: VLM, heads: PerceptionHeads, batch: Batch, processor, rng
) -> dict[str, Tensor]:
    """Forward and backward of the joint stage, kind by kind; returns the metrics."""
    packs = {kind: dialogue_pack(batch[kind], processor, rng) for kind in batch}
    total = sum(weights.sum() for _, weights in packs.values())
    metrics = {"loss": 0.0}
    for kind, (pack, weights) in packs.items():
        pictures, prompts = zip(*batch[kind], strict=True)
        features = model.keep_image_features(
            prompts
        )  # (Q, levels, D), for dialogues and heads alike
        logp, _ = completion_logps(model, pack)  # (C,)
        nll = -(logp * weights).sum()
        loss = nll / total
        metrics["loss"] += loss.detach()
        metrics[f"nll/{kind}"] = nll.detach() / weights.sum()
        if kind not in ("growth", "digit"):
            side_loss, metrics[f"accuracy/{kind}"] = heads(features[:, 0], pictures)
            loss = loss + SIDE_LOSS * side_loss * len(pictures) / sum(BATCH.values())
        loss.backward()
    return metrics


def learning_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


def train_stage(
    name: str, steps: int, peak: float, parameters: list[nn.Parameter], log: Callable[[dict], None]
) -> Iterator[tuple[int, dict]]:
    """AdamW: yield (step, metrics); the caller leaves gradients behind and fills in the metrics."""
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    start, sums = time.time(), Counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        yield step, (metrics := {})
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for key, value in metrics.items():
            sums[key] += float(value)
        if (step + 1) % LOG_STEPS == 0 or step + 1 == steps:
            row = {"stage": name, "step": step + 1, "seconds": round(time.time() - start, 1)}
            count = step % LOG_STEPS + 1
            log(row | {key: round(value / count, 4) for key, value in sums.items()})
            sums.clear()


def pretrain(cfg: PretrainConfig) -> None:
    """Make the bundled base: a checkpoint directory, and a log of the two stages beside it."""
    # bf16 products inside fp32 layers: several times faster where the CPU has them, without a
    # visible difference. Fine-tuning, whose log-probabilities must be exact, keeps full float32.
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(cfg.seed)
    rng, start = random.Random(cfg.seed), time.time()
    pools = draw_pools(cfg.seed)
    output_dir = cfg.output_dir.resolve()
    check_output_dir(output_dir)
    log_file = output_dir.with_name(output_dir.name + ".pretrain.jsonl")
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        log_file.write_text("", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output_dir: cannot be written ({error})") from None

    def log(row: dict) -> None:
        print(json.dumps(row), flush=True)
        with log_file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    if cfg.start:
        skeleton, processor, model = cfg.start, Processor(cfg.start), load_model(cfg.start)
    else:
        skeleton = output_dir.with_name(output_dir.name + ".skeleton")
        texts = sample_texts(pools, count=2000, seed=cfg.seed)
        write_new_checkpoint(skeleton, texts, VOCAB_SIZE, max_side=128, **SIZES)
        processor = Processor(skeleton)
        model = init_model(processor.cfg, cfg.seed)
    heads = PerceptionHeads(processor.cfg.text.hidden_size)
    row = {"stage": "start", "seconds": round(time.time() - start, 1), "torch": torch.__version__}
    row |= {"parameters": sum(p.numel() for p in model.parameters())}
    row |= {"vocabulary": processor.cfg.text.vocab_size, "threads": torch.get_num_threads()}
    log(row | {"pictures": {kind: len(pool) for kind, pool in pools.items()}})

    def save() -> None:
        save_model(model, output_dir, skeleton, single_file(model, torch.float32))

    parameters = [*model.visual.parameters(), *heads.parameters()]
    for _, metrics in train_stage("vision", cfg.vision_steps, cfg.learning_rate, parameters, log):
        metrics.update(vision_stage(model, heads, make_batch(pools, VISION_BATCH, processor, rng)))
    parameters = [*model.parameters(), *heads.parameters()]
    for step, metrics in train_stage("joint", cfg.joint_steps, cfg.learning_rate, parameters, log):
        if step and step % SAVE_STEPS == 0:
            save()
        batch = make_batch(pools, BATCH, processor, rng)
        metrics.update(joint_stage(model, heads, batch, processor, rng))
    save()
    log({"stage": "done", "seconds": round(time.time() - start, 1)})


def main(argv: list[str] | None = None) -> None:
    pretrain(config.parse(PretrainConfig, argv, __doc__))


if __name__ == "__main__":
    console.run(main, trains=True)
