"""How a script ends: bad input is one line and exit code 2, a bug keeps its traceback."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from evaluate import EvalConfig
from runtime import console
from runtime.errors import InputError
from sample import SampleConfig
from train_grpo import GRPOConfig
from train_sft import SFTConfig

ROOT = Path(console.__file__).parents[1]
PRINT_MUCH = (
    "from runtime import console; console.run(lambda: [print('x' * 5000) for _ in range(99)]"
)


def test_a_line_break_in_a_message_becomes_a_space(capsys):
    def main():
        raise InputError("--data 'a\nb': no such folder;\n  name another")

    with pytest.raises(SystemExit) as stopped:
        console.run(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --data 'a b': no such folder; name another\n"


@pytest.mark.case("F7")
def test_a_stdout_that_cannot_be_written_ends_a_script_and_no_training():
    program = f"{PRINT_MUCH}, trains={{}})"
    alone = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    full = "stdout cannot be written ([Errno 28] No space left on device)"
    for trains, ranks, code, words in (
        (True, "1", 0, f"{full}; continuing"),
        (False, "2", 0, f"{full}; continuing"),
        (False, "1", 2, f"error: {full}"),
    ):
        command = [sys.executable, "-c", program.format(trains)]
        environment = alone | {"WORLD_SIZE": ranks}
        with open("/dev/full", "w") as out:
            done = subprocess.run(
                command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True, env=environment
            )
        assert done.returncode == code and words in done.stderr and done.stderr.count("\n") == 1


def test_a_stream_that_was_closed_or_cannot_be_written_changes_no_exit_code():
    program = (
        "from runtime import console, errors\n"
        "def main():\n"
        "    print('x')\n"
        "    raise errors.InputError('bad')\n"
        "console.run(main)\n"
    )
    for closed in (">&- 2>&-", ">&- 2> /dev/full", "> /dev/null 2> /dev/full"):
        command = f'"$0" -c "$1" {closed}'
        done = subprocess.run(["sh", "-c", command, sys.executable, program], cwd=ROOT)
        assert done.returncode == 2, closed


def test_a_reader_that_has_seen_enough_ends_a_script_without_a_word():
    command = [sys.executable, "-c", f"{PRINT_MUCH})"]
    script = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    script.stdout.close()
    assert script.stderr.read() == b"" and script.wait() == 141


def test_an_interrupt_and_a_lack_of_memory_are_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    def too_large():
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    def a_bug():
        raise RuntimeError("shapes do not match")

    for main, code, words in ((interrupted, 130, "interrupted"), (too_large, 2, "out of memory")):
        with pytest.raises(SystemExit) as stop:
            console.run(main)
        error = capsys.readouterr().err
        assert stop.value.code == code and error.count("\n") == 1 and words in error
    with pytest.raises(RuntimeError, match="shapes"):  # a bug keeps its traceback
        console.run(a_bug)


@pytest.mark.parametrize(
    "script, kind",
    [("train_grpo", GRPOConfig), ("train_sft", SFTConfig)]
    + [("evaluate", EvalConfig), ("sample", SampleConfig)],
)
def test_a_lack_of_memory_names_flags_that_the_script_has(script, kind, capsys, monkeypatch):
    monkeypatch.setattr(console, "advice", "what the plan of an earlier run advised")
    ends = (ROOT / f"{script}.py").read_text(encoding="utf-8").split("__main__")[1]
    (call,) = re.findall(r"console\.run\(main(.*)\)", ends)
    lower = " ".join(re.findall(r'"(--.*)"', ends))
    with pytest.raises(SystemExit):
        console.run(lambda: (_ for _ in ()).throw(MemoryError()), "trains" in call, lower)
    named = re.findall(r"--(\w+)", capsys.readouterr().err)
    assert len(named) >= 3 and {*named} <= {field.name for field in fields(kind)}
    assert ("groups_per_micro_batch" in named) == script.startswith("train")


def test_scripts_run_without_their_docstrings():
    """Python -OO, or PYTHONOPTIMIZE=2: the help text lacks its first line, and that is all."""
    program = """
import contextlib, train_grpo, train_sft, evaluate, sample, report
for script in (train_grpo, train_sft, evaluate, sample, report):
    with contextlib.suppress(SystemExit):
        script.main(["--help"])
    print("end of", script.__name__)
"""
    command = [sys.executable, "-OO", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *helps, rest = re.split(r"end of \w+\n", done.stdout)
    assert len(helps) == 5 and all("--" in text for text in helps) and rest == ""


def test_a_file_that_may_not_be_read_is_one_line(capsys):
    with pytest.raises(SystemExit):
        console.run(lambda: (_ for _ in ()).throw(PermissionError(13, "Permission denied", "a/b")))
    assert capsys.readouterr().err == "error: a/b: Permission denied; check its rights\n"


def test_an_illegal_memory_access_is_a_bug_and_no_lack_of_memory():
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert not console.is_out_of_memory(error)
    for words in ("CUDA out of memory. Tried to allocate 2 GiB", "can't allocate memory"):
        assert console.is_out_of_memory(RuntimeError(words))
