# What one does with this repository; `just` lists it.
default:
    @just --list

# Everything that a change must pass
check: format lint test

format:
    cargo fmt --all --check

lint:
    cargo clippy --workspace --all-targets -- -D warnings

test:
    cargo test --workspace

# Measure this machine, search, train the best plans, compare
tune:
    cargo run --release -- tune

# Write the JSON Schemas again after a type has changed
schemas:
    for what in model cluster job profile plan run validation; do cargo run -q -- schema $what > schemas/$what.schema.json; done

# A transformer block's forward and backward, one thread
bench-block:
    cargo run --release -p autodist-compute --example block

# All-reduce over loopback
bench-links:
    cargo run --release -p autodist-communication --example bandwidth
