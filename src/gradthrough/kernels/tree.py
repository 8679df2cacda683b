"""A categorical variable as a walk down a balanced binary tree of its classes.

A node at level l splits the classes below it in half; the walk goes left with the probability
that the left half has of the node's. Nodes are numbered as in a heap, leaves are the classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .sticks import Sticks


def depth_for(classes: int) -> int:
    """Return the depth of a tree with at least so many leaves."""
    return (classes - 1).bit_length()


class Tree(NamedTuple):
    """Masses of the nodes, level by level, from the root; the classes sorted into the leaves."""

    order: Tensor  # (..., C), class of each of the last C leaves, by ascending probability
    levels: tuple[Tensor, ...]  # (..., 2^l) for l = 0 .. depth, float64


def tree(s: Sticks) -> Tree:
    """Put sorted probabilities into a tree; leaves that are missing come first, empty."""
    classes = s.p.shape[-1]
    depth = depth_for(classes)
    levels: list[Tensor] = [F.pad(s.p, (2**depth - classes, 0))]
    for _ in range(depth):
        levels.append(_halves(levels[-1]).sum(-1))
    return Tree(s.order, tuple(reversed(levels)))


def _halves(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)


def _left(t: Tree, level: int) -> Tensor:
    """Return the probability to go left at every node of a level, 0 at nodes without mass."""
    mass = t.levels[level]
    left = t.levels[level + 1][..., ::2]
    return torch.where(mass > 0, left / mass, 0.0)


def _at(x: Tensor, node: Tensor) -> Tensor:
    lead = node.shape[: node.ndim - x.ndim + 1]
    return x.expand(*lead, *x.shape).gather(-1, node.unsqueeze(-1)).squeeze(-1)


class Walk(NamedTuple):
    """One walk: node, probability to go left, and whether it did, at every level."""

    nodes: tuple[Tensor, ...]
    left: tuple[Tensor, ...]
    went: tuple[Tensor, ...]
    leaf: Tensor


def walk(t: Tree, noise: Tensor) -> Walk:
    """Walk down with a uniform for each node, (N, ..., nodes)."""
    node = torch.zeros(noise.shape[:-1], dtype=torch.int64, device=noise.device)
    nodes: list[Tensor] = []
    left: list[Tensor] = []
    went: list[Tensor] = []
    for level in range(len(t.levels) - 1):
        sigma = _at(_left(t, level), node)
        u = noise.gather(-1, (2**level - 1 + node).unsqueeze(-1)).squeeze(-1)
        nodes.append(node)
        left.append(sigma)
        went.append((u < sigma).to(torch.float64))
        node = 2 * node + (u >= sigma)
    return Walk(tuple(nodes), tuple(left), tuple(went), node)


def to_classes(t: Tree, gradients: list[Tensor]) -> Tensor:
    """Turn gradients in the log-odds of the nodes, (..., 2^l) a level, into those in the logits.

    The log-odds of a node are logsumexp(left) - logsumexp(right): a class on its left gets its
    share of the left half, one on its right minus its share of the right half.
    """
    carried = torch.zeros_like(t.levels[0])
    for level, gradient in enumerate(gradients):
        halves = _halves(t.levels[level + 1])
        share = torch.stack((gradient, -gradient), -1)
        share = torch.where(halves > 0, share / halves, 0.0)
        carried = (carried.unsqueeze(-1) + share).flatten(-2)
    out = (carried * t.levels[-1])[..., -t.order.shape[-1] :]
    return torch.zeros_like(out).scatter(-1, t.order, out)
