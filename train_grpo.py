"""GRPO with verifiable rewards for a vision-language model: the algorithm in one file.

    python train_grpo.py --task cls --shots 1

For each image question, sample a group of G completions, let a rule check each of them, and move
the model toward the completions that did better than their own group. No critic, no learned reward.

Sources: GRPO is DeepSeekMath, arXiv:2402.03300 (objective eq. 3, KL estimator eq. 4); with
verifiable visual rewards, Visual-RFT, arXiv:2503.01785. Departures from the papers:

- `loss_type=dapo` averages over all tokens of a step, as TRL does (DAPO, arXiv:2503.14476, averages
  over those of a group), instead of per sequence.
- `beta=0`: no KL term, so no reference model in memory. Groups whose rewards are all equal then
  have exactly zero gradient and are skipped.
- The ratio is taken against the log-probabilities kept while sampling, not recomputed.
- Standard deviations are Bessel-corrected, with 1e-4 added, as in TRL.

A training forward sees every prompt once: [prompt | c_1 | .. | c_G] (model/attention.py). Started
with torchrun, each process works on its share of a step's questions (runtime/distributed.py).
Read first: rewards.py, tasks/cls.py. Next: sample.py; training/run.py has what surrounds the updates.
"""

import time
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from config import Config, TrainConfig
from kernels import group_advantages
from model.processor import Processor
from model.vlm import VLM, Prompt, completion_logps, make_pack
from model.weights import load_model
from reporting.run_log import completion_records, rollout_metrics
from runtime import console, distributed
from sample import Rollout, generate_group
from tasks import Example
from training.checkpoint import Checkpoint, parse_or_resume
from training.fsdp import equally_many, whole
from training.optimizer import Optimizer, within_memory
from training.run import TrainingRun
from training.scoring import Scorer
from training.setup import prepare

# ---- the equations -------------------------------------------------------------------------------


