"""A model that does not fit one GPU with its optimizer: shares of it on every rank (`--fsdp`).

PyTorch's FSDP2 keeps a share of every fp32 weight, of its gradient and of AdamW's moments on each
rank. In training the layers of the language model are put together one by one when they are needed,
so a forward and a backward are joint acts of all ranks: each makes equally many. For a rollout all
weights are put together once, in the dtype that computes, and each rank decodes on its own.

What is left of the model, embedding, head, last norm and vision tower, is one group, which stays
whole from forward to backward: the loss reads the head after the forward has ended.

Each rank first reads the model whole into host memory, 4 bytes a weight; the reference of a KL term
(`--beta`) is whole on every GPU. Read first: runtime/distributed.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model.vlm import VLM
from runtime import distributed
from runtime.signals import signals

T = TypeVar("T")


def shard(model: VLM, dtype: torch.dtype, device: torch.device) -> None:
    """Share the fp32 weights of a model out over all ranks, to compute in `dtype` on `device`."""
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    policy = MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
        module.set_gradient_divide_factor(1.0)  # a sum, not a mean
        module.set_force_sum_reduction_for_comms(True)  # by adding: gloo has nothing else


@contextmanager
def whole(model: VLM) -> Iterator[None]:
    """Inside, every rank holds all weights and uses the model on its own, without gradient."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not sharded:
        yield
        return
    try:
        with signals.holding():  # at its end a signal may come through
            distributed.all_gather(None)
            for module in sharded:
                module.unshard()
                module.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        with signals.holding():
            for module in sharded:
                # First, since a forward that an exception has cut in two would stay whole else.
                module.set_reshard_after_forward(True, recurse=False)
                module.reshard()
                module.set_reshard_after_forward(module is not model, recurse=False)


def equally_many(batches: list[T], filler: T) -> list[T]:
    """The batches of a rank, filled up to the number that the busiest rank has.

    From here on forwards are joint acts, so signals wait (`TrainingRun.all_totals` goes on so).
    """
    signals.held = True
    most = max(distributed.all_gather(len(batches)))
    return batches + [filler] * (most - len(batches))


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, on every rank; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(value: Tensor, example: Tensor) -> Tensor:
    """A whole tensor on the device, and in the shards, of another."""
    value = value.to(example.device)
    if isinstance(example, DTensor):
        return distribute_tensor(value, example.device_mesh, example.placements)
    return value
