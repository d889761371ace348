#!/usr/bin/env bash
# All-reduce over loopback, ours and Gloo's in turn, twice: to compare. Wants Debian's
# libgloo-dev and g++.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet --workspace --example bandwidth
mkdir -p target/gloo
g++ -O3 -march=native -std=c++17 scripts/gloo.cpp -o target/gloo/gloo -lgloo -lpthread
for round in 1 2; do
    echo "== autodist"
    target/release/examples/bandwidth "$@"
    echo "== gloo"
    target/gloo/gloo "$@"
done
