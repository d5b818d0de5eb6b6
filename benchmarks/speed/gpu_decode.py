"""D1-D3 on one GPU: a decoding step, shared against copied prefixes, and the sampler's share.

    python -m benchmarks.speed.gpu_decode [--size small]

The time of a step is the difference between a long and a short rollout, divided by the steps
between them: prefill and recording drop out. "Copied" gives every row a prompt of its own (groups
of one), so that nothing is shared. The peer is `transformers.generate` with its dynamic cache.
"""

import statistics

import torch

from benchmarks.speed.gpu_model import arguments, build, questions, stand_in_processor
from benchmarks.timing import interleaved, report, seconds_of
from model.attention import KVCache
from sample import Decoder, generate_group


def step_ms(model, processor, prompts, G: int, short: int, long: int, repeats: int = 3) -> float:
    """Milliseconds of one decoding step of all rows."""
    for prompt in prompts:
        prompt.features = model.image_features([prompt])

    def run(length):
        return generate_group(model, processor, prompts, G, length)

    run(short)
    differences = [
        seconds_of(lambda: run(long)) - seconds_of(lambda: run(short)) for _ in range(repeats)
    ]
    return 1000 * statistics.median(differences) / (long - short)


def transformers_ms(size, device, dtype, B: int, tokens: int) -> float:
    """Milliseconds per token of `generate`: text prompts of the same length, random weights."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    with torch.device(device):
        peer = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(size.config))
    peer = peer.to(dtype).eval()
    peer.generation_config.eos_token_id = None
    ids = torch.randint(1000, 100000, (B, size.P), device=device)
    given = dict(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0)
    given |= dict(mm_token_type_ids=torch.zeros_like(ids).int(), pad_token_id=0)
    with torch.inference_mode():
        times = [
            seconds_of(lambda n=n: peer.generate(**given, max_new_tokens=n))
            for n in (2, 2, tokens + 2)
        ]
    return 1000 * (times[2] - times[1]) / tokens


def sampler_us(model, B: int, rounds: int) -> dict[str, float]:
    """D3: head and sampler together against the head's product alone."""
    device, (V, D) = model.device, model.head_weight.shape
    uniforms = torch.rand(B, 4, device=device)
    cache = KVCache(1, 4, device)
    position = torch.ones(B, dtype=torch.int64, device=device)
    decoder = Decoder(model, cache, position, uniforms, torch.tensor([V - 1], device=device), 1.0)
    hidden = torch.randn(B, D, device=device).to(model.head_weight.dtype)
    with torch.inference_mode():
        times = interleaved(
            {
                "both": lambda: [decoder.choose(hidden) for _ in range(20)],
                "head": lambda: [model.logits(hidden) for _ in range(20)],
            },
            rounds,
        )
    return {name: round(statistics.median(t) * 5e4, 1) for name, t in times.items()}


def main() -> None:
    size, device = arguments(__doc__)
    small = size.P < 1000
    model = build(size, device)
    processor = stand_in_processor(size.config["vocab_size"])
    short, long = (4, size.C) if small else (40, size.C)
    prompts = questions(model.cfg, size, 2 if small else 16)
    steps, copied, sampler = {}, {}, {}
    print(
        "| rows | groups x G | step ms, shared | copied | tokens/s shared |\n|---|---|---|---|---|"
    )
    for N, G in ((1, 2), (2, 2)) if small else ((1, 8), (1, 16), (1, 64), (8, 8), (16, 8)):
        B = N * G
        steps[f"{N}x{G}"] = ms = step_ms(model, processor, prompts[:N], G, short, long)
        many = [prompts[b % len(prompts)] for b in range(B)]
        copied[f"{N}x{G}"] = apart = step_ms(model, processor, many, 1, short, long, 1)
        print(f"| {B} | {N} x {G} | {ms:.2f} | {apart:.2f} | {1000 * B / ms:.0f} |", flush=True)
    for B in (2,) if small else (8, 64, 256):
        sampler[B] = sampler_us(model, B, 3 if small else 10)
        print(
            f"D3, {B} rows: head and sampler {sampler[B]['both']} us, head {sampler[B]['head']} us"
        )
    rows, tokens = (2, 8) if small else (8, 32)
    peer = transformers_ms(size, device, model.head_weight.dtype, rows, tokens)
    print(f"transformers.generate, {rows} rows: {peer:.2f} ms a token")
    report("D", step_ms=steps, copied_ms=copied, sampler_us=sampler, transformers_ms=peer)


if __name__ == "__main__":
    main()
