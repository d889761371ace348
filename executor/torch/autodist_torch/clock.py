"""Where the time of a training step goes: segment by segment, forward, run again and backward.

A layer is a sequence of segments, as in the Rust side's Program. Forward they are `with` blocks. Backward they lie
between marks, autograd functions that only note when the gradient passes. Collectives, and a forward that is run again
inside a backward, are taken out of the interval in which they happen.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
# Layer, segment, and `forward`, `recompute` or `backward`.
Key = tuple[int, str, str]


class Clock:
    """Notes nothing: what training without a profile uses."""

    backward = False

    def begin_forward(self) -> None:
        """A micro-batch's forward follows."""

    def begin_backward(self) -> None:
        """Its backward follows."""

    def segment(self, layer: int, segment: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def mark(self, flow: Tensor, layer: int, segment: str | None) -> Tensor:
        """Notes, going backward, that the gradient of `segment`, which `flow` goes into, is done."""
        return flow

    def communicate(self, kind: str, collective: Callable[[], T]) -> T:
        """Runs a tensor-parallel collective."""
        return collective()


class Stopwatch(Clock):
    """Times every segment and every tensor-parallel collective of a step; over several micro-batches, their sum."""

    def __init__(self) -> None:
        # Told where intervals begin and end, while memory is counted.
        self.note: Callable[[str], None] | None = None
        # One entry a step.
        self.segments: dict[Key, list[float]] = {}
        # By direction, kind, and turn among those of that kind in the step.
        self.collectives: dict[tuple[str, str, int], list[float]] = {}
        self.begin_step()

    def begin_step(self) -> None:
        self.backward = False
        self.in_collectives = 0.0
        # Of this step: a segment may come in several pieces.
        self._seconds: dict[Key, float] = {}
        self._turns: dict[tuple[str, str], int] = {}
        # Seconds that belong to no interval that is open now.
        self._away = 0.0
        self._since = (0.0, 0.0)

    def begin_forward(self) -> None:
        self.backward = False

    def begin_backward(self) -> None:
        self.backward = True
        self._since = (time.perf_counter(), self._away)

    def since_last_mark(self) -> float:
        return time.perf_counter() - self._since[0]

    def end_step(self) -> float:
        """Seconds of this step in segments."""
        for key, seconds in self._seconds.items():
            self.segments.setdefault(key, []).append(seconds)
        return sum(self._seconds.values())

    def clear(self) -> None:
        """Warm-up is over."""
        for samples in (*self.segments.values(), *self.collectives.values()):
            samples.clear()

    @contextlib.contextmanager
    def segment(self, layer: int, segment: str) -> Iterator[None]:
        self._tell(layer, segment, "start")
        start, away = time.perf_counter(), self._away
        try:
            yield
        finally:
            # A forward that is run again ends early, by an exception, once it has all that the backward needs.
            seconds = time.perf_counter() - start - (self._away - away)
            self._note((layer, segment, "recompute" if self.backward else "forward"), seconds)
            self._away += seconds

    def mark(self, flow: Tensor, layer: int, segment: str | None) -> Tensor:
        return _Mark.apply(flow, self, layer, segment) if flow.requires_grad else flow

    def passed(self, layer: int, segment: str | None) -> None:
        start, away = self._since
        now = time.perf_counter()
        if segment is not None:
            self._note((layer, segment, "backward"), now - start - (self._away - away))
        else:
            self._tell(layer, "none", "start")
        self._since = (time.perf_counter(), self._away)

    def communicate(self, kind: str, collective: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = collective()
        seconds = time.perf_counter() - start
        way = ("backward" if self.backward else "forward", kind)
        turn = self._turns.get(way, 0)
        self._turns[way] = turn + 1
        self.collectives.setdefault((*way, turn), []).append(seconds)
        self._away += seconds
        self.in_collectives += seconds
        return result

    def _note(self, key: Key, seconds: float) -> None:
        self._seconds[key] = self._seconds.get(key, 0.0) + seconds
        self._tell(*key)

    def _tell(self, layer: int, segment: str, what: str) -> None:
        if self.note is not None:
            self.note(f"{layer} {segment} {what}")


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flow: Tensor, clock: Any, layer: int, segment: str | None) -> Tensor:
        ctx.clock, ctx.layer, ctx.segment = clock, layer, segment
        return flow.view_as(flow)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.clock.passed(ctx.layer, ctx.segment)
        return gradients[0], None, None, None
