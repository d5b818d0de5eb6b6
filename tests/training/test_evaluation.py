"""Evaluation: the counts are right, and how the work is cut changes no answer.

The model is a very small random one, so the scores come from made-up tasks whose right answer the
test knows. tests/test_evaluate.py has the command line.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from answers import parse_answer, parse_number
from config import TaskConfig
from data.examples import Example
from data.garden.drawing import draw_flower
from data.garden.world import RL_SPECIES
from model.processor import Processor
from model.weights import load_model
from rewards import Reward, name_correct
from runtime.errors import InputError
from tasks.loose import loose_name_correct
from tasks.task import Task
from training import search
from training.evaluation import (
    answer_shares,
    bootstrap_interval,
    evaluate,
    headline_interval,
    usable_splits,
    wilson_interval,
)
from training.setup import warn_of_long_targets

LENGTH = 12


@pytest.fixture(scope="module")
def model(tiny_dir):
    return load_model(tiny_dir, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def processor(tiny_dir):
    return Processor(tiny_dir)


@pytest.fixture(scope="module")
def examples():
    return [
        Example(f"e{i}", (draw_flower(species.flower, seed=i),), "Which species?", species.name)
        for i, species in enumerate(RL_SPECIES[:10])
    ]


def fake_task(strict=lambda text, target: 0.0, loose=lambda text, target: 1.0, format=len) -> Task:
    def scores(text, example):
        target = example.target
        return {
            "strict": strict(text, target),
            "loose": loose(text, target),
            "format": format(text),
        }

    return Task("fake", [], {}, lambda *_: Reward(0.0, {}), scores)


def answers(records: list[dict]) -> list[tuple[str, int]]:
    return [(record["text"], record["length"]) for record in records]


@pytest.fixture(scope="module")
def greedy(model, processor, examples):
    metrics, records = evaluate(model, processor, fake_task(), examples, LENGTH)
    assert len({record["text"] for record in records}) > 1  # else the tests below show nothing
    return records


@pytest.mark.parametrize(
    "p, n, low, high",
    [
        (0.5, 100, 0.4038, 0.5962),
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        (0.1, 10, 0.0179, 0.4042),
        (0.9, 10, 0.5958, 0.9821),
        (1.0, 1, 0.2065, 1.0),
    ],
)
def test_wilson_intervals_are_those_of_the_textbook(p, n, low, high):
    assert wilson_interval(p, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_intervals_hold_the_fraction_and_shrink_with_more_trials():
    for n in (1, 7, 30, 1000):
        for k in range(0, n + 1, max(1, n // 7)):
            low, high = wilson_interval(k / n, n)
            assert 0 <= low <= k / n <= high <= 1 and low < high
    widths = [high - low for low, high in (wilson_interval(0.3, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)


def test_a_bootstrap_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(0.6, 0.2, 400)
    low, high = bootstrap_interval(lambda index: float(values[index].mean()), 400, 2000)
    reach = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.003)
    assert bootstrap_interval(lambda index: float(values[index].mean()), 400, 2000) == (low, high)


def test_the_headline_metric_decides_the_interval(examples):
    records = [{"text": str(i), "strict": float(i < 3), "iou": i / 10} for i in range(10)]
    share = Task("fake", [], {}, None, None)
    assert headline_interval(share, examples, records) == wilson_interval(0.3, 10)
    low, high = headline_interval(replace(share, headline="iou"), examples, records)
    assert 0.2 < low < 0.45 < high < 0.7
    # a metric of the whole split is recomputed on resampled questions, each with its own text
    pairs = {(example.id, str(i)) for i, example in enumerate(examples)}

    def summary(drawn, texts):
        assert {(e.id, t) for e, t in zip(drawn, texts, strict=True)} <= pairs
        return {"mAP": len(set(texts)) / len(texts)}

    whole = replace(share, headline="mAP", summary=summary)
    low, high = headline_interval(whole, examples, records)
    assert 0.3 <= low < high <= 0.9


@pytest.mark.parametrize(
    "said, shares",
    [
        (["2"] * 10, (0.0, 1.0, 0.4)),  # one answer to all
        (["2", "2.0", "2.", "+2", *"345678"], (0.0, 0.4, 0.4)),  # equal numbers, spelt otherwise
        ([None, "two", *"12345678"], (0.2, 0.1, 0.4)),  # most frequent of those that can be read
        ([None] * 10, (1.0, 0.0, 0.4)),
    ],
)
def test_the_most_frequent_answer_is_counted_beside_the_most_frequent_target(said, shares):
    examples = [Example(f"e{i}", (), "?", target) for i, target in enumerate("2222345678")]
    task = replace(fake_task(), read=lambda answer, _: parse_number(answer))
    texts = ["hm" if answer is None else f"<answer>{answer}</answer>" for answer in said]
    records = [{"answer": task.answer(t, e)} for t, e in zip(texts, examples, strict=True)]
    found = answer_shares(task, examples, records)
    names = ("no_answer_ratio", "top_answer_share", "top_target_share")
    assert tuple(found[name] for name in names) == pytest.approx(shares)


def test_the_counts_add_up(model, processor, examples):
    right = {e.target for e in examples[:3]}
    task = fake_task(
        strict=lambda text, target: float(target in right),
        loose=lambda text, target: float(target in right or target == examples[5].target),
        format=lambda text: 1.0,
    )
    metrics, records = evaluate(
        model, processor, task, examples, LENGTH, batch_size=4, with_interval=True
    )
    assert (metrics["strict"], metrics["loose"], metrics["format"]) == (0.3, 0.4, 1.0)
    assert metrics["n"] == len(records) == 10 and metrics["top_target_share"] == 0.1
    assert metrics["no_answer_ratio"] == sum(r["answer"] is None for r in records) / 10
    assert (metrics["strict_low"], metrics["strict_high"]) == wilson_interval(0.3, 10)
    assert metrics["mean_length"] == sum(r["length"] for r in records) / 10
    assert [(r["id"], r["target"]) for r in records] == [(e.id, e.target) for e in examples]
    assert [r["strict"] for r in records] == [1.0] * 3 + [0.0] * 7


def test_every_score_is_of_the_own_text_and_target(model, processor, examples, greedy):
    said = {record["target"]: record["text"] for record in greedy}
    task = fake_task(
        strict=lambda text, target: float(said[target] == text),
        loose=lambda text, target: float(len(text)),
        format=lambda text: float(text.count("e")),
    )
    _, records = evaluate(model, processor, task, examples, LENGTH, batch_size=3)
    for record in records:
        assert record["strict"] == 1.0
        assert record["loose"] == len(record["text"])
        assert record["format"] == record["text"].count("e")


def test_loose_is_printed_beside_strict_and_not_instead_of_it(model, processor, examples):
    # Whatever the model says, it is scored as if it had said the genus alone.
    def said(target):
        return f"<think>x</think><answer>{target.split()[0]}</answer>"

    task = fake_task(
        strict=lambda text, target: name_correct(parse_answer(said(target)), target),
        loose=lambda text, target: loose_name_correct(said(target), target),
        format=lambda text: 1.0,
    )
    metrics, records = evaluate(model, processor, task, examples, LENGTH, with_interval=True)
    assert (metrics["strict"], metrics["loose"]) == (0.0, 1.0)
    assert metrics["strict_high"] < 0.3 and {(r["strict"], r["loose"]) for r in records} == {(0, 1)}


@pytest.mark.parametrize("batch_size, seed", [(1, 0), (3, 9), (10, 0)])
def test_batch_size_and_seed_change_no_greedy_answer(
    batch_size, seed, model, processor, examples, greedy
):
    task = fake_task()
    _, records = evaluate(model, processor, task, examples, LENGTH, 0.0, batch_size, seed)
    assert answers(records) == answers(greedy)


def test_the_batch_size_changes_no_sampled_answer_and_the_seed_does(model, processor, examples):
    def sampled(batch_size, seed):
        task = fake_task()
        return answers(evaluate(model, processor, task, examples, LENGTH, 1.0, batch_size, seed)[1])

    assert sampled(2, 0) == sampled(10, 0) != sampled(10, 1)


def test_no_answer_is_longer_than_allowed_and_weights_stay(model, processor, examples):
    before = {name: p.clone() for name, p in model.named_parameters()}
    _, records = evaluate(model, processor, fake_task(), examples, 2)
    assert all(1 <= record["length"] <= 2 for record in records)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def completion(answer: str) -> str:
    return f"<think>x</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    "texts, index",
    [
        ([completion("2")], 0),
        ([completion("3"), completion("2"), completion("2")], 1),
        (
            [completion("3"), completion("2"), completion("2"), completion("3")],
            0,
        ),  # a tie: who came first
        (["2", "2", completion("5")], 2),  # no answer, no vote
        (["2", "nonsense"], 0),
    ],
)
def test_the_most_frequent_answer_counts(texts, index):
    assert search.majority(texts) == index


def test_a_vote_draws_so_many_completions_and_counts_one_answer_each(
    model, processor, examples, monkeypatch
):
    counts, generate = [], search.sample_episodes

    def counted(*args, **more):
        counts.append(args[5])
        return generate(*args, **more)

    monkeypatch.setattr(search, "sample_episodes", counted)
    task = fake_task()
    metrics, records = evaluate(model, processor, task, examples, LENGTH, 1.0, votes=5)
    assert counts == [5] and len(records) == metrics["n"] == 10


def test_a_broken_chat_template_is_blamed_on_the_model_and_not_on_the_data(tiny_dir, examples):
    processor = Processor(tiny_dir)
    processor.tokenizer.chat_template = "{{ raise_exception('no pictures') }}"
    with pytest.raises(InputError, match="chat template cannot be rendered") as error:
        usable_splits({"train": examples}, processor, TaskConfig())
    assert "--data" not in str(error.value) and str(tiny_dir) in str(error.value)


@pytest.mark.parametrize("name, fits", [("rose", True), ("a rose of a very long name", False)])
def test_right_answers_longer_than_a_completion_are_said_with_the_numbers(
    processor, examples, capsys, name, fits
):
    task = replace(fake_task(), train=[replace(examples[0], target=name), *examples[1:]])
    needed = len(processor.encode(f"<answer>{name}</answer>")) + 1
    longest = max(len(processor.encode(f"<answer>{e.target}</answer>")) + 1 for e in examples)
    limit = max(longest, needed) - (not fits)
    warn_of_long_targets(task, processor, limit)
    said = capsys.readouterr().out
    assert ("warning: " in said) != fits
    if not fits:
        assert f"1 of 10 right answers do not fit into --max_completion_length {limit}" in said
        assert f"has {needed} tokens" in said
