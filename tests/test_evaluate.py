"""The command line of evaluate.py, on the garden: every split, every answer, bad flags."""

import json
import re

import pytest

from data.garden.world import RL_SPECIES
from evaluate import EvalConfig, main
from runtime import console
from runtime.errors import InputError

SHORT = ["--max_completion_length", "8", "--device", "cpu"]


def test_the_command_line_prints_both_splits_and_writes_every_answer(tiny_dir, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    main(["--model", str(tiny_dir), "--held_out_per_class", "1", "--output", str(output), *SHORT])
    line, ood = capsys.readouterr().out.splitlines()
    assert ood.startswith("cls ood, 10 questions: strict ")
    number = r"(\d+\.\d)%"
    shape = (
        rf"cls held_out, 30 questions: strict {number} \[{number}, {number}\], loose {number}, "
        rf"format {number}, mean length (\d+\.\d) tokens, \d+\.\d s"
    )
    strict, low, high, loose, form, length = map(float, re.fullmatch(shape, line).groups())
    records = [json.loads(row) for row in output.read_bytes().splitlines()]
    assert len(records) == len({r["id"] for r in records}) == 40
    assert [r["split"] for r in records] == ["held_out"] * 30 + ["ood"] * 10
    records = records[:30]
    assert {r["target"] for r in records} == {s.name for s in RL_SPECIES}
    for shown, name in ((strict, "strict"), (loose, "loose"), (form, "format")):
        assert shown == pytest.approx(100 * sum(r[name] for r in records) / 30, abs=0.051)
    assert low <= strict <= high
    assert length == pytest.approx(sum(r["length"] for r in records) / 30, abs=0.051)


@pytest.mark.parametrize("split, n", [("ood", 10), ("val", 30), ("train", 30)])
def test_every_split_of_the_garden_can_be_evaluated(split, n, tiny_dir, capsys):
    main(["--model", str(tiny_dir), "--split", split, "--held_out_per_class", "1", *SHORT])
    assert capsys.readouterr().out.startswith(f"cls {split}, {n} questions: strict")


def refusal(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        console.run(lambda: main([*argv, "--held_out_per_class", "1"]))
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_an_unknown_split_is_one_line_with_the_splits_there_are(tiny_dir, capsys):
    message = refusal(capsys, "--model", str(tiny_dir), "--split", "test")
    assert "--split test" in message and "held_out, ood, val, train" in message


def test_a_missing_checkpoint_is_one_line(tmp_path, capsys):
    assert f"--model {tmp_path / 'gone'}" in refusal(capsys, "--model", str(tmp_path / "gone"))


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tiny_dir, tmp_path, capsys):
    for output in (tmp_path, tmp_path / "gone" / "answers.jsonl"):
        assert f"--output {output}" in refusal(
            capsys, "--model", str(tiny_dir), "--output", str(output)
        )


@pytest.mark.parametrize(
    "flag, value",
    [("--batch_size", "0"), ("--shots", "0"), ("--temperature", "nan"), ("--temperature", "-1")]
    + [("--max_completion_length", "0"), ("--device", "quantum")],
)
def test_an_impossible_value_is_one_line_that_names_the_flag(flag, value, tiny_dir, capsys):
    assert flag in refusal(capsys, f"{flag}={value}", "--model", str(tiny_dir))


def test_votes_need_completions_that_differ():
    with pytest.raises(InputError, match="--votes 4: must be 1 where --temperature is 0"):
        EvalConfig(votes=4)
