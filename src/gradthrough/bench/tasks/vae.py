"""The categorical variational auto-encoder on images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...distributions.base import Distribution
from ...distributions.categorical import Categorical
from ..data import Binarize
from ._images import AbstractImageVAE, AbstractVAE


class CategoricalVAE(AbstractVAE):
    """Encoder pixels - hidden - (latents x classes), decoder the same way back; uniform prior.

    Args:
        pixels: size of an image.
        hidden: widths of the encoder's hidden layers.
        latents: number of latent variables.
        classes: classes of each.
    """

    point_dims: ClassVar[int] = 2

    def __init__(self, pixels: int, hidden: tuple[int, ...], latents: int, classes: int) -> None:
        super().__init__(pixels, hidden, latents * classes, nn.ReLU())
        self.latents, self.classes = latents, classes

    def encode(self, x: Tensor) -> Categorical:
        """Return q(z | x) for images (B, pixels)."""
        logits = self.encoder(x).unflatten(-1, (self.latents, self.classes))
        return Categorical(logits, event_dims=1)

    def prior(self) -> Categorical:
        """Return the uniform law of one row."""
        like = next(self.parameters())
        return Categorical(like.new_zeros(self.latents, self.classes), event_dims=1)

    def kl(self, q: Distribution) -> Tensor:
        """Return KL(q || p) in nats, (B,)."""
        return self.latents * math.log(self.classes) - q.entropy()

    def log_prior(self, z: Tensor) -> float:
        """Return log p(z), the same for every z."""
        return -self.latents * math.log(self.classes)

    def log_posterior(self, q: Distribution, z: Tensor) -> Tensor:
        """Return log q(z | x), (N, B), for z (N, B, latents, classes)."""
        return q.log_prob(z)


@dataclass(frozen=True)
class VAE(AbstractImageVAE):
    """Categorical VAE: uniform prior, analytic KL, Bernoulli likelihood.

    Args:
        dataset: digits, mnist, fashion-mnist or omniglot.
        latents: number of latent variables.
        classes: classes of each.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        binarize: none, threshold, static or dynamic.
        valid: training images held out; the published protocol holds out none.
        bound_samples: samples of the importance-weighted bound at the end, 0 for none.

    Reference:
        Jang, Gu, Poole, ICLR 2017, arXiv:1611.01144; sizes and protocol: Liu et al., NeurIPS
        2023, arXiv:2304.08612.
    """

    dataset: str = "mnist"
    latents: int = 4
    hidden: tuple[int, ...] = (512, 256)
    binarize: Binarize = "none"
    valid: int = 0
    bound_samples: int = 100
    classes: int = 8

    name: ClassVar[str] = "vae"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(classes=2)

    def law(self) -> Categorical:
        """Return a law of one row."""
        return Categorical(torch.zeros(1, self.latents, self.classes), event_dims=1)

    def _network(self, pixels: int) -> CategoricalVAE:
        return CategoricalVAE(pixels, self.hidden, self.latents, self.classes)
