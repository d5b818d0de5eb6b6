#!/usr/bin/env bash
# Everything that wants a GPU, 9 minutes at most: a smoke test that ends in one line, the tests, and
# speed with random weights at the dimensions of Qwen2-VL-2B and Qwen3-VL-2B, with all weights
# trained and with an adapter. Needs torch >= 2.11, triton >= 3.6 and pytest; peers that are
# installed are measured too. Tables and a JSON line each go to $OUT/gpu.md (OUT: benchmarks/logs
# by default).
set -uo pipefail
python -c "import torch; exit(not torch.cuda.is_available())" || { echo "no CUDA device"; exit 2; }
cd "$(dirname "$0")/.."
out="${OUT:-benchmarks/logs}"
mkdir -p "$out"
{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    python -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)"
    failed=0
    timeout 110 python -m benchmarks.speed.smoke --device cuda || failed=1
    timeout 120 python -m pytest -q tests/test_gpu.py tests/kernels || failed=1
    for name in head sampling update step; do
        echo "== $name"
        timeout 43 python -m "benchmarks.speed.$name" --device cuda --rounds 2 || failed=1
    done
    for flags in "--lora_rank 16" "--size qwen3_vl_2b" "--size qwen3_vl_2b --lora_rank 16"; do
        echo "== step $flags"
        timeout 43 python -m benchmarks.speed.step --device cuda --rounds 2 $flags || failed=1
    done
    exit $failed
} 2>&1 | tee "$out/gpu.md"