def token_weights(lengths: list[int], loss_type: str, max_completion_length: int) -> Tensor:
    """What each completion token counts in the loss: (C,) fp32.

    grpo: 1 / (B C_i), the mean of per-sequence means (arXiv:2402.03300 eq. 3).
    dapo: 1 / C, the mean over all tokens of the step (after DAPO, arXiv:2503.14476).
    dr_grpo: 1 / (B C_max), a constant, so that length is not rewarded (arXiv:2503.20783).

    Computed once per step over all B completions, so how a step is cut into micro-batches, and
    which groups are skipped, changes the gradient by rounding errors only.
    """
    B, C, C_i = len(lengths), sum(lengths), torch.tensor(lengths)  # C_i: (B,)
    per_completion = {
        "grpo": 1.0 / (B * C_i),
        "dapo": torch.full((B,), 1.0 / C),
        "dr_grpo": torch.full((B,), 1.0 / (B * max_completion_length)),
    }[loss_type]  # (B,)
    return per_completion.repeat_interleave(C_i)  # (C,)


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
    cfg: Config,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped objective, negated (2402.03300 eq. 3).

    Args:
        logp, logp_old, logp_ref: (C,) log-probabilities under the policy, the sampling policy,
            and the reference (only when beta > 0).
        advantages: (C,), each completion's repeated per token. weights: (C,), `token_weights`.
    Returns: the loss, and sums over tokens that the caller divides for the log.
    """
    low, high = 1 - cfg.epsilon, 1 + (cfg.epsilon_high or cfg.epsilon)
    ratio = (logp - logp_old).exp()  # (C,)
    objective = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)  # (C,)
    stats = {
        "clip_ratio/low_mean": ((ratio < low) & (advantages < 0)).sum(),
        "clip_ratio/high_mean": ((ratio > high) & (advantages > 0)).sum(),
    }
    if logp_ref is not None:
        kl = kl_k3(logp, logp_ref)  # (C,)
        objective = objective - cfg.beta * kl
        stats["kl"] = kl.detach().sum()
    return -(weights * objective).sum(), stats


# ---- one update ----------------------------------------------------------------------------------


@dataclass
class Group:
    """A prompt and its completions, as the update needs them."""

    prompt: Prompt
    ids: list[Tensor]  # G x (C_i,) int64
    logp_old: Tensor  # (C of the group,) fp32
    advantages: Tensor  # (C of the group,) fp32
    weights: Tensor  # (C of the group,) fp32


def make_groups(
    prompts: list[Prompt], rollout: Rollout, advantages: Tensor, cfg: Config
) -> list[Group]:
    """Sort this rank's share of a rollout into groups: advantages (N, G) are repeated for every
    token; the weights of the tokens are those of the whole step."""
    G, limit = cfg.num_generations, cfg.max_completion_length
    lengths = sum(distributed.all_gather([len(ids) for ids in rollout.ids]), [])  # of all ranks
    of_completions = token_weights(lengths, cfg.loss_type, limit).split(lengths)  # (C_i,) each
    weights = distributed.share([of_completions[b : b + G] for b in range(0, len(lengths), G)])
    groups = []
    for n, prompt in enumerate(prompts):
        own = slice(n * G, (n + 1) * G)
        counts = torch.tensor([len(ids) for ids in rollout.ids[own]])
        per_token = advantages[n].repeat_interleave(counts)
        logp_old = torch.cat(rollout.logps[own])
        group = Group(prompt, rollout.ids[own], logp_old, per_token, torch.cat(weights[n]))
        groups.append(group)
    return groups


def accumulate_gradient(
    model: VLM, reference: VLM | None, groups: list[Group], forbidden: Tensor, cfg: Config
) -> dict[str, float]:
    """Backward over all groups, `groups_per_micro_batch` at a time; gradients add up in the model.

    `forbidden` (V,) marks the tokens that are never sampled.

    At beta = 0 a group without spread has zero advantages and so exactly no gradient: it is
    skipped. Returns sums over the tokens that were computed, for `update_metrics`.
    """
    filler = replace(groups[0], weights=torch.zeros_like(groups[0].weights))  # has no gradient
    if reference is None:
        groups = [group for group in groups if bool(group.advantages.any())]
    totals: dict[str, float] = defaultdict(float, loss=0.0, tokens=0)
    size, device = cfg.groups_per_micro_batch, model.device
    batches = [groups[start : start + size] for start in range(0, len(groups), size)]
    if cfg.fsdp:  # a forward is a joint act of all ranks: who has fewer batches takes part in it
        batches = equally_many(batches, [filler])
    for batch in batches:
        pack = make_pack([g.prompt for g in batch], [g.ids for g in batch], device)
        logp, entropy = completion_logps(model, pack, cfg.temperature, forbidden)  # (C,) each
        logp_ref = None
        if reference is not None:
            with torch.no_grad():
                logp_ref, _ = completion_logps(reference, pack, cfg.temperature, forbidden)
        logp_old = torch.cat([g.logp_old for g in batch]).to(device)  # (C,)
        advantages = torch.cat([g.advantages for g in batch]).to(device)  # (C,)
        weights = torch.cat([g.weights for g in batch]).to(device)  # (C,)
        loss, stats = grpo_loss(logp, logp_old, logp_ref, advantages, weights, cfg)
        loss.backward()
        if batch[0] is filler:
            continue
        difference = (logp.detach() - logp_old).abs()
        totals["loss"] += loss.item()
        totals["tokens"] += len(logp)
        totals["entropy"] += entropy.sum().item()
        totals["sampling/sampling_logp_difference/mean"] += difference.sum().item()
        largest = "sampling/sampling_logp_difference/max"
        totals[largest] = max(totals[largest], difference.max().item())
        for name, value in stats.items():
            totals[name] += value.item()
    return totals


def update_metrics(of_ranks: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of an update from the totals of all ranks: means over tokens, but for the loss
    and the largest difference."""
    names = dict.fromkeys(name for totals in of_ranks for name in totals)
    tokens = max(sum(totals["tokens"] for totals in of_ranks), 1)
    metrics = {}
    for name in names:
        values = [totals[name] for totals in of_ranks if name in totals]
        if name.endswith("/max"):
            metrics[name] = max(values)
        elif name != "tokens":
            metrics[name] = sum(values) / (1 if name == "loss" else tokens)
    return metrics


