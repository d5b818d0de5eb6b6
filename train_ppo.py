"""PPO with a critic: what GRPO replaced, for comparison with it.

    python train_ppo.py --task cls --shots 1

GRPO compares a completion with others of its question. PPO (arXiv:1707.06347) compares it with what
a second network, the critic, expected: token by token, so that one completion per question is
enough (`--num_generations 1 --prompts_per_step 64`), at the price of that network's memory and
time. On short answers with one reward at the end expect much the same; a critic's case are long
ones.

Departures from the paper: the critic is a copy of the whole model, not a head on the policy's
trunk, as in libraries for language models; its target is the sum of the rewards to come, not a
bootstrapped one (VC-PPO, arXiv:2503.01491, finds that decisive), its loss is not clipped, and
advantages are not whitened: rewards have a known scale.

Everything around an update is shared with train_grpo.py, which comes first. The equations are in
training/critic.py and training/objectives.py.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from config import flag, require, require_counts
from model.pack import completion_logps
from model.vlm import VLM
from runtime import console, distributed
from sample import Rollout
from training.batches import (
    PromptReader,
    gather_rollout,
    keep_features,
    logps_of_completions,
    make_groups,
    places_of_step,
    sample_groups,
    scores_of_completions,
)
from training.checkpoint import Checkpoint
from training.critic import (
    explained_variance,
    gae,
    load_critic,
    returns_to_go,
    token_rewards,
    value_loss,
)
from training.learned_reward import learned_reward
from training.micro_batches import MicroBatch, MicroBatches, merge_pass_metrics
from training.objectives import clip_shares, clipped
from training.optimizer import Optimizer
from training.resume import parse_or_resume
from training.rollout_config import RolloutConfig
from training.run import TrainingRun
from training.scoring import Scorer, user_reward
from training.setup import load_reference, prepare


@dataclass(frozen=True)
class PPOConfig(RolloutConfig):
    """The flags of the algorithm; training/rollout_config.py and config.py have the others."""

    script: ClassVar[str] = "train_ppo.py"
    trained_models: ClassVar[int] = 2

    gamma: float = flag(1.0, "discount per token")
    lam: float = flag(1.0, "lambda of GAE: 1 trusts the rewards alone, below 1 the critic, too")
    critic_learning_rate: float = flag(5e-4, "peak, of the critic")
    critic_warmup: int | None = flag(
        None, "steps in which the critic alone is trained; default: a tenth of the run, at most 10"
    )
    epsilon: float = flag(0.2, "clip range of the ratio, below")
    epsilon_high: float | None = flag(None, "clip range above, default: epsilon")
    num_iterations: int = flag(1, "updates per batch of completions")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "num_iterations")
        for name in ("gamma", "lam"):
            require(0 <= getattr(self, name) <= 1, name, "in 0 .. 1", self)
        rate = self.critic_learning_rate
        require(0 < rate <= 1, "critic_learning_rate", "above 0, at most 1", self)
        is_short = 0 <= self.warmup_steps < self.max_steps
        require(is_short, "critic_warmup", "below --max_steps", self)
        require(0 < self.epsilon < 1, "epsilon", "between 0 and 1", self)
        high = self.epsilon_high
        require(high is None or 0 < high <= 1e6, "epsilon_high", "above 0, at most 1e6", self)
        require(not self.fsdp, "fsdp", "left out: the critic would have to be sharded, too", self)

    @property
    def warmup_steps(self) -> int:
        """`critic_warmup`, or its default."""
        return min(10, self.max_steps // 10) if self.critic_warmup is None else self.critic_warmup


def policy_loss(
    model: VLM, batch: MicroBatch, suppressed: Tensor, cfg: PPOConfig
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """The clipped objective, negated, of a micro-batch, and statistics summed over its tokens."""
    logp, entropy = completion_logps(model, batch.pack, cfg.temperature, suppressed)  # (C,) each
    low, high = 1 - cfg.epsilon, 1 + (cfg.epsilon_high or cfg.epsilon)
    ratio = (logp - batch.logp_old).exp()  # (C,)
    loss = -(batch.weights * clipped(ratio, batch.advantages, low, high)).sum()
    stats = {"loss": loss.detach(), "tokens": len(logp), "entropy": entropy.sum()}
    stats |= clip_shares(ratio, batch.advantages, low, high)
    return loss, stats | batch.off_policy_stats(logp)


def with_advantages(
    rollout: Rollout, values: Tensor, log_ratios: list[Tensor] | None, cfg: PPOConfig
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Advantages and returns of every token, (C_i,) each; and the weight of every token, (C,).

    Tokens of a completion whose reward was lost weigh nothing, all others the same. The rollout
    gets the mean advantage of each completion, for the log.

    Args:
        rollout: this rank's, scored. values: (C,). log_ratios: to the reference, (C_i,) each.
    """
    lengths = [len(ids) for ids in rollout.ids]
    rewards = token_rewards(rollout.rewards.flatten(), lengths, log_ratios, cfg.beta)  # (C,)
    counted = rollout.has_reward.flatten().repeat_interleave(torch.tensor(lengths))  # (C,)
    advantages = gae(rewards, values, lengths, cfg.gamma, cfg.lam) * counted  # (C,)
    returns = returns_to_go(rewards, lengths, cfg.gamma)  # (C,)
    advantages, returns = advantages.split(lengths), returns.split(lengths)
    means = torch.stack([part.mean() for part in advantages])  # (B,)
    rollout.advantages = means.view_as(rollout.rewards)
    return list(advantages), list(returns), counted.float()


