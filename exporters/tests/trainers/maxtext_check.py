"""MaxText's own configuration, and the sizes of the device mesh that it makes of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import maxtext
import yaml
from common import Sizes, run
from maxtext.configs import pyconfig
from maxtext.utils import max_utils

BASE = Path(next(iter(maxtext.__path__))) / "configs" / "base.yml"


def check(folder: Path, expected: Sizes) -> Sizes:
    devices = expected["devices"]
    nodes = max(devices // 8, 1)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    given = yaml.safe_load((folder / "maxtext.yml").read_text())
    assert given.pop("base_config") == "base.yml"
    # What the script adds, and what would write or talk to other hosts.
    own = {"hardware": "cpu", "base_output_directory": tempfile.gettempdir(), "skip_jax_distributed_system": True}
    words = [f"{key}={entry}" for key, entry in {**given, **own, "enable_checkpointing": False}.items()]
    config = pyconfig.initialize(["train", str(BASE), *words])
    # The two calls by which it makes the mesh; a product that is not a number of devices is an error.
    across = max_utils.fill_unspecified_mesh_axes(list(config.dcn_parallelism), nodes, "DCN")
    inside = max_utils.fill_unspecified_mesh_axes(list(config.ici_parallelism), devices // nodes, "ICI")
    axes = {axis: i * d for axis, i, d in zip(config.mesh_axes, inside, across, strict=True)}
    pipelined = axes["stage"] > 1
    steps = config.num_pipeline_microbatches if pipelined else config.gradient_accumulation_steps
    data = axes["data"] * axes["fsdp"]
    batch = round(config.per_device_batch_size * devices * config.gradient_accumulation_steps)
    sizes: Sizes = {
        "data": data,
        "tensor": axes["tensor"],
        "pipeline": axes["stage"],
        "context": axes["context"],
        "zero_stage": 3 if axes["fsdp"] > 1 else int(config.shard_optimizer_over_data),
        "micro_batch": batch // (steps * data),
        "global_batch": batch,
        "seq_len": config.max_target_length,
        "bf16": str(config.dtype).endswith("bfloat16'>") or str(config.dtype) == "bfloat16",
        "recompute": {"minimal_with_context": "none", "minimal": "selective", "full": "full"}[config.remat_policy],
    }
    if pipelined:
        chunks = axes["stage"] * config.num_pipeline_repeats
        sizes["stages"] = [config.num_layers_per_pipeline_stage] * chunks
        sizes["virtual_stages"] = config.num_pipeline_repeats
    return sizes


run(check)
