"""Nothing of a run is lost: checkpoints are complete or absent, resume is exact, signals save.

"Exact" is bit for bit, on a CPU: weights, AdamW's masters and moments, every completion, and every
metric but the timings. benchmarks/robustness/kills.py does the same with kills at random moments.
"""

import hashlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import config
import train_grpo
import train_ppo
import train_sft
from benchmarks.robustness.kills import metrics
from config import BASE_MODEL
from model.weights import load_model, save_model, single_file
from reporting.run_log import RunLog
from runtime import run_directory
from runtime.errors import InputError
from runtime.run_directory import lock_directory, new_run_directory
from runtime.signals import Stopped, StopSignals
from tasks import TASKS
from tests.acting.test_episodes import Album
from tests.helpers import eval_rows, folder_of_classes, pay_odd_lengths, step_rows
from train_grpo import GRPOConfig
from train_sft import SFTConfig
from training import checkpoint, run
from training.checkpoint import find_checkpoint, why_unusable
from training.optimizer import Optimizer
from training.resume import parse_or_resume

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5
STATE = {"step": 1, "sizes": {}, "not_finite": []}


@pytest.fixture(scope="module")
def flags(tiny_dir):
    """A short run of a random model that earns something, so that its weights move."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TASKS["count"], "load", pay_odd_lengths(TASKS["count"].load))
        line = f"--task count --model {tiny_dir} --max_steps {STEPS} --eval_steps 2 --save_steps 1"
        line += " --train_size 8 --held_out_size 2 --prompts_per_step 2 --num_generations 4"
        line += " --max_completion_length 20 --report_prompts 1 --learning_rate 1e-3"
        yield [*line.split(), "--save_total_limit", "none", "--device", "cpu"]


@pytest.fixture(scope="module")
def straight(flags, tmp_path_factory) -> Path:
    """The run that nobody disturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train_grpo.main([*flags, "--output_dir", str(out)])
    return out


def assert_same(a: Path, b: Path, steps: int = STEPS) -> None:
    """Two runs left the same; of checkpoints before the last, where both have them."""
    assert metrics(a) == metrics(b)
    for name in ("completions.jsonl", "gallery.jsonl"):
        assert (a / name).exists() == (b / name).exists()
        assert not (a / name).exists() or (a / name).read_bytes() == (b / name).read_bytes()
    for step in range(1, steps + 1):
        for name in ("hf/model.safetensors", "trainer/optimizer.safetensors"):
            files = [place / f"step_{step}" / name for place in (a, b)]
            if step == steps or files[1].exists():
                assert files[0].read_bytes() == files[1].read_bytes(), (step, name)


def stop_in(monkeypatch, place, name: str, call: int, number=signal.SIGTERM):
    """Send a signal to ourselves at the start of the `call`-th call of a function."""
    original, calls = getattr(place, name), 0

    def watched(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, watched)


