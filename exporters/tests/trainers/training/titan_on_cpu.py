"""torchtitan on CPUs, in the place of `-m torchtitan.train`, and what is seen of it while it trains.

torchtitan asks for the memory of GPUs, compiles its attention for them, and reduces gradients by an operation that gloo lacks;
nothing else of it is replaced.
"""

import functools
import json
import os
import types
from pathlib import Path
from typing import Any

import torch
import torch._utils
import torch.nn.functional as functional

torch._utils._get_available_device_type = lambda: "cpu"  # type: ignore[attr-defined,assignment]
MEMORY = types.SimpleNamespace(total_memory=1 << 34, name="cpu")
for name, stand_in in {
    "get_device_properties": lambda *_: MEMORY,
    "get_device_name": lambda *_: "cpu",
    "reset_peak_memory_stats": lambda *_: None,
    "empty_cache": lambda *_: None,
    "memory_stats": lambda *_: {},
    "max_memory_allocated": lambda *_: 0,
    "manual_seed_all": torch.manual_seed,
}.items():
    if not hasattr(torch.cpu, name):
        setattr(torch.cpu, name, stand_in)

import torchtitan.distributed.utils as collectives  # noqa: E402
import torchtitan.models.common.attention as attention  # noqa: E402
import torchtitan.tools.utils as tools  # noqa: E402
import torchtitan.trainer as trainers  # noqa: E402
from torch.distributed.fsdp import FSDPModule  # noqa: E402
from torchtitan.components.metrics import MetricsProcessor  # noqa: E402
from torchtitan.models.common.feed_forward import FeedForward  # noqa: E402

tools.get_local_device = lambda: torch.device("cpu")
collectives.set_pg_timeouts = lambda *_, **__: None


class Aux:
    def __init__(self, sums: torch.Tensor) -> None:
        self.lse, self.max_scores = sums, None


def whole_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> tuple[torch.Tensor, Aux]:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), Aux(q[..., 0].detach())


attention.FlexAttention._compiled_flex_attn = staticmethod(whole_attention)
given_factor = FSDPModule.set_gradient_divide_factor


def summed(self: FSDPModule, factor: float) -> None:
    given_factor(self, factor)
    self.set_force_sum_reduction_for_comms(True)


FSDPModule.set_gradient_divide_factor = summed  # type: ignore[method-assign]

losses: list[float] = []
limits: list[float] = []
alive: list[Any] = []
forwards = [0]
given_log, given_clip = MetricsProcessor.log, collectives.clip_grad_norm_
given_init, given_forward = trainers.Trainer.__init__, FeedForward.forward


def log(self: MetricsProcessor, step: int, loss: float, *others: Any, **named: Any) -> None:
    losses.append(float(loss))
    given_log(self, step, loss, *others, **named)


def clip(parameters: Any, limit: float, *others: Any, **named: Any) -> Any:
    limits.append(0.0 if limit == float("inf") else limit)
    return given_clip(parameters, limit, *others, **named)


def init(self: trainers.Trainer, *arguments: Any, **named: Any) -> None:
    given_init(self, *arguments, **named)
    alive.append(self)


# torchtitan asks for the names of its arguments.
@functools.wraps(given_forward)
def forward(self: FeedForward, *arguments: Any, **named: Any) -> Any:
    # Not the trial of shapes, which has no gradients.
    forwards[0] += torch.is_grad_enabled()
    return given_forward(self, *arguments, **named)


MetricsProcessor.log = log  # type: ignore[method-assign]
collectives.clip_grad_norm_ = clip
trainers.Trainer.__init__ = init  # type: ignore[method-assign]
FeedForward.forward = forward  # type: ignore[method-assign]


def seen(trainer: Any) -> dict[str, Any]:
    mesh, config = trainer.parallel_dims, trainer.config
    plan = json.loads(Path(os.environ["AUTODIST_PLAN"]).read_text())
    blocks = [[int(name) for name in part.layers] for part in trainer.model_parts]
    mine = sum(len(part) for part in blocks)
    batch = config.training.local_batch_size
    size = config.parallelism.pipeline_parallel_microbatch_size if mesh.pp > 1 else batch
    passes = len(losses) * trainer.gradient_accumulation_steps * (batch // size)
    # Pipelines first try their stages once.
    each = forwards[0] / (passes + (mesh.pp > 1)) / mine
    assert each in (1.0, 2.0), f"{each} forward passes of a block for each backward pass"
    # The blocks of this rank's chunks, which are every pp-th of the plan's.
    rank = int(os.environ["RANK"]) // (int(os.environ["WORLD_SIZE"]) // mesh.pp)
    assert [len(part) for part in blocks] == plan["stages"][rank :: mesh.pp], blocks
    weight = next(p for name, p in trainer.model_parts[0].named_parameters() if name.endswith("w1.weight"))
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    parts = mesh.tp * (mesh.dp_shard if mesh.dp_shard > 1 else 1)
    assert weight.numel() == local.numel() * parts, f"{local.numel()} of {weight.numel()} on one of {parts} ranks"
    dropouts = [m.p for part in trainer.model_parts for m in part.modules() if isinstance(m, torch.nn.Dropout)]
    assert not any(dropouts), dropouts
    assert len(set(limits)) == 1, limits
    (inner,) = {type(one).__name__ for one in trainer.optimizers}
    group = next(iter(trainer.optimizers)).param_groups[0]
    reshards = config.parallelism.fsdp_reshard_after_forward
    return {
        "losses": losses,
        "devices": int(os.environ["WORLD_SIZE"]),
        "data": mesh.dp_replicate * mesh.dp_shard,
        "shard": mesh.dp_shard,
        "zero_stage": {"always": 3, "never": 2}.get(reshards, 0) if mesh.dp_shard > 1 else 0,
        "tensor": mesh.tp,
        "pipeline": mesh.pp,
        "micro_batch": size,
        "global_batch": batch * trainer.gradient_accumulation_steps * mesh.dp_replicate * mesh.dp_shard,
        "full_recompute": each == 2.0,
        "gradient_clip": limits[0],
        "optimizer": {
            "kind": inner.lower(),
            "beta1": group["betas"][0],
            "beta2": group["betas"][1],
            "epsilon": group["eps"],
            "weight_decay": group["weight_decay"],
        },
    }


from torchtitan.train import main  # noqa: E402

main()
# The last rank has the last stage, and with it the loss.
if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
    Path(os.environ["AUTODIST_REPORT"]).write_text(json.dumps(seen(alive[0])))
