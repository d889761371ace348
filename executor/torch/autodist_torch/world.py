"""This process among the ranks of a job."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

# Threads that move bytes stand above those that compute, so that a message never waits for a matrix product to end.
COMMUNICATION_PRIORITY, COMPUTE_PRIORITY = 21, 20


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device
    # Whether this process got real-time priority.
    realtime: bool

    @staticmethod
    def join(realtime: bool = False, cuda: bool = False, store: str | None = None, timeout_s: float = 600.0) -> "World":
        """As torchrun's environment says; the ranks find each other by `store`, a file, or by its address."""
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank))
        # One core a rank, as the native engine computes.
        torch.set_num_threads(1)
        if cuda:
            torch.cuda.set_device(local)
        else:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[local % len(cores)]})
        realtime = realtime and _set_priority(COMMUNICATION_PRIORITY)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method="env://" if store is None else f"file://{store}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )
        dist.barrier()
        if realtime:
            _set_priority(COMPUTE_PRIORITY)
        device = torch.device("cuda", local) if cuda else torch.device("cpu")
        return World(rank, size, device, realtime)

    @contextlib.contextmanager
    def communicating(self) -> Iterator[None]:
        """Threads that are made in here carry messages."""
        if self.realtime:
            _set_priority(COMMUNICATION_PRIORITY)
        try:
            yield
        finally:
            if self.realtime:
                _set_priority(COMPUTE_PRIORITY)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _set_priority(priority: int) -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
    except PermissionError:
        return False
    return True
