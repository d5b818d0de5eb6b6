"""Nothing of a run is lost: checkpoints are whole or absent, resume is exact, signals save.

"Exact" is bit for bit, on a CPU: weights, AdamW's masters and moments, every completion, and every
metric but the timings. benchmarks/robustness/kills.py does the same with hundreds of kills at random moments.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import config
import train_grpo
import train_sft
from benchmarks.robustness.kills import metrics
from config import BASE_MODEL
from model.weights import load_model, plan_slots, save_model
from runtime.errors import InputError
from runtime.run_directory import lock_directory
from runtime.signals import Stopped, StopSignals
from train_grpo import GRPOConfig
from train_sft import SFTConfig
from training import checkpoint, run
from training.checkpoint import find_checkpoint, why_unusable
from training.optimizer import Optimizer
from training.resume import parse_or_resume

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5


@pytest.fixture(scope="module")
def flags() -> list[str]:
    """A short run of the embedded model, which earns something, so that its weights move."""
    line = f"--task count --max_steps {STEPS} --eval_steps 2 --save_steps 1 --device cpu"
    line += " --train_size 8 --held_out_size 2 --prompts_per_step 2 --num_generations 4"
    line += " --max_completion_length 20 --report_prompts 1 --learning_rate 1e-4"
    return line.split()


@pytest.fixture(scope="module")
def straight(flags, tmp_path_factory) -> Path:
    """The run that nobody disturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train_grpo.main([*flags, "--output_dir", str(out)])
    return out


