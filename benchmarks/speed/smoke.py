"""Two minutes that say whether this machine can train: every part once, and one line at the end.

    python -m benchmarks.speed.smoke --device cuda

Kernels against their torch references, a recorded rollout, training in bfloat16 and of an adapter
with the bundled base, evaluation, and small random models of the other families. A part that fails
is named with its error; the others run all the same. Speed is not measured here.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

import torch

import evaluate
import train_grpo
from benchmarks.speed.workload import QWEN2_5_VL_3B, QWEN3_VL_2B, Workload
from config import BASE_MODEL
from kernels import gated_product, group_advantages, linear_logprob, sample_tokens
from kernels.sample import sample_tokens_ref
from runtime.device import pick_device
from runtime.errors import one_line

FAST = "--max_steps 2 --prompts_per_step 2 --num_generations 4 --max_completion_length 24"
FAST += " --held_out_per_class 1 --report_prompts 0"
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 1024, "head_dim": 16}
TOWER = {"depth": 3, "hidden_size": 64, "num_heads": 2, "intermediate_size": 96}
TOWER |= {"out_hidden_size": 64}


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    """Raise AssertionError unless two tensors agree."""
    torch.testing.assert_close(a.float().cpu(), b.float().cpu(), atol=tolerance, rtol=tolerance)


def kernels(device: torch.device) -> None:
    """Each kernel on this device against its torch form on the CPU."""
    torch.manual_seed(0)
    rewards, gate, up = torch.randn(4, 8), torch.randn(32, 96), torch.randn(32, 96)
    close(group_advantages(rewards.to(device)), group_advantages(rewards), 1e-4)
    close(gated_product(gate.to(device), up.to(device)), gated_product(gate, up), 1e-4)
    hidden, weight, targets = torch.randn(24, 64), torch.randn(512, 64), torch.arange(24)
    on_device = (x.to(device) for x in (hidden, weight, targets))
    close(linear_logprob(*on_device)[0], linear_logprob(hidden, weight, targets)[0], 1e-3)
    logits, uniforms = torch.randn(6, 2000), torch.rand(6)
    suppressed = torch.arange(2000) >= 1990
    expected, _ = sample_tokens_ref(logits.clone(), uniforms, 0.8, suppressed)
    ids, _ = sample_tokens(logits.to(device), uniforms.to(device), 0.8, suppressed.to(device))
    assert torch.equal(ids.cpu(), expected), f"sampled {ids.tolist()}, not {expected.tolist()}"


def rollout(device: torch.device) -> None:
    """Enough steps that one is recorded on a GPU, twice with the same tokens."""
    work = Workload("bundled", device)
    prompts = work.questions(2)
    first, second = (work.rollout(prompts, 4, 24).ids for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def training(device: torch.device, flags: str) -> None:
    """Two steps of GRPO and an evaluation of what they made."""
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(io.StringIO()):
        where = ["--device", str(device), "--output_dir", f"{work}/run"]
        train_grpo.main(["--model", str(BASE_MODEL), *FAST.split(), *flags.split(), *where])
        evaluate.main(["--run", str(Path(work) / "run"), "--device", str(device)])


def family(device: torch.device, config: dict) -> None:
    """A small random model of another family: a rollout of questions with pictures."""
    text = SMALL | {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    small = config | {"vision_config": config["vision_config"] | TOWER, "image_token_id": 1000}
    # Either family reads its own of these.
    small["vision_config"] |= {"deepstack_visual_indexes": [0], "fullatt_block_indexes": [1]}
    if "text_config" in config:
        small["text_config"] = config["text_config"] | text
    else:
        small |= text
    work = Workload("small", device, small)
    assert len(work.rollout(work.questions(2), 2, 8).ids) == 4


PARTS = {
    "kernels": kernels,
    "rollout": rollout,
    "training": lambda device: training(device, "--dtype bfloat16 --gradient_checkpointing"),
    "LoRA": lambda device: training(device, "--dtype bfloat16 --lora_rank 4 --beta 0.04"),
    "Qwen2.5-VL": lambda device: family(device, QWEN2_5_VL_3B),
    "Qwen3-VL": lambda device: family(device, QWEN3_VL_2B),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args(argv)
    device, start, failed = pick_device(args.device), time.perf_counter(), {}
    for name, part in PARTS.items():
        try:
            part(device)
        except Exception as error:
            failed[name] = one_line(error)
    ran = ", ".join(name for name in PARTS if name not in failed) or "nothing"
    what = "; ".join(f"{name}: {error}" for name, error in failed.items()) or "nothing"
    seconds = time.perf_counter() - start
    print(f"smoke test on {device}, {seconds:.0f} s: ran {ran}; failed: {what}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
