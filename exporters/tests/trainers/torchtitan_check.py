"""torchtitan's own parser, device mesh sizes and pipeline split, for the command line that the script starts it with."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import torchtitan.trainer  # noqa: F401  The configurations' own imports, which take longest.
from common import Sizes, after, arguments, run, value
from torch.distributed.pipelining.schedules import get_schedule_class
from torchtitan.config import ConfigManager
from torchtitan.distributed import pipeline_parallel
from torchtitan.distributed.parallel_dims import ParallelDims
from torchtitan.models.llama3 import config_registry  # noqa: F401


def check(folder: Path, expected: Sizes) -> Sizes:
    words = arguments(folder / "torchtitan.sh", "torchrun", MODULE="llama3", CONFIG="llama3_8b")
    world = int(value(words, "--nnodes")) * int(value(words, "--nproc-per-node"))
    if (folder / "autodist_stages.py").exists():
        # As the script exports them.
        os.environ["AUTODIST_BASE"] = "llama3:llama3_8b"
        sys.path.insert(0, str(folder))
        importlib.import_module("autodist_stages")
    config = ConfigManager().parse_args(after(words, "torchtitan.train"))
    parallelism, training = config.parallelism, config.training
    mesh = ParallelDims.from_config(parallelism, world)
    data = mesh.dp_replicate * mesh.dp_shard
    sharded = mesh.dp_shard > 1
    sizes: Sizes = {
        "data": data,
        "shard": mesh.dp_shard if sharded else 1,
        "zero_stage": {"always": 3, "never": 2, "default": 0}[parallelism.fsdp_reshard_after_forward],
        "tensor": mesh.tp,
        "pipeline": mesh.pp,
        "context": mesh.cp,
        "sequence_parallel": mesh.tp > 1 and parallelism.enable_sequence_parallel,
        "global_batch": training.global_batch_size,
        "seq_len": training.seq_len,
        "bf16": training.mixed_precision_param == "bfloat16",
        "recompute": type(config.activation_checkpoint).__qualname__.split(".")[0].removesuffix("AC").lower() or "none",
    }
    sizes["recompute"] = {"nonetype": "none"}.get(sizes["recompute"], sizes["recompute"])
    rounds = training.global_batch_size // (training.local_batch_size * data)
    if mesh.pp > 1:
        schedule = get_schedule_class(parallelism.pipeline_parallel_schedule)
        sizes["schedule"] = {"ScheduleGPipe": "gpipe", "Schedule1F1B": "1f1b"}.get(schedule.__name__, "interleaved")
        sizes["micro_batch"] = parallelism.pipeline_parallel_microbatch_size
        assert rounds == 1, "a pipeline runs the whole batch of its ranks at once"
        virtual, layers, first, last = pipeline_parallel._get_pipeline_metadata(
            mesh, parallelism, config.model_spec.model
        )
        parts = parallelism.module_fqns_per_model_part or pipeline_parallel._generate_llm_fqn_per_model_part(
            virtual, layers, first, last
        )
        sizes["stages"] = [sum(name.startswith("layers.") for name in part) for part in parts]
    else:
        sizes["micro_batch"] = training.local_batch_size
    return sizes


run(check)
