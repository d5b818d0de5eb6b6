"""What the Triton kernels guarantee to a compiler without a GPU, and how they run without Triton.

Every kernel compiles ahead of time with the tiles of its launcher, in all variants for sm_90 (H100,
H200), in most for sm_80 (A100) and sm_120, those with products for sm_86, sm_89 and sm_100 (B200);
nothing spills
from registers to local memory or asks for more shared memory than a block has; bf16 products use
tensor cores
(wgmma on sm_90) and fp32 products do not; no length of a prompt needs a binary of its own.
Interpreted functions cannot be compiled, and tests/conftest.py turns the interpreter on, so this
file runs itself once as a script without it and reads the JSON that it prints. Not covered: speed,
races, bf16 accuracy of products. Run: python -m pytest tests/kernels/test_compile.py
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
TENSOR_CORES |= dict.fromkeys((86, 89, 120), "mma.sync")  # RTX 3090, 4090, 5090
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a block may use
WITHOUT_PRODUCT = (
    "swiglu",
    "sampler",
    "merge",
    "rotary",
    "norm",
)  # variants begin with these words
LARGEST = ("odds bf16", "advantages 4096")  # and all decoding kernels in bf16
HEADS = {  # key heads, query heads on each; all of width 128
    "Qwen2-VL-2B": (2, 6),
    "Qwen2.5-VL-3B": (2, 8),
    "Qwen2-VL-7B, Qwen2.5-VL-7B": (4, 7),
    "Qwen3-VL-2B": (8, 2),
    "Qwen3-VL-4B, -8B": (8, 4),
}


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


def is_compiled(variant: str, capability: int) -> bool:
    """Whether a variant is compiled for an architecture: a compiler takes a second for each."""
    if capability == 90 or variant in LARGEST:
        return True
    if capability in (80, 120):
        return variant.startswith(WITHOUT_PRODUCT) or "fix bf16" in variant
    return "fix bf16" in variant and next(iter(HEADS)) in variant


# --- The script: compile everything, print what the binaries use ---------------------------------
def launches() -> dict[str, tuple]:
    """What the launchers compile: variant -> (kernel, types, constants, multiples of 16).

    Arguments without a type are pointers to fp32 or 32-bit integers. Constants include the options
    of the compiler. All pointers are multiples of 16.
    """
    from kernels import advantage, decode, logprob, norm, rotary, sample, swiglu

    result = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        # Contiguous matrices whose D and V are multiples of 16.
        types = {"targets_ptr": "*i64", "suppressed_ptr": "*i1", "inverse_temperature": "fp32"}
        types |= dict.fromkeys(("hidden_ptr", "weight_ptr", "odds_ptr"), f"*{name}")
        constants = logprob.TILES[dtype] | dict(stride_hd=1, stride_wd=1)
        constants |= {"SUPPRESSED_LOGIT": logprob.SUPPRESSED_LOGIT}
        uses = {"": {}, "to reduce ": {"odds_ptr": None}, "to store ": {"sums_ptr": None}}
        for use, absent in uses.items():
            multiples = ["V", "D", "stride_hc", "stride_wv"]
            launch = (logprob._odds_kernel, types, constants | absent, multiples)
            result[f"odds {use}{name}"] = launch
        # Groups of 8.
        types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), f"*{name}")
        types |= {"lengths_ptr": "*i32", "length_ptr": "*i32", "scale": "fp32"}
        for heads, (K, R) in [*HEADS.items()][: None if name == "bf16" else 1]:  # fp32: for tests
            constants = decode.TILES[dtype] | dict(K=K, R=R, E=128, BLOCK_E=128)
            largest = {"BLOCK_Q": constants.pop("MAX_QUERIES")}
            launch = (decode._prefix_kernel, types, constants | largest, [])
            result[f"prefix {name}, {heads}"] = launch
            smallest = {"BLOCK_Q": decode.MIN_QUERIES}
            launch = (decode._suffix_kernel, types, constants | smallest, [])
            result[f"suffix {name}, {heads}"] = launch
        # The MLP's width is a multiple of 16.
        pointers = ("grad", "gate", "up", "grad_gate", "grad_up", "product")
        types = {f"{pointer}_ptr": f"*{name}" for pointer in pointers}
        launch = (swiglu._forward_kernel, types, swiglu.TILE, ["size"])
        result[f"swiglu forward {name}"] = launch
        for use, absent in (("", {}), (" without product", {"product_ptr": None})):
            launch = (swiglu._backward_kernel, types, swiglu.TILE | absent, ["size"])
            result[f"swiglu backward {name}{use}"] = launch
        # Widths of heads: of the published families, and one that is no power of two.
        for E, block in ((128, 128), (80, 128)):
            constants = dict(E=E, BLOCK_E=block, BLOCK_PARTS=decode.PARTS_AT_ONCE)
            launch = (decode._merge_kernel, {"out_ptr": f"*{name}"}, constants, [])
            result[f"merge {name}, {E}"] = launch
            names = ("qkv", "cos", "sin", "scale", "q", "keys", "values")
            types = {f"{pointer}_ptr": f"*{name}" for pointer in names}
            types |= {"newest_ptr": "*i64", "eps": "fp32"}
            constants = rotary.TILE | dict(H=28, K=4, E=E, BLOCK_E=block)
            result[f"rotary {name}, {E}"] = (rotary._rotate_kernel, types, constants, [])
        for D in (1536, 3584):
            names = ("x", "update", "weight", "total", "normed")
            types = {f"{pointer}_ptr": f"*{name}" for pointer in names} | {"eps": "fp32"}
            constants = dict(BLOCK_D=1 << (D - 1).bit_length(), num_warps=norm.NUM_WARPS)
            result[f"norm {name}, {D}"] = (norm._add_norm_kernel, types, constants, ["D"])
    # Qwen2.5-VL-7B's 152064 words in 75 tiles.
    types = {"sums_ptr": "*fp64", "suppressed_ptr": "*i1", "ids_ptr": "*i64", "temperature": "fp32"}
    launch = (sample._tile_kernel, types, sample.TILE, ["stride_b", "V"])
    result["sampler tile"] = launch
    for use, greedy in (("", False), (" greedy", True)):
        constants = sample.TILE | dict(GREEDY=greedy, BLOCK_TILES=128, stride_u=1)
        result[f"sampler row{use}"] = (sample._row_kernel, types, constants, ["stride_b", "V"])
    for block_g in (8, advantage.MAX_GROUP_SIZE):
        constants = dict(BLOCK_G=block_g, DIVIDE_BY_STD=True, stride_g=1)
        constants["num_warps"] = advantage.NUM_WARPS
        launch = (advantage._group_advantages_kernel, {"eps": "fp32"}, constants, [])
        result[f"advantages {block_g}"] = launch
    return result


def compile_kernel(kernel, types, constants, multiples, capability):
    """Compile for one target; return registers, spilled bytes, and the PTX product instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: constants[name] for name in ("num_warps", "num_stages") if name in constants}
    index = {name: i for i, name in enumerate(kernel.arg_names)}
    signature = {
        name: "constexpr" if name in constants else types.get(name, default)
        for name in index
        for default in ["*fp32" if name.endswith("_ptr") else "i32"]
    }
    multiples = [*multiples, *(name for name in index if name.endswith("_ptr"))]
    source = ASTSource(
        kernel,
        signature,
        {(index[name],): value for name, value in constants.items() if name not in options},
        {(index[name],): [["tt.divisibility", 16]] for name in multiples},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [cuobjdump, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # One line per function: " REG:146 STACK:0 SHARED:1024 LOCAL:0 ..."
    fields = [word.partition(":") for word in usage.split() if ":" in word]
    values = {name: int(value) for name, _, value in fields if name in ("REG", "STACK", "LOCAL")}
    products = [
        name for name in dict.fromkeys(TENSOR_CORES.values()) if name in compiled.asm["ptx"]
    ]
    return values | {"products": products, "shared": compiled.metadata.shared}


def decoding_variants(prompt_lengths: list[int]) -> int:
    """Binaries that decoding after prompts of these lengths needs, its kernels together: the
    keys under which Triton's launcher looks for them, here taken without launching."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    from kernels import decode

    keys, backend = set(), make_backend(GPUTarget("cuda", 90, 32))

    class Launcher:
        def __init__(self, kernel):
            self.name = kernel.__name__
            self.bind = create_function_from_signature(kernel.signature, kernel.params, backend)

        def __getitem__(self, _grid):
            return lambda *args, **more: keys.add((self.name, str(self.bind(*args, **more)[1:])))

    for name in ("_prefix_kernel", "_suffix_kernel", "_merge_kernel"):
        setattr(decode, name, Launcher(getattr(decode, name)))
    N, G, S_max, (K, R) = 2, 4, 33, HEADS["Qwen2-VL-2B"]
    for P in prompt_lengths:
        q = torch.empty(N * G, K * R, 128, dtype=torch.bfloat16)
        k = torch.empty(N, K, P + S_max * G, 128, dtype=torch.bfloat16)
        lengths, length = torch.empty(N, dtype=torch.int32), torch.empty((), dtype=torch.int32)
        decode._triton(q, k, k, lengths, P, length)
    return len(keys)


# --- The tests -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def binaries(tmp_path_factory):
    # An empty cache, so that the kernels are compiled now and not remembered.
    process = run_python(__file__, TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton")))
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.case("O15")
@needs_triton
def test_the_kernels_compile_without_spills_and_bf16_uses_tensor_cores(binaries):
    counts = Counter(int(name.split()[-1]) for name in binaries)
    assert counts == {90: 41, 80: 33, 120: 33} | dict.fromkeys((86, 89, 100), 4)
    for name, binary in binaries.items():
        assert binary["STACK"] == binary["LOCAL"] == 0 < binary["REG"], (name, binary)
        capability = int(name.split()[-1])
        assert binary["shared"] <= 1024 * SHARED[capability], (name, binary)
        if "odds" in name and "bf16" in name:
            assert binary["products"] == [TENSOR_CORES[capability]], name
        else:  # fp32 products on tensor cores would be TF32
            has_product = "bf16" in name and not name.startswith(WITHOUT_PRODUCT)
            assert bool(binary["products"]) == has_product, (name, binary)


@needs_triton
def test_no_length_of_a_prompt_compiles_a_kernel_anew():
    lengths = [1, 2, 16, 17, 31, 32, 100, 1000, 1024, 4095, 4096]
    program = "from tests.kernels.test_compile import decoding_variants as variants\n"
    process = run_python("-c", f"{program}print(variants({lengths}))")
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["3"]  # one for each kernel


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
    expected = "impl='triton' needs the package triton, which is not installed"
    assert process.stdout.strip() == expected


if __name__ == "__main__":
    binaries = {
        f"{variant} {capability}": compile_kernel(*launch, capability)
        for capability in TENSOR_CORES
        for variant, launch in launches().items()
        if is_compiled(variant, capability)
    }
    print(json.dumps(binaries))
