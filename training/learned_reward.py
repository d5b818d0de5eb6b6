"""A learned reward beside the rule: what people prefer, or what a verifier believes.

    python train_grpo.py --task count --reward_model runs/count-preference --reward_model_weight 0.3

A policy finds what a learned reward overlooks: its score goes on rising when the answers no longer
get better (arXiv:2210.10760). So it is a part of the reward beside the rule's, logged under its own
name, and a KL to the start (`--beta`) is advised. Next: training/verifier.py.
"""

from dataclasses import replace

import torch

from model.vlm import VLM, Prompt
from runtime.errors import InputError
from sample import Rollout
from training.rollout_config import RolloutConfig
from training.search import completion_scores
from training.verifier import load_verifier, what_is_read


class LearnedReward:
    """The model of --reward_model. A preference counts in standard deviations of its scores when it
    was trained; a verifier of outcomes as the probability that it states."""

    def __init__(self, cfg: RolloutConfig, device: torch.device):
        self.weight = cfg.reward_model_weight
        dtype = getattr(torch, cfg.dtype)
        self.model, about = load_verifier(cfg.reward_model, dtype, device, policy=cfg.model)
        self.labels, self.scale = about.get("labels"), about.get("scale")
        if self.labels not in ("outcome", "preference"):
            what = "a verifier of statements is no reward of answers; take outcome or preference"
            raise InputError(f"--reward_model {cfg.reward_model}: {what}")
        if about.get("task") != cfg.task:
            print(f"warning: --reward_model {cfg.reward_model}: of the task {about.get('task')}")

    def add_to(self, rollout: Rollout, prompts: list[Prompt]) -> None:
        """Add the part "learned" to the rewards of a scored rollout."""
        prompts = [replace(prompt, features=None) for prompt in prompts]  # those of its own tower
        prompts = what_is_read(self.model, prompts)
        scores = completion_scores(self.model, prompts, rollout.ids).flatten()  # (B,)
        if self.labels == "outcome":
            scores = scores.sigmoid()
        else:
            scores = (scores - self.scale["mean"]) / self.scale["std"]
        rollout.add_part("learned", scores, self.weight)


def learned_reward(cfg: RolloutConfig, model: VLM) -> LearnedReward | None:
    """The learned reward that a run asks for, None without one."""
    return None if cfg.reward_model is None else LearnedReward(cfg, model.device)