def stopped(module, argv, place, name: str, call: int, number=signal.SIGTERM) -> int:
    """Run a script that is stopped at a call of a function; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        stop_in(patch, place, name, call, number)
        module.main([str(word) for word in argv])
    return stop.value.code


def assert_resumes_alike(module, argv, folder: Path, *where) -> None:
    """A run that is stopped at a call of a function and resumed, and one that nobody disturbed."""
    module.main([*argv, "--output_dir", str(folder / "a")])
    stopped(module, [*argv, "--output_dir", folder / "b"], *where)
    module.main(["--resume_from_checkpoint", str(folder / "b")])
    assert_same(folder / "a", folder / "b")


# ---- signals and resume --------------------------------------------------------------------------


@pytest.mark.case("F12", "F13", "O20")
@pytest.mark.parametrize(
    "place, name, call, number, done",
    [
        (run, "held_out_metrics", 1, signal.SIGTERM, 0),  # before the first step
        (train_grpo, "sample_groups", 3, signal.SIGTERM, 2),
        (train_grpo, "policy_loss", 3, signal.SIGINT, 2),
        (Optimizer, "step", 3, signal.SIGTERM, 3),  # an update is in progress: it is finished
        (run, "completion_records", 2, signal.SIGINT, 2),
        (run, "held_out_metrics", 2, signal.SIGTERM, 2),  # updated, not yet evaluated
        (run, "held_out_metrics", 4, signal.SIGTERM, STEPS),  # the last evaluation
        (run, "save_checkpoint", 3, signal.SIGTERM, 3),
        (train_grpo, "sample_groups", 4, signal.SIGUSR1, 3),  # of a batch system
    ],
)
def test_a_signal_saves_and_the_run_resumes_exactly(
    flags, straight, tmp_path, capsys, place, name, call, number, done
):
    out = tmp_path / "run"
    code = stopped(train_grpo, [*flags, "--output_dir", out], place, name, call, number)
    assert code == 128 + number
    assert f"after step {done}; saved {out / f'step_{done}'}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # ours are gone
    train_grpo.main(["--resume_from_checkpoint", str(out)])
    assert f"resuming after step {done} of {STEPS}" in capsys.readouterr().out
    assert_same(straight, out)


@pytest.mark.case("F12")
def test_a_run_that_is_stopped_again_and_again_is_the_same_too(flags, straight, tmp_path):
    out, codes = tmp_path / "run", []
    argv = [*flags, "--output_dir", out]
    while len(codes) < STEPS - 1:  # each time after a step of its own
        codes.append(stopped(train_grpo, argv, train_grpo, "step_advantages", 2))
        argv = ["--resume_from_checkpoint", "latest", "--output_dir", out]
    assert codes == [143] * (STEPS - 1)
    train_grpo.main([str(word) for word in argv])
    assert_same(straight, out)


@pytest.mark.case("F12")
def test_with_several_updates_per_batch_a_signal_waits_for_the_step(flags, tmp_path, capsys):
    """After the first of two updates the weights belong to no finished step."""
    more = [*flags, "--num_iterations", "2", "--beta", "0.04"]
    assert_resumes_alike(train_grpo, more, tmp_path, train_grpo, "policy_loss", 4)
    assert "after step 2; saved" in capsys.readouterr().out


@pytest.mark.case("O20")
@pytest.mark.parametrize(
    "more, where",
    [
        ("--dtype bfloat16 --learning_rate 1e-4", (train_grpo, "sample_groups", 4)),
        ("--model BF16", (run, "held_out_metrics", 4)),  # the last evaluation needs the masters
    ],
)
def test_float32_masters_of_bfloat16_weights_survive(flags, tiny_dir, tmp_path, more, where):
    model = load_model(tiny_dir)
    save_model(model, tmp_path / "bf16", tiny_dir, single_file(model, torch.bfloat16))
    words = more.replace("BF16", str(tmp_path / "bf16")).split()
    assert_resumes_alike(train_grpo, [*flags, *words], tmp_path, *where)


@pytest.mark.case("O20")
@pytest.mark.parametrize("number", [2, 4])  # of the rollout that is stopped
def test_past_groups_and_the_next_question_survive(flags, tmp_path, number):
    """With pictures of two sizes of rewards some groups are silent: both kinds of places occur."""
    more = "--replay_buffer_size 3 --replay_max_age 3 --delta 3 --dynamic_sample"
    more += " --max_resample_times 1 --num_generations 2 --train_size 5"
    words = [*flags, *more.split()]
    assert_resumes_alike(train_grpo, words, tmp_path, train_grpo, "sample_groups", number)
    rows = step_rows(tmp_path / "a")
    assert any(row["replay/groups"] > 0 for row in rows)
    assert any(row["selection/rounds"] == 2 for row in rows)


@pytest.mark.case("O20")
@pytest.mark.parametrize("more", ["--beta 0.04 --num_iterations 2", "--no-freeze_vision"])
def test_completions_that_act_survive(flags, tmp_path, monkeypatch, more):
    load = TASKS["count"].load
    acting = lambda *args: replace(load(*args), environment=Album())  # noqa: E731
    monkeypatch.setattr(TASKS["count"], "load", acting)
    words = [*flags, *more.split()]
    assert_resumes_alike(train_grpo, words, tmp_path, train_grpo, "sample_groups", 3)
    rows = step_rows(tmp_path / "a")
    assert all(row["rewards/asked/mean"] > 0 for row in rows)
    kept = [json.loads(line) for line in (tmp_path / "a" / "gallery.jsonl").open()]
    assert any(c["turns"] for row in kept for c in row["completions"])


@pytest.mark.case("O20")
@pytest.mark.parametrize("more", ["", "--dtype bfloat16 --beta 0.04", "--lora_rank 4"])
def test_ppo_resumes_exactly_its_critic_included(flags, tmp_path, more):
    words = [*flags, *more.split(), "--critic_warmup", "1", "--critic_learning_rate", "1e-2"]
    train_ppo.main([*words, "--output_dir", str(tmp_path / "a")])
    stopped(train_ppo, [*words, "--output_dir", tmp_path / "b"], train_ppo, "policy_loss", 2)
    train_ppo.main(["--resume_from_checkpoint", str(tmp_path / "b")])
    a, b = tmp_path / "a", tmp_path / "b"
    assert metrics(a) == metrics(b)
    name = f"step_{STEPS}/trainer/optimizer.safetensors"
    assert (a / name).read_bytes() == (b / name).read_bytes()
    tensors = load_file(a / name)
    assert tensors["critic:master/score.weight"].any()
    assert any(key.startswith("critic:exp_avg/trunk.") for key in tensors)


@pytest.mark.case("O20")
def test_supervised_fine_tuning_resumes_exactly(tiny_dir, tmp_path):
    line = f"--task count --cot --model {tiny_dir} --max_steps {STEPS} --eval_steps 2"
    line += " --save_steps 1 --prompts_per_step 2 --held_out_size 2 --max_completion_length 6"
    line += " --learning_rate 1e-3 --train_size 8 --report_prompts 1 --save_total_limit none"
    assert_resumes_alike(train_sft, line.split(), tmp_path, train_sft, "imitation_loss", 4)


@pytest.mark.case("F14")
def test_a_second_signal_ends_the_process_at_once_without_saving():
    program = (
        "import os, signal, time\n"
        "from runtime.signals import signals\n"
        "signals.install()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('noted', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130 and done.stdout == "noted\n"


@pytest.mark.case("F13")
def test_nohup_is_respected_and_other_handlers_come_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = StopSignals()
        signals.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signals._receive
        signals.remove()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not issubclass(Stopped, Exception)  # code from outside cannot swallow it


@pytest.mark.case("F12")
def test_a_real_process_saves_on_sigterm(tmp_path):
    out = tmp_path / "run"
    line = "train_grpo.py --task count --max_steps 100000 --train_size 8 --held_out_size 2"
    line += f" --prompts_per_step 2 --max_completion_length 20 --output_dir {out}"
    process = subprocess.Popen(
        [sys.executable, *line.split()], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    deadline = time.time() + 120
    while time.time() < deadline and not (out / "completions.jsonl").exists():
        time.sleep(0.05)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped by SIGTERM" in output
    assert why_unusable(find_checkpoint(out).directory) is None
    assert "Stopped after" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.case("F1", "F2", "O20")
def test_kills_at_random_moments_are_survived_exactly():
    command = [sys.executable, "-m", "benchmarks.robustness.kills", "--kills", "6", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == 6 and report["wrong"] == [] and report["runs"] >= 1


# ---- what a checkpoint is ------------------------------------------------------------------------


@pytest.fixture
def two(straight, tmp_path) -> Path:
    """A copy of the run with the checkpoints of steps 3 and 4 alone."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    for step in (1, 2, 5):
        shutil.rmtree(out / f"step_{step}")
    return out


