"""Guarantees of train_sft.py: what is imitated, how it is averaged, and what a run leaves.

The loss is the mean negative log-probability of exactly the response tokens, end token included,
whatever the micro-batches; reasoning texts are those of the source or of a file; a run ends with a
checkpoint that evaluate.py evaluates with the prompt it was trained with.
"""

import json
from types import SimpleNamespace

import pytest
import torch

import evaluate
import train_sft
from config import BASE_MODEL
from data.examples import Example, Reasoning, completion_text
from model.processor import Processor
from model.weights import load_model
from rewards import WEIGHTS
from runtime.errors import InputError
from tasks import TASKS, load_task
from tasks.task import Task
from tests.model.test_shared_prefix import separate_logps, some_groups
from train_sft import SFTConfig
from training.batches import Group
from training.micro_batches import MicroBatches, as_numbers


@pytest.fixture(scope="module")
def tiny(tiny_dir):
    return load_model(tiny_dir), Processor(tiny_dir)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on the bundled base."""
    directory = tmp_path_factory.mktemp("sft") / "run"
    words = "--task count --max_steps 12 --held_out_size 40 --train_size 16 --learning_rate 2e-4"
    train_sft.main([*words.split(), "--output_dir", str(directory)])
    return directory


def imitation(tiny, cfg):
    """Loss and gradients of three prompts with ragged responses, and what went in."""
    model, processor = tiny
    prompts, completions = some_groups(processor)
    responses = [completions_of_prompt[0] for completions_of_prompt in completions]
    C = sum(map(len, responses))
    groups = [
        Group(prompt, [ids], weights=torch.full((len(ids),), 1.0 / C))
        for prompt, ids in zip(prompts, responses, strict=True)
    ]
    micro_batches = MicroBatches(model, SimpleNamespace(zero_grad=model.zero_grad), cfg)
    for batch in micro_batches.split(groups):
        loss = train_sft.imitation_loss(model, batch)
        loss.backward()
        micro_batches.add({"loss": loss.detach()})
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return as_numbers(micro_batches.totals)["loss"], gradients, prompts, responses


def test_the_loss_is_the_mean_over_response_tokens_of_a_plain_forward(tiny):
    model, _ = tiny
    loss, gradients, prompts, responses = imitation(tiny, SFTConfig())
    model.zero_grad()
    total = 0.0
    for prompt, response in zip(prompts, responses, strict=True):
        suppressed = torch.zeros(model.cfg.text.vocab_size, dtype=torch.bool)  # none is suppressed
        total = total - separate_logps(model, prompt, response, 1.0, suppressed).sum()
    expected = total / sum(map(len, responses))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if name in gradients:
            scale = parameter.grad.abs().max().clamp(min=1e-3)
            assert (gradients[name] - parameter.grad).abs().max() < 1e-5 * scale, name


@pytest.mark.case("O5")
@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_change_nothing(tiny, size):
    loss, gradients, *_ = imitation(tiny, SFTConfig())
    again, others, *_ = imitation(tiny, SFTConfig(groups_per_micro_batch=size))
    assert again == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        difference = (others[name] - gradient).abs().max()
        assert difference < 1e-5 * gradient.abs().max().clamp(min=1e-3), name


@pytest.mark.parametrize(
    "mode, text",
    [
        ("direct", "<answer>3</answer>"),
        ("think", "<think>red, red, blue: 3</think><answer>3</answer>"),
        (
            "steps",
            "<summary>count</summary><caption>red, red, blue</caption>"
            "<reasoning>red, red, blue: 3</reasoning><answer>3</answer>",
        ),
    ],
)
def test_a_response_is_the_answer_in_its_format_and_the_end_token(mode, text):
    processor = Processor(BASE_MODEL)
    reasoning = Reasoning("red, red, blue: 3", "red, red, blue", "count")
    example = Example("a", (), "How many?", "3", reasoning=reasoning)
    assert completion_text("3", mode, reasoning) == text
    ids = train_sft.response_ids(example, mode, processor)
    assert processor.decode(ids[:-1]) == text and ids[-1] == processor.end_ids[0]


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_garden_task_can_write_its_reasoning(name):
    cfg = SFTConfig(task=name, cot=True, prompt_mode="steps", **small(name))
    processor = Processor(BASE_MODEL)
    task = train_sft.with_reasoning(load_task(cfg, processor), cfg)
    for example in task.train[:4]:
        assert all((example.reasoning.thought, example.reasoning.summary))
        rewards = [
            task.reward(
                completion_text(example.target, mode, example.reasoning), example, WEIGHTS, 0.0
            ).total
            for mode in ("steps", "direct")
        ]
        assert rewards[0] > rewards[1]  # what is imitated is right, and in the asked-for format
        ids = train_sft.response_ids(example, "steps", processor)
        assert len(ids) <= task.max_completion_length


def small(name: str) -> dict:
    few = {"cls": {}, "ovd": {"held_out_size": 4}}
    return few.get(name, {"train_size": 8, "held_out_size": 4})


def a_task(reasoning=None) -> Task:
    return Task("t", [Example(i, (), "?", "1", reasoning=reasoning) for i in "ab"], {}, None, None)


def test_thoughts_come_from_a_file_and_a_missing_one_is_named(tmp_path):
    file = tmp_path / "thoughts.jsonl"
    rows = [{"id": "a", "thought": "one"}, {"id": "b", "thought": "two", "caption": "c"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = SFTConfig(cot=True, prompt_mode="think", cot_texts=file)
    task = train_sft.with_reasoning(a_task(), cfg)
    assert [e.reasoning for e in task.train] == [Reasoning("one"), Reasoning("two", "c")]
    file.write_text(json.dumps(rows[0]))
    with pytest.raises(InputError, match="1 training examples have no reasoning text, first 'b'"):
        train_sft.with_reasoning(a_task(), cfg)
    with pytest.raises(InputError, match="--cot_texts FILE"):
        train_sft.with_reasoning(a_task(), SFTConfig(cot=True, prompt_mode="think"))


@pytest.mark.parametrize("line", ["{", "[]", '{"thought": "x"}', '{"id": "a", "colour": 1}', "7"])
def test_a_damaged_line_of_thoughts_is_named(tmp_path, line):
    file = tmp_path / "thoughts.jsonl"
    file.write_text('{"id": "a", "thought": "x"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"thoughts.jsonl:2: (not a row|is no JSON)"):
        train_sft.read_thoughts(file)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"id": "b", "thought": None}, "the thought has to be text and not empty"),
        ({"id": "b", "thought": " "}, "the thought has to be text and not empty"),
        ({"id": "b", "thought": 3}, "the thought has to be text and not empty"),
        ({"id": "b", "thought": "x", "caption": None}, "caption and summary text"),
        ({"id": "b", "thought": "so</think>"}, "holds a tag"),
        ({"id": "a", "thought": "another"}, "the second row of id 'a'"),
    ],
)
def test_a_row_without_a_usable_thought_is_refused_with_its_number(tmp_path, row, message):
    file = tmp_path / "thoughts.jsonl"
    file.write_text('{"id": "a", "thought": "x"}\n' + json.dumps(row))
    with pytest.raises(InputError, match=f"thoughts.jsonl:2: .*{message}"):
        train_sft.read_thoughts(file)


def test_thoughts_that_no_training_example_has_are_counted(tmp_path, capsys):
    file = tmp_path / "thoughts.jsonl"
    file.write_text("\n".join(json.dumps({"id": id, "thought": "x"}) for id in "abcd"))
    train_sft.with_reasoning(a_task(), SFTConfig(cot=True, prompt_mode="think", cot_texts=file))
    assert "2 rows of --cot_texts are not trained on" in capsys.readouterr().out


def test_a_file_of_thoughts_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: is missing"):
        train_sft.read_thoughts(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "flags, complaint",
    [
        (dict(prompt_mode="think"), "--prompt_mode think: must be direct, or taken with --cot"),
        (dict(cot_texts="x"), "--cot_texts"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, complaint):
    with pytest.raises(InputError, match=complaint):
        SFTConfig(**flags)


def test_a_run_learns_and_leaves_what_a_grpo_run_leaves(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(13), 12]  # evaluations have rows of their own
    assert rows[-2]["loss"] < 0.8 * rows[1]["loss"]
    assert "eval/strict" in rows[0] and "eval/strict_low" in rows[-1]
    assert (run / "step_12" / "hf" / "model.safetensors").is_file()


def test_a_run_is_evaluated_with_the_prompt_it_was_trained_with(run, capsys):
    evaluate.main(["--run", str(run), "--split", "held_out"])
    shown = capsys.readouterr().out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert f"strict {rows[-1]['eval/strict']:.1%}" in shown
