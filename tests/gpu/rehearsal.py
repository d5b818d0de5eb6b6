"""What test_rehearsal.py runs on the GPU of shadow.py, in processes of its own.

    TRITON_INTERPRET=1 python -m tests.gpu.rehearsal FOLDER NAME ..   # FOLDER/NAME.json of each

Every function here is one run of the library. It gets its own folder and returns what is asserted.
"""

import contextlib
import io
import json
import sys
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import transformers  # noqa: F401  (asks for the devices while it is imported)
from PIL import Image

import benchmarks.speed.head
import benchmarks.speed.sampling
import benchmarks.speed.smoke
import benchmarks.speed.step
import benchmarks.speed.update
import evaluate
import sample
import train_grpo
import train_sft
from benchmarks.speed.workload import Update, Workload, garden_prompts
from config import BASE_MODEL
from kernels import group_advantages, linear_logprob
from model.attention import PackLayout
from model.config import VLMConfig
from model.pack import completion_logps, make_pack
from model.processor import Processor
from model.weights import load_model
from sample import generate_group
from tasks import cls
from tests.gpu import shadow
from tests.gpu.memory import LORA, SIZES, measure
from tests.helpers import folder_of_classes, make_groups, pay_odd_lengths, rows, step_rows
from train_grpo import GRPOConfig
from training import memory_plan

SHORT = "--task cls --shots 2 --max_steps 2 --prompts_per_step 2 --report_prompts 0"
GROUP = "--num_generations 4 --max_completion_length 14"  # long enough for a recorded step
BF16 = "--device cuda --dtype bfloat16"


def photos(directory: Path) -> str:
    """--data of six small pictures of two classes."""
    if not (directory / "photos").exists():
        folder_of_classes(directory / "photos")
    return f"--data {directory / 'photos'}"


def grpo(directory: Path, flags: str, script=train_grpo) -> dict:
    """Two short steps of training; the metrics of its steps, and what was counted."""
    words = f"{SHORT} {photos(directory)} --output_dir {directory / 'run'} {flags}"
    odd_lengths = patch.object(cls, "load", pay_odd_lengths(cls.load))  # random models can earn it
    with odd_lengths, shadow.gpu() as gpu:
        script.main(words.split())
    return {"steps": step_rows(directory / "run"), "replays": gpu.launched["replay"]}


def bundled_base(directory: Path) -> dict:
    """bfloat16, every layer computed twice; then the command lines on the checkpoint."""
    found = grpo(directory, f"{GROUP} {BF16} --gradient_checkpointing --groups_per_micro_batch 1")
    model = directory / "run" / "step_2" / "hf"
    with shadow.gpu():
        sample.main(
            f"--model {model} --image assets/flower.png {BF16} --num_generations 2 "
            "--max_completion_length 6".split()
        )
        evaluate.main(f"--run {directory / 'run'} --device cuda".split())
    return found


def float32_equals_the_cpu(directory: Path) -> dict:
    """The same run on both devices: completions and losses."""
    found = {}
    for device in ("cuda", "cpu"):
        (directory / device).mkdir()
        grpo(directory / device, f"{GROUP} --device {device} --beta 0.04")
        run = directory / device / "run"
        found[device] = {
            "texts": [row["completion"] for row in rows(run / "completions.jsonl")],
            "losses": [row["loss"] for row in step_rows(run)],
        }
    return found


def lora(directory: Path) -> dict:
    """An adapter, and the base as the reference of its KL term."""
    return grpo(directory, f"{GROUP} {BF16} --lora_rank 4 --beta 0.04 --max_steps 1")


def reference(directory: Path) -> dict:
    """A second model as the reference; the tower is trained."""
    return grpo(directory, f"{GROUP} {BF16} --beta 0.04 --no-freeze_vision --max_steps 1")


def supervised(directory: Path) -> dict:
    """train_sft.py."""
    return grpo(directory, BF16, train_sft)


def interpreted(_: Path) -> dict:
    """Tokens and log-probabilities from the kernels, in Triton's interpreter, and their twins."""
    found, processor = {"twins": {}, "kernels": {}}, Processor(BASE_MODEL)
    prompts, suppressed = garden_prompts(processor, 2), processor.suppressed_tokens
    for way, dtype in product(found, (torch.float32, torch.bfloat16)):
        with shadow.gpu(interpret=way == "kernels"):
            model = load_model(BASE_MODEL, dtype, "cuda")
            rollout = generate_group(model, processor, prompts, 2, 10)
            completions = [[torch.arange(30, 42)] * 2, [torch.arange(50, 55)] * 2]
            pack = make_pack(prompts, completions, "cuda")
            logp, _ = completion_logps(model, pack, 1.0, suppressed.cuda())
            logp.sum().backward()
            norm = model.model.layers[0].mlp.up_proj.weight.grad.float().norm()
            numbers = logp.tolist() + [float(norm) / 100]
            tokens = [ids.tolist() for ids in rollout.ids]
            found[way][str(dtype)] = {"tokens": tokens, "numbers": numbers}
    return found


