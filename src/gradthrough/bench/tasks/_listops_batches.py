"""Sentences of tokens in batches of nearly equal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..listops_data import Expression, value

POOL = 100  # batches that are sorted by length together


class Batch:
    """Padded sentences.

    Args:
        tokens: int64 (B, L), 0 beyond the end.
        lengths: int64 (B,).
        labels: int64 (B,), in [0, 10).
    """

    # Not a dataclass: lightning-fabric takes those apart where they enter a model.
    def __init__(self, tokens: Tensor, lengths: Tensor, labels: Tensor) -> None:
        self.tokens, self.lengths, self.labels = tokens, lengths, labels

    @property
    def shape(self) -> torch.Size:
        """Shape of the tokens."""
        return self.tokens.shape

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.tokens.device

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        return Batch(self.tokens[rows], self.lengths[rows], self.labels[rows])


class Sentences:
    """Expressions with what they come to, as tensors.

    Args:
        expressions: at least one token each.
        device: where they are to be.
    """

    def __init__(self, expressions: Sequence[Expression], device: torch.device) -> None:
        self.lengths = torch.tensor([len(x) for x in expressions], dtype=torch.long)
        ends = self.lengths.cumsum(0)
        self._starts = (ends - self.lengths).to(device)
        text = bytearray(b"".join(expressions))
        flat = torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(0)
        self._flat = flat.to(device, torch.long)
        labels = [value(x) for x in expressions]
        self._labels = torch.tensor(labels, dtype=torch.long, device=device)
        self._device = device

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Tensor) -> Batch:
        """Return some of them."""
        lengths = self.lengths[rows]
        place = torch.arange(int(lengths.max()), device=self._device)
        rows, lengths = rows.to(self._device), lengths.to(self._device)
        inside = place < lengths.unsqueeze(1)
        at = (self._starts[rows].unsqueeze(1) + place).clamp(max=len(self._flat) - 1)
        return Batch(self._flat[at] * inside, lengths, self._labels[rows])

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield all of them once: sorted within random pools, the batches in random order."""
        order = torch.randperm(len(self), generator=generator)
        parts: list[Tensor] = []
        for pool in torch.split(order, POOL * size):
            ordered = pool[self.lengths[pool].argsort(descending=True, stable=True)]
            parts += torch.split(ordered, size)
        for i in torch.randperm(len(parts), generator=generator):
            yield self.batch(parts[int(i)])

    def sorted(self, size: int) -> Iterator[Batch]:
        """Yield all of them, the longest first."""
        order = self.lengths.argsort(descending=True, stable=True)
        for rows in torch.split(order, size):
            if len(rows):
                yield self.batch(rows)
