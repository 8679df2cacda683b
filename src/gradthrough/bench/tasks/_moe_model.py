"""A classifier of mixtures of experts, each of which computes its own rows and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from ...routing import load_balance


class Choice(NamedTuple):
    r"""What a router does with rows (\*rows).

    Args:
        weights: (\*rows, 1) of the expert that runs; (\*rows, N) if all run.
        expert: int64 (\*rows, 1), which runs; None: all.
    """

    weights: Tensor
    expert: Tensor | None


# Of the logits (*rows, N) of a layer.
Route: TypeAlias = Callable[[Tensor], Choice]


class Output(NamedTuple):
    r"""What the classifier says.

    Args:
        scores: (\*rows, 10).
        balance: of the draws, ``load_balance`` in the mean over the layers.
        evaluated: how many rows experts computed, over all experts and layers.
    """

    scores: Tensor
    balance: Tensor
    evaluated: int


class Experts(nn.Module):
    """N networks width - hidden - width with ReLU, each initialised as torch's linear layers.

    Args:
        experts: N.
        width: of what goes in and comes out.
        hidden: units of each.
    """

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.up = _uniform((experts, width, hidden), width)
        self.up_bias = _uniform((experts, hidden), width)
        self.down = _uniform((experts, hidden, width), hidden)
        self.down_bias = _uniform((experts, width), hidden)

    def forward(self, x: Tensor, expert: Tensor) -> tuple[Tensor, int]:
        """Return what the chosen expert makes of each row, and how many rows were computed.

        Args:
            x: (R, width).
            expert: int64 (R,).
        """
        order = expert.argsort(stable=True)
        counts = cast("list[int]", expert.bincount(minlength=len(self.up)).tolist())
        # Views of all weights at once: of a slice each, the backward would fill a whole gradient.
        weights = zip(
            *(w.unbind(0) for w in (self.up, self.up_bias, self.down, self.down_bias)), strict=True
        )
        parts: tuple[Tensor, ...] = torch.split(x[order], counts)
        groups = [
            torch.addmm(d, torch.addmm(b, rows, u).relu(), v)
            for rows, (u, b, v, d) in zip(parts, weights, strict=True)
            if len(rows)
        ]
        if not groups:
            return x, 0
        places = torch.empty_like(order).scatter_(
            0, order, torch.arange(len(order), device=order.device)
        )
        return torch.cat(groups)[places], sum(map(len, groups))

    def every(self, x: Tensor) -> tuple[Tensor, int]:
        """Return what each expert makes of each row, (N, R, width), and how many were computed."""
        rows = x.expand(len(self.up), *x.shape)
        inner = torch.baddbmm(self.up_bias.unsqueeze(1), rows, self.up).relu()
        out = torch.baddbmm(self.down_bias.unsqueeze(1), inner, self.down)
        return out, out.shape[0] * out.shape[1]


def _uniform(shape: tuple[int, ...], inputs: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5))


class Mixture(nn.Module):
    """x + sum_i w_i E_i(norm(x)), of experts that a router chooses."""

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = Experts(experts, width, hidden)

    def logits(self, x: Tensor) -> Tensor:
        r"""Return the router's logits, (\*rows, N)."""
        return self.router(self.norm(x))

    def forward(self, x: Tensor, route: Route) -> tuple[Tensor, Tensor, int]:
        r"""Return the output (\*rows, width), how uneven the use of experts is, and the work."""
        normed = self.norm(x)
        logits = self.router(normed)
        weights, expert = route(logits)
        flat = normed.flatten(0, -2)
        if expert is None:
            parts, evaluated = self.experts.every(flat)
            out = torch.einsum("rn,nrw->rw", weights.flatten(0, -2), parts)
            used = torch.arange(logits.shape[-1], device=x.device).expand(logits.shape)
        else:
            out, evaluated = self.experts(flat, expert.flatten())
            out = weights.flatten(0, -2) * out
            used = expert
        balance = load_balance(logits.softmax(-1), used)
        return x + out.view_as(x), balance, evaluated


class Classifier(nn.Module):
    """A linear layer, some mixtures, a linear layer: nothing but experts is deep.

    Args:
        pixels: size of an image.
        layers: how many mixtures.
        experts: of each.
        width: between the layers.
        hidden: units of an expert.
    """

    def __init__(self, pixels: int, layers: int, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.stem = nn.Linear(pixels, width)
        self.mixtures = nn.ModuleList(Mixture(experts, width, hidden) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def first_logits(self, images: Tensor) -> Tensor:
        """Return the logits of the first router."""
        mixture: Mixture = self.mixtures[0]  # pyright: ignore[reportAssignmentType]
        return mixture.logits(self.stem(images.flatten(1)))

    def forward(self, images: Tensor, samples: int, route: Route) -> Output:
        """Return scores (samples, B, 10), from images (B, ...) that are taken `samples` times."""
        first = self.stem(images.flatten(1))
        x = first.expand(samples, *first.shape)
        balances: list[Tensor] = []
        total = 0
        for mixture in self.mixtures:
            x, balance, evaluated = mixture(x, route)
            balances.append(balance)
            total += evaluated
        return Output(self.head(x), torch.stack(balances).mean(), total)
