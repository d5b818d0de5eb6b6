"""A GPU that is not there: tensors that say they are on cuda:0 and compute on the CPU.

    python -m tests.gpu.shadow [--interpret] train_grpo --device cuda --dtype bfloat16 ..
    python -m tests.gpu.shadow pytest tests/test_gpu.py

    with shadow.gpu() as gpu:  # or gpu(sizes_only=True): shapes and memory, no numbers
        train_grpo.main(["--device", "cuda", ..])
    print(gpu.told())

Real: devices, dtypes, autograd, views, the order of operations. Checked as CUDA does: CPU and GPU
tensors in one operation, CPU pointers in a launch, the arguments of varlen attention, of set_device
and of mm(out_dtype). Counted, with the line of the repository that caused it: waits of the host for
the device, operations that start a kernel, memory in use and its peak. `torch.empty` holds NaN.

A recorded CUDA graph is a tape of operations on fixed addresses with fixed Python numbers. While it
is recorded nothing is computed, no wait and no CPU tensor is allowed; a replay that reads memory
which Python has freed raises.

Blind spots: speed, races and streams; the rounding of cuBLAS and of flash kernels; whether a kernel
compiles (Triton kernels run as their torch twins, with --interpret in Triton's interpreter, bf16 as
fp32); fragmentation and workspaces; the attention of float32 is composed of plain operations, and
so is what the memory of float32 says; a copy that is asked not to block counts as no wait, pinned
or not; FSDP, and torch.compile, which does nothing here.
"""

import contextlib
import importlib
import os
import sys
import types
from collections import defaultdict
from functools import partial

os.environ.setdefault("TRITON_INTERPRET", "1")  # before `kernels` is imported

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.cuda._utils import _get_device_index
from torch.overrides import TorchFunctionMode

from tests.gpu.device import (
    GPU,
    HERE,
    Graph,
    Shadow,
    ShadowError,
    quiet,
    tensors_in,
    unwrapped,
)

MEMORY = 150 * 10**9  # bytes of the card

# ---- kernels -------------------------------------------------------------------------------------


def opaque(work, shapes=torch.empty_like):
    """A function of the numbers as one kernel. `shapes`: its results without numbers, of the same
    arguments; None if it needs them."""

    def call(*args):
        gpu, inner = GPU.now, unwrapped(args)
        if any(not isinstance(x, Shadow) for x in tensors_in(args)):
            raise ShadowError(f"{work.__name__}: Pointer argument cannot be accessed (cpu tensor?)")

        def run(*args):
            with quiet():
                return work(*args)

        gpu.launch()
        is_empty = gpu.sizes_only or gpu.recording is not None
        with quiet():
            made = shapes(*inner) if is_empty and shapes else run(*inner)
        if gpu.recording is not None:
            gpu.recording.add(run, inner, {}, tensors_in(made))
        return gpu.made(made)

    return call


def fused(work, kept):
    """An operation whose result is like its first argument, with a backward that is one, too.

    `kept`: the shape of the fp32 numbers that it keeps for it beside arguments and result.
    """

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.args = [None if isinstance(x, Tensor) else x for x in args]
            out = opaque(work, lambda x, *_: torch.empty_like(x))(*args)
            extra = torch.empty(kept(*args), dtype=torch.float32, device=HERE)
            ctx.places = [i for i, x in enumerate(args) if isinstance(x, Tensor)]
            ctx.save_for_backward(*tensors_in(args), out, extra)
            return out

        @staticmethod
        def backward(ctx, grad):
            args = [*ctx.args]
            for place, x in zip(ctx.places, ctx.saved_tensors, strict=False):
                args[place] = x
            needed = [i for i, is_needed in enumerate(ctx.needs_input_grad) if is_needed]

            def gradients(grad, *args):
                with torch.enable_grad():
                    leaves = {i: args[i].detach().clone().requires_grad_() for i in needed}
                    out = work(*(leaves.get(i, x) for i, x in enumerate(args)))
                    return torch.autograd.grad(out, list(leaves.values()), grad)

            empty = lambda _, *args: [torch.empty_like(args[i]) for i in needed]  # noqa: E731
            found = dict(zip(needed, opaque(gradients, empty)(grad, *args), strict=True))
            return tuple(found.get(i) for i in range(len(args)))

    return Function.apply


