"""One process per GPU: `torchrun --nproc_per_node=2 train_grpo.py ...` makes the same run as one.

Each process, a rank, has the whole model and answers, scores and learns from its own share of a
step's questions. What must be known of all ranks (lengths, rewards, counts) is gathered; gradients
are summed, not averaged, since token weights are those of the whole step. Random numbers depend on
the question alone, so any number of ranks draws the same completions, up to the rounding of the
logits. Rank 0 alone writes logs and checkpoints.

With `--fsdp` weights, gradients and optimizer state are shared out, too (training/fsdp.py).

When a rank fails or is told to stop, it says so (`leave`), and its message takes the place of what
it would have said in the next `all_gather`: all ranks raise there, and then save together. Before
any other joint act there is an `all_gather`, with no signal let through in between, so that no rank
waits for one that has left. A rank that cannot notice, because it is in the middle of such an act,
is ended by a thread.

Gradients are summed here, not by DistributedDataParallel: its hooks want as many backwards on every
rank, in the dtype of the weights. Ours differ in number (groups without spread are skipped, and
memory may run out on one rank), and bfloat16 gradients add up in fp32 (training/optimizer.py).

Read first: train_grpo.py. Next: runtime/signals.py, training/fsdp.py.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from runtime import console
from runtime.errors import InputError
from runtime.signals import LEFT, AnotherLeft, Elsewhere, Stopped, signals

T = TypeVar("T")

PATIENCE = 5.0  # seconds that a rank has to notice that another one has left
TIMEOUT = timedelta(minutes=60)  # of a joint act: the slowest share of a rollout or an evaluation


class _Ranks:
    """What this process knows of the others."""

    control: dist.ProcessGroup | None = None  # for messages: they never mix with gradients
    store: dist.Store | None = None  # read at any time, also where a message cannot arrive
    is_broken = False  # a message did not arrive
    waited = 0.0  # seconds, for the messages of others
    has_told = False  # the traceback of its own error is printed
    parting: dict[str, Any] | None = None  # the message of a rank that left; all have met since


# ---- who am I ------------------------------------------------------------------------------------


def world_size() -> int:
    """Number of ranks."""
    return 1 if _Ranks.control is None else dist.get_world_size()


def rank() -> int:
    return 0 if _Ranks.control is None else dist.get_rank()


def are_together() -> bool:
    """Whether joint acts are possible: nobody has left, or all ranks know of it."""
    return _Ranks.control is None or not _Ranks.is_broken


def waited() -> float:
    """Seconds that this rank has waited for slower ones since it was asked last."""
    seconds, _Ranks.waited = _Ranks.waited, 0.0
    return seconds


def local_rank() -> int:
    """Which GPU of this machine is ours."""
    return int(os.environ.get("LOCAL_RANK", 0))


def share(items: Sequence[T]) -> Sequence[T]:
    """This rank's part of what all ranks have: contiguous, sizes differ by one at most."""
    bounds = [len(items) * r // world_size() for r in (rank(), rank() + 1)]
    return items[bounds[0] : bounds[1]]


@contextmanager
def processes() -> Iterator[None]:
    """Inside, this process is one of those that torchrun started; alone without torchrun."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or _Ranks.control is not None:
        yield
        return
    if missing := sorted({"RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys()):
        raise InputError(
            f"WORLD_SIZE is set, but not {missing[0]}; start with torchrun, or unset it"
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _Ranks.store, own, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(
        backend, timeout=TIMEOUT, store=_Ranks.store, rank=own, world_size=count
    )
    _Ranks.control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    _Ranks.parting, _Ranks.is_broken, _Ranks.has_told = None, False, False
    _Ranks.waited = 0.0
    watching = threading.Thread(target=_watch, daemon=True)
    watching.start()
    out = sys.stdout
    try:
        with open(os.devnull, "w") as nowhere:
            if rank() > 0:
                sys.stdout = nowhere
            try:
                yield
            except (Exception, KeyboardInterrupt, Stopped, AnotherLeft) as error:
                cause = leave(error)
                if isinstance(cause, Stopped):
                    raise SystemExit(128 + cause.number) from None
                if is_a_surprise(error):
                    raise SystemExit(1) from None  # told by `leave`
                if cause is error:
                    raise
                raise cause from None
    finally:
        sys.stdout = out
        _Ranks.control = None
        watching.join()  # a thread cut off by the interpreter's end can abort the process
        dist.destroy_process_group()


# ---- messages ------------------------------------------------------------------------------------


def all_gather(value: T) -> list[T]:
    """What every rank says here, in order of ranks; JSON can hold it.

    Raises: Elsewhere or Stopped if a rank leaves instead.
    """
    if _Ranks.control is None:
        return [value]
    with signals.holding():
        messages = _exchange({"value": value})
        if any("value" not in message for message in messages):
            raise _as_error(_Ranks.parting)
    return [message["value"] for message in messages]


def require_same(value: Any, what: str) -> None:
    """Raise InputError, on every rank, unless all of them hold the same."""
    values = all_gather(value)
    if odd := [r for r in range(len(values)) if values[r] != values[0]]:
        raise InputError(f"rank {odd[0]} reads other {what} than rank 0; are all files readable?")


def _exchange(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rank's message, as JSON in bytes: nothing that comes from outside is unpickled."""
    data = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)  # (bytes,)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    try:
        began = time.perf_counter()
        dist.all_gather(sizes, torch.tensor([len(data)]), group=_Ranks.control)
        _Ranks.waited += time.perf_counter() - began
        longest = max(int(size) for size in sizes)
        padded = torch.cat((data, data.new_zeros(longest - len(data))))
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded, group=_Ranks.control)
    except RuntimeError as error:
        _Ranks.is_broken = True
        raise Elsewhere(f"another rank has died ({str(error)[:200]})") from None
    messages = [
        json.loads(bytes(own[: int(size)].numpy())) for own, size in zip(found, sizes, strict=True)
    ]
    if partings := [message for message in messages if "value" not in message]:
        knowing = [message for message in partings if "noticed" not in message]
        _Ranks.parting = (knowing + partings)[0]
    return messages


