"""What `accelerate launch` makes of its file, and what Accelerator then makes of the environment."""

from __future__ import annotations

import os
from pathlib import Path

from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import launch as environments
from common import Sizes, arguments, run, value


def understood(file: Path, rank_flags: list[str]) -> Sizes:
    config = load_config_from_file(str(file))
    parser = launch.launch_command_parser()
    given = parser.parse_args(["--config_file", str(file), *rank_flags, "train.py"])
    given, _, _ = launch._validate_launch_command(given)
    # Keys of sections that the launcher does not know are dropped without a word.
    known = {action.dest for action in parser._actions}
    for section in ("fsdp_config", "parallelism_config"):
        unknown = set(getattr(config, section, None) or {}) - known
        assert not unknown, f"{section}: the launcher drops {unknown}"
    processes = int(given.num_processes)
    sizes: Sizes = {"bf16": given.mixed_precision == "bf16"}
    if not given.use_fsdp:
        return {**sizes, "data": processes, "tensor": 1, "context": 1, "zero_stage": 0, "shard": 1}
    os.environ.update({key: str(entry) for key, entry in environments.prepare_multi_gpu_env(given).items()})
    plugin, mesh = FullyShardedDataParallelPlugin(), ParallelismConfig()
    assert mesh.total_size == processes, f"the mesh has {mesh.total_size} devices, {processes} processes start"
    assert plugin.fsdp_version == 2
    sharded = mesh.dp_shard_size > 1
    return {
        **sizes,
        "data": mesh.dp_replicate_size * mesh.dp_shard_size,
        "shard": mesh.dp_shard_size,
        "zero_stage": (3 if plugin.reshard_after_forward else 2) if sharded else 0,
        "tensor": mesh.tp_size,
        "context": mesh.cp_size,
        "full_recompute": plugin.activation_checkpointing,
    }


def check(folder: Path, expected: Sizes) -> Sizes:
    words = arguments(folder / "accelerate.sh", "accelerate")
    flags = words[words.index("--config_file") + 2 : words.index("train.py")]
    flags = [word for word in flags if not word.endswith("autodist_recompute.py")]
    return understood(Path(value(words, "--config_file")), flags)


if __name__ == "__main__":
    run(check)