def train(cfg: PPOConfig, checkpoint: Checkpoint | None = None) -> dict[str, float]:
    """Run PPO as configured, or resume it; return the last held-out metrics."""
    user = user_reward(cfg)
    setup = prepare(cfg, checkpoint)
    cfg, task, processor, model = setup.cfg, setup.task, setup.processor, setup.model
    reader, scorer = PromptReader(task.train, processor, cfg), Scorer(task, cfg, user)
    critic, optimizer = load_critic(cfg), Optimizer(model, cfg)
    critic_optimizer = Optimizer(critic, replace(cfg, learning_rate=cfg.critic_learning_rate))
    policy_batches = MicroBatches(model, optimizer, cfg)
    critic_batches = MicroBatches(critic, critic_optimizer, cfg)
    reference, suppressed = load_reference(model, cfg), processor.suppressed_tokens.to(model.device)
    also, learned = {"critic": critic_optimizer}, learned_reward(cfg, model)
    with TrainingRun(setup, optimizer, user and user.workers, also) as run:
        for step in run.steps():
            # 1. Questions, 2. Rollout, 3. Reward: as in GRPO.
            questions, prompts = reader.read(places_of_step(step, cfg))
            keep_features(model, prompts, cfg)
            run.log.lap("prompts")
            examples = [example for _, example in distributed.local_shard(questions)]
            acting = (task.environment, examples)
            rollout = sample_groups(model, processor, prompts, cfg, step, *acting)
            run.log.lap("rollout")
            rollout.rewards, rollout.parts = scorer.score(examples, rollout, step)  # (N, G)
            if learned is not None:
                learned.add_to(rollout, prompts)
            log_ratios = None
            if reference is not None:
                logps = logps_of_completions(reference, prompts, rollout, cfg, suppressed)
                log_ratios = [a - b for a, b in zip(rollout.logps, logps, strict=True)]
            run.log.lap("reward")
            # 4. Advantage: compare with what the critic expected, token by token.
            size = cfg.groups_per_micro_batch
            values = scores_of_completions(critic, prompts, rollout.ids, size, rollout.shown)
            advantages, returns, counted = with_advantages(rollout, values, log_ratios, cfg)
            of_ranks = distributed.all_gather((values, torch.cat(returns), counted))
            values, all_returns, counted = (
                torch.cat(parts) for parts in zip(*of_ranks, strict=True)
            )
            weights = counted / counted.sum().clamp_min(1)  # (C,), of all ranks
            rollout = gather_rollout(rollout)
            faults = scorer.fault_metrics(len(rollout.texts), run.log, step + 1)
            groups = make_groups(prompts, rollout, weights, advantages=advantages, returns=returns)
            # 5. Update the policy, but not while the critic warms up.
            passes = []
            for _ in range(cfg.num_iterations if step >= cfg.warmup_steps else 0):
                for batch in policy_batches.split(groups):
                    with policy_batches.retry_on_oom():
                        loss, stats = policy_loss(model, batch, suppressed, cfg)
                        loss.backward()
                        policy_batches.add(stats)
                metrics = policy_batches.metrics()
                optimizer.clip_grad_norm(cfg.max_grad_norm)
                run.begin_update()
                passes.append(metrics | optimizer.step(progress=step / cfg.max_steps))
            # 6. Update the critic.
            critic_passes = []
            for _ in range(cfg.num_iterations):
                for batch in critic_batches.split(groups):
                    with critic_batches.retry_on_oom():
                        loss = value_loss(critic(batch.pack), batch.returns, batch.weights)
                        loss.backward()
                        critic_batches.add({"loss": loss.detach()})
                metrics = critic_batches.metrics()
                critic_optimizer.clip_grad_norm(cfg.max_grad_norm)
                run.begin_update()
                progress = step / cfg.max_steps
                critic_passes.append(metrics | critic_optimizer.step(progress=progress))
            run.log.lap("update")
            # 7. Log, evaluate, save.
            metrics = ppo_metrics(passes, critic_passes, values, all_returns)
            examples = [example for _, example in questions]
            run.end_step(faults | metrics, examples, rollout)
    return run.close()


def ppo_metrics(
    passes: list[dict], critic_passes: list[dict], values: Tensor, returns: Tensor
) -> dict[str, float]:
    """The metrics of a step: the policy's, where it was updated, and the critic's.

    Args:
        values, returns: (C,) each, of all ranks, before the update.
    """
    critic = merge_pass_metrics(critic_passes)
    policy = merge_pass_metrics(passes) if passes else {"steps_skipped_nonfinite": 0.0}
    policy["steps_skipped_nonfinite"] += critic.pop("steps_skipped_nonfinite")
    of_critic = {f"critic/{name}": value for name, value in critic.items()}
    of_critic["critic/explained_variance"] = explained_variance(values, returns)
    of_critic["critic/value"] = float(values.mean())
    return policy | of_critic


@distributed.process_group()
def main(argv: list[str] | None = None) -> None:
    train(*parse_or_resume(PPOConfig, argv, __doc__))


if __name__ == "__main__":
    lower = "--prompts_per_step, --num_generations, --max_completion_length, --max_pixels"
    console.run(main, trains=True, memory_flags=lower)
