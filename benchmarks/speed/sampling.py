"""Sampling: tokens per second against `transformers.generate`, with the same weights and prompts.

    python -m benchmarks.speed.sampling [--device cpu|cuda] [--size small]

"Copied" gives every row a prompt of its own (groups of one), so that no prefix is shared. A step is
one token more for all rows: the difference between a long and a short rollout, divided by the steps
between them, so that tower and prefill drop out. Beside it, the head and the sampler of a step
together against the head's product alone. In float32, both samplers decode greedily and must agree
on every token before any time is taken.
"""

from functools import partial

import torch

from benchmarks.speed.workload import Workload, arguments, as_transformers
from benchmarks.timing import Table, interleaved, milliseconds, ratio, report
from sample import Decoder, generate_group

SHAPES = {  # N, G, prompt tokens (None: as many as the question has)
    "bundled": [(8, 8, None), (2, 4, 200)],
    "2b": [(1, 8, 1000), (8, 8, 1000), (16, 8, 1000)],
    "small": [(2, 2, 40)],
}
PEER_ROWS = {"bundled": 64, "2b": 8, "small": 4}  # more take `generate` too long


def _peer_inputs(work: Workload, prompts: list) -> dict:
    suppressed = work.processor.suppressed_tokens.nonzero().squeeze(1).tolist()
    inputs = as_transformers(prompts, work.model)
    return inputs | dict(suppress_tokens=suppressed, top_k=0, pad_token_id=0)


@torch.inference_mode()
def _require_same_greedy_tokens(work: Workload, peer, prompts: list) -> None:
    C, P = work.size.C, len(prompts[0].ids)
    ours = generate_group(work.model, work.processor, prompts, 1, C, temperature=0.0)
    theirs = peer.generate(**_peer_inputs(work, prompts), max_new_tokens=C, do_sample=False)
    if [ids.tolist() for ids in ours.ids] != theirs[:, P:].tolist():
        raise SystemExit("the greedy answers differ, so a time would say nothing")


@torch.inference_mode()
def _compare(work: Workload, peer, N: int, G: int, length: int | None, rounds: int) -> dict:
    prompts, C, short = work.questions(N, length), work.size.C, max(4, work.size.C // 8)
    work.model.keep_image_features(with_features := work.questions(N, length))  # not timed
    copies = [prompt for prompt in with_features for _ in range(G)]
    candidates = {
        "ours": partial(work.rollout, prompts, G, C),
        "ours, short": partial(work.rollout, prompts, G, short),
        "copied": partial(work.rollout, copies, 1, C),
        "copied, short": partial(work.rollout, copies, 1, short),
    }
    if N * G <= PEER_ROWS[work.name]:
        if work.dtype == torch.float32:
            _require_same_greedy_tokens(work, peer, prompts)
        inputs = _peer_inputs(work, prompts) | dict(do_sample=True, num_return_sequences=G)
        candidates["generate"] = partial(peer.generate, **inputs, max_new_tokens=C)
    seconds = interleaved(candidates, rounds, warmup=min(2, rounds - 1))
    ms = milliseconds(seconds)
    results = {
        f"{name}_step_ms": (ms[name] - ms[f"{name}, short"]) / (C - short)
        for name in ("ours", "copied")
    }
    for name in ("ours", "copied", "generate"):
        results[f"{name}_tokens_per_s"] = round(1000 * N * G * C / ms[name]) if name in ms else None
    over = ratio(seconds, slow="generate", fast="ours") if "generate" in ms else None
    return dict(N=N, G=G, P=len(prompts[0].ids)) | results | {"over_generate": over}


def sampler_us(work: Workload, B: int, rounds: int) -> dict[str, float]:
    """Microseconds of head and sampler together, and of the head's product alone, for B rows."""
    (V, D), device = work.model.head_weight.shape, work.device
    uniforms, is_last = torch.rand(B, 4, device=device), torch.arange(V, device=device) == V - 1
    decoder, logits = Decoder(None, uniforms, is_last, 1.0), work.model.logits
    hidden = torch.randn(B, D, device=device).to(work.dtype)
    functions = {"both": lambda hidden: decoder.choose(logits(hidden)), "head": logits}
    repeated = {n: lambda f=f: [f(hidden) for _ in range(20)] for n, f in functions.items()}
    with torch.inference_mode():
        ms = milliseconds(interleaved(repeated, rounds))
    return {name: round(50 * value, 1) for name, value in ms.items()}


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, rounds={"bundled": 20, "2b": 2})
    work, table = Workload(args.size, args.device), Table()
    peer = work.transformers_model()
    for N, G, length in SHAPES[args.size]:
        table.add(**_compare(work, peer, N, G, length, args.rounds))
    rows = sorted({N * G for N, G, _ in SHAPES[args.size]})
    microseconds = {B: sampler_us(work, B, args.rounds) for B in rows}
    print(f"head and sampler of a step, and the head alone; rows: us {microseconds}")
    report("sampling", rows=table.rows, sampler_us=microseconds)


if __name__ == "__main__":
    main()