def assert_same(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    for name in ("completions.jsonl", "gallery.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    model = f"step_{STEPS}/hf/model.safetensors"
    assert (a / model).read_bytes() == (b / model).read_bytes()
    for step in range(1, STEPS):
        kept = f"step_{step}/trainer/optimizer.safetensors"
        if (b / kept).exists():
            assert (a / kept).read_bytes() == (b / kept).read_bytes()


def stopped_in(monkeypatch, place, name: str, call: int, number=signal.SIGTERM):
    """Send a signal to ourselves at the start of the `call`-th call of a function."""
    original, calls = getattr(place, name), 0

    def watched(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, watched)


def assert_resumes_alike(argv, folder, monkeypatch, place, name: str, call: int) -> None:
    """A run that is stopped at a call of a function and resumed, and one that nobody disturbed."""
    train_grpo.main([*argv, "--output_dir", str(folder / "a")])
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stopped_in(patch, place, name, call)
        train_grpo.main([*argv, "--output_dir", str(folder / "b")])
    train_grpo.main(["--resume_from_checkpoint", str(folder / "b")])
    assert_same(folder / "a", folder / "b")


# ---- signals and resume --------------------------------------------------------------------------


@pytest.mark.case("F12", "F13", "O20")
@pytest.mark.parametrize(
    "place, name, call, number, done",
    [
        (run, "held_out_metrics", 1, signal.SIGTERM, 0),  # before the first step
        (train_grpo, "generate_group", 3, signal.SIGTERM, 2),
        (train_grpo, "accumulate_gradient", 3, signal.SIGINT, 2),
        (Optimizer, "step", 3, signal.SIGTERM, 3),  # the weights change: the step is finished
        (train_grpo, "completion_records", 2, signal.SIGINT, 2),
        (run, "held_out_metrics", 2, signal.SIGTERM, 2),  # updated, not yet evaluated
        (run, "held_out_metrics", 4, signal.SIGTERM, STEPS),  # the last evaluation
        (run, "save_checkpoint", 3, signal.SIGTERM, 3),
        (train_grpo, "generate_group", 4, signal.SIGUSR1, 3),  # of a batch system
    ],
)
def test_a_signal_saves_and_the_run_goes_on_exactly(
    flags, straight, tmp_path, monkeypatch, capsys, place, name, call, number, done
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stopped_in(patch, place, name, call, number)
        with pytest.raises(SystemExit) as stop:
            train_grpo.main([*flags, "--output_dir", str(out)])
    assert stop.value.code == 128 + number
    said = capsys.readouterr().out
    assert f"after step {done}; saved {out / f'step_{done}'}" in said
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # ours are gone
    train_grpo.main(["--resume_from_checkpoint", str(out)])
    assert f"going on after step {done} of {STEPS}" in capsys.readouterr().out
    assert_same(straight, out)


@pytest.mark.case("F12")
def test_a_run_that_is_stopped_again_and_again_is_the_same_too(
    flags, straight, tmp_path, monkeypatch
):
    out, stops = tmp_path / "run", 0
    argv = [*flags, "--output_dir", str(out)]
    while not (out / f"step_{STEPS}").exists():
        with monkeypatch.context() as patch:
            stopped_in(patch, train_grpo, "group_advantages", 2)  # after a step of its own
            try:
                train_grpo.main(argv)
            except SystemExit as stop:
                assert stop.code == 143
                stops += 1
        argv = ["--resume_from_checkpoint", "latest", "--output_dir", str(out)]
    assert stops == STEPS - 1
    assert_same(straight, out)


@pytest.mark.case("F12")
def test_with_several_updates_per_batch_a_signal_waits_for_the_step(
    flags, tmp_path, monkeypatch, capsys
):
    """After the first of two updates the weights belong to no step boundary."""
    more = [*flags, "--num_iterations", "2", "--beta", "0.04"]
    second_of_step_2 = (train_grpo, "accumulate_gradient", 4)
    assert_resumes_alike(more, tmp_path, monkeypatch, *second_of_step_2)
    assert "after step 2; saved" in capsys.readouterr().out


@pytest.mark.case("O20")
def test_supervised_fine_tuning_resumes_exactly(tiny_dir, tmp_path, monkeypatch):
    line = f"--task count --cot --model {tiny_dir} --max_steps {STEPS} --eval_steps 2"
    line += " --save_steps 1 --prompts_per_step 2 --held_out_size 2 --max_completion_length 6"
    line += " --learning_rate 1e-3 --train_size 8 --report_prompts 1"
    for name in ("a", "b"):
        with monkeypatch.context() as patch:
            if name == "b":
                stopped_in(patch, train_sft, "accumulate_imitation", 4)
            try:
                train_sft.main([*line.split(), "--output_dir", str(tmp_path / name)])
            except SystemExit as stop:
                assert name == "b" and stop.code == 143
    train_sft.main(["--resume_from_checkpoint", str(tmp_path / "b")])
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    model = f"step_{STEPS}/hf/model.safetensors"
    assert (tmp_path / "a" / model).read_bytes() == (tmp_path / "b" / model).read_bytes()


@pytest.mark.case("F14")
def test_a_second_signal_ends_the_process_at_once_without_saving(tmp_path):
    program = (
        "import os, signal, time\n"
        "from runtime.signals import signals\n"
        "signals.install()\n"
        "signals.held = True\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('held', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130 and done.stdout == "held\n"


def test_nohup_is_respected_and_other_handlers_come_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = StopSignals()
        signals.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signals._arrived
        signals.remove()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.case("F13")
def test_code_from_outside_cannot_swallow_a_signal():
    assert not issubclass(Stopped, Exception)


@pytest.mark.case("F12")
def test_a_real_process_saves_on_sigterm(flags, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "train_grpo.py", *flags, "--max_steps", "100000"]
    process = subprocess.Popen(
        [*command, "--output_dir", str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    deadline = time.time() + 120
    while time.time() < deadline and not list(out.glob("step_*")):
        time.sleep(0.05)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped by SIGTERM" in said
    assert why_unusable(find_checkpoint(out).directory) is None


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
    said = capsys.readouterr().out
    assert said.startswith(f"passed over {two / 'step_4'}: ") and words in said
    with pytest.raises(InputError, match=words):  # asked for by name, there is no other
        find_checkpoint(two / "step_4")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.case("F24")
def test_the_newest_is_that_of_the_largest_step_whatever_the_clock_says(two):
    os.utime(two / "step_4", (0, 0))
    (two / "step_007x").mkdir()
    (two / ".step_9.unfinished").mkdir()
    assert find_checkpoint(two).step == 4


@pytest.mark.case("F4")
def test_a_save_that_was_cut_between_its_two_renames_is_undone(two):
    os.replace(two / "step_4", two / ".step_4.aside")
    assert find_checkpoint(two).step == 4


@pytest.mark.case("F5")
def test_older_checkpoints_go_only_after_the_new_one_verifies(flags, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "why_unusable", lambda directory: "not sure")
        train_grpo.main([*flags, "--save_total_limit", "1", "--output_dir", str(out)])
    assert len(list(out.glob("step_*"))) == STEPS
    shutil.rmtree(out)
    train_grpo.main([*flags, "--save_total_limit", "2", "--output_dir", str(out)])
    assert {path.name for path in out.glob("*step_*")} == {"step_4", "step_5"}
    assert not list(out.glob(".step_*"))


@pytest.mark.case("F10")
def test_a_damaged_later_checkpoint_does_not_cost_the_good_ones(flags, straight, two):
    """Resumed from step 3, with one checkpoint to stay: the damaged step 4 is out of the way."""
    flip(two / "step_4" / "hf" / "model.safetensors")
    train_grpo.main(["--resume_from_checkpoint", str(two), "--save_total_limit", "1"])
    assert {path.name for path in two.glob("*step_*")} == {"abandoned_step_4", "step_5"}
    assert_same(straight, two)


@pytest.mark.case("F5")
def test_leftovers_of_saves_that_were_cut_are_removed_and_other_files_stay(straight, two):
    for name in (".step_3.unfinished", ".step_2.pruned", ".step_3.aside"):
        (two / name).mkdir()
    (two / "answers.jsonl").write_text('{"mine": 1}\n')
    train_grpo.main(["--resume_from_checkpoint", str(two)])
    assert not list(two.glob(".step_*"))
    assert (two / "answers.jsonl").read_text() == '{"mine": 1}\n'
    assert_same(straight, two)


@pytest.mark.parametrize("error", [InputError("reward gone"), BrokenPipeError(), KeyError("bug")])
def test_whatever_ends_a_run_its_last_step_is_saved(flags, straight, tmp_path, monkeypatch, error):
    out, calls = tmp_path / "run", []

    def fails(*args):
        calls.append(args)
        if len(calls) == 4:
            raise error
        return original(*args)

    original = train_grpo.group_advantages
    more = ["--save_steps", "0", "--output_dir", str(out)]
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(train_grpo, "group_advantages", fails)
        train_grpo.main([*flags, *more])
    assert [path.name for path in out.glob("step_*")] == ["step_3"]
    train_grpo.main(["--resume_from_checkpoint", str(out), "--save_steps", "1"])
    assert_same(straight, out)


@pytest.mark.case("F15")
def test_weights_that_are_on_their_way_are_not_saved(flags, tmp_path, monkeypatch):
    def breaks(self, progress):
        self.masters[0].data.zero_()
        raise RuntimeError("half an update")

    monkeypatch.setattr(Optimizer, "step", breaks)
    with pytest.raises(RuntimeError, match="half an update"):
        train_grpo.main([*flags, "--output_dir", str(tmp_path / "run")])
    assert not list((tmp_path / "run").glob("step_*"))


def test_a_run_from_a_bfloat16_checkpoint_stopped_in_its_last_evaluation_is_judged_alike(
    flags, tmp_path, monkeypatch
):
    """The files hold bfloat16, training float32: the last evaluation needs the latter."""
    source = tmp_path / "bf16"
    model = load_model(BASE_MODEL)
    save_model(model, source, BASE_MODEL, plan_slots(model, torch.bfloat16))
    more = [*flags, "--model", str(source), "--held_out_size", "8"]
    assert_resumes_alike(more, tmp_path, monkeypatch, run, "held_out_metrics", 4)


@pytest.mark.case("F23")
def test_every_file_is_flushed_before_the_rename(flags, straight, tmp_path, monkeypatch):
    flushed, renamed = [], []
    flush, replace_ = checkpoint._flush, os.replace
    monkeypatch.setattr(checkpoint, "_flush", lambda p: (flushed.append(p), flush(p)))
    monkeypatch.setattr(
        checkpoint.os, "replace", lambda a, b: (renamed.append(len(flushed)), replace_(a, b))
    )
    model = load_model(straight / "step_4" / "hf")
    tensors = {"x": torch.ones(3)}
    state = {"step": 1, "pending": None, "sizes": {}, "not_finite": []}
    saved = checkpoint.save_checkpoint(tmp_path, model, straight / "step_4" / "hf", tensors, state)
    names = {path.name for path in flushed[: renamed[-1]]}
    files = {path.name for path in saved.rglob("*")}
    assert files <= names and ".step_1.unfinished" in names
    assert flushed[-1] == tmp_path  # and the new name itself, after the rename
    assert why_unusable(saved) is None


@pytest.mark.case("F6")
def test_too_little_space_is_said_before_anything_is_written(straight, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    model = load_model(straight / "step_4" / "hf")
    state = {"step": 1, "pending": None, "sizes": {}, "not_finite": []}
    with pytest.raises(InputError, match=r"needs about \d+ MB, 0 MB are free"):
        checkpoint.save_checkpoint(tmp_path, model, straight / "step_4" / "hf", {}, state)
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_is_not_finite_is_saved(straight, tmp_path):
    model = load_model(straight / "step_4" / "hf")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    state = {"step": 1, "pending": None, "sizes": {}, "not_finite": []}
    with pytest.raises(InputError, match="not finite"):
        checkpoint.save_checkpoint(tmp_path, model, straight / "step_4" / "hf", {}, state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case("O20")
def test_a_bfloat16_run_resumes_with_its_float32_masters(flags, tmp_path, monkeypatch):
    more = [*flags, "--dtype", "bfloat16", "--learning_rate", "1e-5"]
    assert_resumes_alike(more, tmp_path, monkeypatch, train_grpo, "generate_group", 4)


# ---- which run goes on ---------------------------------------------------------------------------


def test_flags_that_would_alter_the_run_are_listed_with_both_values(two):
    given = ["--learning_rate", "0.5", "--seed", "0", "--beta", "0.1", "--save_steps", "2"]
    with pytest.raises(InputError) as error:
        parse_or_resume(GRPOConfig, ["--resume_from_checkpoint", str(two), *given], "")
    said = str(error.value)
    assert "--learning_rate is 0.5, the run has 0.0001" in said
    assert "--beta is 0.1, the run has 0.0" in said
    assert "--seed" not in said and "--save_steps" not in said  # the same; free to change


def test_the_same_command_and_one_flag_more_is_enough(flags, two):
    argv = [*flags, "--output_dir", str(two), "--resume_from_checkpoint", "latest"]
    cfg, found = parse_or_resume(GRPOConfig, [*argv, "--save_total_limit", "7"], "")
    assert found.step == 4 and cfg.save_total_limit == 7 and cfg.output_dir == two
    assert cfg.learning_rate == 1e-4


def test_how_it_is_computed_may_change_when_a_run_goes_on(flags, straight, two):
    """As the advice for too little memory says."""
    more = ["--groups_per_micro_batch", "1", "--gradient_checkpointing"]
    train_grpo.main(["--resume_from_checkpoint", str(two / "step_3"), *more])

    def difference(a: Path, b: Path) -> float:
        pairs = zip(
            load_model(a).state_dict().values(), load_model(b).state_dict().values(), strict=True
        )
        return float(torch.cat([(p - q).abs().flatten() for p, q in pairs]).mean())

    last = straight / f"step_{STEPS}" / "hf"
    moved = difference(last, straight / "step_3" / "hf")
    assert difference(last, two / f"step_{STEPS}" / "hf") < 0.01 * moved


def test_a_run_goes_on_where_its_model_and_its_data_have_moved(tiny_dir, tmp_path, monkeypatch):
    from PIL import Image

    model, data = tmp_path / "a" / "model", tmp_path / "a" / "data"
    shutil.copytree(tiny_dir, model)
    for n in range(6):
        (data / "rb"[n % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (56, 56), (40 * n, 0, 0)).save(data / "rb"[n % 2] / f"{n}.png")
    line = f"--model {model} --data {data} --max_steps 3 --prompts_per_step 2 --report_prompts 0"
    line += " --max_completion_length 4 --output_dir"
    train_grpo.main([*line.split(), str(tmp_path / "straight")])
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stopped_in(patch, train_grpo, "generate_group", 2)
        train_grpo.main([*line.split(), str(out)])
    (tmp_path / "a").rename(tmp_path / "b")
    resume = ["--resume_from_checkpoint", str(out)]
    with pytest.raises(InputError, match="it is gone; if it or the data was moved, give --model"):
        train_grpo.main(resume)
    other = ["--model", str(BASE_MODEL), "--data", str(tmp_path / "b" / "data")]
    with pytest.raises(InputError, match="the run began from another, config.json differs"):
        train_grpo.main([*resume, *other])
    train_grpo.main([*resume, "--model", str(tmp_path / "b" / "model"), *other[2:]])
    assert metrics(out) == metrics(tmp_path / "straight")


def test_a_reference_that_has_moved_is_asked_back(flags, tiny_dir, tmp_path, monkeypatch):
    """With --beta its weights count, and those are in no checkpoint."""
    line = f"--task count --model {tiny_dir} --max_steps 3 --train_size 4 --held_out_size 2"
    line += f" --prompts_per_step 2 --max_completion_length 4 --beta 0.1 --output_dir {tmp_path}/r"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stopped_in(patch, train_grpo, "generate_group", 2)
        train_grpo.main(line.split())
    shutil.copytree(tiny_dir, tmp_path / "copy")
    resume = ["--resume_from_checkpoint", str(tmp_path / "r"), "--model"]
    with pytest.raises(InputError, match="--beta.*put them back there, a link will do"):
        train_grpo.main([*resume, str(tmp_path / "copy")])
    (tmp_path / "link").symlink_to(tiny_dir)
    train_grpo.main([*resume, str(tmp_path / "link")])


def test_latest_without_a_directory_is_the_newest_run(two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no run of train_grpo.py in runs/"):
        parse_or_resume(GRPOConfig, ["--resume_from_checkpoint", "latest"], "")
    for name in ("of another script", "damaged"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    config.save(SFTConfig(), tmp_path / "runs" / "of another script" / "config.json")
    (tmp_path / "runs" / "damaged" / "config.json").write_text("{")
    for name, age in (("old", 100), ("new", 10)):
        shutil.copytree(two, tmp_path / "runs" / name)
        then = time.time() - age
        os.utime(tmp_path / "runs" / name / "config.json", (then, then))
    cfg, _ = parse_or_resume(GRPOConfig, ["--resume_from_checkpoint", "latest"], "")
    assert cfg.output_dir == Path("runs/new")


def test_a_checkpoint_can_be_named_itself(flags, straight, two):
    cfg, found = parse_or_resume(GRPOConfig, ["--resume_from_checkpoint", str(two / "step_3")], "")
    assert found.step == 3
    train_grpo.train(cfg, found)
    assert_same(straight, two)


def test_a_finished_run_has_nothing_to_resume(straight, capsys):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*")}
    with pytest.raises(SystemExit) as stop:
        train_grpo.main(["--resume_from_checkpoint", str(straight)])
    assert stop.value.code == 0
    assert f"all {STEPS} steps are done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in straight.rglob("*")}


@pytest.mark.case("I73")
@pytest.mark.parametrize("what", ["missing", "empty", "other script", "no checkpoint", "other dir"])
def test_what_cannot_be_resumed_is_one_line(two, tmp_path, what):
    place, more, words = tmp_path / "place", [], "is no run"
    if what == "empty":
        place.mkdir()
    if what == "no checkpoint":
        shutil.copytree(two, place, ignore=shutil.ignore_patterns("step_*"))
        words = "has no checkpoint"
    if what == "other dir":
        place, more, words = two, ["--output_dir", str(tmp_path / "new")], "goes on in its own"
    kind = GRPOConfig
    if what == "other script":
        place, kind, words = two, train_sft.SftConfig, "is a run of train_grpo.py"
    with pytest.raises(InputError, match=words):
        parse_or_resume(kind, ["--resume_from_checkpoint", str(place), *more], "")


def test_logs_that_were_lost_are_told(two, capsys):
    os.truncate(two / "completions.jsonl", 10)
    train_grpo.main(["--resume_from_checkpoint", str(two)])
    assert "completions.jsonl: " in capsys.readouterr().out


@pytest.mark.case("I19")
def test_other_data_under_the_same_name_are_refused(tmp_path, monkeypatch):
    from PIL import Image

    for split, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        for n in range(3):
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            shade = tuple(max(0, part - 30 * n) for part in colour)
            Image.new("RGB", (56, 56), shade).save(tmp_path / "data" / split / f"{n}.png")
    line = f"--data {tmp_path / 'data'} --max_steps 3 --prompts_per_step 2 --report_prompts 0"
    line += f" --max_completion_length 4 --output_dir {tmp_path / 'run'}"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stopped_in(patch, train_grpo, "generate_group", 2)
        train_grpo.main(line.split())
    for path in (tmp_path / "data" / "red").iterdir():
        Image.new("RGB", (56, 56), (0, 200, int(path.stem))).save(path)
    with pytest.raises(InputError, match="the data has changed, train was"):
        train_grpo.main(["--resume_from_checkpoint", str(tmp_path / "run")])


@pytest.mark.case("F6")
def test_a_save_that_fails_is_told_and_tried_again_at_the_next(
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
    assert capsys.readouterr().err.count("no space left on device); training goes on") == 2
    assert {path.name for path in out.glob("step_*")} == {"step_1", "step_4", "step_5"}
    assert_same(straight, out)


def test_two_runs_cannot_write_into_one_directory(two, tmp_path):
    with lock_directory(two), pytest.raises(InputError, match="another run is writing there"):
        train_grpo.main(["--resume_from_checkpoint", str(two)])
    lock_directory(two).close()  # free again


@pytest.mark.case("F4")
def test_a_run_that_was_still_ending_when_its_checkpoint_was_chosen_is_not_forked(two, capsys):
    """Between the choice and the lock lie seconds, in which the run before may save once more."""
    argv = ["--resume_from_checkpoint", str(two)]
    cfg, found = parse_or_resume(GRPOConfig, argv, "")
    late = two / f"step_{found.step + 1}"
    shutil.copytree(found.directory, late)
    with pytest.raises(InputError, match="another process has just written there"):
        train_grpo.train(cfg, found)
    assert late.exists() and not list(two.glob("abandoned_*"))
    shutil.rmtree(late)
    saved_again = replace(found, state=found.state | {"pending": {}})  # and it was another state
    with pytest.raises(InputError, match="another process has just written there"):
        train_grpo.train(cfg, saved_again)
    shutil.rmtree(two / "step_3")  # the run before may also have removed one
    with pytest.raises(InputError, match="another process has just written there"):
        train_grpo.train(cfg, found)
    train_grpo.main(argv)


# ---- updates that are not finite -----------------------------------------------------------------


@pytest.mark.parametrize("script", ["train_grpo", "train_sft"])
def test_five_bad_updates_in_a_row_stop_the_run_with_a_dump_and_a_sound_checkpoint(
    script, flags, tmp_path, monkeypatch
):
    """Steps 2 and 4 to 8 overflow: one alone is skipped, five in a row are too many."""
    module, name = {
        "train_grpo": (train_grpo, "accumulate_gradient"),
        "train_sft": (train_sft, "accumulate_imitation"),
    }[script]
    original, calls = getattr(module, name), 0

    def overflowing(model, *args):
        nonlocal calls
        calls += 1
        found = original(model, *args)
        if calls == 2 or calls >= 4:
            model.model.norm.weight.grad[0] = math.inf
            found = math.inf if script == "train_sft" else found | {"loss": math.inf}
        return found

    monkeypatch.setattr(module, name, overflowing)
    words = flags if script == "train_grpo" else "--task count --device cpu --train_size 8".split()
    words = [*words, *"--held_out_size 2 --prompts_per_step 2 --max_steps 20".split()]
    out = tmp_path / "run"
    with pytest.raises(InputError, match="5 steps in a row.*not_finite.json.*--learning_rate"):
        module.main([*words, "--save_steps", "0", "--output_dir", str(out)])
    lines = [
        json.loads(line, parse_constant=pytest.fail) for line in (out / "metrics.jsonl").open()
    ]
    skipped = [line.get("steps_skipped_nonfinite") for line in lines]
    assert skipped == [None, 0.0, 1.0, 0.0, *[1.0] * 5]
    dump = json.loads((out / "not_finite.json").read_text())
    assert [bad["step"] for bad in dump] == [4, 5, 6, 7, 8]
    assert dump[0]["parameters"] == ["model.norm.weight"] and dump[0]["metrics"]["loss"] == "inf"
    asked = (
        {line["id"] for line in map(json.loads, (out / "completions.jsonl").open())}
        if (out / "completions.jsonl").exists()
        else None
    )
    assert all(len(bad["questions"]) == 2 for bad in dump)
    assert asked is None or {q for bad in dump for q in bad["questions"]} <= asked
    kept = load_model(find_checkpoint(out).hf)
    assert all(bool(p.isfinite().all()) for p in kept.parameters())
