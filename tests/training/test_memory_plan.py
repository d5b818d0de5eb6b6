"""The memory plan: what is counted, what is chosen by it, what is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train_grpo
from benchmarks.speed import what_fits
from checks.cost import Memory
from config import BASE_MODEL
from model.load import load_model, load_processor
from model.lora import new_adapter
from runtime.errors import InputError
from train_grpo import GRPOConfig
from training.memory_plan import (
    GIB,
    advice,
    changes_that_fit,
    fits,
    plan_of,
    sizes_of,
    with_micro_batches,
)
from training.optimizer import Optimizer

THREE = what_fits.processor_of(what_fits.QWEN2_5_VL_3B)


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_optimizer_are_counted_exactly(dtype, lora):
    cfg = GRPOConfig(dtype=dtype, lora_rank=lora)
    model, processor = load_model(BASE_MODEL, getattr(torch, dtype)), load_processor(BASE_MODEL)
    model.prepare_training(True, False)
    if lora:
        new_adapter(model, lora, 8.0, 0)
    parts = plan_of(cfg, processor).parts
    bytes_of = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    assert parts["weights"] + parts["adapter"] == bytes_of(model.parameters())
    optimizer = Optimizer(model, cfg)
    masters = [
        m for m, p in zip(optimizer.masters, optimizer.parameters, strict=True) if m is not p
    ]
    assert parts["masters"] == bytes_of(masters)
    for parameter in optimizer.masters:
        parameter.grad = torch.zeros_like(parameter)
    assert parts["gradients"] == bytes_of(m.grad for m in optimizer.masters)
    optimizer.adamw.step()
    moments = [s[n] for s in optimizer.adamw.state.values() for n in ("exp_avg", "exp_avg_sq")]
    assert parts["moments"] == bytes_of(moments)


def test_flags_that_save_memory_do():
    full = replace(what_fits.RUN, groups_per_micro_batch=4, beta=0.04)
    peak = plan_of(full, THREE).peak
    for change in (
        {"groups_per_micro_batch": 1},
        {"gradient_checkpointing": True},
        {"lora_rank": 16},
        {"max_pixels": 200704},
        {"max_completion_length": 128},
        {"num_generations": 2},
        {"beta": 0.0},
    ):
        lower = plan_of(replace(full, **change), THREE).peak
        assert lower < peak, change
    assert plan_of(full, THREE).parts["reference"] == plan_of(full, THREE).parts["weights"]
    assert plan_of(replace(full, lora_rank=16), THREE).parts["reference"] == 0


def test_what_completions_are_shown_takes_memory():
    plans = {task: plan_of(replace(what_fits.RUN, task=task), THREE) for task in ("vqa", "zoom")}
    sizes = sizes_of(replace(what_fits.RUN, task="zoom"), THREE, 1)
    assert sizes.pictures == 3 and sizes.shown > 3 * sizes.image
    for part in ("activations", "image features", "prefill"):
        assert plans["zoom"].parts[part] > plans["vqa"].parts[part], part
    few = {t: replace(what_fits.RUN, task=t, prompts_per_step=1) for t in plans}
    caches = {task: plan_of(run, THREE).parts["cache"] for task, run in few.items()}
    assert caches["zoom"] > caches["vqa"], "later turns have their own history"
    assert plans["zoom"].parts["weights"] == plans["vqa"].parts["weights"]
    lookup = plan_of(replace(what_fits.RUN, task="lookup"), THREE)
    assert lookup.peak == plans["vqa"].peak, "facts are a few words"


@pytest.mark.parametrize("name", ["Qwen2.5-VL-3B", "Qwen3-VL-4B", "Qwen2.5-VL-7B"])
def test_the_24_gb_recipe_fits_with_room_to_spare(name):
    processor = what_fits.processor_of(what_fits.MODELS[name])
    room = what_fits.CARDS[24]
    peak = plan_of(what_fits.RECIPES["LoRA 16, recomputing"], processor, room * GIB).peak / GIB
    assert peak < room - 1.5


def test_the_advice_brings_a_run_onto_the_card():
    run = GRPOConfig(groups_per_micro_batch=8, max_completion_length=512)
    flags = changes_that_fit(run, THREE, 23.5 * GIB)
    assert flags == [
        "--groups_per_micro_batch 1",
        "--dtype bfloat16",
        "--gradient_checkpointing",
        "--lora_rank 16",
    ]
    assert changes_that_fit(what_fits.RECIPES["LoRA 16, recomputing"], THREE, 23.5 * GIB) == []
    assert changes_that_fit(run, THREE, 4 * GIB) is None
    assert "a smaller model" in advice(run, THREE, 4 * GIB)


def test_what_the_other_flags_forbid_is_not_advised():
    run = GRPOConfig(freeze_vision=False, groups_per_micro_batch=8)
    flags = changes_that_fit(run, THREE, 79 * GIB)
    assert flags and "--lora_rank 16" not in flags
    assert "--lora_rank" not in advice(run, THREE, 2 * GIB)


def test_a_tenth_of_the_card_is_left_and_the_parts_hold_all_that_is_planned():
    planned = plan_of(GRPOConfig(), THREE)
    assert fits(planned, planned.peak / 0.89) and not fits(planned, planned.peak / 0.91)
    kept = sum(planned.parts[name] for name in ("context", "weights", "masters", "moments"))
    assert planned.phases["tower"] >= kept
    memory = str(Memory(planned, planned.peak / 0.5))
    assert memory.startswith("fits, ") and memory.endswith(f"most in the {planned.largest}")
    assert str(Memory(planned, 1.0, "try less")).startswith("does not fit, ")
    assert "runs through transformers" in str(Memory(None))


def test_micro_batches_are_as_large_as_fits():
    run = replace(what_fits.RECIPES["LoRA 16"], groups_per_micro_batch=None)
    chosen = [
        with_micro_batches(run, THREE, available and available * GIB, 1).groups_per_micro_batch
        for available in (None, 139.0, 79.0, 45.0, 23.5)
    ]
    assert chosen[0] == 8 and chosen == sorted(chosen, reverse=True) and chosen[-1] == 1
    given = replace(run, groups_per_micro_batch=2)
    assert with_micro_batches(given, THREE, GIB, 1).groups_per_micro_batch == 2


def test_a_plan_is_printed_and_nothing_else_happens(tmp_path, capsys):
    line = ["--plan", "--gpu_memory", "0.5", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        train_grpo.main(line)
    out = capsys.readouterr().out
    assert end.value.code == 0 and not (tmp_path / "run").exists()
    assert "activations" in out and "in update" in out and "available" in out
    assert "warning: this does not fit; no flags bring it down far enough" in out
    with pytest.raises(InputError, match="--gpu_memory 0.0: must be above 0"):
        train_grpo.main(["--gpu_memory", "0"])


def test_a_run_says_its_plan_in_two_lines(tiny_dir, tmp_path, capsys):
    line = f"--task count --model {tiny_dir} --max_steps 1 --train_size 4 --held_out_size 2"
    line += f" --gpu_memory 24 --device cpu --report_prompts 0 --output_dir {tmp_path / 'run'}"
    train_grpo.main([*line.split(), "--prompts_per_step", "2"])
    out = capsys.readouterr().out.splitlines()
    at = next(n for n, text in enumerate(out) if text.startswith("memory, computed: 1.5 of 24.0"))
    assert out[at + 1].startswith("  largest parts in GiB: ")


def test_the_docs_have_the_table_of_what_fits():
    docs = Path(__file__).parents[2] / "docs" / "models.md"
    assert what_fits.table() in docs.read_text(encoding="utf-8")
