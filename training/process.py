"""Rewards of single statements: an untrue one costs on its own tokens, a true one earns nothing.

A source that knows all facts of its pictures can check every statement of a thought
(`Task.statements`). Paying for true ones would invite lists of true and useless statements, so only
untrue ones count, and only where they stand: the advantage of their tokens is lowered, whatever the
answer earned. What cannot be read costs nothing and is counted.

Next: training/verifier.py.
"""

from bisect import bisect_left

import torch
from torch import Tensor

from data.examples import Example
from model.processor import Processor
from sample import Rollout
from tasks.task import Task


def token_after(ids: Tensor, characters: int, processor: Processor) -> int:
    """How many of a completion's first tokens are needed for so many characters of its text."""
    return bisect_left(range(len(ids)), characters, key=lambda n: len(processor.decode(ids[:n])))


def untrue_penalties(
    rollout: Rollout, examples: list[Example], task: Task, processor: Processor, weight: float
) -> list[Tensor]:
    """What every token of this rank's completions loses by untrue statements: (C_i,) fp32, <= 0.

    Every token of an untrue statement loses `weight`, in units of the advantage.
    """
    G, penalties = len(rollout.texts) // len(examples), []
    for b, (ids, text) in enumerate(zip(rollout.ids, rollout.texts, strict=True)):
        lost = torch.zeros(len(ids))
        for statement in task.statements(text, examples[b // G]):
            if statement.is_true is False:
                first = token_after(ids, statement.start + 1, processor) - 1
                lost[first : token_after(ids, statement.end, processor)] = -weight
        penalties.append(lost)
    return penalties


def statement_metrics(rollout: Rollout, examples: list[Example], task: Task) -> dict[str, float]:
    """Of the thoughts of a rollout of all ranks: how many statements, which share of the readable
    ones is true, and which share cannot be read."""
    G = len(rollout.texts) // len(examples)
    truths = [
        statement.is_true
        for b, text in enumerate(rollout.texts)
        for statement in task.statements(text, examples[b // G])
    ]
    read = [truth for truth in truths if truth is not None]
    return {
        "statements/mean_count": len(truths) / len(rollout.texts),
        "statements/true_ratio": sum(read) / len(read) if read else float("nan"),
        "statements/unreadable_ratio": 1 - len(read) / len(truths) if truths else float("nan"),
    }