def flip(path: Path) -> None:
    """Change the last bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.case("F8", "F9", "F10", "F23")
@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda d: os.truncate(d / "hf/model.safetensors", 1000), "model.safetensors is damaged"),
        (lambda d: flip(d / "trainer/optimizer.safetensors"), "optimizer.safetensors is damaged"),
        (lambda d: (d / "trainer/optimizer.safetensors").unlink(), "cannot be read"),
        (lambda d: (d / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda d: (d / "manifest.json").write_text(""), "damaged"),
        (lambda d: (d / "manifest.json").write_text("{}"), "incomplete"),
        (lambda d: (d / "manifest.json").write_text("[1]"), "damaged"),
        (lambda d: (d / "trainer/state.json").write_text('{"step": 4}'), "damaged"),
        (lambda d: shutil.rmtree(d / "hf"), "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(two, capsys, damage, words):
    damage(two / "step_4")
    assert find_checkpoint(two).step == 3
    output = capsys.readouterr().out
    assert output.startswith(f"skipped {two / 'step_4'}: ") and words in output
    with pytest.raises(InputError, match=words):  # asked for by name, there is no other
        find_checkpoint(two / "step_4")
    with pytest.raises(InputError, match="no such checkpoint; there is step_4, step_3"):
        find_checkpoint(two / "step_5")


@pytest.mark.case("F24")
def test_the_newest_is_that_of_the_largest_step_whatever_the_clock_says(two):
    os.utime(two / "step_4", (0, 0))
    (two / "step_007x").mkdir()
    (two / ".step_9.unfinished").mkdir()
    assert find_checkpoint(two).step == 4


@pytest.mark.case("F5")
def test_older_checkpoints_go_only_after_the_new_one_verifies(flags, tmp_path):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "why_unusable", lambda directory: "not sure")
        train_grpo.main([*flags, "--save_total_limit", "1", "--output_dir", str(out)])
    assert len(list(out.glob("step_*"))) == STEPS
    shutil.rmtree(out)
    train_grpo.main([*flags, "--save_total_limit", "2", "--output_dir", str(out)])
    assert {path.name for path in out.glob("*step_*")} == {"step_4", "step_5"}
    assert not list(out.glob(".step_*"))


@pytest.mark.case("F5", "F10")
def test_a_damaged_later_checkpoint_and_leftovers_are_out_of_the_way(flags, straight, two):
    """Resumed from step 3, with one checkpoint to stay."""
    flip(two / "step_4" / "hf" / "model.safetensors")
    (two / ".step_3.unfinished").mkdir()
    (two / "answers.jsonl").write_text('{"mine": 1}\n')
    train_grpo.main(["--resume_from_checkpoint", str(two), "--save_total_limit", "1"])
    assert {path.name for path in two.glob("*step_*")} == {"abandoned_step_4", "step_5"}
    assert (two / "answers.jsonl").read_text() == '{"mine": 1}\n'
    assert_same(straight, two)


@pytest.mark.case("F15")
@pytest.mark.parametrize("error", [InputError("reward gone"), BrokenPipeError(), KeyError("bug")])
def test_whatever_ends_a_run_its_last_step_is_saved(flags, straight, tmp_path, error):
    out, calls, original = tmp_path / "run", [], train_grpo.step_advantages

    def fails(*args):
        calls.append(args)
        if len(calls) == 4:
            raise error
        return original(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(train_grpo, "step_advantages", fails)
        train_grpo.main([*flags, "--save_steps", "0", "--output_dir", str(out)])
    assert [path.name for path in out.glob("step_*")] == ["step_3"]
    train_grpo.main(["--resume_from_checkpoint", str(out), "--save_steps", "1"])
    assert_same(straight, out)


def test_half_an_update_is_not_saved(flags, tmp_path, monkeypatch):
    def breaks(adamw):
        adamw.param_groups[0]["params"][0].data.zero_()
        raise RuntimeError("half an update")

    monkeypatch.setattr(torch.optim.AdamW, "step", breaks)
    with pytest.raises(RuntimeError, match="half an update"):
        train_grpo.main([*flags, "--output_dir", str(tmp_path / "run")])
    assert not list((tmp_path / "run").glob("step_*"))


@pytest.mark.case("F23")
def test_every_file_is_flushed_before_the_rename(tiny_dir, tmp_path, monkeypatch):
    flushed, renamed = [], []
    flush, replace = checkpoint._flush, os.replace
    monkeypatch.setattr(checkpoint, "_flush", lambda p: (flushed.append(p), flush(p)))
    monkeypatch.setattr(
        checkpoint.os, "replace", lambda a, b: (renamed.append(len(flushed)), replace(a, b))
    )
    tensors = {"x": torch.ones(3)}
    saved = checkpoint.save_checkpoint(tmp_path, load_model(tiny_dir), tiny_dir, tensors, STATE)
    names = {path.name for path in flushed[: renamed[-1]]}
    assert {path.name for path in saved.rglob("*")} <= names and ".step_1.unfinished" in names
    assert flushed[-1] == tmp_path  # and the new name itself, after the rename
    assert why_unusable(saved) is None


@pytest.mark.case("F6")
def test_too_little_space_is_said_before_anything_is_written(tiny_dir, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"needs about \d+ MB, 0 MB are free"):
        checkpoint.save_checkpoint(tmp_path, load_model(tiny_dir), tiny_dir, {}, STATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case("F6")
@pytest.mark.parametrize(
    "more, count", [("", 3), ("--save_total_limit 1", 2), ("--save_steps 0", 1)]
)
def test_a_disk_without_room_for_the_checkpoints_is_said_before_the_first_step(
    tiny_dir, tmp_path, monkeypatch, more, count
):
    size = checkpoint.checkpoint_bytes(load_model(tiny_dir), tiny_dir)
    usage = shutil.disk_usage(tmp_path)._replace(free=int(1.05 * size * count) - 1)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    line = f"--task count --model {tiny_dir} --train_size 2 --held_out_size 1 --no-freeze_vision"
    argv = [*line.split(), *more.split(), "--output_dir", str(tmp_path / "a" / "run")]
    with pytest.raises(InputError, match=f"{count} checkpoints at once need about .* MB are free"):
        train_grpo.main(argv)
    assert list(tmp_path.iterdir()) == []


def test_the_size_of_a_checkpoint_is_foreseen(straight, tiny_dir):
    """Companions included; the tower is frozen and takes no optimizer state."""
    model = load_model(tiny_dir)
    model.prepare_training(True, False)
    files = [path for path in (straight / f"step_{STEPS}").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files if path.name != "manifest.json")
    assert size == pytest.approx(checkpoint.checkpoint_bytes(model, tiny_dir), rel=0.1)


def test_nothing_that_is_not_finite_is_saved(tiny_dir, tmp_path):
    model = load_model(tiny_dir)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        checkpoint.save_checkpoint(tmp_path, model, tiny_dir, {}, STATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case("F6")
def test_a_save_that_fails_is_reported_and_tried_again_at_the_next(
    flags, straight, tmp_path, monkeypatch, capsys
):
    original, calls = run.save_checkpoint, []

    def full(*args):
        calls.append(args)
        if len(calls) in (2, 3):
            raise InputError("step_N: cannot be saved (no space left on device)")
        return original(*args)

    monkeypatch.setattr(run, "save_checkpoint", full)
    out = tmp_path / "run"
    train_grpo.main([*flags, "--output_dir", str(out)])
    assert capsys.readouterr().err.count("no space left on device); training continues") == 2
    assert {path.name for path in out.glob("step_*")} == {"step_1", "step_4", "step_5"}
    assert_same(straight, out)


@pytest.mark.parametrize("max_steps, kept", [(150, (120, 150)), (10, (8, 10)), (3, (2, 3))])
def test_by_default_a_kill_costs_a_fifth_of_the_run_at_most(max_steps, kept):
    cfg = GRPOConfig(max_steps=max_steps)
    every = cfg.steps_between_saves
    saves = [step for step in range(1, max_steps + 1) if step % every == 0 or step == max_steps]
    assert all(b - a <= max(1, max_steps / 5) for a, b in zip([0, *saves], saves, strict=False))
    assert set(saves[-cfg.save_total_limit :]) <= set(kept)
    assert GRPOConfig(save_steps=0).steps_between_saves == 0


# ---- which run is resumed ------------------------------------------------------------------------


def test_flags_that_would_alter_the_run_are_listed_with_both_values(two):
    more = "--learning_rate 0.5 --seed 0 --beta 0.1 --save_steps 2 --max_steps 4".split()
    with pytest.raises(InputError) as error:
        parse_or_resume(GRPOConfig, ["--resume_from_checkpoint", str(two), *more], "")
    message = str(error.value)
    assert "--learning_rate is 0.5, the run has 0.001" in message
    assert "--beta is 0.1, the run has 0.0" in message and "--max_steps is 4" in message
    assert "--seed" not in message and "--save_steps" not in message  # the same; free to change


def test_the_same_command_and_one_flag_more_is_enough(flags, two):
    argv = [*flags, "--output_dir", str(two), "--resume_from_checkpoint", "latest"]
    cfg, found = parse_or_resume(GRPOConfig, [*argv, "--save_total_limit", "7"], "")
    found.lock.close()
    assert found.step == 4 and cfg.save_total_limit == 7 and cfg.output_dir == two
    assert cfg.learning_rate == 1e-3


def test_a_checkpoint_can_be_named_itself_and_how_it_is_computed_may_change(straight, two):
    """As the advice for too little memory says."""
    more = ["--groups_per_micro_batch", "1", "--gradient_checkpointing"]
    train_grpo.main(["--resume_from_checkpoint", str(two / "step_3"), *more])
    assert (two / "abandoned_step_4").is_dir()

    def difference(a: Path, b: Path) -> float:
        pairs = zip(load_model(a).parameters(), load_model(b).parameters(), strict=True)
        return float(torch.cat([(p - q).detach().abs().flatten() for p, q in pairs]).mean())

    last = straight / f"step_{STEPS}" / "hf"
    moved = difference(last, straight / "step_3" / "hf")
    assert difference(last, two / f"step_{STEPS}" / "hf") < 0.01 * moved


def test_a_finished_run_can_be_extended(flags, straight, tmp_path):
    """With a constant rate it is the longer run, bit for bit; a linear one begins to fall anew."""
    more = ["--eval_steps", "1", "--lr_scheduler_type", "constant"]
    a, b = tmp_path / "a", tmp_path / "b"
    train_grpo.main([*flags, *more, "--output_dir", str(a)])
    train_grpo.main([*flags, *more, "--max_steps", "3", "--output_dir", str(b)])
    train_grpo.main(["--resume_from_checkpoint", str(b), "--max_steps", str(STEPS)])
    steps = [[row for row in metrics(out) if "loss" in row] for out in (a, b)]
    assert steps[0] == steps[1] and len(steps[0]) == STEPS
    for name in ("hf/model.safetensors", "trainer/optimizer.safetensors"):
        assert (a / "step_5" / name).read_bytes() == (b / "step_5" / name).read_bytes()
    assert (a / "completions.jsonl").read_bytes() == (b / "completions.jsonl").read_bytes()
    assert config.load(GRPOConfig, b / "config.json").max_steps == STEPS
    about = json.loads((b / "run.json").read_text())
    first, more = about["command"].split(" && ")
    assert about["resumed_after"] == [3]
    assert "--max_steps 3" in first and "--lr_scheduler_type constant" in first
    assert more == f"python train_grpo.py --resume_from_checkpoint latest --max_steps {STEPS}"

    shutil.copytree(straight, tmp_path / "linear")
    longer = ["--resume_from_checkpoint", str(tmp_path / "linear"), "--max_steps", str(STEPS + 1)]
    train_grpo.main(longer)
    rates = [row["learning_rate"] for row in step_rows(tmp_path / "linear")]
    expected = [1 - step / STEPS for step in range(STEPS)] + [1 - STEPS / (STEPS + 1)]
    assert rates == pytest.approx([1e-3 * share for share in expected])
    assert eval_rows(tmp_path / "linear")[-1]["step"] == STEPS + 1


def test_a_finished_run_has_nothing_to_resume(straight, capsys):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*") if path.name != ".lock"}
    with pytest.raises(SystemExit) as stop:
        train_grpo.main(["--resume_from_checkpoint", str(straight)])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert f"all {STEPS} steps are done; extend it by a larger --max_steps" in output
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_is_resumed_where_its_model_and_its_data_have_moved(tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "a" / "model")
    folder_of_classes(tmp_path / "a" / "data")
    line = f"--model {tmp_path}/a/model --data {tmp_path}/a/data --max_steps 3 --report_prompts 0"
    line += " --prompts_per_step 2 --max_completion_length 4 --output_dir"
    train_grpo.main([*line.split(), str(tmp_path / "straight")])
    out = tmp_path / "run"
    stopped(train_grpo, [*line.split(), out], train_grpo, "step_advantages", 2)
    (tmp_path / "a").rename(tmp_path / "b")
    resume = ["--resume_from_checkpoint", str(out)]
    with pytest.raises(InputError, match="it is gone; if it or the data was moved, give --model"):
        train_grpo.main(resume)
    other = ["--model", str(BASE_MODEL), "--data", str(tmp_path / "b" / "data")]
    with pytest.raises(InputError, match="the run began from another, config.json differs"):
        train_grpo.main([*resume, *other])
    train_grpo.main([*resume, "--model", str(tmp_path / "b" / "model"), *other[2:]])
    assert metrics(out) == metrics(tmp_path / "straight")


def test_a_reference_that_has_moved_is_asked_back(tiny_dir, tmp_path):
    """With --beta its weights count, and those are in no checkpoint."""
    line = f"--task count --model {tiny_dir} --max_steps 3 --train_size 4 --held_out_size 2"
    line += f" --prompts_per_step 2 --max_completion_length 4 --beta 0.1 --output_dir {tmp_path}/r"
    stopped(train_grpo, line.split(), train_grpo, "step_advantages", 2)
    shutil.copytree(tiny_dir, tmp_path / "copy")
    resume = ["--resume_from_checkpoint", str(tmp_path / "r"), "--model"]
    with pytest.raises(
        InputError, match="for its reference or critic.*put them back there, a link will do"
    ):
        train_grpo.main([*resume, str(tmp_path / "copy")])
    (tmp_path / "link").symlink_to(tiny_dir)
    train_grpo.main([*resume, str(tmp_path / "link")])


@pytest.mark.case("I19")
def test_other_data_under_the_same_name_are_refused(tiny_dir, tmp_path):
    data = folder_of_classes(tmp_path / "data")
    line = f"--model {tiny_dir} --data {data} --max_steps 3 --prompts_per_step 2"
    line += f" --report_prompts 0 --max_completion_length 4 --output_dir {tmp_path / 'run'}"
    stopped(train_grpo, line.split(), train_grpo, "step_advantages", 2)
    shutil.rmtree(data / "rose")
    (data / "tulip").rename(data / "rose")
    folder_of_classes(data / "more")
    (data / "more" / "tulip").rename(data / "tulip")
    shutil.rmtree(data / "more")
    with pytest.raises(InputError, match="the data has changed, train was"):
        train_grpo.main(["--resume_from_checkpoint", str(tmp_path / "run")])


PAY = "def {}(completions, example):\n    return [{} * len(text) for text in completions]\n"


@pytest.fixture(scope="module")
def paid(tiny_dir, tmp_path_factory) -> Path:
    """A run with a user's reward in mine.py beside it, stopped after its first step."""
    folder = tmp_path_factory.mktemp("paid")
    (folder / "mine.py").write_text(PAY.format("pay", 1.0))
    line = f"--task count --model {tiny_dir} --max_steps 2 --train_size 4 --held_out_size 2"
    line += " --prompts_per_step 2 --max_completion_length 4 --report_prompts 0 --device cpu"
    line += f" --reward {folder}/mine.py:pay --output_dir {folder}/run"
    stopped(train_grpo, line.split(), train_grpo, "step_advantages", 2)
    return folder


