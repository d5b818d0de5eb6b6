"""What several tests share: a pass of the update, logs, and data that a random model can learn."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from PIL import Image
from torch import Tensor

from rewards import Reward
from sample import Rollout
from train_grpo import GRPOConfig, policy_loss, token_weights
from training import batches
from training.batches import Group
from training.micro_batches import MicroBatches, as_numbers


def make_groups(prompts, rollout: Rollout, advantages: Tensor, cfg: GRPOConfig) -> list[Group]:
    """The groups of a rollout with these advantages (N, G)."""
    rollout.advantages = advantages
    lengths = [len(ids) for ids in rollout.ids]
    weights = token_weights(lengths, cfg.loss_type, cfg.max_completion_length)
    return batches.make_groups(prompts, rollout, weights)


def backward(model, reference, groups: list[Group], suppressed: Tensor, cfg: GRPOConfig) -> dict:
    """Add the gradient of all groups to the model's; returns the totals of the pass."""
    keeps_gradients = SimpleNamespace(zero_grad=lambda: None)
    micro_batches = MicroBatches(model, keeps_gradients, cfg)
    for batch in micro_batches.split(groups, skip_zero_std=reference is None):
        with micro_batches.retry_on_oom():
            loss, stats = policy_loss(model, reference, batch, suppressed, cfg)
            loss.backward()
            micro_batches.add(stats)
    return as_numbers(micro_batches.totals)


def rows(path: Path) -> list[dict]:
    """The rows of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def step_rows(run: Path) -> list[dict]:
    """The rows of a run's steps, without those of its evaluations."""
    return [row for row in rows(run / "metrics.jsonl") if "loss" in row]


def eval_rows(run: Path) -> list[dict]:
    """The rows of a run's evaluations."""
    return [row for row in rows(run / "metrics.jsonl") if "eval/n" in row]


def pay_odd_lengths(load):
    """A task's `load` with a reward for texts of odd length, which a random model can earn."""

    def reward(text, example, weights, dense):
        is_odd = float(len(text) % 2)
        return Reward(is_odd, {"correct": is_odd, "format": 0.0})

    return lambda cfg, image_cfg=None: replace(load(cfg, image_cfg), reward=reward)


def folder_of_classes(root: Path, count: int = 3) -> Path:
    """A folder with two class folders of `count` pictures each; returns it."""
    for k, name in enumerate(("rose", "tulip")):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 32), (100 * k, 40 * i, 90)).save(root / name / f"{i}.png")
    return root
