"""A whole run on a checkpoint of each family: training, talking to it, evaluating it, its report.

The models are random and tiny, made by transformers' own classes; the data are what people have.
"""

import json

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

import evaluate
import sample
import train_grpo
import train_sft
from model.config import FAMILIES
from tests.helpers import eval_rows, folder_of_classes, rows, step_rows
from tests.model.families import CLASSES
from tests.tasks.test_tasks import coco_file

SHORT = "--max_steps 2 --prompts_per_step 2 --num_generations 4 --max_completion_length 6"
SHORT += " --report_prompts 1 --report_attention --device cpu --beta 0.04"


def write_phrases(folder):
    """VLM-R1's rows: a phrase and the one box that it means."""
    folder.mkdir()
    for k in range(4):
        Image.new("RGB", (200, 100), (60 * k, 9, 90)).save(folder / f"{k}.jpg")
    row = {"normal_caption": "left cat", "problem": "?", "solution": [10, 20, 60, 60]}
    path = folder / "rec.json"
    path.write_text(json.dumps([{"image": f"{k}.jpg"} | row for k in range(4)]))
    return path


@pytest.mark.parametrize("task", ["cls", "det", "ground"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_from_end_to_end(family, task, tiny_dirs, tmp_path, capsys):
    flags = {
        "cls": lambda: f"--data {folder_of_classes(tmp_path / 'photos')} --list_classes",
        "det": lambda: f"--data {coco_file(tmp_path)} --shots 2 --held_out_size 4",
        "ground": lambda: f"--data {write_phrases(tmp_path / 'rec')} --train_size 2",
    }[task]()
    out = tmp_path / "run"
    words = f"--task {task} --model {tiny_dirs[family]} {flags} {SHORT} --output_dir {out}"
    train_grpo.main([*words.split(), "--no-freeze_vision"])
    assert len(step_rows(out)) == 2 and len(eval_rows(out)) == 2
    for row in step_rows(out):
        assert row["sampling/sampling_logp_difference/max"] < 1e-4
    assert (out / "report.html").stat().st_size > 10_000
    questions = " ".join(row["question"] for row in rows(out / "gallery.jsonl"))
    if task == "cls":
        assert "Choose one of: rose, tulip." in questions
    else:
        unit = "pixels of an image of" if family == "qwen2_5_vl" else "0-1000 of the image's"
        assert '"bbox_2d": [x1, y1, x2, y2]' in questions and unit in questions
    last = out / "step_2" / "hf"
    capsys.readouterr()
    evaluate.main(["--run", str(out), "--device", "cpu"])
    assert f"{task} held_out" in capsys.readouterr().out
    picture = tmp_path / "picture.png"
    Image.new("RGB", (90, 70), (9, 90, 200)).save(picture)
    argv = ["--model", str(last), "--image", str(picture), "--max_completion_length", "4"]
    sample.main([*argv, "--device", "cpu"])
    assert "tokens/s" in capsys.readouterr().out
    kind = getattr(transformers, CLASSES[family] + "ForConditionalGeneration")
    _, info = kind.from_pretrained(last, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = (load_file(d / "model.safetensors") for d in (tiny_dirs[family], last))
    assert before.keys() == after.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_supervised_fine_tuning_and_an_exact_resume(family, tiny_dirs, tmp_path):
    line = f"--task count --model {tiny_dirs[family]} --max_steps 3 --prompts_per_step 2"
    line += " --train_size 4 --held_out_size 2 --save_steps 1 --save_total_limit none"
    line += " --report_prompts 0 --learning_rate 1e-3 --no-freeze_vision --device cpu"
    line += " --gradient_checkpointing"
    train_sft.main([*line.split(), "--output_dir", str(tmp_path / "a")])
    train_sft.main([*line.split(), "--output_dir", str(tmp_path / "b")])
    train_sft.main(["--resume_from_checkpoint", str(tmp_path / "b" / "step_2")])
    a, b = (load_file(tmp_path / name / "step_3/hf/model.safetensors") for name in "ab")
    start = load_file(tiny_dirs[family] / "model.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in a)
    unmoved = [key for key in a if torch.equal(a[key], start[key])]
    assert not unmoved, unmoved
