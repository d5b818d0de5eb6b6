"""GRPO with verifiable rewards for a vision-language model: the algorithm in one file.

    python train_grpo.py --task cls --shots 1

For each image question, sample a group of G completions, let a rule check each of them, and move
the model toward the completions that did better than their own group. No critic, no learned reward.

Sources: GRPO is DeepSeekMath, arXiv:2402.03300 (objective eq. 3, KL estimator eq. 4); with
verifiable visual rewards, Visual-RFT, arXiv:2503.01785. Departures from the papers:

- `loss_type=dapo` averages over all tokens of a step, as TRL does (DAPO, arXiv:2503.14476, averages
  over those of a group), instead of per sequence.
- `beta=0`: no KL term, so no reference model in memory. Groups whose rewards are all equal
  (zero-std groups) then have exactly zero gradient and are skipped.
- The ratio is taken against the log-probabilities kept while sampling, not recomputed.
- Standard deviations are Bessel-corrected, with 1e-4 added, as in TRL (kernels/advantage.py).

A training forward sees every prompt once: [prompt | c_1 | .. | c_G] (model/attention.py). Started
with torchrun, each process works on its shard of a step's questions (runtime/distributed.py).
Read first: rewards.py, tasks/cls.py. Next: sample.py; then training/batches.py.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from config import flag, require, require_counts
from model.pack import completion_logps
from model.vlm import VLM
from runtime import console, distributed
from training.batches import (
    PromptReader,
    completion_lengths,
    gather_rollout,
    keep_features,
    logps_of_completions,
    make_groups,
    sample_groups,
)
from training.checkpoint import Checkpoint
from training.fsdp import unsharded
from training.learned_reward import learned_reward
from training.micro_batches import MicroBatch, MicroBatches, merge_pass_metrics
from training.objectives import (
    Estimator,
    Scale,
    check_objective,
    cispo,
    clip_shares,
    clipped,
    sapo,
    sequence_log_ratio,
    step_advantages,
    subtract_kl,
)
from training.optimizer import Optimizer
from training.process import check_process, statement_metrics, token_advantages
from training.resume import parse_or_resume
from training.rollout_config import RolloutConfig
from training.run import TrainingRun
from training.scoring import Scorer, user_reward
from training.selection import Selection, check_selection
from training.setup import load_reference, prepare


@dataclass(frozen=True)
class GRPOConfig(RolloutConfig):
    """The flags of the algorithm; training/rollout_config.py and config.py have the others."""

    script: ClassVar[str] = "train_grpo.py"

    advantage_estimator: Estimator = flag("grpo", "the baseline of a reward (docs/algorithms.md)")
    scale_rewards: Scale = flag(
        "group", "divide advantages by the std of the group, the step, or 1"
    )
    loss_type: Literal["grpo", "dapo", "dr_grpo", "cispo", "sapo"] = flag(
        "dapo", "how tokens are averaged; cispo and sapo also replace the clip"
    )
    importance_sampling_level: Literal["token", "sequence"] = flag(
        "token", "the ratio is a token's own, or the completion's (GSPO)"
    )
    kl_in_reward: bool = flag(False, "subtract the KL from the reward, not from the objective")
    epsilon: float = flag(0.2, "clip range of the ratio, below")
    epsilon_high: float | None = flag(None, "clip range above, default: epsilon; cispo: the cap")
    delta: float | None = flag(None, "largest ratio where the advantage is negative")
    untrue_weight: float = flag(0.0, "what tokens of an untrue statement lose (garden)")
    mask_truncated_completions: bool = flag(False, "cut completions are compared, not trained on")
    num_iterations: int = flag(1, "updates per batch of completions: mu")
    # Which groups to learn from
    dynamic_sample: bool = flag(False, "ask further questions in the place of zero-std groups")
    max_resample_times: int = flag(3, "how often a step asks that many questions more, at most")
    replay_buffer_size: int = flag(0, "past groups kept, to take the places of zero-std groups")
    replay_max_age: int = flag(20, "steps after which a past group is forgotten")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "num_iterations max_resample_times replay_max_age")
        is_alone = self.num_generations == 1 and self.advantage_estimator != "reinforce"
        require(not is_alone, "num_generations", "at least 2 (a group compares)", self)
        require(0 <= self.untrue_weight <= 1e6, "untrue_weight", "in 0 .. 1e6", self)
        require(0 < self.epsilon < 1, "epsilon", "between 0 and 1", self)
        high = self.epsilon_high
        require(high is None or 0 < high <= 1e6, "epsilon_high", "above 0, at most 1e6", self)
        check_objective(self)
        check_selection(self)


# ---- the equations -------------------------------------------------------------------------------


def token_weights(
    lengths: list[int],
    loss_type: str,
    max_completion_length: int,
    is_counted: list[bool] | None = None,
) -> Tensor:
    """Loss weight per completion token: (C,) fp32.

    grpo, sapo: 1 / (B C_i), the mean of per-sequence means (arXiv:2402.03300 eq. 3).
    dapo, cispo: 1 / C, the mean over all tokens of the step (after DAPO, arXiv:2503.14476).
    dr_grpo: 1 / (B C_max), a constant, so that length is not rewarded (arXiv:2503.20783).

    B and C are those of the counted completions (default: all); the others weigh 0. Computed once
    per step over all completions, so how a step is cut into micro-batches, and which groups are
    skipped, changes the gradient by rounding errors only.
    """
    C_i, counted = torch.tensor(lengths), torch.tensor(is_counted or [True] * len(lengths))  # (B,)
    B, C = max(int(counted.sum()), 1), max(int(C_i[counted].sum()), 1)
    mean_of_sequences, mean_of_tokens = 1.0 / (B * C_i), torch.full((len(C_i),), 1.0 / C)
    per_completion = {
        "grpo": mean_of_sequences,
        "sapo": mean_of_sequences,
        "dapo": mean_of_tokens,
        "cispo": mean_of_tokens,
        "dr_grpo": torch.full((len(C_i),), 1.0 / (B * max_completion_length)),
    }[loss_type]  # (B,)
    return (per_completion * counted).repeat_interleave(C_i)  # (C,)


def kl_k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """Unbiased, never negative estimate of KL(policy || reference) per token (2402.03300 eq. 4)."""
    difference = logp_ref - logp
    return difference.exp() - difference - 1.0


def grpo_loss(
    logp: Tensor,
    logp_old: Tensor,
    logp_ref: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    cfg: GRPOConfig,
    completion_of: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped objective, negated (2402.03300 eq. 3), or another (training/objectives.py).

    Args:
        logp, logp_old, logp_ref: (C,) log-probabilities under the policy, the sampling policy,
            and the reference (only when beta > 0), in nats.
        advantages: (C,), each completion's repeated per token. weights: (C,), `token_weights`.
        completion_of: (C,) int64, for a ratio of whole completions.
    Returns: the loss, and sums over tokens that are divided for the log. All but indices are fp32.
    """
    low, high = 1 - cfg.epsilon, 1 + (cfg.epsilon_high or cfg.epsilon)
    log_ratio = logp - logp_old  # (C,)
    if cfg.importance_sampling_level == "sequence":
        log_ratio = sequence_log_ratio(log_ratio, completion_of.to(logp.device))
    ratio = log_ratio.exp()  # (C,)
    if cfg.loss_type == "cispo":
        objective = cispo(logp, ratio, advantages, cap=cfg.epsilon_high)  # (C,)
    elif cfg.loss_type == "sapo":
        objective = sapo(ratio, advantages)
    else:
        objective = clipped(ratio, advantages, low, high, cfg.delta)
    stats = clip_shares(ratio, advantages, low, high)
    if logp_ref is not None:
        kl = kl_k3(logp, logp_ref)  # (C,)
        objective = objective - cfg.beta * kl
        stats["kl"] = kl.detach().sum()
    return -(weights * objective).sum(), stats


