"""Faults at exact moments: kills, full and failing disks, lack of memory, dead workers, readers.

What is lost is told, what was saved stays whole, and a run that goes on ends as if nothing had
happened. tests/training/test_resume.py has the checkpoints and signals, tests/training/test_ranks.py the faults of
ranks; tests/robustness/campaign_faults.py lists all of them.
"""

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evaluate
import train_grpo
from benchmarks.robustness.kills import metrics
from data.examples import Example
from model.weights import load_model
from reporting.page.saved_run import read_run
from reporting.run_log import RunLog
from rewards import Reward
from runtime import console
from runtime.errors import InputError
from runtime.run_directory import write_atomically
from train_grpo import GRPOConfig
from training import checkpoint, run
from training.checkpoint import find_checkpoint, save_checkpoint, why_unusable
from training.reward_worker import Workers
from training.scoring import UserReward

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
FLAGS = f"--task count --max_steps {STEPS} --eval_steps {STEPS} --save_steps 1 --save_total_limit 2"
FLAGS += " --train_size 6 --held_out_size 2 --prompts_per_step 2 --max_completion_length 6"
FLAGS += " --report_prompts 1 --learning_rate 1e-3 --device cpu"


@pytest.fixture
def flags(tiny_dir, monkeypatch):
    """Of a short run in which a random model earns something, so that its weights move."""
    monkeypatch.setitem(evaluate.TASKS, "count", odd_lengths_are_paid(evaluate.TASKS["count"]))
    return [*FLAGS.split(), "--model", str(tiny_dir)]


def odd_lengths_are_paid(load):
    def paid(text, example, dense):
        return Reward(float(len(text) % 2), {"correct": float(len(text) % 2), "format": 0.0})

    return lambda settings: replace(load(settings), reward=paid)


def differences(a: Path, b: Path) -> list[str]:
    """What two runs of STEPS steps have left that is not the same."""
    names = [f"step_{STEPS}/hf/model.safetensors", "completions.jsonl", "gallery.jsonl"]
    names += [f"step_{STEPS - 1}/trainer/optimizer.safetensors"]
    found = [name for name in names if (a / name).read_bytes() != (b / name).read_bytes()]
    return found + ([] if metrics(a) == metrics(b) else ["metrics.jsonl"])


# ---- killed (F1 to F5, F20, F22) -----------------------------------------------------------------

