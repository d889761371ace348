#!/usr/bin/env bash
# All tests that this machine can run, over MPI too where that is installed; a share of the cases of some (`.ci/at-length` runs
# the others). Arguments go to the test runner:
# `scripts/test.sh exactness::` (a file of tests), `scripts/test.sh over_mpi`.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t features < <(scripts/features.sh)
# Open MPI starts nothing for root unless it is told to.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# A snapshot that differs fails its test, and no other file is written, unless somebody asks for it: INSTA_UPDATE=always.
export INSTA_UPDATE=${INSTA_UPDATE:-no}

whole=$([ $# -gt 0 ] || echo yes)
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --locked "${features[@]}" "$@"
else
    echo "cargo-nextest is not installed: the tests run one program after the other (cargo install cargo-nextest --locked)"
    # As .config/nextest.toml says.
    [ -z "$whole" ] || set -- -- --skip at_length
    cargo test --workspace --locked --lib --bins --tests "${features[@]}" "$@"
fi
# Examples in the documentation; no tests are in there to choose from.
[ -z "$whole" ] || cargo test --workspace --locked --doc --quiet "${features[@]}"
