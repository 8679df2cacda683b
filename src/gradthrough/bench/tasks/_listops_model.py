"""The Gumbel Tree-LSTM: a classifier of sentences that chooses the tree along which it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...rollout import Bound
from ..listops_data import SYMBOLS
from ._listops_batches import Batch
from ._listops_cell import LeafLSTM
from ._listops_chart import Chart, Weights
from ._listops_parse import parse

LABELS = 10


@dataclass(frozen=True)
class Sizes:
    """Of the layers.

    Args:
        embedding: of a token.
        hidden: of h and of c.
        classifier: of its hidden layer.
    """

    embedding: int
    hidden: int
    classifier: int


@dataclass(frozen=True)
class Drop:
    """Dropout.

    Args:
        share: of the entries that become 0, in [0, 1).
        generator: torch's own if None.
    """

    share: float
    generator: torch.Generator | None = None

    def __call__(self, x: Tensor, like: Tensor) -> Tensor:
        """Return x after dropout with a mask of the shape of `like`."""
        if not self.share:
            return x
        kept = 1.0 - self.share
        mask = torch.zeros_like(like).bernoulli_(kept, generator=self.generator)
        return x * mask.div_(kept)


_WHOLE = Drop(0.0)


class TreeLSTM(nn.Module):
    """Leaves, a binary Tree-LSTM that merges two neighbours at a time, a classifier of the root.

    In evaluation mode the best pair is merged, and nothing is drawn.

    Args:
        sizes: of the layers.
        leaf_rnn: leaves from an LSTM that reads the tokens, else from each token alone.
        dropout: on embeddings and on what goes in and out of the classifier's hidden layer.
        scale: of the score of a pair, the product of a learned query with h of the parent.
    """

    forget: Tensor

    def __init__(self, sizes: Sizes, *, leaf_rnn: bool, dropout: float, scale: float) -> None:
        super().__init__()
        d = sizes.hidden
        self.leaf_rnn, self.dropout, self.scale = leaf_rnn, dropout, scale
        self.embedding = nn.Embedding(len(SYMBOLS), sizes.embedding)
        self.leaf = nn.Linear(sizes.embedding, (4 if leaf_rnn else 2) * d)
        self.recurrent = nn.Parameter(torch.zeros(4 * d, d)) if leaf_rnn else None
        pair = nn.init.orthogonal_(torch.zeros(5 * d, 2 * d))
        self.pair = nn.Parameter(torch.stack(pair.chunk(2, 1)))
        self.bias = nn.Parameter(torch.zeros(5 * d))
        self.query = nn.Parameter(torch.zeros(d))
        self.classifier = nn.Linear(d, sizes.classifier)
        self.out = nn.Linear(sizes.classifier, LABELS)
        # Added to the bias of the forget gates, so that weight decay does not draw it to 0.
        forget = torch.zeros(5 * d).index_fill_(0, torch.arange(d, 3 * d), 1.0)
        self.register_buffer("forget", forget, persistent=False)
        self._initialise(d)

    def _initialise(self, d: int) -> None:
        for layer in (self.leaf, self.classifier):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        for table in (self.embedding.weight, self.query):
            nn.init.normal_(table, std=0.01)
        nn.init.uniform_(self.out.weight, -0.002, 0.002)
        nn.init.zeros_(self.out.bias)
        if self.recurrent is not None:
            nn.init.orthogonal_(self.recurrent)
            with torch.no_grad():
                self.leaf.bias[d : 2 * d] = 1.0

    def forward(self, batch: Batch, expect: Bound) -> Tensor:
        """Return the cross-entropy of each sentence, (B,); all choices go through the estimator."""
        if not len(batch):  # a device's share of a small batch
            return torch.stack([p.sum() for p in self.parameters()]).sum().expand(0)
        if not self.training:
            return F.cross_entropy(self.answers(batch), batch.labels, reduction="none")
        order = batch.lengths.argsort(descending=True, stable=True)
        batch = batch[order]
        choices = _Choices(expect, len(batch))
        drop = Drop(self.dropout, expect.generator)
        roots = self._roots(batch, expect.samples, choices, drop)
        out = self._classify(roots.view(len(batch), expect.samples, -1), drop)
        labels = batch.labels.unsqueeze(1).expand(-1, expect.samples)
        values = F.cross_entropy(out.movedim(-1, 1), labels, reduction="none")
        return choices.combine(values.t())[order.argsort()]

    def answers(self, batch: Batch) -> Tensor:
        """Return the logits of the labels, (B, 10), with greedy trees."""
        order = batch.lengths.argsort(descending=True, stable=True)
        roots = self._roots(batch[order], 1, _best, _WHOLE)[order.argsort()]
        return self._classify(roots.unsqueeze(1), _WHOLE).squeeze(1)

    @torch.no_grad()
    def first_choice(self, batch: Batch) -> Tensor:
        """Return the logits of what to merge first, (B, L - 1), at least one, without a graph."""
        order = batch.lengths.argsort(descending=True, stable=True)
        batch = batch[order]
        lengths = cast("list[int]", batch.lengths.tolist())
        chart = Chart(self._weights(), self._leaves(batch, _WHOLE), lengths)
        scores = chart.logits()
        if not scores.shape[1]:
            scores = self.query.new_zeros(0, 1)
        return _filled(scores.unsqueeze(0), len(batch))[0, order.argsort()]

    def _roots(
        self, batch: Batch, samples: int, choose: Callable[[Tensor], Tensor], drop: Drop
    ) -> Tensor:
        """Return h of the roots, (B * N, D), the samples of a sentence side by side."""
        # The gradient of a choice is a difference of long sums.
        with torch.autocast(batch.tokens.device.type, enabled=False):
            leaves = self._leaves(batch, drop).repeat_interleave(samples, 1)
            lengths = cast("list[int]", batch.lengths.repeat_interleave(samples).tolist())
            return parse(self._weights(), leaves, lengths, choose)

    def _leaves(self, batch: Batch, drop: Drop) -> Tensor:
        """Return h and c of the leaves, (L, B, 2 D), 0 beyond the end."""
        tokens = batch.tokens[:, : int(batch.lengths.max())].t()
        x = self.embedding(tokens)
        x = self.leaf(drop(x, x))
        if self.recurrent is not None:
            x = torch.cat(cast(Any, LeafLSTM.apply(x, self.recurrent)), -1)
        return torch.where((tokens > 0).unsqueeze(-1), x, 0.0)

    def _weights(self) -> Weights:
        return Weights(self.pair, self.bias + self.forget, self.query * self.scale)

    def _classify(self, roots: Tensor, drop: Drop) -> Tensor:
        """Return the logits of the labels, (B, N, 10); what is dropped is so in all N samples."""
        x = drop(roots, roots[:, :1])
        x = self.classifier(x).relu()
        return self.out(drop(x, x[:, :1]))


class _Choices:
    """Asks an estimator for what to merge, and for what follows from the losses.

    Args:
        expect: the estimator.
        rows: how many sentences; those that are one node by now come last.
    """

    def __init__(self, expect: Bound, rows: int) -> None:
        self._rollout, self._samples, self._rows = expect.rollout(), expect.samples, rows
        self._asked = False

    def __call__(self, scores: Tensor) -> Tensor:
        """Return one-hots for scores (n * N, W - 1)."""
        self._asked = True
        rows = scores.view(-1, self._samples, scores.shape[1]).transpose(0, 1)
        z = self._rollout.sample(_filled(rows, self._rows))
        return z[:, : rows.shape[1]].transpose(0, 1).flatten(0, 1)

    def combine(self, values: Tensor) -> Tensor:
        """Return the estimate (B,) for losses (N, B)."""
        # Two words leave nothing to choose.
        return self._rollout.combine(values) if self._asked else values.mean(0)


def _filled(scores: Tensor, rows: int) -> Tensor:
    """Append rows with a single class to scores (N, n, C), until there are so many."""
    n, have, classes = scores.shape
    idle = scores.new_full((n, rows - have, classes), -torch.inf)
    idle[..., 0] = 0.0
    return torch.cat((scores, idle), 1)


def _best(scores: Tensor) -> Tensor:
    return F.one_hot(scores.argmax(-1), scores.shape[-1])
