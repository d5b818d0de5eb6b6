"""A whole run on the tiny random model: what it leaves, that it repeats, and what stops it.

A run leaves config.json, metrics.jsonl (TRL's names), completions.jsonl and a checkpoint that this
project and transformers load. Bad input ends it with one line and exit code 2 before any weight
changes.
"""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen2VLForConditionalGeneration

import config
import evaluate
import sample
import train_grpo
from rewards import Reward
from runtime import console
from tasks import TASKS
from tests.helpers import eval_rows, folder_of_classes, pay_odd_lengths, rows, step_rows
from train_grpo import GRPOConfig

ROOT = Path(train_grpo.__file__).parent
TRL_NAMES = """reward reward_std frac_reward_zero_std rewards/correct/mean rewards/format/std
entropy grad_norm learning_rate loss completions/mean_length completions/clipped_ratio
clip_ratio/low_mean clip_ratio/high_mean sampling/sampling_logp_difference/mean
sampling/sampling_logp_difference/max completion_tokens step_time steps_skipped_nonfinite""".split()


def flags(tiny_dir, out, *more) -> list[str]:
    words = f"--model {tiny_dir} --output_dir {out} --max_steps 3 --eval_steps 2 --device cpu"
    words += " --max_completion_length 6 --prompts_per_step 2"
    if "--task" not in more:
        words += " --held_out_per_class 1"
    return [*words.split(), *map(str, more)]


@pytest.fixture
def paid(monkeypatch):
    monkeypatch.setattr(TASKS["cls"], "load", pay_odd_lengths(TASKS["cls"].load))


def test_a_run_leaves_config_metrics_completions_and_a_servable_checkpoint(
    tiny_dir, tmp_path, capsys, paid
):
    out = tmp_path / "run"
    train_grpo.main(flags(tiny_dir, out, "--save_steps", 2, "--seed", 7))
    saved = config.load(GRPOConfig, out / "config.json")
    assert saved.seed == 7 and saved.model == tiny_dir and saved.max_steps == 3

    steps, evaluations = step_rows(out), eval_rows(out)
    assert [row["step"] for row in rows(out / "metrics.jsonl")] == [0, 1, 2, 2, 3, 3]
    assert [row["step"] for row in steps] == [1, 2, 3]
    for row in steps:
        assert set(TRL_NAMES) <= row.keys()
        assert all(isinstance(value, int | float) for value in row.values())
    assert [row["step"] for row in evaluations] == [0, 2, 3]  # start, eval_steps, end
    for row in evaluations:
        for name in ("eval/strict", "eval/loose", "eval/ood_strict"):
            assert 0.0 <= row[name] <= 1.0

    completions = rows(out / "completions.jsonl")
    assert len(completions) == 3 * 2 * 8
    assert {"step", "id", "target", "completion", "reward", "parts", "advantage", "length"} <= set(
        completions[0]
    )
    first_step = [c["reward"] for c in completions if c["step"] == 1]
    assert steps[0]["reward"] == pytest.approx(sum(first_step) / len(first_step))

    final = out / "step_3" / "hf"
    assert (out / "step_2" / "hf" / "model.safetensors").exists()
    assert {p.name for p in final.iterdir()} == {p.name for p in tiny_dir.iterdir()}
    model, info = Qwen2VLForConditionalGeneration.from_pretrained(final, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = (
        load_file(tiny_dir / "model.safetensors"),
        load_file(final / "model.safetensors"),
    )
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved and not any(key.startswith("visual.") for key in moved)  # the tower is frozen

    last, page = capsys.readouterr().out.strip().splitlines()[-2:]
    assert last.startswith("held-out strict") and "loose" in last and "out of distr" in last
    assert str(final) in last and page == f"report: {out / 'report.html'}"
    assert str(final) in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.case("O20")
def test_the_same_seed_repeats_a_run_bit_for_bit(tiny_dir, tmp_path, paid):
    for name in ("a", "b"):
        train_grpo.main(flags(tiny_dir, tmp_path / name))
    a, b = (load_file(tmp_path / name / "step_3/hf/model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (tmp_path / "a/completions.jsonl").read_text() == (
        tmp_path / "b/completions.jsonl"
    ).read_text()


def test_a_trained_tower_a_reference_and_two_iterations_work_together(tiny_dir, tmp_path, paid):
    out = tmp_path / "run"
    more = ("--no-freeze-vision", "--beta", 0.04, "--num_iterations", 2, "--learning_rate", 1e-3)
    train_grpo.main(flags(tiny_dir, out, *more))
    steps = step_rows(out)
    assert steps[0]["kl"] >= 0 and steps[2]["kl"] > 0
    # the second pass has moved; sampler and trainer are compared before that
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-5 for row in steps)
    before = load_file(tiny_dir / "model.safetensors")
    after = load_file(out / "step_3/hf/model.safetensors")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith("visual.") for key in moved)


