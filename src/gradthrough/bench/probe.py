"""Probes of a task: an estimator's mean gradient against the exact one, and a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..estimators import AbstractEstimator, Enumerate
from ..expect import expect
from ..laws.convert import as_discrete
from ..rollout import Bound
from .task import AbstractTask


class _LogitProbe(Bound):
    """A bound estimator that keeps the gradient which reaches the logits."""

    grad: Tensor | None = None

    def __call__(self, f: Callable[[Tensor], Tensor], dist: object) -> Tensor:
        q = as_discrete(dist)
        leaf = q.logits.detach().requires_grad_()
        value = expect(
            f, q.with_logits(leaf), self.estimator, samples=self.samples, generator=self.generator
        )
        (self.grad,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach()


def logit_gradients(
    task: AbstractTask,
    model: nn.Module,
    batch: Tensor,
    estimator: AbstractEstimator,
    *,
    draws: int,
    generator: torch.Generator,
    chunk: int = 16,
) -> Tensor:
    """Return the mean over draws of an estimator's gradient in the logits, shape of the logits."""
    total: Tensor | None = None
    left = draws
    while left:
        n = min(chunk, left)
        # A draw is a copy of the batch, not a sample of one estimate: a leave-one-out baseline
        # sees as many samples as it does in training.
        probe = _LogitProbe(estimator, estimator.traits.min_samples, generator)
        with torch.enable_grad():
            task.losses(model, batch.repeat(n, *(1 for _ in batch.shape[1:])), probe)
        assert probe.grad is not None
        part = probe.grad.double().reshape(n, len(batch), *probe.grad.shape[1:]).sum(0)
        total = part if total is None else total + part
        left -= n
    assert total is not None
    return total / draws


def cosines(
    task: AbstractTask,
    model: nn.Module,
    batch: Tensor,
    estimators: Mapping[str, AbstractEstimator],
    *,
    draws: int,
    seed: int,
) -> dict[str, float]:
    """Return the cosine between each estimator's mean gradient and the exact one.

    It is the gradient of what the task sends through the estimator (for the VAE the
    reconstruction, not the analytic KL), in all logits of the batch.

    Args:
        task: its latent space must be small enough to enumerate.
        model: where the gradient is measured, the same for all.
        batch: on which data.
        estimators: by label.
        draws: of which the mean is taken; an unbiased estimator stays below 1 by their noise.
        seed: of the draws, the same for all.
    """
    generator = torch.Generator(batch.device)
    exact = logit_gradients(task, model, batch, Enumerate(), draws=1, generator=generator)
    out: dict[str, float] = {}
    for label, estimator in estimators.items():
        generator.manual_seed(seed)
        n = 1 if estimator.traits.noise == "none" else draws
        mean = logit_gradients(task, model, batch, estimator, draws=n, generator=generator)
        cosine = torch.nn.functional.cosine_similarity(mean.flatten(), exact.flatten(), dim=0)
        out[label] = float(cosine)
    return out


def training_step(
    task: AbstractTask, model: nn.Module, batch: Tensor, estimator: AbstractEstimator
) -> Callable[[], None]:
    """Return a function that does one forward, backward and optimiser step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
    bound = Bound(estimator, estimator.traits.min_samples, torch.Generator(batch.device))

    def step() -> None:
        task.losses(model, batch, bound).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
