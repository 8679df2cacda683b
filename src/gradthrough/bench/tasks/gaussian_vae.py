"""The continuous VAE: normal latents, which the reparameterisation trick trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributions as td
from torch import Tensor, nn

from ..._random import uniforms
from ...laws.continuous import Normal
from ...laws.convert import as_distribution
from .tutorial_vae import AbstractTutorialVAE, AbstractWeighted


class Gaussian(Normal):
    """Normals that are sampled without a gradient, as evaluation does."""

    def sample(self, *, generator: torch.Generator | None = None) -> Tensor:
        """Return a point for each row."""
        return self.draw(uniforms(self.noise_shape("variable"), self.device, generator))[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density of points."""
        return self.precise_log_prob(z)


class GaussianNetwork(AbstractWeighted):
    """Encoder pixels - hidden - (mean and log-variance of each latent), decoder back, ReLU.

    Args:
        pixels: size of an image.
        hidden: widths of the encoder's hidden layers.
        latents: number of latent variables.
    """

    point_dims: ClassVar[int] = 1

    def __init__(self, pixels: int, hidden: tuple[int, ...], latents: int) -> None:
        super().__init__(pixels, hidden, 2 * latents, nn.ReLU())
        self.latents = latents
        self.decode_from(latents)

    def posterior(self, x: Tensor) -> td.Distribution:
        """Return q(z | x), of torch."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        # Not validated: a run that diverges is to say so in the bench's own words.
        normal = td.Normal(mean, (log_variance / 2).exp(), validate_args=False)
        return td.Independent(normal, 1, validate_args=False)

    # The laws of the other models are discrete; what is asked of this one, it has.

    def encode(self, x: Tensor) -> Gaussian:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return q(z | x), which can be sampled from a generator."""
        return Gaussian(as_distribution(self.posterior(x)).parameters, event_dims=1)

    def prior(self) -> Gaussian:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the standard normals of one row."""
        like = next(self.parameters())
        zero = like.new_zeros(self.latents)
        return Gaussian((zero, torch.ones_like(zero)), event_dims=1)

    def kls(self, q: Any) -> Tensor:  # noqa: ANN401 - of encode, or of posterior
        """Return (m^2 + s^2 - 1) / 2 - log s of each variable, (B, latents)."""
        mean, scale = as_distribution(q).parameters
        return (mean.square() + scale.square() - 1.0) / 2.0 - scale.log()

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z), (N, B), for z (N, B, latents)."""
        return self.prior().log_prob(z)

    def log_posterior(self, q: Any, z: Tensor) -> Tensor:  # noqa: ANN401 - a Gaussian
        """Return log q(z | x), (N, B), for z (N, B, latents)."""
        return q.log_prob(z)


@dataclass(frozen=True)
class GaussianVAE(AbstractTutorialVAE):
    """The continuous VAE beside the categorical one: 784-400-20-400-784 on MNIST.

    20 normal latent variables, ReLU, Bernoulli likelihood of grey pixels, standard normal prior
    with the KL in closed form. The posterior is a ``torch.distributions.Normal``, and any estimator
    of continuous laws trains it. Objective: see `AbstractTutorialVAE`.

    Args:
        dataset: digits, mnist, fashion-mnist or omniglot.
        latents: number of latent variables.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        binarize: none, threshold, static or dynamic.
        valid: training images held out.
        bound_samples: samples of the importance-weighted bound at the end, 0 for none.
        kl_beta: weight of the KL, >= 0.
        kl_epochs: epochs over which the weight grows from 0, linearly; 0: it is there at once.
        free_bits: nats, >= 0, that the KL of a variable counts for at least.

    Reference:
        Kingma, Welling, ICLR 2014, arXiv:1312.6114.
    """

    latents: int = 20

    name: ClassVar[str] = "gaussian_vae"

    def law(self) -> Gaussian:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a law of one row."""
        zero = torch.zeros(1, self.latents)
        return Gaussian((zero, torch.ones_like(zero)), event_dims=1)

    def _weighted(self, pixels: int) -> GaussianNetwork:
        return GaussianNetwork(pixels, self.hidden, self.latents)
