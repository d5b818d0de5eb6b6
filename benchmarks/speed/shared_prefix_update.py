"""U1 and U2, the update: the shared prefix against G repeated prompts; same gradients, less time.

    python -m benchmarks.speed.shared_prefix_update                      # ratios, gradient errors, and the fitted slope
    python -m benchmarks.speed.shared_prefix_update --plot shared.png    # also draw the times (needs matplotlib)

One forward and backward over a group of G completions of 32 tokens. "Shared" is what training does:
[prompt | c_1 | .. | c_G], the tower run once and remembered, because it is frozen. "Repeated" is
[prompt | c_1] [prompt | c_2] .., the tower run for every copy. First the gradients of the two are
compared. Then the time of the shared update over G = 2 .. 64 and P = 32 .. 1024 is explained by
least squares: a price per token that the layers compute and a price per attention score. The count
of tokens that explains it should be P + G * C, and not G * (P + C).
"""

import argparse
from dataclasses import replace

import numpy as np
import torch

from benchmarks.speed.prompts import garden_prompts
from benchmarks.timing import interleaved, machine, milliseconds, ratio, report, shown
from config import BASE_MODEL
from model.processor import Processor
from model.vlm import completion_logps, make_pack
from model.weights import load_model
from runtime.device import pick_device

C = 32
SHAPES = ((8, None), (8, 256), (16, 512))
GRID = [(G, P) for G in (2, 4, 8, 16, 32, 64) for P in (32, 128, 256, 512, 1024)]


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def largest_error(found: dict, expected: dict) -> float:
    """Largest difference of an entry, relative to the largest entry of its matrix."""
    return max(
        float((found[name] - g).abs().max() / g.abs().max().clamp(min=1e-12))
        for name, g in expected.items()
    )


def fit(tokens: np.ndarray, scores: np.ndarray, ms: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares of ms on tokens, scores and a constant: their prices, and R^2."""
    factors = np.stack((tokens, scores, np.ones_like(ms)), axis=1)
    prices = np.linalg.lstsq(factors, ms, rcond=None)[0]
    return prices, 1 - (ms - factors @ prices).var() / ms.var()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--plot", help="png to draw")
    args = parser.parse_args()
    pick_device("cpu")
    processor, model = Processor(BASE_MODEL), load_model(BASE_MODEL)
    model.visual.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)

    def completions(G: int) -> list[torch.Tensor]:
        return list(torch.randint(20, 900, (G, C), generator=generator))

    def update(prompts, groups) -> None:
        logp, _ = completion_logps(model, make_pack(prompts, groups))
        (logp.mean() * len(logp)).backward()

    print(f"{machine()}, {torch.get_num_threads()} threads, float32, C = {C}")
    print("| G | P | shared ms | repeated ms | ratio | largest gradient error |")
    print("|---|---|---|---|---|---|")
    results, worst = {}, 0.0
    for G, length in SHAPES:
        (prompt,), group = garden_prompts(processor, 1, length), completions(G)
        with torch.no_grad():
            known = replace(prompt, features=model.image_features([prompt]))

        def shared(known=known, group=group):
            update([known], [group])

        def repeated(prompt=prompt, group=group):
            update([prompt] * len(group), [[c] for c in group])

        model.zero_grad(set_to_none=True)
        repeated()
        expected = gradients(model)
        shared()
        error = largest_error(gradients(model), expected)
        worst = max(worst, error)
        seconds = interleaved({"shared": shared, "repeated": repeated}, args.rounds)
        model.zero_grad(set_to_none=True)
        P = len(prompt.ids)
        results[f"G{G}_P{P}"] = ratio(seconds, slow="repeated", fast="shared")
        ms = milliseconds(seconds)
        print(
            f"| {G} | {P} | {ms['shared']:.1f} | {ms['repeated']:.1f} | "
            f"{shown(results[f'G{G}_P{P}'])} | {error:.1e} |",
            flush=True,
        )

    cases = {}
    for G, P in GRID:
        ids = torch.randint(20, 900, (P,), generator=generator)
        prompt = processor.assemble(f"{G}-{P}", ids.tolist(), [])
        group = completions(G)
        cases[G, P] = lambda prompt=prompt, group=group: update([prompt], [group])
    seconds = interleaved(cases, 7, warmup=1)
    # The least of seven: what else the machine does only ever adds, and not to every case alike.
    ms = np.array([1000 * min(seconds[case]) for case in GRID])
    G, P = np.array(GRID, dtype=float).T
    shared, repeated = P + G * C, G * (P + C)
    prices, explained = fit(shared, P * P / 2 + G * C * (P + C / 2), ms)
    _, otherwise = fit(repeated, G * (P + C) ** 2 / 2, ms)
    print(
        f"{len(GRID)} shapes, G 2 .. 64, P 32 .. 1024: {1000 * prices[0]:.1f} us a token of "
        f"P + G * C and {1e6 * prices[1]:.1f} ns a score, R^2 {explained:.3f}; counted as "
        f"G * (P + C) R^2 {otherwise:.3f}"
    )
    if args.plot:
        draw(args.plot, shared, ms - prices[1] * (P * P / 2 + G * C * (P + C / 2)), G)
    slope = {"us_per_token": round(1000 * prices[0], 2)}
    slope |= {"ns_per_score": round(1e6 * prices[1], 3)}
    slope |= {"r2": round(explained, 4), "r2_repeated": round(otherwise, 4)}
    report("U1", **results, U2_largest_gradient_error=worst, slope=slope)


def draw(path: str, tokens: np.ndarray, ms: np.ndarray, groups: np.ndarray) -> None:
    """Milliseconds of an update, without those of attention scores, over P + G * C."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for G in sorted(set(groups)):
        axes.plot(tokens[groups == G], ms[groups == G], "o", label=f"G = {G:.0f}")
    slope, offset = np.polyfit(tokens, ms, 1)
    line = np.array([tokens.min(), tokens.max()])
    axes.plot(line, slope * line + offset, "k-", linewidth=0.8)
    axes.set(xlabel="tokens computed, P + G * C", ylabel="ms, forward and backward, less scores")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
