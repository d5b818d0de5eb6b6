"""Bad flags, directories and surroundings, through the scripts. Numbers are of the campaign.

What cannot work is one line and exit code 2 before any weight changes and without a trace on the
disk; what is merely unusual (no terminal, no home, another locale, spaces in paths) works.
Run: pytest tests/robustness/test_inputs_cli.py
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate
import sample
import train_grpo
import train_sft
from runtime import console
from tests.data.test_labelled import class_folders
from tests.helpers import rows
from tests.model.test_image import noise
from tests.training.test_run import flags, refused

ROOT = Path(train_grpo.__file__).parent
SMALL = "--task count --train_size 2 --held_out_size 1".split()  # data that is quickly drawn
SCRIPTS = {
    "train_grpo": train_grpo.main,
    "train_sft": train_sft.main,
    "evaluate": evaluate.main,
    "sample": sample.main,
}


def error_of(capsys, main, words) -> str:
    """Run a script that has to end with exit code 2; return its one line on stderr."""
    with pytest.raises(SystemExit) as stop:
        console.run(lambda: main([str(word) for word in words]))
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, out + err
    return err


@pytest.mark.case("I70")
@pytest.mark.parametrize("script", SCRIPTS)
def test_i70_every_script_names_the_nearest_flag(script, capsys):
    error = error_of(capsys, SCRIPTS[script], ["--max_completion_lenght", "9"])
    assert error == (
        "error: --max_completion_lenght: no such flag; did you mean --max_completion_length?\n"
    )


@pytest.mark.case("I72")
@pytest.mark.parametrize("place", ["file", "file/run", "/proc/nanovrft/run", "x" * 300, "kept/run"])
def test_i72_an_output_directory_that_cannot_be_made_is_one_line(tiny_dir, tmp_path, capsys, place):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "kept").mkdir(mode=0o500)
    if place == "kept/run" and os.geteuid() == 0:
        pytest.skip("nothing is read-only for root")
    assert "--output_dir" in refused(capsys, flags(tiny_dir, tmp_path / place))
    assert (tmp_path / "file").read_text() == "precious"
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "kept"}


@pytest.mark.case("I72")
@pytest.mark.parametrize("at", ["mkdir", "write_text", "open"])
def test_i72_a_disk_that_is_full_at_the_start_is_one_line(
    tiny_dir, tmp_path, monkeypatch, capsys, at
):
    out, original = tmp_path / "run", getattr(Path, at)

    def full(path, *rest, **more):
        if path.is_relative_to(out):
            raise OSError(28, "No space left on device")
        return original(path, *rest, **more)

    monkeypatch.setattr(Path, at, full)
    error = refused(capsys, flags(tiny_dir, out))
    assert f"--output_dir {out}: cannot be written" in error and "No space left" in error
    assert not list(out.glob("step_*"))


@pytest.mark.case("I73")
def test_i73_a_directory_that_is_no_run_cannot_be_resumed(tiny_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("{}")
    class_folders(tmp_path / "pictures", a=1, b=1)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "config.json").write_text('{"task": "cls", "colour": "red"}')
    before = sorted([*tmp_path.rglob("*"), *tiny_dir.rglob("*")])
    for path in (tiny_dir, *(tmp_path / name for name in ("file", "pictures", "report"))):
        error = error_of(capsys, train_grpo.main, ["--resume_from_checkpoint", path])
        assert str(path) in error and ("is no run" in error or "config.json: not a" in error)
    assert sorted([*tmp_path.rglob("*"), *tiny_dir.rglob("*")]) == before


def only(directory: Path, name: str, content: bytes = b"cos\nsystem\n(S'touch owned'\ntR.") -> None:
    """Put this file in the place of the weights."""
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(content)


def as_adapter(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "other"}')
    (directory / "adapter_model.safetensors").write_bytes(b"")


SPOILED = {
    "only .bin": (lambda d: only(d, "pytorch_model.bin"), "is a pickle", "pytorch_model.bin"),
    "only .pth": (lambda d: only(d, "model.pth"), "save it anew as safetensors", "model.pth"),
    "shards without their index": (
        lambda d: only(d, "model-00001-of-00002.safetensors"),
        "without their model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    ),
    "a missing shard": (
        lambda d: only(
            d, "model.safetensors.index.json", b'{"weight_map": {"a": "model-2.safetensors"}}'
        ),
        "model-2.safetensors",
        "this shard of the checkpoint is missing",
    ),
    "an adapter alone": (
        as_adapter,
        "is an adapter",
        "give it as --adapter, and its base as --model",
    ),
    "a quantised file alone": (
        lambda d: as_adapter(d) or [p.rename(d / "model.gguf") for p in d.glob("*.json")],
        "holds .gguf files",
        "download the safetensors checkpoint",
    ),
    "an adapter in a model's place": (
        lambda d: only(d, "adapter_model.safetensors"),
        "neither model.safetensors nor",
        "adapter_model.safetensors",
    ),
    "another architecture": (
        lambda d: (d / "config.json").write_text('{"model_type": "mllama"}'),
        "config.json: model_type is 'mllama'",
        "pass --model such a directory",
    ),
    "a tokenizer of another model": (
        lambda d: (d / "config.json").write_text(
            json.dumps(json.loads((d / "config.json").read_text()) | {"vocab_size": 256})
        ),
        "the tokenizer has",
        "vocab_size 256",
    ),
}


@pytest.mark.case("I74")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("case", SPOILED)
def test_i74_a_model_directory_that_cannot_be_used_is_one_line_in_every_script(
    tiny_dir, tmp_path, monkeypatch, capsys, case, script
):
    monkeypatch.chdir(tmp_path)
    directory = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    spoil, *words = SPOILED[case]
    spoil(directory)
    small = SMALL if script != "sample" else []
    error = error_of(capsys, SCRIPTS[script], ["--model", directory, *small])
    assert str(directory) in error and all(word in error for word in words)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # no runs/, nothing executed


@pytest.mark.case("I75")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_i75_a_gpu_that_is_not_there_is_one_line(tiny_dir, tmp_path, capsys, script, device):
    words = ["--model", tiny_dir, "--device", device, *(SMALL if script != "sample" else [])]
    if script.startswith("train"):
        words += ["--output_dir", tmp_path / "run"]
    error = error_of(capsys, SCRIPTS[script], words)
    assert f"--device {device}: not usable here" in error and "try --device cpu" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.case("I75")
@pytest.mark.parametrize("device", ["tpu", "mps", "xpu", "cuda:99", "cuda:-1", "gpu", "", "meta"])
def test_i75_a_device_of_another_kind_is_one_line(tiny_dir, capsys, device):
    error = error_of(capsys, sample.main, ["--model", tiny_dir, f"--device={device}"])
    assert f"--device {device}: not usable here" in error


@pytest.mark.case("I76")
def test_i76_a_run_works_without_stdin_home_terminal_or_unicode_and_with_spaces_in_paths(
    tiny_dir, tmp_path
):
    """All at once: stdin closed, TERM=dumb, a C locale, a home that cannot be written."""
    home = tmp_path / "a b"
    home.mkdir()
    model = shutil.copytree(tiny_dir, home / "my model")
    for i in range(4):
        noise(9, 9, i).save(home / f"{i} .png")
    (home / "bad .png").write_bytes(b"")
    data = [
        {"id": f"花{i}", "image": f"{i} .png", "problem": "Größe? 牡丹", "solution": name}
        for i, name in enumerate(["Röse", "Röse", "牡丹", "牡丹"])
    ]
    data.append(data[0] | {"id": "kaputt é", "image": "bad .png"})
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in data)
    (home / "rows of mine.jsonl").write_text(text, encoding="utf-8")
    words = "--max_steps 1 --prompts_per_step 2 --max_completion_length 4 --device cpu --data"
    words = [*words.split(), "rows of mine.jsonl", "--model", "my model", "--output_dir", "a run"]
    kept = {"PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "TMPDIR"}
    env = {name: value for name, value in os.environ.items() if name in kept}
    env |= {"HOME": "/proc/nobody", "TERM": "dumb", "LC_ALL": "C", "PYTHONUTF8": "0"}
    env |= {"PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_grpo.py"), *words],
        cwd=home,
        env=env,
        capture_output=True,
        timeout=120,
        preexec_fn=lambda: os.close(0),
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode(errors="replace")
    output = done.stdout.decode("ascii")
    assert "1 of 5 records skipped" in output and "bad .png" in output
    assert "kaputt \\xe9" in output and "report: a run/report.html" in output
    page = (home / "a run" / "report.html").read_text(encoding="utf-8")
    assert "Größe? 牡丹" in page
    assert {row["target"] for row in rows(home / "a run" / "completions.jsonl")} == {"Röse", "牡丹"}
    assert model.name == "my model" and (home / "a run" / "step_1" / "hf").is_dir()


@pytest.mark.case("I71", "I76")
def test_i76_a_file_name_that_the_locale_cannot_spell_is_one_line(tmp_path):
    noise(9, 9).save(tmp_path / "花.png")
    row = {"image": "花.png", "problem": "?", "solution": "a"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    command = [sys.executable, ROOT / "train_grpo.py", "--task", "vqa", "--data", "rows.jsonl"]
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: rows.jsonl:1: ") and done.stderr.count("\n") == 1
