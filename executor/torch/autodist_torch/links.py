"""Times Gloo's collectives and pipeline messages over sizes and groups, all groups of a kind at once: the answers of the
Rust side's `profiler::links`."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .world import World

# More than a core's own caches hold: a step goes through many buffers before it meets the same one again.
CACHE_BYTES, MOST_BUFFERS = 8 << 20, 16
WARMUP = 2

_groups: dict[tuple[int, int], dist.ProcessGroup] = {}


def _group(world: World, size: int, stride: int) -> dist.ProcessGroup:
    """This rank's group of `size` ranks at distance `stride`."""
    if (size, stride) not in _groups:
        span = size * stride
        lists = [
            [first + inner + member * stride for member in range(size)]
            for first in range(0, world.size, span)
            for inner in range(stride)
        ]
        group, _ = dist.new_subgroups_by_enumeration(lists)
        _groups[(size, stride)] = group
        world.free_threads()
    return _groups[(size, stride)]


def timings(repetitions: int, work: Callable[[], Any]) -> list[float]:
    """Seconds of `work` after a barrier, warm-up left out."""
    seconds = []
    for repetition in range(repetitions + WARMUP):
        dist.barrier()
        start = time.perf_counter()
        work()
        if repetition >= WARMUP:
            seconds.append(time.perf_counter() - start)
    return seconds


def measure(task: dict[str, Any], world: World) -> dict[str, Any]:
    repetitions = task["repetitions"]
    collectives = []
    for size, stride in task["groups"]:
        group = _group(world, size, stride)
        for kind in ("all_reduce", "reduce_scatter", "all_gather"):
            for wanted in task["sizes"]:
                elements = -(-(wanted // 4) // size) * size
                collective = _Collective(kind, elements, size, group)
                collectives.append(
                    {"kind": kind, "group": size, "stride": stride, "bytes": 4 * elements}
                    | {"seconds": timings(repetitions, collective.run)}
                )
    messages = [
        _message(world, stride, size, repetitions) for stride in task["message_strides"] for size in task["sizes"]
    ]
    alone = _group(world, 1, 1)
    few = torch.zeros(16)
    handover = timings(repetitions, lambda: dist.all_reduce(few, group=alone, async_op=True).wait())
    return {
        "collectives": collectives,
        "exchanges": [],
        "messages": messages,
        "handover": handover,
        # Gloo's buffers are none of PyTorch's allocator's.
        "staging_bytes": 0,
        "bytes_sent": 0,
    }


class _Collective:
    def __init__(self, kind: str, elements: int, size: int, group: dist.ProcessGroup) -> None:
        count = max(1, min(MOST_BUFFERS, CACHE_BYTES // (4 * elements)))
        self._kind, self._group, self._turn = kind, group, 0
        self._whole = [torch.ones(elements) for _ in range(count)]
        self._parts = [torch.ones(elements // size) for _ in range(count)]

    def run(self) -> None:
        self._turn = (self._turn + 1) % len(self._whole)
        whole, part = self._whole[self._turn], self._parts[self._turn]
        if self._kind == "all_reduce":
            dist.all_reduce(whole, group=self._group)
        elif self._kind == "reduce_scatter":
            dist.reduce_scatter_tensor(part, whole, group=self._group)
        else:
            dist.all_gather_into_tensor(whole, part, group=self._group)


def _message(world: World, stride: int, size: int, repetitions: int) -> dict[str, Any]:
    """Half round trips between neighbouring stages, as pipelining sends: into a fresh tensor."""
    group = _group(world, 2, stride)
    first, second = dist.get_process_group_ranks(group)
    values = torch.zeros(max(1, size // 4))

    def send(to: int) -> None:
        for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, values, to, group)]):
            work.wait()

    def receive(of: int) -> Tensor:
        came = torch.empty_like(values)
        for work in dist.batch_isend_irecv([dist.P2POp(dist.irecv, came, of, group)]):
            work.wait()
        return came

    def round_trip() -> None:
        if world.rank == first:
            send(second)
            receive(second)
        else:
            receive(first)
            send(first)

    seconds = timings(repetitions, round_trip)
    halves = [s / 2 for s in seconds] if world.rank == first else []
    return {"stride": stride, "bytes": size, "seconds": halves}
