"""Supervised fine-tuning, the baseline that GRPO is compared with: same data, model, optimizer.

    python train_sft.py --task cls --shots 1            # learns the right answers
    python train_sft.py --task count --cot              # learns how to reason to them, too

One completion per question, the right one, and every token of it is imitated: the loss is the mean
negative log-probability over the tokens of a step. Without `--cot` the completion is the answer
alone, and the model is judged with the direct prompt; with `--cot` it is the source's own reasoning
and the answer, in the format of `--prompt_mode` think or steps.

The result is a checkpoint like any other. Reason-RFT's two stages (arXiv:2503.20752) are this
script with `--cot`, and then `train_grpo.py --model runs/NAME/step_N/hf`.
Read first: train_grpo.py, whose data order, optimizer, evaluation and files are used here.
"""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from config import SftConfig
from model.processor import Processor
from model.vlm import VLM, Prompt, completion_logps, make_pack
from runtime import console, distributed
from runtime.errors import InputError
from tasks import Example, Reasoning, Task, written
from train_grpo import examples_of_step, prompts_of_step
from training.checkpoint import Checkpoint, parse_or_resume
from training.fsdp import equally_many, whole
from training.optimizer import Optimizer, within_memory
from training.run import TrainingRun
from training.setup import prepare


def read_thoughts(path: Path) -> dict[str, Reasoning]:
    """Lines of `{"id": .., "thought": .., "caption": .., "summary": ..}`, the last two optional."""
    thoughts, number = {}, 0
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            number += 1
            if not line:
                continue
            row = json.loads(line)
            id = row.pop("id")
            thoughts[id] = Reasoning(**row)
    except OSError as error:
        raise InputError(f"--cot_texts {path}: cannot be read ({error})") from None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}:{number}: not a row of id and thought ({error!r})") from None
    return thoughts


def with_reasoning(task: Task, cfg: SftConfig) -> Task:
    """The task with a reasoning text for every training example; raises InputError without one."""
    if cfg.cot_texts is not None:
        thoughts = read_thoughts(cfg.cot_texts)
        task = replace(
            task, train=[replace(e, reasoning=thoughts.get(e.id, e.reasoning)) for e in task.train]
        )
    if missing := [e.id for e in task.train if e.reasoning is None]:
        raise InputError(
            f"--cot: {len(missing)} training examples have no reasoning text, first "
            f"{missing[0]!r}; give them with --cot_texts FILE"
        )
    return task


def response_ids(example: Example, mode: str, processor: Processor) -> Tensor:
    """What the model is to say, end token included: (C_i,) int64."""
    text = written(example.target, mode, example.reasoning)
    return torch.tensor([*processor.encode(text), processor.end_ids[0]])


def accumulate_imitation(
    model: VLM, prompts: list[Prompt], responses: list[Tensor], total: int, cfg: SftConfig
) -> float:
    """Backward of the mean negative log-probability over the `total` tokens of the step, those of
    all ranks; returns this rank's part of it."""
    size, loss = cfg.groups_per_micro_batch, 0.0
    batches = [slice(start, start + size) for start in range(0, len(prompts), size)]
    silent = slice(0, 1)
    if cfg.fsdp:  # a forward is a joint act of all ranks
        batches = equally_many(batches, silent)
    for own in batches:
        pack = make_pack(prompts[own], [[ids] for ids in responses[own]], model.device)
        logp, _ = completion_logps(model, pack)  # (C,)
        part = -logp.sum() / total * float(own is not silent)
        part.backward()
        loss += part.item()
    return loss


def train(cfg: SftConfig, checkpoint: Checkpoint | None = None) -> dict[str, float]:
    """Run supervised fine-tuning, or go on from a checkpoint; returns the last held-out metrics."""
    began = time.time()
    if cfg.cot and cfg.prompt_mode == "direct":
        cfg = replace(cfg, prompt_mode="think")
    cfg, processor, task, model = prepare(cfg, checkpoint)
    if cfg.cot:
        task = with_reasoning(task, cfg)
    optimizer = Optimizer(model, cfg)
    with TrainingRun(cfg, processor, task, model, optimizer, began, checkpoint) as run:
        for step in range(run.done, cfg.max_steps):
            with run.log.timed("prompts"), whole(model):
                asked = examples_of_step(task.train, step, cfg)
                prompts, examples = prompts_of_step(model, processor, asked, cfg)
                responses = [response_ids(e, cfg.prompt_mode, processor) for e in examples]
            total = sum(distributed.all_gather(sum(map(len, responses))))  # tokens
            with run.log.timed("update"):
                accumulate = partial(accumulate_imitation, model, prompts, responses, total)
                loss, cfg = within_memory(accumulate, cfg, optimizer)
                loss = sum(run.all_totals(loss))
                update = optimizer.step(step / cfg.max_steps)
            row = {"step": step + 1, "loss": loss} | update
            run.end_step(row, [example for _, example in asked])
    return run.close()


@distributed.processes()
def main(argv: list[str] | None = None) -> None:
    train(*parse_or_resume(SftConfig, argv, __doc__.split("\n\n")[0]))


if __name__ == "__main__":
    console.run(main, trains=True)