@pytest.mark.parametrize(
    "code, words", [(("pay", -9.0), "its file"), (("other", 1.0), "no function"), (None, "no such")]
)
def test_an_edited_reward_is_refused_and_the_run_has_kept_its_own(paid, tmp_path, code, words):
    folder = Path(shutil.copytree(paid, tmp_path / "copy"))
    path, kept = paid / "mine.py", folder / "run" / "reward.py"
    original = path.read_text()
    assert kept.read_text() == original
    resume = ["--resume_from_checkpoint", str(folder / "run")]
    try:
        path.unlink() if code is None else path.write_text(PAY.format(*code))
        with pytest.raises(InputError, match=words) as refusal:
            train_grpo.main(resume)
        assert (str(kept) in str(refusal.value)) == (words != "no function")
    finally:
        path.write_text(original)
    (folder / "run" / ".lock").unlink()  # held by the frames that pytest keeps of the refusal
    train_grpo.main([*resume, "--reward", f"{kept}:pay"])
    assert (folder / "run" / "step_2").is_dir()


def test_a_run_that_the_task_pays_is_not_resumed_with_a_reward(paid, tmp_path):
    folder = Path(shutil.copytree(paid, tmp_path / "copy"))
    about = json.loads((folder / "run" / "run.json").read_text())
    del about["reward"]
    (folder / "run" / "run.json").write_text(json.dumps(about))
    words = f"--reward {folder}/mine.py:pay --resume_from_checkpoint {folder}/run".split()
    with pytest.raises(InputError, match="is paid by the task's own reward"):
        train_grpo.main(words)