def _norm(x, weight, shape, eps):
    weight = None if weight is None else weight.float()
    return torch.nn.functional.rms_norm(x.float(), shape, weight, eps).to(x.dtype)


_fused_norm = fused(_norm, lambda x, *_: x.shape[:-1])


def rms_norm(x, shape, weight=None, eps=None):
    """F.rms_norm."""
    return _fused_norm(x, weight, shape, eps)


def _attend_each(q, k, v, ends_q, ends_k, is_causal):
    """Sequence after sequence; causal is aligned at the bottom right."""
    parts, R, dtype = [], q.shape[1] // k.shape[1], q.dtype
    ends_q, ends_k = ends_q.tolist(), ends_k.tolist()
    for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
        one = q[a:b].float().transpose(0, 1)  # (H, T, E)
        keys, values = (x[c:d].float().repeat_interleave(R, 1).transpose(0, 1) for x in (k, v))
        scores = one @ keys.transpose(1, 2) * q.shape[-1] ** -0.5  # (H, T, S)
        if is_causal:
            T, S = scores.shape[1:]
            hidden = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
            scores = scores.masked_fill(hidden, -float("inf"))
        parts.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(parts).to(dtype)


_fused_attention = fused(_attend_each, lambda q, *_: q.shape[:2])


def varlen_attn(
    q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False
):
    """torch.nn.attention.varlen.varlen_attn since torch 2.12, and what it and its kernel ask."""
    is_half = q.dtype == k.dtype == v.dtype and q.dtype in (torch.bfloat16, torch.float16)
    is_laid_out = all(x.stride(-1) == 1 for x in (q, k, v))
    is_width = q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    is_grouped = q.shape[1] == k.shape[1] or enable_gqa and q.shape[1] % k.shape[1] == 0
    is_window = window_size in ((-1, 0), (-1, -1))
    if not (is_half and is_laid_out and is_width and is_grouped and is_window):
        shapes = ", ".join(f"{tuple(x.shape)} {x.stride()} {x.dtype}" for x in (q, k, v))
        raise ShadowError(f"varlen_attn: {shapes}, window {window_size}")
    for x, ends, longest in ((q, cu_seq_q, max_q), (k, cu_seq_k, max_k)):
        lengths = ends.inner.diff() if isinstance(ends, Shadow) else None
        is_int32 = lengths is not None and ends.dtype == torch.int32 and ends.is_contiguous()
        if not is_int32 or type(longest) is not int:
            raise ShadowError(f"varlen_attn: ends must be int32 on the GPU, longest {longest}")
        is_whole = int(ends.inner[0]) == 0 and int(ends.inner[-1]) == len(x)
        if not is_whole or int(lengths.max()) > longest or int(lengths.min()) < 1:
            raise ShadowError(f"varlen_attn: sequences {lengths.tolist()} of {len(x)} tokens")
    GPU.now.launched["varlen_attn"] += 1
    return _fused_attention(q, k, v, cu_seq_q, cu_seq_k, window_size == (-1, 0))


class Launch:
    """A Triton kernel: its twin in torch, or Triton's interpreter, which gets bf16 as fp32."""

    def __init__(self, kernel, name: str, twin=None):
        self.kernel, self.__name__, self.twin = kernel, name, twin

    def __getitem__(self, grid):
        if not (all(n > 0 for n in grid) and all(n < 65536 for n in grid[1:])):
            raise ShadowError(f"{self.__name__}: grid {grid}")
        work = self._interpret(grid) if self.twin is None else self.twin

        def launch(*args, **options):
            kernel = partial(work, **options)
            kernel.__name__ = self.__name__
            opaque(kernel, lambda *_: None)(*args)

        return launch

    def _interpret(self, grid):
        def work(*args, **options):
            wide, given = [], []
            for x in args:
                if isinstance(x, Tensor) and x.dtype == torch.bfloat16:
                    # The whole storage, so that strides stay what they are.
                    flat = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
                    wide.append((flat, flat.float()))
                    x = wide[-1][1].as_strided(x.size(), x.stride(), x.storage_offset())
                given.append(x)
            self.kernel[grid](*given, **options)
            for flat, numbers in wide:
                flat.copy_(numbers)

        return work


