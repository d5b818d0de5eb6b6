"""AdamW on fp32 weights, whatever the model's dtype, with everything a checkpoint needs of it.

Sources: AdamW, Loshchilov and Hutter, arXiv:1711.05101; fp32 master weights, Micikevicius et al.,
arXiv:1710.03740. Read first: train_grpo.py. Next: training/checkpoint.py.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from config import TrainConfig
from model.vlm import VLM
from runtime import console, distributed
from training.fsdp import full, placed_like

C = TypeVar("C", bound=TrainConfig)
T = TypeVar("T")


def within_memory(accumulate: Callable[[C], T], cfg: C, optimizer: "Optimizer") -> tuple[T, C]:
    """Accumulate a gradient; where memory runs out, once more with half the micro-batch.

    The gradient is the same up to rounding. Returns what `accumulate(cfg)` returned, and the
    settings that fitted, which the next step begins with. The error passes when one group is too
    much, and any other error at once.
    """
    while True:
        try:
            return accumulate(cfg), cfg
        except (MemoryError, RuntimeError) as error:
            size = cfg.groups_per_micro_batch
            if size == 1 or cfg.fsdp or not console.is_out_of_memory(error):
                raise  # with shards, the other ranks are in the middle of the same forward
        optimizer.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        cfg = replace(cfg, groups_per_micro_batch=size // 2)
        told = f"out of memory: going on with --groups_per_micro_batch {size // 2}"
        print(told, file=sys.stderr)  # of whichever rank


class Optimizer:
    """AdamW on fp32 weights and fp32 gradients.

    A bfloat16 model keeps an fp32 master copy of each trained weight: steps of relative size 1e-6
    are far below what bfloat16 can store. Gradients of micro-batches add up in the master's.
    """

    def __init__(self, model: VLM, cfg: TrainConfig):
        self.cfg = cfg
        self.not_finite: list[str] = []  # parameters, when an update was last skipped
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.masters = [
            p if p.dtype == torch.float32 else p.detach().float().requires_grad_()
            for p in self.parameters
        ]
        self.adamw = torch.optim.AdamW(
            self.masters, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True
        )
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if master is not parameter:
                parameter.register_post_accumulate_grad_hook(partial(self._hand_over, master))

    @staticmethod
    def _hand_over(master: Tensor, parameter: Tensor) -> None:
        """Move a fresh bf16 gradient into the master's fp32 sum."""
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in (*self.masters, *self.parameters):
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Master weights and AdamW's moments by name, on the CPU: what a checkpoint keeps.

        A joint act of sharded ranks; the others than rank 0 keep nothing of it.
        """
        kept = {}
        for name, master in zip(self.names, self.masters, strict=True):
            kept[f"master/{name}"] = master.detach()
            kept |= {f"{key}/{name}": value for key, value in self.adamw.state[master].items()}
        found = {}
        for name, value in kept.items():
            value = full(value)
            if distributed.rank() == 0:
                found[name] = value.contiguous().cpu()
        return found

    @torch.no_grad()
    def restore(self, kept: dict[str, Tensor]) -> None:
        """Go on from what `tensors` returned, bit for bit."""
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            master.copy_(placed_like(kept[f"master/{name}"], master))
            parameter.copy_(master)
            own = {key: kept.get(f"{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if own["step"] is not None:  # none before the first update
                moments = ("exp_avg", "exp_avg_sq")
                self.adamw.state[master] = {"step": own["step"].to(master.device)} | {
                    key: placed_like(own[key], master) for key in moments
                }

    def step(self, progress: float) -> dict[str, float]:
        """Clip, step and clear the gradients. `progress` in [0, 1) sets the learning rate.

        An update whose gradient is not finite is skipped and counted, so that one overflow cannot
        ruin every weight.
        """
        rate = self.cfg.learning_rate
        if self.cfg.lr_scheduler_type == "linear":
            rate *= 1 - progress
        for group in self.adamw.param_groups:
            group["lr"] = rate
        for master in self.masters:
            if master.grad is None:  # every group skipped: a zero gradient; momentum still counts
                master.grad = torch.zeros_like(master)
        if not self.cfg.fsdp:
            distributed.sum_gradients(self.masters)
        total = torch.nn.utils.get_total_norm([master.grad for master in self.masters])
        norm = float(full(total))
        is_finite = math.isfinite(norm)
        if is_finite:
            torch.nn.utils.clip_grads_with_norm_(self.masters, self.cfg.max_grad_norm, total)
            self.adamw.step()
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if master is not parameter:
                    parameter.data.copy_(master.data)
        else:
            self.not_finite = [
                name
                for name, master in zip(self.names, self.masters, strict=True)
                if not bool(full(torch.isfinite(master.grad).all()))
            ]
        self.clear()
        return {
            "grad_norm": norm if is_finite else 0.0,
            "learning_rate": rate,
            "steps_skipped_nonfinite": float(not is_finite),
        }