def test_another_function_of_the_same_file_is_another_reward(paid, tmp_path):
    folder = Path(shutil.copytree(paid, tmp_path / "copy"))
    text = PAY.format("pay", 1.0) + PAY.format("other", 2.0)
    about = json.loads((folder / "run" / "run.json").read_text())
    about["reward"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "run" / "run.json").write_text(json.dumps(about))
    (folder / "mine.py").write_text(text)
    words = f"--reward {folder}/mine.py:other --resume_from_checkpoint {folder}/run".split()
    with pytest.raises(InputError, match="the reward has changed .the function, which was pay"):
        train_grpo.main(words)


def test_latest_without_a_directory_is_the_run_that_started_last(
    two, tmp_path, monkeypatch, capsys
):
    """By the time that the run has noted, whatever the clock of the disk says."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match="no run of train_grpo.py in runs/, and latest looks nowhe"
    ):
        parse_or_resume(GRPOConfig, ["--resume_from_checkpoint", "latest"], "")
    for name in ("of another script", "damaged"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    config.save(SFTConfig(), tmp_path / "runs" / "of another script" / "config.json")
    (tmp_path / "runs" / "damaged" / "config.json").write_text("{")
    started = ("2026-01-02T12:00:00+00:00", "2026-01-02T12:30:00+02:00", "2027-13-01", None, 7)
    for number, time_of_start in enumerate(started):
        out = tmp_path / "runs" / f"run-{number}"
        shutil.copytree(two, out)
        about = json.loads((out / "run.json").read_text()) | {"started": time_of_start}
        (out / "run.json").write_text(json.dumps(about))
        os.utime(out / "config.json", (2e9 + number, 2e9 + number))
    cfg, found = parse_or_resume(GRPOConfig, ["--resume_from_checkpoint", "latest"], "")
    found.lock.close()
    assert cfg.output_dir == Path("runs/run-0")
    assert (
        "latest in runs/, by the time at which they started: runs/run-0" in capsys.readouterr().out
    )


def test_runs_that_start_in_the_same_second_get_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = SimpleNamespace(now=lambda: datetime(2026, 1, 2, 3, 4, 5))
    monkeypatch.setattr(run_directory, "datetime", now)
    log = RunLog(GRPOConfig(), {})
    log.close()
    start = time.perf_counter()
    names = [log.directory.name, *(new_run_directory("cls").name for _ in range(2))]
    assert time.perf_counter() - start < 0.5
    assert names == ["cls-20260102-030405", "cls-20260102-030405-2", "cls-20260102-030405-3"]


@pytest.mark.parametrize("flag", ["--coords auto", "--max_completion_length none"])
def test_what_a_run_has_filled_in_may_be_left_open_again(two, capsys, flag):
    path = two / "config.json"
    raw = json.loads(path.read_text()) | {"coords": "abs"}
    path.write_text(json.dumps(raw))
    shutil.rmtree(two / "step_4")
    state = two / "step_3" / "trainer" / "state.json"
    edit_state(state, settings=raw)
    words = [*flag.split(), "--resume_from_checkpoint", str(two)]
    cfg, found = parse_or_resume(GRPOConfig, words, "")
    found.lock.close()
    assert (cfg.coords, cfg.max_completion_length) == ("abs", 20)
    kept = "abs" if "coords" in flag else "20"
    assert f"the run goes on with {kept}" in capsys.readouterr().out


def edit_state(path: Path, **fields) -> None:
    """Edit a state.json by hand, and the manifest so that it matches."""
    edit_json(path, **fields)
    renew_manifest(path)


def renew_manifest(path: Path) -> None:
    """Write size and hash of a file in trainer/ into the manifest."""
    manifest = path.parents[1] / "manifest.json"
    entry = {"bytes": path.stat().st_size, "sha256": checkpoint._hash(path)}
    edit_json(manifest, **{f"trainer/{path.name}": entry})


def optimizer_of(run: Path) -> Path:
    return run / "step_4" / "trainer" / "optimizer.safetensors"


def edit_optimizer(run: Path, change) -> None:
    tensors = load_file(optimizer_of(run))
    change(tensors)
    save_file(tensors, optimizer_of(run))
    renew_manifest(optimizer_of(run))


def edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def state_of(run: Path) -> Path:
    return run / "step_4" / "trainer" / "state.json"


def drop_a_row(path: Path) -> None:
    """As if somebody had deleted a row of a log in an editor."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))


