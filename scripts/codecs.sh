#!/usr/bin/env bash
# Predicts and measures whether each codec helps at four network speeds: the table "Sign of the gain" of
# docs/validation.md. The last speed is this machine's loopback between two ranks, not emulated.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet
for name in four-50mbit four-200mbit four-1gbit loopback; do
    echo "== $name"
    for job in codecs codecs-sgd; do
        folder=autodist-codecs/$name/$job
        where=(--emulate "catalog/clusters/$name.toml" --budget 2)
        [ $name = loopback ] && where=(--ranks 2 --budget 20)
        target/release/autodist profile "${where[@]}" --job "catalog/jobs/$job.toml" --fresh -o "$folder/profile.json" > /dev/null
        target/release/autodist plan --job "catalog/jobs/$job.toml" --profile "$folder/profile.json" -o "$folder/plan.json" > /dev/null
        target/release/autodist validate "$folder/plan.json" --all --steps 10 -o "$folder/runs" > "$folder/validation.txt" || [ $? -eq 5 ] # refuted is a result
        sed -n '/^Gain from compression/,$p' "$folder/validation.txt"
    done
done
