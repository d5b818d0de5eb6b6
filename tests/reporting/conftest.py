"""`run_dir`: a GRPO run on boxes by the tiny random model, with heat maps; evaluated at 0, 2, 3."""

import pytest

import train_grpo


@pytest.fixture(scope="session")
def run_dir(tiny_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "run"
    words = f"--task det --model {tiny_dir} --output_dir {out} --max_steps 3 --eval_steps 2"
    words += " --max_completion_length 6 --prompts_per_step 2 --held_out_size 6 --report_attention"
    train_grpo.main(words.split())
    return out
