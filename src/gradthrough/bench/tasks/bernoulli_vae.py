"""The Bernoulli variational auto-encoder on images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._errors import ConfigError
from ...estimators.base import AbstractEstimator
from ...laws.base import Distribution
from ...laws.bernoulli import Bernoulli
from ...rollout import Bound
from ..data import Binarize
from ..options import added
from ._images import AbstractImageVAE, AbstractVAE

Prior = Literal["fixed", "learned"]
Divergence = Literal["analytic", "sampled"]
Link = Literal["logit", "paired"]

_DARKEST = 1e-3  # a pixel that is never lit would have an infinite logit


class BernoulliNetwork(AbstractVAE):
    """Encoder pixels - hidden - latents, decoder the same way back, LeakyReLU with slope 0.3.

    Args:
        pixels: size of an image.
        hidden: widths of the encoder's hidden layers.
        latents: number of latent variables.
        prior: "fixed": Bernoulli(1/2); "learned": its logits are parameters that start there.
        kl: "analytic", or "sampled": see `BernoulliVAE`.
        link: "logit", or "paired": see `BernoulliVAE`.
        centre: (pixels,), subtracted from the encoder's input; None: nothing.
        start: (pixels,), what the decoder's output probabilities start near; None: torch's own.
    """

    point_dims: ClassVar[int] = 1
    centre: Tensor | None

    def __init__(
        self,
        pixels: int,
        hidden: tuple[int, ...],
        latents: int,
        prior: Prior = "fixed",
        kl: Divergence = "analytic",
        link: Link = "logit",
        centre: Tensor | None = None,
        start: Tensor | None = None,
    ) -> None:
        super().__init__(pixels, hidden, latents, nn.LeakyReLU(0.3))
        self.sampled, self.paired = kl == "sampled", link == "paired"
        fair = torch.zeros(latents)
        self.prior_logits: Tensor
        if prior == "learned":
            self.prior_logits = nn.Parameter(fair)
        else:
            self.register_buffer("prior_logits", fair)
        self.register_buffer("centre", centre)
        if start is not None:
            with torch.no_grad():
                cast(nn.Linear, self.decoder[-1]).bias.copy_(start.logit(_DARKEST))

    def encode(self, x: Tensor) -> Bernoulli:
        """Return q(z | x) for images (B, pixels)."""
        h = self.encoder(x if self.centre is None else x - self.centre)
        return Bernoulli(2 * h - 1 if self.paired else h, event_dims=1)

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

    Published numbers differ in what the options `binarize`, `prior`, `kl`, `link`, `centre` and
    `mean_bias` say, so each of them can be changed alone. One difference needs no option: code
    that lists the learned prior of L variables as ``(pi_1 .. pi_L, 1 - pi_1 .. 1 - pi_L)`` and
    compares it with q listed variable by variable. The prior weights of two variables then are
    ``(pi_a, pi_b)`` and ``(1 - pi_a, 1 - pi_b)``. They sum to ``s (2 - s) <= 1``, with
    ``s = pi_a + pi_b``, so what is reported is an upper bound on -ELBO with the learned prior; at
    ``pi = 1/2`` it is -ELBO with the fixed one. At its best it lies between the two.

    Args:
        dataset: digits, mnist, fashion-mnist or omniglot.
        latents: number of latent variables.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        binarize: none, threshold, static or dynamic.
        valid: training images held out.
        bound_samples: samples of the importance-weighted bound at the end, 0 for none.
        prior: fixed at 1/2, or learned with the model's optimizer.
        kl: analytic, or sampled with the rest of the ELBO.
        link: what the encoder's output h is: logit, the logit of q; or paired, the logit of 1,
            with 1 - h that of 0, so that q = sigmoid(2h - 1).
        centre: subtract the mean training image from the encoder's input.
        mean_bias: start the decoder's output bias at the logits of the mean training image.

    Reference:
        Sizes and protocol: Shi et al., NeurIPS 2022, arXiv:2202.09497. `centre` and `mean_bias`:
        Dong, Mnih, Tucker, NeurIPS 2020, arXiv:2006.10680; Dimitriev, Zhou, ICML 2021,
        arXiv:2105.14141. `link`: Liu et al., NeurIPS 2023, arXiv:2304.08612.
    """

    dataset: str = "mnist"
    latents: int = 200
    hidden: tuple[int, ...] = (200, 200)
    binarize: Binarize = "dynamic"
    valid: int = 10_000
    bound_samples: int = 100
    prior: Prior = "fixed"
    kl: Divergence = "analytic"
    link: Link = added("logit")  # noqa: RUF009 - added() makes a field
    centre: bool = added(False)
    mean_bias: bool = added(False)

    name: ClassVar[str] = "bernoulli_vae"

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = {"prior": Prior, "kl": Divergence, "link": Link}
        for option, known in ((name, get_args(kind)) for name, kind in kinds.items()):
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
        mean = self.data.train.mean(0).cpu() if self.centre or self.mean_bias else None
        return BernoulliNetwork(
            pixels,
            self.hidden,
            self.latents,
            self.prior,
            self.kl,
            self.link,
            mean if self.centre else None,
            mean if self.mean_bias else None,
        )
