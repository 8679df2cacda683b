"""What the variational auto-encoders of images share: networks, data, metrics and pictures."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._errors import DomainError
from ...laws.base import Distribution
from ...rollout import Bound
from ..data import Binarize, ImageData, load
from ..seeds import Seeds
from ..task import AbstractTask, Metric, bare


class AbstractVAE(nn.Module, abc.ABC):
    """Encoder pixels - hidden - code, decoder the same way back; what lies between is abstract.

    Args:
        pixels: size of an image.
        hidden: widths of the encoder's hidden layers.
        code: size of what the encoder puts out and the decoder takes.
        activation: between two layers.
    """

    point_dims: ClassVar[int]  # how many trailing dims of z are one code

    def __init__(
        self, pixels: int, hidden: tuple[int, ...], code: int, activation: nn.Module
    ) -> None:
        super().__init__()
        self.encoder = _mlp((pixels, *hidden, code), activation)
        self.decoder = _mlp((code, *reversed(hidden), pixels), activation)

    def decode_from(self, size: int, *before: nn.Module) -> None:
        """Let the decoder take so many numbers instead of a code, behind what comes before it."""
        first, *others = self.decoder
        width = cast(nn.Linear, first).out_features
        self.decoder = nn.Sequential(*before, nn.Linear(size, width), *others)

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Distribution:
        """Return q(z | x) for images (B, pixels)."""

    @abc.abstractmethod
    def prior(self) -> Distribution:
        """Return p(z), a single row."""

    @abc.abstractmethod
    def kl(self, q: Distribution) -> Tensor:
        """Return KL(q || p) in nats, (B,)."""

    @abc.abstractmethod
    def log_prior(self, z: Tensor) -> Tensor | float:
        """Return log p(z), (N, B) or one number that holds for every z."""

    @abc.abstractmethod
    def log_posterior(self, q: Distribution, z: Tensor) -> Tensor:
        """Return log q(z | x), (N, B), for z (N, B, ...)."""

    def decode(self, z: Tensor) -> Tensor:
        """Return the pixels' probabilities (..., pixels) for z."""
        return self.decoder(z.flatten(-self.point_dims)).sigmoid()

    def reconstruction(self, z: Tensor, x: Tensor) -> Tensor:
        """Return -log p(x | z) in nats, (N, B), for z (N, B, ...)."""
        out = self.decoder(z.flatten(-self.point_dims))
        bce = F.binary_cross_entropy_with_logits(out, x.expand_as(out), reduction="none")
        return bce.sum(-1)

    def forward(self, x: Tensor, expect: Bound) -> Tensor:
        """Return the negative ELBO (B,); only the reconstruction goes through the estimator."""
        q = self.encode(x)
        kl = self.kl(q)
        return expect(lambda z: self.reconstruction(z, x), q) + kl


