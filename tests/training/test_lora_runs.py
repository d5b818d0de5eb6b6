"""Runs that train a LoRA adapter: resume, start from one, evaluate, sample, merge; refusals."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

import evaluate
import merge
import sample
import train_grpo
import train_sft
from model.config import FAMILIES
from model.load import load_model
from model.processor import Processor
from runtime.errors import InputError
from tasks import TASKS
from tests.helpers import pay_odd_lengths, rows, step_rows
from tests.model.families import CLASSES
from tests.model.test_lora import logps_of
from training.checkpoint import find_checkpoint

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(params=["float32", "bfloat16"])
def line(request, tiny_dirs, monkeypatch):
    """A short run of a random model that earns something, so that its adapter moves."""
    monkeypatch.setattr(TASKS["count"], "load", pay_odd_lengths(TASKS["count"].load))
    family = "qwen3_vl" if request.param == "float32" else "qwen2_vl"
    words = f"--task count --model {tiny_dirs[family]} --max_steps 4 --eval_steps 2 --save_steps 1"
    words += " --train_size 8 --held_out_size 2 --prompts_per_step 2 --num_generations 4"
    words += " --max_completion_length 12 --report_prompts 1 --learning_rate 1e-2 --beta 0.04"
    words += f" --device cpu --dtype {request.param} --save_total_limit none"
    lora = ["--lora_rank", "4", "--lora_alpha", "8"]
    return SimpleNamespace(words=words.split(), lora=lora, base=tiny_dirs[family])


def test_a_resumed_run_is_the_run_bit_for_bit(line, tmp_path):
    train_grpo.main([*line.words, *line.lora, "--output_dir", str(tmp_path / "a")])
    train_grpo.main([*line.words, *line.lora, "--output_dir", str(tmp_path / "b")])
    train_grpo.main(["--resume_from_checkpoint", str(tmp_path / "b" / "step_2")])
    a, b = (tmp_path / name / "step_4" for name in "ab")
    for name in (ADAPTER, "trainer/optimizer.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert not (a / "hf").exists() and (tmp_path / "b" / "abandoned_step_4").is_dir()
    first, last = (load_file(tmp_path / "a" / f"step_{n}" / ADAPTER) for n in (1, 4))
    assert all(not torch.equal(first[key], last[key]) for key in first)
    if "bfloat16" in line.words:  # what is saved is what was sampled; the masters are finer
        assert all(torch.equal(x, x.bfloat16().float()) for x in last.values())
        masters = load_file(a / "trainer" / "optimizer.safetensors")
        assert any(not torch.equal(x, x.bfloat16().float()) for x in masters.values())
    kl = [row["kl"] for row in step_rows(tmp_path / "a")]
    assert kl[0] == 0 and kl[-1] > 0  # the reference is the base, which B = 0 is at first
    assert find_checkpoint(tmp_path / "a").adapter == a / "adapter"
    report = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "--adapter" in report  # how to talk to the model


def test_an_adapter_is_used_by_every_command(line, tmp_path, capsys):
    run = tmp_path / "run"
    train_grpo.main([*line.words, *line.lora, "--output_dir", str(run)])
    adapter = run / "step_4" / "adapter"
    assert f"{adapter}\n" in capsys.readouterr().out
    evaluate.main(["--run", str(run), "--device", "cpu", "--output", str(tmp_path / "run.jsonl")])
    flags = "--task count --train_size 8 --held_out_size 2 --max_completion_length 12 --device cpu"
    dtype = line.words[line.words.index("--dtype") + 1]
    flags += f" --model {line.base} --adapter {adapter} --dtype {dtype}"
    evaluate.main([*flags.split(), "--output", str(tmp_path / "flags.jsonl")])
    assert rows(tmp_path / "run.jsonl") == rows(tmp_path / "flags.jsonl")
    Image.new("RGB", (40, 40), (9, 90, 200)).save(tmp_path / "picture.png")
    argv = ["--image", str(tmp_path / "picture.png"), "--max_completion_length", "4"]
    sample.main([*argv, "--model", str(line.base), "--adapter", str(adapter), "--device", "cpu"])
    # Start from it: the first policy is that adapter, which is the reference, too.
    train_grpo.main(
        [*line.words, "--adapter", str(adapter), "--output_dir", str(tmp_path / "next")]
    )
    assert step_rows(tmp_path / "next")[0]["kl"] == 0
    ends = [load_file(d / "step_4" / ADAPTER) for d in (run, tmp_path / "next")]
    config = json.loads((tmp_path / "next/step_4/adapter/adapter_config.json").read_text())
    assert ends[0].keys() == ends[1].keys() and config["lora_alpha"] == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_checkpoint_loads_everywhere(family, tiny_dirs, tmp_path, capsys):
    base = tiny_dirs[family]
    line = f"--task count --model {base} --max_steps 2 --prompts_per_step 2 --train_size 4"
    line += " --held_out_size 2 --report_prompts 0 --learning_rate 1e-2 --device cpu --lora_rank 2"
    train_sft.main([*line.split(), "--output_dir", str(tmp_path / "run")])
    adapter = tmp_path / "run" / "step_2" / "adapter"
    for dtype in ("float32", "bfloat16"):
        flags = f"--model {base} --adapter {adapter} --dtype {dtype} --output {tmp_path / dtype}"
        merge.main(flags.split())
        assert "the merged weights miss" in capsys.readouterr().out
        kind = getattr(transformers, CLASSES[family] + "ForConditionalGeneration")
        theirs, info = kind.from_pretrained(tmp_path / dtype, output_loading_info=True)
        assert theirs.dtype == getattr(torch, dtype)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = Processor(base)
    with torch.no_grad():
        apart = logps_of(load_model(base, adapter=adapter), processor)
        merged = logps_of(load_model(tmp_path / "float32"), processor)
        start = logps_of(load_model(base), processor)
    torch.testing.assert_close(merged, apart, atol=1e-4, rtol=0)
    assert (apart - start).abs().max() > 0.01
    with pytest.raises(InputError, match="--output .*: must be a directory that does not exist"):
        merge.main(flags.split())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--lora_rank 4 --no-freeze_vision", "--freeze_vision False: must be left out with --lora"),
        ("--lora_rank 4 --fsdp", "--fsdp True: must be left out with --lora_rank"),
        ("--lora_rank -1", "--lora_rank -1: must be in 0 .. 4096"),
        ("--lora_rank 4 --lora_alpha 0", "--lora_alpha 0.0: must be above 0"),
        ("--lora_alpha 8", "--lora_alpha 8.0: must be given with --lora_rank alone"),
        ("--adapter x --lora_alpha 8", "--lora_alpha 8.0: must be given with --lora_rank alone"),
        ("--adapter /no/such/place", "--adapter /no/such/place: has no adapter_config.json"),
    ],
)
def test_impossible_flags_are_refused(flags, words, tiny_dir):
    with pytest.raises(InputError, match=words):
        train_grpo.main(["--task", "count", "--model", str(tiny_dir), *flags.split()])


def test_models_that_run_through_transformers_have_no_adapters(other_dirs, tmp_path):
    from tests.helpers import folder_of_classes

    data = f"--data {folder_of_classes(tmp_path / 'photos')}"
    line = f"--task cls --model {other_dirs['llava']} {data} --device cpu"
    with pytest.raises(InputError, match="--lora_rank: not for LLaVA, which runs through"):
        train_grpo.main([*line.split(), "--lora_rank", "4"])
    with pytest.raises(InputError, match="--adapter .*: .*llava runs through transformers"):
        evaluate.main([*line.split(), "--adapter", str(tmp_path)])
