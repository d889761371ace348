"""DeepSpeed's own configuration object, batch arithmetic included."""

from __future__ import annotations

import json
import os
from pathlib import Path

from common import Sizes, arguments, run, value

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_IGNORE_CUDA_DETECTION", "1")

import deepspeed.comm  # noqa: E402  It asks the environment at once.
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS, DeepSpeedConfig  # noqa: E402
from deepspeed.runtime.lr_schedules import VALID_LR_SCHEDULES  # noqa: E402


def check(folder: Path, expected: Sizes) -> Sizes:
    words = arguments(folder / "deepspeed.sh", "torchrun")
    world = int(value(words, "--nnodes")) * int(value(words, "--nproc-per-node"))
    raw = json.loads(Path(value(words, "--deepspeed_config")).read_text())
    tensor = raw.get("tensor_parallel", {}).get("autotp_size", 1)

    class Mpu:
        """What DeepSpeed asks of a trainer that splits models."""

        def get_data_parallel_world_size(self) -> int:
            return world // tensor

    os.environ["WORLD_SIZE"] = str(world)
    deepspeed.comm.get_world_size = lambda group=None: world
    deepspeed.comm.get_rank = lambda group=None: 0
    config = DeepSpeedConfig(raw, mpu=Mpu())
    # The engine asks for these; the parser lets anything through.
    assert config.optimizer_name in DEEPSPEED_OPTIMIZERS, config.optimizer_name
    assert config.scheduler_name in VALID_LR_SCHEDULES, config.scheduler_name
    zero = config.zero_config
    return {
        "data": config.train_batch_size
        // (config.train_micro_batch_size_per_gpu * config.gradient_accumulation_steps),
        "tensor": tensor,
        "zero_stage": int(zero.stage),
        "shard": world // tensor if int(zero.stage) > 0 else 1,
        "micro_batch": config.train_micro_batch_size_per_gpu,
        "global_batch": config.train_batch_size,
        "bf16": config.bfloat16_config.enabled,
        "gradient_clip": config.gradient_clipping,
    }


run(check)
