"""K2, memory of the head: bytes beyond inputs and gradients, for vocabularies of 1k to 152k words.

    python -m benchmarks.speed.head_memory

Counted, not measured: every tensor that torch makes during forward and backward is added up while
it lives, so the number is the same on every machine. The fused head may hold a chunk of logits,
never all of them; plain log_softmax holds several times all of them.
"""

import argparse
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.timing import machine, report
from kernels import linear_logprob, linear_logprob_ref, logprob

C, D, CHUNK_BYTES = 512, 64, 3 * 2**20
VOCABULARIES = (1024, 4096, 16384, 65536, 151936)


class CountBytes(TorchDispatchMode):
    """Bytes of all storages made inside, alive at once: `peak`."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if is_tensor(t)}
        for tensor in tree_iter(out):
            if is_tensor(tensor) and tensor.untyped_storage()._cdata not in given | self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage._cdata)
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return out

    def free(self, identity: int, size: int) -> None:
        self.seen.discard(identity)
        self.alive -= size


def is_tensor(value) -> bool:
    return isinstance(value, torch.Tensor)


def extra_bytes(head, V: int, C: int = C, D: int = D) -> int:
    """Peak bytes of one forward and backward beyond the gradients themselves."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(C, D, generator=generator).requires_grad_()
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    targets = torch.randint(0, V, (C,), generator=generator)
    with CountBytes() as count:
        head(hidden, weight, targets)[0].sum().backward()
    return count.peak - 4 * (hidden.numel() + weight.numel())


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    logprob.CHUNK_BYTES = CHUNK_BYTES
    print(f"{machine()}; {C} tokens, chunks of {CHUNK_BYTES / 1e6:.1f} MB")
    print("| V | all logits MB | fused head MB | plain log_softmax MB |")
    print("|---|---|---|---|")
    fused = {}
    for V in VOCABULARIES:
        fused[V] = extra_bytes(linear_logprob, V)
        plain = extra_bytes(linear_logprob_ref, V)
        print(f"| {V} | {4 * C * V / 1e6:.1f} | {fused[V] / 1e6:.1f} | {plain / 1e6:.1f} |")
    report("K2", bytes=fused, chunk_bytes=CHUNK_BYTES)


if __name__ == "__main__":
    main()