EDITED = {  # by hand -> what is said
    "sizes": (
        lambda r: edit_state(state_of(r), sizes={"metrics.jsonl": 777}),
        "metrics.jsonl: was e",
    ),
    "a size of text": (
        lambda r: edit_state(state_of(r), sizes={"metrics.jsonl": "9"}),
        "was edited",
    ),
    "another log": (lambda r: edit_state(state_of(r), sizes={"../x": 3}), "state.json was edited"),
    "a list of sizes": (lambda r: edit_state(state_of(r), sizes=[3]), "state.json is damaged"),
    "bad steps": (lambda r: edit_state(state_of(r), not_finite=7), "state.json was edited"),
    "the step": (lambda r: edit_state(state_of(r), step=3), "state.json is of another step"),
    "settings": (lambda r: edit_state(state_of(r), settings=[1]), "state.json was edited"),
    "an optimizer of another model": (
        lambda r: edit_optimizer(r, lambda t: t.pop("master/model.norm.weight")),
        "not that of this model: master/model.norm.weight is missing",
    ),
    "moments of another shape": (
        lambda r: edit_optimizer(
            r, lambda t: t.update({"exp_avg/model.norm.weight": torch.ones(3)})
        ),
        "not that of this model: exp_avg/model.norm.weight",
    ),
    "an optimizer that is a page": (
        lambda r: (optimizer_of(r).write_text("<html>"), renew_manifest(optimizer_of(r))),
        "optimizer.safetensors: cannot be read",
    ),
    "a shorter log": (lambda r: drop_a_row(r / "metrics.jsonl"), "metrics.jsonl: was edited"),
    "a longer log": (
        lambda r: (r / "completions.jsonl").write_text(
            "{}\n" + (r / "completions.jsonl").read_text()
        ),
        "completions.jsonl: was edited",
    ),
    "no data": (lambda r: edit_json(r / "run.json", data=None), "no fingerprints of the data"),
    "data is text": (lambda r: edit_json(r / "run.json", data="x"), "no fingerprints of the data"),
    "no splits": (
        lambda r: edit_json(r / "run.json", data={}),
        "the data has changed, train was N",
    ),
    "run.json is gone": (lambda r: (r / "run.json").unlink(), "no fingerprints of the data"),
    "a setting": (
        lambda r: edit_json(r / "config.json", learning_rate=0.5),
        "learning_rate is 0.5, but the checkpoint was trained with 0.001; restore it",
    ),
    "a setting less": (
        lambda r: (r / "config.json").write_text(
            json.dumps({"script": "train_grpo.py", "task": "count"})
        ),
        "config.json: .* is None, but the checkpoint was trained with",
    ),
}


