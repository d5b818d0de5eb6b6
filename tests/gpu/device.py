"""The device of tests/gpu/shadow.py: its tensors, its operations and its recordings."""

import contextlib
import dataclasses
import sys
import weakref
from collections import Counter, defaultdict
from pathlib import Path

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
OWN = {str(Path(__file__).with_name(name)) for name in ("device.py", "shadow.py")}
ROOT = str(Path(__file__).resolve().parents[2])
CUDA = torch.device("cuda:0")
HERE = torch.device("meta:1")  # what C++ takes for our device: it has autograd, and no kernels


class ShadowError(RuntimeError):
    """What would fail on a GPU."""


class Shadow(Tensor):
    """A tensor on cuda:0. `inner` holds its numbers on the CPU, or only its shape (meta)."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=HERE,
        )
        made.inner = inner
        return made

    def __init__(self, *_):
        pass

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"Shadow({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return GPU.now.run(func, args, kwargs or {})


def caller() -> str:
    """The innermost line of the repository on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and name not in OWN and "site-packages" not in name:
            return f"{name[len(ROOT) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "autograd"


def tensors_in(tree) -> list[Tensor]:
    """All tensors among arguments."""
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def each_tensor(function, tree):
    """The same arguments with every tensor replaced."""
    return pytree.tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, tree)


def unwrapped(tree):
    """The numbers inside."""
    return pytree.tree_map(lambda x: x.inner if isinstance(x, Shadow) else x, tree)


@contextlib.contextmanager
def quiet():
    """Inside, torch computes on the numbers: what the device does, not the script."""
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        yield


@quiet()
def poison(x: Tensor) -> None:
    """Fill new memory with what nobody may read."""
    if not x.is_meta and x.numel() > 0 and x.dtype != torch.bool:
        x.fill_(float("nan") if x.is_floating_point() else 77)


# ---- recordings ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Address:
    """A tensor that a recording reads and does not keep alive."""

    storage: StorageWeakRef
    dtype: torch.dtype
    shape: tuple  # offset, size, strides
    line: str

    def tensor(self) -> Tensor:
        """What is there now. ShadowError if that memory has been freed."""
        if self.storage.expired():
            raise ShadowError(f"a replay reads freed memory, recorded at {self.line}")
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.shape)


class Graph:
    """torch.cuda.CUDAGraph as a tape."""

    def __init__(self, keep_graph: bool = False):
        self.tape: list[tuple] = []  # function, arguments, results, line
        self.own: set[int] = set()  # storages made inside

    def capture_begin(self, pool=None, **_):
        """From here on operations are written down."""
        if GPU.now.recording is not None:
            raise ShadowError("a recording inside a recording")
        GPU.now.recording = self
        GPU.now.launched["recording"] += 1

    @quiet()
    def capture_end(self):
        """Forget what keeps outer memory alive."""
        GPU.now.recording = None
        self.tape = [(f, self._addresses(args, at), outs, at) for f, args, outs, at in self.tape]

    def _addresses(self, args, line):
        def address(x):
            if x.untyped_storage()._cdata in self.own:
                return x
            shape = (x.storage_offset(), x.size(), x.stride())
            return Address(StorageWeakRef(x.untyped_storage()), x.dtype, shape, line)

        return each_tensor(address, args)

    def add(self, function, args, kwargs, outs) -> None:
        """Write an operation down."""
        for x in outs:
            poison(x)
            self.own.add(x.untyped_storage()._cdata)
        self.tape.append((function, (args, kwargs), outs, caller()))

    @quiet()
    def replay(self):
        """Compute what was recorded."""
        GPU.now.launched["replay"] += 1
        for function, given, outs, _ in [] if GPU.now.sizes_only else self.tape:
            present = lambda x: x.tensor() if isinstance(x, Address) else x  # noqa: E731
            args, kwargs = pytree.tree_map(present, given)
            found = tensors_in(function(*args, **kwargs))
            for out, value in zip(outs, found, strict=True) if outs else ():
                out.copy_(value)

    def pool(self):
        return (0, 1)


# ---- operations ----------------------------------------------------------------------------------

