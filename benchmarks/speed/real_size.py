"""A real-size check without real weights: build, save, load, run and save again.

    python -m benchmarks.speed.real_size --work_dir /tmp                      # 9 GB of disk
    python -m benchmarks.speed.real_size --work_dir /tmp --size qwen3_vl_4b   # 18 GB

The sizes are the published ones, the weights random bfloat16. What is checked is what only size can
break: construction without storage, sharded saving and strict loading within memory, names and
shapes equal to those of transformers' class, a finite forward, and the forward of a training step
(one image, G = 4, the tower frozen). `--small` does the same with a miniature of the size.

Prints seconds and memory per phase, and one JSON line. Memory is the process's largest resident set
within the phase. It counts the libraries and the pages of mapped checkpoint files, but the two
forwards map none: theirs is at most `bound_gib`, what `training_bytes` computes from the shapes.
"""

import argparse
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open

from benchmarks.speed.workload import (
    QWEN2_5_VL_3B,
    QWEN2_VL_2B,
    QWEN3_VL_2B,
    QWEN3_VL_4B,
    random_model,
    random_patches,
)
from benchmarks.timing import Table, report
from model.config import VLMConfig
from model.pack import Pack, completion_logps, make_pack
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

SIZES = {  # name -> config and number of parameters
    "qwen2_vl_2b": (QWEN2_VL_2B, 2_208_985_600),
    "qwen2_5_vl_3b": (QWEN2_5_VL_3B, 3_754_622_976),
    "qwen3_vl_2b": (QWEN3_VL_2B, 2_127_532_032),
    "qwen3_vl_4b": (QWEN3_VL_4B, 4_437_815_808),
}


def miniature(config: dict) -> dict:
    """The same form with few and narrow layers; heads keep their width, since M-RoPE divides it."""
    sizes = dict(hidden_size=256, embed_dim=256, out_hidden_size=256, intermediate_size=512)
    sizes |= dict(num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, num_heads=4)
    sizes |= dict(depth=4, fullatt_block_indexes=[1, 3], deepstack_visual_indexes=[0, 2])
    sizes |= dict(vocab_size=4096, image_token_id=4000)
    return {k: miniature(v) if isinstance(v, dict) else sizes.get(k, v) for k, v in config.items()}