@pytest.mark.parametrize("case", EDITED)
def test_what_was_edited_by_hand_is_one_line_and_nothing_is_cut(two, case):
    shutil.rmtree(two / "step_3")
    edit, words = EDITED[case]
    edit(two)
    before = {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=words):
        train_grpo.main(["--resume_from_checkpoint", str(two)])
    assert before.items() <= {p: p.read_bytes() for p in two.rglob("*") if p.is_file()}.items()


@pytest.mark.case("I73")
@pytest.mark.parametrize("what", ["missing", "empty", "other script", "no checkpoint", "other dir"])
def test_what_cannot_be_resumed_is_one_line(two, tmp_path, what):
    place, more, words, kind = tmp_path / "place", [], "is no run", GRPOConfig
    if what == "empty":
        place.mkdir()
    if what == "no checkpoint":
        shutil.copytree(two, place, ignore=shutil.ignore_patterns("step_*"))
        words = "has no checkpoint"
    if what == "other dir":
        place, more, words = two, ["--output_dir", str(tmp_path / "new")], "continues in its own"
    if what == "other script":
        place, kind, words = two, SFTConfig, "not a run of train_sft.py, but of train_grpo.py"
    with pytest.raises(InputError, match=words):
        parse_or_resume(kind, ["--resume_from_checkpoint", str(place), *more], "")


