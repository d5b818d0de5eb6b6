"""E1, a whole GRPO step: rollout, reward, update and AdamW, against TRL's GRPOTrainer.

    python -m benchmarks.speed.step_vs_trl        # needs benchmarks/requirements.txt

Same checkpoint, prompts, reward, group size, lengths, float32, AdamW, beta 0, and in both the tower
frozen. Each trains in a process of its own; a step of one follows a step of the other. "default": 8
prompts x 8 completions x 32 tokens; "long": the same with prompts of 256 tokens. Nobody stops
early, and no group is flat. Before any time is taken, both must give the same log-probability to
the same completions.
"""

import argparse
import tempfile
from dataclasses import replace

import torch

from benchmarks.speed.prompts import as_transformers, garden_images, garden_prompts, padded_question
from benchmarks.timing import Turns, machine, milliseconds, ratio, report, shown, take_turns
from config import BASE_MODEL
from kernels import group_advantages
from model.processor import Processor
from model.vlm import completion_logps, make_pack
from model.weights import load_model
from rewards import classification_reward
from runtime.device import pick_device
from sample import generate_group
from train_grpo import GRPOConfig, Optimizer, accumulate_gradient, keep_features, make_groups

N, G, TOKENS = 8, 8, 32
SHAPES = {"default": None, "long": 256}
TARGET = "Solara minor"


def reward_of(texts: list[str]) -> list[float]:
    # Its number tells a completion from the others of its group: no group is flat, none is skipped.
    return [classification_reward(t, TARGET).total + k % G / 1000 for k, t in enumerate(texts)]


def some_completions() -> torch.Tensor:
    return torch.randint(20, 900, (N, 8), generator=torch.Generator().manual_seed(0))


def ours(turns: Turns, length: int | None, steps: int) -> None:
    pick_device("cpu")
    processor, model = Processor(BASE_MODEL), load_model(BASE_MODEL)
    processor.end_ids = []
    model.visual.requires_grad_(False)
    cfg = GRPOConfig(max_completion_length=TOKENS, max_steps=steps)
    optimizer = Optimizer(model, cfg)
    prompts = garden_prompts(processor, N, length)
    with torch.no_grad():
        pack = make_pack(prompts, [[ids] for ids in some_completions()])
        turns.ready(completion_logps(model, pack)[0].tolist())
    for step in turns:
        fresh = [replace(prompt, features=None) for prompt in prompts]
        keep_features(model, fresh)
        rollout = generate_group(model, processor, fresh, G, TOKENS, 1.0, 0, step)
        rewards = torch.tensor(reward_of(rollout.texts)).view(N, G)
        groups = make_groups(fresh, rollout, group_advantages(rewards), cfg)
        accumulate_gradient(model, None, groups, processor.suppressed_tokens, cfg)
        optimizer.step(step / steps)


def trl(turns: Turns, length: int | None, steps: int) -> None:
    from datasets import Dataset
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    processor = Processor(BASE_MODEL)
    model = Qwen2VLForConditionalGeneration.from_pretrained(BASE_MODEL, dtype=torch.float32)
    model.model.visual.requires_grad_(False)
    prompts = garden_prompts(processor, N, length)
    inputs = as_transformers(prompts, processor.cfg.image_token_id)
    completions = some_completions()
    ones = torch.ones_like(completions)
    for name, more in (("input_ids", completions), ("attention_mask", ones)):
        inputs[name] = torch.cat((inputs[name], more), dim=1)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == processor.cfg.image_token_id).int()
    with torch.no_grad():
        logits = model(**inputs).logits[:, -9:-1]  # (N, 8, V)
        logp = logits.log_softmax(-1).gather(2, completions[:, :, None]).flatten()
    turns.ready(logp.tolist())

    class OnTurn(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if not turns.begin():
                control.should_training_stop = True

        def on_step_end(self, args, state, control, **_):
            turns.end()

    cfg = GRPOConfig()
    question = padded_question(processor, length)
    rows = [
        {"prompt": [{"role": "user", "content": question}], "image": image}
        for image in garden_images(N)
    ]
    with tempfile.TemporaryDirectory() as directory:
        trainer = GRPOTrainer(
            model=model,
            processing_class=AutoProcessor.from_pretrained(BASE_MODEL),
            reward_funcs=lambda completions, **_: reward_of([c[0]["content"] for c in completions]),
            train_dataset=Dataset.from_list(rows),
            args=GRPOConfig(
                output_dir=directory,
                per_device_train_batch_size=N * G,
                num_generations=G,
                max_completion_length=TOKENS,
                generation_kwargs={"min_new_tokens": TOKENS},
                learning_rate=cfg.learning_rate,
                weight_decay=cfg.weight_decay,
                max_grad_norm=cfg.max_grad_norm,
                beta=0.0,
                max_steps=steps,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                logging_strategy="no",
                shuffle_dataset=False,
            ),
            callbacks=[OnTurn()],
        )
        trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads, float32, beta 0, frozen tower")
    print("| shape | ours ms | TRL ms | ratio |\n|---|---|---|---|")
    results = {}
    for name, length in SHAPES.items():
        steps = args.rounds + 3  # one more than there are turns: nobody ends before being told
        logps, seconds = take_turns({"ours": ours, "trl": trl}, args.rounds, 2, length, steps)
        torch.testing.assert_close(logps["ours"], logps["trl"], rtol=1e-4, atol=1e-4)
        results[name] = ratio(seconds, slow="trl", fast="ours")
        ms = milliseconds(seconds)
        print(
            f"| {name} | {ms['ours']:.0f} | {ms['trl']:.0f} | {shown(results[name])} |", flush=True
        )
    report("E1", **results)


if __name__ == "__main__":
    main()
