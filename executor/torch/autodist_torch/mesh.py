"""Ranks on the axes of the device mesh, as in the Rust side's `program::Mesh`."""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .spec import Strategy

AXES = ("pipeline", "replicate", "shard", "tensor")
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Mesh:
    """Tensor ranks are neighbours, then those that shard a replica, then replicas, then pipeline ranks."""

    axes: DeviceMesh
    # Ranks that together hold one whole model.
    model: dist.ProcessGroup
    # Ranks that hold the same parameters and see different data.
    data: dist.ProcessGroup
    # First and last pipeline rank.
    tied: dist.ProcessGroup | None
    pipeline: int
    data_rank: int
    tensor: int

    def group(self, axis: str) -> dist.ProcessGroup:
        return self.axes[axis].get_group()

    def sharding(self) -> DeviceMesh:
        """What FSDP2 shards over, and replicates across where there are replicas (HSDP)."""
        replicas = self.axes.size(AXES.index("replicate"))
        return self.axes["replicate", "shard"] if replicas > 1 else self.axes["shard"]


_known: dict[Shape, Mesh] = {}


def mesh(strategy: Strategy, device: str) -> Mesh:
    """The same groups for every plan of one shape: they cost connections, and are never closed."""
    shape = (strategy.pipeline, strategy.replicas(), strategy.shard, strategy.tensor)
    if shape not in _known:
        _known[shape] = _open(shape, device)
    return _known[shape]


def _open(shape: Shape, device: str) -> Mesh:
    pipeline, replicas, shard, tensor = shape
    data = replicas * shard
    axes = init_device_mesh(device, shape, mesh_dim_names=AXES)

    def ranks(stages: range, replica: range, member: range, inner: range) -> list[int]:
        return [
            ((p * replicas + r) * shard + s) * tensor + t for p in stages for r in replica for s in member for t in inner
        ]

    every = (range(pipeline), range(replicas), range(shard), range(tensor))

    def one(index: int) -> range:
        return range(index, index + 1)

    models = [ranks(every[0], one(r), every[2], every[3]) for r in every[1]]
    datas = [ranks(one(p), every[1], every[2], one(t)) for p in every[0] for t in every[3]]
    model, _ = dist.new_subgroups_by_enumeration(models)
    data_group, _ = dist.new_subgroups_by_enumeration(datas)
    tied = None
    if pipeline > 1:
        last = pipeline - 1
        pairs = [
            ranks(one(0), one(r), one(s), one(t)) + ranks(one(last), one(r), one(s), one(t))
            for r in every[1]
            for s in every[2]
            for t in every[3]
        ]
        tied, _ = dist.new_subgroups_by_enumeration(pairs)
    rank = dist.get_rank()
    return Mesh(axes, model, data_group, tied, rank // (data * tensor), rank // tensor % data, rank % tensor)
