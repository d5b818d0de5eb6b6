"""One process per GPU: `torchrun --nproc_per_node=2 train_grpo.py ...` makes the same run as one.

Each process, a rank, holds the whole model (with `--fsdp` a shard: training/fsdp.py) and samples,
scores and learns from its own shard of a step's questions. Lengths, rewards and counts are
gathered; gradients are summed, since token weights are those of the whole step. Random numbers
depend on the question alone, so any number of ranks draws the same completions, up to the rounding
of the logits. Rank 0 alone writes logs and checkpoints.

A signal to any rank travels with the next `all_gather`, so that all stop at the same point. A rank
that fails says so and ends; the others notice in their next collective, or torchrun ends them.

Gradients are summed here, not by DistributedDataParallel: its hooks want as many backwards on
every rank, in the dtype of the weights. Ours differ in number (zero-std groups are skipped, and
memory may run out on one rank), and bfloat16 gradients add up in fp32 (training/optimizer.py).

Next: training/fsdp.py.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.errors import InputError
from runtime.signals import signals

T = TypeVar("T")

TIMEOUT = timedelta(minutes=60)  # of a collective: the slowest shard of a rollout or an evaluation


class RankLost(InputError):
    """Another rank has ended in the middle of a run."""


class _Ranks:
    """What this process knows of the others."""

    control: dist.ProcessGroup | None = None  # for messages: they never mix with gradients
    seconds_waited = 0.0  # for the messages of others


def world_size() -> int:
    """Number of ranks."""
    return 1 if _Ranks.control is None else dist.get_world_size()


def rank() -> int:
    """Number of this process, from 0."""
    return 0 if _Ranks.control is None else dist.get_rank()


def local_rank() -> int:
    """Number of this process on its machine: which GPU is ours."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_shard(items: Sequence[T]) -> Sequence[T]:
    """This rank's part of what all ranks have: contiguous, sizes differ by one at most."""
    bounds = [len(items) * r // world_size() for r in (rank(), rank() + 1)]
    return items[bounds[0] : bounds[1]]


def seconds_waited() -> float:
    """Seconds that this rank has waited for slower ones since the last call."""
    seconds, _Ranks.seconds_waited = _Ranks.seconds_waited, 0.0
    return seconds


@contextmanager
def process_group() -> Iterator[None]:
    """Inside, this process is one of those that torchrun started; alone without torchrun.

    Raises InputError, prefixed with the rank, for whatever bad input ends this one.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or _Ranks.control is not None:
        yield
        return
    if missing := sorted({"RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys()):
        raise InputError(
            f"WORLD_SIZE is set, but not {missing[0]}; start with torchrun, or unset it"
        )
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT
    )
    _Ranks.control, _Ranks.seconds_waited = dist.new_group(backend="gloo", timeout=TIMEOUT), 0.0
    stdout = sys.stdout
    try:
        with open(os.devnull, "w") as devnull:
            if rank() > 0:
                sys.stdout = devnull
            yield
        dist.destroy_process_group()
    except InputError as error:
        raise InputError(f"rank {rank()}: {error}") from error
    except Exception as error:  # a bug of ours or of the user's: its traceback follows
        print(f"error: rank {rank()}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        sys.stdout, _Ranks.control = stdout, None


def all_gather(value: T) -> list[T]:
    """Gather a value from every rank, in order of ranks. Also a stop point.

    Raises: Stopped on all ranks if one has received a signal; RankLost if one has ended.
    """
    if _Ranks.control is None:
        signals.raise_if_received(signals.received)
        return [value]
    messages: list[Any] = [None] * world_size()
    try:
        start = time.perf_counter()
        dist.barrier(group=_Ranks.control)
        _Ranks.seconds_waited += time.perf_counter() - start
        # Pickled and unpickled by our own processes: nothing in it comes from outside as bytes.
        dist.all_gather_object(messages, (value, signals.received), group=_Ranks.control)
    except RuntimeError as error:
        raise RankLost(f"another rank has ended ({str(error)[:200]})") from None
    received = [number for _, number in messages if number is not None]
    signals.raise_if_received(received[0] if received else None)
    return [value for value, _ in messages]


def barrier() -> None:
    """Wait for the slowest rank. Also a stop point."""
    all_gather(None)


def stop_point() -> None:
    """Let a signal stop a run of one rank here; several ranks stop in `all_gather` only."""
    if _Ranks.control is None:
        signals.raise_if_received(signals.received)


def require_same(value: Any, what: str) -> None:
    """Raise InputError, on every rank, unless all of them hold the same value."""
    values = all_gather(value)
    if odd := [r for r in range(len(values)) if values[r] != values[0]]:
        raise InputError(f"rank {odd[0]} reads other {what} than rank 0; are all files readable?")


def sum_gradients(parameters: list[Tensor]) -> None:
    """Add up the gradients of all ranks in place; every rank gets the same bits."""
    if world_size() > 1:
        for parameter in parameters:
            dist.all_reduce(parameter.grad)
