"""Guarantees about the Triton kernels that need a compiler but no GPU, and about living without it.

Every kernel compiles ahead of time for sm_80 (A100), sm_90 (H100, H200) and sm_100 (B200) with the
tiles its launcher uses; nothing spills from registers to local memory, and bf16 products use the
tensor cores (wgmma on sm_90). Interpreted functions cannot be compiled, and tests/conftest.py turns
the interpreter on, so this file runs itself once as a script in a process without it and checks the
JSON that comes back. What it cannot tell: speed, races, and bf16 accuracy.

Run: python -m pytest tests/kernels/test_compile.py
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
CAPABILITIES = (80, 90, 100)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Forward with both outputs or only reducing, backward only storing.
LOGPROB_KERNELS = ("_odds_kernel", "_odds_kernel to reduce", "_odds_kernel to store")
DECODE_KERNELS = ("_prefix_kernel", "_suffix_kernel")
ADVANTAGE_KERNEL = "_group_advantages_kernel"


def run_python(*arguments, **environment):
    """A fresh interpreter at the root of the repository, without Triton's interpreter."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


# --- The script: compile everything, print what the binaries use ---------------------------------
def compile_kernel(kernel, types, constants, aligned, capability, **options):
    """Compile for one target; return registers, spilled bytes, and the PTX product instructions.

    `types` maps arguments to Triton types, `constants` to values fixed at compile time; `aligned`
    names arguments known to be multiples of 16, as the launcher finds out by itself on a GPU.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    index = {name: i for i, name in enumerate(kernel.arg_names)}
    signature = {name: "constexpr" if name in constants else types[name] for name in index}
    source = ASTSource(
        kernel,
        signature,
        {(index[name],): value for name, value in constants.items()},
        {(index[name],): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options)
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    # One line per function: " REG:146 STACK:0 SHARED:1024 LOCAL:0 ..."
    fields = [word.partition(":") for word in usage.split() if ":" in word]
    values = {name: int(value) for name, _, value in fields if name in ("REG", "STACK", "LOCAL")}
    ptx = compiled.asm["ptx"]
    names = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
    return {**values, "products": [name for name in names if name in ptx]}


def compile_logprob(kernel_name, dtype_name, capability):
    """As launched on contiguous matrices whose D and V are multiples of 16; C is any number."""
    from kernels import logprob

    kernel = getattr(logprob, kernel_name.split()[0])
    tile = dict(logprob.TILES[DTYPES[dtype_name]])
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    constants = dict(tile, SUPPRESSED_LOGIT=logprob.SUPPRESSED_LOGIT, stride_hd=1, stride_wd=1)
    types = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
    types |= {"targets_ptr": "*i64", "suppressed_ptr": "*i1", "inverse_temperature": "fp32"}
    types |= dict.fromkeys(("hidden_ptr", "weight_ptr", "odds_ptr"), f"*{dtype_name}")
    if kernel_name.endswith("reduce"):
        constants["odds_ptr"] = None
    if kernel_name.endswith("store"):
        constants["sums_ptr"] = None
    aligned = [name for name in kernel.arg_names if name.endswith("_ptr")]
    aligned += ["V", "D", "stride_hc", "stride_wv"]
    return compile_kernel(kernel, types, constants, aligned, capability, **options)


def compile_decode(kernel_name, dtype_name, capability):
    """As launched for Qwen2-VL-2B (12 heads on 2 key heads of width 128) and groups of 8."""
    from kernels import decode

    kernel = getattr(decode, kernel_name)
    tile = dict(decode.TILES[DTYPES[dtype_name]])
    largest, options = tile.pop("MAX_QUERIES"), {"num_warps": tile.pop("num_warps")}
    block_q = largest if kernel_name == "_prefix_kernel" else decode.MIN_QUERIES
    constants = dict(K=2, R=6, E=128, BLOCK_Q=block_q, **tile)
    pointers = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), f"*{dtype_name}")
    pointers |= dict.fromkeys(("lengths_ptr", "length_ptr"), "*i32")
    pointers |= dict.fromkeys(("sums_ptr", "values_ptr"), "*fp32")
    types = dict.fromkeys(kernel.arg_names, "i32") | pointers | {"scale": "fp32"}
    aligned = [name for name in kernel.arg_names if name.endswith("_ptr")]
    return compile_kernel(kernel, types, constants, aligned, capability, **options)


def compile_advantage(block_g, divide_by_std, capability):
    from kernels import advantage

    types = {"rewards_ptr": "*fp32", "advantages_ptr": "*fp32", "eps": "fp32"}
    types |= {"stride_n": "i32", "G": "i32"}
    constants = {"BLOCK_G": block_g, "DIVIDE_BY_STD": divide_by_std, "stride_g": 1}
    kernel = getattr(advantage, ADVANTAGE_KERNEL)
    aligned = ["rewards_ptr", "advantages_ptr"]
    options = {"num_warps": advantage.NUM_WARPS}
    return compile_kernel(kernel, types, constants, aligned, capability, **options)


def compile_all() -> dict:
    """Results keyed "kernel variant capability"."""
    from kernels.advantage import MAX_GROUP_SIZE

    results = {}
    for capability in CAPABILITIES:
        for kernel in LOGPROB_KERNELS:
            for dtype in DTYPES:
                key = f"{kernel} {dtype} {capability}"
                results[key] = compile_logprob(kernel, dtype, capability)
        for kernel in DECODE_KERNELS:
            for dtype in DTYPES:
                key = f"{kernel} {dtype} {capability}"
                results[key] = compile_decode(kernel, dtype, capability)
        for block_g in (8, MAX_GROUP_SIZE):
            key = f"{ADVANTAGE_KERNEL} {block_g} {capability}"
            results[key] = compile_advantage(block_g, True, capability)
    return results


# --- The tests -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def binaries(tmp_path_factory):
    # An empty cache, so that the kernels are compiled now and not remembered.
    process = run_python(__file__, TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton")))
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def nothing_spills(binary) -> bool:
    return binary["STACK"] == 0 and binary["LOCAL"] == 0 and binary["REG"] > 0


@pytest.mark.case("O15")
@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", LOGPROB_KERNELS)
def test_the_logprob_kernels_compile_without_spills(binaries, kernel, dtype, capability):
    binary = binaries[f"{kernel} {dtype} {capability}"]
    assert nothing_spills(binary), binary
    # bf16 goes through the tensor cores of its generation; fp32 must not, that would be TF32.
    tensor_core = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[capability]
    assert binary["products"] == ([tensor_core] if dtype == "bf16" else [])


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", DECODE_KERNELS)
def test_the_decode_kernels_compile_without_spills(binaries, kernel, dtype, capability):
    binary = binaries[f"{kernel} {dtype} {capability}"]
    assert nothing_spills(binary), binary
    assert bool(binary["products"]) == (dtype == "bf16"), binary


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("block_g", [8, 4096])
def test_the_advantage_kernel_compiles_without_spills(binaries, block_g, capability):
    binary = binaries[f"{ADVANTAGE_KERNEL} {block_g} {capability}"]
    assert nothing_spills(binary), binary


def test_the_kernels_work_where_triton_is_not_installed():
    program = """
import sys
sys.modules["triton"] = None  # `import triton` now raises ModuleNotFoundError
import torch, kernels
logp, _ = kernels.linear_logprob(torch.eye(3), torch.eye(3), torch.arange(3))
advantages = kernels.group_advantages(torch.tensor([[0.0, 1.0]]))
assert logp.shape == (3,) and advantages[0, 1] > 0.7
try:
    kernels.linear_logprob(torch.eye(3), torch.eye(3), torch.arange(3), impl="triton")
except ValueError as error:
    print(error)
"""
    process = run_python("-c", program)
    assert process.returncode == 0, process.stderr
    assert (
        process.stdout.strip() == "impl='triton' needs the package triton, which is not installed"
    )


@needs_triton
def test_the_compiled_kernels_refuse_cpu_tensors_with_one_clear_line():
    program = """
import torch, kernels
kernels.linear_logprob(torch.eye(3), torch.eye(3), torch.arange(3), impl="triton")
"""
    process = run_python("-c", program)
    last_line = process.stderr.strip().splitlines()[-1]
    assert last_line == "ValueError: impl='triton' needs CUDA tensors, got one on cpu"


if __name__ == "__main__":
    print(json.dumps(compile_all()))
