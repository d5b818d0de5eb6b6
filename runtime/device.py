"""Where tensors live: the device that `--device` names.

Next: runtime/distributed.py, for several of them.
"""

import ctypes
import os

import torch

from runtime import distributed
from runtime.errors import InputError


def pick_device(name: str, dtype: str = "float32") -> torch.device:
    """`auto` takes a GPU if there is one, under torchrun each rank its own. Raises InputError for a
    device that cannot be used, or not in this dtype."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.world_size() > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise InputError(f"--device {name}: each rank takes its own; use --device cuda")
        name = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", 0)  # torch.cuda.set_device takes no bare "cuda"
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only cpu and cuda are supported")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: not usable here ({reason}); try --device cpu") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches on the current device
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise InputError("--dtype bfloat16: this GPU has no such numbers; use float32")
    else:
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next tensor of that size.

    By default it returns large blocks to the system, and the next step pays for every page again:
    about 5 % of a step. Other C libraries have no `mallopt`; there nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
