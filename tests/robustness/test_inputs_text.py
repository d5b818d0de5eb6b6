"""What a model may say and what a reward function may do. Numbers are of the campaign.

Whatever is sampled is worth 0 or what it says, is never run, and is shown as text; whatever a
reward function does, the run learns from the other completions or ends with its last step saved.
Run: pytest tests/robustness/test_inputs_text.py
"""

import ast
import json
import math
import re
from itertools import product

import pytest
import torch

import config
import report
import sample
import train_grpo
from data.examples import Example
from data.files import SkipLog
from kernels import group_advantages
from model.processor import Processor
from model.weights import load_model
from reporting.metrics import completion_records, rollout_metrics
from reporting.run_log import RunLog
from rewards import FORMATS, Reward, classification_reward
from runtime import console
from runtime.errors import json_line
from sample import Rollout, generate_group
from tasks.task import Task
from tests.helpers import backward, make_groups, rows
from tests.model.test_shared_prefix import gradients, some_groups
from tests.reporting.test_report import Tags
from tests.robustness.test_security import SOURCES
from tests.test_answers import CODE, takes_under
from tests.test_rewards import KINDS, wrap
from tests.training.test_run import flags
from train_grpo import GRPOConfig

ROSE = Example("e", (), "?", "rose")
ANY_NAME = Task("fake", [], {}, lambda *_: Reward(0.0, {}), lambda *_: {})


@pytest.fixture(scope="module")
def tiny(tiny_dir):
    return load_model(tiny_dir), Processor(tiny_dir)


@pytest.mark.case("I39")
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_i39_a_completion_that_is_its_end_token_alone_has_one_token_and_a_finite_loss(
    tiny, loss_type
):
    model, processor = tiny
    cfg = GRPOConfig(loss_type=loss_type, num_generations=4, max_completion_length=40)
    prompts, completions = some_groups(processor)
    end = torch.tensor(processor.end_ids[:1])
    completions[0][0] = completions[1][2] = end
    completions[2] = [end] * 4  # a whole group that says nothing
    ids = sum(completions, [])
    texts = [processor.decode(row) for row in ids]
    assert texts[0] == "" and classification_reward(texts[0], "rose").total == 0.0
    rewards = torch.arange(12.0).view(3, 4)  # no group has zero std, so every token is trained
    logps = [torch.full((len(row),), -4.0) for row in ids]
    rollout = Rollout(ids, logps, ["stop"] * 12, texts)
    groups = make_groups(prompts, rollout, group_advantages(rewards), cfg)
    assert [len(g.weights) for g in groups][2] == 4 and float(groups[2].weights.min()) > 0
    totals = backward(model, None, groups, processor.suppressed_tokens, cfg)
    grads = gradients(model)
    assert totals["tokens"] == sum(map(len, ids)) and math.isfinite(totals["loss"])
    assert grads and all(torch.isfinite(g).all() for g in grads.values())
    rollout.rewards, rollout.parts = rewards, [{"correct": 0.0}] * 12
    metrics = rollout_metrics(rollout, [ROSE] * 3, ANY_NAME)
    assert metrics["completions/min_length"] == 1.0


@pytest.mark.case("I40")
def test_i40_completions_without_an_end_are_scored_as_they_are_and_counted(tiny, monkeypatch):
    model, processor = tiny
    prompts, _ = some_groups(processor)
    monkeypatch.setattr(processor, "end_ids", [processor.cfg.image_token_id])  # never sampled
    rollout = generate_group(model, processor, prompts, 2, 5)
    assert {len(row) for row in rollout.ids} == {5} and set(rollout.finish) == {"length"}
    rollout.finish[0] = "stop"
    rollout.rewards, rollout.parts = torch.zeros(3, 2), [{"correct": 0.0}] * 6
    metrics = rollout_metrics(rollout, [ROSE] * 3, ANY_NAME)
    assert metrics["completions/clipped_ratio"] == pytest.approx(5 / 6)
    cut = "<answer>rose</answer> because"
    assert classification_reward(cut, "rose").parts == {"correct": 1.0, "format": 0.0}


