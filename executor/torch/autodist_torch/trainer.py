"""One rank's part of a training run."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from . import memory
from .clock import Clock, Stopwatch
from .data import Data
from .engine import check
from .mesh import mesh
from .model import Chunk, held, wrap
from .optimizer import Updates
from .parallel import TensorGroup
from .pipeline import Pipeline, Waits
from .reference import Reference
from .sharding import Transfers
from .spec import Task
from .world import World


# Hears of a training that is under way: a `RankOutcome` with the steps since the last word.
Tell = Callable[[dict[str, Any]], None]
# As the native engine does: seconds between two words, and steps after which one is due at once.
TELL_EVERY = 0.25
TELL_AT = 64
# Steps whose timelines are kept until it is known which of them is the typical one, at most; operations of all of them; and
# operations of a step of which a timeline is kept at all.
TIMELINES = 64
OPERATIONS = 1 << 18
LONGEST_TIMELINE = 1 << 16


class Diverged(RuntimeError):
    pass


class Timelines:
    """Timelines of some steps, evenly spaced over all: which ones depends on their number alone, so all ranks keep those of
    the same steps, if they are told the same limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._every, self._step = 1, 0
        self.kept: list[tuple[float, list[dict[str, Any]]]] = []

    def take(self, seconds: float, events: list[dict[str, Any]]) -> None:
        wanted = self._limit > 0 and self._step % self._every == 0
        if wanted and len(self.kept) == self._limit:
            del self.kept[1::2]
            self._every *= 2
            wanted = self._step % self._every == 0
        if wanted:
            self.kept.append((seconds, events))
        self._step += 1