def of_family(family: str) -> Callable[[Path], dict]:
    """A run of a tiny model of the family, with its tower trained; the tower on both devices."""

    def run(directory: Path) -> dict:
        path = directory.parent / family
        flags = f"{GROUP} {BF16} --model {path} --beta 0.04 --max_steps 1"
        found = grpo(directory, f"{flags} --no-freeze_vision --gradient_checkpointing")
        processor, picture = Processor(path), Image.effect_mandelbrot((64, 40), (-2, -1, 1, 1), 99)
        prompt = processor.prompt("q", [picture.convert("RGB")], "Which?")
        with torch.no_grad():
            expected = load_model(path, torch.float32, "cpu").image_features([prompt])
            with shadow.gpu() as gpu:
                model = load_model(path, torch.bfloat16, "cuda")
                features = model.image_features([prompt]).float().cpu()
        error = float((features - expected).norm() / expected.norm())
        calls, blocks = gpu.launched["varlen_attn"], len(model.visual.blocks)
        return found | {"calls": calls, "blocks": blocks, "error": error}

    return run


def of_benchmark(module) -> Callable[[Path], dict]:
    """A benchmark at its small size."""

    def run(_: Path) -> dict:
        with shadow.gpu():
            module.main("--device cuda --size small".split())
        return {}

    return run


def gpu_tests(_: Path) -> dict:
    """tests/test_gpu.py, and of the kernels what a CPU cannot do."""
    options = ["-q", "-p", "no:cacheprovider"]
    with shadow.gpu():
        whole = pytest.main([*options, "tests/test_gpu.py"])
    with shadow.gpu(interpret=True):
        bf16 = pytest.main([*options, "tests/kernels", "-k", "bfloat16"])
    return {"test_gpu": int(whole), "bfloat16 of kernels": int(bf16)}


def mistakes(_: Path) -> dict:
    """What each mistake on a GPU is answered with."""
    found = {}

    def recorded(function: Callable):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        try:
            function()
        finally:
            graph.capture_end()
        return graph

    with shadow.gpu():
        on_cpu, x = torch.ones(8, 8), torch.ones(8, 8).cuda()
        half, ends = x.bfloat16().view(8, 1, 8), torch.tensor([0, 3, 8]).cuda().int()
        temporary = [torch.zeros(8, 8, device="cuda")]
        graph = recorded(lambda: x.add_(temporary[0]))
        graph.replay()
        temporary.clear()
        for name, function in {
            "devices mix": lambda: x + on_cpu,
            "numpy": lambda: x.numpy(),
            "a launch gets a CPU pointer": lambda: group_advantages(on_cpu, impl="triton"),
            "bare cuda": lambda: torch.cuda.set_device(torch.device("cuda")),
            "mm of fp32": lambda: torch.mm(x, x, out_dtype=torch.float32),
            "flash of fp32": lambda: shadow.varlen_attn(x, x, x, ends, ends, 5, 5),
            "flash of a longer sequence": lambda: shadow.varlen_attn(
                half, half, half, ends, ends, 4, 5
            ),
            "a recorded wait": lambda: recorded(lambda: x.sum().item()),
            "a recorded CPU tensor": lambda: recorded(lambda: on_cpu + 1),
            "freed memory": graph.replay,
        }.items():
            try:
                function()
                found[name] = "nothing"
            except (RuntimeError, TypeError, ValueError) as error:
                found[name] = str(error)
        before = float(x[0, 0])
        replayed = recorded(lambda: x.add_(1.0))
        found["recording computes"] = float(x[0, 0]) - before
        replayed.replay()
        found["replay computes"] = float(x[0, 0]) - before
        found["new memory"] = str(float(torch.empty(1, device="cuda")))
    return found


