"""Transformers' own `TrainingArguments`, and the mesh that Accelerate starts them with."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from accelerate_check import understood
from common import Sizes, arguments, run, value
from transformers import HfArgumentParser, TrainingArguments


def check(folder: Path, expected: Sizes) -> Sizes:
    words = arguments(folder / "transformers.sh", "accelerate")
    mesh = understood(Path(value(words, "--config_file")), [])
    given = json.loads(Path(words[-1]).read_text())
    # There is no GPU here, which bf16 and FSDP would ask for.
    given |= {"output_dir": tempfile.gettempdir(), "use_cpu": True}
    (parsed,) = HfArgumentParser(TrainingArguments).parse_dict(given, allow_extra_keys=False)
    steps = parsed.gradient_accumulation_steps
    return {
        **mesh,
        "micro_batch": parsed.per_device_train_batch_size,
        "global_batch": parsed.per_device_train_batch_size * steps * mesh["data"],
        "bf16": parsed.bf16,
        "full_recompute": parsed.gradient_checkpointing or parsed.fsdp_plugin_args.get("activation_checkpointing", False)
        if parsed.fsdp_plugin_args
        else parsed.gradient_checkpointing,
        "gradient_clip": parsed.max_grad_norm,
    }


run(check)
