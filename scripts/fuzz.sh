#!/usr/bin/env bash
# Fuzzes the reader of every kind of file, and of the wire, with libFuzzer (coverage-guided):
# `scripts/fuzz.sh [SECONDS [TARGET ...]]`, by default 60 seconds per target. It starts with valid files of
# each kind, stops at the first file that breaks a reader, and keeps that file in fuzz/artifacts. Needs a
# nightly toolchain and cargo-fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
targets=("$@")
if [ "${#targets[@]}" = 0 ]; then
    mapfile -t targets < <(cd fuzz/fuzz_targets && ls | sed 's/\.rs$//')
fi
cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is not installed: cargo install cargo-fuzz --locked" >&2 && exit 2; }

AUTODIST_MUTATIONS_SEEDS="$PWD/fuzz/corpus" cargo test --quiet --locked --test it every_right_file_is_taken -- --nocapture
for target in "${targets[@]}"; do
    echo "== $target"
    mkdir -p "fuzz/corpus/$target"
    log=fuzz/artifacts/$target.log
    mkdir -p fuzz/artifacts
    code=0
    cargo +nightly fuzz run --sanitizer none --features libfuzzer "$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1 >"$log" 2>&1 || code=$?
    grep -E '^stat::number_of_executed|^stat::peak_rss' "$log" || true
    if [ "$code" != 0 ]; then
        tail -n 40 "$log" >&2
        echo "$target: broken (exit code $code), see fuzz/artifacts/$target" >&2
        exit 1
    fi
done
