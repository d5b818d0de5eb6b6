"""Faults at exact moments: kills, full and failing disks, lack of memory, readers.

What is lost is reported, what was saved stays complete, and a resumed run ends as if nothing had
happened. tests/training/test_resume.py has checkpoints and signals, tests/training/test_scoring.py
the reward's processes, tests/training/test_ranks.py the faults of ranks.
"""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

import train_grpo
from benchmarks.robustness.kills import in_child, metrics
from model.weights import load_model
from reporting.page.saved_run import read_run
from reporting.run_log import RunLog
from runtime import console
from runtime.errors import InputError
from runtime.run_directory import write_atomically
from sample import Decoder
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


def differences(a: Path, b: Path, steps: int = STEPS) -> list[str]:
    """What two runs of so many steps have left that is not the same."""
    names = [f"step_{steps}/hf/model.safetensors", "completions.jsonl", "gallery.jsonl"]
    names += [f"step_{steps - 1}/trainer/optimizer.safetensors"]
    different = [name for name in names if (a / name).read_bytes() != (b / name).read_bytes()]
    return different + ([] if metrics(a) == metrics(b) else ["metrics.jsonl"])


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(place, name, act=die, after=False, nth=1, when=lambda *args: True) -> None:
    """Have the n-th of the calls that are meant call `act` as well, before or after its work."""
    original, calls = getattr(place, name), []

    def watched(*args, **kwargs):
        calls.extend([args] if when(*args) else [])
        is_due = when(*args) and len(calls) == nth
        if is_due and not after:
            act(*args)
        result = original(*args, **kwargs)
        if is_due and after:
            act(*args)
        return result

    setattr(place, name, watched)


def half_a_row(log, file, rows) -> None:
    with open(log.directory / file, "a") as out:
        out.write(json.dumps(rows[0])[:50])
    die()


def half_a_removal(path, **more) -> None:
    (Path(path) / "hf" / "model.safetensors").unlink()
    die()


def no_child(*_) -> None:
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


MOMENTS = {  # in which one run is killed in turn -> its newest checkpoint then, how to die there
    "in the middle of a rollout": (
        1,
        lambda: at(train_grpo, "sample_groups", lambda *_: at(Decoder, "advance", nth=2), nth=2),
    ),
    "between backward and optimizer": (2, lambda: at(torch.Tensor, "backward", after=True, nth=2)),
    "in an update, weights moved": (3, lambda: at(AdamW, "step", after=True, nth=2)),
    "in a row of a log": (
        4,
        lambda: at(RunLog, "append", half_a_row, when=lambda log, file, rows: rows[0]["step"] == 5),
    ),
    "after the rename of a checkpoint": (
        6,
        lambda: at(os, "replace", after=True, when=lambda _, path: Path(path).name == "step_6"),
    ),
    "in the removal of an old checkpoint": (
        7,
        lambda: at(shutil, "rmtree", half_a_removal, when=lambda p, **_: Path(p).name == "step_5"),
    ),
}


def train(argv: list[str], plant=lambda: None) -> None:
    plant()
    train_grpo.main(argv)


def kill_and_resume(tiny_dir: str, work: Path) -> None:
    """Print what a run that is killed at every moment has left, as JSON."""
    load_model(Path(tiny_dir))  # what it imports late is then there in every fork
    TASKS["count"].load = pay_odd_lengths(TASKS["count"].load)
    run.try_report = checkpoint._flush = lambda path: None  # no part of this, and slow
    argv = [*FLAGS.split(), "--max_steps", "8", "--eval_steps", "8", "--model", tiny_dir]
    straight, out, codes = [*argv, "--output_dir", str(work / "straight")], work / "killed", []
    codes.append(in_child(lambda: train(straight, lambda: at(train_grpo, "make_groups", no_child))))
    argv, newest = [*argv, "--output_dir", str(out)], {}
    for moment, (_, plant) in MOMENTS.items():
        codes.append(in_child(partial(train, argv, plant)))
        newest[moment] = find_checkpoint(out).step
        argv = ["--resume_from_checkpoint", str(out)]
    codes.append(in_child(partial(train, argv)))
    left = sorted(path.name for path in [*out.glob(".step_*"), *out.glob("step_*")])
    different = differences(work / "straight", out, 8)
    print(json.dumps({"codes": codes, "newest": newest, "left": left, "differences": different}))


@pytest.mark.case("F1", "F2", "F3", "F4", "F5", "F20", "F22")
def test_a_run_killed_at_every_moment_resumes_exactly_and_has_no_child_process(tiny_dir, tmp_path):
    """In one new process that forks the others, so that libraries load once."""
    program = "import sys, pathlib; from tests.robustness.test_faults import kill_and_resume\n"
    program += "kill_and_resume(sys.argv[1], pathlib.Path(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_dir), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["codes"] == [0] + [-signal.SIGKILL] * len(MOMENTS) + [0], done.stderr[-3000:]
    assert outcome["newest"] == {moment: step for moment, (step, _) in MOMENTS.items()}
    assert outcome["differences"] == [] and outcome["left"] == ["step_7", "step_8"]


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
            log.append(
                "metrics.jsonl",
                [{"step": step} | {"é" * 50 + str(k): 0.0 for k in range(9 * (step % 50))}],
            )
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


@pytest.mark.case("F15")
@pytest.mark.parametrize("name", ["sample_groups", "grpo_loss"])
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
        lower = "--num_generations, --max_completion_length"
        console.run(lambda: train_grpo.main([*flags, *more]), trains=True, memory_flags=lower)
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert stop.value.code == 2 and error.startswith("error: out of memory; lower --groups_per")
    for flag in ("--num_generations", "--max_completion_length", "--groups_per_micro_batch"):
        assert flag in error
    steps = [row["step"] for row in step_rows(out)]
    assert find_checkpoint(out).step == steps[-1] in (1, 2)  # finished steps, none begun
    assert metrics(out)[:1] == metrics(tmp_path / "straight")[:1]