def policy_loss(
    model: VLM, reference: VLM | None, batch: MicroBatch, suppressed: Tensor, cfg: GRPOConfig
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """`grpo_loss` of a micro-batch, with gradient, and statistics summed over its tokens.

    Args:
        suppressed: (V,) bool, tokens that are never sampled.
    """
    logp, entropy = completion_logps(model, batch.pack, cfg.temperature, suppressed)  # (C,) each
    logp_ref = None
    if reference is not None:
        with torch.no_grad():
            logp_ref, _ = completion_logps(reference, batch.pack, cfg.temperature, suppressed)
    terms = (batch.logp_old, logp_ref, batch.advantages, batch.weights)
    loss, stats = grpo_loss(logp, *terms, cfg, batch.completion_of)
    about = {"loss": loss.detach(), "tokens": len(logp), "entropy": entropy.sum()}
    return loss, stats | about | batch.off_policy_stats(logp)


# ---- the run -------------------------------------------------------------------------------------


def train(cfg: GRPOConfig, checkpoint: Checkpoint | None = None) -> dict[str, float]:
    """Run GRPO as configured, or resume it; return the last held-out metrics."""
    user = user_reward(cfg)
    setup = prepare(cfg, checkpoint)
    cfg, task, processor, model = setup.cfg, setup.task, setup.processor, setup.model
    reader, scorer = PromptReader(task.train, processor, cfg), Scorer(task, cfg, user)
    check_process(cfg, task)
    selection, optimizer = Selection(reader, cfg), Optimizer(model, cfg)
    micro_batches = MicroBatches(model, optimizer, cfg)
    reference, suppressed = load_reference(model, cfg), processor.suppressed_tokens.to(model.device)
    in_objective, learned = None if cfg.kl_in_reward else reference, learned_reward(cfg, model)
    also = {} if selection.is_plain else {"selection": selection}
    with TrainingRun(setup, optimizer, user and user.workers, also) as run:
        for step in run.steps():
            for places in selection.rounds(step):  # one, but with --dynamic_sample
                # 1. Questions: N image-question pairs. Each rank takes its shard of them.
                questions, prompts = reader.read(places)
                with unsharded(model):
                    keep_features(model, prompts, cfg)
                    run.log.lap("prompts")
                    # 2. Rollout: G completions each; every prompt is computed once.
                    examples = [example for _, example in distributed.local_shard(questions)]
                    acting = (task.environment, examples)
                    rollout = sample_groups(model, processor, prompts, cfg, step, *acting)
                run.log.lap("rollout")
                # 3. Reward: verify every completion.
                rollout.rewards, rollout.parts = scorer.score(examples, rollout, step)  # (N, G)
                if learned is not None:
                    learned.add_to(rollout, prompts)
                if cfg.kl_in_reward:
                    logps = logps_of_completions(reference, prompts, rollout, cfg, suppressed)
                    subtract_kl(rollout, logps, cfg.beta)
                rollout = gather_rollout(rollout)  # of all ranks
                run.log.lap("reward")
                # 4. Advantage: compare inside each group.
                paid = rollout.rewards.to(model.device), rollout.has_reward.to(model.device)
                estimator = (cfg.advantage_estimator, cfg.scale_rewards)
                rollout.advantages = step_advantages(*paid, *estimator).cpu()  # (N, G)
                selection.add(places, questions, prompts, rollout)
            sampled = selection.rollout
            faults = scorer.fault_metrics(len(sampled.texts), run.log, step + 1)
            # 5. Update: num_iterations passes (mu in the paper) over the same completions.
            prompts, rollout, per_token = selection.choose(model)
            lengths, is_counted = completion_lengths(rollout, cfg.mask_truncated_completions)
            terms = (cfg.loss_type, cfg.max_completion_length, is_counted)
            weights = token_weights(lengths, *terms)  # (C,)
            if cfg.untrue_weight:
                about = (selection.examples, task, processor, cfg.untrue_weight)
                per_token["advantages"] = token_advantages(rollout, *about)
            groups, passes = make_groups(prompts, rollout, weights, **per_token), []
            for _ in range(cfg.num_iterations):
                for batch in micro_batches.split(groups, skip_zero_std=in_objective is None):
                    with micro_batches.retry_on_oom():
                        loss, stats = policy_loss(model, in_objective, batch, suppressed, cfg)
                        loss.backward()
                        micro_batches.add(stats)
                metrics = micro_batches.metrics()
                optimizer.clip_grad_norm(cfg.max_grad_norm)
                run.begin_update()
                passes.append(metrics | optimizer.step(progress=step / cfg.max_steps))
            run.log.lap("update")
            # 6. Log, evaluate, save.
            metrics = faults | selection.finish() | merge_pass_metrics(passes)
            if cfg.untrue_weight:
                metrics |= statement_metrics(sampled, selection.examples, task)
            run.end_step(metrics, selection.examples, sampled)
    return run.close()


@distributed.process_group()
def main(argv: list[str] | None = None) -> None:
    train(*parse_or_resume(GRPOConfig, argv, __doc__))


if __name__ == "__main__":
    lower = "--prompts_per_step, --num_generations, --max_completion_length, --max_pixels"
    console.run(main, trains=True, memory_flags=lower)
