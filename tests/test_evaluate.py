"""What evaluate.py guarantees: the counts are right, and how the work is cut changes no answer.

The model is a very small random one, so the scores come from made-up tasks whose right answer the
test knows. The command line is tested on the garden. Run: pytest tests/test_evaluate.py
"""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import evaluate as script
from answers import parse_answer
from data.examples import Example
from data.garden.drawing import draw_flower
from data.garden.world import RL_SPECIES
from evaluate import main
from model.processor import Processor
from model.weights import load_model
from rewards import Reward, name_correct
from runtime import console
from runtime.errors import InputError
from tasks.loose import loose_name_correct
from tasks.task import Task
from training.evaluation import bootstrap_interval, evaluate, headline_interval, wilson_interval

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


# ---- the interval --------------------------------------------------------------------------------


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


# ---- evaluate ------------------------------------------------------------------------------------


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
    assert metrics["n"] == len(records) == 10
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


def test_loose_stands_beside_strict_and_not_instead_of_it(model, processor, examples):
    # Whatever the model says, it is judged as if it had said the genus alone.
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


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_the_batch_size_changes_no_greedy_answer(batch_size, model, processor, examples, greedy):
    _, records = evaluate(model, processor, fake_task(), examples, LENGTH, batch_size=batch_size)
    assert answers(records) == answers(greedy)


def test_the_batch_size_changes_no_sampled_answer_and_the_seed_does(model, processor, examples):
    def sampled(batch_size, seed):
        task = fake_task()
        return answers(evaluate(model, processor, task, examples, LENGTH, 1.0, batch_size, seed)[1])

    assert sampled(2, 0) == sampled(10, 0) != sampled(10, 1)


def test_the_seed_changes_no_greedy_answer(model, processor, examples, greedy):
    _, records = evaluate(model, processor, fake_task(), examples, LENGTH, seed=9)
    assert answers(records) == answers(greedy)


def test_no_answer_is_longer_than_allowed_and_weights_stay(model, processor, examples):
    before = {name: p.clone() for name, p in model.named_parameters()}
    _, records = evaluate(model, processor, fake_task(), examples, 2)
    assert all(1 <= record["length"] <= 2 for record in records)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


# ---- the command line ----------------------------------------------------------------------------

SHORT = ["--max_completion_length", "8", "--device", "cpu"]


def test_the_command_line_prints_both_splits_and_writes_every_answer(tiny_dir, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    main(["--model", str(tiny_dir), "--held_out_per_class", "1", "--output", str(output), *SHORT])
    line, ood = capsys.readouterr().out.splitlines()
    assert ood.startswith("cls ood, 10 questions: strict ")
    number = r"(\d+\.\d)%"
    shape = (
        rf"cls held_out, 30 questions: strict {number} \[{number}, {number}\], loose {number}, "
        rf"format {number}, mean length (\d+\.\d) tokens, \d+\.\d s"
    )
    strict, low, high, loose, form, length = map(float, re.fullmatch(shape, line).groups())
    records = [json.loads(row) for row in output.read_bytes().splitlines()]
    assert len(records) == len({r["id"] for r in records}) == 40
    assert [r["split"] for r in records] == ["held_out"] * 30 + ["ood"] * 10
    records = records[:30]
    assert {r["target"] for r in records} == {s.name for s in RL_SPECIES}
    for shown, name in ((strict, "strict"), (loose, "loose"), (form, "format")):
        assert shown == pytest.approx(100 * sum(r[name] for r in records) / 30, abs=0.051)
    assert low <= strict <= high
    assert length == pytest.approx(sum(r["length"] for r in records) / 30, abs=0.051)


@pytest.mark.parametrize("split, n", [("ood", 10), ("val", 30), ("train", 30)])
def test_every_split_of_the_garden_can_be_judged(split, n, tiny_dir, capsys):
    main(["--model", str(tiny_dir), "--split", split, "--held_out_per_class", "1", *SHORT])
    assert capsys.readouterr().out.startswith(f"cls {split}, {n} questions: strict")


def refusal(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        console.run(lambda: main([*argv, "--held_out_per_class", "1"]))
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_an_unknown_split_is_one_line_with_the_splits_there_are(tiny_dir, capsys):
    message = refusal(capsys, "--model", str(tiny_dir), "--split", "test")
    assert "--split test" in message and "held_out, ood, val, train" in message


def test_a_missing_checkpoint_is_one_line(tmp_path, capsys):
    assert f"--model {tmp_path / 'gone'}" in refusal(capsys, "--model", str(tmp_path / "gone"))


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tiny_dir, tmp_path, capsys):
    for output in (tmp_path, tmp_path / "gone" / "answers.jsonl"):
        assert f"--output {output}" in refusal(
            capsys, "--model", str(tiny_dir), "--output", str(output)
        )


@pytest.mark.parametrize(
    "flag, value",
    [("--batch_size", "0"), ("--shots", "0"), ("--temperature", "nan"), ("--temperature", "-1")]
    + [("--max_completion_length", "0"), ("--device", "quantum")],
)
def test_an_impossible_value_is_one_line_that_names_the_flag(flag, value, tiny_dir, capsys):
    assert flag in refusal(capsys, f"{flag}={value}", "--model", str(tiny_dir))


def said(answer: str) -> str:
    return f"<think>x</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    "texts, elected",
    [
        ([said("2")], 0),
        ([said("3"), said("2"), said("2")], 1),
        ([said("3"), said("2"), said("2"), said("3")], 0),  # a tie: who came first
        (["2", "2", said("5")], 2),  # no answer, no vote
        (["2", "nonsense"], 0),
    ],
)
def test_the_most_frequent_answer_speaks_for_all(texts, elected):
    assert script.majority(texts) == elected


def test_votes_need_completions_that_differ():
    with pytest.raises(InputError, match="--votes 4: must be 1 where --temperature is 0"):
        script.EvalConfig(votes=4)


def test_a_vote_draws_so_many_completions_and_counts_one_answer_each(monkeypatch, capsys):
    drawn, generate = [], script.generate_group
    monkeypatch.setattr(
        script,
        "generate_group",
        lambda *args: drawn.append(args[3]) or generate(*args),
    )
    words = "--task count --held_out_size 12 --split held_out --votes 5 --temperature 1"
    main(words.split())
    assert drawn == [5]
    assert "count held_out, 12 questions" in capsys.readouterr().out
