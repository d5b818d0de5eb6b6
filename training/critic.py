"""The critic of PPO: what its values are compared with, and the advantages that follow from them.

The state before a token is the prompt and what was said so far; its value V is what the critic
expects the rewards from there on to add up to. Where GRPO asks G times and takes the mean, a critic
learns that mean from all questions together, for every place in a completion. Pure functions, but
for `load_critic`.

Letters: B completions, C_i tokens of one, C tokens of all. Read first: train_ppo.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from config import TrainConfig
from model.scored import ScoredVLM
from training.setup import trainable_model


def token_rewards(
    rewards: Tensor, lengths: list[int], log_ratios: list[Tensor] | None = None, beta: float = 0.0
) -> Tensor:
    """The reward of every token: (C,).

    0 but at the last token of a completion, which gets its verified reward, a cut one, too; less
    beta times the token's log-ratio to the reference, an unbiased estimate of the KL.

    Args:
        rewards: (B,). log_ratios: (C_i,) each.
    """
    of_tokens = torch.zeros(sum(lengths), dtype=rewards.dtype)
    of_tokens[torch.tensor(lengths).cumsum(0) - 1] = rewards
    return of_tokens if log_ratios is None else of_tokens - beta * torch.cat(log_ratios)


def gae(rewards: Tensor, values: Tensor, lengths: list[int], gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation (arXiv:1506.02438): (C,), (C,) -> (C,).

    Within a completion, from its end: delta_t = r_t + gamma V_{t+1} - V_t, and
    A_t = delta_t + gamma lambda A_{t+1}, with V and A 0 after the last token. gamma = lambda = 1
    with one reward at the end: A_t = reward - V_t. An exact V makes every lambda unbiased, any
    other V only lambda = 1; a smaller one trades bias for variance.
    """
    r, v = (pad_sequence(x.split(lengths), batch_first=True) for x in (rewards, values))  # (B, ..)
    delta = r + gamma * F.pad(v[:, 1:], (0, 1)) - v  # (B, C_max), 0 beyond the end
    advantages, following = torch.zeros_like(delta), torch.zeros(len(lengths)).to(delta)
    for t in reversed(range(delta.shape[1])):
        following = delta[:, t] + gamma * lam * following
        advantages[:, t] = following
    is_token = torch.arange(delta.shape[1]) < torch.tensor(lengths)[:, None]  # (B, C_max)
    return advantages[is_token]


def returns_to_go(rewards: Tensor, lengths: list[int], gamma: float) -> Tensor:
    """The discounted sum of the rewards from each token on, the critic's target: (C,) -> (C,)."""
    return gae(rewards, torch.zeros_like(rewards), lengths, gamma, lam=1.0)


def value_loss(values: Tensor, returns: Tensor, weights: Tensor) -> Tensor:
    """Half the weighted sum of squared errors (arXiv:1707.06347): (C,) each -> ()."""
    return 0.5 * (weights * (values - returns).square()).sum()


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a critic that is always right, 0 for one that
    says a constant; nan where the returns do not vary."""
    spread = returns.var()
    return float(1 - (returns - values).var() / spread) if spread > 0 else float("nan")


def load_critic(cfg: TrainConfig) -> ScoredVLM:
    """A copy of the model that the run began from, in training, with values of 0.

    Its tower, where that is frozen, is the policy's: it sees the features that the prompts hold.
    """
    return ScoredVLM(trainable_model(cfg, checkpoint=None))
