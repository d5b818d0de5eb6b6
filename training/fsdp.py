"""A model that does not fit one GPU with its optimizer: sharded over all ranks (`--fsdp`).

PyTorch's FSDP2 keeps a shard of every fp32 weight, of its gradient and of AdamW's moments on each
rank. In training the language model's layers are gathered one by one, so a forward and a backward
are collectives: every rank makes as many. For a rollout all weights are gathered once, in the dtype
that computes, and each rank decodes on its own. Embedding, head, last norm and vision tower are one
FSDP group, gathered from forward to backward: the loss reads the head after the forward.

Each rank first reads the whole model into host memory, 4 bytes a weight; the reference of a KL term
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

T = TypeVar("T")


def shard(model: VLM, dtype: torch.dtype, device: torch.device) -> None:
    """Shard the fp32 weights of a model over all ranks, to compute in `dtype` on `device`."""
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    policy = MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
        module.set_gradient_divide_factor(1.0)  # a sum, not a mean
        module.set_force_sum_reduction_for_comms(True)  # by adding: gloo has nothing else
        module.set_reduce_scatter_unused_params(True)  # the tower's, where a rank has no image


@contextmanager
def unsharded(model: VLM) -> Iterator[None]:
    """Inside, every rank holds all weights and uses the model on its own, without gradient.

    A collective. Does nothing to a model that is not sharded.
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        for module in modules:
            module.unshard()
            module.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        for module in modules:
            # First, since a forward that an exception has cut in two would stay gathered else.
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)


def pad_batches_across_ranks(batches: list[T], padding: T) -> list[T]:
    """The batches of a rank, padded to as many as the busiest rank has. A collective."""
    most = max(distributed.all_gather(len(batches)))
    return batches + [padding] * (most - len(batches))


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered on every rank; others as they are. A collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(value: Tensor, example: Tensor) -> Tensor:
    """A full tensor on the device, and in the shards, of another."""
    value = value.to(example.device)
    if isinstance(example, DTensor):
        return distribute_tensor(value, example.device_mesh, example.placements)
    return value
