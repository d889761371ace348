"""Megatron's own argument parser and validation, and the transformer configuration that it makes of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from common import Sizes, after, arguments, run, value
from megatron.training import arguments as parser


def check(folder: Path, expected: Sizes) -> Sizes:
    script = folder / "megatron.sh"
    # Fused rotary positions are Transformer Engine's, which asks for a GPU: what the script is called with goes to Megatron.
    words = [*arguments(script, "torchrun"), "--no-rope-fusion"]
    world = int(value(words, "--nnodes")) * int(value(words, "--nproc-per-node"))
    os.environ |= {"WORLD_SIZE": str(world), "RANK": "0", "LOCAL_RANK": "0"}
    if "export CUDA_DEVICE_MAX_CONNECTIONS=1" in script.read_text():
        os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"

    # The one question to a GPU: which generation it is.
    parser.get_device_arch_version = lambda: 9
    sys.argv = ["pretrain_gpt.py", *after(words, "pretrain_gpt.py")]
    given = parser.validate_args(parser.parse_args(), {})
    config = parser.core_transformer_config_from_args(given)
    sizes: Sizes = {
        "data": given.data_parallel_size,
        "tensor": given.tensor_model_parallel_size,
        "pipeline": given.pipeline_model_parallel_size,
        "context": given.context_parallel_size,
        "sequence_parallel": given.sequence_parallel,
        "micro_batch": given.micro_batch_size,
        "global_batch": given.global_batch_size,
        "seq_len": given.seq_length,
        "bf16": given.bf16,
        "virtual_stages": given.virtual_pipeline_model_parallel_size or 1,
        "recompute": given.recompute_granularity or "none",
        "distributed_optimizer": given.use_distributed_optimizer,
        "gradient_clip": given.clip_grad,
    }
    layout = config.pipeline_model_parallel_layout
    if layout is not None:
        stages = range(layout.virtual_pipeline_model_parallel_size)
        ranks = range(given.pipeline_model_parallel_size)
        count = lambda rank, stage: sum(kind.name == "decoder" for kind in layout.layout[rank][stage])
        sizes["stages"] = [count(rank, stage) for stage in stages for rank in ranks]
    return sizes


run(check)