def of_all_passes(passes: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of a step: those of its last pass, but for what the others know better."""
    # Sampler and trainer are compared on the same weights: in the first pass.
    first = {name: value for name, value in passes[0].items() if "sampling" in name}
    skipped = sum(metrics["steps_skipped_nonfinite"] for metrics in passes)
    return passes[-1] | first | {"steps_skipped_nonfinite": skipped}


# ---- data of a step ------------------------------------------------------------------------------


def examples_of_step(
    examples: list[Example], step: int, cfg: TrainConfig
) -> list[tuple[str, Example]]:
    """The questions of one step, a pure function of the step: (key of the randomness, example).

    Endless epochs, each in its own order. A step larger than the data meets an example twice: the
    epoch in the id gives it other random numbers the second time.
    """
    chosen = []
    for place in range(step * cfg.prompts_per_step, (step + 1) * cfg.prompts_per_step):
        epoch, index = divmod(place, len(examples))
        bits = np.random.Philox(key=np.array([cfg.seed, epoch], dtype=np.uint64))
        order = np.argsort(bits.random_raw(len(examples)), kind="stable")
        example = examples[order[index]]
        chosen.append((f"{example.id}@{epoch}", example))
    return chosen


# ---- the run -------------------------------------------------------------------------------------


def prompts_of_step(
    model: VLM, processor: Processor, asked: list[tuple[str, Example]], cfg: TrainConfig
) -> tuple[list[Prompt], list[Example]]:
    """This rank's share of what a step asks; a frozen tower has already run over the images."""
    keys, examples = zip(*distributed.share(asked), strict=True)
    prompts = [
        processor.prompt(key, example.images, example.question)
        for key, example in zip(keys, examples, strict=True)
    ]
    if cfg.freeze_vision:
        keep_features(model, prompts)
    return prompts, list(examples)


def keep_features(model: VLM, prompts: list[Prompt]) -> None:
    """Run the frozen tower once: sampling and all updates of the step reuse its features."""
    with torch.no_grad():
        features = model.image_features(prompts)
    merge = model.cfg.vision.spatial_merge_size**2
    counts = [sum(t * h * w for t, h, w in p.grids) // merge for p in prompts]
    if features is not None:
        for prompt, own in zip(prompts, features.split(counts), strict=True):
            prompt.features = own if prompt.grids else None


def of_all_ranks(
    rollout: Rollout, rewards: Tensor, parts: list[dict[str, float]], advantages: Tensor
) -> tuple[Rollout, Tensor, list[dict[str, float]], Tensor]:
    """The shares of a step put together, in the order of its questions: (N, G) is of all ranks."""
    if distributed.world_size() == 1:
        return rollout, rewards, parts, advantages
    own = [[row.tolist() for row in rollout.ids], [row.tolist() for row in rollout.logps]]
    own += [rollout.finish, rollout.texts, rewards.tolist(), parts, advantages.tolist()]
    joined = [sum(of_ranks, []) for of_ranks in zip(*distributed.all_gather(own), strict=True)]
    ids, logps, finish, texts, rewards, parts, advantages = joined
    ids, logps = [torch.tensor(row) for row in ids], [torch.tensor(row) for row in logps]
    rollout = Rollout(ids=ids, logps=logps, finish=finish, texts=texts)
    return rollout, torch.tensor(rewards), parts, torch.tensor(advantages)


def starting_model(model: VLM, cfg: Config) -> VLM | None:
    """The reference of the KL term, the model as it was before the first step: None at beta 0."""
    if cfg.beta == 0:
        return None
    return load_model(cfg.model, getattr(torch, cfg.dtype), model.device).requires_grad_(False)


def train(cfg: Config, checkpoint: Checkpoint | None = None) -> dict[str, float]:
    """Run GRPO as configured, or go on from a checkpoint; returns the last held-out metrics."""
    began = time.time()
    cfg, processor, task, model = prepare(cfg, checkpoint)
    scorer = Scorer(task, cfg)
    reference = starting_model(model, cfg)
    optimizer = Optimizer(model, cfg)
    device, forbidden = model.device, processor.forbidden.to(model.device)  # (V,)
    shown = {"num_generations": cfg.num_generations, "temperature": cfg.temperature}
    with TrainingRun(cfg, processor, task, model, optimizer, began, checkpoint, **shown) as run:
        log = run.log
        for step in range(run.done, cfg.max_steps):
            # 1. Questions: N image-question pairs, of which each rank takes its share. (`whole`
            # gathers the weights where --fsdp has shared them out; else it does nothing.)
            with log.timed("prompts"), whole(model):
                asked = examples_of_step(task.train, step, cfg)  # N of all ranks
                prompts, examples = prompts_of_step(model, processor, asked, cfg)
            # 2. Rollout: G completions each from the current policy; every prompt computed once.
            with log.timed("rollout"), whole(model):
                rollout = generate_group(
                    model,
                    processor,
                    prompts,
                    cfg.num_generations,
                    cfg.max_completion_length,
                    cfg.temperature,
                    cfg.seed,
                    step,
                )
                distributed.all_gather(None)  # a barrier: waiting for the slowest rank counts, too
            # 3. Reward: verify every completion.
            with log.timed("reward"):
                rewards, parts, faults = scorer.score_step(examples, rollout, step)  # (N, G)
            # 4. Advantage: compare inside each group.
            advantages = group_advantages(rewards.to(device), cfg.scale_rewards).cpu()  # (N, G)
            groups = make_groups(prompts, rollout, advantages, cfg)
            # 5. Update: num_iterations passes (mu in the paper) over the same completions.
            passes: list[dict[str, float]] = []
            with log.timed("update"):
                for _ in range(cfg.num_iterations):
                    accumulate = partial(accumulate_gradient, model, reference, groups, forbidden)
                    # Where memory runs out, `cfg` comes back with smaller micro-batches.
                    totals, cfg = within_memory(accumulate, cfg, optimizer)
                    metrics = update_metrics(run.all_totals(totals))
                    passes.append(metrics | optimizer.step(step / cfg.max_steps))
            # 6. Log, evaluate, save.
            rollout, rewards, parts, advantages = of_all_ranks(rollout, rewards, parts, advantages)
            examples = [example for _, example in asked]
            told = (step + 1, examples, rollout, rewards, parts, advantages)
            log.append("completions.jsonl", completion_records(*told))
            if run.is_due(step + 1, cfg.eval_steps):
                run.gallery.training(*told)
            row = {"step": step + 1} | rollout_metrics(rollout, rewards, parts)
            run.end_step(row | faults | of_all_passes(passes), examples)
    return run.close()


@distributed.processes()
def main(argv: list[str] | None = None) -> None:
    train(*parse_or_resume(Config, argv, __doc__.split("\n\n")[0]))


if __name__ == "__main__":
    console.run(main, trains=True)