def _as_error(parting: dict[str, Any]) -> BaseException:
    if "stopped" in parting:
        return Stopped(parting["stopped"])
    return Elsewhere(parting.get("failed", "another rank has left"))


def is_a_surprise(error: BaseException) -> bool:
    """Whether its traceback matters: neither bad input, nor a signal, nor too little memory."""
    is_expected = isinstance(error, InputError | Stopped | AnotherLeft | KeyboardInterrupt)
    return not is_expected and not console.is_out_of_memory(error)


def leave(error: BaseException) -> BaseException:
    """Tell the other ranks why this one ends, and wait until they know; a second call does nothing.

    Returns: what ends them all: `error`, or what another rank said.
    """
    if _Ranks.control is None or _Ranks.parting is not None:
        return error
    signals.held = True
    if is_a_surprise(error) and not _Ranks.has_told:
        _Ranks.has_told = True  # now: where the others cannot meet, this process ends unasked
        traceback.print_exception(error)
    if isinstance(error, AnotherLeft | Elsewhere):
        message: dict[str, Any] = {"noticed": True}
    elif isinstance(error, Stopped):
        message = {"stopped": error.number}
    else:
        message = {"failed": f"rank {rank()}: {type(error).__name__}: {error}"[:2000]}
    if "noticed" not in message:
        with suppress(RuntimeError):  # torchrun may have died
            _Ranks.store.set("left", json.dumps(message))
    if not _Ranks.is_broken:
        with suppress(Elsewhere):
            _exchange(message)
    if isinstance(error, AnotherLeft):
        return _as_error(_Ranks.parting or {})
    return error


def _watch() -> None:
    """Notice that another rank has left; end this one if it does not come to know it in time."""
    group, store = _Ranks.control, _Ranks.store
    with suppress(RuntimeError):  # torchrun has died: messages still arrive, if later
        while _Ranks.control is group and not store.check(["left"]):
            time.sleep(0.2)
        if _Ranks.control is not group:
            return
        if _Ranks.parting is None and signals.previous:  # a run is going on: it can still save
            signal.pthread_kill(threading.main_thread().ident, LEFT)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if _Ranks.parting is not None or _Ranks.control is not group:
                return
            time.sleep(0.1)
        cause = _as_error(json.loads(store.get("left")))
        what = f"stopped by {cause}" if isinstance(cause, Stopped) else cause
        print(f"error: {what}; this rank ends without saving", file=sys.stderr, flush=True)
        os._exit(1)


# ---- gradients -----------------------------------------------------------------------------------


def sum_gradients(parameters: list[Tensor]) -> None:
    """Add up the gradients of all ranks; every rank gets the same bits.

    A joint act: what precedes it is an `all_gather` (`TrainingRun.all_totals`).
    """
    if world_size() > 1:
        for parameter in parameters:
            dist.all_reduce(parameter.grad)
