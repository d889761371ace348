#!/usr/bin/env bash
# Profiles PyTorch on this machine, plans from that profile, trains every plan of the space with PyTorch, and
# compares predictions with measurements (docs/validation.md). Needs the package:
# `python3 -m venv .venv && .venv/bin/pip install ./executor/torch`, or AUTODIST_PYTHON.
set -euo pipefail
folder=${1:-autodist-torch}
cd "$(dirname "$0")/.."
cargo build --release --quiet --workspace
autodist=target/release/autodist
mkdir -p "$folder"
"$autodist" profile --engine torch --model tiny-llama --ranks 2 --budget "${BUDGET:-120}" --fresh -o "$folder/profile.json"
"$autodist" plan --model tiny-llama --profile "$folder/profile.json" --global-batch 8 -o "$folder/plan.json"
"$autodist" validate "$folder/plan.json" --all --steps "${STEPS:-20}" -o "$folder/runs" || [ $? -eq 5 ] # refuted is a result
python3 - "$folder/runs/validation.json" <<'END'
import json, statistics, sys

runs = json.load(open(sys.argv[1]))["runs"]

def family(strategy):
    if strategy["pipeline"] > 1:
        return "pipeline, " + strategy["schedule"]
    if strategy["tensor"] > 1:
        return "tensor + sequence parallel" if strategy["sequence_parallel"] else "tensor parallel"
    return "data parallel" if strategy["zero_stage"] == 0 else f"FSDP2, zero {strategy['zero_stage']}"

groups = {}
for run in runs:
    groups.setdefault(family(run["strategy"]), []).append(run["adjusted_error"])
print("| family | plans | median error | lowest | highest |\n|---|---|---|---|---|")
for name, errors in sorted(groups.items()):
    print(f"| {name} | {len(errors)} | {statistics.median(errors):+.1%} | {min(errors):+.1%} | {max(errors):+.1%} |")
END
