"""A real-size check without real weights: build, save, load, save again and run a 2B checkpoint.

The sizes are the published Qwen2-VL-2B's; the weights are random bfloat16. What is checked is what
only size can break: construction without storage, sharded saving and strict loading within memory,
names and shapes equal to those of transformers' class, and a finite forward pass.

    python -m benchmarks.speed.real_size --work_dir /tmp      # 14 GB of disk, 9 GB of memory, 2 minutes

Prints seconds and peak memory per phase, and one JSON line at the end. The peak is the process's
(it never falls), and counts the pages of mapped checkpoint files.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from model.attention import PackLayout
from model.config import VLMConfig
from model.vlm import VLM, Prompt, rope_positions
from model.weights import (
    load_model,
    plan_slots,
    published_name,
    published_tensors,
    read_slots,
    save_model,
)

CONFIG = json.loads("""{
    "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
    "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vision_start_token_id": 151652,
    "vision_end_token_id": 151653, "image_token_id": 151655, "video_token_id": 151656,
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "in_chans": 3,
        "mlp_ratio": 4, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2}
}""")
FREE_BYTES = 14 * 10**9


def random_model(cfg: VLMConfig) -> VLM:
    """Weights cut at different places from one bank of random numbers: fast, yet all different."""
    with torch.device("meta"):
        model = VLM(cfg)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    size = 2**24
    bank = (0.02 * torch.randn(size, generator=torch.Generator().manual_seed(0))).bfloat16()
    bank = torch.cat([bank, bank])  # any cut of `size` numbers is in one piece
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            cut, flat = bank[7919 * i :][:size], parameter.view(-1)
            for piece in flat.split(size):
                piece.copy_(cut[: len(piece)])
            if parameter.ndim == 1:
                parameter.add_(1.0)  # norms near one; biases do no harm there either
    return model


def sample(model: VLM) -> dict[str, torch.Tensor]:
    """64 values of every parameter, spread evenly over it."""
    spread = {name: p.detach().view(-1) for name, p in model.named_parameters()}
    return {n: p[torch.arange(64) * (len(p) - 1) // 63].clone() for n, p in spread.items()}


def small_prompt(cfg: VLMConfig) -> Prompt:
    """Twenty words and one 56 x 56 image: 16 patches, 4 image tokens."""
    words, image = torch.arange(1000, 1020), torch.full((4,), cfg.image_token_id)
    ids = torch.cat([torch.tensor([CONFIG["vision_start_token_id"]]), image, words])  # (P,)
    pixels = torch.randn(16, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(1))
    return Prompt("tiny", ids, rope_positions(ids, [(1, 4, 4)], cfg), pixels, [(1, 4, 4)])


def check_names_and_shapes(model: VLM) -> None:
    """Ours are transformers' own, built without storage from the same config."""
    with torch.device("meta"):
        theirs = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(CONFIG))
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


def run(work: Path) -> dict[str, float]:
    report = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
        report.update({f"{name}_seconds": round(seconds, 2), f"{name}_peak_gib": round(peak, 2)})
        print(f"{name:8} {seconds:7.1f} s   peak {peak:5.2f} GiB", flush=True)

    source, first, second = work, work / "first", work / "second"
    (source / "config.json").write_text(json.dumps(CONFIG, indent=2), encoding="utf-8")
    cfg = VLMConfig.from_directory(source)
    with phase("build"):
        model = random_model(cfg)
        check_names_and_shapes(model)
    expected, report["parameters"] = sample(model), sum(p.numel() for p in model.parameters())
    with phase("save"):
        save_model(model, first, source, plan_slots(model, torch.bfloat16, 2 * 10**9))
    report["shards"] = len(list(first.glob("*.safetensors")))
    del model
    with phase("load"):
        model = load_model(first, torch.bfloat16)
    with phase("forward"), torch.inference_mode():
        prompt = small_prompt(cfg)
        layout = PackLayout([25], [[]])
        logits = model.logits(model(prompt.ids, prompt.positions, layout, [prompt]))  # (P, V)
        assert logits.shape == (25, 151936) and bool(logits.isfinite().all())
        report["logits_std"] = round(logits.float().std().item(), 3)
    with phase("resave"):
        save_model(model, second, companions=first)
    with phase("compare"):
        for name, values in sample(model).items():
            assert torch.equal(values, expected.pop(name)), name
        assert not expected
        check_equal_files(first, second)
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="emptied again afterwards")
    args = parser.parse_args()
    if not args.work_dir.is_dir() or shutil.disk_usage(args.work_dir).free < FREE_BYTES:
        raise SystemExit(f"error: --work_dir {args.work_dir}: needs 14 GB of free disk there")
    with tempfile.TemporaryDirectory(dir=args.work_dir) as directory:
        print(json.dumps(run(Path(directory))))
