"""Supervised fine-tuning, the baseline that GRPO is compared with: same data, model, optimizer.

    python train_sft.py --task cls --shots 1            # learns the right answers
    python train_sft.py --task count --cot              # learns how to reason to them, too

The loss is the mean negative log-probability over the tokens of the right completions of a step.
Without `--cot` a completion is the answer alone, and the model is evaluated with the direct prompt;
with `--cot` it is the source's own reasoning and the answer, as `--prompt_mode` asks for. Where
completions act, the calls of a demonstration stand before it in either case.

The result is a checkpoint like any other. Reason-RFT's two stages (arXiv:2503.20752) are this
script with `--cot`, then `train_grpo.py --model runs/NAME/step_N/hf`. Read first: train_grpo.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from acting.episodes import demonstrated_calls
from answers import has_tag
from config import TrainConfig, flag, require
from data.examples import Example, Reasoning, completion_text
from data.files import read_jsonl
from model.pack import completion_logps
from model.processor import Processor
from model.vlm import VLM
from runtime import console, distributed
from runtime.errors import InputError
from tasks.task import Task
from training.batches import Group, PromptReader, keep_features, places_of_step
from training.checkpoint import Checkpoint
from training.fsdp import unsharded
from training.micro_batches import MicroBatch, MicroBatches
from training.optimizer import Optimizer
from training.resume import parse_or_resume
from training.run import TrainingRun
from training.setup import prepare


@dataclass(frozen=True)
class SFTConfig(TrainConfig):
    """The flags of supervised fine-tuning; config.py has those that every training shares."""

    script: ClassVar[str] = "train_sft.py"

    prompt_mode: Literal["think", "steps", "direct"] = flag(
        "direct", "answer at once; where cot is set, reason first or in four steps"
    )
    cot: bool = flag(
        False, "learn the reasoning too, not the answer (and the calls before it) alone"
    )
    cot_texts: Path | None = flag(None, "jsonl of id and thought, for data from outside")

    def __post_init__(self) -> None:
        super().__post_init__()
        is_unused = not self.cot and self.prompt_mode != "direct"
        require(not is_unused, "prompt_mode", "direct, or taken with --cot", self)
        require(self.cot or self.cot_texts is None, "cot_texts", "taken with --cot", self)


def read_thoughts(path: Path) -> dict[str, Reasoning]:
    """Lines of `{"id": .., "thought": .., "caption": .., "summary": ..}`, the last two optional.

    Raises InputError naming file and line.
    """
    thoughts = {}
    for number, row in read_jsonl(path):
        try:
            id = row.pop("id")
            texts = Reasoning(**row)
            is_new = id not in thoughts
        except (TypeError, AttributeError, KeyError) as error:
            raise InputError(f"{path}:{number}: not a row of id and thought ({error!r})") from None
        if not is_new:
            raise InputError(f"{path}:{number}: the second row of id {id!r:.80}; keep one")
        values = texts.thought, texts.caption, texts.summary
        if texts.calls:
            raise InputError(f"{path}:{number}: calls cannot be given; leave them out")
        if not all(isinstance(value, str) for value in values) or not texts.thought.strip():
            what = "the thought has to be text and not empty, caption and summary text"
            raise InputError(f"{path}:{number}: {what}; repair the row")
        if has_tag("".join(values)):
            raise InputError(f"{path}:{number}: holds a tag such as </think>; write the text alone")
        thoughts[id] = texts
    return thoughts


def with_thought(example: Example, reasoning: Reasoning | None) -> Example:
    """The example with other texts, and the calls that it knows."""
    if reasoning is None:
        return example
    calls = example.reasoning.calls if example.reasoning else ()
    return replace(example, reasoning=replace(reasoning, calls=calls))


def with_reasoning(task: Task, cfg: SFTConfig) -> Task:
    """The task with a reasoning text for every training example; raises InputError without one."""
    if cfg.cot_texts is not None:
        try:
            thoughts = read_thoughts(cfg.cot_texts)
        except InputError as error:
            raise InputError(f"--cot_texts {error}") from None
        known = {e.id for e in task.train}
        if unknown := [id for id in thoughts if id not in known]:
            print(
                f"data: {len(unknown)} rows of --cot_texts are not trained on: {unknown[0]!r}, .."
            )
        task = replace(task, train=[with_thought(e, thoughts.get(e.id)) for e in task.train])
    if missing := [e.id for e in task.train if e.reasoning is None]:
        raise InputError(
            f"--cot: {len(missing)} training examples have no reasoning text, first "
            f"{missing[0]!r}; give them with --cot_texts FILE"
        )
    return task


def response_ids(
    example: Example, mode: str, processor: Processor, calls: Sequence[int] = ()
) -> Tensor:
    """What the model should answer, behind its calls, end token included: (C_i,) int64."""
    text = completion_text(example.target, mode, example.reasoning)
    text = text if calls else text.removeprefix(processor.opening)  # which the prompt holds already
    return torch.tensor([*calls, *processor.encode(text), processor.end_ids[0]])


def imitation_loss(model: VLM, batch: MicroBatch) -> Tensor:
    """Mean negative log-probability of the right answers' tokens; the weights are 1 / C."""
    logp, _ = completion_logps(model, batch.pack)  # (C,)
    return -(batch.weights * logp).sum()


