"""V1, U1, U2 on one GPU: the tower once per image, and the shared-prefix update.

    python -m benchmarks.speed.gpu_update [--size small]

V1: tower and prefill of one image question against the same for 8 copies. U1: forward and backward
of one group, [prompt | c_1 | .. | c_G] with the frozen tower's features kept, against G sequences
[prompt | c_i] that each run the tower. Useful work is counted for the shared form: 6 operations per
weight and token of the trunk, 6 per weight and completion token of the head, and the attention
scores. U2: how far the two gradients differ.
"""

from dataclasses import replace

import torch

from benchmarks.speed.gpu_model import (
    MATMUL_TFLOPS,
    Size,
    answers,
    arguments,
    build,
    peak_gb,
    questions,
    stand_in_processor,
)
from benchmarks.timing import interleaved, milliseconds, ratio, report, shown
from model.vlm import completion_logps, make_pack
from sample import generate_group


def useful_tflop(model, P: int, G: int, C: int) -> float:
    """Forward and backward of one packed group, TFLOP."""
    cfg = model.cfg.text
    layers = sum(p.numel() for p in model.model.layers.parameters())
    head = model.head_weight.numel()
    scores = P * P / 2 + G * C * (P + C / 2)
    width = cfg.num_attention_heads * cfg.head_dim
    attention = 4 * scores * width * cfg.num_hidden_layers
    return (6 * layers * (P + G * C) + 6 * head * G * C + 3 * attention) / 1e12


def difference(model, one, other) -> float:
    """U2: |a - b| / |a| of all gradients together."""
    norms = torch.zeros(2, dtype=torch.float64, device=model.device)
    model.zero_grad(set_to_none=True)
    one()
    kept = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    other()
    for name, parameter in model.named_parameters():
        if name in kept:
            a, b = kept[name].double(), parameter.grad.double()
            norms += torch.stack(((a - b).square().sum(), a.square().sum()))
    model.zero_grad(set_to_none=True)
    return float((norms[0] / norms[1]).sqrt())


def updates(model, size: Size, G: int, ragged: bool):
    """The two forms of one update as functions."""
    (prompt,), (group,) = questions(model.cfg, size, 1), answers(G, size.C, 1)
    if ragged:
        group = [c[: size.C * (g + 1) // G] for g, c in enumerate(group)]
    with torch.no_grad():
        known = replace(prompt, features=model.image_features([prompt]))
    tokens = sum(map(len, group))

    def shared():
        logp, _ = completion_logps(model, make_pack([known], [group], model.device))
        (logp.sum() / tokens).backward()

    def repeated():
        for completion in group:  # one at a time: all at once do not fit beside each other
            logp, _ = completion_logps(model, make_pack([prompt], [[completion]], model.device))
            (logp.sum() / tokens).backward()

    return shared, repeated


def main() -> None:
    size, device = arguments(__doc__)
    small = size.P < 1000
    model = build(size, device)
    model.visual.requires_grad_(False)
    rounds, results = (2, {}) if small else (8, {})
    print(
        "| G | C | shared ms | repeated ms | ratio | of the matmul rate | GB | GB repeated | U2 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for G, ragged in ((2, False), (2, True)) if small else ((8, False), (8, True), (16, False)):
        shared, repeated = updates(model, size, G, ragged)
        error = difference(model, repeated, shared)
        if error > 2e-2:
            raise SystemExit(f"the gradients differ by {error:.1e}: a time would say nothing")
        memory = [peak_gb(run, device) for run in (shared, repeated)]
        seconds = interleaved({"shared": shared, "repeated": repeated}, rounds, warmup=1)
        ms, name = milliseconds(seconds), f"G{G}{'_ragged' if ragged else ''}"
        rate = useful_tflop(model, size.P, G, size.C * (0.5 if ragged else 1)) / ms["shared"] * 1e3
        results[name] = ratio(seconds, slow="repeated", fast="shared")
        results[name] |= {"shared_ms": ms["shared"], "of_peak": rate / MATMUL_TFLOPS}
        results[name] |= {"gb": memory, "U2": error}
        print(
            f"| {G} | {'1 .. ' if ragged else ''}{size.C} | {ms['shared']:.1f} | "
            f"{ms['repeated']:.1f} | {shown(results[name])} | {rate / MATMUL_TFLOPS:.0%} | "
            f"{memory[0]:.1f} | {memory[1]:.1f} | {error:.1e} |",
            flush=True,
        )
    model.zero_grad(set_to_none=True)

    processor = stand_in_processor(size.config["vocab_size"])
    one, eight = questions(model.cfg, size, 1), questions(model.cfg, size, 8)
    seconds = interleaved(
        {
            "once": lambda: generate_group(model, processor, one, 8, 1),
            "copies": lambda: generate_group(model, processor, eight, 1, 1),
        },
        rounds,
    )
    results["V1"] = ratio(seconds, slow="copies", fast="once") | milliseconds(seconds)
    print(f"V1: tower and prefill, {milliseconds(seconds)} ms, {shown(results['V1'])} x")
    report("U", **results)


if __name__ == "__main__":
    main()
