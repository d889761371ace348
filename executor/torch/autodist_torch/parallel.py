"""Tensor and sequence parallelism: collectives that autograd knows (Shoeybi et al., Megatron-LM, 1909.08053; Korthikanti
et al., 2205.05198).

Not `torch.distributed.tensor`: `DistributedDataParallel` takes no DTensors, and inside their dispatch a collective cannot
be timed apart from the arithmetic around it. Activations are `[sequence, micro-batch, features]`, so that a sequence shard
is a range of rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .clock import Clock


@dataclass
class TensorGroup:
    """The ranks that divide the same layers, as one of them sees them."""

    group: dist.ProcessGroup | None
    rank: int
    size: int
    # Whether what lies between the divided layers is divided by rows.
    sequence_parallel: bool
    clock: Clock

    def sum(self, value: Tensor) -> Tensor:
        """In place."""
        self.clock.communicate("all_reduce", lambda: dist.all_reduce(value, group=self.group))
        return value

    def largest(self, value: Tensor) -> None:
        """In place."""
        largest = dist.ReduceOp.MAX
        self.clock.communicate("all_reduce", lambda: dist.all_reduce(value, op=largest, group=self.group))

    def sum_of(self, part: Tensor) -> Tensor:
        def collective() -> Tensor:
            whole = part.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(whole, group=self.group)
            return whole

        return self.clock.communicate("all_reduce", collective)

    def gather_rows(self, rows: Tensor) -> Tensor:
        def collective() -> Tensor:
            whole = rows.new_empty(rows.shape[0] * self.size, *rows.shape[1:])
            dist.all_gather_into_tensor(whole, rows.contiguous(), group=self.group)
            return whole

        return self.clock.communicate("all_gather", collective)

    def scatter_rows(self, whole: Tensor) -> Tensor:
        """Sums, and keeps this rank's rows."""

        def collective() -> Tensor:
            rows = whole.new_empty(whole.shape[0] // self.size, *whole.shape[1:])
            dist.reduce_scatter_tensor(rows, whole.contiguous(), group=self.group)
            return rows

        return self.clock.communicate("reduce_scatter", collective)

    def enter(self, flow: Tensor) -> Tensor:
        """Into a layer that is divided by output features: all rows, on every rank."""
        if self.size == 1:
            return flow
        return _Gather.apply(flow, self) if self.sequence_parallel else _Copy.apply(flow, self)

    def leave(self, part: Tensor) -> Tensor:
        """Out of a layer that is divided by input features: the sum of the ranks' parts, or this rank's rows of it."""
        if self.size == 1:
            return part
        return _Scatter.apply(part, self) if self.sequence_parallel else _Sum.apply(part, self)

    def rows(self, sequence: int) -> slice:
        """The positions whose residual stream this rank holds."""
        if not self.sequence_parallel:
            return slice(0, sequence)
        part = sequence // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def kept_as_rows(self, rows: Tensor, whole: Tensor) -> Any:
        """While layers save `whole` for their backward, they save this rank's rows, which are gathered again."""
        keep = _Regather(self, rows.detach(), whole)
        return torch.autograd.graph.saved_tensors_hooks(keep.pack, keep.unpack)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flow: Tensor, group: TensorGroup) -> Tensor:
        ctx.group = group
        return flow.view_as(flow)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.group.sum(gradients[0].contiguous()), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: TensorGroup) -> Tensor:
        return group.sum_of(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: TensorGroup) -> Tensor:
        ctx.group = group
        return group.gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.group.scatter_rows(gradients[0]), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: TensorGroup) -> Tensor:
        ctx.group = group
        return group.scatter_rows(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.group.gather_rows(gradients[0]), None


class _Regather:
    """A gathered input that several layers save, kept as the rows that this rank had before."""

    def __init__(self, group: TensorGroup, rows: Tensor, whole: Tensor) -> None:
        self._group, self._rows = group, rows
        self._storage = whole.untyped_storage().data_ptr()
        self._whole: Tensor | None = None
        self._uses = 0

    def pack(self, saved: Tensor) -> Any:
        if saved.untyped_storage().data_ptr() != self._storage:
            return saved
        self._uses += 1
        return saved.shape

    def unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, torch.Size):
            return packed
        whole = self._whole if self._whole is not None else self._group.gather_rows(self._rows)
        self._uses -= 1
        self._whole = whole if self._uses > 0 else None
        return whole.view(packed)


class VocabularyCrossEntropy(torch.autograd.Function):
    """Cross-entropy summed over the tokens, each rank holding a part of the vocabulary's logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, first: int, layer: int, group: TensorGroup) -> Tensor:
        clock = group.clock
        with clock.segment(layer, "logits"):
            largest = logits.max(dim=-1).values
        group.largest(largest)
        with clock.segment(layer, "normalizer"):
            exponentials = (logits - largest.unsqueeze(-1)).exp_()
            local = targets - first
            held = (local >= 0) & (local < logits.shape[-1])
            local = local.clamp(0, logits.shape[-1] - 1)
            of_target = (logits.gather(-1, local.unsqueeze(-1)).squeeze(-1) - largest) * held
            sums = torch.stack((exponentials.sum(-1), of_target))
        group.sum(sums)
        with clock.segment(layer, "loss"):
            loss = (sums[0].log() - sums[1]).sum()
            ctx.save_for_backward(exponentials, sums[0], local, held)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        exponentials, total, local, held = ctx.saved_tensors
        gradient = exponentials / total.unsqueeze(-1)
        gradient.scatter_add_(-1, local.unsqueeze(-1), -held.to(gradient.dtype).unsqueeze(-1))
        return gradient.mul_(gradients[0]), None, None, None, None