def train(cfg: SFTConfig, checkpoint: Checkpoint | None = None) -> dict[str, float]:
    """Run supervised fine-tuning, or resume it; return the last held-out metrics."""
    if cfg.cot and cfg.prompt_mode == "direct":
        cfg = replace(cfg, prompt_mode="think")
    setup = prepare(cfg, checkpoint)
    cfg, processor, model = setup.cfg, setup.processor, setup.model
    if cfg.cot:
        setup.task = with_reasoning(setup.task, cfg)
    reader, optimizer = PromptReader(setup.task.train, processor, cfg), Optimizer(model, cfg)
    micro_batches = MicroBatches(model, optimizer, cfg)
    with TrainingRun(setup, optimizer) as run:
        for step in run.steps():
            # 1. Questions and their right answers. Each rank takes its shard of them.
            questions, prompts = reader.read(places_of_step(step, cfg))
            examples = [example for _, example in distributed.local_shard(questions)]
            acting = (cfg.prompt_mode, processor, setup.task.environment)
            calls, shown = zip(*(demonstrated_calls(e, *acting) for e in examples), strict=True)
            with unsharded(model):
                keep_features(model, [*prompts, *(s.piece for seen in shown for s in seen)], cfg)
            responses = [
                response_ids(example, cfg.prompt_mode, processor, ids)
                for example, ids in zip(examples, calls, strict=True)
            ]
            C = sum(distributed.all_gather(sum(map(len, responses))))  # tokens of the step
            groups = [
                Group(prompt, [ids], torch.full((len(ids),), 1.0 / C), shown=[seen])
                for prompt, ids, seen in zip(prompts, responses, shown, strict=True)
            ]
            run.log.lap("prompts")
            # 2. Update.
            for batch in micro_batches.split(groups):
                with micro_batches.retry_on_oom():
                    loss = imitation_loss(model, batch)
                    loss.backward()
                    micro_batches.add({"loss": loss.detach()})
            metrics = micro_batches.metrics()
            optimizer.clip_grad_norm(cfg.max_grad_norm)
            run.begin_update()
            metrics |= optimizer.step(progress=step / cfg.max_steps)
            run.log.lap("update")
            # 3. Log, evaluate, save.
            run.end_step(metrics, [example for _, example in questions])
    return run.close()


@distributed.process_group()
def main(argv: list[str] | None = None) -> None:
    train(*parse_or_resume(SFTConfig, argv, __doc__))


if __name__ == "__main__":
    lower = "--prompts_per_step, --max_completion_length, --max_pixels"
    console.run(main, trains=True, memory_flags=lower)
