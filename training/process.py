"""Rewards of single statements: an untrue one costs on its own tokens, a true one earns nothing.

    python train_grpo.py --task count --untrue_weight 0.5

A source that knows all facts of its pictures can check every statement of a thought
(`Task.statements`). Paying for true ones would invite lists of true and useless statements. So only
untrue ones count, and only where they stand: the advantage of their tokens is lowered, whatever the
answer earned. What cannot be read costs nothing and is counted.

Two numbers belong together: the share of true statements, and how often a right answer follows from
what its thought states (is *faithful*). Where the first rises alone, the thought has become an
ornament. Next: training/verifier.py.
"""

from bisect import bisect_left

import torch
from torch import Tensor

from data.examples import Example
from model.processor import Processor
from runtime import distributed
from runtime.errors import InputError
from sample import Rollout
from tasks.task import Task


def token_after(ids: Tensor, characters: int, processor: Processor) -> int:
    """How many of a completion's first tokens are needed for so many characters of its text."""
    said = len(processor.opening)  # which stands in the text, but not among the tokens

    def length(count: int) -> int:
        return said + len(processor.decode(ids[:count]))

    return bisect_left(range(len(ids)), characters, key=length)


def untrue_tokens(ids: Tensor, text: str, example: Example, task: Task, processor) -> Tensor:
    """Which tokens of a completion belong to an untrue statement: (C_i,) bool."""
    is_untrue = torch.zeros(len(ids), dtype=torch.bool)
    for statement in task.statements(text, example):
        if statement.is_true is False:
            first = max(token_after(ids, statement.start + 1, processor) - 1, 0)
            is_untrue[first : token_after(ids, statement.end, processor)] = True
    return is_untrue


def token_advantages(
    rollout: Rollout, examples: list[Example], task: Task, processor: Processor, weight: float
) -> list[Tensor]:
    """The advantage of every token of this rank's completions, (C_i,) each: that of the completion,
    less `weight` for the tokens of untrue statements.

    Args:
        rollout, examples: of all ranks, with advantages.
    """
    N, G = rollout.advantages.shape
    advantages = []
    for n in distributed.local_shard(range(N)):
        for b in range(n * G, (n + 1) * G):
            ids, text = rollout.ids[b], rollout.texts[b]
            is_untrue = untrue_tokens(ids, text, examples[n], task, processor)  # (C_i,)
            advantages.append(rollout.advantages[n, b % G] - weight * is_untrue)
    return advantages


def statement_metrics(rollout: Rollout, examples: list[Example], task: Task) -> dict[str, float]:
    """Of the thoughts of a rollout of all ranks: how many statements each has, which share of those
    that can be read is true, and which share cannot be read."""
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


def thought_shares(task: Task, examples: list[Example], records: list[dict]) -> dict[str, float]:
    """Of evaluated answers: `true_statements`, the share of their statements that are true, and
    `faithful`, the share of right answers that follow from what was stated. {} where the task knows
    no facts, and without a statement that can be read."""
    if task.statements is None:
        return {}
    pairs = [(record["text"], e) for record, e in zip(records, examples, strict=True)]
    truths = [s.is_true for text, e in pairs for s in task.statements(text, e)]
    read = [truth for truth in truths if truth is not None]
    right = [pair for pair, record in zip(pairs, records, strict=True) if record["strict"] == 1]
    follows = [task.is_faithful(text, e) for text, e in right]
    defined = [value for value in follows if value is not None]
    shares = {"true_statements": sum(read) / len(read)} if read else {}
    return shares | ({"faithful": sum(defined) / len(defined)} if read and defined else {})


def check_process(cfg, task: Task) -> None:
    """Raise InputError for --untrue_weight where nothing can be checked, or credit cannot stay on
    the tokens that earned it."""
    if cfg.untrue_weight == 0:
        return
    about = f"--untrue_weight {cfg.untrue_weight}"
    if task.statements is None:
        of_what = f"--data {cfg.data}" if task.environment is None else f"--task {task.name}"
        raise InputError(f"{about}: nobody knows the facts of {of_what}; leave it out")
    if cfg.importance_sampling_level == "sequence":
        raise InputError(f"{about}: a ratio of whole completions spreads it over all tokens")
    if cfg.dynamic_sample or cfg.replay_buffer_size:
        raise InputError(f"{about}: leave out --dynamic_sample and --replay_buffer_size")
