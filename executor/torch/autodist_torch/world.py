"""This process among the ranks of a job."""

import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device
    # Where this process may run.
    cores: frozenset[int]

    @staticmethod
    def join(cuda: bool = False, store: dict[str, Any] | None = None, timeout_s: float = 600.0) -> "World":
        """As torchrun's environment says; the ranks find each other at `store`, or at torchrun's address."""
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank))
        # One core a rank, as the native engine computes.
        torch.set_num_threads(1)
        cores = frozenset(os.sched_getaffinity(0))
        if cuda:
            torch.cuda.set_device(local)
        else:
            os.sched_setaffinity(0, {sorted(cores)[local % len(cores)]})
        limit = timedelta(seconds=timeout_s)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=None if store is None else _store(store, rank, size, limit),
            rank=rank,
            world_size=size,
            timeout=limit,
        )
        dist.barrier()
        device = torch.device("cuda", local) if cuda else torch.device("cpu")
        world = World(rank, size, device, cores)
        world.free_threads()
        return world

    def free_threads(self) -> None:
        """Lets Gloo's threads run anywhere: a group's are made where this one is, on the core that computes, where each
        would wait for the other's whole turn."""
        for thread in map(int, os.listdir("/proc/self/task")):
            if thread != threading.get_native_id():
                try:
                    os.sched_setaffinity(thread, self.cores)
                except ProcessLookupError:
                    # It has ended meanwhile.
                    pass

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _store(place: dict[str, Any], rank: int, size: int, limit: timedelta) -> dist.Store:
    """Where the ranks find each other: the first listens on a socket that it has inherited."""
    return dist.TCPStore(
        place["host"],
        place["port"],
        size,
        is_master=rank == 0,
        timeout=limit,
        wait_for_workers=False,
        master_listen_fd=place["listener"],
    )