def waits(directory: Path) -> dict:
    """Waits of the host and launches of a rollout, of a pass and of each of its micro-batches."""
    # In bf16 no padded rows are built.
    with shadow.gpu() as gpu, patch.object(PackLayout, "rows", None):
        work = Workload("bundled", torch.device("cuda"))
        update = Update(work, groups_per_micro_batch=1, num_generations=2)
        cfg, counts, found = update.cfg, {}, {}

        def count(name: str, function: Callable):
            with gpu.part(name):
                result = function()
            lines = {f"{kind} {line}": n for (kind, line), n in gpu.waits[name].items()}
            recorded = {"recorded": gpu.launched["recorded"]} if name == "rollout" else {}
            counts[name] = {"waits": lines, "launches": gpu.launched[name]} | recorded
            return result

        prompts = work.questions(4)
        with torch.no_grad():
            count("tower", lambda: work.model.keep_image_features(prompts))
        rollout = count("rollout", lambda: work.rollout(prompts, 2, 24))
        found["held"] = [gpu.bytes]
        work.rollout(prompts, 2, 24, step=1)  # its recording takes the place of the first
        found["held"].append(gpu.bytes)
        found["recordings"] = [gpu.launched["recording"]]
        work.rollout(prompts, 2, 7)  # too short for one
        found["recordings"].append(gpu.launched["recording"])
        rewards = torch.tensor([[1.0, 0.0]] * 4)
        scored = count("advantages", lambda: group_advantages(rewards.cuda()).cpu())
        groups = make_groups(prompts, rollout, scored, cfg)
        count("pass of one", lambda: update.gradient(groups[:1]))
        count("pass of four", lambda: update.gradient(groups))
        count("adamw", update.adamw)
    return found | {"counts": counts}


def head_memory(_: Path) -> dict:
    """Peak MB of the head of Qwen2-VL-2B in training, 2048 tokens, beside inputs and gradients."""
    with shadow.gpu(sizes_only=True):
        extra = benchmarks.speed.head.extra_bytes
        return {"extra": extra(linear_logprob, 151936, 2048, 1536, torch.device("cuda")) / 1e6}


def memory_of(size: str) -> Callable[[Path], dict]:
    """Peaks of one group of LoRA, in GiB."""
    return lambda _: {k: v / 2**30 for k, v in measure(SIZES[size], LORA).items()}


PLANNED_LAYERS = 8  # of every size: a layer is like another, and all of them take a minute
PLANNED = [  # size, other flags than `memory.LORA`'s
    ("Qwen2-VL-2B", {}),
    ("Qwen2-VL-2B", {"gradient_checkpointing": False, "max_completion_length": 128}),
    ("Qwen2-VL-2B", {"lora_rank": 0, "prompts_per_step": 2}),
    ("Qwen2-VL-2B", {"lora_rank": 0, "max_completion_length": 128}),
    ("Qwen2.5-VL-3B", {"gradient_checkpointing": False}),
    ("Qwen2.5-VL-3B", {"lora_rank": 0, "prompts_per_step": 2}),
    ("Qwen3-VL-4B", {}),
    ("Qwen3-VL-4B", {"gradient_checkpointing": False}),
    ("Qwen3-VL-4B", {"lora_rank": 0, "gradient_checkpointing": False, "prompts_per_step": 2}),
]


def planned(_: Path) -> dict:
    """Peaks of steps as allocated and as planned, in GiB, without what CUDA takes itself."""
    rows = []
    for size, changes in PLANNED:
        flags = LORA | {"groups_per_micro_batch": 1} | changes
        run, C = GRPOConfig(**flags), flags["max_completion_length"]
        sizes = memory_plan.Sizes(1024, 900, run.prompts_per_step, 1, run.num_generations, C)
        card = shadow.MEMORY
        config = SIZES[size] | {"num_hidden_layers": PLANNED_LAYERS}
        plan = memory_plan.plan(VLMConfig.from_dict(config), run, sizes, available=card)
        peak = max(measure(config, flags).values()) / 2**30
        rows.append([size, changes, peak, (plan.peak - memory_plan.CONTEXT) / 2**30])
    return {"rows": rows}


def smoke_test(_: Path) -> dict:
    """The first two minutes on a new card: the line that they end in."""
    with shadow.gpu(), contextlib.redirect_stdout(io.StringIO()) as out:
        code = benchmarks.speed.smoke.main(["--device", "cuda"])
    return {"code": code, "line": out.getvalue().splitlines()[-1]}


RUNS: dict[str, Callable[[Path], dict]] = {
    "gpu_tests": gpu_tests,
    "mistakes": mistakes,
    "waits": waits,
    "head_memory": head_memory,
    "bundled_base": bundled_base,
    "float32": float32_equals_the_cpu,
    "lora": lora,
    "reference": reference,
    "supervised": supervised,
    "interpreted": interpreted,
    "qwen2_5_vl": of_family("qwen2_5_vl"),
    "qwen3_vl": of_family("qwen3_vl"),
    **{
        name: of_benchmark(getattr(benchmarks.speed, name))
        for name in ("head", "sampling", "update", "step")
    },
    **{size: memory_of(size) for size in SIZES},
    "planned": planned,
    "smoke": smoke_test,
}


def main(folder: str, *names: str) -> None:
    for name in names:
        directory = Path(folder) / f"of_{name}"
        directory.mkdir()
        try:
            found = RUNS[name](directory)
        except BaseException:
            found = {"traceback": traceback.format_exc()}
        (Path(folder) / f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