def twins() -> list[tuple]:
    """(module, name, stand-in in torch) of kernels, or of the functions that launch them."""
    from kernels import advantage, decode, logprob, norm, rotary, sample, swiglu

    def attention(*args):
        return decode._torch(*args, None)

    def odds(hidden, weight, targets, suppressed, temperature, shift, reduce, store):
        chunk = (hidden, weight, targets, suppressed, temperature)
        sums, found = logprob._odds_torch(chunk, shift, reduce, store)
        return sums, found.to(hidden.dtype) if store else None

    def advantages(rewards, into, *numbers, DIVIDE_BY_STD, **_):
        scale = "group" if DIVIDE_BY_STD else "none"
        into.copy_(advantage.group_advantages_ref(rewards, scale, eps=numbers[-1]))

    def tokens(logits, *rest):
        return sample.sample_tokens_ref(logits.clone(), *rest)

    def no_tokens(logits, *_):
        ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        return ids, torch.empty(len(logits), device=logits.device)

    def product(gate, up, into, size, **_):
        into.copy_(swiglu.gated_product_ref(gate, up))

    def gradients(grad, gate, up, *into, **_):
        *places, size = into
        found = swiglu.gated_product_backward_ref(grad, gate, up, places[-1] is not None)
        for place, x in zip(places, found, strict=True):
            if place is not None:
                place.copy_(x)

    def added(x, update, weight, total, normed, D, eps, **_):
        for place, found in zip(
            (total, normed), norm.add_norm_ref(x, update, weight, eps), strict=True
        ):
            place.copy_(found)

    def rotated(qkv, *rest):
        return rotary.rotate_and_store_ref(qkv, *rest).contiguous()

    def unrotated(qkv, *rest):
        return torch.empty_like(
            qkv[:, : -2 * rest[4].shape[1]], memory_format=torch.contiguous_format
        )

    all_odds, kernel = opaque(odds, None), "_group_advantages_kernel"
    return [
        (decode, "_triton", opaque(attention, lambda q, *_: torch.empty_like(q))),
        (logprob, "_odds_triton", lambda chunk, *rest: all_odds(*chunk, *rest)),
        (advantage, kernel, Launch(None, kernel, advantages)),
        (sample, "_triton", opaque(tokens, no_tokens)),
        (norm, "_add_norm_kernel", Launch(None, "_add_norm_kernel", added)),
        (rotary, "_triton", opaque(rotated, unrotated)),
        (swiglu, "_forward_kernel", Launch(None, "_forward_kernel", product)),
        (swiglu, "_backward_kernel", Launch(None, "_backward_kernel", gradients)),
    ]


# ---- torch.cuda ----------------------------------------------------------------------------------


class Devices(TorchFunctionMode):
    """Says HERE to torch wherever a script says cuda; norms are one operation, as on CUDA."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "cuda" and args and isinstance(args[0], Tensor):
            return Tensor.to(args[0], HERE)
        if name == "rms_norm" and isinstance(args[0], Shadow):
            return rms_norm(*args, **kwargs)
        if func is torch.tensor:  # reads scalars in a list one by one
            args = pytree.tree_map(lambda x: x.cpu() if isinstance(x, Shadow) else x, args)
        args = tuple(self._here(x, name in ("to", "empty_like")) for x in args)
        if "device" in kwargs:
            kwargs = kwargs | {"device": self._here(kwargs["device"], True)}
        return func(*args, **kwargs)

    @staticmethod
    def _here(x, may_be_name):
        is_name = may_be_name and isinstance(x, str) and x.startswith("cuda")
        return HERE if is_name or isinstance(x, torch.device) and x.type == "cuda" else x


@contextlib.contextmanager
def _recorded(graph, pool=None, stream=None, **_):
    """torch.cuda.graph."""
    GPU.now.wait("synchronize and empty_cache")
    graph.capture_begin(pool)
    try:
        yield
    finally:
        graph.capture_end()


class _Generator(torch.Generator):
    """Random numbers of the device come from the CPU."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


