#!/usr/bin/env bash
# Tests and speed benchmarks on one GPU, 9 minutes at most: random weights at the dimensions of
# Qwen2-VL-2B. Needs torch >= 2.11, triton >= 3.6 and pytest; peers that are installed are measured
# too. Tables and a JSON line each go to $OUT/gpu.md (OUT: benchmarks/logs by default).
set -uo pipefail
python -c "import torch; exit(not torch.cuda.is_available())" || { echo "no CUDA device"; exit 2; }
cd "$(dirname "$0")/.."
out="${OUT:-benchmarks/logs}"
mkdir -p "$out"
{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    python -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)"
    failed=0
    timeout 140 python -m pytest -q tests/test_gpu.py tests/kernels || failed=1
    for name in head sampling update step; do
        echo "== $name"
        timeout 95 python -m "benchmarks.speed.$name" --device cuda || failed=1
    done
    exit $failed
} 2>&1 | tee "$out/gpu.md"
