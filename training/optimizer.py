"""AdamW on fp32 weights, whatever the model's dtype, with everything a checkpoint needs of it.

Sources: AdamW, Loshchilov and Hutter, arXiv:1711.05101; fp32 master weights, Micikevicius et al.,
arXiv:1710.03740. Read first: train_grpo.py. Next: training/checkpoint.py.
"""

import math
from functools import partial

import torch
from torch import Tensor

from config import TrainConfig
from model.vlm import VLM
from runtime import distributed
from runtime.errors import InputError
from training.fsdp import full_tensor, placed_like


class Optimizer:
    """AdamW on fp32 weights and fp32 gradients.

    A bfloat16 model keeps an fp32 master copy of each trained weight: steps of relative size 1e-6
    are far below what bfloat16 can store. Gradients of micro-batches add up in the master's.

    Attributes:
        not_finite: names of the parameters whose gradient made the last update be skipped.
    """

    def __init__(self, model: VLM, cfg: TrainConfig):
        self.cfg = cfg
        self.not_finite: list[str] = []
        self.grad_norm = math.nan
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
                hook = partial(self._add_to_master, master)
                parameter.register_post_accumulate_grad_hook(hook)

    @staticmethod
    def _add_to_master(master: Tensor, parameter: Tensor) -> None:
        """Move a fresh bf16 gradient into the master's fp32 sum."""
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in (*self.masters, *self.parameters):
            parameter.grad = None

    @torch.no_grad()
    def clip_grad_norm(self, max_norm: float) -> float:
        """Sum the gradients of all ranks and scale them down to `max_norm`. A collective.

        Returns: the L2 norm before clipping. If it is not finite, nothing is scaled.
        """
        for master in self.masters:
            if master.grad is None:  # every group skipped: a zero gradient; momentum still counts
                master.grad = torch.zeros_like(master)
        if not self.cfg.fsdp:
            distributed.sum_gradients(self.masters)
        norm = torch.nn.utils.get_total_norm([master.grad for master in self.masters])
        self.grad_norm = float(full_tensor(norm))
        if math.isfinite(self.grad_norm):
            torch.nn.utils.clip_grads_with_norm_(self.masters, max_norm, norm)
        return self.grad_norm

    @torch.no_grad()
    def step(self, progress: float) -> dict[str, float]:
        """Make one AdamW step with the clipped gradients. `progress` in [0, 1) sets the rate.

        An update whose gradient is not finite is skipped and counted.
        """
        learning_rate = self.cfg.learning_rate
        if self.cfg.lr_scheduler_type == "linear":
            learning_rate *= 1 - progress
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        is_finite = math.isfinite(self.grad_norm)
        if is_finite:
            self.adamw.step()
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
        else:
            self.not_finite = [
                name
                for name, master in zip(self.names, self.masters, strict=True)
                if not bool(full_tensor(torch.isfinite(master.grad).all()))
            ]
        self.zero_grad()
        return {
            "grad_norm": self.grad_norm if is_finite else 0.0,
            "learning_rate": learning_rate,
            "steps_skipped_nonfinite": float(not is_finite),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Master weights and AdamW's moments by name, on the CPU: what a checkpoint keeps.

        A collective of sharded ranks; only rank 0 gets the tensors.
        """
        local = {}
        for name, master in zip(self.names, self.masters, strict=True):
            local[f"master/{name}"] = master.detach()
            local |= {f"{key}/{name}": value for key, value in self.adamw.state[master].items()}
        tensors = {}
        for name, value in local.items():
            value = full_tensor(value)
            if distributed.rank() == 0:
                tensors[name] = value.contiguous().cpu()
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `tensors` returned, bit for bit.

        Raises InputError if that is not the state of these parameters.
        """
        has_moments = any(key.startswith("step/") for key in tensors)  # from the first update on
        kinds = ("master", "exp_avg", "exp_avg_sq") if has_moments else ("master",)
        expected = {
            f"{kind}/{name}": master.shape
            for name, master in zip(self.names, self.masters, strict=True)
            for kind in kinds
        }
        expected |= {f"step/{name}": torch.Size() for name in self.names if has_moments}
        given = {key: tensor.shape for key, tensor in tensors.items()}
        if wrong := sorted(key for key, _ in expected.items() ^ given.items()):
            what = f"{wrong[0]} is missing, too much, or of another shape"
            raise InputError(f"the optimizer's state is not that of this model: {what}")
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            master.copy_(placed_like(tensors[f"master/{name}"], master))
            parameter.copy_(master)
            if has_moments:
                values = {kind: tensors[f"{kind}/{name}"] for kind in kinds[1:]}
                moments = {kind: placed_like(value, master) for kind, value in values.items()}
                step = tensors[f"step/{name}"].to(master.device)
                self.adamw.state[master] = {"step": step} | moments