COPIES = {aten.copy_.default, aten._to_copy.default}
PUTS = {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
INDEXING = PUTS | {aten.index.Tensor, aten._unsafe_index.Tensor}
SCALARS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
WAITS = SCALARS | {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
}


def mm_out_dtype(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """torch.mm(bf16, bf16, out_dtype=float32), which exists on CUDA alone."""
    halves = (torch.bfloat16, torch.float16)
    if a.dtype not in halves or a.dtype != b.dtype or out_dtype not in (torch.float32, a.dtype):
        raise ShadowError(f"mm: {a.dtype} and {b.dtype} with out_dtype {out_dtype}")
    if a.is_meta or b.is_meta:
        return torch.empty(a.shape[0], b.shape[1], dtype=out_dtype, device="meta")
    return torch.mm(a.float(), b.float()).to(out_dtype)


def mm_out_dtype_into(a, b, out_dtype, *, out):
    """The same with out=."""
    return out.copy_(mm_out_dtype(a, b, out_dtype))


ONLY_ON_CUDA = {aten.mm.dtype: mm_out_dtype, aten.mm.dtype_out: mm_out_dtype_into}


class GPU(TorchDispatchMode):
    """The device, and what was counted on it: of every phase, see `part`."""

    now: "GPU | None" = None

    def __init__(self, sizes_only: bool = False):
        super().__init__()
        self.sizes_only = sizes_only
        self.waits: dict[str, Counter] = defaultdict(Counter)  # phase -> (kind, line) -> count
        self.launched: Counter = Counter()  # phase -> operations that start a kernel
        self.peaks: Counter = Counter()  # phase -> bytes
        self.phase, self.bytes, self.peak = "", 0, 0
        self.recording: Graph | None = None
        self.known: set[int] = set()  # storages

    @contextlib.contextmanager
    def part(self, name: str):
        """Inside, what is counted belongs to this phase."""
        before, self.phase = self.phase, name
        self.peaks[name] = max(self.peaks[name], self.bytes)
        try:
            yield self
        finally:
            self.phase = before

    def told(self) -> str:
        """All waits, phase by phase."""
        lines = []
        for phase, found in self.waits.items():
            count = f"{found.total()} waits, {self.launched[phase]} launches"
            lines.append(f"[{phase or 'all'}] {count}, peak {self.peaks[phase] / 2**30:.2f} GiB")
            lines += [f"{n:6d} x {kind:12s} {line}" for (kind, line), n in found.most_common()]
        return "\n".join(lines)

    def wait(self, kind: str) -> None:
        """The host waits for the device."""
        self.waits[self.phase][kind, caller()] += 1
        if self.recording is not None:
            raise ShadowError(f"{kind} inside a recording, {caller()}")

    def launch(self) -> None:
        """A kernel starts."""
        self.launched["recorded" if self.recording is not None else self.phase] += 1

    def made(self, tree):
        """New results as tensors of the device."""
        return pytree.tree_map(lambda x: Shadow(self._owned(x)) if type(x) is Tensor else x, tree)

    def _owned(self, inner: Tensor) -> Tensor:
        storage = inner.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512  # as CUDA's allocator
        if key not in self.known and size > 0:
            self.known.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            self.peaks[self.phase] = max(self.peaks[self.phase], self.bytes)
            weakref.finalize(storage, self._freed, key, size)
        return inner

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        """One operation of torch."""
        device = kwargs.get("device") or next((x for x in args if type(x) is torch.device), None)
        given = tensors_in((args, kwargs))
        shadows = [x for x in given if isinstance(x, Shadow)]
        if not shadows and device != HERE:
            if self.recording is not None and given:
                raise ShadowError(f"{func} on the CPU inside a recording, {caller()}")
            return func(*args, **kwargs)
        composite = torch._C.DispatchKey.CompositeImplicitAutograd
        if torch.is_inference_mode_enabled() and func.has_kernel_for_dispatch_key(composite):
            with self:  # else autograd has taken it apart before it comes here
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        to_cpu = device is not None and device.type == "cpu"
        self._check_devices(func, args, given, shadows)
        self._count_waits(func, args, kwargs, shadows, device == HERE, to_cpu)
        inner_args, inner_kwargs = unwrapped((args, kwargs))
        if "device" in inner_kwargs:
            inner_kwargs["device"] = torch.device("cpu")
        inner_kwargs.pop("pin_memory", None)
        done = self._compute(func, inner_args, inner_kwargs, to_cpu)
        if to_cpu or func in SCALARS:
            return done
        same = {id(x.inner): x for x in shadows}  # in place: hands back what it was given
        done = each_tensor(lambda x: same.get(id(x), x), done)
        if is_view(func) and torch.is_inference_mode_enabled() and not shadows[0].is_inference():
            with torch.inference_mode(False):  # a view of a normal tensor shares its version
                return self.made(done)
        return self.made(done)

    def _check_devices(self, func, args, given, shadows):
        if not shadows or func in COPIES:
            return
        for x in given:
            is_index = func in INDEXING and not any(x is y for y in (args[0], *args[2:3]))
            is_scalar = x.dim() == 0 and func not in (aten.cat.default, aten.stack.default)
            if not isinstance(x, Shadow) and not is_index and not is_scalar:
                raise ShadowError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, cuda:0 and cpu! {func}, {caller()}"
                )

    def _count_waits(self, func, args, kwargs, shadows, to_gpu, to_cpu):
        if func is aten.copy_.default:
            into, source = args[:2]
            to_gpu, to_cpu = isinstance(into, Shadow), isinstance(source, Shadow)
            if to_gpu != to_cpu and not any(args[2:]) and not kwargs.get("non_blocking"):
                self.wait("to the GPU" if to_gpu else "to the CPU")
        elif func in COPIES and (to_cpu or (to_gpu and not shadows)):
            if to_cpu or not kwargs.get("non_blocking"):
                self.wait("to the CPU" if to_cpu else "to the GPU")
        elif func in WAITS:
            self.wait(
                func._schema.name.removeprefix("aten::").replace("_local_scalar_dense", "item")
            )
        elif func in INDEXING:
            chosen = [x for x in args[1] if x is not None]
            is_fill = func in PUTS and args[2].numel() == 1
            if any(x.dtype == torch.bool for x in chosen) and not is_fill:
                self.wait("mask")
            if any(not isinstance(x, Shadow) for x in chosen):
                self.wait("to the GPU")

    def _compute(self, func, args, kwargs, to_cpu):
        inner, name = tensors_in((args, kwargs)), func._schema.name
        writes = func._schema.is_mutable
        is_new = not is_view(func) and "empty" not in name and "detach" not in name
        if is_new:
            self.launch()
        if self.sizes_only and self._is_sized(func, inner, args, kwargs):
            return self._without_numbers(func, args, kwargs, writes, to_cpu)
        call = ONLY_ON_CUDA.get(func, func)
        if self.recording is None or is_view(func):
            done = call(*args, **kwargs)
            if self.recording is None and "empty" in name:
                each_tensor(poison, done)
            return done
        if writes:
            done = _written(func, args, kwargs)
        else:
            new = lambda x: torch.empty_strided(x.size(), x.stride(), dtype=x.dtype)  # noqa: E731
            done = each_tensor(new, self._shapes(func, args, kwargs))
        self.recording.add(call, args, kwargs, [] if writes else tensors_in(done))
        return done

    @staticmethod
    def _is_sized(func, inner, args, kwargs) -> bool:
        if inner:
            return any(x.is_floating_point() or x.is_meta for x in inner)
        if func._schema.name in ("aten::arange", "aten::randint") and kwargs.get("dtype") is None:
            return any(isinstance(x, float) for x in args)
        return (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point

    def _without_numbers(self, func, args, kwargs, writes, to_cpu):
        """Floats have no numbers, integers keep them as long as they can."""
        if func in SCALARS:
            return 1.0 if args[0].is_floating_point() else 0
        if to_cpu:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if writes:
            return _written(func, args, kwargs)
        return self._shapes(func, args, kwargs)

    @staticmethod
    def _shapes(func, args, kwargs):
        kwargs = {key: None if key == "generator" else x for key, x in kwargs.items()}
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        args, kwargs = each_tensor(lambda x: x.to("meta"), (args, kwargs))
        return ONLY_ON_CUDA.get(func, func)(*args, **kwargs)


def is_view(func) -> bool:
    """Whether the result shares memory with an argument that is not changed."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _written(func, args, kwargs):
    """What an operation in place gives back."""
    for place, argument in enumerate(func._schema.arguments if func._schema.returns else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return args[place] if place < len(args) else kwargs[argument.name]
