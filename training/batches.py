"""The data of a step: the questions it asks, and its completions cut into micro-batches.

Nothing here carries an equation. Read first: train_grpo.py. Next: training/run.py.
"""

import copy
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from config import TrainConfig
from data.examples import Example, shuffle
from model.processor import Processor
from model.vlm import VLM, Pack, Prompt, completion_logps, make_pack
from runtime import distributed
from runtime.console import is_out_of_memory
from sample import Rollout
from training.fsdp import pad_batches_across_ranks
from training.optimizer import Optimizer

MOST_GROUPS = 8  # of a micro-batch, where nobody says how many


def questions_of_step(
    examples: list[Example], step: int, cfg: TrainConfig
) -> list[tuple[str, Example]]:
    """The questions of one step, a pure function of the step: (key of its randomness, example).

    Endless epochs, each in its own order. A step larger than the data meets an example twice: the
    epoch in the key gives it other random numbers the second time.
    """
    places = range(step * cfg.prompts_per_step, (step + 1) * cfg.prompts_per_step)
    epochs = range(places[0] // len(examples), places[-1] // len(examples) + 1)
    orders = {epoch: shuffle(examples, cfg.seed, epoch) for epoch in epochs}
    questions = []
    for place in places:
        epoch, index = divmod(place, len(examples))
        example = orders[epoch][index]
        questions.append((f"{example.id}@{epoch}", example))
    return questions


class PromptReader:
    """Reads the questions of one step after the other, and makes this rank's prompts of them.

    Pictures are opened and resized on the host. A thread does that for the next step while the
    device works on the present one.
    """

    def __init__(self, examples: list[Example], processor: Processor, cfg: TrainConfig):
        self.examples, self.cfg = examples, cfg
        # Its own: a tokenizer is changed while it encodes, and the other thread encodes, too.
        self.processor = copy.deepcopy(processor)
        self.thread = ThreadPoolExecutor(1)
        self.ahead: dict[int, Future] = {}  # step -> its prompts

    def read(self, step: int) -> tuple[list[tuple[str, Example]], list[Prompt]]:
        """All questions of a step, see `questions_of_step`, and the prompts of this rank's shard.

        Raises InputError for a picture that cannot be read, in its own step.
        """
        questions = questions_of_step(self.examples, step, self.cfg)
        prompts = self.ahead.pop(step, None) or self.thread.submit(self._prompts, questions)
        if step + 1 < self.cfg.max_steps:
            following = questions_of_step(self.examples, step + 1, self.cfg)
            self.ahead = {step + 1: self.thread.submit(self._prompts, following)}
        return questions, prompts.result()

    def _prompts(self, questions: list[tuple[str, Example]]) -> list[Prompt]:
        prompt = self.processor.prompt
        local_questions = distributed.local_shard(questions)
        return [prompt(key, example.images, example.question) for key, example in local_questions]


def keep_features(model: VLM, prompts: list[Prompt], cfg: TrainConfig) -> None:
    """Run a frozen tower over the images: sampling and all updates of the step use its features."""
    if cfg.freeze_vision:
        with torch.no_grad():
            model.keep_image_features(prompts)


@dataclass
class Group:
    """A prompt with its completions, and what a loss needs of every completion token.

    Supervised fine-tuning has one completion per prompt, and no advantages.
    """

    prompt: Prompt
    ids: list[Tensor]  # G x (C_i,) int64
    weights: Tensor  # (C of the group,) fp32
    logp_old: Tensor | None = None  # (C of the group,) fp32
    advantages: Tensor | None = None  # (C of the group,) fp32


def lengths_of_all_ranks(rollout: Rollout, mask_truncated: bool) -> tuple[list[int], list[bool]]:
    """Tokens of every completion of the step, in the order of its questions, and whether it counts:
    a cut one does not where `mask_truncated`."""
    local = [
        (len(ids), not (mask_truncated and finish == "length"))
        for ids, finish in zip(rollout.ids, rollout.finish, strict=True)
    ]
    lengths, is_counted = zip(*sum(distributed.all_gather(local), []), strict=True)
    return list(lengths), list(is_counted)


def rewards_of_all_ranks(rollout: Rollout, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rewards (N, G) fp32 of the step in the order of its questions, and `Rollout.has_reward`."""
    parts = zip(*distributed.all_gather((rollout.rewards, rollout.has_reward)), strict=True)
    return tuple(torch.cat(part).to(device, non_blocking=True) for part in parts)


@torch.no_grad()
def logps_of_completions(
    model: VLM, prompts: list[Prompt], ids: list[Tensor], cfg: TrainConfig, suppressed: Tensor
) -> list[Tensor]:
    """Log-probabilities of the completions (N * G of them) under a model: (C_i,) fp32 each, on the
    CPU, group by group as many at a time as in an update."""
    G, size = len(ids) // len(prompts), cfg.groups_per_micro_batch or MOST_GROUPS
    logps: list[Tensor] = []
    for start in range(0, len(prompts), size):
        chunk = range(start, min(start + size, len(prompts)))
        groups = [ids[n * G : (n + 1) * G] for n in chunk]
        pack = make_pack([prompts[n] for n in chunk], groups, suppressed.device)
        logp, _ = completion_logps(model, pack, cfg.temperature, suppressed)  # (C,)
        logps += logp.cpu().split([len(tokens) for group in groups for tokens in group])
    return logps


def make_groups(
    prompts: list[Prompt], rollout: Rollout, weights: Tensor, lengths: list[int]
) -> list[Group]:
    """Sort this rank's part of a scored rollout into groups.

    Args:
        weights: (C of all ranks,) fp32. lengths: tokens of every completion of all ranks.
    """
    G, groups = rollout.advantages.shape[1], []
    completion_weights = weights.split(lengths)  # (C_i,) each
    group_weights = [completion_weights[b : b + G] for b in range(0, len(lengths), G)]
    local_weights = distributed.local_shard(group_weights)
    for n, prompt in enumerate(prompts):
        rows = slice(n * G, (n + 1) * G)
        counts = torch.tensor([len(ids) for ids in rollout.ids[rows]])
        groups.append(
            Group(
                prompt,
                rollout.ids[rows],
                weights=torch.cat(local_weights[n]),
                logp_old=torch.cat(rollout.logps[rows]),
                advantages=rollout.advantages[n].repeat_interleave(counts),
            )
        )
    return groups


def gather_rollout(rollout: Rollout) -> Rollout:
    """The scored rollouts of all ranks as one, in the order of the step's questions."""
    if distributed.world_size() == 1:
        return rollout
    rollouts = distributed.all_gather(rollout)
    lists = {
        name: sum((getattr(r, name) for r in rollouts), [])
        for name in ("ids", "logps", "finish", "texts", "parts")
    }
    rewards, advantages = (
        torch.cat([getattr(r, name) for r in rollouts]) for name in ("rewards", "advantages")
    )
    return Rollout(**lists, rewards=rewards, advantages=advantages)


@dataclass
class MicroBatch:
    """Whole groups for one forward and backward. All tensors: (C of the micro-batch,)."""

    pack: Pack
    weights: Tensor
    logp_old: Tensor | None
    advantages: Tensor | None
    completion_of: Tensor  # int64, on the CPU: 0, 0, .., 1, 1, ..


class MicroBatches:
    """Cuts groups into micro-batches; all over again with half the size where memory runs out.

    The gradient is the same up to rounding, whatever the size. A pass begins without gradients.

    Attributes:
        size: groups per micro-batch; once halved it stays so.
        totals: sums over the tokens of this pass (largest values for names that end in "/max"),
            left on the device until `metrics` reads them.
    """

    def __init__(self, model: VLM, optimizer: Optimizer, cfg: TrainConfig):
        self.model, self.optimizer, self.fsdp = model, optimizer, cfg.fsdp
        self.size = cfg.groups_per_micro_batch or MOST_GROUPS
        self.totals: dict[str, Tensor | float] = {}
        self.restart = False  # the pass begins again
        self.is_padding = False  # the batch only keeps this rank in step with the others (fsdp)

    def split(self, groups: list[Group], skip_zero_std: bool = False) -> Iterator[MicroBatch]:
        """Yield the micro-batches of one pass.

        Args:
            skip_zero_std: leave groups out whose advantages are all 0: without a KL term they have
                exactly no gradient.
        """
        padding = replace(groups[0], weights=torch.zeros_like(groups[0].weights))
        if skip_zero_std:
            groups = [group for group in groups if bool(group.advantages.any())]
        self.restart = True
        while self.restart:
            self.restart = False
            self.totals = {"loss": 0.0, "tokens": 0.0}
            self.optimizer.zero_grad()
            starts = range(0, len(groups), self.size)
            batches = [groups[start : start + self.size] for start in starts]
            if self.fsdp:
                batches = pad_batches_across_ranks(batches, [padding])
            for batch in batches:
                distributed.stop_point()
                self.is_padding = batch[0] is padding
                yield self._lay_out(batch)
                if self.restart:
                    break

    def _lay_out(self, groups: list[Group]) -> MicroBatch:
        device = self.model.device

        def concatenated(name: str) -> Tensor | None:
            tensors = [getattr(group, name) for group in groups]
            if tensors[0] is None:
                return None
            return torch.cat(tensors).to(device, non_blocking=True)  # (C,)

        pack = make_pack([g.prompt for g in groups], [g.ids for g in groups], device)
        counts = torch.tensor([len(tokens) for group in groups for tokens in group.ids])
        completion_of = torch.arange(len(counts)).repeat_interleave(counts)  # (C,)
        names = ("weights", "logp_old", "advantages")
        return MicroBatch(pack, *map(concatenated, names), completion_of)

    @contextmanager
    def retry_on_oom(self) -> Iterator[None]:
        """Where memory runs out inside, the pass begins again with half the groups.

        The error passes when one group is too much, and with --fsdp, where the other ranks are in
        the middle of the same forward.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if self.size == 1 or self.fsdp or not is_out_of_memory(error):
                raise
            self.size, self.restart = self.size // 2, True
            line = f"out of memory: continuing with --groups_per_micro_batch {self.size}"
            print(line, file=sys.stderr)  # of whichever rank
        if self.restart:
            self.optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def add(self, stats: dict[str, Tensor | float]) -> None:
        """Add the statistics of a micro-batch to the totals of the pass."""
        if not self.is_padding:
            add_up(self.totals, stats)

    def metrics(self) -> dict[str, float]:
        """The metrics of a pass over all ranks: means over tokens, but for the loss and maxima."""
        return mean_metrics(distributed.all_gather(as_numbers(self.totals)))


def add_up(totals: dict[str, Tensor | float], stats: dict[str, Tensor | float]) -> None:
    """Add statistics to their totals; the largest value counts where a name ends in "/max".

    Tensors are added where they are, in float64 as numbers are: the host waits for none of them.
    """
    for name, value in stats.items():
        if isinstance(value, Tensor):
            value = value.detach().double()
        if name not in totals:
            totals[name] = value
        elif not name.endswith("/max"):
            totals[name] = totals[name] + value
        elif isinstance(value, Tensor):
            totals[name] = torch.maximum(totals[name], value)
        else:
            totals[name] = max(totals[name], value)


def as_numbers(totals: dict[str, Tensor | float]) -> dict[str, float]:
    """The totals as numbers. Waits for the device, once."""
    names = [name for name, value in totals.items() if isinstance(value, Tensor)]
    values = torch.stack([totals[name] for name in names]).tolist() if names else []
    return totals | dict(zip(names, values, strict=True))


def mean_metrics(totals_of_ranks: list[dict[str, float]]) -> dict[str, float]:
    """Divide the sums of all ranks by their tokens; the loss is a sum, maxima are maxima."""
    totals: dict[str, float] = {}
    for rank_totals in totals_of_ranks:
        add_up(totals, rank_totals)
    tokens = max(totals.pop("tokens"), 1)
    is_whole = {name: name == "loss" or name.endswith("/max") for name in totals}
    return {name: value / (1 if is_whole[name] else tokens) for name, value in totals.items()}


def merge_pass_metrics(passes: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of a step: those of its last pass, but for what only the others know."""
    # Sampler and trainer are compared on the same weights: in the first pass.
    first = {name: value for name, value in passes[0].items() if "sampling" in name}
    skipped = sum(metrics["steps_skipped_nonfinite"] for metrics in passes)
    return passes[-1] | first | {"steps_skipped_nonfinite": skipped}
