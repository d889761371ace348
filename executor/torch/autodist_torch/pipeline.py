"""Pipeline schedules of `torch.distributed.pipelining`."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B, schedules

from .clock import Clock
from .mesh import Mesh
from .spec import Task

# Runs and times an operation: its kind, chunk and micro-batch.
Timed = Callable[[str, int, int, Callable[[], Any]], Any]


class _TimedStage(PipelineStage):
    timed: Timed
    clock: Clock

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self.clock.begin_forward()
        run = super().forward_one_chunk
        return self.timed("forward", self.stage_index, fwd_chunk_id, lambda: run(fwd_chunk_id, *args, **kwargs))

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        run = super().backward_one_chunk
        self.clock.begin_backward()
        return self.timed("backward", self.stage_index, bwd_chunk_id, lambda: run(bwd_chunk_id, *args, **kwargs))


class Waits:
    """Seconds that this process's schedules wait for messages, until `end`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        # The one place where all schedules wait. Private, so a release of PyTorch may move it.
        self._wait = schedules._wait_batch_p2p
        schedules._wait_batch_p2p = self._timed

    def end(self) -> None:
        schedules._wait_batch_p2p = self._wait

    def _timed(self, work: list[Any]) -> None:
        start = time.perf_counter()
        self._wait(work)
        self.seconds += time.perf_counter() - start


class Pipeline:
    def __init__(
        self,
        task: Task,
        mesh: Mesh,
        modules: list[nn.Module],
        indices: list[int],
        loss: Callable[[Tensor, Tensor], Tensor],
        timed: Timed,
        clock: Clock,
        device: torch.device,
    ) -> None:
        strategy = task.strategy
        chunks, micro_batches = len(task.stages), strategy.micro_batches(task.job)
        stages = [
            _TimedStage(module, index, chunks, device, group=mesh.group("pipeline"))
            for module, index in zip(modules, indices, strict=True)
        ]
        for stage in stages:
            stage.timed, stage.clock = timed, clock
        self._first, self._last = indices[0] == 0, indices[-1] == chunks - 1
        # The loss is divided by the tokens of the whole step already.
        common: dict[str, Any] = {"n_microbatches": micro_batches, "loss_fn": loss, "scale_grads": False}
        self._schedule: Any
        if strategy.schedule == "interleaved":
            self._schedule = ScheduleInterleaved1F1B(stages, **common)
        elif strategy.schedule == "gpipe":
            self._schedule = ScheduleGPipe(stages[0], **common)
        else:
            self._schedule = Schedule1F1B(stages[0], **common)

    def step(self, tokens: Tensor) -> Tensor | None:
        """The sum of the micro-batches' losses, where the head is."""
        losses: list[Tensor] = []
        inputs = (tokens[:, :-1],) if self._first else ()
        last = {"target": tokens[:, 1:], "losses": losses} if self._last else {}
        self._schedule.step(*inputs, **last, return_outputs=False)
        return torch.stack(losses).sum().detach() if self._last else None
