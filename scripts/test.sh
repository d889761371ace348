#!/usr/bin/env bash
# Runs all tests that this machine can run, also over MPI if it is installed; of some tests only a share of
# the cases (`.ci/at-length` runs the others). Arguments go to the test runner: `scripts/test.sh exactness::`
# (a file of tests), `scripts/test.sh over_mpi`.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t features < <(scripts/features.sh)
# Open MPI refuses to run as root without these variables.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# A snapshot that differs fails its test, and no new snapshot is written unless the caller sets
# INSTA_UPDATE=always.
export INSTA_UPDATE=${INSTA_UPDATE:-no}

whole=$([ $# -gt 0 ] || echo yes)
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --locked "${features[@]}" "$@"
else
    echo "cargo-nextest is not installed: the tests run one program after the other (cargo install cargo-nextest --locked)"
    # As in .config/nextest.toml.
    [ -z "$whole" ] || set -- -- --skip at_length
    cargo test --workspace --locked --lib --bins --tests "${features[@]}" "$@"
fi
# The examples in the documentation, only if all tests run: a filter selects none of them.
[ -z "$whole" ] || cargo test --workspace --locked --doc --quiet "${features[@]}"
