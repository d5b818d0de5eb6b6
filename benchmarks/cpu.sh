#!/usr/bin/env bash
# The speed benchmarks on a CPU, a quarter of an hour at most on two idle cores: a table and a JSON
# line each. Peers of benchmarks/requirements.txt that are installed are measured too.
set -euo pipefail
cd "$(dirname "$0")/.."
for name in head sampling update step; do
    echo "== $name"
    python -m "benchmarks.speed.$name" --device cpu
done
