"""Whole runs of models that go through transformers: three steps of GRPO, resume, report, tools."""

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

import evaluate
import sample
import train_grpo
import train_sft
from model.config import OTHER_FAMILIES
from runtime.errors import InputError
from tests.helpers import eval_rows, folder_of_classes, rows, step_rows
from tests.training.test_families import write_phrases

LINE = "--max_steps 3 --prompts_per_step 2 --num_generations 4 --max_completion_length 6"
LINE += " --beta 0.04 --max_prompt_length 400 --save_steps 1 --save_total_limit none"
LINE += " --report_prompts 1 --device cpu --learning_rate 1e-3"


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_three_steps_of_grpo_and_an_exact_resume(family, other_dirs, tmp_path, capsys):
    photos = folder_of_classes(tmp_path / "photos")
    rule = tmp_path / "rule.py"  # random models never name a class
    rule.write_text(
        "def rule(completions, example):\n    return [len({*c}) / 9 for c in completions]\n"
    )
    line = f"--task cls --model {other_dirs[family]} --data {photos} {LINE} --no-freeze_vision"
    line += f" --reward {rule}:rule"
    train_grpo.main([*line.split(), "--output_dir", str(tmp_path / "a")])
    assert f"{OTHER_FAMILIES[family].name} runs through transformers" in capsys.readouterr().out
    for row in step_rows(tmp_path / "a"):
        assert row["sampling/sampling_logp_difference/max"] < 1e-4
    assert (tmp_path / "a" / "report.html").stat().st_size > 10_000
    train_grpo.main([*line.split(), "--output_dir", str(tmp_path / "b")])
    train_grpo.main(["--resume_from_checkpoint", str(tmp_path / "b" / "step_2")])
    a, b = (load_file(tmp_path / name / "step_3/hf/model.safetensors") for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    start = load_file(other_dirs[family] / "model.safetensors")
    assert a.keys() == start.keys() and not all(torch.equal(a[key], start[key]) for key in a)
    a, b = ([row["reward"] for row in step_rows(tmp_path / name)] for name in "ab")
    assert a == b
    _, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "a/step_3/hf", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_boxes_and_the_other_commands(other_dirs, tmp_path, capsys):
    data = write_phrases(tmp_path / "rec")
    line = f"--task ground --model {other_dirs['llava']} --data {data} --train_size 2 {LINE}"
    with pytest.raises(InputError, match="--coords: no default for model_type 'llava'"):
        train_grpo.main(line.split())
    with pytest.raises(InputError, match="--coords abs_resized: only the model's own processor"):
        train_grpo.main(f"{line} --coords abs_resized".split())
    train_grpo.main([*f"{line} --coords norm1000".split(), "--output_dir", str(tmp_path / "run")])
    assert len(eval_rows(tmp_path / "run")) == 2
    assert "0-1000 of the image's" in rows(tmp_path / "run" / "gallery.jsonl")[0]["question"]
    evaluate.main(["--run", str(tmp_path / "run"), "--device", "cpu"])
    assert "ground held_out" in capsys.readouterr().out
    Image.new("RGB", (90, 70), (9, 90, 200)).save(tmp_path / "picture.png")
    argv = ["--model", str(other_dirs["llava"]), "--image", str(tmp_path / "picture.png")]
    sample.main([*argv, "--max_completion_length", "4", "--device", "cpu"])
    assert "tokens/s" in capsys.readouterr().out


def test_supervised_fine_tuning(other_dirs, tmp_path):
    photos = folder_of_classes(tmp_path / "photos")
    line = f"--task cls --model {other_dirs['gemma3']} --data {photos} --max_steps 8 --device cpu"
    line += (
        f" --prompts_per_step 2 --report_prompts 0 --learning_rate 1e-2 --output_dir {tmp_path}/r"
    )
    train_sft.main(line.split())
    losses = [row["loss"] for row in step_rows(tmp_path / "r")]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("flag", ["gradient_checkpointing", "report_attention"])
def test_flags_of_the_hand_written_model_are_refused(flag, other_dirs, tmp_path):
    photos = folder_of_classes(tmp_path / "photos")
    line = f"--task cls --model {other_dirs['llava']} --data {photos} --device cpu --{flag}"
    with pytest.raises(InputError, match=f"--{flag}: not for LLaVA, which runs through"):
        train_grpo.main(line.split())
