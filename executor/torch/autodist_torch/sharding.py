"""Times FSDP2's own collectives, so that a profile can tell them from what FSDP2 does around them."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class Transfers:
    """Seconds of all gathers and scatters of some modules."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.seconds = 0.0
        for module in (part for module in modules for part in module.modules()):
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(_AllGather(self))  # type: ignore[arg-type]
                module.set_custom_reduce_scatter(_ReduceScatter(self))  # type: ignore[arg-type]

    def run(self, collective: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = collective()
        self.seconds += time.perf_counter() - start
        return result


class _Timed:
    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Timed):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> Any:
        def collective() -> Any:
            return dist.all_gather_into_tensor(output_tensor, input_tensor, group=group, async_op=async_op)

        return self._transfers.run(collective)


class _ReduceScatter(_Timed):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> Any:
        def collective() -> Any:
            return dist.reduce_scatter_tensor(output_tensor, input_tensor, op=op, group=group, async_op=async_op)

        return self._transfers.run(collective)
