"""Rewards of statements: an untrue one costs on its own tokens, and nowhere else."""

from dataclasses import replace

import pytest
import torch

import train_grpo
from config import BASE_MODEL, TaskConfig
from data.examples import completion_text
from model.processor import Processor
from runtime.errors import InputError
from sample import Rollout
from tasks import load_task
from tests.helpers import step_rows
from train_grpo import GRPOConfig
from training.process import (
    check_process,
    statement_metrics,
    thought_shares,
    token_advantages,
    token_after,
    untrue_tokens,
)


@pytest.fixture(scope="module")
def processor():
    return Processor(BASE_MODEL)


@pytest.fixture(scope="module")
def task(processor):
    cfg = TaskConfig(task="count", train_size=24, held_out_size=4)
    return load_task(cfg, processor)


@pytest.fixture(scope="module")
def example(task):
    """One whose thought has a sum."""
    return next(e for e in task.train if "+" in e.reasoning.thought)


def tokens(text: str, processor) -> torch.Tensor:
    return torch.tensor([*processor.encode(text), processor.end_ids[0]])


def exact(example) -> str:
    return completion_text(example.target, "think", example.reasoning)


def said_by(ids, is_untrue, processor) -> str:
    return processor.decode(ids[is_untrue])


def test_a_true_thought_costs_nothing(task, processor):
    for example in task.train:
        text = exact(example)
        ids = tokens(text, processor)
        assert not untrue_tokens(ids, text, example, task, processor).any()


def test_an_untrue_statement_costs_on_its_own_tokens(task, example, processor):
    first, *others = example.reasoning.thought.split(", ")
    other = "blue" if first != "blue" else "red"
    thought = ", ".join([other, *others])
    text = f"<think>{thought}</think><answer>{example.target}</answer>"
    ids = tokens(text, processor)
    untrue = untrue_tokens(ids, text, example, task, processor)
    assert other in said_by(ids, untrue, processor)
    assert not untrue[-3:].any()  # the answer is no statement
    whole = processor.decode(ids)
    start = whole.index(other)
    inside = [
        token_after(ids, start + 1, processor) - 1,
        token_after(ids, start + len(other), processor),
    ]
    assert untrue[inside[0] : inside[1]].all()


def test_only_tokens_of_the_statement_lose_and_by_the_weight(task, example, processor):
    text = "<think>9 purple</think><answer>1</answer>"
    right = exact(example)
    ids = [tokens(text, processor), tokens(right, processor)]
    rollout = Rollout(ids, [], ["stop"] * 2, [text, right], advantages=torch.tensor([[-0.5, 0.5]]))
    low, high = token_advantages(rollout, [example], task, processor, weight=0.25)
    assert set(low.tolist()) == {-0.5, -0.75} and set(high.tolist()) == {0.5}
    lost = low < -0.6
    assert "9 purple" in processor.decode(ids[0][lost]) and int(lost.sum()) < len(low) - 4


@pytest.mark.parametrize("characters", [0, 1, 7, 12, 30])
def test_characters_are_found_among_the_tokens(processor, characters):
    text = "<think>red, blue, red: 3 flowers</think><answer>3</answer>"
    ids = tokens(text, processor)
    count = token_after(ids, characters, processor)
    assert len(processor.decode(ids[:count])) >= characters
    assert count == 0 or len(processor.decode(ids[: count - 1])) < characters


def test_the_log_counts_true_untrue_and_unreadable_statements(task, example):
    texts = [exact(example), "<think>9 purple, la la la</think><answer>1</answer>"]
    rollout = Rollout([], [], [], texts)
    statements = [s for text in texts for s in task.statements(text, example)]
    true = sum(s.is_true is True for s in statements)
    metrics = statement_metrics(rollout, [example], task)
    assert metrics["statements/mean_count"] == len(statements) / 2
    assert metrics["statements/true_ratio"] == pytest.approx(true / (true + 1))
    assert metrics["statements/unreadable_ratio"] == pytest.approx(1 / len(statements))


def test_a_right_answer_without_grounds_is_not_faithful(task):
    examples = task.train[:2]
    texts = [exact(examples[0]), f"<think>9 purple</think><answer>{examples[1].target}</answer>"]
    records = [{"text": text, "strict": 1.0} for text in texts]
    shares = thought_shares(task, examples, records)
    assert shares["faithful"] == 0.5 and 0.5 < shares["true_statements"] < 1
    assert thought_shares(replace(task, statements=None), examples, records) == {}


def test_what_cannot_be_checked_is_refused(task):
    outside = replace(task, statements=None)
    with pytest.raises(InputError, match="nobody knows the facts"):
        check_process(GRPOConfig(untrue_weight=0.5), outside)
    sequence = dict(importance_sampling_level="sequence", epsilon=0.05, num_iterations=2)
    with pytest.raises(InputError, match="whole completions"):
        check_process(GRPOConfig(untrue_weight=0.5, **sequence), task)
    with pytest.raises(InputError, match="--dynamic_sample"):
        check_process(GRPOConfig(untrue_weight=0.5, dynamic_sample=True), task)
    check_process(GRPOConfig(), outside)


def test_a_run_charges_for_untrue_statements_and_says_so(tmp_path):
    line = "--task count --max_steps 2 --train_size 8 --held_out_size 8 --prompts_per_step 2"
    line += " --num_generations 4 --report_prompts 1 --untrue_weight 0.5 --device cpu"
    train_grpo.main([*line.split(), "--output_dir", str(tmp_path / "run")])
    rows = step_rows(tmp_path / "run")
    assert all(row["statements/mean_count"] > 1 for row in rows)
    assert all(0 < row["statements/true_ratio"] <= 1 for row in rows)
