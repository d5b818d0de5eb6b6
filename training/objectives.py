"""Other estimators of the advantage, and other objectives, than GRPO's: pure functions.

`train_grpo.py` has GRPO, docs/algorithms.md the flags that make REINFORCE, REINFORCE++, RLOO,
Dr. GRPO, DAPO, GSPO, CISPO and SAPO of it. What these add is here.

In the first pass over fresh completions every ratio is 1, and all these objectives have one and the
same gradient: they differ from the second pass on, and with completions of the past. What always
differs is the advantage and the weight of a token. So flags that would change nothing are refused.

Letters: N questions, G completions of each, C completion tokens. Next: training/batches.py.
"""

from typing import Literal

import torch
from torch import Tensor

from config import require
from kernels import group_advantages
from sample import Rollout

Estimator = Literal["grpo", "rloo", "reinforce"]
Scale = Literal["group", "batch", "none"]

SAPO_TEMPERATURES = 1.0, 1.05  # of advantages above 0 and below (SAPO, arXiv:2511.20347)


# ---- advantages ----------------------------------------------------------------------------------


def step_advantages(
    rewards: Tensor, has_reward: Tensor, estimator: Estimator, scale: Scale, eps: float = 1e-4
) -> Tensor:
    """Advantages of all completions of a step: (reward - baseline) / scale.

    Args:
        rewards: (N, G) fp32 of *all* ranks: two of the baselines and scales look beyond a group.
        has_reward: (N, G) bool. A lost reward has the mean of its group as a stand-in.
        estimator: the baseline. grpo: the group's mean. rloo: the mean of the others of the group,
            which makes the expected gradient that of the reward, where the group's mean makes it
            (1 - 1/G) of that. reinforce: the mean of the step.
        scale: group: the group's standard deviation. batch: that of all (reward - baseline) of the
            step (not of the rewards, as TRL's). none: 1.
    Returns: (N, G), 0 where the reward was lost. With a baseline of the group the advantages of a
        zero-std group are exact zeros; with that of the step they teach, too.
    Raises: ValueError as `kernels.group_advantages`.
    """
    if estimator == "reinforce":
        advantages = rewards - rewards[has_reward].mean()  # (N, G)
    else:
        advantages = group_advantages(rewards, "group" if scale == "group" else "none", eps)
    if estimator == "rloo":
        G = rewards.shape[1]
        advantages = advantages * (G / (G - 1))  # r - mean of the others
    if scale == "batch":
        advantages = advantages / (advantages[has_reward].std() + eps)
    return advantages.masked_fill(~has_reward, 0.0)


def subtract_kl(rollout: Rollout, logps_ref: list[Tensor], beta: float) -> None:
    """Subtract beta times the log-ratio of each completion to the reference from its reward (RLOO,
    arXiv:2402.14740): an unbiased estimate of the KL, in nats; noted as the part "kl".

    Args:
        logps_ref: (C_i,) each, of the completions of `rollout` under the reference.
    """
    pairs = zip(rollout.logps, logps_ref, strict=True)
    kl = torch.stack([(logp - logp_ref).sum() for logp, logp_ref in pairs])  # (B,)
    rollout.add_part("kl", kl, -beta)


# ---- ratios and objectives -----------------------------------------------------------------------


def sequence_log_ratio(log_ratio: Tensor, completion_of: Tensor) -> Tensor:
    """The mean of a completion's log ratios, at each of its tokens: (C,) -> (C,).

    Source: GSPO, arXiv:2507.18071.

    Args:
        log_ratio: log-probability under the policy less that under the one that sampled.
        completion_of: (C,) int64, 0, 0, .., 1, 1, ..: which completion a token belongs to.
    """
    zeros = log_ratio.new_zeros(len(log_ratio))  # as many completions as tokens at most: no wait
    sums = zeros.index_add(0, completion_of, log_ratio)
    counts = zeros.index_add(0, completion_of, torch.ones_like(log_ratio))
    return (sums / counts.clamp_min(1)).index_select(0, completion_of)


def clipped(
    ratio: Tensor, advantages: Tensor, low: float, high: float, delta: float | None = None
) -> Tensor:
    """PPO's clipped objective per token (arXiv:1707.06347, eq. 7): (C,).

    `delta` also bounds the ratio where the advantage is negative, which PPO does not (INTELLECT-2,
    arXiv:2505.07291): only completions of an older policy come near it.
    """
    free = ratio if delta is None else ratio.clamp(max=delta)
    return torch.minimum(free * advantages, ratio.clamp(low, high) * advantages)


def clip_shares(ratio: Tensor, advantages: Tensor, low: float, high: float) -> dict[str, Tensor]:
    """How many tokens the clip silences, below and above, by the names of TRL's metrics."""
    return {
        "clip_ratio/low_mean": ((ratio < low) & (advantages < 0)).sum(),
        "clip_ratio/high_mean": ((ratio > high) & (advantages > 0)).sum(),
    }


def cispo(logp: Tensor, ratio: Tensor, advantages: Tensor, cap: float) -> Tensor:
    """REINFORCE, weighted by the ratio up to a cap: no token loses its gradient (CISPO,
    arXiv:2506.13585)."""
    return ratio.detach().clamp(max=cap) * advantages * logp


def sapo(ratio: Tensor, advantages: Tensor) -> Tensor:
    """A soft gate in place of the clip: 4/t sigmoid(t (ratio - 1)) A, whose slope is 1 at ratio 1
    and fades on both sides (SAPO, arXiv:2511.20347)."""
    above, below = SAPO_TEMPERATURES
    t = torch.where(advantages > 0, above, below)
    return 4 / t * torch.sigmoid(t * (ratio - 1)) * advantages


# ---- what is refused -----------------------------------------------------------------------------


def check_objective(cfg) -> None:
    """Refuse flags of train_grpo.py that would change nothing, or mean something else together."""

    def wants(holds: bool, name: str, what: str) -> None:
        require(holds, name, what, cfg)

    is_clipped = cfg.loss_type not in ("cispo", "sapo")
    is_sequence = cfg.importance_sampling_level == "sequence"
    if cfg.num_iterations == 1 and cfg.replay_buffer_size == 0:
        why = "left out with --num_iterations 1: every ratio is 1, and it changes nothing"
        wants(is_clipped, "loss_type", why)
        wants(not is_sequence, "importance_sampling_level", why)
        wants(cfg.delta is None, "delta", why)
    if not is_clipped:
        why = f"left out with --loss_type {cfg.loss_type}, which has no clip"
        wants(cfg.delta is None, "delta", why)
        wants(not is_sequence, "importance_sampling_level", why)
    has_cap = cfg.loss_type != "cispo" or cfg.epsilon_high is not None
    wants(has_cap, "epsilon_high", "given with --loss_type cispo: its cap, 5 for example")
    high = 1 + (cfg.epsilon_high or cfg.epsilon)
    wants(cfg.delta is None or cfg.delta > high, "delta", f"above {high:g}, where the clip is")
    why = "below 0.1 with --importance_sampling_level sequence, say 0.05: a mean moves less"
    wants(not is_sequence or cfg.epsilon < 0.1, "epsilon", why)
    wants(cfg.beta > 0 or not cfg.kl_in_reward, "beta", "above 0 with --kl_in_reward")
    is_group = cfg.advantage_estimator == "reinforce" and cfg.scale_rewards == "group"
    why = "batch or none with --advantage_estimator reinforce, which compares with the whole step"
    wants(not is_group, "scale_rewards", why)