def sample(model: VLM) -> dict[str, torch.Tensor]:
    """64 values of every parameter, spread evenly over it."""
    flat = {name: p.detach().view(-1) for name, p in model.named_parameters()}
    return {n: p[torch.arange(64) * (len(p) - 1) // 63].clone() for n, p in flat.items()}


def group(cfg: VLMConfig) -> Pack:
    """21 words and an image of 18 x 22 patches, no whole number of windows; four completions."""
    grid, image = (1, 18, 22), torch.full((99,), cfg.image_token_id)
    ids = torch.cat([torch.arange(20, 25), image, torch.arange(100, 116)])  # (P,)
    pixels = random_patches(cfg, 18 * 22, torch.Generator().manual_seed(1))
    prompt = Prompt("image", ids, rope_positions(ids, [grid], cfg), pixels, [grid])
    return make_pack([prompt], [[torch.arange(50, 50 + length) for length in (8, 16, 24, 32)]])


def training_bytes(cfg: VLMConfig, pack: Pack, parameters: int) -> int:
    """At most what the forward of a training step holds in bf16 on a CPU, the tower frozen."""
    text, tower, C = cfg.text, cfg.vision, len(pack.targets)
    heads = text.num_attention_heads + 2 * text.num_key_value_heads
    # Numbers per token that a layer keeps for its backward (counted: 70 to 90 % of these).
    layer = 12 * text.hidden_size + 8 * heads * text.head_dim + 4 * text.intermediate_size
    head = 4 * text.vocab_size * (text.hidden_size + 2 * C)  # fp32: its weight, logits and odds
    block = 2 * len(pack.prompts[0].pixels) * (32 * tower.embed_dim + 4 * tower.intermediate_size)
    return 2 * (parameters + len(pack.ids) * text.num_hidden_layers * layer) + max(head, block)


def sharded(model: VLM, keys: dict[str, str], limit: int) -> Slots:
    """Several files of about `limit` bytes with these keys, as large checkpoints have them."""
    slots, used = {}, 0
    for name, slot in single_file(model, torch.bfloat16).items():
        slots[keys[name]] = replace(slot, file=f"model-{used // limit + 1:05d}.safetensors")
        used += 2 * math.prod(slot.shape)
    return slots


def checked_keys(model: VLM, config: dict) -> dict[str, str]:
    """Our names -> those of transformers' class, built without storage from the same config.

    Both have the same tensors, of the same shapes.
    """
    kind = getattr(transformers, config["architectures"][0])
    transformers.logging.set_verbosity_error()
    with torch.device("meta"):
        theirs = dict(kind(kind.config_class.from_dict(config)).named_parameters())
    keys = {published_name(key): key for key in theirs}
    shapes = {name: theirs[key].shape for name, key in keys.items()}
    assert {n: t.shape for n, t in published_tensors(model).items()} == shapes
    return keys


def check_equal_files(first: Path, second: Path) -> None:
    """Same keys, files, dtypes, shapes, and every single value."""
    slots = read_slots(first)
    assert slots and slots == read_slots(second)
    assert {p.name for p in first.iterdir()} == {p.name for p in second.iterdir()}
    for file in sorted({slot.file for slot in slots.values()}):
        with safe_open(first / file, "pt") as a, safe_open(second / file, "pt") as b:
            for key in a.keys():  # noqa: SIM118 (a safe_open is not iterable)
                assert torch.equal(a.get_tensor(key), b.get_tensor(key)), key


def resident_gib(field: str) -> float:
    """VmRSS: what is in memory now; VmHWM: the most since 5 was written to clear_refs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith(field))


def _run(work: Path, config: dict, parameters: int, shard_bytes: int) -> dict:
    table, results, bound = Table(), {"parameters": parameters}, None

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")
        start = time.perf_counter()
        yield
        seconds, peak = time.perf_counter() - start, resident_gib("VmHWM")
        table.add(phase=name, seconds=seconds, peak_gib=peak, bound_gib=bound)

    first, second = work / "first", work / "second"
    (work / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    cfg = VLMConfig.from_directory(work)
    with phase("build"):
        model = random_model(cfg)
        keys = checked_keys(model, config)
    expected = sample(model)
    with phase("save"):
        save_model(model, first, work, sharded(model, keys, shard_bytes))
    results["shards"] = len(list(first.glob("*.safetensors")))
    del model
    pack, without_model = group(cfg), resident_gib("VmRSS")
    results["without_model_gib"] = round(without_model, 3)
    with phase("load"):
        model = load_model(first, torch.bfloat16)
    # 0.1: code that is used for the first time, and buffers of the libraries.
    bound = without_model + training_bytes(cfg, pack, parameters) / 2**30 + 0.1
    with phase("forward"), torch.no_grad():
        logits = model.logits(model(pack.ids, pack.positions, pack.layout, pack.prompts))  # (T, V)
        assert logits.shape == (len(pack.ids), cfg.text.vocab_size)
        assert bool(logits.isfinite().all())
        plain = -F.cross_entropy(logits[pack.predictors], pack.targets, reduction="none")  # (C,)
    del logits
    model.visual.requires_grad_(False)
    with phase("train"):
        logp, entropy = completion_logps(model, pack)  # (C,) each
        assert logp.requires_grad and torch.allclose(logp, plain, atol=1e-3)
        assert bool(entropy.isfinite().all())
    assert all(row["peak_gib"] <= bound for row in table.rows[-2:]), f"more than {bound:.2f} GiB"
    bound = logp = None  # with the activations
    with phase("resave"):
        save_model(model, second, companions=first)
    with phase("compare"):
        for name, values in sample(model).items():
            assert torch.equal(values, expected.pop(name)), name
        assert not expected
        del model
        check_equal_files(first, second)
    return results | {"phases": table.rows}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="emptied again afterwards")
    parser.add_argument("--size", choices=list(SIZES), default="qwen2_vl_2b")
    parser.add_argument("--small", action="store_true", help="a miniature of it")
    args = parser.parse_args(argv)
    config, published = SIZES[args.size]
    config = miniature(config) if args.small else config
    with torch.device("meta"):
        parameters = sum(p.numel() for p in VLM(VLMConfig.from_dict(config)).parameters())
    assert args.small or parameters == published
    args.work_dir.mkdir(parents=True, exist_ok=True)
    needed = 4.1e-9 * parameters  # two checkpoints
    if shutil.disk_usage(args.work_dir).free < needed * 1e9:
        raise SystemExit(f"error: --work_dir {args.work_dir}: needs {needed:.1f} GB of free disk")
    with tempfile.TemporaryDirectory(dir=args.work_dir) as directory:
        results = _run(Path(directory), config, parameters, 10**6 if args.small else 2 * 10**9)
        report("real_size", size=args.size, **results)


if __name__ == "__main__":
    main()
