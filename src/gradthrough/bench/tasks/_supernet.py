"""The weight-sharing network of NAS-Bench-201: it has every op, and computes few of them."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ...laws.categorical import Categorical
from ...rollout import Bound
from ..nas_tables import EDGES, OPS, Cell

EvaluateOps: TypeAlias = Literal["published", "chosen", "all"]
StepKind: TypeAlias = Literal["weights", "architecture"]
_CLASSES = 10
_NONE = OPS.index("none")


class ReluConvNorm(nn.Module):
    """ReLU, convolution without a bias, normalisation by the batch.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        size: of the kernel.
        stride: of the convolution.
        affine: whether the normalisation is followed by a learned scale and shift.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int = 1, affine: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=affine, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, height / stride, width / stride)."""
        return self.norm(self.conv(x.relu()))


@dataclass(frozen=True, eq=False)
class Choice:
    """The ops of a cell, and which of them are to be computed.

    Args:
        weights: of each op on each edge: one point of the law, taken apart.
        ops: the chosen op of each edge; None where the point is soft, and all count.
        every: whether the gradient in the weights knows the ops that were not chosen.
        shifts: what is added to each node, 0 with a gradient, by the number of the node.
    """

    weights: tuple[tuple[Tensor, ...], ...]
    ops: Cell | None
    every: bool
    shifts: dict[int, Tensor]

    @classmethod
    def of(cls, z: Tensor, evaluate_ops: EvaluateOps) -> Choice:
        """Return the choice that a point (edges, ops) makes."""
        hard = bool(((z == 0) | (z == 1)).all()) and bool((z.sum(-1) == 1).all())
        weights = tuple(row.unbind() for row in z.unbind())
        shifts: dict[int, Tensor] = {}
        if hard and z.requires_grad and evaluate_ops == "published":
            others = (z * (1 - z.detach())).sum(-1).unbind()
            for (_, end), shift in zip(EDGES, others, strict=True):
                shifts[end] = shifts[end] + shift if end in shifts else shift
        return cls(weights, largest(z) if hard else None, evaluate_ops == "all", shifts)


def largest(x: Tensor) -> Cell:
    """Return the cell of the largest entries of each edge, for x (edges, ops)."""
    return tuple(cast("list[int]", x.argmax(-1).tolist()))


class SearchCell(nn.Module):
    """Four nodes and six edges; a node is the sum of its edges, an edge one of five ops.

    Args:
        channels: of every node.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nor_conv_1x1, self.nor_conv_3x3 = (
            nn.ModuleList(ReluConvNorm(channels, channels, size) for _ in EDGES) for size in (1, 3)
        )

    def op(self, edge: int, op: int, x: Tensor) -> Tensor:
        """Return one op of an edge, for x (B, channels, height, width), or 0 for none."""
        match OPS[op]:
            case "skip_connect":
                return x
            case "nor_conv_1x1":
                return self.nor_conv_1x1[edge](x)
            case "nor_conv_3x3":
                return self.nor_conv_3x3[edge](x)
            case "avg_pool_3x3":
                return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            case _:
                return x.new_zeros(())

    def edge(self, edge: int, x: Tensor, choice: Choice) -> Tensor:
        """Return ``sum_k z_k op_k(x)``, with the gradient in z that the choice says."""
        z = choice.weights[edge]
        others = [k for k in range(len(OPS)) if k != _NONE]  # its output is zero, whatever z says
        if choice.ops is None:
            return _sum([z[k] * self.op(edge, k, x) for k in others])
        chosen = choice.ops[edge]
        out = self.op(edge, chosen, x)
        if not z[chosen].requires_grad:
            return out
        out = z[chosen] * out
        for k in others if choice.every else ():
            if k != chosen:
                # z_k is 0: what is in front of the op gets no gradient through it.
                with torch.no_grad():
                    value = self.op(edge, k, x)
                out = out + z[k] * value
        return out

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        """Return the last node, shape of x."""
        nodes = [x]
        incoming: list[Tensor] = []
        for edge, (start, end) in enumerate(EDGES):
            incoming.append(self.edge(edge, nodes[start], choice))
            if start == end - 1:  # the last edge of its node
                if end in choice.shifts:
                    incoming.append(choice.shifts[end])
                nodes.append(_sum(incoming).expand_as(x))  # without any op it is a number
                incoming = []
        return nodes[-1]


