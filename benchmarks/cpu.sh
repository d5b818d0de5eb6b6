#!/usr/bin/env bash
# Every benchmark that needs no GPU, a quarter of an hour at most on two idle cores; then one JSON
# line: id -> its ratios with spread. Needs benchmarks/requirements.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for id in head_memory sampler_vs_trainer shared_prefix_update sampling_vs_transformers step_vs_trl; do
    echo "== $id"
    python -m "benchmarks.speed.$id" | tee -a "$log"
done
python - "$log" <<'PYTHON'
import json, sys
lines = [line for line in open(sys.argv[1]) if line.startswith('{"id"')]
results = {}
for row in map(json.loads, lines):
    results[row["id"]] = {k: v for k, v in row.items() if k not in ("id", "machine")}
print(json.dumps(results))
PYTHON