def _mlp(sizes: tuple[int, ...], activation: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class AbstractImageVAE(AbstractTask):
    """A VAE of images with Bernoulli pixels: one stochastic layer, whatever its family.

    Args:
        dataset: digits, mnist, fashion-mnist or omniglot.
        latents: number of latent variables.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        binarize: none, threshold, static or dynamic.
        valid: training images held out.
        bound_samples: samples of the importance-weighted bound at the end, 0 for none.
    """

    dataset: str
    latents: int
    hidden: tuple[int, ...]
    binarize: Binarize
    valid: int
    bound_samples: int

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("neg_elbo", "nats", "lower", "-ELBO"),
        Metric("neg_bound", "nats", "lower", "-IW bound"),
        Metric("kl", "nats", "neither", "KL"),
    )

    def __post_init__(self) -> None:
        self._at_least(latents=1, valid=0, bound_samples=0)
        object.__setattr__(self, "hidden", tuple(self.hidden))

    def _at_least(self, **least: int) -> None:
        for option, bound in least.items():
            if getattr(self, option) < bound:
                raise DomainError(
                    f"{option} must be at least {bound}, but is {getattr(self, option)}."
                )

    @abc.abstractmethod
    def _network(self, pixels: int) -> AbstractVAE:
        """Return the model with fresh weights from torch's global state."""

    @functools.cached_property
    def _held(self) -> dict[str, ImageData]:
        return {}

    @property
    def data(self) -> ImageData:
        """The images, on the device that `prepare` was given."""
        if "data" not in self._held:
            self.prepare(torch.device("cpu"))
        return self._held["data"]

    def prepare(self, device: torch.device) -> None:
        """Load the images and put them on the device."""
        held = load(self.dataset, binarize=self.binarize, valid=self.valid)
        self._held["data"] = held.to(device)

    def model(self, seeds: Seeds) -> AbstractVAE:
        """Return a model with torch's default initialisation."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.of("init"))
            return self._network(self.data.shape[0] * self.data.shape[1])

    def batches(self, split: str, seeds: Seeds, *, epoch: int, size: int) -> Iterator[Tensor]:
        """Yield images (B, pixels); the last batch may be smaller."""
        images: Tensor = getattr(self.data, split)
        device = images.device
        generator = torch.Generator(device).manual_seed(seeds.of("binarize", split, epoch))
        if split == "train":
            order = torch.Generator().manual_seed(seeds.of("order", epoch))
            rows = torch.randperm(len(images), generator=order).to(device)
        else:
            rows = torch.arange(len(images), device=device)
        for start in range(0, len(images), size):
            yield self.data.prepare(images[rows[start : start + size]], generator=generator)

    def losses(self, model: nn.Module, batch: Tensor, expect: Bound) -> Tensor:
        """Return the negative ELBO of each image."""
        return model(batch, expect)

    def latent(self, model: nn.Module, batch: Tensor) -> Distribution:
        """Return q(z | x)."""
        return bare(model).encode(batch)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, seeds: Seeds, *, final: bool = False
    ) -> dict[str, float]:
        """Return -ELBO with one exact sample for each image and its KL; `final`: the bound."""
        images: Tensor = getattr(self.data, split)
        if not len(images):
            return {}
        vae: AbstractVAE = bare(model)
        generator = torch.Generator(images.device)
        batches = self.batches(split, seeds, epoch=0, size=500)
        if final:
            generator.manual_seed(seeds.of("bound", split))
            if not self.bound_samples:
                return {}
            bounds = [self._bound(vae, x, generator).sum() for x in batches]
            return {"neg_bound": float(torch.stack(bounds).sum()) / len(images)}
        generator.manual_seed(seeds.of("evaluate", split))
        elbo = divergence = 0.0
        for x in batches:
            q = vae.encode(x)
            kl = vae.kl(q)
            z = q.sample(generator=generator).unsqueeze(0)
            elbo += float((vae.reconstruction(z, x)[0] + kl).sum())
            divergence += float(kl.sum())
        return {"neg_elbo": elbo / len(images), "kl": divergence / len(images)}

    def _bound(self, vae: AbstractVAE, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return -log 1/k sum_i p(x, z_i) / q(z_i | x), (B,), in chunks of the samples."""
        q, k = vae.encode(x), self.bound_samples
        parts: list[Tensor] = []
        for n in [10] * (k // 10) + ([k % 10] if k % 10 else []):
            rows = q.expand(n)
            z = rows.sample(generator=generator)
            joint = vae.log_prior(z) - vae.reconstruction(z, x)
            parts.append(joint - vae.log_posterior(rows, z))
        return math.log(k) - torch.cat(parts).logsumexp(0)

    @torch.no_grad()
    def pictures(self, model: nn.Module, seeds: Seeds) -> dict[str, Tensor]:
        """Return test images above their reconstructions, and samples of the prior."""
        vae: AbstractVAE = bare(model)
        height, width = self.data.shape
        images = self.data.test[:16]
        generator = torch.Generator(images.device).manual_seed(seeds.of("pictures"))
        x = self.data.prepare(images, generator=generator)
        prior = vae.prior().expand(64)
        grids = {
            "reconstructions": torch.cat(
                (x, vae.decode(vae.encode(x).sample(generator=generator)))
            ),
            "samples": vae.decode(prior.sample(generator=generator)),
        }
        return {name: _tile(rows, height, width) for name, rows in grids.items()}


def _tile(rows: Tensor, height: int, width: int, columns: int = 16) -> Tensor:
    grid = rows.reshape(-1, columns, height, width)
    return grid.permute(0, 2, 1, 3).reshape(-1, columns * width).cpu()