@pytest.mark.parametrize("max_steps", [3, 10])  # before the first look during the run, and at it
def test_the_console_says_what_is_wrong_once(tiny_dir, tmp_path, capsys, max_steps):
    train_grpo.main(flags(tiny_dir, tmp_path / "run", "--max_steps", max_steps))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")]
    assert len(lines) == len(set(lines)) >= 3
    for light in ("Right answers sampled: never", "Zero-std groups: ", "Truncated completions: "):
        assert sum(line.startswith(f"warning: {light}") for line in lines) == 1, lines


def test_a_folder_of_class_folders_trains_without_an_ood_split(tiny_dir, tmp_path, capsys):
    data = folder_of_classes(tmp_path / "photos")
    train_grpo.main(flags(tiny_dir, tmp_path / "run", "--data", data, "--prompt_mode", "direct"))
    assert "out of distribution" not in capsys.readouterr().out
    assert "eval/ood_strict" not in rows(tmp_path / "run/metrics.jsonl")[0]
    assert {c["target"] for c in rows(tmp_path / "run/completions.jsonl")} == {"rose", "tulip"}


# ---- what stops it -------------------------------------------------------------------------------


def refused(capsys, words) -> str:
    with pytest.raises(SystemExit) as stop:
        console.run(lambda: train_grpo.main(words))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    error = captured.err.strip().splitlines()[-1]
    assert error.startswith("error: "), captured.err
    assert "Traceback" not in captured.err
    return error


@pytest.mark.case("I22")
def test_too_few_images_for_the_shots_is_one_line(tiny_dir, tmp_path, capsys):
    data = folder_of_classes(tmp_path / "photos", count=2)
    error = refused(capsys, flags(tiny_dir, tmp_path / "run", "--data", data, "--shots", 4))
    assert "--shots 4" in error and "rose" in error


def test_a_held_out_prompt_over_the_limit_stops_before_anything_is_written(
    tiny_dir, tmp_path, capsys
):
    data = folder_of_classes(tmp_path / "photos", count=2)
    for name in ("rose", "tulip"):  # large pictures among the small ones: more image tokens
        for i in range(2):
            Image.new("RGB", (200, 180), (9, 90 * i, 70)).save(data / name / f"big{i}.png")
    error = refused(
        capsys, flags(tiny_dir, tmp_path / "run", "--data", data, "--max_prompt_length", 70)
    )
    assert "--max_prompt_length is 70" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.case("I33")
def test_i33_one_prompt_over_the_limit_is_left_out_counted_and_never_cut(
    tiny_dir, tmp_path, capsys
):
    data = folder_of_classes(tmp_path / "photos", count=3)
    Image.new("RGB", (200, 180), (9, 90, 70)).save(data / "rose" / "big.png")
    out = tmp_path / "run"
    more = ("--data", data, "--max_prompt_length", 100, "--held_out_per_class", 3)
    train_grpo.main(flags(tiny_dir, out, *more))
    assert "1 of 7 records skipped; no prompt: prompt" in capsys.readouterr().out
    assert rows(out / "metrics.jsonl")[0]["eval/n"] + 2 == 6


@pytest.mark.case("I21")
def test_i21_fewer_examples_than_a_step_asks_repeat_with_a_warning(tiny_dir, tmp_path, capsys):
    data = folder_of_classes(tmp_path / "photos")
    train_grpo.main(flags(tiny_dir, tmp_path / "run", "--data", data, "--prompts_per_step", 3))
    assert "2 training examples, fewer than --prompts_per_step 3" in capsys.readouterr().out


def named_algorithms() -> dict[str, str]:
    """The rows of docs/algorithms.md: name -> flags."""
    page = (ROOT / "docs" / "algorithms.md").read_text()
    return dict(re.findall(r"^\| ([^|]+) \| `(--[^`|]+)` \| (?:\[|Will|the same)", page, re.M))


