"""How near estimators come to the exact gradient, on a VAE whose codes can be enumerated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..._errors import ConfigError
from ...estimators import ESTIMATORS, AbstractEstimator, estimator
from ...estimators.checks import check_positive
from ..config import RunConfig
from ..seeds import Seeds
from ._codes import LIMIT, Codes, accuracy, decoded, gradient_spread, hard, table_size
from .vae import VAE, network


@dataclass(frozen=True)
class GradientAccuracy(VAE):
    r"""A categorical VAE of few codes; estimators are held against the exact gradient on its way.

    The model trains with the estimator of its run. What is probed is the gradient of the
    reconstruction term in the encoder's logits, on one batch of training images, drawn by the seed
    and the epoch: for each of `estimators` the mean over `draws` independent draws, with numbers
    such as "cosine reinmax", "error/exact reinmax" and "std/mean reinmax". All estimators draw from
    one seed. "cosine" and the errors are those of the mean of the draws, as published, so they hold
    its noise too; "corrected cosine" and "bias" do not. A number whose divisor is zero is left out:
    there are codes so peaked that the mean of the draws is.

    Args:
        dataset: digits, mnist, fashion-mnist or omniglot.
        latents: number of latent variables.
        classes: classes of each.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        binarize: none, threshold, static or dynamic.
        valid: training images held out.
        bound_samples: samples of the importance-weighted bound at the end, 0 for none.
        code: onehot, or corners: see `VAE`.
        slope: of the activation below zero.
        bound_images: how many images the bound at the end is for; None: all.
        variance_minibatches: see `VAE`.
        variance_draws: see `VAE`.
        variance_batch: see `VAE`.
        estimators: keys of those that are probed, with their defaults but for the temperature.
        tau: their temperature, > 0.
        probe_epochs: after which epochs; one that is not evaluated is not probed.
        images: in the batch.
        draws: of each estimator, >= 2.

    Reference:
        Liu et al., NeurIPS 2023, arXiv:2304.08612.
    """

    estimators: tuple[str, ...] = ("reinmax", "reinmax_rao", "gst", "stgs", "st", "gumbel_rao")
    tau: float = 1.0
    probe_epochs: tuple[int, ...] = (1, 5, 10, 20, 30, 40, 50)
    images: int = 100
    draws: int = 512

    name: ClassVar[str] = "gradient_accuracy"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(images=1, draws=2)
        object.__setattr__(self, "tau", check_positive("tau", self.tau))  # 1 is 1.0: one key
        object.__setattr__(self, "estimators", tuple(self.estimators))
        object.__setattr__(self, "probe_epochs", tuple(self.probe_epochs))
        if table_size(self.latents, self.classes, self.images) > LIMIT:
            raise ConfigError(
                f"{self.classes} classes x {self.latents} latents are "
                f"{self.classes**self.latents:,} codes for each of {self.images} images, too many "
                "for the exact gradient. Take fewer latents, classes or images."
            )
        for key in self.estimators:
            reason = self.refuses(self._probed(key))
            if reason is not None:
                raise ConfigError(f"estimators has {key!r}: {reason}")

    def _probed(self, key: str) -> AbstractEstimator:
        known = getattr(ESTIMATORS.get(key), "__dataclass_fields__", {})
        return estimator(key, **({"tau": self.tau} if "tau" in known else {}))

    def probe(self, model: nn.Module, config: RunConfig, *, epoch: int) -> dict[str, float]:
        """Return the accuracy of each estimator, at the epochs where it is wanted."""
        found = super().probe(model, config, epoch=epoch)
        if epoch not in self.probe_epochs:
            return found
        vae, seeds = network(model), Seeds(config.seed)
        x = next(self.batches("train", seeds, epoch=epoch, size=self.images))
        with torch.no_grad():
            logits = vae.encode(x).logits
        codes = Codes(vae, x)
        exact, seed = codes.gradient(logits), seeds.of("probe", epoch)
        for key in self.estimators:
            one = self._probed(key)
            f = codes if hard(one) else decoded(vae, x)
            spread = gradient_spread(f, logits, one, draws=self.draws, seed=seed)
            found |= {f"{name} {key}": value for name, value in accuracy(exact, spread).items()}
        return found
