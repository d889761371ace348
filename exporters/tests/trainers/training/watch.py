"""What training scripts share: a small model, its data, and what is seen of it while it trains."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers.models.llama.modeling_llama as llama
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)

STEPS = 8
SEQ_LEN = 16
VOCAB = 64
PLAN = json.loads(Path(os.environ["AUTODIST_PLAN"]).read_text())
BLOCKS = sum(PLAN["stages"])


class Forwards:
    """Counts the forward passes of the blocks of a class."""

    def __init__(self, kind: type) -> None:
        self.count = 0
        given = kind.forward

        def counted(module: Any, *arguments: Any, **named: Any) -> Any:
            self.count += 1
            return given(module, *arguments, **named)

        kind.forward = counted  # type: ignore[method-assign]

    def recomputed(self, passes: int, blocks: int) -> bool:
        """Whether every block ran twice in each pass over a micro-batch; anything between once and twice is an error."""
        per_block = self.count / passes / blocks
        assert per_block in (1.0, 2.0), f"{per_block} forward passes of a block for each backward pass"
        return per_block == 2.0


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=BLOCKS, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCAB, max_position_embeddings=SEQ_LEN,
    )  # fmt: skip
    return LlamaForCausalLM(sizes)


def forwards() -> Forwards:
    return Forwards(llama.LlamaMLP)


def batch(rank: int, size: int) -> torch.Tensor:
    """The same sequences in every step."""
    numbers = torch.Generator().manual_seed(rank)
    return torch.randint(0, VOCAB, (size, SEQ_LEN), generator=numbers)


def optimizer(one: torch.optim.Optimizer) -> dict[str, Any]:
    """Class and hyperparameters, of every group alike."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in one.param_groups]
    group = groups[0]
    for key in ("betas", "eps", "momentum"):
        assert all(other.get(key) == group.get(key) for other in groups), f"groups differ in {key}"
    # Some trainers do not decay norms.
    decays = {other["weight_decay"] for other in groups}
    assert decays <= {group["weight_decay"], 0.0}, decays
    name = type(one).__name__.lower()
    seen: dict[str, Any] = {"kind": "adamw" if "adam" in name else name, "weight_decay": group["weight_decay"]}
    if "betas" in group:
        seen |= {"beta1": group["betas"][0], "beta2": group["betas"][1], "epsilon": group["eps"]}
    else:
        seen["momentum"] = group["momentum"]
    return seen


def report(rank: int, seen: dict[str, Any]) -> None:
    """The end of a training script."""
    if rank == 0:
        Path(os.environ["AUTODIST_REPORT"]).write_text(json.dumps(seen))
    torch.distributed.barrier()
    # The threads of gloo now and then abort while Python ends.
    os._exit(0)




def split(module: torch.nn.Module, accelerator: Any) -> dict[str, Any]:
    """How Accelerate split a model over its processes, from its parameters."""
    processes = accelerator.num_processes
    first = next(module.parameters())
    placements = getattr(first, "placements", None)
    if placements is None:
        return {"data": processes, "shard": 1, "zero_stage": 0}
    mesh = first.device_mesh
    group = 1
    for index, one in enumerate(placements):
        if type(one).__name__ == "Shard":
            group *= mesh.size(index)
    reshards = bool(accelerator.state.fsdp_plugin.reshard_after_forward)
    return {"data": mesh.size(), "shard": group, "zero_stage": 3 if reshards else 2}
