"""Faults at exact moments: kills, full and failing disks, lack of memory, readers.

What is lost is reported, what was saved stays complete, and a resumed run ends as if nothing had
happened. tests/training/test_resume.py has checkpoints and signals, tests/training/test_scoring.py
the reward's processes, tests/training/test_ranks.py the faults of ranks.
"""

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import train_grpo
from benchmarks.robustness.kills import metrics
from model.weights import load_model
from reporting.page.saved_run import read_run
from reporting.run_log import RunLog
from runtime import console
from runtime.errors import InputError
from runtime.run_directory import write_atomically
from tasks import TASKS
from tests.helpers import pay_odd_lengths, step_rows
from train_grpo import GRPOConfig
from training import checkpoint, run
from training.checkpoint import find_checkpoint, save_checkpoint, why_unusable

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
FLAGS = f"--task count --max_steps {STEPS} --eval_steps {STEPS} --save_steps 1 --save_total_limit 2"
FLAGS += " --train_size 6 --held_out_size 2 --prompts_per_step 2 --max_completion_length 6"
FLAGS += " --report_prompts 1 --learning_rate 1e-3 --device cpu"


@pytest.fixture
def flags(tiny_dir, monkeypatch):
    """Of a short run in which a random model earns something, so that its weights move."""
    monkeypatch.setattr(TASKS["count"], "load", pay_odd_lengths(TASKS["count"].load))
    return [*FLAGS.split(), "--model", str(tiny_dir)]


def differences(a: Path, b: Path) -> list[str]:
    """What two runs of STEPS steps have left that is not the same."""
    names = [f"step_{STEPS}/hf/model.safetensors", "completions.jsonl", "gallery.jsonl"]
    names += [f"step_{STEPS - 1}/trainer/optimizer.safetensors"]
    different = [name for name in names if (a / name).read_bytes() != (b / name).read_bytes()]
    return different + ([] if metrics(a) == metrics(b) else ["metrics.jsonl"])


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
import sample, train_grpo
from benchmarks.robustness.kills import in_child
from reporting.run_log import RunLog
from tasks import TASKS
from tests.helpers import pay_odd_lengths
from tests.robustness.test_faults import FLAGS, KILLED, differences
from training import checkpoint, run

tiny, work = map(Path, sys.argv[1:])
TASKS["count"].load = pay_odd_lengths(TASKS["count"].load)
run.try_report = checkpoint._flush = lambda path: None  # no part of this, and slow

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def watch(place, name, is_due, act, is_after=False):
    original, calls = getattr(place, name), []
    def watched(*args, **kwargs):
        calls.append(args)
        due = is_due(len(calls), *args)
        if due and not is_after: act(*args)
        result = original(*args, **kwargs)
        if due and is_after: act(*args)
        return result
    setattr(place, name, watched)

def nth(n):
    return lambda calls, *args: calls == n

def half_a_row(log, file, rows):
    with open(log.directory / file, "a") as out:
        out.write(json.dumps(rows[0])[:50])
    die()

def half_a_removal(path, **more):
    (Path(path) / "hf" / "model.safetensors").unlink()
    die()

def plant(moment):
    if moment == "in a rollout":  # the third one, in the middle of its tokens
        then = lambda *_: watch(sample.Decoder, "advance", nth(2), lambda *_: die())
        watch(train_grpo, "generate_group", nth(3), then)
    if moment == "between backward and optimizer":
        watch(torch.Tensor, "backward", nth(3), lambda *_: die(), is_after=True)
    if moment == "in an update, weights moved":
        watch(torch.optim.AdamW, "step", nth(3), lambda *_: die(), is_after=True)
    if moment == "in a row of a log":
        is_second = lambda calls, log, file, rows: file == "metrics.jsonl" and rows[0]["step"] == 2
        watch(RunLog, "append", is_second, half_a_row)
    if moment == "behind the rename of a checkpoint":
        is_step_2 = lambda calls, source, target: Path(target).name == "step_2"
        watch(os, "replace", is_step_2, lambda *_: die(), is_after=True)
    if moment == "in the removal of an old checkpoint":
        is_step_1 = lambda calls, path, *more: Path(path).name == "step_1"
        watch(shutil, "rmtree", is_step_1, half_a_removal)

def train(argv, moment=None):
    plant(moment)
    train_grpo.main(argv)

def children_of_training():
    def look(*_):
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # there are none
            (work / "alone").touch()
    watch(train_grpo, "generate_group", nth(2), look)
    train_grpo.main([*words, "--output_dir", str(straight)])

words, straight, outcomes = [*FLAGS.split(), "--model", str(tiny)], work / "straight", {}
assert in_child(children_of_training) == 0
for moment in KILLED:
    out = work / moment.replace(" ", "-").replace(",", "")
    code = in_child(lambda: train([*words, "--output_dir", str(out)], moment))
    usable = [p.name for p in out.glob("step_*") if checkpoint.why_unusable(p) is None]
    newest = checkpoint.find_checkpoint(out).step
    resumed = in_child(lambda: train(["--resume_from_checkpoint", str(out)]))
    outcomes[moment] = dict(
        code=code, usable=usable, newest=newest, resumed=resumed,
        left=sorted(p.name for p in [*out.glob(".step_*"), *out.glob("step_*")]),
        differences=differences(straight, out),
    )
outcomes["alone"] = (work / "alone").exists()
print(json.dumps(outcomes))
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
def test_a_run_killed_at_this_very_moment_resumes_exactly(killed, moment):
    outcome = killed[moment]
    assert outcome["code"] == -9 and outcome["resumed"] == 0
    assert outcome["newest"] == KILLED[moment] and f"step_{KILLED[moment]}" in outcome["usable"]
    assert outcome["differences"] == [] and outcome["left"] == ["step_3", "step_4"]


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
    assert err.count("; training continues") == STEPS - 2  # reported, and tried again at the next
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
    states = [{"step": n, "sizes": {}, "not_finite": []} for n in (1, 2)]
    tensors = {"x": torch.ones(3)}
    save_checkpoint(tmp_path, model, tiny_dir, tensors, states[0])
    before = sorted(tmp_path.rglob("*"))

    def fails(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(place, name, fails)
        with pytest.raises(InputError) as caught:
            save_checkpoint(tmp_path, model, tiny_dir, tensors, states[1], 1)
    message = str(caught.value)
    assert str(tmp_path / "step_2") in message and os.strerror(number) in message
    assert sorted(tmp_path.rglob("*")) == before
    assert find_checkpoint(tmp_path).step == 1
    save_checkpoint(tmp_path, model, tiny_dir, tensors, states[1], 1)  # the next one may succeed
    assert find_checkpoint(tmp_path).step == 2 and not (tmp_path / "step_1").exists()


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
    steps = [row["step"] for row in step_rows(out)]
    assert find_checkpoint(out).step == steps[-1] in (1, 2)  # finished steps, none begun
    assert metrics(out)[:1] == metrics(tmp_path / "straight")[:1]