@pytest.mark.case("I56", "I57", "I58")
@pytest.mark.parametrize("text", CODE.values(), ids=CODE)
def test_i57_i58_text_that_looks_like_code_is_worth_nothing_and_runs_nothing(
    text, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for (reward, (target, _)), mode, dense in product(KINDS.items(), FORMATS, (0.0, 1.0)):
        earned = reward(wrap(text), target, mode, dense=dense)
        assert not any(v for part, v in earned.parts.items() if part != "format"), earned
        assert takes_under(0.05, lambda r=reward, t=target: r(wrap(text), t, dense=1.0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case("I59")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wanted", ["<|image_pad|>", "<|im_start|>", "<|vision_start|>"])
def test_i59_a_policy_that_wants_a_control_token_cannot_say_it(
    tiny, monkeypatch, temperature, wanted
):
    model, processor = tiny
    prompts, _ = some_groups(processor)
    token, original = processor.tokenizer.convert_tokens_to_ids(wanted), type(model).logits

    def eager(self, hidden):
        logits = original(self, hidden)
        logits[:, token] = 1e4  # all of the probability, if it were allowed
        return logits

    expected = generate_group(model, processor, prompts, 3, 8, temperature)
    monkeypatch.setattr(type(model), "logits", eager)
    found = generate_group(model, processor, prompts, 3, 8, temperature)
    assert all(map(torch.equal, found.ids, expected.ids))  # as if it were not there
    assert all(map(torch.equal, found.logps, expected.logps))


# ---- where it is shown ---------------------------------------------------------------------------

MARKUP = [
    "<script>document.title='owned'</script>",
    "</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "-->",
]


@pytest.fixture
def page(tmp_path) -> str:
    """The report of a run whose question, target and completion are markup."""
    config.save(GRPOConfig(task="vqa", question=MARKUP[0]), tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval/strict": 0.5}\n')
    completion = {"tokens": MARKUP, "probabilities": [0.5] * 4, "reward": 0.0, "boxes": None}
    completion |= {"parts": {MARKUP[2]: 1.0}, "finish": MARKUP[0], "advantage": 0.0, "heat": []}
    completion["has_answer"] = False
    row = {"view": "held_out", "step": 0, "id": MARKUP[1], "question": MARKUP[0], "images": []}
    row |= {"target": MARKUP[3], "boxes": None, "completions": [completion]}
    (tmp_path / "gallery.jsonl").write_text(json.dumps(row) + "\n")
    report.main([str(tmp_path)])
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.case("I61")
def test_i61_markup_is_shown_as_text_under_a_policy_that_forbids_everything(page):
    tags = Tags(page)
    assert not {"script", "img", "a", "link", "iframe", "object", "base"} & set(tags.elements)
    assert not any(name.startswith("on") for name, _ in tags.attributes)
    assert all(text in tags.text for text in MARKUP)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.index("Content-Security-Policy") < page.index("<style") < page.index("<body")


LOOKS_LIKE_A_FORMAT = ["[/bold][red]", "{x} {0} {", "%d %s %(x)s %", "\\x1b[31m \\n"]


@pytest.mark.case("I62")
def test_i62_text_that_looks_like_a_format_is_printed_and_logged_as_it_is(
    tiny_dir, tmp_path, monkeypatch, capsys
):
    texts = LOOKS_LIKE_A_FORMAT
    ids, logps = [torch.ones(1, dtype=torch.int64)] * 4, [torch.zeros(1)] * 4
    parts, zeros = [{name: 0.0} for name in texts], torch.zeros(1, 4)
    rollout = Rollout(ids, logps, ["stop"] * 4, texts, zeros, parts, zeros)
    monkeypatch.setattr(sample, "generate_group", lambda *_: rollout)
    sample.main(["--model", str(tiny_dir), "--target", "{x} %d"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "log-probability" in line] == [
        f"{text}  [1 tokens, log-probability 0.00, stop]" for text in texts
    ]
    log = RunLog(GRPOConfig(output_dir=tmp_path / "run"), {})
    example = Example(texts[1], (), texts[2], texts[0])
    log.append("completions.jsonl", completion_records(1, [example], rollout))
    log.lap("rollout")
    row = {"step": 1, "reward": 0.0, "completions/mean_length": 1.0, "completion_tokens": 4}
    log.step(row | {f"rewards/{text}/mean": 0.0 for text in texts})
    log.close()
    records = rows(tmp_path / "run" / "completions.jsonl")
    assert [row["completion"] for row in records] == texts and records[0]["target"] == texts[0]
    assert "{x} {0} { 0.00" in capsys.readouterr().out  # the name of a part
    skips = SkipLog()
    for text in texts:
        skips.add("unreadable", text)
    skips.check(1000)
    printed = capsys.readouterr().out
    assert all(text in printed for text in texts)


@pytest.mark.case("I62")
@pytest.mark.parametrize("text", LOOKS_LIKE_A_FORMAT)
def test_i62_an_error_that_quotes_a_format_is_one_line(capsys, text):
    for flag in ("--model", "--task", "--shots", f"--{text}"):
        with pytest.raises(SystemExit) as stop:
            console.run(lambda flag=flag: train_grpo.main([flag, text]))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
        assert text.split()[0] in error


@pytest.mark.case("I63")
def test_i63_nothing_is_exported_that_a_spreadsheet_would_run():
    """All that is written is JSON, HTML or tensors: there is no CSV that `=cmd|...` could enter."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert not {"csv", "pandas", "openpyxl", "to_csv", "to_excel"} & names, path
        texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        assert not any(str(t).endswith((".csv", ".tsv", ".xlsx")) for t in texts), path


@pytest.mark.case("I64")
def test_i64_a_reward_that_begins_to_fail_ends_the_run_with_its_last_step_saved(
    tiny_dir, tmp_path, capsys
):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from pathlib import Path\n"
        "def pay(completions, example):\n"
        f"    with open({str(tmp_path / 'calls')!r}, 'a') as file:\n"
        "        file.write('x')\n"
        f"    if Path({str(tmp_path / 'calls')!r}).stat().st_size > 4:\n"
        "        raise OSError('server is away')\n"
        "    return [len(c) % 2 for c in completions]\n"
    )
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        console.run(lambda: train_grpo.main(flags(tiny_dir, out, "--reward", f"{mine}:pay")))
    output, err = capsys.readouterr()
    error = err.strip().splitlines()[-1]
    assert stop.value.code == 2 and "server is away" in err
    assert (
        error.startswith("error: ")
        and "16 of the last 48 completions" in error
        and "exception" in error
    )
    assert max(path.name for path in out.glob("step_*")) == "step_2"
    assert f"--resume_from_checkpoint {out}" in output


@pytest.mark.parametrize(
    "char", ["\u202e", "\u200b", "\ufeff", "\u2028", "\x7f", "\x9b", "\U000e0041"]
)
def test_logs_hold_no_raw_character_that_hides_or_turns_text(char):
    line = json_line({"completion": f"a{char}b Größe 花 \u200d"})
    assert char not in line and "Größe 花" in line and line.endswith("\n")
    assert json.loads(line)["completion"] == f"a{char}b Größe 花 \u200d"
