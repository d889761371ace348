"""Model chunks: built, filled, and wrapped for data parallelism."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from . import parameters
from .engine import codec_name
from .layers import Block, Embedding, Head
from .mesh import Mesh
from .parallel import TensorGroup
from .spec import Stage, Task, share

# Larger than any model's gradients.
ONE_BUCKET_MIB = 1 << 30


class Chunk(nn.Module):
    """Consecutive layers of the chain."""

    def __init__(self, task: Task, stage: Stage, tensor: TensorGroup, device: torch.device) -> None:
        super().__init__()
        model, job = task.model, task.job
        self.embedding: Embedding | None = None
        self.head: Head | None = None
        blocks: dict[str, nn.Module] = {}
        self.blocks = nn.ModuleDict()
        for layer, recompute in zip(range(stage.first_layer, stage.end_layer), stage.recompute, strict=True):
            part: nn.Module
            if model.kind(layer) == "embedding":
                part = self.embedding = Embedding(model, tensor, device)
            elif model.kind(layer) == "head":
                here = self.embedding.embedding if model.tied_embeddings and self.embedding is not None else None
                part = self.head = Head(model, tensor, here, device)
                if model.tied_embeddings and here is None:
                    self._fill_copy(task, tensor)
            else:
                part = blocks[str(layer)] = Block(model, layer, job.seq_len, tensor, recompute, device)
            parameters.fill(part, model, job.seed, layer, tensor.rank, tensor.size)
        self.blocks.update(blocks)

    @torch.no_grad()
    def _fill_copy(self, task: Task, tensor: TensorGroup) -> None:
        assert self.head is not None
        table = task.model.parameters("embedding")[0]
        whole = parameters.initial(task.model, task.job.seed, 0, 0, table)
        rows = share(table.rows, tensor.rank, tensor.size)
        self.head.output.weight.copy_(whole[rows.start : rows.stop])

    def forward(self, flow: Tensor) -> Tensor:
        """From tokens or activations to activations or logits."""
        if self.embedding is not None:
            flow = self.embedding(flow)
        for block in self.blocks.values():
            flow = block(flow)
        return flow if self.head is None else self.head(flow)


@dataclass(frozen=True)
class Held:
    """A parameter of this rank, and who else holds it."""

    parameter: nn.Parameter
    # Whole on every tensor rank.
    replicated: bool
    # Of a tied table that both ends of the pipeline hold; the last one's is the copy.
    tied: bool
    copy: bool


def held(task: Task, chunks: list[Chunk]) -> list[Held]:
    """Every parameter once. To be asked after wrapping: FSDP2 puts parameters of its own in their place."""
    apart = task.model.tied_embeddings and task.strategy.pipeline > 1
    replicated = {
        parameter.name
        for kind in ("embedding", "block", "head")
        for parameter in task.model.parameters(kind)  # type: ignore[arg-type]
        if parameter.split == "replicated"
    }
    found = []
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            is_copy = apart and name == "head.output.weight"
            found.append(
                Held(
                    parameter,
                    replicated=any(name.endswith(f".{other}") for other in replicated),
                    tied=is_copy or (apart and name == "embedding.embedding.weight"),
                    copy=is_copy,
                )
            )
    return found


def wrap(task: Task, chunk: Chunk, mesh: Mesh) -> nn.Module:
    strategy = task.strategy
    if strategy.data == 1:
        return chunk
    if strategy.zero_stage == 0:
        return _replicate(task, chunk, mesh)
    sharding = mesh.sharding()
    reshard = strategy.zero_stage == 3
    ends: list[nn.Module] = [end for end in (chunk.embedding, chunk.head) if end is not None]
    if len(ends) == 2 and task.model.tied_embeddings:
        # They share the table.
        fully_shard(ends, mesh=sharding, reshard_after_forward=reshard)
    else:
        for end in ends:
            fully_shard(end, mesh=sharding, reshard_after_forward=reshard)
    for block in chunk.blocks.values():
        fully_shard(block, mesh=sharding, reshard_after_forward=reshard)
    fully_shard(chunk, mesh=sharding, reshard_after_forward=reshard)
    return chunk


def _replicate(task: Task, chunk: Chunk, mesh: Mesh) -> nn.Module:
    codec = task.strategy.communication.reduce.codec
    name = codec_name(codec)
    # Over Gloo, PowerSGD with several buckets issues collectives in another order on every rank, and dies.
    mebibytes = ONE_BUCKET_MIB if name == "powersgd" else task.strategy.bucket_bytes / (1 << 20)
    wrapped = DistributedDataParallel(
        chunk,
        process_group=mesh.data,
        bucket_cap_mb=mebibytes,  # type: ignore[arg-type]
        gradient_as_bucket_view=True,
    )
    if name == "fp16":
        wrapped.register_comm_hook(mesh.data, default_hooks.fp16_compress_hook)
    elif name == "bf16":
        wrapped.register_comm_hook(mesh.data, default_hooks.bf16_compress_hook)
    elif name == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            mesh.data,
            matrix_approximation_rank=codec["powersgd"]["rank"],
            start_powerSGD_iter=codec["powersgd"].get("start_step", 10),
            random_seed=task.job.seed,
        )
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return wrapped
