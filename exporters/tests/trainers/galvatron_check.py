"""Galvatron's own reader of strategy files, loaded from its file: the package itself asks for GPUs when it is imported."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch.distributed
from common import Sizes, arguments, run, value
from torch.testing._internal.distributed.fake_pg import FakeStore


def load(name: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def reader() -> Any:
    found = importlib.util.find_spec("galvatron")
    assert found is not None and found.submodule_search_locations
    root = Path(next(iter(found.submodule_search_locations)))
    for name in ("galvatron", "galvatron.utils"):
        package = types.ModuleType(name)
        package.__path__ = []
        sys.modules[name] = package
    for part in ("strategy_utils", "config_utils"):
        module = load(f"galvatron.utils.{part}", root / "utils" / f"{part}.py")
        sys.modules["galvatron.utils"].__dict__.update(
            {key: entry for key, entry in vars(module).items() if not key.startswith("__")}
        )
    return load("galvatron_reader", root / "core/runtime/hybrid_parallel_config.py")


READER = reader()


def check(folder: Path, expected: Sizes) -> Sizes:
    words = arguments(folder / "galvatron.sh", "torchrun")
    world = int(value(words, "--nnodes")) * int(value(words, "--nproc-per-node"))
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    given = types.SimpleNamespace(
        local_rank=0, galvatron_config_path=value(words, "--galvatron_config_path"), chunks=None,
        global_train_batch_size=None, pipeline_type=None, default_dp_type=None, embed_sdp=0, vocab_tp=1, vocab_sp=0,
        mixed_precision=value(words, "--mixed_precision"), distributed_checkpoint=False, load=None, use_ulysses=False,
    )  # fmt: skip
    blocks = sum(expected["stages"])
    model = types.SimpleNamespace(layernums=lambda: [blocks])
    strategy = READER.get_hybrid_parallel_configs_api(None, given, lambda config, arguments: model)
    lists = ("tp_sizes_enc", "tp_consecutive_flags", "dp_types_enc", "checkpoint_flags_enc", "pp_ranks_enc", "use_sp")
    assert all(len(strategy[name]) == blocks for name in lists), "a list has another length than the model"
    (tensor,) = set(strategy["tp_sizes_enc"])
    (sharded,) = set(strategy["dp_types_enc"])
    (full,) = set(strategy["checkpoint_flags_enc"])
    data = world // strategy["pp_deg"] // tensor
    return {
        "pipeline": strategy["pp_deg"],
        "tensor": tensor,
        "data": data,
        "zero_stage": 3 if sharded else {"ddp": 0, "zero2": 2, "zero3": 3}[given.default_dp_type],
        "stages": strategy["pp_division"],
        "global_batch": given.global_train_batch_size,
        "micro_batch": given.global_train_batch_size // (given.chunks * data),
        "schedule": {"gpipe": "gpipe", "pipedream_flush": "1f1b"}[given.pipeline_type],
        "full_recompute": bool(full),
        "bf16": given.mixed_precision == "bf16",
        "sequence_parallel": "--sequence-parallel" in words,
        "seq_len": int(value(words, "--seq-length")),
    }


run(check)