KILLED = {  # moment -> step of the newest usable checkpoint
    "in a rollout": 2,
    "between backward and optimizer": 2,
    "in an update, weights moved": 2,
    "in a row of a log": 1,
    "behind the rename of a checkpoint": 2,
    "in the removal of an old checkpoint": 3,
}
PROGRAM = """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
import evaluate, sample, train_grpo
from benchmarks.robustness.kills import in_child
from training import checkpoint, run
from reporting.run_log import RunLog
from tests.robustness.test_faults import FLAGS, KILLED, differences, odd_lengths_are_paid

tiny, work = map(Path, sys.argv[1:])
evaluate.TASKS["count"] = odd_lengths_are_paid(evaluate.TASKS["count"])
run.try_report = checkpoint._flush = lambda path: None  # no part of this, and slow

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def watch(place, name, call, act, is_after=False):
    original, calls = getattr(place, name), [0]
    def watched(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call and not is_after: act()
        result = original(*args, **kwargs)
        if calls[0] == call and is_after: act()
        return result
    setattr(place, name, watched)

def half_a_row():
    original = RunLog.append
    def torn(self, file, rows):
        if file == "metrics.jsonl" and rows[0]["step"] == 2:
            with open(self.directory / file, "a") as out:
                out.write(json.dumps(rows[0])[:50])
            die()
        original(self, file, rows)
    RunLog.append = torn

def half_a_removal():
    original = shutil.rmtree
    def torn(path, *args, **kwargs):
        if Path(path).name.endswith(".pruned") and Path(path).exists():
            (Path(path) / "hf" / "model.safetensors").unlink()
            die()
        original(path, *args, **kwargs)
    shutil.rmtree = torn

def plant(moment):
    if moment == "in a rollout":  # the third one, in the middle of its tokens
        then = lambda: watch(sample.Decoder, "advance", 2, die)
        watch(train_grpo, "generate_group", 3, then)
    if moment == "between backward and optimizer":
        watch(torch.Tensor, "backward", 3, die, is_after=True)
    if moment == "in an update, weights moved":
        watch(torch.optim.AdamW, "step", 3, die, is_after=True)
    if moment == "in a row of a log":
        half_a_row()
    if moment == "behind the rename of a checkpoint":
        watch(checkpoint, "_swap", 2, die, is_after=True)
    if moment == "in the removal of an old checkpoint":
        half_a_removal()

def train(argv, moment=None):
    plant(moment)
    train_grpo.main(argv)

def children_of_training():
    def look():
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # there are none
            (work / "alone").touch()
    watch(train_grpo, "generate_group", 2, look)
    train_grpo.main([*words, "--output_dir", str(straight)])

words, straight, found = [*FLAGS.split(), "--model", str(tiny)], work / "straight", {}
assert in_child(children_of_training) == 0
for moment in KILLED:
    out = work / moment.replace(" ", "-").replace(",", "")
    code = in_child(lambda: train([*words, "--output_dir", str(out)], moment))
    usable = [p.name for p in out.glob("step_*") if checkpoint.why_unusable(p) is None]
    newest = checkpoint.find_checkpoint(out).step
    resumed = in_child(lambda: train(["--resume_from_checkpoint", str(out)]))
    left = [p.name for p in out.glob(".step_*")]
    found[moment] = dict(
        code=code, usable=usable, newest=newest, resumed=resumed, left=left,
        differences=differences(straight, out),
    )
found["alone"] = (work / "alone").exists()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def killed(tiny_dir, tmp_path_factory) -> dict:
    """What became of each run. One process that forks them, so that libraries load once."""
    work = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_dir), str(work)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.case("F1", "F2", "F3", "F4", "F5", "F22")
@pytest.mark.slow
@pytest.mark.parametrize("moment", KILLED)
def test_a_run_killed_at_this_very_moment_goes_on_exactly(killed, moment):
    found = killed[moment]
    assert found["code"] == -9 and found["resumed"] == 0
    assert found["newest"] == KILLED[moment] and f"step_{found['newest']}" in found["usable"]
    assert found["differences"] == [] and found["left"] == []


@pytest.mark.case("F20")
@pytest.mark.slow
def test_training_has_no_other_process_that_could_die(killed):
    assert killed["alone"]


# ---- disks (F6, F11, F22) ------------------------------------------------------------------------


@pytest.mark.case("F6")
def test_a_disk_that_stays_full_costs_steps_but_nothing_that_was_saved(
    flags, tmp_path, monkeypatch, capsys
):
    """A real limit: files end at 20 kB, while checkpoints from the second on are written."""
    original, saves = run.save_checkpoint, []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*args):
        saves.append(args)
        try:
            if len(saves) > 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            return original(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    out = tmp_path / "run"
    train_grpo.main([*flags, "--output_dir", str(tmp_path / "straight")])
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(run, "save_checkpoint", limited)
        console.run(lambda: train_grpo.main([*flags, "--output_dir", str(out)]))
    err = capsys.readouterr().err
    assert stop.value.code == 2  # the last one could not be saved
    assert err.count("; training goes on") == STEPS - 2  # told, and tried again at the next
    last = err.splitlines()[-1]
    assert last.startswith("error: ") and f"step_{STEPS}" in last and "File too large" in last
    assert [p.name for p in out.glob("*step_*")] == ["step_1"] and not why_unusable(out / "step_1")
    train_grpo.main(["--resume_from_checkpoint", str(out)])
    assert differences(tmp_path / "straight", out) == []


FAILING = {  # what fails -> (module, function, error)
    "the directory is read-only": (Path, "mkdir", errno.EROFS),
    "the disk cannot flush": (os, "fsync", errno.EIO),
    "the disk cannot read back": (checkpoint, "_hash", errno.EIO),
    "the name cannot be given": (os, "replace", errno.EACCES),
}


@pytest.mark.case("F11")
@pytest.mark.parametrize("what", FAILING)
def test_a_failing_disk_is_named_and_leaves_what_was_there(tiny_dir, tmp_path, monkeypatch, what):
    model, (place, name, number) = load_model(tiny_dir), FAILING[what]
    states = [{"step": n, "pending": None, "sizes": {}, "not_finite": []} for n in (1, 2)]
    kept = {"x": torch.ones(3)}
    save_checkpoint(tmp_path, model, tiny_dir, kept, states[0])
    before = sorted(tmp_path.rglob("*"))

    def fails(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(place, name, fails)
        with pytest.raises(InputError) as caught:
            save_checkpoint(tmp_path, model, tiny_dir, kept, states[1], 1)
    said = str(caught.value)
    assert str(tmp_path / "step_2") in said and os.strerror(number) in said
    assert sorted(tmp_path.rglob("*")) == before
    assert find_checkpoint(tmp_path).step == 1
    save_checkpoint(tmp_path, model, tiny_dir, kept, states[1], 1)  # the next one may succeed
    assert find_checkpoint(tmp_path).step == 2 and not (tmp_path / "step_1").exists()


@pytest.mark.case("F11")
def test_a_checkpoint_that_could_not_be_replaced_is_still_there(tiny_dir, tmp_path, monkeypatch):
    model, original, renamed = load_model(tiny_dir), os.replace, []
    states = [
        {"step": 1, "pending": pending, "sizes": {}, "not_finite": []} for pending in ({}, None)
    ]
    save_checkpoint(tmp_path, model, tiny_dir, {}, states[0])

    def fails_once_the_old_one_is_aside(a, b):
        renamed.append(b)
        if renamed[-2:-1] == [tmp_path / ".step_1.aside"]:
            raise OSError(errno.EIO, "Input/output error")
        original(a, b)

    with monkeypatch.context() as patch, pytest.raises(InputError, match="Input/output error"):
        patch.setattr(os, "replace", fails_once_the_old_one_is_aside)
        save_checkpoint(tmp_path, model, tiny_dir, {}, states[1])
    assert find_checkpoint(tmp_path).state == states[0]


@pytest.mark.case("F22")
def test_logs_and_pages_are_whole_for_whoever_reads_them_meanwhile(tiny_dir, tmp_path):
    cfg = GRPOConfig(model=tiny_dir, output_dir=tmp_path / "run")
    log, page = RunLog(cfg, {}), tmp_path / "run" / "report.html"
    write_atomically(page, "<html>0</html>")
    is_over, wrong, reads = threading.Event(), [], 0

    def write():
        for step in range(150):
            log.append("metrics.jsonl", [{"step": step, "text": "é" * 500 * (step % 50)}])
            write_atomically(page, f"<html>{'é' * 5000 * (step % 40)}</html>")
        is_over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not is_over.is_set():
        rows, text = read_run(log.directory).rows, page.read_text(encoding="utf-8")
        reads += 1
        if [row["step"] for row in rows] != list(range(len(rows))):
            wrong.append(rows)
        if not (text.startswith("<html>") and text.endswith("</html>")):
            wrong.append(text)
    writer.join()
    log.close()
    assert wrong == [] and reads > 2 and len(read_run(log.directory).rows) == 150


# ---- memory (F15) --------------------------------------------------------------------------------


@pytest.mark.case("F15")
@pytest.mark.parametrize("name", ["generate_group", "grpo_loss"])
def test_out_of_memory_names_the_flags_and_keeps_the_steps_that_were_made(
    flags, tmp_path, monkeypatch, capsys, name
):
    """In a rollout, and in a backward that has one question a time already."""
    original, calls, out = getattr(train_grpo, name), [], tmp_path / "run"

    def scarce(*args, **kwargs):
        calls.append(name)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(*args, **kwargs)

    train_grpo.main([*flags, "--output_dir", str(tmp_path / "straight")])
    capsys.readouterr()
    more = ["--groups_per_micro_batch", "1", "--save_steps", "0", "--output_dir", str(out)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(train_grpo, name, scarce)
        console.run(lambda: train_grpo.main([*flags, *more]))
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert stop.value.code == 2 and error.startswith("error: out of memory; lower --groups_per")
    for flag in ("--num_generations", "--max_completion_length", "--groups_per_micro_batch"):
        assert flag in error
    steps = [row["step"] for row in metrics(out)]
    assert find_checkpoint(out).step == steps[-1] in (1, 2)  # whole steps, none begun
    assert metrics(out)[:1] == metrics(tmp_path / "straight")[:1]


# ---- workers (F19) -------------------------------------------------------------------------------


@pytest.mark.case("F19")
def test_a_reward_process_killed_from_outside_is_replaced_and_its_completions_are_counted(tmp_path):
    """As by a system that is short of memory, while it waits for work."""
    file = tmp_path / "mine.py"
    file.write_text("def pay(completions, example):\n    return [2.0] * len(completions)\n")
    user = UserReward(Workers(f"{file}:pay", 30))
    question = (["a", "b"], Example("e", (), "?", "t"))
    assert [reward.total for reward in user.of_step([question])[0]] == [2.0, 2.0]
    victim = user.workers.idle[-1].process
    victim.kill()
    victim.join()
    lost, spared = user.of_step([question, question])
    assert lost == [None, None] and [reward.total for reward in spared] == [2.0, 2.0]
    assert user.faults == {"died": 2}
    again = user.of_step([question] * 3)
    assert all(reward.total == 2.0 for group in again for reward in group)
    assert user.faults == {"died": 2}
    for worker in user.workers.idle:
        worker.kill()
