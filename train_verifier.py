"""A verifier: a second model that learns to tell right answers from wrong ones.

    python train_verifier.py --task count --labels outcome      # is the answer right?
    python train_verifier.py --task count --labels process      # is this statement true?
    python train_verifier.py --task count --labels preference --ratings runs/NAME/ratings.jsonl

The first two sample the policy (`--model`) on training questions, as GRPO does, and learn what the
rule says of its completions, or of the statements of its thoughts. Where a rule is at hand a
verifier can only be worse; its place is where none is: to choose among several answers to a new
question (`evaluate.py --choose best --verifier DIR`). The third learns from people's ratings
(rate.py), and serves train_grpo.py as `--reward_model`.

A verifier begins as the policy itself. To verify an answer it may have to find it: `--solver` names
a model that answers every question first, for the verifier to compare. What comes out is a
directory, `--output_dir`, whose verifier.json says how good it is on questions that it has not met.
Read first: train_grpo.py. The equations are in training/verifier.py.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from tqdm import trange

import config
from config import TrainConfig, flag, require, require_counts
from data.examples import Example, shuffle
from data.ratings import Rating, read_ratings
from model.load import load_model, local_directory
from model.processor import Processor
from model.scored import ScoredVLM
from runtime import console
from runtime.errors import InputError
from runtime.run_directory import new_run_directory
from tasks import TASKS
from tasks.task import Task
from training.batches import (
    MOST_GROUPS,
    PromptReader,
    keep_features,
    places_of_step,
    sample_groups,
)
from training.evaluation import EVAL_SPLITS
from training.optimizer import Optimizer
from training.process import token_after
from training.setup import Setup, prepare
from training.verifier import (
    Labelled,
    Solver,
    check_read_alike,
    ends,
    group_loss,
    in_chunks,
    load_solver,
    quality,
    save_verifier,
    scale_of,
    scores_of,
)

HELD_OUT = 0.2  # of the questions that were rated


@dataclass(frozen=True)
class VerifierConfig(TrainConfig):
    """The flags of verifiers; config.py has those that every training shares."""

    script: ClassVar[str] = "train_verifier.py"

    labels: Literal["outcome", "process", "preference"] = flag("outcome", "what it learns")
    solver: Path | None = flag(None, "checkpoint that answers every question first: outcome")
    ratings: Path | None = flag(None, "file that rate.py has written: preference")
    num_generations: int = flag(8, "completions per question: outcome, process")
    temperature: float = flag(1.0, "of sampling")
    learning_rate: float = flag(5e-4, "peak; a real 2B checkpoint wants 1e-5")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "num_generations")
        require(1e-3 <= self.temperature <= 1e3, "temperature", "in 0.001 .. 1000", self)
        is_rated = self.labels == "preference"
        require(is_rated or self.ratings is None, "ratings", "taken with --labels preference", self)
        require(
            not is_rated or self.ratings is not None, "ratings", "given: a file of rate.py", self
        )
        unused = "eval_steps save_steps save_total_limit report_prompts report_attention report_to"
        for name in unused.split():
            is_unset = getattr(self, name) == getattr(VerifierConfig, name)
            require(is_unset, name, "left out: a verifier is evaluated and saved at its end", self)
        is_whole = self.solver is None or self.labels == "outcome"
        require(is_whole, "solver", "left out but for --labels outcome", self)
        alone = "left out: a verifier is trained in one process, in minutes"
        require(not self.fsdp, "fsdp", alone, self)
        resumed = self.resume_from_checkpoint is None
        require(resumed, "resume_from_checkpoint", alone, self)

    @property
    def frozen_models(self) -> int:
        """The policy that is sampled, and the solver."""
        return int(self.labels != "preference") + int(self.solver is not None)


# ---- labels --------------------------------------------------------------------------------------


Labels = tuple[Tensor, Tensor]  # places and labels of a `Labelled`


def label_outcomes(ids: list[Tensor], texts: list[str], example: Example, task: Task) -> Labels:
    """After each completion: 1 if the whole answer is right."""
    right = [task.scores(text, example)["strict"] for text in texts]
    return ends(ids), torch.tensor(right)


def label_statements(
    ids: list[Tensor], texts: list[str], example: Example, task: Task, processor: Processor
) -> Labels:
    """After each statement that can be read: 1 if it is true."""
    places, labels, start = [], [], 0
    for tokens, text in zip(ids, texts, strict=True):
        for statement in task.statements(text, example):
            after = token_after(tokens, statement.end, processor)
            if statement.is_true is not None and after < len(tokens):
                places.append(start + after)
                labels.append(float(statement.is_true))
        start += len(tokens)
    return torch.tensor(places, dtype=torch.int64), torch.tensor(labels)


class Sampled:
    """Labelled completions of a policy. It keeps the model that it is."""

    def __init__(self, setup: Setup):
        cfg = self.cfg = setup.cfg
        self.task, self.processor = setup.task, setup.processor
        if cfg.labels == "process" and setup.task.statements is None:
            what = "whose pictures are generated, and their facts known; use outcome"
            raise InputError(f"--labels process: only for tasks {what}")
        dtype, device = getattr(torch, cfg.dtype), setup.model.device
        self.policy = load_model(cfg.model, dtype, device, cfg.adapter).requires_grad_(False)
        self.solver = None if cfg.solver is None else solver_of(setup)
        self.reader = PromptReader(setup.task.train, setup.processor, cfg)

    def of_step(self, step: int) -> list[Labelled]:
        """Those of a training step."""
        questions, prompts = self.reader.read(places_of_step(step, self.cfg))
        return self._label(prompts, [example for _, example in questions], step)

    def held_out(self) -> Iterator[tuple[str, list[Labelled]]]:
        """(split, those of all its questions)."""
        for split in EVAL_SPLITS:
            groups = []
            for chunk in in_chunks(self.task.splits.get(split, []), 8 * MOST_GROUPS):
                prompts = [self.processor.prompt(e.id, e.images, e.question) for e in chunk]
                groups += self._label(prompts, list(chunk), step=self.cfg.max_steps)
            if groups:
                yield split, groups

    def _label(self, prompts, examples: list[Example], step: int) -> list[Labelled]:
        keep_features(self.policy, prompts, replace(self.cfg, freeze_vision=True))
        rollout = sample_groups(self.policy, self.processor, prompts, self.cfg, step)
        if not self.cfg.freeze_vision:  # the trunk's tower sees the pixels
            prompts = [replace(prompt, features=None) for prompt in prompts]
        if self.solver is not None:
            prompts = self.solver(prompts)
        G, groups = self.cfg.num_generations, []
        for n, (prompt, example) in enumerate(zip(prompts, examples, strict=True)):
            rows = slice(n * G, (n + 1) * G)
            said = (rollout.ids[rows], rollout.texts[rows], example, self.task)
            if self.cfg.labels == "outcome":
                labels = label_outcomes(*said)
            else:
                labels = label_statements(*said, self.processor)
            groups.append(Labelled(prompt, rollout.ids[rows], *labels))
        return groups


def solver_of(setup: Setup) -> Solver:
    """The model of --solver. Raises InputError where it reads otherwise, or could not answer."""
    cfg, directory = setup.cfg, local_directory(setup.cfg.solver)
    check_read_alike(directory, cfg.model)
    length = cfg.max_completion_length or setup.task.max_completion_length
    setup.processor.check_lengths(cfg.max_prompt_length + length, length)
    return load_solver(directory, length, getattr(torch, cfg.dtype), setup.model.device)


class Rated:
    """Labelled pairs of rated completions, all those of one question together.

    A fifth of the questions is held out: whole questions, so that no text is on both sides.
    """

    def __init__(self, setup: Setup):
        self.cfg, self.processor = setup.cfg, setup.processor
        examples, by_id = {e.id: e for e in setup.task.train}, {}
        for rating in read_ratings(setup.cfg.ratings):
            by_id.setdefault(rating.id, []).append(rating)
        known = [id for id in by_id if id in examples]
        if len(known) < 2:
            what = f"{len(known)} of its {len(by_id)} questions are among the task's"
            fix = "give --task, --data and --train_size of the run that was rated"
            raise InputError(f"--ratings {setup.cfg.ratings}: {what}, 2 are needed; {fix}")
        order = shuffle(known, self.cfg.seed)
        n = max(1, round(HELD_OUT * len(order)))
        self.apart, self.train = (
            [self._group(examples[id], by_id[id]) for id in ids] for ids in (order[:n], order[n:])
        )
        pairs = [sum(len(g.labels) for g in groups) for groups in (self.train, self.apart)]
        print(f"ratings: {pairs[0]} pairs of {len(self.train)} questions, {pairs[1]} held out")

    def _group(self, example: Example, ratings: list[Rating]) -> Labelled:
        texts = list(dict.fromkeys(text for rating in ratings for text in rating.texts))
        ids = [torch.tensor([*self.processor.encode(t), self.processor.end_ids[0]]) for t in texts]
        pairs = torch.tensor([[texts.index(text) for text in r.texts] for r in ratings])
        labels = torch.tensor([rating.label for rating in ratings])
        prompt = self.processor.prompt(example.id, example.images, example.question)
        return Labelled(prompt, ids, ends(ids), labels, pairs)

    def of_step(self, step: int) -> list[Labelled]:
        """Those of a training step: epoch after epoch."""
        places = places_of_step(step, self.cfg)
        return [self.train[place % len(self.train)] for place in places]

    def held_out(self) -> Iterator[tuple[str, list[Labelled]]]:
        """(split, its pairs)."""
        yield "held_out", self.apart


# ---- training ------------------------------------------------------------------------------------


def gradient(model: ScoredVLM, groups: list[Labelled], size: int) -> float:
    """Add the gradient of the mean loss over all labels of a step; returns that loss."""
    count, total = sum(len(group.labels) for group in groups), 0.0
    for chunk in in_chunks([group for group in groups if len(group.labels)], size):
        parts = zip(scores_of(model, chunk), chunk, strict=True)
        loss = sum(group_loss(scores, group) for scores, group in parts) / count
        loss.backward()
        total += loss.item()
    return total


def train(cfg: VerifierConfig) -> dict[str, dict[str, float]]:
    """Train a verifier and write its directory; returns how good it is on each held-out split."""
    setup = prepare(cfg)
    cfg = setup.cfg
    source = Rated(setup) if cfg.labels == "preference" else Sampled(setup)
    model, size = ScoredVLM(setup.model), cfg.groups_per_micro_batch or MOST_GROUPS
    optimizer = Optimizer(model, cfg)
    directory = cfg.output_dir or new_run_directory(f"{cfg.task}-{cfg.labels}")
    bar = trange(cfg.max_steps, unit="step", disable=None)
    for step in bar:
        loss = gradient(model, source.of_step(step), size)
        optimizer.clip_grad_norm(cfg.max_grad_norm)
        optimizer.step(progress=step / cfg.max_steps)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if bar.disable and (step % 10 == 9 or step == 0):
            print(f"step {step + 1}: loss {loss:.3f}")
    held_out = dict(source.held_out())
    results = {split: quality(model, groups, size) for split, groups in held_out.items()}
    about = {"labels": cfg.labels, "task": cfg.task, "prompt_mode": cfg.prompt_mode}
    about |= {"scale": scale_of(model, held_out["held_out"], size), "quality": results}
    if cfg.solver is not None:
        solver = source.solver
        place = str(solver.directory.resolve())
        about["solver"] = {"model": place, "max_completion_length": solver.length}
    save_verifier(model, directory, cfg.model, about)
    for split, metrics in results.items():
        print(f"{cfg.labels} {split}: {json.dumps({k: round(v, 4) for k, v in metrics.items()})}")
    print(f"verifier: {directory}")
    return results


def main(argv: list[str] | None = None) -> None:
    train(config.parse(VerifierConfig, argv, __doc__, task=TASKS))


if __name__ == "__main__":
    lower = "--prompts_per_step, --num_generations, --max_completion_length, --max_pixels"
    console.run(main, trains=True, memory_flags=lower)
