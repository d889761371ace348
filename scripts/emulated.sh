#!/usr/bin/env bash
# Predicts and trains every plan of three emulated clusters: the table "Emulated clusters" of
# docs/validation.md.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet
job=catalog/jobs/communication.toml
for name in four-200mbit two-nodes lopsided; do
    folder=autodist-emulated/$name
    target/release/autodist profile --emulate "catalog/clusters/$name.toml" --job $job --budget 2 --fresh -o "$folder/profile.json" > /dev/null
    target/release/autodist plan --job $job --profile "$folder/profile.json" -o "$folder/plan.json" > /dev/null
    echo "== $name"
    target/release/autodist validate "$folder/plan.json" --all --steps 4 -o "$folder/runs" > "$folder/validation.txt" || [ $? -eq 5 ] # refuted is a result
    grep --after-context=8 '^error ' "$folder/validation.txt"
done
