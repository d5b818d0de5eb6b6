"""What is logged about the completions of a step, under TRL's names so that curves compare.

Next: reporting/run_log.py, which writes it down.
"""

import torch

from answers import parse_answer
from data.examples import Example
from reporting.verdict import RIGHT
from sample import Rollout


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Means, spreads and shares over the completions of a scored rollout, for metrics.jsonl."""
    rewards = rollout.rewards  # (N, G)
    lengths = torch.tensor([len(ids) for ids in rollout.ids], dtype=torch.float32)  # (B,)
    no_answer = sum(parse_answer(text) is None for text in rollout.texts)
    is_zero_std = (rewards == rewards[:, :1]).all(1)  # (N,)
    metrics = {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std().item(),
        "reward_std_group": rewards.std(dim=1).mean().item(),
        "frac_reward_zero_std": is_zero_std.float().mean().item(),
        "completions/mean_length": lengths.mean().item(),
        "completions/min_length": lengths.min().item(),
        "completions/max_length": lengths.max().item(),
        "completions/clipped_ratio": rollout.finish.count("length") / len(lengths),
        "completions/no_answer_ratio": no_answer / len(lengths),
        "completion_tokens": lengths.sum().item(),
    }
    for name in rollout.parts[0]:
        values = torch.tensor([parts[name] for parts in rollout.parts])  # (B,)
        metrics[f"rewards/{name}/mean"] = values.mean().item()
        metrics[f"rewards/{name}/std"] = values.std().item()
        if name in RIGHT:  # zero-std groups: nothing left to learn, or nothing that succeeds?
            grid = values.view(rewards.shape)  # (N, G)
            for outcome, value in (("right", 1.0), ("wrong", 0.0)):
                is_all = is_zero_std & (grid == value).all(1)
                metrics[f"frac_groups_all_{outcome}"] = is_all.float().mean().item()
    return metrics


def completion_records(step: int, examples: list[Example], rollout: Rollout) -> list[dict]:
    """One record per completion, for completions.jsonl."""
    G = rollout.rewards.shape[1]
    return [
        {
            "step": step,
            "id": examples[b // G].id,
            "target": examples[b // G].target,
            "completion": text,
            "reward": rollout.rewards[b // G, b % G].item(),
            "parts": rollout.parts[b],
            "advantage": round(rollout.advantages[b // G, b % G].item(), 4),
            "length": len(rollout.ids[b]),
            "finish": rollout.finish[b],
        }
        for b, text in enumerate(rollout.texts)
    ]