def _limit(operations: int) -> int:
    return 0 if operations > LONGEST_TIMELINE else min(TIMELINES, max(1, OPERATIONS // max(operations, 1)))


def _typical(seconds: list[float]) -> int:
    """The place of the value nearest the median."""
    middle = statistics.median(seconds)
    return min(range(len(seconds)), key=lambda place: abs(seconds[place] - middle))


@dataclass
class Timeline:
    """Operations of the step that runs now."""

    rank: int
    events: list[dict[str, Any]] = field(default_factory=list)
    origin: float = 0.0

    def run(self, operation: str, chunk: int, micro_batch: int, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        self.events.append(
            {
                "rank": self.rank,
                "stream": "compute",
                "operation": operation,
                "chunk": chunk,
                "micro_batch": micro_batch,
                "start_s": start - self.origin,
                "end_s": time.perf_counter() - self.origin,
            }
        )
        return result


class Run:
    def __init__(self, task: Task, world: World) -> None:
        check(task, world.size)
        self._task, self._world = task, world
        strategy = task.strategy
        self._mesh = mesh(strategy, world.device.type)
        self._clock = Stopwatch() if task.detail else None
        tensor = TensorGroup(
            self._mesh.group("tensor"),
            self._mesh.tensor,
            strategy.tensor,
            strategy.sequence_parallel,
            self._clock or Clock(),
        )
        indices = range(self._mesh.pipeline, len(task.stages), strategy.pipeline)
        self._chunks = [Chunk(task, task.stages[index], tensor, world.device) for index in indices]
        self._modules = [wrap(task, chunk, self._mesh) for chunk in self._chunks]
        self._held = held(task, self._chunks)
        self._updates = Updates(task.job, strategy, self._held, self._mesh)
        self._data = Data(task, self._mesh.data_rank)
        self._timeline = Timeline(world.rank)
        self._micro_batches = strategy.micro_batches(task.job)
        # Data-parallel wrappers average over their ranks.
        self._scale = strategy.data / task.job.tokens()
        self._transfers = Transfers(self._modules) if self._clock and strategy.zero_stage > 0 else None
        self._pipeline = None
        if strategy.pipeline > 1:
            self._pipeline = Pipeline(
                task,
                self._mesh,
                self._modules,
                list(indices),
                self._loss,
                self._timeline.run,
                self._clock or Clock(),
                world.device,
            )
        self._waits = Waits() if self._clock and self._pipeline else None
        self._norms: list[float] = []
        self._updated: list[float] = []

    def train(self, tell: Tell | None) -> dict[str, Any]:
        """The Rust side's `RankOutcome`; where `tell` hears of the steps, without them."""
        task, world = self._task, self._world
        world.free_threads()
        reference = Reference() if world.device.type == "cpu" else None
        steps: list[dict[str, float]] = []
        timelines: Timelines | None = None
        told: float | None = None
        before = _speed(reference)
        try:
            for step in range(task.steps):
                if step == task.warmup_steps:
                    self._clear()
                tokens = self._data.batch(step).to(world.device)
                # Between steps, so that it never comes within one.
                gc.collect(0)
                dist.barrier()
                outcome = self._step(step, tokens)
                after = _speed(reference)
                # An interruption only ever makes a reference benchmark slower, and a slow reference benchmark would make the step seem fast.
                steps.append(outcome | {"reference": min(before, after)})
                before = after
                if step >= task.warmup_steps:
                    timelines = timelines or Timelines(self._timelines())
                    timelines.take(outcome["seconds"], self._timeline.events)
                due = told is None or len(steps) >= TELL_AT or time.monotonic() - told >= TELL_EVERY
                if tell and due:
                    tell(self._outcome(steps))
                    steps, told = [], time.monotonic()
        finally:
            # Also where the training ends early.
            if tell and steps:
                tell(self._outcome(steps))
                steps = []
        used = self._memory(task.steps) if task.count_memory else memory.StepMemory()
        if self._waits:
            self._waits.end()
        return self._outcome(steps) | {
            "peak_memory": self._persistent() + used.peak,
            "timeline": self._agreed(timelines),
            # In a pipeline they are sums over micro-batches.
            "named": self._named(used) if self._clock and not self._pipeline else [],
        }

    def _outcome(self, steps: list[dict[str, float]]) -> dict[str, Any]:
        world = self._world
        return {
            "rank": world.rank,
            "realtime": False,
            "route": f"PyTorch {torch.__version__}, {'NCCL' if world.device.type == 'cuda' else 'Gloo'}",
            "steps": steps,
            # Counted in a step of its own, at the end.
            "peak_memory": self._persistent(),
            "baseline_memory": 0,
            "bytes_sent_per_step": 0,
            "instructions": [],
        }

    def _timelines(self) -> int:
        """Timelines that are kept: as many as the rank with the longest may."""
        longest = torch.tensor([float(len(self._timeline.events))], device=self._world.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        return _limit(int(longest.item()))

    def _agreed(self, timelines: Timelines | None) -> list[dict[str, Any]]:
        """The timeline of one step, the same on all ranks."""
        if timelines is None or not timelines.kept:
            return []
        seconds = torch.tensor([seconds for seconds, _ in timelines.kept], device=self._world.device)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        return timelines.kept[_typical(seconds.tolist())][1]

    def _clear(self) -> None:
        """Warm-up is over."""
        if self._clock:
            self._clock.clear()
        self._norms.clear()
        self._updated.clear()

    def _step(self, step: int, tokens: Tensor) -> dict[str, float]:
        """Barrier to barrier."""
        clock, timeline = self._clock, self._timeline
        timeline.events, timeline.origin = [], time.perf_counter()
        if clock:
            clock.begin_step()
        if self._transfers:
            self._transfers.seconds = 0.0
        if self._waits:
            self._waits.seconds = 0.0
        sums = self._pipeline.step(tokens) if self._pipeline else self._accumulate(tokens)
        loss = float(sums) / self._scale if sums is not None and self._mesh.tensor == 0 else 0.0
        if not math.isfinite(loss):
            raise Diverged(_diverged("loss", step, loss))
        reduced = clock.since_last_mark() if clock and self._task.strategy.data > 1 and not self._transfers else 0.0
        start = time.perf_counter()
        norm = self._updates.clip()
        clipped = time.perf_counter()
        if not math.isfinite(norm):
            raise Diverged(_diverged("gradient norm", step, norm))
        self._updates.update(step)
        self._world.synchronise()
        end = time.perf_counter()
        timeline.events.append(
            {"rank": timeline.rank, "stream": "compute", "operation": "optimizer", "chunk": 0, "micro_batch": 0}
            | {"start_s": start - timeline.origin, "end_s": end - timeline.origin}
        )
        dist.barrier()
        seconds = time.perf_counter() - timeline.origin
        if clock:
            self._norms.append(clipped - start)
            self._updated.append(end - clipped)
        priced = sum(event["end_s"] - event["start_s"] for event in timeline.events)
        if clock:
            # Only what a profile has a price for: the rest is this engine's overhead.
            moved = self._transfers.seconds if self._transfers else reduced
            waited = self._waits.seconds if self._waits else 0.0
            priced = clock.end_step() + clock.in_collectives + moved + waited + (end - start)
        return {"seconds": seconds, "in_operations": priced, "loss_sum": loss, "gradient_norm": norm}

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        head = self._chunks[-1].head
        assert head is not None
        return head.loss(logits, targets) * self._scale

    def _accumulate(self, tokens: Tensor) -> Tensor:
        """Forward and backward of every micro-batch, without a pipeline."""
        (module,) = self._modules
        total: Tensor | None = None
        size, run = self._task.strategy.micro_batch, self._timeline.run
        for index in range(self._micro_batches):
            part = tokens[index * size : (index + 1) * size]
            with self._synchronising(module, index + 1 == self._micro_batches):
                loss = run("forward", 0, index, lambda: self._loss(module(part[:, :-1]), part[:, 1:]))
                if self._clock:
                    self._clock.begin_backward()
                run("backward", 0, index, loss.backward)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _synchronising(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Gradients are reduced once a step, after the last micro-batch; those that are sharded after every one."""
        if isinstance(module, FSDPModule):
            # ZeRO-2 keeps what it has gathered until the step's end, and replicas meet once a step.
            module.set_reshard_after_backward(last or self._task.strategy.zero_stage == 3)
            module.set_requires_all_reduce(last)
            module.set_is_last_backward(last)
        elif isinstance(module, DistributedDataParallel) and not last:
            return module.no_sync()
        return nullcontext()

    def _persistent(self) -> int:
        """Parameters, gradients and optimizer state."""
        tensors: list[Tensor] = []
        for parameter in (h.parameter for h in self._held):
            tensors.append(parameter)
            if parameter.grad is not None:
                tensors.append(parameter.grad)
            state = self._updates.optimizer.state[parameter].values()
            tensors.extend(value for value in state if isinstance(value, Tensor))
        return memory.held_bytes(tensors)

    def _memory(self, step: int) -> memory.StepMemory:
        """Of one step more, which counts for nothing else."""
        tokens = self._data.batch(step).to(self._world.device)
        samples = _lengths(self._clock)
        if self._clock:
            self._clock.note = memory.note
        dist.barrier()
        used = memory.of_step(lambda: _ignore(self._step(step, tokens)))
        if self._clock:
            self._clock.note = None
            for values, length in samples:
                del values[length:]
        return used

    def _named(self, used: memory.StepMemory) -> list[dict[str, Any]]:
        """Timings by what they are of; the Rust side finds the instruction of each."""
        assert self._clock is not None
        named: list[dict[str, Any]] = []
        for key, seconds in self._clock.segments.items():
            of = used.segments.get(key, memory.SegmentMemory())
            layer, segment, way = key
            name = {"segment": {"layer": layer, "segment": segment, "pass": way}}
            named.append({"of": name, "seconds": seconds, "growth": of.growth, "peak": of.peak})
        for (direction, kind, turn), seconds in self._clock.collectives.items():
            collective = {"backward": direction == "backward", "kind": kind, "turn": turn}
            named.append({"of": {"collective": collective}, "seconds": seconds})
        measured = self._task.steps - self._task.warmup_steps
        named.append({"of": "norm", "seconds": self._norms[:measured]})
        named.append({"of": "update", "seconds": self._updated[:measured]})
        return named


def _lengths(clock: Stopwatch | None) -> list[tuple[list[float], int]]:
    samples: Iterable[list[float]] = (*clock.segments.values(), *clock.collectives.values()) if clock else ()
    return [(values, len(values)) for values in samples]


def _diverged(what: str, step: int, value: float) -> str:
    return f"the {what} of step {step} is {value}: training diverged; lower the learning rate, or clip gradients"


def _ignore(outcome: object) -> None:
    """The profiler's step is for its memory alone."""


def _speed(reference: Reference | None) -> float:
    return reference.seconds() if reference else 0.0


def train(task: Task, world: World, tell: Tell | None = None) -> dict[str, Any]:
    gc.collect()
    gc.disable()
    try:
        return Run(task, world).train(tell)
    finally:
        gc.enable()


def losses(outcomes: Iterable[dict[str, Any]], task: Task) -> Iterator[float]:
    """Mean cross-entropy per token of every step, over the outcomes of all ranks."""
    for steps in zip(*(outcome["steps"] for outcome in outcomes), strict=True):
        yield sum(step["loss_sum"] for step in steps) / task.job.tokens()
