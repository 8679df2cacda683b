"""Polynomial programming: bits that are to be near a target, without data and without a network."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..._errors import ConfigError, DomainError
from ...laws.base import Distribution
from ...laws.bernoulli import Bernoulli
from ...laws.categorical import Categorical
from ...rollout import Bound
from ..options import added
from ..seeds import Seeds
from ..task import AbstractTask, Metric, bare

Target = float | Literal["grid"]
Family = Literal["categorical", "bernoulli"]


class Bits(nn.Module):
    """Independent bits, and what they cost.

    Args:
        logits: (length, 2), where they start.
        target: (length,).
        p: exponent of the distance.
        family: "categorical": one-hots of two classes, of which the first is the bit;
            "bernoulli": numbers, whose logit is the difference of the two.
    """

    target: Tensor

    def __init__(
        self, logits: Tensor, target: Tensor, p: float, family: Family = "categorical"
    ) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.register_buffer("target", target, persistent=False)
        self.p, self.family = p, family

    def law(self, rows: int) -> Distribution:
        """Return the law of some equal rows."""
        if self.family == "bernoulli":
            logits = self.logits[:, 0] - self.logits[:, 1]
            return Bernoulli(logits.expand(rows, *logits.shape), event_dims=1)
        return Categorical(self.logits.expand(rows, *self.logits.shape), event_dims=1)

    def cost(self, z: Tensor) -> Tensor:
        """Return the mean of ``|bit - target|^p``, (N, B), for z (N, B, length[, 2])."""
        bits = z if self.family == "bernoulli" else z[..., 0]
        return (bits - self.target).abs().pow(self.p).mean(-1)

    def forward(self, batch: Tensor, expect: Bound) -> Tensor:
        """Return one estimate of the cost for each row of the batch, (B,)."""
        return expect(self.cost, self.law(len(batch)))


@dataclass(frozen=True)
class Polynomial(AbstractTask):
    r"""Polynomial programming: the bits whose distance to a target is least in the mean.

    ``min over theta of E ||D - c||_p^p / length``, ``D_i ~ softmax(theta_i)`` independent, where D
    is the first component of the one-hots. The training loss is a mean over draws, as published;
    what is evaluated is the expectation itself, which has a closed form, and how far it is from
    the least that any theta attains, where each bit is the nearer one of 0 and 1.

    Args:
        length: number of bits.
        p: exponent, >= 1.
        target: c, one number for all bits, or "grid": (i - 1/2) / length for i = 1 .. length.
        steps_per_epoch: steps that count as an epoch, since there is no data.
        family: categorical: one-hots of two classes; bernoulli: numbers with the same law and the
            same parameters, for estimators that serve no categorical.

    Reference:
        Liu et al., NeurIPS 2023, arXiv:2304.08612; with p = 2 and one bit: Tucker et al., NeurIPS
        2017, arXiv:1703.07370.
    """

    length: int = 128
    p: float = 2.0
    target: Target = 0.45
    steps_per_epoch: int = 200
    family: Family = added("categorical")  # noqa: RUF009 - added() makes a field

    name: ClassVar[str] = "polynomial"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss", "-", "lower", "loss"),
        Metric("gap", "-", "lower", "gap to the optimum"),
    )

    def __post_init__(self) -> None:
        for option in ("length", "steps_per_epoch"):
            if getattr(self, option) < 1:
                raise DomainError(f"{option} must be at least 1, but is {getattr(self, option)}.")
        if self.family not in get_args(Family):
            raise ConfigError(
                f"family is {self.family!r}, but must be {' or '.join(get_args(Family))}."
            )
        if not 1 <= self.p < math.inf:
            raise DomainError(f"p must be finite and at least 1, but is {self.p}.")
        object.__setattr__(self, "p", float(self.p))  # 2 is 2.0: one setting has one key
        if self.target == "grid":
            return
        if isinstance(self.target, str):
            raise ConfigError(f"target is {self.target!r}, but must be a number or 'grid'.")
        if not math.isfinite(self.target):
            raise DomainError(f"target must be finite, but is {self.target}.")
        object.__setattr__(self, "target", float(self.target))

    @functools.cached_property
    def _held(self) -> dict[str, torch.device]:
        return {}

    def prepare(self, device: torch.device) -> None:
        """Note the device, where the empty batches are to be."""
        self._held["device"] = device

    def targets(self) -> Tensor:
        """Return c, float64 (length,)."""
        if isinstance(self.target, str):
            return (torch.arange(self.length, dtype=torch.float64) + 0.5) / self.length
        return torch.full((self.length,), self.target, dtype=torch.float64)

    def expected_loss(self, logits: Tensor) -> Tensor:
        """Return the expected loss in closed form, float64, differentiable in the logits."""
        return _mean(self._costs(), logits)

    def gap(self, logits: Tensor) -> Tensor:
        """Return by how much the expected loss is above the optimum, float64, >= 0."""
        costs = self._costs()
        # Not the difference of the two, whose last digits would be rounding.
        return _mean(costs - costs.amin(-1, keepdim=True), logits)

    def optimum(self) -> float:
        """Return the least expected loss."""
        return float(self._costs().amin(-1).mean())

    def _costs(self) -> Tensor:
        """Return what each bit costs where it is 1 and where it is 0, (length, 2)."""
        c = self.targets()
        return torch.stack((1.0 - c, c), -1).abs().pow(self.p)

    def model(self, seeds: Seeds) -> Bits:
        """Return bits with logits uniform in (-0.01, 0.01)."""
        generator = torch.Generator().manual_seed(seeds.of("init"))
        logits = torch.empty(self.length, 2).uniform_(-0.01, 0.01, generator=generator)
        return Bits(logits, self.targets().float(), self.p, self.family)

    def batches(self, split: str, seeds: Seeds, *, epoch: int, size: int) -> Iterator[Tensor]:
        """Yield ``steps_per_epoch`` times rows (size, 1) without content for "train", else none."""
        if split == "train":
            rows = torch.zeros(size, 1, device=self._held.get("device"))
            for _ in range(self.steps_per_epoch):
                yield rows

    def losses(self, model: nn.Module, batch: Tensor, expect: Bound) -> Tensor:
        """Return an independent estimate of the loss for each row."""
        return model(batch, expect)

    def latent(self, model: nn.Module, batch: Tensor) -> Distribution:
        """Return the law of the bits, once for each row."""
        return bare(model).law(len(batch))

    def law(self) -> Distribution:
        """Return a law of one row."""
        if self.family == "bernoulli":
            return Bernoulli(torch.zeros(1, self.length), event_dims=1)
        return Categorical(torch.zeros(1, self.length, 2), event_dims=1)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, seeds: Seeds, *, final: bool = False
    ) -> dict[str, float]:
        """Return the expected loss and its gap; nothing is held out, so {} for "valid"."""
        if final or split == "valid":
            return {}
        logits = bare(model).logits
        return {"loss": float(self.expected_loss(logits)), "gap": float(self.gap(logits))}


def _mean(costs: Tensor, logits: Tensor) -> Tensor:
    """Return the mean over the bits of what each one costs in expectation."""
    return (logits.double().softmax(-1) * costs.to(logits.device)).sum(-1).mean()
