#!/usr/bin/env bash
# Compares our all-reduce with Gloo's over loopback: each in turn, twice. Needs Debian's libgloo-dev and g++.
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
