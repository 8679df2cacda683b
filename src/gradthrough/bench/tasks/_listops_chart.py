"""A chart of trees that grow by merging two neighbours: what a parse did, row by row.

Every leaf has a slot, with two empty slots on either side of the sentence, and a parent takes the
slot of its left child. Nodes and pairs of neighbours are kept by the order of their making, which
is the same in all rows: node `n` of row `r` is line ``n * rows + r``.
"""

from __future__ import annotations

import bisect
import operator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ._listops_cell import compose


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of the composition and of its score.

    Args:
        pair: (2, 5 D, D), of h of the left and of the right child.
        bias: (5 D,).
        query: (D,); the score of a parent is its product with h.
    """

    pair: Tensor
    bias: Tensor
    query: Tensor


@dataclass(frozen=True, eq=False)
class Merge:
    """One step of the rows that still had a pair to merge; around it, from left to right.

    Args:
        rows: how many, the first ones.
        order: (rows, W), the slots in use before the step.
        valid: (rows, W - 1), which pairs could be chosen.
        pairs: (rows, W - 1), lines of all pairs.
        pick: (rows, 1), the one chosen.
        slots: (rows, 4), of the left neighbour, the children, the right neighbour.
        nodes: (rows, 6), lines of the nodes there, and of one more on either side.
        around: (rows, 5), lines of the pairs between those.
    """

    rows: int
    order: Tensor
    valid: Tensor
    pairs: Tensor
    pick: Tensor
    slots: Tensor
    nodes: Tensor
    around: Tensor


@dataclass(eq=False)
class Chart:
    """Trees that grow.

    Args:
        weights: of the composition.
        leaves: (L, R, 2 D), h and c, zero beyond the end of a sentence.
        lengths: of the sentences, each at least 1, the longest first.
    """

    weights: Weights
    leaves: Tensor
    lengths: list[int]
    merges: list[Merge] = field(default_factory=list[Merge])

    def __post_init__(self) -> None:
        (length, rows, double), (_, wide, d) = self.leaves.shape, self.weights.pair.shape
        device = self.leaves.device
        steps, ends = length - 1, length + 4
        like = self.leaves
        self.first_new = (ends, ends - 1)  # node and pair
        self.node = like.new_zeros((ends + steps) * rows, double)
        self.node[2 * rows : (length + 2) * rows] = like.flatten(0, 1)
        self.into = like.new_zeros((ends + steps) * rows, 2, wide)  # of gates, as left or right
        pairs = (ends - 1 + 2 * steps) * rows
        self.parent = like.new_zeros(pairs, double)
        self.gates = like.new_zeros(pairs, wide)
        self.squashed = like.new_zeros(pairs, d)
        self.left, self.right = (
            torch.zeros(pairs, dtype=torch.long, device=device) for _ in range(2)
        )
        row = torch.arange(rows, device=device).unsqueeze(1)
        slot = torch.arange(ends, device=device)
        self._order = slot.expand(rows, ends)
        self._node_at = slot * rows + row
        self._pair_at = self._node_at.clone()  # whose left child has the slot
        self._score_at = like.new_zeros(rows, ends)
        sizes = torch.tensor(self.lengths, device=device).unsqueeze(1)
        self._open = (slot >= 2) & (slot < sizes + 1)  # for which there is such a pair
        self._project(2 * rows, (length + 2) * rows)
        left = torch.arange((ends - 1) * rows, device=device)
        self._pair(0, left, left + rows)
        self._score_at[:, :-1] = self._score(0, ends - 1)

    @property
    def rows(self) -> int:
        """How many sentences."""
        return self.leaves.shape[1]

    def active(self, step: int) -> int:
        """Return how many rows merge in a step."""
        return bisect.bisect_left(self.lengths, -step - 1, key=operator.neg)

    def logits(self) -> Tensor:
        """Return the scores of the pairs that can be merged next, (rows, W - 1), else -inf."""
        n = self.active(len(self.merges))
        slots = self._order[:n, 2:-3]
        scores = self._score_at[:n].gather(1, slots)
        return scores.masked_fill(~self._open[:n].gather(1, slots), -torch.inf)

    def merge(self, pick: Tensor) -> None:
        """Merge one pair of each active row, given by its place (rows, 1) in `logits`."""
        n, step = len(pick), len(self.merges)
        order = self._order[:n]
        window = order.gather(1, pick + torch.arange(6, device=pick.device))
        nodes = self._node_at[:n].gather(1, window)
        around = self._pair_at[:n].gather(1, window[:, :5])
        used = order[:, 2:-2]
        valid = self._open[:n].gather(1, used[:, :-1])
        pairs = self._pair_at[:n].gather(1, used[:, :-1])
        slots = window[:, 1:5]
        self.merges.append(Merge(n, used, valid, pairs, pick, slots, nodes, around))
        m, p = self.new_lines(step)
        torch.index_select(self.parent, 0, around[:, 2], out=self.node[m : m + n])
        self._project(m, m + n)
        line = torch.arange(n, device=pick.device)
        self._pair(p, nodes[:, 1], line + m)
        self._pair(p + self.rows, line + m, nodes[:, 4])
        self._place(n, slots, line.unsqueeze(1), m, p)
        place = torch.arange(order.shape[1] - 1, device=pick.device)
        self._order = order.gather(1, place + (place > pick + 2))

    def new_lines(self, step: int) -> tuple[int, int]:
        """Return the first lines of the node and of the pairs that a step makes."""
        node, pair = self.first_new
        return (node + step) * self.rows, (pair + 2 * step) * self.rows

    def roots(self) -> Tensor:
        """Return h of the roots, (R, D)."""
        return self.node[self.root_lines(), : self.weights.query.shape[0]]

    def root_lines(self) -> Tensor:
        """Return the lines of the roots, which are in the slots of the first leaves."""
        return self._node_at[:, 2]

    def _place(self, n: int, slots: Tensor, line: Tensor, m: int, p: int) -> None:
        """Put the new node and its pairs where the left child was."""
        at, neighbours = slots[:, 1:2], slots[:, 0:1]
        self._node_at[:n].scatter_(1, at, line + m)
        both = torch.cat((neighbours, at), 1)
        self._pair_at[:n].scatter_(1, both, torch.cat((line + p, line + p + self.rows), 1))
        self._score_at[:n].scatter_(1, both, self._score(p, 2)[:n])
        # The new node can be merged to the right if the right child could.
        right = self._open[:n].gather(1, slots[:, 2:3])
        self._open[:n].scatter_(1, at, right)

    def _project(self, start: int, end: int) -> None:
        """Compute what the nodes of some lines put into the gates of their parents."""
        h = self.node[start:end, : self.weights.query.shape[0]]
        flat = self.weights.pair.flatten(0, 1)
        torch.mm(h, flat.t(), out=self.into[start:end].flatten(1))

    def _pair(self, start: int, left: Tensor, right: Tensor) -> None:
        """Compose pairs and keep them from a line on."""
        d, end = self.weights.query.shape[0], start + len(left)
        gates = self.into[:, 0].index_select(0, left).add_(self.into[:, 1].index_select(0, right))
        c = self.node[:, d:]
        made = compose(
            gates.add_(self.weights.bias), c.index_select(0, left), c.index_select(0, right)
        )
        self.parent[start:end], self.gates[start:end] = made.state, made.gates
        self.squashed[start:end] = made.squashed
        self.left[start:end], self.right[start:end] = left, right

    def _score(self, start: int, count: int) -> Tensor:
        """Return the scores of some pairs of all rows, (R, count)."""
        h = self.parent[start : start + count * self.rows, : self.weights.query.shape[0]]
        return (h @ self.weights.query).view(count, self.rows).t()