@pytest.mark.parametrize("row", ['{"a": 1}', '{"step": 1, "reward": "x"}'])
def test_a_row_that_is_none_of_metrics_is_named_before_anything_changes(two, row):
    path = two / "metrics.jsonl"
    path.write_text("\n".join([path.read_text().splitlines()[0], row, ""]))
    with pytest.raises(InputError, match="metrics.jsonl: row 2 is no row of metrics; remove it"):
        train_grpo.main(["--resume_from_checkpoint", str(two), "--max_steps", str(STEPS + 1)])


def test_a_lock_that_cannot_be_written_is_one_line(two):
    (two / ".lock").unlink(missing_ok=True)
    (two / ".lock").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        train_grpo.main(["--resume_from_checkpoint", str(two)])


def test_logs_that_were_lost_are_reported_and_go_on_with_a_whole_row(two, capsys):
    for name in ("completions.jsonl", "metrics.jsonl"):
        os.truncate(two / name, (two / name).stat().st_size // 3)
    train_grpo.main(["--resume_from_checkpoint", str(two)])
    output = capsys.readouterr().out
    for name in ("completions.jsonl", "metrics.jsonl"):
        assert f"{name}: " in output
        assert [*map(json.loads, (two / name).read_text().splitlines())]


@pytest.mark.case("F4")
def test_two_runs_cannot_write_into_one_directory(two):
    """A checkpoint is chosen under the lock, so none can be added after the choice."""
    resume = ["--resume_from_checkpoint", str(two)]
    holder = rf"another run is writing there \(process {os.getpid()} on {socket.gethostname()}\)"
    with lock_directory(two), pytest.raises(InputError, match=holder):
        train_grpo.main(resume)
    with lock_directory(two), pytest.raises(InputError, match=holder):  # not just: not empty
        train_grpo.main(["--task", "count", "--output_dir", str(two)])
    with pytest.raises(InputError, match="not empty; choose another name"):
        train_grpo.main(["--task", "count", "--output_dir", str(two)])
    _, found = parse_or_resume(GRPOConfig, resume, "")
    with pytest.raises(InputError, match="another run is writing there"):
        parse_or_resume(GRPOConfig, resume, "")
    found.lock.close()
    lock_directory(two).close()  # free again


# ---- updates that are not finite -----------------------------------------------------------------


@pytest.mark.parametrize("script", ["train_grpo", "train_sft"])
def test_five_bad_updates_in_a_row_stop_the_run_with_a_dump_and_a_sound_checkpoint(
    script, flags, tmp_path, monkeypatch
):
    """Steps 2 and 4 to 8 overflow: one alone is skipped, five in a row are too many."""
    module = {"train_grpo": train_grpo, "train_sft": train_sft}[script]
    original, calls = Optimizer.clip_grad_norm, 0

    def overflowing(optimizer, max_norm):
        nonlocal calls
        calls += 1
        if calls == 2 or calls >= 4:
            place = optimizer.names.index("model.norm.weight")
            optimizer.masters[place].grad[0] = math.inf
        return original(optimizer, max_norm)

    monkeypatch.setattr(Optimizer, "clip_grad_norm", overflowing)
    words = flags if script == "train_grpo" else flags[:4]
    words = [
        *words,
        *"--train_size 8 --held_out_size 2 --prompts_per_step 2 --max_steps 20".split(),
    ]
    out = tmp_path / "run"
    with pytest.raises(InputError, match="5 steps in a row.*not_finite.json.*--learning_rate"):
        module.main([*words, "--save_steps", "0", "--output_dir", str(out)])
    for line in (out / "metrics.jsonl").open():
        json.loads(line, parse_constant=pytest.fail)
    skipped = [row["steps_skipped_nonfinite"] for row in step_rows(out)]
    assert skipped == [0.0, 1.0, 0.0, *[1.0] * 5]
    dump = json.loads((out / "not_finite.json").read_text())
    assert [bad["step"] for bad in dump] == [4, 5, 6, 7, 8]
    assert dump[0]["parameters"] == ["model.norm.weight"]
    assert all(len(bad["questions"]) == 2 for bad in dump)
    model = load_model(find_checkpoint(out).hf)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_name_of_the_hubs_cache_is_resumed_by_the_same_command(
    flags, tiny_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_dir, repository / "snapshots" / ("0" * 40))
    words = ["org/tiny" if word == str(tiny_dir) else word for word in flags]
    out = ["--output_dir", str(tmp_path / "run")]
    train_grpo.main([*words, *out])
    shutil.rmtree(tmp_path / "run" / f"step_{STEPS}")
    train_grpo.main([*words, *out, "--resume_from_checkpoint", str(tmp_path / "run")])
    assert (tmp_path / "run" / f"step_{STEPS}" / "hf").is_dir()
