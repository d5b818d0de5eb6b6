"""What reinforcement will find: sample the policy as a training step does, and count.

    pass@k      the probability that one of k completions is right
    teachable   the probability that a group of G does not all earn the same: only such a group has
                an advantage, so this is the share of questions that a step can learn from
    room        pass@K - pass@1: right answers that are sampled, but seldom. Reinforcement makes
                them usual; it does not find what is never sampled

All are estimated from K completions of each question without drawing again, and their intervals
come from resampling the questions (Wilson's for shares). Read first: train_grpo.py.
Next: checks/verdict.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np
import torch
from torch import Tensor

from data.examples import Example
from model.processor import Processor
from model.vlm import VLM
from tasks.task import Task
from training.batches import concatenate, keep_features, sample_groups
from training.evaluation import bootstrap_interval, wilson_interval
from training.learned_reward import LearnedReward
from training.rollout_config import RolloutConfig
from training.scoring import Scorer


@dataclass(frozen=True)
class Sampled:
    """K completions of each of n questions, scored as in training; text i is of question i // K.

    Attributes:
        rewards: (n, K) fp32. has_reward: (n, K) bool, False where it was lost.
        right: (n, K) bool: the whole answer is right. answers: n * K, None where unreadable.
        is_cut: (n, K) bool: the token limit came first. lengths: (n, K) int64, tokens.
        parts: name -> mean over the completions that have the part.
    """

    examples: Sequence[Example]
    texts: list[str]
    answers: list[str | None]
    rewards: Tensor
    has_reward: Tensor
    right: Tensor
    is_cut: Tensor
    lengths: Tensor
    parts: dict[str, float]


def sample(
    model: VLM,
    processor: Processor,
    task: Task,
    scorer: Scorer,
    cfg: RolloutConfig,
    examples: Sequence[Example],
    samples: int,
    learned: LearnedReward | None = None,
) -> Sampled:
    """Sample and score `samples` completions of every question.

    As many at a time as in a step of the run, so that memory suffices where the run's does.
    """
    size = max(1, cfg.prompts_per_step * cfg.num_generations // samples)
    rollouts = []
    cfg = replace(cfg, num_generations=samples)
    for start in range(0, len(examples), size):
        chunk = examples[start : start + size]
        prompts = [processor.prompt(e.id, e.images, e.question) for e in chunk]
        keep_features(model, prompts, cfg)
        acting = (task.environment, chunk)
        rollout = sample_groups(model, processor, prompts, cfg, 0, *acting)
        rollout.rewards, rollout.parts = scorer.score(chunk, rollout, 0)
        if learned is not None:
            learned.add_to(rollout, prompts)
        rollouts.append(rollout)
    rollout, shape = concatenate(rollouts), (len(examples), samples)
    of_row = [example for example in examples for _ in range(samples)]
    pairs = list(zip(rollout.texts, of_row, strict=True))
    scored = [parts for parts in rollout.parts if parts is not None]
    names = dict.fromkeys(name for parts in scored for name in parts)
    values = {name: [parts[name] for parts in scored if name in parts] for name in names}
    return Sampled(
        examples=examples,
        texts=rollout.texts,
        answers=[task.answer(text, example) for text, example in pairs],
        rewards=rollout.rewards,
        has_reward=rollout.has_reward,
        right=torch.tensor([task.scores(*pair)["strict"] == 1.0 for pair in pairs]).view(shape),
        is_cut=torch.tensor([finish == "length" for finish in rollout.finish]).view(shape),
        lengths=torch.tensor([len(ids) for ids in rollout.ids]).view(shape),
        parts={name: sum(found) / len(found) for name, found in values.items()},
    )


# ---- estimates, one number per question ----------------------------------------------------------


def pass_at_k(right: Tensor, k: int) -> np.ndarray:
    """1 - C(K - c, k) / C(K, k) for c right ones of K: (n,) fp64 (arXiv:2107.03374, eq. 1)."""
    K = right.shape[1]
    return np.array([1 - comb(K - int(c), k) / comb(K, k) for c in right.sum(1)])


def teachable(rewards: Tensor, has_reward: Tensor, size: int) -> np.ndarray:
    """The probability that `size` of the K completions of a question do not all earn the same.

    (n,) fp64. Drawn without replacement, as in `pass_at_k`: equal rewards fill a group with
    probability sum of C(c, size) / C(K, size) over the rewards that c of them have. A lost reward
    has no advantage.
    """
    shares = []
    for row, counted in zip(rewards, has_reward, strict=True):
        counts = Counter(round(value, 6) for value in row[counted].tolist())
        total = sum(counts.values())
        alike = sum(comb(c, size) for c in counts.values()) / max(comb(total, size), 1)
        shares.append(0.0 if total < size else 1.0 - alike)
    return np.array(shares)


class Share(float):
    """A mean over questions, with its 95 % interval."""

    low: float
    high: float

    def __new__(cls, values: np.ndarray, interval: tuple[float, float]) -> "Share":
        share = super().__new__(cls, float(np.mean(values)))
        share.low, share.high = interval
        return share

    def __str__(self) -> str:
        return f"{float(self):.1%} [{self.low:.1%}, {self.high:.1%}]"


def share_of(values: np.ndarray | Tensor) -> Share:
    """The mean of one number per question, with an interval: Wilson's where all are 0 or 1, else
    from resampling the questions."""
    values = np.asarray(values, dtype=np.float64)
    if np.isin(values, (0.0, 1.0)).all():
        return Share(values, wilson_interval(float(values.mean()), len(values)))
    interval = bootstrap_interval(lambda index: float(values[index].mean()), len(values), 1000)
    return Share(values, interval)


@dataclass(frozen=True)
class Forecast:
    """What the completions of a policy say about training it. Shares are of questions."""

    questions: int
    samples: int
    group: int  # completions that are compared: G of the run, or all samples
    across: bool  # completions are compared with those of the whole step, as by REINFORCE
    pass_1: Share
    pass_all: Share  # one of all samples is right
    never: Share
    sometimes: Share
    always: Share
    teachable: Share  # at G
    teachable_double: Share | None  # at twice as many generations, where there are enough samples
    unreadable: float  # of completions, as the following
    cut: float
    lost: float
    length: float  # mean, in tokens
    parts: dict[str, float]

    @property
    def room(self) -> float:
        """Right answers that are sampled, but not each time."""
        return self.pass_all - self.pass_1


def forecast(sampled: Sampled, group: int, across: bool = False) -> Forecast:
    """Count.

    Args:
        group: --num_generations of the run, at most the number of samples. across: the baseline is
            that of the whole step. Then a group that earns the same teaches, too; what tells
            whether a question does is that its completions can differ at all.
    """
    right, rewards, counted = sampled.right, sampled.rewards, sampled.has_reward
    questions, samples = right.shape
    share, group = right.double().mean(1), samples if across else group
    double = 2 * group if 2 * group <= samples else None
    return Forecast(
        questions=questions,
        samples=samples,
        group=group,
        across=across,
        pass_1=share_of(share),
        pass_all=share_of(pass_at_k(right, samples)),
        never=share_of(share == 0),
        sometimes=share_of((share > 0) & (share < 1)),
        always=share_of(share == 1),
        teachable=share_of(teachable(rewards, counted, group)),
        teachable_double=double and share_of(teachable(rewards, counted, double)),
        unreadable=sampled.answers.count(None) / len(sampled.answers),
        cut=float(sampled.is_cut.double().mean()),
        lost=1 - float(counted.double().mean()),
        length=float(sampled.lengths.double().mean()),
        parts=sampled.parts,
    )
