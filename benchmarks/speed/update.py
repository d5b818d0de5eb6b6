"""The update: the shared prefix against G repeated prompts; same gradients, less time.

    python -m benchmarks.speed.update [--device cpu|cuda] [--size small] [--plot shared.png]

Forward and backward of one group, as train_grpo.py makes them. "Shared" is what training does:
[prompt | c_1 | .. | c_G], with the features of the frozen tower kept. "Repeated" is [prompt | c_1],
[prompt | c_2], .., the tower run for every copy. First the gradients of the two are compared. On a
GPU, useful work is counted for the shared form: 6 operations per weight and token of the trunk, 6
per weight and completion token of the head, and the attention scores. Then: tower and prefill of
one question against those of 8 copies.

On a CPU the time of the shared update over many G and P is explained by least squares: a price per
token that the layers compute and a price per attention score. The count of tokens that explains it
should be P + G * C, and not G * (P + C). --plot draws that (needs matplotlib).
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.workload import MATMUL_TFLOPS, Update, Workload, arguments
from benchmarks.timing import Table, interleaved, milliseconds, peak_bytes, ratio, report
from model.pack import completion_logps, make_pack
from model.vlm import Prompt
from sample import Rollout

SHAPES = {  # G, prompt tokens (None: as many as the question has), ragged completions
    "bundled": [(8, None, False), (8, 256, False), (16, 512, False)],
    "2b": [(8, 1000, False), (8, 1000, True), (16, 1000, False)],
    "small": [(2, 40, False), (2, 40, True)],
}
GRID = {  # (G, P) of the fit
    "bundled": [(G, P) for G in (2, 4, 8, 16, 32, 64) for P in (32, 128, 256, 512, 1024)],
    "small": [(G, P) for G in (2, 3) for P in (32, 40, 64)],
}


def random_rollout(work: Workload, prompt: Prompt, lengths: list[int]) -> tuple[Rollout, Tensor]:
    """Random completions with the model's log-probabilities, and advantages (1, G)."""
    ids = [work.words(n, seed=g) for g, n in enumerate(lengths)]
    suppressed = work.processor.suppressed_tokens.to(work.device)
    with torch.no_grad():
        pack = make_pack([prompt], [ids], work.device)
        logps, _ = completion_logps(work.model, pack, 1.0, suppressed)
    advantages = torch.linspace(-1.5, 2.0, len(ids)).view(1, -1)
    return Rollout(ids, list(logps.cpu().split(lengths)), [], []), advantages


def gradient_error(update: Update, forms: dict) -> float:
    """|a - b| / |a| of all gradients together."""
    gradients = []
    for run in forms.values():
        run()
        gradients.append([master.grad.double() for master in update.optimizer.masters])
    b, a = gradients
    error = sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True))
    return (error / sum(float(x.square().sum()) for x in a)) ** 0.5


def useful_tflop(model, P: int, G: int, C: float) -> float:
    """Forward and backward of one packed group, TFLOP."""
    cfg = model.cfg.text
    layers = sum(p.numel() for p in model.model.layers.parameters())
    scores = P * P / 2 + G * C * (P + C / 2)
    attention = 4 * scores * cfg.num_attention_heads * cfg.head_dim * cfg.num_hidden_layers
    head = model.head_weight.numel()
    return (6 * layers * (P + G * C) + 6 * head * G * C + 3 * attention) / 1e12


