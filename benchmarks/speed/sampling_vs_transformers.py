"""D1, sampling: tokens per second against `transformers.generate`, same weights and prompts.

    python -m benchmarks.speed.sampling_vs_transformers        # needs benchmarks/requirements.txt

"short": 8 prompts x 8 completions x 32 tokens, one small picture and a question each. "long": 2
prompts x 4 completions x 32 tokens behind prompts of 200 tokens. Nobody stops early: end tokens do
not count. Before any time is taken, both decode greedily and must agree on every token.
"""

import argparse

import torch

from benchmarks.speed.prompts import as_transformers, garden_prompts
from benchmarks.timing import Turns, machine, milliseconds, ratio, report, shown, take_turns
from config import BASE_MODEL
from model.processor import Processor
from model.weights import load_model
from runtime.device import pick_device
from sample import generate_group

TOKENS = 32
SHAPES = {"short": dict(N=8, G=8, length=None), "long": dict(N=2, G=4, length=200)}


def ours(turns: Turns, N: int, G: int, length: int | None) -> None:
    pick_device("cpu")
    processor, model = Processor(BASE_MODEL), load_model(BASE_MODEL)
    processor.end_ids = []
    prompts = garden_prompts(processor, N, length)
    greedy = generate_group(model, processor, prompts, 1, TOKENS, temperature=0.0)
    turns.ready([ids.tolist() for ids in greedy.ids])
    for k in turns:
        generate_group(model, processor, prompts, G, TOKENS, step=k)


@torch.inference_mode()
def generate(turns: Turns, N: int, G: int, length: int | None) -> None:
    from transformers import Qwen2VLForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    processor = Processor(BASE_MODEL)
    model = Qwen2VLForConditionalGeneration.from_pretrained(BASE_MODEL, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    prompts = garden_prompts(processor, N, length)
    inputs = as_transformers(prompts, processor.cfg.image_token_id)
    inputs |= dict(top_k=0, max_new_tokens=TOKENS)
    inputs["suppress_tokens"] = processor.suppressed_tokens.nonzero().squeeze(1).tolist()
    greedy = model.generate(**inputs, do_sample=False)
    turns.ready(greedy[:, len(prompts[0].ids) :].tolist())
    for _ in turns:
        model.generate(**inputs, do_sample=True, num_return_sequences=G)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads, float32")
    print(
        "| shape | prompts x completions x tokens, prompt | ours tok/s | generate tok/s | ratio |"
    )
    print("|---|---|---|---|---|")
    results = {}
    for name, shape in SHAPES.items():
        candidates = {"ours": ours, "generate": generate}
        greedy, seconds = take_turns(candidates, args.rounds, 3, *shape.values())
        if greedy["ours"] != greedy["generate"]:
            raise SystemExit(f"{name}: the greedy answers differ, so a time would say nothing")
        N, G, length = shape.values()
        speed = {who: 1000 * N * G * TOKENS / ms for who, ms in milliseconds(seconds).items()}
        results[name] = ratio(seconds, slow="generate", fast="ours")
        print(
            f"| {name} | {N} x {G} x {TOKENS}, {length or 37} | {speed['ours']:.0f} | "
            f"{speed['generate']:.0f} | {shown(results[name])} |",
            flush=True,
        )
    report("D1", **results)


if __name__ == "__main__":
    main()
