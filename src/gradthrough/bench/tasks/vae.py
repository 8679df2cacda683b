"""The categorical variational auto-encoder on images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..._errors import ConfigError, DomainError
from ...laws.base import Distribution
from ...laws.categorical import Categorical
from ..config import RunConfig
from ..data import Binarize
from ..optimizers import tempered
from ..options import added
from ..seeds import Seeds
from ..task import bare
from ..variances import gradient_variances
from ._images import AbstractImageVAE, AbstractVAE

Code = Literal["onehot", "corners"]


def corners(classes: int) -> Tensor:
    """Return the corners of {-1, 1}^m, one for each of 2^m classes, (classes, m).

    Example:
        >>> from gradthrough.bench.tasks.vae import corners
        >>> corners(4).tolist()
        [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    bits = [*reversed(range(classes.bit_length() - 1))]
    return torch.tensor([[2.0 * (k >> bit & 1) - 1.0 for bit in bits] for k in range(classes)])


class _Corners(nn.Module):
    """One-hots of several variables, flat, to the corners that they stand for."""

    corners: Tensor

    def __init__(self, latents: int, classes: int) -> None:
        super().__init__()
        self.shape = (latents, classes)
        self.register_buffer("corners", corners(classes), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        return (z.reshape(*z.shape[:-1], *self.shape) @ self.corners).flatten(-2)


class CategoricalVAE(AbstractVAE):
    """Encoder pixels - hidden - (latents x classes), decoder back; uniform prior.

    Args:
        pixels: size of an image.
        hidden: widths of the encoder's hidden layers.
        latents: number of latent variables.
        classes: classes of each.
        code: what the decoder takes: see `VAE`.
        slope: of the activation below zero.
    """

    point_dims: ClassVar[int] = 2

    def __init__(
        self,
        pixels: int,
        hidden: tuple[int, ...],
        latents: int,
        classes: int,
        code: Code = "onehot",
        slope: float = 0.0,
    ) -> None:
        activation = nn.LeakyReLU(slope) if slope else nn.ReLU()
        super().__init__(pixels, hidden, latents * classes, activation)
        self.latents, self.classes = latents, classes
        if code == "corners":
            bits = latents * (classes.bit_length() - 1)
            self.decode_from(bits, _Corners(latents, classes))

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

    With ``code="corners"`` the decoder does not see the one-hots, but the corner of {-1, 1}^m that
    each variable of 2^m classes stands for, so that 240 variables of 2 classes, 120 of 4, 80 of 8
    and 60 of 16 give it the same number of inputs. The encoder puts out a logit for each class, as
    it does for one-hots.

    Args:
        dataset: digits, mnist, fashion-mnist or omniglot.
        latents: number of latent variables.
        classes: classes of each.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        binarize: none, threshold, static or dynamic.
        valid: training images held out; the published protocol holds out none.
        bound_samples: samples of the importance-weighted bound at the end, 0 for none.
        code: onehot, or corners, for numbers of classes that are powers of two.
        slope: of the activation below zero, in [0, 1): 0 is ReLU, else LeakyReLU.
        bound_images: how many images of a split the bound at the end is for, the first ones; None:
            all.
        variance_minibatches: minibatches on which each evaluation measures the encoder's gradient,
            0 for none: see `gradient_variances`.
        variance_draws: draws of the noise on each of them, >= 2.
        variance_batch: images in each of them.

    Reference:
        Jang, Gu, Poole, ICLR 2017, arXiv:1611.01144; sizes and protocol: Liu et al., NeurIPS
        2023, arXiv:2304.08612; corners and parts of the variance: Paulus, Maddison, Krause, ICLR
        2021, arXiv:2010.04838.
    """

    dataset: str = "mnist"
    latents: int = 4
    hidden: tuple[int, ...] = (512, 256)
    binarize: Binarize = "none"
    valid: int = 0
    bound_samples: int = 100
    classes: int = 8
    code: Code = added("onehot")  # noqa: RUF009 - added() makes a field
    slope: float = added(0.0)
    bound_images: int | None = added(None)
    variance_minibatches: int = added(0)
    variance_draws: int = added(10)
    variance_batch: int = added(20)

    name: ClassVar[str] = "vae"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(classes=2, variance_minibatches=0, variance_draws=2, variance_batch=1)
        if self.bound_images is not None:
            self._at_least(bound_images=1)
        if self.variance_minibatches == 1:
            raise DomainError("variance_minibatches is 1, but a variance needs at least 2.")
        if self.code not in get_args(Code):
            raise ConfigError(f"code is {self.code!r}, but must be onehot or corners.")
        if self.code == "corners" and self.classes.bit_count() > 1:
            raise DomainError(
                f"classes is {self.classes}, but code='corners' needs a power of two: 2, 4, 8, 16."
            )
        if not 0 <= self.slope < 1:
            raise DomainError(f"slope must be in [0, 1), but is {self.slope}.")

    def law(self) -> Categorical:
        """Return a law of one row."""
        return Categorical(torch.zeros(1, self.latents, self.classes), event_dims=1)

    def evaluate(
        self, model: nn.Module, split: str, seeds: Seeds, *, final: bool = False
    ) -> dict[str, float]:
        """Return -ELBO with one exact sample for each image and its KL; `final`: the bound."""
        if not final or self.bound_images is None:
            return super().evaluate(model, split, seeds, final=final)
        n, data = self.bound_images, self.data
        few = replace(self, bound_images=None)
        few._held["data"] = replace(data, valid=data.valid[:n], test=data.test[:n])
        return few.evaluate(model, split, seeds, final=True)

    def probe(self, model: nn.Module, config: RunConfig, *, epoch: int) -> dict[str, float]:
        """Return the parts of the variance of the encoder's gradient, if they are asked for."""
        if not self.variance_minibatches:
            return {}
        vae, seeds = network(model), Seeds(config.seed)
        noise = seeds.of("variances", epoch, "noise")
        return gradient_variances(
            self,
            vae,
            self._minibatches(seeds, epoch),
            tempered(config.build_estimator(), config, epoch - 1),
            list(vae.encoder.parameters()),
            draws=self.variance_draws,
            samples=config.samples or 1,
            generator=torch.Generator(self.data.train.device).manual_seed(noise),
        )

    def _minibatches(self, seeds: Seeds, epoch: int) -> Iterator[Tensor]:
        """Yield independent minibatches of different training images."""
        images = self.data.train
        order = torch.Generator().manual_seed(seeds.of("variances", epoch, "order"))
        generator = torch.Generator(images.device)
        generator.manual_seed(seeds.of("variances", epoch, "binarize"))
        for _ in range(self.variance_minibatches):
            rows = torch.randperm(len(images), generator=order)[: self.variance_batch]
            yield self.data.prepare(images[rows.to(images.device)], generator=generator)

    def _network(self, pixels: int) -> CategoricalVAE:
        return CategoricalVAE(
            pixels, self.hidden, self.latents, self.classes, self.code, self.slope
        )


def network(model: nn.Module) -> CategoricalVAE:
    """Return the model itself, without what trains it around it."""
    return bare(model)
