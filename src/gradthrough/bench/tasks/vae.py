"""The categorical variational auto-encoder on images."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._errors import DomainError
from ...distributions.categorical import Categorical
from ...estimators.base import AbstractEstimator
from ...rollout import Bound
from ..data import Binarize, ImageData, load
from ..seeds import Seeds
from ..task import AbstractTask, Metric


def _mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class CategoricalVAE(nn.Module):
    """Encoder pixels - hidden - (latents x classes), decoder the same way back.

    Args:
        pixels: size of an image.
        hidden: widths of the encoder's hidden layers.
        latents: number of latent variables.
        classes: classes of each.
    """

    def __init__(self, pixels: int, hidden: tuple[int, ...], latents: int, classes: int) -> None:
        super().__init__()
        code = latents * classes
        self.latents, self.classes = latents, classes
        self.encoder = _mlp((pixels, *hidden, code))
        self.decoder = _mlp((code, *reversed(hidden), pixels))

    def encode(self, x: Tensor) -> Categorical:
        """Return q(z | x) for images (B, pixels)."""
        logits = self.encoder(x).unflatten(-1, (self.latents, self.classes))
        return Categorical(logits, event_dims=1)

    def decode(self, z: Tensor) -> Tensor:
        """Return the pixels' probabilities (..., pixels) for z (..., latents, classes)."""
        return self.decoder(z.flatten(-2)).sigmoid()

    def reconstruction(self, z: Tensor, x: Tensor) -> Tensor:
        """Return -log p(x | z) in nats, (N, B), for z (N, B, latents, classes)."""
        out = self.decoder(z.flatten(-2))
        bce = F.binary_cross_entropy_with_logits(out, x.expand_as(out), reduction="none")
        return bce.sum(-1)

    def forward(self, x: Tensor, expect: Bound) -> Tensor:
        """Return the negative ELBO (B,); only the reconstruction goes through the estimator."""
        q = self.encode(x)
        kl = self.latents * math.log(self.classes) - q.entropy()
        return expect(lambda z: self.reconstruction(z, x), q) + kl


@dataclass(frozen=True)
class VAE(AbstractTask):
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
    classes: int = 8
    hidden: tuple[int, ...] = (512, 256)
    binarize: Binarize = "none"
    valid: int = 0
    bound_samples: int = 100

    name: ClassVar[str] = "vae"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("neg_elbo", "nats", "lower", "-ELBO"),
        Metric("neg_bound", "nats", "lower", "-IW bound"),
        Metric("kl", "nats", "neither", "KL"),
    )

    def __post_init__(self) -> None:
        for option, least in (("latents", 1), ("classes", 2), ("valid", 0), ("bound_samples", 0)):
            if getattr(self, option) < least:
                raise DomainError(
                    f"{option} must be at least {least}, but is {getattr(self, option)}."
                )
        object.__setattr__(self, "hidden", tuple(self.hidden))

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

    def model(self, seeds: Seeds) -> CategoricalVAE:
        """Return a model with torch's default initialisation."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.of("init"))
            pixels = self.data.shape[0] * self.data.shape[1]
            return CategoricalVAE(pixels, self.hidden, self.latents, self.classes)

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

    def latent(self, model: nn.Module, batch: Tensor) -> Categorical:
        """Return q(z | x)."""
        return self._bare(model).encode(batch)

    def refuses(self, estimator: AbstractEstimator) -> str | None:
        """Enumerate needs a small latent space."""
        limit = getattr(estimator, "limit", None)
        if limit is not None and self.classes**self.latents > limit:
            return f"{self.classes}^{self.latents} points are more than its limit of {limit:,}"
        return None

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, seeds: Seeds, *, final: bool = False
    ) -> dict[str, float]:
        """Return -ELBO with one exact sample for each image and its KL; `final`: the bound."""
        images: Tensor = getattr(self.data, split)
        if not len(images):
            return {}
        vae = self._bare(model)
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
            kl = self.latents * math.log(self.classes) - q.entropy()
            z = q.sample(generator=generator).unsqueeze(0)
            elbo += float((vae.reconstruction(z, x)[0] + kl).sum())
            divergence += float(kl.sum())
        return {"neg_elbo": elbo / len(images), "kl": divergence / len(images)}

    def _bound(self, vae: CategoricalVAE, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return -log 1/k sum_i p(x, z_i) / q(z_i | x), (B,), in chunks of the samples."""
        q, k = vae.encode(x), self.bound_samples
        prior = self.latents * math.log(self.classes)
        parts: list[Tensor] = []
        for n in [10] * (k // 10) + ([k % 10] if k % 10 else []):
            rows = q.expand(n)
            z = rows.sample(generator=generator)
            parts.append(-vae.reconstruction(z, x) - prior - rows.log_prob(z))
        return math.log(k) - torch.cat(parts).logsumexp(0)

    @torch.no_grad()
    def pictures(self, model: nn.Module, seeds: Seeds) -> dict[str, Tensor]:
        """Return test images above their reconstructions, and samples of the prior."""
        vae, (height, width) = self._bare(model), self.data.shape
        images = self.data.test[:16]
        generator = torch.Generator(images.device).manual_seed(seeds.of("pictures"))
        x = self.data.prepare(images, generator=generator)
        prior = Categorical(x.new_zeros(64, self.latents, self.classes), event_dims=1)
        grids = {
            "reconstructions": torch.cat(
                (x, vae.decode(vae.encode(x).sample(generator=generator)))
            ),
            "samples": vae.decode(prior.sample(generator=generator)),
        }
        return {name: _tile(rows, height, width) for name, rows in grids.items()}

    def _bare(self, model: nn.Module) -> CategoricalVAE:
        inner = getattr(model, "module", model)
        return inner  # pyright: ignore[reportReturnType]


def _tile(rows: Tensor, height: int, width: int, columns: int = 16) -> Tensor:
    grid = rows.reshape(-1, columns, height, width)
    return grid.permute(0, 2, 1, 3).reshape(-1, columns * width).cpu()
