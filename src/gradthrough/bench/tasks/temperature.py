"""What the temperature does to bias and variance, and sharp laws to importance weights."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...estimators import AbstractEstimator
from ...estimators.checks import check_positive
from ...laws.categorical import Categorical
from ..config import RunConfig
from ..seeds import Seeds
from ..variances import Spread
from ._codes import LIMIT, Codes, Objective, accuracy, decoded, gradient_spread, hard, table_size
from .vae import VAE, network


def rules(pi: Tensor, slopes: Tensor) -> dict[str, Tensor]:
    r"""Return the gradients in the logits of ST, ST / (N pi_D) and ReinMax, for every sample D.

    With g the slope of f at D = e_k: ``J(pi) g``, that times ``1 / (N pi_k)``, and
    ``1/2 [J(pi) g + (g_k - pi . g) (e_k - pi)]``. The closed forms, in float64: no noise draws a
    class of probability 1e-20, yet in the variance of an importance weight it counts most.

    Args:
        pi: float64 (..., N).
        slopes: float64 (..., N, N), of the sample and of the class.

    Returns:
        "st", "st_importance" and "reinmax", (..., N, N), of the sample and of the logit.
    """
    classes = pi.shape[-1]
    law = pi.unsqueeze(-2)
    mean = (law * slopes).sum(-1, keepdim=True)
    st = law * (slopes - mean)
    here = slopes.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    one_hots = torch.eye(classes, dtype=pi.dtype, device=pi.device)
    return {
        "st": st,
        "st_importance": st / (classes * pi.unsqueeze(-1)),
        "reinmax": 0.5 * (st + (here - mean) * (one_hots - law)),
    }


def own_slopes(f: Objective, z: Tensor) -> Tensor:
    """Return the slopes of f in each variable, at each of its classes, the others as they are.

    Args:
        f: takes points (P, B, latents, N), returns (P, B).
        z: one-hots (B, latents, N).

    Returns:
        Float64 (B, latents, N, N): image, variable, the class it is given, the class of the slope.
    """
    batch, latents, classes = z.shape
    points = z.expand(latents, classes, *z.shape).clone()
    one_hots = torch.eye(classes, dtype=z.dtype, device=z.device)
    for i in range(latents):
        points[i, :, :, i] = one_hots.unsqueeze(1)
    points = points.flatten(0, 1).requires_grad_()
    with torch.enable_grad():
        total = f(points).sum()
    (slopes,) = torch.autograd.grad(total, points)
    own = slopes.reshape(latents, classes, batch, latents, classes).diagonal(dim1=0, dim2=3)
    return own.permute(1, 3, 0, 2).double()  # from (class, B, slope, variable)


def variances(
    f: Objective, logits: Tensor, *, backgrounds: int, seed: int
) -> dict[str, tuple[float, float]]:
    r"""Return the variance of the three rules, mean over the images of the trace over the logits.

    Of each variable all classes are summed over, with their probabilities, while the others are
    drawn. The variance is the mean over those draws of the variance within, exact, and the variance
    of the means within. So what rare classes add is there in full, which no number of draws shows.

    Args:
        f: takes points (P, B, latents, N), returns (P, B).
        logits: (B, latents, N).
        backgrounds: draws of the other variables, >= 2.
        seed: of these draws.

    Returns:
        For each rule its variance, and the one that the same draws show without the sum.
    """
    law, pi = Categorical(logits.detach(), event_dims=1), logits.detach().double().softmax(-1)
    generator = torch.Generator(logits.device).manual_seed(seed)
    within: dict[str, float] = {}
    means: dict[str, Spread] = {}
    drawn: dict[str, Spread] = {}
    for _ in range(backgrounds):
        z = law.sample(generator=generator)
        for name, gradients in rules(pi, own_slopes(f, z)).items():
            weighted = pi.unsqueeze(-1) * gradients
            mean = weighted.sum(-2)
            spread = (weighted * (gradients - mean.unsqueeze(-2))).sum()
            within[name] = within.get(name, 0.0) + float(spread) / backgrounds
            means.setdefault(name, Spread()).add(mean.unsqueeze(0))
            picked = (z.double().unsqueeze(-1) * gradients).sum(-2)
            drawn.setdefault(name, Spread()).add(picked.unsqueeze(0))
    images = len(logits)
    return {
        name: ((within[name] + means[name].variance) / images, drawn[name].variance / images)
        for name in within
    }


@dataclass(frozen=True)
class Temperature(VAE):
    r"""A categorical VAE; after its last epoch tau is swept, and q is sharpened.

    The gradient is that of the reconstruction term in the encoder's logits, on one batch of
    training images; a variance is the trace over the logits of one image, its mean over images.

    * For each of `taus`, with the estimator of the run and the same noise: "variance tau=0.5".
      Where the codes can be enumerated, also "bias tau=0.5" and "corrected cosine tau=0.5", to the
      exact gradient and without the noise of `draws` draws, "cosine tau=0.5" with it, and "squared
      gradient", that of the exact one for an image, the scale of the variances.
    * For each of `sharpness`, the logits times that number and the decoder as it is:
      "variance st sharpness=4", the same for "st_importance", which is ST / (N pi_D), and for
      "reinmax", all at tau = 1. Each variable's own classes are summed over, and only the others
      are drawn: the variance of an importance weight comes from classes that are hardly ever
      drawn. "sampled variance st sharpness=4" is what the draws alone show.

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
        taus: temperatures to sweep, > 0.
        sharpness: what the logits are multiplied by, > 0.
        images: in the batch.
        draws: for each tau, >= 2.
        backgrounds: draws of the other variables for each sharpness, >= 2.

    Reference:
        Liu et al., NeurIPS 2023, arXiv:2304.08612; importance weights: Gregor et al., ICML 2014,
        arXiv:1310.8499.
    """

    taus: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 1.0, 1.1, 1.3, 1.5, 2.0)
    sharpness: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    images: int = 100
    draws: int = 512
    backgrounds: int = 16

    name: ClassVar[str] = "temperature"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(images=1, draws=2, backgrounds=2)
        for option in ("taus", "sharpness"):
            numbers = tuple(check_positive(option, x) for x in getattr(self, option))
            object.__setattr__(self, option, numbers)

    def refuses(self, estimator: AbstractEstimator) -> str | None:
        """Return why an estimator cannot be used: it serves no categorical, or has no tau."""
        if (reason := super().refuses(estimator)) is not None:
            return reason
        if not hasattr(estimator, "tau"):
            return f"temperature sweeps tau, which {type(estimator).__name__} does not have"
        return None

    def probe(self, model: nn.Module, config: RunConfig, *, epoch: int) -> dict[str, float]:
        """Return both studies, after the last epoch."""
        found = super().probe(model, config, epoch=epoch)
        if epoch < config.epochs:
            return found
        vae, seeds = network(model), Seeds(config.seed)
        x = next(self.batches("train", seeds, epoch=epoch, size=self.images))
        with torch.no_grad():
            logits = vae.encode(x).logits
        small = table_size(self.latents, self.classes, len(x)) <= LIMIT
        codes, seed = (Codes(vae, x) if small else None), seeds.of("probe", epoch)
        anywhere = decoded(vae, x)
        estimator = config.build_estimator()
        f = codes if codes and hard(estimator) else anywhere
        exact = codes.gradient(logits) if codes else None
        found |= self._swept(f, logits, estimator, exact, seed)
        return found | self._sharpened(codes or anywhere, logits, seed)

    def _swept(
        self,
        f: Objective,
        logits: Tensor,
        estimator: Any,  # noqa: ANN401 - a dataclass with a tau
        exact: Tensor | None,
        seed: int,
    ) -> dict[str, float]:
        """Return what tau does to the estimator of the run."""
        found: dict[str, float] = {}
        if exact is not None:
            found["squared gradient"] = float(exact.square().sum()) / len(logits)
        for tau in self.taus:
            one = dataclasses.replace(estimator, tau=tau)
            spread = gradient_spread(f, logits, one, draws=self.draws, seed=seed)
            found[f"variance tau={tau:g}"] = spread.variance / len(logits)
            numbers = {} if exact is None else accuracy(exact, spread)
            kept = ("bias", "cosine", "corrected cosine")
            found |= {f"{k} tau={tau:g}": numbers[k] for k in kept if k in numbers}
        return found

    def _sharpened(self, f: Objective, logits: Tensor, seed: int) -> dict[str, float]:
        """Return the variances of the three rules as q sharpens, those that float64 can hold."""
        found: dict[str, float] = {}
        for scale in self.sharpness:
            rows = variances(f, logits * scale, backgrounds=self.backgrounds, seed=seed)
            for rule, pair in rows.items():
                for kind, value in zip(("variance", "sampled variance"), pair, strict=True):
                    if math.isfinite(value):
                        found[f"{kind} {rule} sharpness={scale:g}"] = value
        return found
