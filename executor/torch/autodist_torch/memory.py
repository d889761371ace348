"""Bytes that tensors hold, as PyTorch's own allocator reports them while one step runs under its profiler.

Counted: parameters, gradients, optimizer state, and every tensor that comes and goes within the step. Not counted: the
interpreter, the libraries, and Gloo's buffers, which no allocator of PyTorch's knows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.profiler import profile, record_function

from .clock import Key
from .optimizer import local

_PREFIX = "autodist "


@dataclass
class SegmentMemory:
    # Live bytes after it less before it, and its highest above its start.
    growth: int = 0
    peak: int = 0


@dataclass
class StepMemory:
    """Above what is live when the step begins."""

    peak: int = 0
    segments: dict[Key, SegmentMemory] = field(default_factory=dict)


def note(text: str) -> None:
    """Leaves a mark in the profiler's record: where an interval of the clock begins or ends."""
    with record_function(_PREFIX + text):
        pass


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Of distinct storages."""
    storages = {}
    for tensor in tensors:
        storage = local(tensor).untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def of_step(step: Callable[[], None]) -> StepMemory:
    """Runs `step` under the profiler."""
    with profile(use_cpu=True, profile_memory=True) as record:
        step()
    events = record.kineto_results.events()
    found = StepMemory()
    live = start = peak = 0
    last: SegmentMemory | None = None
    for event in sorted(events, key=lambda event: event.start_ns()):
        name = event.name()
        if name == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            live += event.nbytes()
            peak, found.peak = max(peak, live), max(found.peak, live)
        elif name.startswith(_PREFIX):
            layer, segment, direction = name[len(_PREFIX) :].split()
            if direction != "start":
                last = found.segments.setdefault((int(layer), segment, direction), SegmentMemory())
                last.peak = max(last.peak, peak - start)
            if last is not None:
                # What comes and goes between segments is of the one before: autograd frees a layer's tensors late.
                last.growth += live - start
            start = peak = live
    return found
