"""What a training step costs: seconds and bytes, on a problem without a network and on a VAE."""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..._errors import ConfigError, DomainError
from ...auditing.cost import allocated_bytes, now, step_times
from ...estimators import AbstractEstimator, StraightThrough
from ...expect import expect
from ...laws.base import Distribution
from ...rollout import Bound
from ..config import RunConfig
from ..optimizers import tempered
from ..seeds import Seeds
from ..task import AbstractTask, Batch, Metric, bare
from .polynomial import Polynomial
from .vae import VAE

Problem = Literal["qp", "vae"]

_SECONDS = 10.0  # for timing; a slow step is taken fewer times,
_FEWEST = 5  # but not fewer than that
_MEGA = 1e6


@dataclass(frozen=True)
class Efficiency(AbstractTask):
    """What a training step with an estimator costs: time, and memory at its peak.

    The training is that of polynomial programming with 128 bits and p = 2, or of a VAE with 30
    latents of 10 classes. The probe measures, with the run's own settings: the median time of a
    training step; its ratio to the step of a peer, straight-through, the two taken in turn; the
    most bytes that a step holds beyond those held before it, as torch's allocator counts them; and
    the same for an estimate of a linear f with its backward pass, where there is no network whose
    activations would hide what the estimator holds. An estimator is measured as its options say:
    what it takes to tune one is not in the numbers.

    Args:
        problem: qp or vae.
        dataset: of the vae: digits, mnist, fashion-mnist or omniglot.
        steps_per_epoch: of the qp, which has no data.
        rounds: how often a step is timed, at most.

    Reference:
        Liu et al., NeurIPS 2023, arXiv:2304.08612.
    """

    problem: Problem = "qp"
    dataset: str = "mnist"
    steps_per_epoch: int = 200
    rounds: int = 60

    name: ClassVar[str] = "efficiency"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss", "-", "lower", "loss"),
        Metric("milliseconds", "ms", "lower", "ms step"),
        Metric("ratio", "-", "lower", "ratio to st"),
        Metric("peak_megabytes", "MB", "lower", "peak MB"),
        Metric("estimator_megabytes", "MB", "lower", "peak MB, estimator alone"),
    )

    def __post_init__(self) -> None:
        if self.problem not in get_args(Problem):
            raise ConfigError(f"problem is {self.problem!r}, but must be qp or vae.")
        if self.rounds < 1:
            raise DomainError(f"rounds must be at least 1, but is {self.rounds}.")
        _ = self._inner  # refuses what it does not know

    @functools.cached_property
    def _inner(self) -> AbstractTask:
        if self.problem == "qp":
            return Polynomial(steps_per_epoch=self.steps_per_epoch)
        return VAE(self.dataset, latents=30, classes=10, bound_samples=0)

    def prepare(self, device: torch.device) -> None:
        """Load the data and put it on the device."""
        self._inner.prepare(device)

    def model(self, seeds: Seeds) -> nn.Module:
        """Return the model of the problem with fresh weights."""
        return self._inner.model(seeds)

    def batches(self, split: str, seeds: Seeds, *, epoch: int, size: int) -> Iterator[Batch]:
        """Yield the batches of the problem."""
        return self._inner.batches(split, seeds, epoch=epoch, size=size)

    def losses(self, model: nn.Module, batch: Batch, expect: Bound) -> Tensor:
        """Return the losses (B,) of the problem."""
        return self._inner.losses(model, batch, expect)

    def latent(self, model: nn.Module, batch: Batch) -> Distribution:
        """Return the law of the problem's latents."""
        return self._inner.latent(model, batch)

    def law(self) -> Distribution:
        """Return a law of one row."""
        return self._inner.law()

    def refuses(self, estimator: AbstractEstimator) -> str | None:
        """Return why the problem cannot be trained with an estimator, or None."""
        return self._inner.refuses(estimator)

    def evaluate(
        self, model: nn.Module, split: str, seeds: Seeds, *, final: bool = False
    ) -> dict[str, float]:
        """Return the problem's headline metric as "loss"."""
        found = self._inner.evaluate(model, split, seeds, final=final)
        headline = self._inner.metrics[0].name
        return {"loss": found[headline]} if headline in found else {}

    def probe(self, model: nn.Module, config: RunConfig, *, epoch: int) -> dict[str, float]:
        """Return what a training step costs; the model stays as it is."""
        seeds = Seeds(config.seed)
        batch = next(iter(self.batches("train", seeds, epoch=0, size=config.batch_size)))
        estimator = tempered(config.build_estimator(), config, epoch - 1)
        own, peer = (
            self._step(model, batch, config, one) for one in (estimator, StraightThrough())
        )
        law = self.latent(model, batch)
        alone = _estimate(law, estimator, config, seeds)
        seconds = step_times({"own": own, "peer": peer}, rounds=self._rounds(own))
        ratios = [a / b for a, b in zip(seconds["own"], seconds["peer"], strict=True)]
        return {
            "milliseconds": 1000 * statistics.median(seconds["own"]),
            "ratio": statistics.median(ratios),
            "peak_megabytes": allocated_bytes(own, law.logits.device) / _MEGA,
            "estimator_megabytes": allocated_bytes(alone, law.logits.device) / _MEGA,
        }

    def _step(
        self, model: nn.Module, batch: Batch, config: RunConfig, estimator: AbstractEstimator
    ) -> Callable[[], None]:
        """Return a training step of its own copy of the model, after a first one."""
        trained = copy.deepcopy(bare(model)).train()
        optimizers = self._inner.optimizers(trained, config)
        bound = _bound(estimator, config, Seeds(config.seed), self.latent(trained, batch))

        def step() -> None:
            self._inner.losses(trained, batch, bound).mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        step()  # allocates the state of the optimizers, which is held between steps
        return step

    def _rounds(self, step: Callable[[], None]) -> int:
        began = now()
        step()
        return min(self.rounds, max(_FEWEST, int(_SECONDS / (now() - began))))


def _bound(
    estimator: AbstractEstimator, config: RunConfig, seeds: Seeds, law: Distribution
) -> Bound:
    generator = torch.Generator(law.logits.device).manual_seed(seeds.of("efficiency"))
    return Bound(estimator, config.samples or 1, generator)


def _estimate(
    law: Distribution, estimator: AbstractEstimator, config: RunConfig, seeds: Seeds
) -> Callable[[], None]:
    """Return a function that estimates a linear f of a batch of latents, and goes back."""
    leaf = law.logits.detach().clone().requires_grad_()
    q, bound = law.with_logits(leaf), _bound(estimator, config, seeds, law)
    lead = len(q.batch_shape)
    weights = leaf.new_ones(q.mode().flatten(lead).shape[-1])

    def f(z: Tensor) -> Tensor:
        return z.flatten(1 + lead) @ weights

    def step() -> None:
        value = expect(f, q, bound.estimator, samples=bound.samples, generator=bound.generator)
        torch.autograd.grad(value.sum(), leaf)

    step()
    return step
