"""Group-normalised advantages: each reward is compared with the others of its own group.

Forward, for one group r_1 .. r_G (no backward: advantages are constants of the loss):

    mean = sum_i r_i / G
    std  = sqrt(sum_i (r_i - mean)^2 / (G - 1))           Bessel-corrected, as in TRL
    A_i  = (r_i - mean) / (std + eps)                      scale_rewards = "group"
    A_i  = r_i - mean                                      scale_rewards = "none"

"group" is GRPO (DeepSeekMath, arXiv:2402.03300, outcome supervision); "none" is Dr. GRPO
(arXiv:2503.20783), which drops the division because it favours questions of low deviation.
The advantages of a zero-std group are exact zeros: otherwise the rounding error of its mean,
divided by eps, would become a gradient.

Cost: both forms are bound by launches, not by memory; the reference is about ten of them, the fused
kernel is one. It is the smallest complete kernel of the project. Next: `logprob.py`, `decode.py`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from kernels import Impl, choose_impl, constexpr, jit, tl, triton

MAX_GROUP_SIZE = 4096  # a group is held in the registers of one program
NUM_WARPS = 4  # 128 threads: 32 rewards each at the largest group, which does not spill


def group_advantages_ref(
    rewards: Tensor, scale_rewards: Literal["group", "none"] = "group", eps: float = 1e-4
) -> Tensor:
    """The specification of `group_advantages`, in the dtype of `rewards` (N, G)."""
    advantages = rewards - rewards.mean(dim=1, keepdim=True)  # (N, G)
    if scale_rewards == "group":
        advantages = advantages / (rewards.std(dim=1, keepdim=True) + eps)  # (N, G)
    zero_std = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)  # (N, 1)
    return advantages.masked_fill(zero_std, 0.0)  # (N, G)


@jit
def _group_advantages_kernel(
    rewards_ptr,
    advantages_ptr,  # (N, G) contiguous
    stride_n,  # strides of rewards
    stride_g,
    G,
    eps,
    BLOCK_G: constexpr,  # power of two, at least G
    DIVIDE_BY_STD: constexpr,
):
    """One program normalises one group: two passes over registers, one over memory."""
    group = tl.program_id(0).to(tl.int64)
    member = tl.arange(0, BLOCK_G)
    exists = member < G
    address = rewards_ptr + group * stride_n + member.to(tl.int64) * stride_g
    rewards = tl.load(address, mask=exists, other=0.0)

    # The mean first and the squares of the differences second: a sum of r^2 would cancel.
    mean = tl.sum(rewards, axis=0) / G
    centred = tl.where(exists, rewards - mean, 0.0)
    advantages = centred
    if DIVIDE_BY_STD:
        std = tl.sqrt(tl.sum(centred * centred, axis=0) / (G - 1))
        advantages = centred / (std + eps)

    highest = tl.max(tl.where(exists, rewards, -float("inf")), axis=0)
    lowest = tl.min(tl.where(exists, rewards, float("inf")), axis=0)
    advantages = tl.where(highest == lowest, 0.0, advantages)
    tl.store(advantages_ptr + group * G + member, advantages, mask=exists)


@torch.no_grad()
def group_advantages(
    rewards: Tensor,
    scale_rewards: Literal["group", "none"] = "group",
    eps: float = 1e-4,
    impl: Impl = "auto",
) -> Tensor:
    """Compare every reward with the mean (and the standard deviation) of its group.

    A_i = (r_i - mean) / (std + eps), std Bessel-corrected; the module docstring has the sources.

    Args:
        rewards: (N, G) fp32, row n holds the rewards of the G completions of prompt n; any strides.
            The torch implementation also takes fp64.
        scale_rewards: "group" divides by the standard deviation of the group, "none" does not.
        eps: >= 0, added to the standard deviation (TRL's 1e-4), in units of reward.
        impl: "auto", "torch" or "triton"; see `kernels.choose_impl`.

    Returns:
        (N, G) in the dtype of `rewards`, without gradient; zeros where all rewards are equal.

    Raises:
        ValueError: wrong shape or dtype, G < 2 (one reward has no deviation), G > 4096 for Triton,
            or a reward that is NaN or infinite (checked on the device: one synchronisation).
    """
    if rewards.dim() != 2:
        raise ValueError(f"rewards must have shape (N, G), got {tuple(rewards.shape)}")
    N, G = rewards.shape
    if G < 2:
        raise ValueError(f"a group needs at least G=2 completions to be compared, got G={G}")
    if scale_rewards not in ("group", "none"):
        raise ValueError(f"scale_rewards must be 'group' or 'none', got {scale_rewards!r}")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and >= 0, got {eps}")
    impl = choose_impl(impl, rewards)
    if rewards.dtype != torch.float32 and (impl == "triton" or rewards.dtype != torch.float64):
        raise ValueError(f"rewards must be float32 (or float64 in torch), got {rewards.dtype}")
    if impl == "triton" and G > MAX_GROUP_SIZE:
        raise ValueError(f"the triton kernel takes groups of at most {MAX_GROUP_SIZE}, got G={G}")
    if N == 0:
        return torch.empty_like(rewards)  # (0, G): a grid cannot be empty
    is_finite = torch.isfinite(rewards)  # (N, G) bool
    if not is_finite.all():
        n, i = (~is_finite).nonzero()[0].tolist()
        raise ValueError(f"rewards must be finite, got {rewards[n, i].item()} at [{n}, {i}]")
    if impl == "torch":
        return group_advantages_ref(rewards, scale_rewards, eps)
    advantages = torch.empty((N, G), dtype=rewards.dtype, device=rewards.device)  # (N, G)
    _group_advantages_kernel[(N,)](
        rewards, advantages, *rewards.stride(), G, eps, BLOCK_G=triton.next_power_of_2(G),
        DIVIDE_BY_STD=scale_rewards == "group", num_warps=NUM_WARPS,
    )  # fmt: skip
    return advantages
