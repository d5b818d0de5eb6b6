"""K1-K5 on one GPU: the head and the advantages against plain torch, torch.compile, Liger and CCE.

    python -m benchmarks.speed.gpu_head [--size small]

K1 forward and backward, K2 memory beyond inputs and gradients, K3 error against float32, K4 forward
alone, K5 group advantages. Inputs are peaked as a trained policy's are: hidden_c = a * weight_y(c)
+ noise, 0.3 to 1 nat of entropy. Peers that are not installed are left out.
"""

import statistics

import torch
import torch.nn.functional as F

from benchmarks.speed.gpu_model import MATMUL_TFLOPS, arguments, peak_gb
from benchmarks.timing import interleaved, milliseconds, report, spread
from kernels import group_advantages, group_advantages_ref, linear_logprob

SHAPES = {"2b": [(1536, 2048), (1536, 8192), (1536, 32768), (2048, 8192)], "small": [(64, 256)]}


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
    return (
        hidden.to(dtype).requires_grad_(),
        weight.to(dtype).requires_grad_(),
        targets,
        gradient,
    )


def plain(hidden, weight, targets):
    logits = F.linear(hidden, weight).float()
    return logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def ours(hidden, weight, targets):
    return linear_logprob(hidden, weight, targets)[0]


def heads(device) -> dict:
    """Name -> function(hidden, weight, targets) -> (C,) log-probabilities."""
    found = {"ours": ours, "torch": plain}
    if device.type == "cuda":
        found["torch.compile"] = torch.compile(plain)
    try:
        from cut_cross_entropy import linear_cross_entropy

        for name, how in (("CCE", "cce"), ("CCE exact", "cce_exact")):
            found[name] = lambda h, w, y, how=how: (
                -linear_cross_entropy(h, w, y, reduction="none", impl=how)
            )
    except ImportError:
        print("cut-cross-entropy is not installed: left out")
    try:
        import liger_kernel.ops.fused_linear_cross_entropy as liger

        fused = liger.LigerFusedLinearCrossEntropyFunction
        found["Liger"] = lambda h, w, y: (
            -fused.apply(h, w, y, None, None, -100, 0.0, 0.0, "none")[0]
        )
    except ImportError:
        print("liger-kernel is not installed: left out")
    return found


def check(candidates: dict, inputs: tuple) -> dict[str, float]:
    """K3: mean |difference| of the log-probabilities to float32, 256 tokens; drops what fails."""
    hidden, weight, targets, _ = inputs
    rows = slice(0, 256)
    truth = plain(hidden[rows].detach().float(), weight.detach().float(), targets[rows])  # (256,)
    errors = {}
    for name in list(candidates):
        try:
            with torch.no_grad():
                logp = candidates[name](hidden, weight, targets)[rows].float()
            errors[name] = float((logp - truth).abs().mean())
        except Exception as error:  # a peer may refuse a shape or run out of memory
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
            del candidates[name]
    if errors["ours"] > 2e-3:
        raise SystemExit(f"the head is off by {errors['ours']:.1e} nats: a time would say nothing")
    return errors


def compare(D: int, C: int, V: int, device, rounds: int) -> dict[str, dict]:
    inputs = hidden, weight, targets, gradient = peaked_inputs(C, D, V, device)
    candidates = heads(device)
    errors = check(candidates, inputs)

    def both(head):
        hidden.grad = weight.grad = None
        head(hidden, weight, targets).backward(gradient)

    def forward(head):
        with torch.no_grad():
            head(hidden, weight, targets)

    gradients = (hidden.numel() + weight.numel()) * hidden.element_size() / 1e9
    peaks = {}
    for name in list(candidates):
        try:
            hidden.grad = weight.grad = None
            peaks[name] = peak_gb(lambda name=name: both(candidates[name]), device) - gradients
        except Exception as error:
            print(f"{name}: {type(error).__name__} in backward")
            del candidates[name]
    times = interleaved({n: lambda h=h: both(h) for n, h in candidates.items()}, rounds)
    forwards = interleaved({n: lambda h=h: forward(h) for n, h in candidates.items()}, rounds)
    unit = C * D * V * 1e-12 / MATMUL_TFLOPS * 1e3  # ms of a multiply-add per weight and token
    rows = {}
    for name, ms in milliseconds(times).items():
        once = milliseconds(forwards)[name]
        rows[name] = {
            "ms": spread([1000 * t for t in times[name]]),
            "of_6u": round(6 * unit / ms, 3),
            "forward_ms": round(once, 3),
            "of_2u": round(2 * unit / once, 3),
            "extra_gb": round(peaks[name], 3),
            "error_nats": errors[name],
        }
        print(
            f"| {D} | {C} | {name} | {ms:.2f} | {600 * unit / ms:.0f} % | {once:.2f} | "
            f"{200 * unit / once:.0f} % | {peaks[name]:.2f} | {errors[name]:.1e} |",
            flush=True,
        )
    return rows


def advantages(device, rounds: int) -> dict[str, float]:
    """K5: microseconds of the group normalization of 512 groups of 8."""
    rewards = torch.randn(512, 8, device=device)
    torch.testing.assert_close(group_advantages(rewards), group_advantages_ref(rewards))
    many = {
        "ours": lambda: [group_advantages(rewards) for _ in range(100)],
        "torch": lambda: [group_advantages_ref(rewards) for _ in range(100)],
    }
    times = interleaved(many, rounds)
    return {name: round(statistics.median(t) * 1e4, 2) for name, t in times.items()}


def main() -> None:
    size, device = arguments(__doc__)
    name = "2b" if size.P == 1000 else "small"
    rounds, V = (20, 151936) if name == "2b" else (3, 4096)
    print("| D | C | head | ms | of 6u | forward ms | of 2u | extra GB | error nats |")
    print("|---|---|---|---|---|---|---|---|---|")
    results = {
        f"D{D}_C{C}": compare(D, C, V, device, rounds if C < 30000 else 8) for D, C in SHAPES[name]
    }
    microseconds = advantages(device, rounds)
    print(f"K5: advantages of 512 groups of 8, microseconds: {microseconds}")
    report("K", **results, K5_microseconds=microseconds)


if __name__ == "__main__":
    main()