ALONE = "--advantage_estimator reinforce --scale_rewards none --num_generations 1"


@pytest.mark.parametrize("name", [*named_algorithms(), "one completion a question"])
def test_every_algorithm_is_one_command(tiny_dir, tmp_path, paid, name):
    words = (named_algorithms() | {"one completion a question": ALONE})[name]
    train_grpo.main(flags(tiny_dir, tmp_path / "run", *words.split(), "--report_prompts", "1"))
    steps = step_rows(tmp_path / "run")
    assert any(row["grad_norm"] > 0 for row in steps)
    assert ("rewards/kl/mean" in steps[0]) == ("kl_in_reward" in words)
    if "kl_in_reward" in words:
        page = (tmp_path / "run" / "report.html").read_text()
        assert "0.01 x kl" in page and "needs --beta above 0" not in page


def test_the_page_names_ten_algorithms():
    assert len(named_algorithms()) == 10


@pytest.mark.parametrize("task", [name for name in TASKS if name != "cls"])
def test_every_task_runs_from_the_first_step_to_the_checkpoint(tiny_dir, tmp_path, capsys, task):
    out = tmp_path / "run"
    size = "--shots" if task in ("det", "ovd") else "--train_size"
    more = ("--task", task, size, 2, "--held_out_size", 2, "--max_steps", 1)
    train_grpo.main(flags(tiny_dir, out, *more))
    first, last = eval_rows(out)
    assert first["step"] == 0 and last["step"] == 1
    headline = {"det": "mAP", "ovd": "mAP", "ground": "iou"}.get(task, "strict")
    for name in (headline, f"{headline}_low", f"{headline}_high", f"ood_{headline}"):
        assert 0.0 <= first[f"eval/{name}"] <= 1.0 and 0.0 <= last[f"eval/{name}"] <= 1.0
    name = {"iou": "mean IoU"}.get(headline, headline)
    assert f"held-out {name}" in capsys.readouterr().out
    assert (out / "step_1" / "hf" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "task, flag",
    [("count", "--shots"), ("cls", "--train_size"), ("det", "--tolerance"), ("vqa", "--coords")]
    + [("ground", "--dense")],
)
def test_a_flag_that_the_task_does_not_read_is_refused(tiny_dir, tmp_path, capsys, task, flag):
    value = {"--tolerance": "0.5", "--coords": "abs", "--dense": "1"}.get(flag, "9")
    error = refused(capsys, flags(tiny_dir, tmp_path / "run", "--task", task, flag, value))
    assert flag in error and f"--task {task} does not use it" in error


@pytest.mark.case("I64")
def test_a_users_reward_trains_and_its_faults_are_in_the_metrics(tiny_dir, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "calls = []\n"
        "def pay(completions, example):\n"
        "    calls.append(example.id)\n"
        "    if len(calls) == 6:\n"
        "        raise OSError('judge is away')\n"
        "    return [len(c) % 2 for c in completions]\n"
    )
    out = tmp_path / "run"
    more = ("--reward", f"{mine}:pay", "--prompts_per_step", 6, "--max_steps", 2)
    train_grpo.main(flags(tiny_dir, out, *more))
    first, second = step_rows(out)
    assert first["reward/exception"] == 8 and second["reward/exception"] == 0
    said = capsys.readouterr()
    assert "rewards/user/mean" in first and "judge is away" in said.err
    (fault,) = rows(out / "reward_faults.jsonl")
    assert (fault["step"], fault["kind"]) == (1, "exception") and "judge is away" in fault["what"]
    lost = [row for row in rows(out / "completions.jsonl") if row["reward"] is None]
    assert len(lost) == 8 and len({row["id"] for row in lost}) == 1
    assert "30 training examples, 30 held-out, 10 out-of-distribution; " in said.out
    # What is right by the task itself stays in sight, unpaid.
    assert re.search(r"step 1: reward \d\.\d\d, user \d\.\d\d, unpaid correct 0\.00", said.out)
    assert first["task/correct/mean"] == 0.0 and lost[0]["task"] == {"correct": 0.0}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "not paid" in page and "judge is away" in page


