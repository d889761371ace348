"""This process among the ranks of a job."""

import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

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
    def join(cuda: bool = False, meeting: str | None = None, timeout_s: float = 600.0) -> "World":
        """As torchrun's environment says; the ranks find each other by the file `meeting`, or by its address."""
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
            store=None if meeting is None else _meet(meeting, rank, size, limit),
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


def _meet(path: str, rank: int, size: int, limit: timedelta) -> dist.Store:
    """The first rank takes a free port and leaves its number in the file, where the others wait for it."""
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, timeout=limit, wait_for_workers=False)
        with open(f"{path}.new", "w", encoding="ascii") as file:
            file.write(str(store.port))
        os.replace(f"{path}.new", path)
        return store
    until = time.monotonic() + limit.total_seconds()
    while not os.path.exists(path):
        if time.monotonic() > until:
            raise TimeoutError("the first rank has not come")
        time.sleep(0.05)
    with open(path, encoding="ascii") as file:
        return dist.TCPStore("127.0.0.1", int(file.read()), size, is_master=False, timeout=limit)
