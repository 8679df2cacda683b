"""The categorical VAE of Gumbel-Softmax tutorials, and what it shares with the continuous one."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..._errors import DomainError
from ...laws.base import Distribution
from ...laws.categorical import Categorical
from ...rollout import Bound
from ..data import Binarize
from ..seeds import Seeds
from ..task import Metric
from ._images import AbstractImageVAE, AbstractVAE
from .vae import CategoricalVAE


class AbstractWeighted(AbstractVAE):
    """A VAE whose KL is known for each latent variable, and may be weighted and cut.

    Attributes:
        free_bits: nats that the KL of each variable has at least.
    """

    free_bits: float = 0.0

    @abc.abstractmethod
    def kls(self, q: Any) -> Tensor:  # noqa: ANN401 - of encode, or of posterior
        """Return the KL of each variable in nats, (B, latents)."""

    def kl(self, q: Distribution) -> Tensor:
        """Return KL(q || p) in nats, (B,)."""
        return self.kls(q).sum(-1)

    def posterior(self, x: Tensor) -> Any:  # noqa: ANN401 - what expect takes
        """Return q(z | x), which the random choice is made from in training."""
        return self.encode(x)

    def forward(self, x: Tensor, expect: Bound, weight: Tensor | float = 1.0) -> Tensor:
        """Return the reconstruction plus the weighted KL, (B,)."""
        q = self.posterior(x)
        divergence = self.kls(q).clamp_min(self.free_bits).sum(-1)
        return expect(lambda z: self.reconstruction(z, x), q) + weight * divergence


class TutorialNetwork(AbstractWeighted, CategoricalVAE):
    """Encoder pixels - hidden - (latents x classes), decoder back, ReLU; uniform prior."""

    def kls(self, q: Distribution) -> Tensor:
        """Return log C - H(q) of each variable, (B, latents)."""
        return math.log(self.classes) - Categorical(q.logits).entropy()


@dataclass(frozen=True)
class AbstractTutorialVAE(AbstractImageVAE):
    """A VAE of images that minimises ``-log p(x|z) + w sum_j max(KL_j, free_bits)``.

    The weight w is `kl_beta`, and grows to it from 0 over the first epochs, step by step, where
    `kl_epochs` says so. What is minimised is the metric "loss" of the training images;
    "neg_elbo", "neg_bound" and "kl" of the held-out ones have the whole KL, whatever w is.

    Args:
        dataset: digits, mnist, fashion-mnist or omniglot.
        latents: number of latent variables.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        binarize: none, threshold, static or dynamic.
        valid: training images held out.
        bound_samples: samples of the importance-weighted bound at the end, 0 for none.
        kl_beta: weight of the KL, >= 0.
        kl_epochs: epochs over which the weight grows from 0, linearly; 0: it is there at once.
        free_bits: nats, >= 0, that the KL of a variable counts for at least. For each image; the
            paper takes the mean over a minibatch first.

    Reference:
        Weight: Higgins et al., ICLR 2017. growing weight: Bowman et al., CoNLL 2016,
        arXiv:1511.06349. free bits: Kingma et al., NeurIPS 2016, arXiv:1606.04934.
    """

    dataset: str = "mnist"
    latents: int = 10
    hidden: tuple[int, ...] = (400,)
    binarize: Binarize = "none"
    valid: int = 0
    bound_samples: int = 100
    # Not `beta`, which is an option of an estimator: a flag of the command line has one meaning.
    kl_beta: float = 1.0
    kl_epochs: int = 0
    free_bits: float = 0.0

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss", "nats", "lower", "loss"),
        *AbstractImageVAE.metrics,
    )
    watched: ClassVar[str] = "neg_elbo"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(kl_epochs=0)
        for name in ("kl_beta", "free_bits"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DomainError(
                    f"{name} must be finite and at least 0, but is {getattr(self, name)}."
                )

    @abc.abstractmethod
    def _weighted(self, pixels: int) -> AbstractWeighted:
        """Return the model with fresh weights from torch's global state."""

    def _network(self, pixels: int) -> AbstractWeighted:
        model = self._weighted(pixels)
        model.free_bits = self.free_bits
        return model

    def batches(self, split: str, seeds: Seeds, *, epoch: int, size: int) -> Iterator[Tensor]:
        """Yield images (B, pixels); while the weight grows, with its share as one more column."""
        plain = super().batches(split, seeds, epoch=epoch, size=size)
        if split != "train" or not self.kl_epochs:
            yield from plain
            return
        steps = math.ceil(len(self.data.train) / size)
        for i, x in enumerate(plain):
            share = min((epoch + i / steps) / self.kl_epochs, 1.0)
            yield torch.cat((x, x.new_full((len(x), 1), share)), -1)

    def _split(self, batch: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the images of a batch, and the weight of the KL."""
        height, width = self.data.shape
        x, share = batch[..., : height * width], batch[..., height * width :]
        return x, self.kl_beta * share.squeeze(-1) if share.shape[-1] else self.kl_beta

    def losses(self, model: nn.Module, batch: Tensor, expect: Bound) -> Tensor:
        """Return what is minimised, for each image."""
        x, weight = self._split(batch)
        return model(x, expect, weight)

    def latent(self, model: nn.Module, batch: Tensor) -> Distribution:
        """Return q(z | x)."""
        return super().latent(model, self._split(batch)[0])


@dataclass(frozen=True)
class TutorialVAE(AbstractTutorialVAE):
    """The categorical VAE of a Gumbel-Softmax tutorial: 784-400-200-400-784 on MNIST.

    10 latent variables of 20 classes, ReLU, Bernoulli likelihood of grey pixels, uniform prior with
    the KL in closed form. Any estimator trains it; the tutorial's is Gumbel-Softmax whose tau falls
    from 1 to 0.5 (``tau_end`` and ``tau_rate`` of a run). Objective: see `AbstractTutorialVAE`.

    Args:
        dataset: digits, mnist, fashion-mnist or omniglot.
        latents: number of latent variables.
        classes: classes of each.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        binarize: none, threshold, static or dynamic.
        valid: training images held out.
        bound_samples: samples of the importance-weighted bound at the end, 0 for none.
        kl_beta: weight of the KL, >= 0.
        kl_epochs: epochs over which the weight grows from 0, linearly; 0: it is there at once.
        free_bits: nats, >= 0, that the KL of a variable counts for at least.

    Reference:
        Jang, Gu, Poole, ICLR 2017, arXiv:1611.01144.
    """

    classes: int = 20

    name: ClassVar[str] = "tutorial_vae"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(classes=2)

    def law(self) -> Categorical:
        """Return a law of one row."""
        return Categorical(torch.zeros(1, self.latents, self.classes), event_dims=1)

    def _weighted(self, pixels: int) -> TutorialNetwork:
        return TutorialNetwork(pixels, self.hidden, self.latents, self.classes)
