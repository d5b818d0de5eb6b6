"""What a GPU would run, rehearsed without one: tests/gpu/shadow.py has what that can show.

The runs are in rehearsal.py; processes of their own make them, since they change torch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import triton
from tests.model.families import write_tiny_directory

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    pytest.mark.skipif(triton is None, reason="triton is not installed"),
]

# Waits of the host for the device, as measured. They may only fall.
WAITS = {
    "tower": 0,
    "advantages": 3,  # rewards up, are they finite?, advantages down
    "rollout": 5,  # recording, two checks of who has ended, tokens and logps down
    "pass of one": 2,  # is a logit far above its target's?; the metrics
    "pass of four": 5,  # the first for each micro-batch
    "adamw": 1,  # is the gradient finite?
}
LAUNCHES = {"tower": 66, "rollout": 327, "pass of one": 364, "adamw": 213, "recorded": 56}

# Peaks in GiB, a little above what is measured: one group of LoRA, see `memory.LORA`. The first is
# of weights, masters, moments; then a rollout; then forward and backward.
GIB = {
    "Qwen2-VL-2B": (4.4, 4.7, 6.1),
    "Qwen2.5-VL-3B": (7.5, 7.8, 9.5),
    "Qwen3-VL-4B": (8.8, 9.7, 11.0),
    "Qwen2-VL-7B": (16.1, 16.6, 18.5),
}


class Rehearsal:
    """Makes the runs of rehearsal.py when they are first asked for, several in one process."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, name: str, *together: str) -> dict:
        """What the run `name` found. `together`: names of runs to make with it."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            names = [n for n in {name, *together} if not (self.folder / f"{n}.json").exists()]
            command = [sys.executable, "-m", "tests.gpu.rehearsal", str(self.folder), *names]
            env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
            assert path.exists(), done.stderr
        found = json.loads(path.read_text())
        assert "traceback" not in found, found["traceback"]
        return found


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory, tiny_dir) -> Rehearsal:
    folder = tmp_path_factory.mktemp("rehearsal")
    for family in FAMILIES:  # heads of a width that the decoding kernel takes
        write_tiny_directory(family, tiny_dir, folder / family, qwen3_width=32)
    return Rehearsal(folder)


FAMILIES = ("qwen2_5_vl", "qwen3_vl")
RUNS = ("bundled_base", "lora", "reference", "supervised", *FAMILIES)
LIBRARY = (
    "mistakes",
    "gpu_tests",
    "waits",
    "head_memory",
    *RUNS,
    "float32",
    "interpreted",
)  # in one process
BENCHMARKS = ("head", "sampling", "update", "step")


def test_the_tests_for_a_gpu_pass(rehearsal):
    assert set(rehearsal("gpu_tests", *LIBRARY).values()) == {0}


MISTAKES = {  # and words of the answer
    "devices mix": "found at least two devices, cuda:0 and cpu",
    "numpy": "can't convert cuda:0 device type tensor to numpy",
    "a launch gets a CPU pointer": "_group_advantages_kernel: Pointer argument cannot be accessed",
    "bare cuda": "cuda",
    "mm of fp32": "mm: torch.float32",
    "flash of fp32": "varlen_attn: (8, 8)",
    "flash of a longer sequence": "sequences [3, 5] of 8 tokens",
    "a recorded wait": "item inside a recording, tests/gpu/rehearsal.py:",
    "a recorded CPU tensor": "on the CPU inside a recording",
    "freed memory": "a replay reads freed memory, recorded at tests/gpu/rehearsal.py:",
    "new memory": "nan",
}


def test_the_stand_in_refuses_what_a_gpu_would(rehearsal):
    found = rehearsal("mistakes", *LIBRARY)
    unanswered = {name: found[name] for name, words in MISTAKES.items() if words not in found[name]}
    assert not unanswered
    assert found["recording computes"] == 0 and found["replay computes"] == 1


@pytest.mark.parametrize("name", RUNS)
def test_a_run_reaches_its_end_with_sampler_and_trainer_of_one_mind(name, rehearsal):
    found = rehearsal(name, *LIBRARY)
    assert found["steps"]
    for row in found["steps"]:
        assert row["loss"] == row["loss"] and row["grad_norm"] > 0
        assert row["steps_skipped_nonfinite"] == 0
        if name != "supervised":
            assert row["sampling/sampling_logp_difference/mean"] < 3e-2
            assert found["replays"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_attends_in_one_call_a_block_and_equals_float32(family, rehearsal):
    """Windows of different sizes together, and the levels of DeepStack."""
    found = rehearsal(family, *LIBRARY)
    assert found["calls"] == found["blocks"]
    assert found["error"] < 2e-2


def test_float32_draws_the_completions_of_the_cpu_and_has_its_losses(rehearsal):
    found = rehearsal("float32", *LIBRARY)
    cuda, cpu = found["cuda"], found["cpu"]
    assert len(cpu["texts"]) == 16 and cuda["texts"] == cpu["texts"]
    assert cuda["losses"] == pytest.approx(cpu["losses"], rel=1e-5, abs=1e-5)


def test_kernels_in_the_interpreter_equal_their_twins(rehearsal):
    found = rehearsal("interpreted", *LIBRARY)
    twins, kernels = found["twins"], found["kernels"]
    assert twins["torch.float32"]["tokens"] == kernels["torch.float32"]["tokens"]
    for dtype, tolerance in (("torch.float32", 1e-5), ("torch.bfloat16", 3e-2)):
        expected = pytest.approx(twins[dtype]["numbers"], rel=tolerance, abs=tolerance)
        assert kernels[dtype]["numbers"] == expected


def test_the_host_waits_no_more_often_than_it_did(rehearsal):
    """A wait inside a recorded step raises."""
    found = rehearsal("waits", *LIBRARY)["counts"]
    counts = {name: sum(part["waits"].values()) for name, part in found.items()}
    assert all(counts[name] <= most for name, most in WAITS.items()), found


def test_recordings_share_their_memory_and_are_not_made_for_a_few_steps(rehearsal):
    found = rehearsal("waits", *LIBRARY)
    assert found["held"][0] == found["held"][1]
    assert found["recordings"] == [2, 2]


def test_the_gradient_of_the_head_is_written_once(rehearsal):
    """Beside it the odds, 622 MB. A second copy of the gradient would be 467 MB more."""
    assert rehearsal("head_memory", *LIBRARY)["extra"] < 660


def test_no_more_kernels_start_than_did(rehearsal):
    found = rehearsal("waits", *LIBRARY)["counts"]
    counts = {name: part["launches"] for name, part in found.items()}
    counts["recorded"] = found["rollout"]["recorded"]
    assert all(counts[name] <= most for name, most in LAUNCHES.items()), counts


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs(name, rehearsal):
    rehearsal(name, *BENCHMARKS)


def test_the_smoke_test_runs_everything(rehearsal):
    found = rehearsal("smoke")
    assert found["code"] == 0 and "failed: nothing" in found["line"], found["line"]


@pytest.mark.slow
@pytest.mark.parametrize("size", GIB)
def test_the_memory_of_published_sizes(size, rehearsal):
    found = rehearsal(size, *GIB)
    print(size, {phase: f"{peak:.2f} GiB" for phase, peak in found.items()})
    peaks = [found[phase] for phase in ("weights", "rollout", "update")]
    assert all(0.9 * most < peak <= most for peak, most in zip(peaks, GIB[size], strict=True))
    assert found["adamw"] < found["update"]


@pytest.mark.slow
def test_the_memory_plan_is_what_torch_allocates(rehearsal):
    rows = rehearsal("planned")["rows"]
    assert len(rows) >= 8
    for size, changes, allocated, planned in rows:
        print(f"{size} {changes}: {allocated:.2f} GiB allocated, {planned:.2f} planned")
        assert abs(planned / allocated - 1) < 0.15


@pytest.mark.slow
def test_lora_of_3b_fits_a_card_of_24_gb(rehearsal):
    assert max(rehearsal("Qwen2.5-VL-3B", *GIB).values()) < 23.5