def compare(work: Workload, update: Update, shape: tuple, rounds: int) -> dict:
    """A row of the table: both forms of the update of one group."""
    (G, P, is_ragged), C = shape, work.size.C
    (prompt,) = work.questions(1, P)
    lengths = [max(1, C * (g + 1) // G) if is_ragged else C for g in range(G)]
    rollout, advantages = random_rollout(work, prompt, lengths)
    with torch.no_grad():
        work.model.keep_image_features([with_features := replace(prompt)])
    shared = update.groups([with_features], rollout, advantages)
    repeated = update.groups([prompt] * G, rollout, advantages.view(G, 1))
    forms = {"shared": partial(update.gradient, shared)}
    forms["repeated"] = partial(update.gradient, repeated)
    if (error := gradient_error(update, forms)) > (1e-4 if work.dtype == torch.float32 else 2e-2):
        raise SystemExit(f"the gradients differ by {error:.1e}: a time would say nothing")
    mb = {f"{name}_mb": peak_bytes(run, work.device) / 1e6 for name, run in forms.items()}
    seconds = interleaved(forms, rounds, warmup=1)
    ms, P, of_rate = milliseconds(seconds), len(prompt.ids), None
    if work.device.type == "cuda":
        tflop = useful_tflop(work.model, P, G, sum(lengths) / G)
        of_rate = 1e3 * tflop / ms["shared"] / MATMUL_TFLOPS
    times = {f"{name}_ms": value for name, value in ms.items()}
    times |= {"ratio": ratio(seconds, slow="repeated", fast="shared"), "of_matmul_rate": of_rate}
    tokens = f"{lengths[0]} .. {C}" if is_ragged else C
    return dict(G=G, P=P, C=tokens) | times | mb | {"gradient_error": error}


def prefill(work: Workload, rounds: int) -> dict:
    """Tower and prefill of one question for 8 completions, against 8 copies of the question."""
    one, eight = work.questions(1), work.questions(1) * 8
    forms = {"once": partial(work.rollout, one, 8, 1), "copies": partial(work.rollout, eight, 1, 1)}
    seconds = interleaved(forms, rounds)
    row = {"ms": milliseconds(seconds), "ratio": ratio(seconds, slow="copies", fast="once")}
    print(f"tower and prefill: {row}")
    return row


# ---- what an update costs ------------------------------------------------------------------------


def least_squares(tokens, scores, ms) -> tuple[np.ndarray, float]:
    """Explain ms by tokens, scores and a constant: their prices, and R^2."""
    factors = np.stack((tokens, scores, np.ones_like(ms)), axis=1)
    prices = np.linalg.lstsq(factors, ms, rcond=None)[0]
    return prices, 1 - (ms - factors @ prices).var() / ms.var()


def fit(work: Workload, update: Update, plot: str | None) -> dict:
    """The price of a token and of a score in a shared update."""
    cases, C = {}, work.size.C
    for G, P in GRID[work.name]:
        prompt = work.text_question(P)
        groups = update.groups([prompt], *random_rollout(work, prompt, [C] * G))
        cases[f"{G} {P}"] = partial(update.gradient, groups)
    seconds = interleaved(cases, 7 if work.name == "bundled" else 2, warmup=1)
    # The least of a few: what else the machine does only ever adds, and not to every case alike.
    ms = np.array([1000 * min(values) for values in seconds.values()])
    G, P = np.array(GRID[work.name], dtype=float).T
    shared, scores = P + G * C, P * P / 2 + G * C * (P + C / 2)
    prices, r2 = least_squares(shared, scores, ms)
    _, r2_repeated = least_squares(G * (P + C), G * (P + C) ** 2 / 2, ms)
    us, ns = 1000 * prices[0], 1e6 * prices[1]
    print(
        f"{len(ms)} shapes: {us:.1f} us a token of P + G * C and {ns:.1f} ns a score, R^2 "
        f"{r2:.3f}; counted as G * (P + C) R^2 {r2_repeated:.3f}"
    )
    if plot:
        draw(plot, shared, ms - prices[1] * scores, G)
    return {"us_per_token": us, "ns_per_score": ns, "r2": r2, "r2_repeated": r2_repeated}


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


def main(argv: list[str] | None = None) -> None:
    plot = dict(help="png to draw")
    args = arguments(__doc__, argv, rounds={"bundled": 20, "2b": 8}, plot=plot)
    work, table, results = Workload(args.size, args.device), Table(), {}
    # Repeated prompts do not fit beside each other on a GPU: one at a time.
    update = Update(work, groups_per_micro_batch=1 if args.device.type == "cuda" else 64)
    for shape in SHAPES[args.size]:
        table.add(**compare(work, update, shape, args.rounds))
    update.optimizer.zero_grad()
    results["prefill"] = prefill(work, args.rounds)
    if args.size in GRID and args.device.type == "cpu":
        results["fit"] = fit(work, update, args.plot)
    report("update", rows=table.rows, **results)


if __name__ == "__main__":
    main()
