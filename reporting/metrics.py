"""What is logged about the completions of a step, under TRL's names so that curves compare.

A completion without a reward (`Rollout.parts` is None there: a --reward failed, or said None) is in
no mean, spread or share of rewards: `rewards` holds a stand-in for it, which only keeps its
advantage at 0. Next: reporting/run_log.py, which writes it down.
"""

import torch

from acting.episodes import Episode, text_of
from data.examples import Example
from reporting.verdict import RIGHT
from rewards import WEIGHTS
from sample import Rollout
from tasks.task import Task


def rollout_metrics(
    rollout: Rollout, examples: list[Example], task: Task, unpaid: list[dict] | None = None
) -> dict[str, float]:
    """Means, spreads and shares over the completions of a scored rollout, for metrics.jsonl.

    Args:
        unpaid: `unpaid_parts` of a run with --reward.
    """
    G = rollout.rewards.shape[1]
    lengths = torch.tensor([len(ids) for ids in rollout.ids], dtype=torch.float32)  # (B,)
    answers = [task.answer(text, examples[b // G]) for b, text in enumerate(rollout.texts)]
    means = {
        f"task/{name}/mean": _mean([parts[name] for parts in unpaid])
        for name in (unpaid or [{}])[0]
    }
    return (
        reward_metrics(rollout)
        | means
        | {
            "completions/mean_length": lengths.mean().item(),
            "completions/min_length": lengths.min().item(),
            "completions/max_length": lengths.max().item(),
            "completions/clipped_ratio": rollout.finish.count("length") / len(lengths),
            "completions/no_answer_ratio": answers.count(None) / len(lengths),
            "completion_tokens": lengths.sum().item(),
        }
    )


def reward_metrics(rollout: Rollout) -> dict[str, float]:
    """The metrics of the rewards that there are; shares of groups are of those with any reward."""
    counted, advantages = rollout.has_reward, rollout.advantages  # (N, G) each
    rows = [n for n, kept in enumerate(counted) if kept.any()]
    groups = [rollout.rewards[n][counted[n]] for n in rows]
    parts = [parts for parts in rollout.parts if parts is not None]
    metrics = {}
    if len(parts) < counted.numel() or "user" in parts[0]:
        metrics["completions/no_reward_ratio"] = 1 - len(parts) / counted.numel()
    if not parts:
        return metrics
    rewards = torch.cat(groups)
    # With a baseline of the whole step such a group has advantages, and teaches.
    is_zero_std = _share(
        bool((group == group[0]).all())
        and not (advantages is not None and bool(advantages[n].any()))
        for n, group in zip(rows, groups, strict=True)
    )
    metrics |= {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std().item() if len(rewards) > 1 else 0.0,
        "reward_std_group": _mean([g.std().item() for g in groups if len(g) > 1]),
        "frac_reward_zero_std": is_zero_std,
    }
    for name in parts[0]:
        values = torch.tensor([part[name] for part in parts])
        metrics[f"rewards/{name}/mean"] = values.mean().item()
        metrics[f"rewards/{name}/std"] = values.std().item() if len(values) > 1 else 0.0
        if name in RIGHT:  # zero-std groups: nothing left to learn, or nothing that succeeds?
            by_group = values.split([len(g) for g in groups])
            for outcome, value in (("right", 1.0), ("wrong", 0.0)):
                pairs = zip(groups, by_group, strict=True)
                alike = ((g == g[0]).all() and (v == value).all() for g, v in pairs)
                metrics[f"frac_groups_all_{outcome}"] = _share(map(bool, alike))
    return metrics


def _share(flags) -> float:
    return _mean([float(flag) for flag in flags])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def unpaid_parts(rollout: Rollout, examples: list[Example], task: Task) -> list[dict[str, float]]:
    """How right each completion is by the task's own sparse reward, which a --reward replaces."""
    G, parts = rollout.rewards.shape[1], []
    for b, text in enumerate(rollout.texts):
        own = task.reward(text, examples[b // G], WEIGHTS, 0.0).parts
        parts.append({name: own[name] for name in RIGHT if name in own})
    return parts


def turns_of(episode: Episode) -> list[dict]:
    """What was said in each turn and what came of it, in words."""
    return [
        {"said": said, "outcome": o.outcome, "shown": "".join(map(text_of, o.parts))}
        for said, o in episode.turns
    ]


def completion_records(
    step: int, examples: list[Example], rollout: Rollout, unpaid: list[dict] | None = None
) -> list[dict]:
    """One record per completion, for completions.jsonl; without a reward it is null, not 0."""
    G, counted = rollout.rewards.shape[1], rollout.has_reward.flatten().tolist()
    return [
        {
            "step": step,
            "id": examples[b // G].id,
            "target": examples[b // G].target,
            "completion": text,
            "reward": rollout.rewards[b // G, b % G].item() if counted[b] else None,
            "parts": rollout.parts[b],
            "advantage": round(rollout.advantages[b // G, b % G].item(), 4),
            "length": len(rollout.ids[b]),
            "finish": rollout.finish[b],
        }
        | ({} if unpaid is None else {"task": unpaid[b]})
        | ({} if rollout.episodes is None else {"turns": turns_of(rollout.episodes[b])})
        for b, text in enumerate(rollout.texts)
    ]
