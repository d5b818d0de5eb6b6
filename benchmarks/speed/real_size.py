"""A real-size check without real weights: build, save, load, save again and run a 2B checkpoint.

    python -m benchmarks.speed.real_size --work_dir /tmp   # 14 GB of disk, 9 GB of memory, 2 min

The sizes are the published Qwen2-VL-2B's; the weights are random bfloat16. What is checked is what
only size can break: construction without storage, sharded saving and strict loading within memory,
names and shapes equal to those of transformers' class, and a finite forward pass. `--size small`
does the same with a miniature.

Prints seconds and peak memory per phase, and one JSON line at the end. The peak is the process's
(it never falls), and counts the pages of mapped checkpoint files.
"""

import argparse
import json
import math
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from benchmarks.speed.workload import SIZES, random_model, random_patches
from benchmarks.timing import Table, report
from model.attention import PackLayout
from model.config import VLMConfig
from model.vlm import VLM, Prompt, rope_positions
from model.weights import (
    Slots,
    load_model,
    published_name,
    published_tensors,
    read_slots,
    save_model,
    single_file,
)

FREE_GB = {"2b": 14, "small": 0.1}
SHARD_BYTES = {"2b": 2 * 10**9, "small": 10**6}


def sample(model: VLM) -> dict[str, torch.Tensor]:
    """64 values of every parameter, spread evenly over it."""
    flat = {name: p.detach().view(-1) for name, p in model.named_parameters()}
    return {n: p[torch.arange(64) * (len(p) - 1) // 63].clone() for n, p in flat.items()}


def small_prompt(cfg: VLMConfig) -> Prompt:
    """21 words and one image of 16 patches: 4 image tokens."""
    image = torch.full((4,), cfg.image_token_id)
    ids = torch.cat([torch.arange(20, 25), image, torch.arange(100, 116)])  # (P,)
    pixels = random_patches(cfg, 16, torch.Generator().manual_seed(1))
    return Prompt("tiny", ids, rope_positions(ids, [(1, 4, 4)], cfg), pixels, [(1, 4, 4)])


def sharded(model: VLM, limit: int) -> Slots:
    """Several files of about `limit` bytes, as large checkpoints have them."""
    slots, used = {}, 0
    for name, slot in single_file(model, torch.bfloat16).items():
        slots[name] = replace(slot, file=f"model-{used // limit + 1:05d}.safetensors")
        used += 2 * math.prod(slot.shape)
    return slots


def check_names_and_shapes(model: VLM, config: dict) -> None:
    """Ours are transformers' own, built without storage from the same config."""
    with torch.device("meta"):
        theirs = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config))
    reference = {published_name(n): p.shape for n, p in theirs.named_parameters()}
    assert {n: t.shape for n, t in published_tensors(model).items()} == reference


def check_equal_files(first: Path, second: Path) -> None:
    """Same keys, files, dtypes, shapes, and every single value."""
    slots = read_slots(first)
    assert slots and slots == read_slots(second)
    assert {p.name for p in first.iterdir()} == {p.name for p in second.iterdir()}
    for file in sorted({slot.file for slot in slots.values()}):
        with safe_open(first / file, "pt") as a, safe_open(second / file, "pt") as b:
            for key in a.keys():  # noqa: SIM118 (a safe_open is not iterable)
                assert torch.equal(a.get_tensor(key), b.get_tensor(key)), key


def _run(work: Path, size: str) -> dict:
    table, results = Table(), {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
        table.add(phase=name, seconds=seconds, peak_gib=peak)

    first, second, config = work / "first", work / "second", SIZES[size].config
    (work / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    cfg = VLMConfig.from_directory(work)
    with phase("build"):
        model = random_model(cfg)
        check_names_and_shapes(model, config)
    expected = sample(model)
    results["parameters"] = sum(p.numel() for p in model.parameters())
    with phase("save"):
        save_model(model, first, work, sharded(model, SHARD_BYTES[size]))
    results["shards"] = len(list(first.glob("*.safetensors")))
    del model
    with phase("load"):
        model = load_model(first, torch.bfloat16)
    with phase("forward"), torch.inference_mode():
        prompt = small_prompt(cfg)
        layout = PackLayout([25], [[]])
        logits = model.logits(model(prompt.ids, prompt.positions, layout, [prompt]))  # (P, V)
        assert logits.shape == (25, cfg.text.vocab_size) and bool(logits.isfinite().all())
        results["logits_std"] = round(logits.float().std().item(), 3)
    with phase("resave"):
        save_model(model, second, companions=first)
    with phase("compare"):
        for name, values in sample(model).items():
            assert torch.equal(values, expected.pop(name)), name
        assert not expected
        check_equal_files(first, second)
    return results | {"phases": table.rows}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="emptied again afterwards")
    parser.add_argument("--size", choices=list(FREE_GB), default="2b")
    args = parser.parse_args(argv)
    needed = FREE_GB[args.size]
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(args.work_dir).free < needed * 1e9:
        raise SystemExit(f"error: --work_dir {args.work_dir}: needs {needed} GB of free disk there")
    with tempfile.TemporaryDirectory(dir=args.work_dir) as directory:
        report("real_size", **_run(Path(directory), args.size))


if __name__ == "__main__":
    main()
