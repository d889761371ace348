"""Random numbers by position, the same bits as the Rust side's `executor::random`: any part can be made alone."""

import math

import torch
from torch import Tensor


def _signed(word: int) -> int:
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; PyTorch's own drags the sign along."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix(words: Tensor) -> Tensor:
    """Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. int64 wraps as u64 does."""
    words = words + _signed(0x9E3779B97F4A7C15)
    words = (words ^ _shifted(words, 30)) * _signed(0xBF58476D1CE4E5B9)
    words = (words ^ _shifted(words, 27)) * _signed(0x94D049BB133111EB)
    return words ^ _shifted(words, 31)


class Stream:
    """One stream of numbers, or many at once where a part of the key is a tensor."""

    def __init__(self, *key: int | Tensor) -> None:
        state = torch.zeros((), dtype=torch.int64)
        for word in key:
            state = _mix(state ^ _mix(word if isinstance(word, Tensor) else torch.tensor(_signed(word))))
        self._state = state

    def words(self, positions: Tensor) -> Tensor:
        return _mix(self._state + positions * _signed(0xD1342543DE82EF95))

    def uniforms(self, positions: Tensor) -> Tensor:
        """On [0, 1)."""
        return _shifted(self.words(positions), 11).to(torch.float64) / (1 << 53)

    def normals(self, positions: Tensor) -> Tensor:
        """Standard normal (Box and Muller, 1958)."""
        radius, angle = self.uniforms(2 * positions), self.uniforms(2 * positions + 1)
        return (-2.0 * torch.log(1.0 - radius)).sqrt() * torch.cos(2.0 * math.pi * angle)


def remainder(words: Tensor, divisor: int) -> Tensor:
    """Of words taken as unsigned numbers."""
    return (_shifted(words, 1) % divisor * 2 + (words & 1)) % divisor
