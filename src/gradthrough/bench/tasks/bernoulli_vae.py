"""The Bernoulli variational auto-encoder on images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._errors import ConfigError
from ...distributions.base import Distribution
from ...distributions.bernoulli import Bernoulli
from ...estimators.base import AbstractEstimator
from ...rollout import Bound
from ..data import Binarize
from ._images import AbstractImageVAE, AbstractVAE

Prior = Literal["fixed", "learned"]
Divergence = Literal["analytic", "sampled"]


class BernoulliNetwork(AbstractVAE):
    """Encoder pixels - hidden - latents, decoder the same way back, LeakyReLU with slope 0.3.

    Args:
        pixels: size of an image.
        hidden: widths of the encoder's hidden layers.
        latents: number of latent variables.
        prior: "fixed": Bernoulli(1/2); "learned": its logits are parameters that start there.
        kl: "analytic", or "sampled": see `BernoulliVAE`.
    """

    point_dims: ClassVar[int] = 1

    def __init__(
        self,
        pixels: int,
        hidden: tuple[int, ...],
        latents: int,
        prior: Prior = "fixed",
        kl: Divergence = "analytic",
    ) -> None:
        super().__init__(pixels, hidden, latents, nn.LeakyReLU(0.3))
        self.sampled = kl == "sampled"
        start = torch.zeros(latents)
        self.prior_logits: Tensor
        if prior == "learned":
            self.prior_logits = nn.Parameter(start)
        else:
            self.register_buffer("prior_logits", start)

    def encode(self, x: Tensor) -> Bernoulli:
        """Return q(z | x) for images (B, pixels)."""
        return Bernoulli(self.encoder(x), event_dims=1)

    def prior(self) -> Bernoulli:
        """Return the law of one row."""
        return Bernoulli(self.prior_logits, event_dims=1)

    # In closed form: the library's own formulas, made for any number of classes, cost a quarter of
    # a training step here.

    def kl(self, q: Distribution) -> Tensor:
        """Return KL(q || p) in nats, (B,)."""
        x, a = q.logits.float(), self.prior_logits
        return (x.sigmoid() * (x - a) - F.softplus(x) + F.softplus(a)).sum(-1)

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z), (N, B), for z (N, B, latents)."""
        return _log_prob(self.prior_logits, z)

    def log_posterior(self, q: Distribution, z: Tensor) -> Tensor:
        """Return log q(z | x), (N, B), for z (N, B, latents)."""
        return _log_prob(q.logits, z)

    def forward(self, x: Tensor, expect: Bound) -> Tensor:
        """Return the negative ELBO (B,)."""
        if not self.sampled:
            return super().forward(x, expect)
        q = self.encode(x)
        # Without its graph: where the logits enter f itself, their gradient is that of log q at a
        # sample of q, whose mean is zero.
        fixed = q.with_logits(q.logits.detach())

        def cost(z: Tensor) -> Tensor:
            return self.reconstruction(z, x) + self.log_posterior(fixed, z) - self.log_prior(z)

        return expect(cost, q)


def _log_prob(logits: Tensor, z: Tensor) -> Tensor:
    """Return sum z x - softplus(x): the log-probability at the corners, affine between them."""
    x = logits.float()
    return (z.float() * x).sum(-1) - F.softplus(x).sum(-1)


@dataclass(frozen=True)
class BernoulliVAE(AbstractImageVAE):
    r"""Bernoulli VAE of one stochastic layer, with Bernoulli likelihood.

    With ``kl="sampled"`` f is the whole negative ELBO of a sample,
    ``log q(z|x) - log p(z) - log p(x|z)``, and ``log q`` is a reward alone: its logits are cut
    from the graph, since the score ``d log q(z) / d logits`` that is left out has mean zero under
    q. Off the corners of the cube ``log q`` and ``log p`` are their affine extensions, so f has
    a gradient in z, and estimators that evaluate it at relaxed points as a control variate stay
    unbiased. One whose *value* is f at a soft sample is refused: ``log q`` has no meaning there.

    Args:
        dataset: digits, mnist, fashion-mnist or omniglot.
        latents: number of latent variables.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        binarize: none, threshold, static or dynamic.
        valid: training images held out.
        bound_samples: samples of the importance-weighted bound at the end, 0 for none.
        prior: fixed at 1/2, or learned with the model's optimizer.
        kl: analytic, or sampled with the rest of the ELBO.

    Reference:
        Sizes and protocol: Shi et al., NeurIPS 2022, arXiv:2202.09497.
    """

    dataset: str = "mnist"
    latents: int = 200
    hidden: tuple[int, ...] = (200, 200)
    binarize: Binarize = "dynamic"
    valid: int = 10_000
    bound_samples: int = 100
    prior: Prior = "fixed"
    kl: Divergence = "analytic"

    name: ClassVar[str] = "bernoulli_vae"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, known in (("prior", get_args(Prior)), ("kl", get_args(Divergence))):
            if getattr(self, option) not in known:
                raise ConfigError(
                    f"{option} is {getattr(self, option)!r}, but must be {' or '.join(known)}."
                )

    def refuses(self, estimator: AbstractEstimator) -> str | None:
        """A sampled KL needs samples that have a probability."""
        if self.kl == "sampled" and estimator.traits.relaxed:
            why = "kl='sampled' needs log q at the sample, which a soft sample does not have"
            return super().refuses(estimator) or why
        return super().refuses(estimator)

    def law(self) -> Bernoulli:
        """Return a law of one row."""
        return Bernoulli(torch.zeros(1, self.latents), event_dims=1)

    def _network(self, pixels: int) -> BernoulliNetwork:
        return BernoulliNetwork(pixels, self.hidden, self.latents, self.prior, self.kl)
