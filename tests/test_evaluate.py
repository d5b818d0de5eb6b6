"""The command line of evaluate.py, on the garden: every split, every answer, bad flags."""

import json
import re
import shutil
from pathlib import Path

import pytest

import train_grpo
from data.garden.world import RL_SPECIES
from evaluate import EvalConfig, as_in_run, main
from runtime import console
from runtime.errors import InputError

SHORT = ["--max_completion_length", "8", "--device", "cpu"]


def test_the_command_line_prints_both_splits_and_writes_every_answer(tiny_dir, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    main(["--model", str(tiny_dir), "--held_out_per_class", "1", "--output", str(output), *SHORT])
    said = capsys.readouterr()
    line, ood = said.out.splitlines()
    assert "warning: held_out: 0.0% right, less than always answering" in said.err
    assert ood.startswith("cls ood, 10 questions: strict ")
    number = r"(\d+\.\d)%"
    shape = (
        rf"cls held_out, 30 questions: strict {number} \[{number}, {number}\], loose {number}, "
        rf"format {number}, unreadable {number}, most frequent answer {number} "
        rf"\(target {number}\), mean length (\d+\.\d) tokens, \d+\.\d s"
    )
    numbers = list(map(float, re.fullmatch(shape, line).groups()))
    strict, low, high, loose, form, unreadable, top, target, length = numbers
    records = [json.loads(row) for row in output.read_bytes().splitlines()]
    assert len(records) == len({r["id"] for r in records}) == 40
    assert [r["split"] for r in records] == ["held_out"] * 30 + ["ood"] * 10
    records = records[:30]
    assert {r["target"] for r in records} == {s.name for s in RL_SPECIES}
    for shown, name in ((strict, "strict"), (loose, "loose"), (form, "format")):
        assert shown == pytest.approx(100 * sum(r[name] for r in records) / 30, abs=0.051)
    assert low <= strict <= high and target == 3.3
    answers = [r["answer"] for r in records]
    assert unreadable == pytest.approx(100 * answers.count(None) / 30, abs=0.051)
    assert top < 100 and all(answer is None or answer for answer in answers)
    assert length == pytest.approx(sum(r["length"] for r in records) / 30, abs=0.051)


@pytest.mark.parametrize("split, n", [("val", 30), ("train", 30)])
def test_the_other_splits_can_be_evaluated(split, n, tiny_dir, capsys):
    main(["--model", str(tiny_dir), "--split", split, "--held_out_per_class", "1", *SHORT])
    assert capsys.readouterr().out.startswith(f"cls {split}, {n} questions: strict")


@pytest.mark.case("I71")
@pytest.mark.parametrize(
    "flag, value, hint",
    [
        ("--split", "test", "held_out, ood, val, train"),
        ("--model", "gone", "no such directory"),
        ("--output", ".", "a file in a folder that exists"),
        ("--output", "gone/answers.jsonl", "a file in a folder that exists"),
        ("--output", "older.jsonl", "exists already"),
        ("--batch_size", "0", "at least 1"),
        ("--shots", "0", "at least 1"),
        ("--votes", "0", "at least 1"),
        ("--votes", "4", "1 where --temperature is 0"),
        ("--temperature", "nan", "0 or in"),
        ("--temperature", "-1", "0 or in"),
        ("--max_completion_length", "0", "1 .. 10^6"),
        ("--device", "quantum", "not usable here"),
    ],
)
def test_bad_input_is_one_line_before_any_question_is_answered(
    flag, value, hint, tiny_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "older.jsonl").write_text("kept")
    with pytest.raises(SystemExit) as stopped:
        flags = {"--model": tiny_dir, "--held_out_per_class": 1, flag: value}
        console.run(lambda: main([f"{name}={text}" for name, text in flags.items()]))
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"error: {flag} {value}") and hint in err
    assert (tmp_path / "older.jsonl").read_text() == "kept"


@pytest.fixture(scope="module")
def finished(tiny_dir, tmp_path_factory):
    """A run of one step, with boxes asked for in a frame of its own."""
    run = tmp_path_factory.mktemp("finished") / "run"
    line = f"--task ground --model {tiny_dir} --max_steps 1 --train_size 2 --held_out_size 3"
    line += " --prompts_per_step 1 --max_completion_length 4 --report_prompts 0 --device cpu"
    train_grpo.main([*line.split(), "--prompt_mode", "direct", "--output_dir", str(run)])
    return run


def flip(path: Path) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


SPOILED = {  # what is done to a run -> what is said
    "a flipped bit": (lambda r: flip(r / "step_1/hf/model.safetensors"), "is damaged; restore it"),
    "another template": (
        lambda r: (r / "step_1/hf/chat_template.jinja").write_text("{{ 1 }}"),
        "chat_template.jinja is damaged",
    ),
    "no manifest": (
        lambda r: (r / "step_1/manifest.json").unlink(),
        "manifest.json cannot be read",
    ),
    "other settings": (
        lambda r: edit_settings(r, prompt_mode="think"),
        "prompt_mode is think, but the checkpoint was trained with direct",
    ),
    "another task": (lambda r: edit_settings(r, task="det"), "task is det, but the checkpoint was"),
}


def edit_settings(run: Path, **fields) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("case", SPOILED)
def test_a_run_that_is_not_as_it_was_saved_is_not_evaluated(finished, tmp_path, case):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    spoil, words = SPOILED[case]
    spoil(run)
    with pytest.raises(InputError, match=words):
        main(["--run", str(run), *SHORT])


def test_of_a_run_the_optimizer_is_not_needed(finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "step_1/trainer/optimizer.safetensors").unlink()
    main(["--run", str(run), "--task", "ground", "--split", "held_out", "--device", "cpu"])
    assert capsys.readouterr().out.startswith("ground held_out, 3 questions")


def test_flags_beside_a_run_are_honoured_or_refused(finished, tmp_path):
    """Also those that are given at their defaults, which differ from the run's."""
    given = {"task": "ground", "run": finished, "prompt_mode": "think", "held_out_size": 200}
    cfg = as_in_run(EvalConfig(**given), given)
    assert (cfg.prompt_mode, cfg.held_out_size, cfg.train_size) == ("think", 200, 2)
    for task in ("det", "cls"):
        with pytest.raises(InputError, match=f"--task {task}: the run's task is ground; leave"):
            main(["--run", str(finished), "--task", task, *SHORT])
    for flag in ("--model", "--adapter"):
        with pytest.raises(InputError, match=f"{flag} .*left out when --run is given"):
            main(["--run", str(finished), flag, str(tmp_path), *SHORT])
