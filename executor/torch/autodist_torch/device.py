"""What compute and communication do to each other, and what the device does apart from any model: the answers of the Rust
side's `profiler::overlap` and `profiler::hardware`."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

# Buffers of a block's size that zeroing and adding go through.
BUFFERS = 8


def overlap(task: dict[str, Any]) -> dict[str, Any]:
    """A batch of products beside a row of all-reduces, as DistributedDataParallel has it."""
    m, n, k = task["product"]
    left, right, out = torch.full((m, k), 0.5), torch.full((k, n), 0.5), torch.zeros(m, n)
    buffers = [torch.zeros(task["reduce_bytes"] // 4) for _ in range(task["reductions"])]

    def multiply(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            torch.mm(left, right, out=out)
        return time.perf_counter() - start

    def reduce(beside: Callable[[], float]) -> tuple[float, float]:
        start = time.perf_counter()
        works = [dist.all_reduce(buffer, async_op=True) for buffer in buffers]
        ends = [0.0]
        works[-1].get_future().then(lambda _: ends.append(time.perf_counter()))
        compute = beside()
        for work in works:
            work.wait()
        return compute, max(ends[-1], time.perf_counter() if not compute else ends[-1]) - start

    def alone() -> float:
        return 0.0

    one = min(multiply(1) for _ in range(4))
    dist.barrier()
    longest = torch.tensor([max(reduce(alone)[1] for _ in range(3)) / one])
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    # A batch of products that outlasts the row, so that all of the row has company.
    times = int(min(10_000, max(2, 2 * float(longest))))
    compute_alone, reduce_alone, together = [], [], []
    for _ in range(task["repetitions"]):
        dist.barrier()
        compute_alone.append(multiply(times))
        dist.barrier()
        reduce_alone.append(reduce(alone)[1])
        dist.barrier()
        together.append(reduce(lambda: multiply(times)))
    elements = task["sum_bytes"] // 4
    sums = [torch.zeros(elements) for _ in range(BUFFERS)]
    zeroing, adding = [], []
    for _ in range(task["repetitions"]):
        dist.barrier()
        for total in sums:
            start = time.perf_counter()
            fresh = torch.zeros(elements)
            zeroed = time.perf_counter()
            total.add_(fresh)
            adding.append((time.perf_counter() - zeroed) / elements)
            zeroing.append((zeroed - start) / elements)
    return {
        "compute_alone": compute_alone,
        "reduce_alone": reduce_alone,
        "together": together,
        "gemm_flops_per_s": 2.0 * m * n * k * times / min(compute_alone),
        "zeroing": zeroing,
        "adding": adding,
    }


def hardware(task: dict[str, Any]) -> dict[str, Any]:
    repetitions = task["repetitions"]
    products = []
    for m, n, k in task["products"]:
        left, right, out = torch.full((m, k), 0.5), torch.full((n, k), 0.5), torch.empty(m, n)
        products.append([[m, n, k], _repeated(repetitions, lambda: torch.mm(left, right.t(), out=out))])
    copies = []
    for size in task["copies"]:
        source, target = torch.full((size // 4,), 0.5), torch.empty(size // 4)
        copies.append(["device", size, _repeated(repetitions, lambda: target.copy_(source))])
    return {"products": products, "copies": copies}


def _repeated(repetitions: int, work: Callable[[], Any]) -> list[float]:
    work()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds
