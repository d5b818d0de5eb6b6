"""A pass over the groups of a step in micro-batches, and the metrics of it.

Nothing here carries an equation. Read first: training/batches.py. Next: training/run.py.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from config import TrainConfig
from model.pack import Pack, make_pack
from runtime import distributed
from runtime.console import is_out_of_memory
from training.batches import MOST_GROUPS, Group
from training.fsdp import pad_batches_across_ranks
from training.optimizer import Optimizer


@dataclass
class MicroBatch:
    """Whole groups for one forward and backward. All tensors: (C of the micro-batch,)."""

    pack: Pack
    completion_of: Tensor  # int64, on the CPU: 0, 0, .., 1, 1, ..
    weights: Tensor  # this and the following as in `Group`
    logp_old: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    is_fresh: Tensor | None = None

    def off_policy_stats(self, logp: Tensor) -> dict[str, Tensor]:
        """How far log-probabilities (C,) are from those of sampling. Of fresh tokens that tells
        whether sampler and trainer compute alike; of replayed ones, how old they are."""
        difference = (logp.detach() - self.logp_old).abs()  # (C,)
        name = "sampling/sampling_logp_difference"
        if self.is_fresh is None:
            return {f"{name}/mean": difference.sum(), f"{name}/max": difference.max()}
        of_fresh, of_old = difference * self.is_fresh, difference * ~self.is_fresh  # (C,) each
        return {
            f"{name}/mean": of_fresh.sum(),
            f"{name}/max": of_fresh.max(),
            "sampling/tokens": self.is_fresh.sum(),
            "replay/log_ratio/mean": of_old.sum(),
            "replay/log_ratio/max": of_old.max(),
            "replay/tokens": (~self.is_fresh).sum(),
        }


class MicroBatches:
    """Cuts groups into micro-batches; all over again with half the size where memory runs out.

    The gradient is the same up to rounding, whatever the size. A pass begins without gradients.

    Attributes:
        size: groups per micro-batch; once halved it stays so.
        totals: sums over the tokens of this pass (largest values for names that end in "/max"),
            left on the device until `metrics` reads them.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, cfg: TrainConfig):
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

        shown = [g.shown for g in groups] if groups[0].shown is not None else None
        pack = make_pack([g.prompt for g in groups], [g.ids for g in groups], device, shown)
        counts = torch.tensor([len(tokens) for group in groups for tokens in group.ids])
        completion_of = torch.arange(len(counts)).repeat_interleave(counts)  # (C,)
        names = ("weights", "logp_old", "advantages", "returns", "is_fresh")
        return MicroBatch(pack, completion_of, *map(concatenated, names))

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
    """Divide the sums of all ranks by their tokens; the loss is a sum, maxima are maxima.

    Sums named "part/.." are divided by "part/tokens" where there is such a number.
    """
    totals: dict[str, float] = {}
    for rank_totals in totals_of_ranks:
        add_up(totals, rank_totals)
    counts = {name: totals.pop(name) for name in list(totals) if name.endswith("tokens")}
    means = {}
    for name, value in totals.items():
        count = counts.get(f"{name.split('/')[0]}/tokens", counts["tokens"])
        is_whole = name == "loss" or name.endswith("/max")
        means[name] = value if is_whole else value / max(count, 1)
    return means


def merge_pass_metrics(passes: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of a step: those of its last pass, but for what only the others know."""
    # Sampler and trainer are compared on the same weights: in the first pass.
    first = {name: value for name, value in passes[0].items() if "sampling" in name}
    skipped = sum(metrics["steps_skipped_nonfinite"] for metrics in passes)
    return passes[-1] | first | {"steps_skipped_nonfinite": skipped}
