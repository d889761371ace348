#!/usr/bin/env bash
# Checks exported plans with the parsers of Megatron and MaxText, which need Python 3.12 and 7 GB: not a part
# of .ci/run. PYTHON312 is the path of that Python, by default python3.12.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$PWD/target/python312/bin/python
pip=("$python" -m pip install --quiet --disable-pip-version-check)
if ! [ -x "$python" ]; then
    "${PYTHON312:-python3.12}" -m venv target/python312
    "${pip[@]}" torch==2.15.0 numpy pyyaml omegaconf==2.4.0 megatron-core==0.19.2
    "${pip[@]}" jax==0.12.0.1 flax==0.12.12 pydantic==2.14.3 packaging absl-py jinja2 orbax-checkpoint==0.12.8 tensorboardX \
        psutil requests etils aqtp drjax qwix tokamax pathwaysutils ml-goodput-measurement jaxtyping huggingface_hub
    "${pip[@]}" --no-deps maxtext==0.2.5
fi
AUTODIST_TRAINERS_PYTHON312=$python cargo test --locked -p autodist-exporters --test it -- --nocapture real_trainers::m
