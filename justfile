# What one does with this repository; `just` lists it.
default:
    @just --list

# Everything that a change must pass
check: format lint test

format:
    cargo fmt --all --check

lint:
    cargo clippy --workspace --all-targets $(scripts/features.sh) -- -D warnings

test:
    scripts/test.sh

# Measure this machine, search, train the best plans, compare
tune:
    cargo run --release -- tune

# Write the JSON Schemas again after a type has changed
schemas:
    for what in model cluster job profile plan run validation; do cargo run -q -- schema $what > schemas/$what.schema.json; done

# Every plan of three emulated clusters, predicted and trained (docs/validation.md)
emulated:
    scripts/emulated.sh

# Whether each codec helps at four speeds of the network, predicted and measured (docs/validation.md)
codecs:
    scripts/codecs.sh

# A transformer block's forward and backward, one thread
bench-block:
    cargo run --release -p autodist-compute --example block

# Matrix products and a transformer block on GPU 0
bench-gpu:
    cargo run --release -p autodist-cuda --example gpu_block

# All-reduce over loopback
bench-links:
    cargo run --release -p autodist-communication --example bandwidth

# What needs a real GPU; says why where there is none
test-gpu:
    cargo test --release --test it real_gpu:: -- --test-threads 1

# Ranks over MPI, where one is installed
test-mpi:
    scripts/test.sh over_mpi

# The real compiler for the kernels' tests, where no CUDA is installed
nvrtc:
    python3 -m pip install --quiet --target target/nvrtc nvidia-cuda-nvrtc-cu12==12.8.93

# Ranks on network namespaces with links between them (docs/validation-links.md); needs root
links:
    scripts/test.sh namespaces::

# A hundred thousand changed files of every kind through the program's readers, counted by what became of them
fuzz cases="100000":
    AUTODIST_MUTATIONS={{cases}} cargo test --release --test it no_changed_file -- --nocapture

# Coverage-guided fuzzing of every reader, so many seconds each; needs a nightly toolchain and cargo-fuzz
fuzz-readers seconds="60":
    scripts/fuzz.sh {{seconds}}

# The Python wheel, in target/wheels; needs maturin
wheel:
    cd python && maturin build --release --locked
