r"""The way back through a chart: the gradient of choosing each pair, in time linear in length.

A step with one-hot z makes node i of the next step ``y_i = [z_i] p_i + [z_{>i}] x_i +
[z_{<i}] x_{i+1}``, where p_i is the parent of x_i and x_{i+1} and [.] sums the entries of z. With
H_i the gradient in y_i, which is what all later steps make of it, the gradient in z_j is

``H_j . p_j + sum_{i<j} H_i . x_i + sum_{i>j} H_i . x_{i+1}``,

so that every node is wanted against itself, its neighbours and its parents with them: five
products. Between two merges next to a node its H moves along two vectors only, those in which it
changes the scores of its two pairs, by the gradients g of the scores. So products are computed
where a merge has changed the neighbourhood, and in between five numbers for a node follow g.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._listops_cell import pull
from ._listops_chart import Chart, Merge, Weights

# Of the six nodes and five pairs around a merge: what each of the inner four nodes is held against.
# Itself, the node to its left, their parent, the node to its right, their parent.
_AGAINST = tuple((i + 1, i, 6 + i, i + 2, 7 + i) for i in range(4))
_SELF, _LEFT, _LEFT_PARENT, _RIGHT, _RIGHT_PARENT = range(5)
_BEFORE = (_SELF, _RIGHT, _RIGHT_PARENT)  # in the formula, where i is before the merge
_BEHIND = (_LEFT, _SELF, _LEFT_PARENT)


class Gradients(NamedTuple):
    """What reaches the inputs of a chart, in their shapes."""

    leaves: Tensor
    weights: Weights


class Sweep:
    """Takes the steps of a chart back, the last one first.

    Args:
        chart: a finished one.
        roots: gradient in h of the roots, (R, D).
    """

    def __init__(self, chart: Chart, roots: Tensor) -> None:
        self._chart, self._d = chart, roots.shape[-1]
        weights, d = chart.weights, self._d
        pairs, like = len(chart.parent), chart.node
        c = like[:, d:]
        # How a pair's score moves with its gates, and with h and c of its children.
        self._slopes, *dc = pull(
            chart.gates,
            chart.squashed,
            c.index_select(0, chart.left),
            c.index_select(0, chart.right),
            weights.query,
            0.0,
        )
        self._moves = like.new_zeros(pairs, 2, 2 * d)
        for side in (0, 1):
            torch.mm(self._slopes, weights.pair[side], out=self._moves[:, side, :d])
            self._moves[:, side, d:] = dc[side]
        self._weight = like.new_zeros(pairs)  # the sum of g over the steps, for each pair
        self._chosen: list[tuple[Tensor, Tensor]] = []  # lines of pairs, gradient in gates
        self._base = torch.zeros_like(like)  # H of a node where its neighbourhood last changed
        self._base[chart.root_lines(), :d] = roots
        # By slot: five products and the two sums of g since then, and how the scores of the right
        # and of the left pair move all seven.
        ends = chart.leaves.shape[0] + 4
        self._table = like.new_zeros(chart.rows, ends, 3, 7)
        self._against = torch.tensor(_AGAINST, device=like.device)

    def scores(self, step: int, g: Tensor) -> None:
        """Take in the gradient of the logits before a step."""
        merge = self._chart.merges[step]
        g = g.masked_fill(~merge.valid, 0.0)
        self._weight.index_add_(0, merge.pairs.flatten(), g.flatten())
        table = self._table[: merge.rows]
        empty = g.new_zeros(table.shape[:2])
        right = empty.scatter(1, merge.order[:, :-1], g)
        left = empty.scatter(1, merge.order[:, 1:], g)
        table[:, :, 0].addcmul_(table[:, :, 1], right.unsqueeze(-1))
        table[:, :, 0].addcmul_(table[:, :, 2], left.unsqueeze(-1))

    def merge(self, step: int) -> Tensor:
        """Take a step back; return the gradient in its choice, (rows, W - 1)."""
        merge = self._chart.merges[step]
        left, made, right = self._settled(step, merge).unbind(1)
        bases = torch.stack((left, *self._children(merge, made), right), 1)
        self._base[merge.nodes[:, 1:5]] = bases
        products, own = self._products(merge, bases, made)
        rows = torch.arange(merge.rows, device=made.device).unsqueeze(1)
        self._table[rows, merge.slots] = products
        five = self._table[rows, merge.order][:, :, 0, :5]
        place = torch.arange(five.shape[1] - 1, device=made.device).unsqueeze(-1)
        before = place < merge.pick.unsqueeze(-1)
        terms = torch.where(before, five[:, :-1, _BEFORE], five[:, 1:, _BEHIND])
        terms[rows, merge.pick] = own.unsqueeze(1)
        s, u, parent = terms.unbind(-1)
        return parent + (s.cumsum(-1) - s) + (u.sum(-1, keepdim=True) - u.cumsum(-1))

    def finish(self) -> Gradients:
        """Return what reaches the inputs, after the first step was taken back."""
        chart, d = self._chart, self._d
        rows, length = chart.rows, len(chart.leaves)
        start, end = 2 * rows, (length + 2) * rows
        sums = self._table[:, 2:-2, 0, 5:].transpose(0, 1).flatten(0, 1)
        leaves = torch.addcmul(self._base[start:end], sums[:, :1], self._moves[start:end, 0])
        leaves.addcmul_(sums[:, 1:], self._moves[start - rows : end - rows, 1])
        gates = self._slopes.mul_(self._weight.unsqueeze(-1))
        for lines, gradient in self._chosen:
            gates.index_add_(0, lines, gradient)
        into = gates.new_zeros(2, len(chart.node), gates.shape[1])
        into[0].index_add_(0, chart.left, gates)
        into[1].index_add_(0, chart.right, gates)
        pair = torch.stack([side.t() @ chart.node[:, :d] for side in into])
        query = self._weight @ chart.parent[:, :d]
        weights = Weights(pair, gates.sum(0), query)
        return Gradients(leaves.view(length, rows, -1), weights)

    def _settled(self, step: int, merge: Merge) -> Tensor:
        """Return H of the new node and of its neighbours, (rows, 3, 2 D)."""
        m, p = self._chart.new_lines(step)
        line = torch.arange(merge.rows, device=merge.pick.device)
        around = (merge.around[:, 0], line + p, line + p + self._chart.rows, merge.around[:, 4])
        pairs = torch.stack(around, 1)
        nodes = torch.stack((merge.nodes[:, 1], line + m, merge.nodes[:, 4]), 1)
        slots = merge.slots[:, (0, 1, 3)]
        sums = self._table[line.unsqueeze(1), slots][:, :, 0, 5:].unsqueeze(-1)
        moves = _take(self._moves, pairs)
        out = torch.addcmul(_take(self._base, nodes), sums[:, :, 0], moves[:, 1:, 0])
        return out.addcmul_(sums[:, :, 1], moves[:, :-1, 1])

    def _children(self, merge: Merge, made: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the gradient in the new node is in its children."""
        chart, d = self._chart, self._d
        lines = merge.around[:, 2]
        c = _take(chart.node, merge.nodes[:, 2:4])[:, :, d:]
        gates, left, right = pull(
            _take(chart.gates, lines),
            _take(chart.squashed, lines),
            c[:, 0],
            c[:, 1],
            made[:, :d],
            made[:, d:],
        )
        self._chosen.append((lines, gates))
        pair = chart.weights.pair
        return torch.cat((gates @ pair[0], left), -1), torch.cat((gates @ pair[1], right), -1)

    def _products(self, merge: Merge, bases: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lines of the table for four nodes (rows, 4, 3, 7), and the new node's three.

        The three are those of the formula for i = j: with its children and with itself.
        """
        chart = self._chart
        moves = _take(self._moves, merge.around)
        vectors = torch.stack((bases, moves[:, 1:, 0], moves[:, :-1, 1]), 2).flatten(1, 2)
        held = torch.cat((_take(chart.node, merge.nodes), _take(chart.parent, merge.around)), 1)
        gram = torch.cat((vectors, made.unsqueeze(1)), 1) @ held.transpose(1, 2)
        index = self._against.unsqueeze(1).expand(merge.rows, 4, 3, 5)
        five = gram[:, :-1].view(merge.rows, 4, 3, -1).gather(-1, index)
        sums = gram.new_tensor(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))).expand(merge.rows, 4, 3, 2)
        return torch.cat((five, sums), -1), gram[:, -1, (2, 3, 8)]


def _take(x: Tensor, lines: Tensor) -> Tensor:
    """Return ``x[lines]``, whole lines copied at a time, which indexing does not do."""
    return x.index_select(0, lines.flatten()).view(*lines.shape, *x.shape[1:])
