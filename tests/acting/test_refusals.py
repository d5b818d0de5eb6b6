"""What cannot follow completions that act is refused by name, before anything is left.

Run: pytest tests/acting/test_refusals.py
"""

import json

import pytest

import evaluate
import rate
import train_grpo
import train_verifier
from config import BASE_MODEL, TaskConfig, save
from reporting.page.saved_run import read_run
from runtime.errors import InputError
from tests.helpers import step_rows

SMALL = "--train_size 2 --held_out_size 2 --max_steps 1 --prompts_per_step 2 --device cpu"
PAID = "--num_generations 2 --report_prompts 1 --max_completion_length 8"


@pytest.mark.parametrize(
    "script, flags, words",
    [
        (train_grpo, "--dynamic_sample", "--dynamic_sample: not for --task zoom"),
        (train_grpo, "--replay_buffer_size 4 --delta 3", "--replay_buffer_size: not for"),
        (train_grpo, "--report_attention", "--report_attention: not for"),
        (train_grpo, "--untrue_weight 1", "nobody knows the facts of --task zoom"),
        (train_verifier, "", "which no verifier reads yet"),
    ],
)
def test_flags_that_know_nothing_of_turns_are_refused(script, flags, words, tmp_path):
    argv = ["--task", "zoom", *flags.split(), *SMALL.split(), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=words):
        script.main(argv)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pictures", ["grey", "swapped"])
def test_a_blind_evaluation_would_see_what_it_is_shown(pictures):
    words = f"--task zoom --train_size 1 --held_out_size 2 --pictures {pictures}"
    with pytest.raises(InputError, match="what it is shown later would be real"):
        evaluate.main(words.split())


def test_answers_that_are_all_the_same_cannot_be_voted_on():
    words = "--train_size 2 --held_out_size 2 --votes 3 --temperature 1 --split train"
    with pytest.raises(InputError, match="--votes 3: all answers of --task walk are the same"):
        evaluate.main(["--task", "walk", *words.split()])


def test_turns_are_not_rated(tmp_path):
    save(TaskConfig(task="walk", train_size=2, held_out_size=2), tmp_path / "config.json")
    with pytest.raises(InputError, match="completions of --task walk act, which no rater sees"):
        rate.examples_of(rate.RateConfig(run=tmp_path))


def test_a_reward_of_the_user_is_the_whole_reward(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def pay(completions, example):\n    return [1.0 for _ in completions]\n")
    words = ["--task", "walk", "--reward", f"{path}:pay", *SMALL.split(), *PAID.split()]
    train_grpo.main([*words, "--output_dir", str(tmp_path / "run")])
    (row,) = step_rows(tmp_path / "run")
    assert row["reward"] == 1.0 and row["rewards/called/mean"] == 0.0
    assert read_run(tmp_path / "run").formula == "mine.py:pay"
    kept = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    assert all("turns" in json.loads(line) for line in kept)
    words[1] = "zoom"
    with pytest.raises(InputError, match="look_bonus"):
        train_grpo.main([*words, "--output_dir", str(tmp_path / "other"), "--look_bonus", "1"])


def test_the_pages_formula_has_what_is_paid(tmp_path):
    words = ["--task", "zoom", *SMALL.split(), *PAID.split(), "--model", str(BASE_MODEL)]
    train_grpo.main([*words, "--output_dir", str(tmp_path / "run")])
    assert read_run(tmp_path / "run").formula == "correct + 0.5 x format + 0.3 x look_bonus"