def _sum(terms: list[Tensor]) -> Tensor:
    return functools.reduce(operator.add, terms)


class Reduction(nn.Module):
    """A residual block that halves the image and doubles the channels.

    Args:
        channels: that come in.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ReluConvNorm(channels, 2 * channels, 3, stride=2, affine=True)
        self.second = ReluConvNorm(2 * channels, 2 * channels, 3, affine=True)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 2 channels, height / 2, width / 2)."""
        return self.second(self.first(x)) + self.shortcut(F.avg_pool2d(x, 2))


class Network(nn.Module):
    """Stem, cells, reduction, cells, reduction, cells, head; all cells have the same ops.

    Args:
        channels: in front of the first reduction.
        cells: in each of the three stages.
    """

    def __init__(self, channels: int, cells: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels, track_running_stats=False)
        widths = (channels, 2 * channels, 4 * channels)
        self.stages = nn.ModuleList(
            nn.ModuleList(SearchCell(width) for _ in range(cells)) for width in widths
        )
        self.reductions = nn.ModuleList(Reduction(width) for width in widths[:-1])
        self.head_norm = nn.BatchNorm2d(widths[-1], track_running_stats=False)
        self.head = nn.Linear(widths[-1], _CLASSES)

    def forward(self, images: Tensor, choice: Choice) -> Tensor:
        """Return the logits of the classes, (B, 10), for images (B, 1, height, width)."""
        # This layout is two to five times as fast on a CPU.
        x = self.stem_norm(self.stem(images).contiguous(memory_format=torch.channels_last))
        for depth, stage in enumerate(self.stages):
            if depth:
                x = self.reductions[depth - 1](x)
            for cell in cast("nn.ModuleList", stage):
                x = cell(x, choice)
        return self.head(self.head_norm(x).relu().mean((-2, -1)))


class Supernet(nn.Module):
    """The network and the logits of the law of its cell.

    Args:
        channels: in front of the first reduction.
        cells: in each of the three stages.
        evaluate_ops: which ops the gradient in the architecture knows.
    """

    def __init__(self, channels: int, cells: int, evaluate_ops: EvaluateOps) -> None:
        super().__init__()
        self.network = Network(channels, cells)
        self.architecture = nn.Parameter(1e-3 * torch.randn(len(EDGES), len(OPS)))
        self.evaluate_ops: EvaluateOps = evaluate_ops

    def law(self, *, learned: bool = True) -> Categorical:
        """Return the law of the cell: one row of six variables of five classes."""
        logits = self.architecture if learned else self.architecture.detach()
        return Categorical(logits.unsqueeze(0), event_dims=1)

    def cell(self) -> Cell:
        """Return the most probable cell."""
        return largest(self.architecture)

    def scores(self, images: Tensor, z: Tensor, *, learned: bool = True) -> Tensor:
        """Return the logits of the classes, (B, 10), of a cell z (edges, ops).

        Args:
            images: (B, 1, height, width).
            z: a point of the law, or a soft one.
            learned: whether the weights get a gradient.
        """
        choice = Choice.of(z, self.evaluate_ops)
        if learned:
            return self.network(images, choice)
        fixed = {name: x.detach() for name, x in self.network.named_parameters()}
        return functional_call(self.network, fixed, (images, choice))

    def forward(self, images: Tensor, labels: Tensor, kind: StepKind, expect: Bound) -> Tensor:
        """Return the cross entropy of a batch, once for each image, (B,).

        The minibatch shares its cells, so there is one expectation: that of the mean over it.

        Args:
            images: (B, 1, height, width).
            labels: (B,).
            kind: what gets a gradient.
            expect: the estimator.
        """
        weights = kind == "weights"

        def mean_loss(points: Tensor) -> Tensor:  # (N, 1, edges, ops) -> (N, 1)
            scores = [self.scores(images, z, learned=weights) for z in points.squeeze(1)]
            return torch.stack([F.cross_entropy(x, labels) for x in scores]).unsqueeze(-1)

        return expect(mean_loss, self.law(learned=not weights)).expand(len(labels))
