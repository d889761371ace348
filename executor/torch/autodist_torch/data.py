"""What is trained on, sequence by sequence the same as the Rust side's `executor::data`."""

import os

import torch
from torch import Tensor

from .random import Stream, remainder
from .spec import Task

PROBABILITIES = (0.5, 0.25, 0.15, 0.1)
LARGEST_ALPHABET = 32
# Steps whose sequences are made at once.
BLOCK = 32


class Data:
    """This data rank's sequences of every step."""

    def __init__(self, task: Task, data_rank: int) -> None:
        self._task = task
        strategy = task.strategy
        local = torch.arange(strategy.micro_batches(task.job) * strategy.micro_batch)
        micro_batch, place = local // strategy.micro_batch, local % strategy.micro_batch
        self._numbers = (micro_batch * strategy.data + data_rank) * strategy.micro_batch + place
        self._first = -BLOCK
        self._block = torch.empty(0)

    def batch(self, step: int) -> Tensor:
        """`[sequences, seq_len + 1]`, micro-batch after micro-batch; the last token is a target only."""
        if not self._first <= step < self._first + BLOCK:
            self._first = step // BLOCK * BLOCK
            steps = torch.arange(self._first, min(self._first + BLOCK, self._task.steps + 1))
            indices = steps[:, None] * self._task.job.global_batch + self._numbers
            make = self._synthetic if self._task.data == "synthetic" else self._text
            self._block = make(indices.flatten()).view(len(steps), len(self._numbers), -1)
        return self._block[step - self._first]

    def _synthetic(self, indices: Tensor) -> Tensor:
        """A Markov chain over a small alphabet."""
        alphabet = min(self._task.model.vocab, LARGEST_ALPHABET)
        successors = torch.tensor([_successors(symbol, alphabet) for symbol in range(alphabet)])
        length = self._task.job.seq_len + 1
        stream = Stream(self._task.job.seed, 0xDA7A, indices[:, None])
        draws = stream.uniforms(torch.arange(1, length + 1))
        choices = torch.zeros_like(draws, dtype=torch.int64)
        for probability in PROBABILITIES[:-1]:
            draws = draws - probability
            choices += draws >= 0.0
        tokens = torch.empty(len(indices), length, dtype=torch.int64)
        symbols = remainder(stream.words(torch.zeros(1, dtype=torch.int64)), alphabet)[:, 0]
        for position in range(length):
            tokens[:, position] = symbols
            symbols = successors[symbols, choices[:, position]]
        return tokens

    def _text(self, indices: Tensor) -> Tensor:
        """Random windows of a file, bytes as tokens."""
        length = self._task.job.seq_len + 1
        path = self._task.data["text"]
        starts = os.path.getsize(path) - length + 1
        words = Stream(self._task.job.seed, 0x7E47).words(indices)
        rows = []
        with open(path, "rb") as file:
            for start in remainder(words, starts).tolist():
                file.seek(start)
                rows.append(torch.frombuffer(bytearray(file.read(length)), dtype=torch.uint8))
        return torch.stack(rows).to(torch.int64)


def _successors(symbol: int, alphabet: int) -> list[int]:
    words = Stream(0x1A46, symbol).words(torch.arange(alphabet)).tolist()
    order = sorted(range(alphabet), key=lambda other: words[other] % (1 << 64))
    # An alphabet of fewer than four symbols repeats some.
    return [order[index % alphabet] for index in range(len(PROBABILITIES))]