def _grouped(lists, with_indices=False):
    """torch._C._group_tensors_by_device_and_dtype."""
    places = defaultdict(list)
    for i, x in enumerate(lists[0]):
        places[x.device, x.dtype].append(i)
    return {
        key: ([[x[i] for i in own] if x else [] for x in lists], own) for key, own in places.items()
    }


def _of_cuda(gpu: GPU) -> dict:
    """Attributes of torch.cuda."""
    about = dict(name="shadow", total_memory=MEMORY, multi_processor_count=132)
    return dict(
        is_available=lambda: True,
        is_initialized=lambda: True,
        _lazy_init=lambda: None,
        device_count=lambda: 1,
        current_device=lambda: 0,
        set_device=_get_device_index,
        is_bf16_supported=lambda including_emulation=True: True,
        get_device_name=lambda *_: "shadow",
        get_device_capability=lambda *_: (9, 0),
        get_device_properties=lambda *_: types.SimpleNamespace(**about, major=9, minor=0),
        synchronize=lambda *_: gpu.wait("synchronize"),
        empty_cache=lambda: gpu.wait("empty_cache"),
        memory_allocated=lambda *_: gpu.bytes,
        max_memory_allocated=lambda *_: gpu.peak,
        max_memory_reserved=lambda *_: gpu.peak,
        reset_peak_memory_stats=lambda *_: setattr(gpu, "peak", gpu.bytes),
        manual_seed_all=lambda seed: None,
        CUDAGraph=Graph,
        graph=_recorded,
        Stream=type("Stream", (), {}),
        stream=lambda _: contextlib.nullcontext(),
    )


@contextlib.contextmanager
def gpu(sizes_only: bool = False, interpret: bool = False):
    """Inside, there is a GPU. `interpret`: all kernels in Triton's interpreter, which is slow."""
    from torch.fx.experimental import _config as fx_config
    from torch.nn.attention import varlen

    import kernels
    from model import attention

    device, undo = GPU(sizes_only), []

    def put(owner, name, value):
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def run_backward(*args, plain=torch.autograd._engine_run_backward, **kwargs):
        with Devices():  # for what checkpointing recomputes
            return plain(*args, **kwargs)

    for name, value in _of_cuda(device).items():
        put(torch.cuda, name, value)
    put(torch, "Generator", _Generator)
    put(torch, "compile", lambda function, **_: function)
    put(torch.autograd, "_engine_run_backward", run_backward)
    put(torch._C, "_group_tensors_by_device_and_dtype", _grouped)
    put(fx_config, "meta_nonzero_assume_all_nonzero", True)  # where there are no numbers
    put(varlen, "varlen_attn", varlen_attn)
    put(attention, "flash_attn_varlen_func", None)
    names = ("advantage", "decode", "logprob", "norm", "rotary", "sample", "swiglu")
    for module in (getattr(kernels, name) for name in names):
        for name, value in list(vars(module).items()):
            if name.endswith("_kernel"):
                put(module, name, Launch(value, name))
    for change in () if interpret or sizes_only else twins():
        put(*change)
    before, GPU.now = GPU.now, device
    lift = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(.., device): on the CPU, then moved
    try:
        with Devices(), device:
            yield device
    finally:
        GPU.now = before
        torch._C._set_only_lift_cpu_tensors(lift)
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)


def main(words: list[str]) -> int:
    """Run a script of the repository, or pytest, on the GPU that is not there."""
    name, *rest = [word for word in words if word != "--interpret"]
    import transformers  # noqa: F401  (asks for the devices while it is imported)

    with gpu(interpret="--interpret" in words) as device:
        try:
            return importlib.import_module(name).main(rest) or 0
        finally:
            print(device.told())


if __name__ == "__main__":
    from tests.gpu import shadow  # one module, not two

    sys.exit(shadow.main(sys.argv[1:]))