def test_the_checkpoint_of_a_run_can_be_asked_and_evaluated(tiny_dir, tmp_path, capsys):
    train_grpo.main(flags(tiny_dir, tmp_path / "run"))
    checkpoint = str(tmp_path / "run/step_3/hf")
    sample.main(["--model", checkpoint, "--num_generations", "1", "--max_completion_length", "4"])
    evaluate.main(
        ["--model", checkpoint, "--held_out_per_class", "1", "--max_completion_length", "6"]
    )
    out = capsys.readouterr().out
    assert "tokens/s" in out and "cls held_out, 30 questions: strict" in out
    # the whole run at once: same data, prompt and lengths, so the same numbers as its last row
    output = ["--split", "held_out", "--output", str(tmp_path / "answers.jsonl")]
    evaluate.main(["--run", str(tmp_path / "run"), *output])
    assert "cls held_out, 30 questions: strict" in capsys.readouterr().out
    answers, last = rows(tmp_path / "answers.jsonl"), rows(tmp_path / "run/metrics.jsonl")[-1]
    assert sum(a["length"] for a in answers) / 30 == pytest.approx(last["eval/mean_length"])
    assert sum(a["format"] for a in answers) / 30 == pytest.approx(last["eval/format"])
    # a flag that is given wins over the run's setting
    evaluate.main(["--run", str(tmp_path / "run"), "--held_out_per_class", "2"])
    assert "cls held_out, 60 questions: strict" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["config.json", "step_3"])
def test_a_directory_that_is_no_finished_run_is_one_line(tiny_dir, tmp_path, capsys, missing):
    run = tmp_path / "run"
    run.mkdir()
    if missing != "config.json":
        config.save(GRPOConfig(model=tiny_dir), run / "config.json")
    with pytest.raises(SystemExit) as stop:
        console.run(lambda: evaluate.main(["--run", str(run)]))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and str(run) in said and "Errno" not in said


@pytest.mark.case("I72")
def test_an_output_directory_in_use_is_not_overwritten(tiny_dir, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("precious")
    error = refused(capsys, flags(tiny_dir, tmp_path / "run"))
    assert "--output_dir" in error
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "precious"


@pytest.mark.case("I67")
def test_a_reward_that_is_not_finite_is_one_line(tiny_dir, tmp_path, capsys, monkeypatch):
    original = TASKS["cls"].load

    def load(*args):
        return replace(original(*args), reward=lambda *_: Reward(float("nan"), {"x": 1.0}))

    monkeypatch.setattr(TASKS["cls"], "load", load)
    error = refused(capsys, flags(tiny_dir, tmp_path / "run"))
    assert "rewards must be finite" in error
    assert not list((tmp_path / "run").glob("step_*"))  # no weight was changed, none is saved


@pytest.mark.slow
def test_the_script_itself_runs_and_its_help_is_readable(tiny_dir, tmp_path):
    words = [sys.executable, "train_grpo.py", *flags(tiny_dir, tmp_path / "run")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "held-out strict" in done.stdout
    done = subprocess.run([*words[:2], "--hlep"], cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and done.stderr == "error: --hlep: no such flag; did you mean --help?\n"
    )


def test_max_skip_says_how_much_of_the_data_may_be_lost(tiny_dir, tmp_path, capsys):
    data = folder_of_classes(tmp_path / "photos", count=6)
    for i in range(3):
        (data / "rose" / f"{i}.png").write_bytes(b"")
    asked = flags(tiny_dir, tmp_path / "run", "--data", data)
    error = refused(capsys, asked)
    assert (
        "--max_skip 0.01" in error and "3 of 12 records skipped; unreadable: 'rose/0.png" in error
    )
    train_grpo.main([*asked, "--max_skip", "0.25"])
    assert "3 of 12 records skipped" in capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["skipped"]
    assert len(kept) == 1 and "rose/2.png" in kept[0]
    evaluate.main(["--run", str(tmp_path / "run")])  # its settings hold for the evaluation, too


def test_rows_that_are_lost_are_counted_by_reason(tmp_path, capsys):
    rows = [{"image": f"{i}.png", "problem": "How many?", "solution": str(i)} for i in range(9)]
    for i in range(9):
        Image.new("RGB", (32, 32), (20 * i, 90, 60)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "3.png").write_bytes(b"")
    rows[5]["solution"] = ""
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = refused(capsys, ["--task", "count", "--data", str(path), "--max_skip", "0.3"])
    assert "3 of 9 records skipped (unreadable 2, empty solution 1)" in error
    error = refused(capsys, ["--task", "count", "--data", str(path), "--max_skip", "1.5"])
    assert error == "error: --max_skip 1.5: must be in 0 .. 1"
