"""This process among the ranks of a job."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

# Real-time priorities are no way here: Gloo's threads spin while another of the rank holds what they need, and would keep it
# from running.
HIGHEST_NICENESS = -20


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @staticmethod
    def join(preferred: bool = False, cuda: bool = False, store: str | None = None, timeout_s: float = 600.0) -> "World":
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
            if preferred:
                _prefer()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method="env://" if store is None else f"file://{store}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )
        dist.barrier()
        device = torch.device("cuda", local) if cuda else torch.device("cpu")
        return World(rank, size, device)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _prefer() -> None:
    """Before other processes of this machine, where that is allowed; threads that are made later come along."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, HIGHEST_NICENESS)
    except PermissionError:
        pass
