"""The head and the advantages against plain torch, torch.compile, Liger and CCE.

    python -m benchmarks.speed.head [--device cpu|cuda] [--size small]

Log-probabilities of C tokens from hidden states of width D and V words: forward and backward,
forward alone, memory beyond inputs and gradients, error against float32. Inputs are peaked as a
trained policy's are: hidden_c = a * weight_y(c) + noise, 0.3 to 1 nat of entropy. On a GPU, times
are compared with those of the products alone (a multiply-add per weight and token is u). On a CPU
the fused head is given 3 MB for its chunks, so that its memory shows. Peers that are not installed
are left out.
"""

from unittest.mock import patch

import torch
import torch.nn.functional as F

from benchmarks.speed.workload import MATMUL_TFLOPS, arguments
from benchmarks.timing import Table, interleaved, milliseconds, peak_bytes, report, spread
from kernels import group_advantages, group_advantages_ref, linear_logprob, logprob

SHAPES = {  # (D, C, V)
    "bundled": [(64, 512, V) for V in (1024, 4096, 16384, 65536, 151936)],
    "2b": [(1536, C, 151936) for C in (2048, 8192, 32768)] + [(2048, 8192, 151936)],
    "small": [(16, 128, 2048)],
}
CPU, CPU_CHUNK_BYTES = torch.device("cpu"), 3 * 2**20


def peaked_inputs(C: int, D: int, V: int, device) -> tuple:
    """hidden, weight, targets, upstream gradient; a quarter of the tokens has none."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(V, D, generator=generator, device=device) * D**-0.5  # (V, D), rows ~ 1
    targets = torch.randint(0, V, (C,), generator=generator, device=device)  # (C,)
    noise = torch.randn(C, D, generator=generator, device=device)  # (C, D): logits ~ N(0, 1)
    hidden = 13.0 * weight[targets] + noise  # (C, D): the target's logit is about log(V) + 1
    gradient = torch.randn(C, generator=generator, device=device)  # (C,)
    gradient[::4] = 0.0
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, gradient


def _plain(hidden, weight, targets):
    logits = F.linear(hidden, weight).float()
    return (logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1),)


def heads(device) -> dict:
    """Name -> function(hidden, weight, targets) -> tuple that begins with the (C,) logps."""
    candidates = {"ours": linear_logprob, "torch": _plain}
    if device.type == "cpu":
        return candidates
    candidates["torch.compile"] = torch.compile(_plain)
    try:
        from cut_cross_entropy import linear_cross_entropy

        for name, impl in (("CCE", "cce"), ("CCE exact", "cce_exact")):
            candidates[name] = lambda h, w, y, impl=impl: (
                -linear_cross_entropy(h, w, y, reduction="none", impl=impl),
            )
    except ImportError:
        print("cut-cross-entropy is not installed: left out")
    try:
        import liger_kernel.ops.fused_linear_cross_entropy as liger

        fused = liger.LigerFusedLinearCrossEntropyFunction
        candidates["Liger"] = lambda h, w, y: (
            -fused.apply(h, w, y, None, None, -100, 0.0, 0.0, "none")[0],
        )
    except ImportError:
        print("liger-kernel is not installed: left out")
    return candidates


def extra_bytes(head, V: int, C: int = 512, D: int = 64, device=CPU) -> int:
    """Peak bytes of one forward and backward beyond the gradients themselves."""
    hidden, weight, targets, gradient = peaked_inputs(C, D, V, device)

    def both() -> None:
        hidden.grad = weight.grad = None
        head(hidden, weight, targets)[0].backward(gradient)

    if device.type == "cuda":
        both()  # compiles
    hidden.grad = weight.grad = None
    gradients = (hidden.numel() + weight.numel()) * hidden.element_size()
    return peak_bytes(both, device) - gradients


def error_nats(head, hidden, weight, targets) -> float:
    """Mean |difference| to the log-probabilities in float32, over 256 tokens."""
    (truth,) = _plain(hidden[:256].detach().float(), weight.detach().float(), targets[:256])
    with torch.no_grad():
        return float((head(hidden, weight, targets)[0][:256].float() - truth).abs().mean())


def compare(table: Table, D: int, C: int, V: int, device, rounds: int) -> None:
    """A row per head; heads that refuse the shape or run out of memory are left out."""
    hidden, weight, targets, gradient = peaked_inputs(C, D, V, device)
    candidates, facts = heads(device), {}
    for name in list(candidates):
        try:
            error = error_nats(candidates[name], hidden, weight, targets)
            extra_mb = extra_bytes(candidates[name], V, C, D, device) / 1e6
            facts[name] = {"extra_mb": extra_mb, "error_nats": error}
        except Exception as failure:
            if name == "ours":
                raise
            print(f"{name}: {type(failure).__name__}: {str(failure).splitlines()[0][:80]}")
            del candidates[name]
    if (error := facts["ours"]["error_nats"]) > 2e-3:
        raise SystemExit(f"the head is off by {error:.1e} nats: a time would say nothing")

    def both(head):
        hidden.grad = weight.grad = None
        head(hidden, weight, targets)[0].backward(gradient)

    def forward(head):
        with torch.no_grad():
            head(hidden, weight, targets)

    times = interleaved({n: lambda h=h: both(h) for n, h in candidates.items()}, rounds)
    forwards = interleaved({n: lambda h=h: forward(h) for n, h in candidates.items()}, rounds)
    unit = C * D * V * 1e-9 / MATMUL_TFLOPS if device.type == "cuda" else None  # ms
    for name, ms in milliseconds(times).items():
        once = milliseconds(forwards)[name]
        times_ms = dict(ms=spread([1000 * t for t in times[name]]), forward_ms=once)
        rates = dict(of_6u=unit and 6 * unit / ms, of_2u=unit and 2 * unit / once)
        table.add(D=D, C=C, V=V, head=name, **times_ms, **rates, **facts[name])


def advantages(device, rounds: int) -> dict[str, float]:
    """Microseconds of the group normalisation of 512 groups of 8."""
    rewards = torch.randn(512, 8, device=device)
    torch.testing.assert_close(group_advantages(rewards), group_advantages_ref(rewards))
    functions = {"ours": group_advantages, "torch": group_advantages_ref}
    repeated = {n: lambda f=f: [f(rewards) for _ in range(100)] for n, f in functions.items()}
    return {n: round(10 * ms, 2) for n, ms in milliseconds(interleaved(repeated, rounds)).items()}


def main(argv: list[str] | None = None) -> None:
    args, table = arguments(__doc__, argv, rounds={"bundled": 5, "2b": 15}), Table()
    chunk = CPU_CHUNK_BYTES if args.device.type == "cpu" else logprob.CHUNK_BYTES
    with patch.object(logprob, "chunk_bytes", lambda _memory: chunk):
        for D, C, V in SHAPES[args.size]:
            compare(table, D, C, V, args.device, args.rounds)
    microseconds = advantages(args.device, args.rounds)
    print(f"advantages of 512 groups of 8, microseconds: {microseconds}")
    report("head", rows=table.rows, advantages_us=microseconds)


if __name__ == "__main__":
    main()
