"""A small latent space as a table: the reconstruction at every code, and exact gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from ..._attach import attach
from ...estimators import AbstractEstimator
from ...expect import expect
from ...laws.categorical import Categorical
from ..variances import Spread
from .vae import CategoricalVAE

LIMIT = 2**27  # numbers in a table of slopes
_ROWS = 2**14  # codes that are decoded at once: 50 MiB for each tensor of MNIST pixels
_NUMBERS = 2**22  # of a block of Jacobians

Objective = Callable[[Tensor], Tensor]


def table_size(latents: int, classes: int, images: int) -> int:
    """Return how many numbers the slopes of a latent space have, for so many images."""
    return classes**latents * images * latents * classes


class Codes:
    r"""The reconstruction term f of a VAE at each of its S codes, for B images.

    A code is decoded once, whatever the number of images: with the logits o(z) of the pixels,
    ``f(z, x) = sum softplus(o) - x . o`` and ``df/dz = J(z)^T (sigmoid(o) - x)``, J the Jacobian of
    the decoder. Called on hard points, it is f by look-up, with that slope.

    Args:
        vae: its decoder.
        x: images (B, pixels).
        block: codes whose Jacobians are held at once; None: as many as fit into 16 MiB.

    Attributes:
        values: f, (S, B).
        slopes: its derivative in the one-hots, (S, B, latents, classes).
    """

    def __init__(self, vae: CategoricalVAE, x: Tensor, *, block: int | None = None) -> None:
        support = vae.prior().support().flatten(1)
        code = support.shape[1]
        block = block or max(1, _NUMBERS // (code * x.shape[1]))

        def decode(z: Tensor) -> tuple[Tensor, Tensor]:
            out: Tensor = vae.decoder(z)
            return out, out

        values: list[Tensor] = []
        slopes: list[Tensor] = []
        for start in range(0, len(support), block):
            with torch.no_grad():
                z = support[start : start + block]
                jacobian, out = vmap(jacfwd(decode, has_aux=True))(z)  # (s, pixels, code)
                values.append(torch.nn.functional.softplus(out).sum(-1, keepdim=True) - out @ x.T)
                mean = torch.einsum("spc,sp->sc", jacobian, out.sigmoid())
                slopes.append(mean.unsqueeze(1) - torch.einsum("spc,bp->sbc", jacobian, x))
        self.values = torch.cat(values)
        self.slopes: Tensor = torch.cat(slopes).unflatten(-1, (vae.latents, vae.classes))
        places = [vae.classes**i for i in reversed(range(vae.latents))]
        self._places = torch.tensor(places, device=x.device)
        self._images = torch.arange(len(x), device=x.device)

    def __call__(self, z: Tensor) -> Tensor:
        """Return f, (..., B), at hard points (..., B, latents, classes)."""
        code = (z.detach().argmax(-1) * self._places).sum(-1)
        values = self.values[code, self._images]
        return attach(values, z, self.slopes[code, self._images]) if z.requires_grad else values

    def gradient(self, logits: Tensor) -> Tensor:
        """Return the exact gradient of E f in the logits, float64 (B, latents, classes).

        For a variable and a class: the sum of ``pi(z) (f(z) - E f)`` over the codes with the class.
        """
        batch, latents, classes = logits.shape
        log_pi = logits.detach().double().log_softmax(-1)
        joint = log_pi.new_zeros(batch, 1)
        for i in range(latents):  # the last variable moves fastest, as in the support
            joint = (joint.unsqueeze(-1) + log_pi[:, i].unsqueeze(1)).flatten(1)
        pi, f = joint.exp(), self.values.double().T
        weighted = pi * (f - (pi * f).sum(-1, keepdim=True))
        cube = weighted.reshape(batch, *(classes,) * latents)
        axes = range(1, latents + 1)
        parts = [cube.sum([j for j in axes if j != i]) if latents > 1 else cube for i in axes]
        return torch.stack(parts, 1)


def hard(estimator: AbstractEstimator) -> bool:
    """Return whether an estimator asks for f at codes alone."""
    return not (estimator.traits.relaxed or estimator.traits.needs_relaxed_points)


def decoded(vae: CategoricalVAE, x: Tensor) -> Objective:
    """Return f of images x at any points (..., B, latents, classes)."""
    return lambda z: vae.reconstruction(z, x)


def gradient_spread(
    f: Objective, logits: Tensor, estimator: AbstractEstimator, *, draws: int, seed: int
) -> Spread:
    """Return mean and variance of an estimator's gradient in the logits, over independent draws.

    Args:
        f: takes points (N, n, B, latents, classes), returns (N, n, B).
        logits: (B, latents, classes).
        estimator: with as many samples for each draw as it needs.
        draws: how many; two where there is no noise.
        seed: of the noise: with one seed, estimators of one kind of noise get the same.
    """
    samples = estimator.traits.min_samples
    if estimator.traits.noise == "none":
        draws = 2
    each = len(logits) * estimator.evaluations(Categorical(logits, event_dims=1), samples)
    generator = torch.Generator(logits.device).manual_seed(seed)
    spread = Spread()
    while spread.count < draws:
        n = min(max(1, _ROWS // each), draws - spread.count)
        leaf = logits.detach().repeat(n, 1, 1, 1).requires_grad_()
        q = Categorical(leaf, event_dims=1)
        with torch.enable_grad():
            total = expect(f, q, estimator, samples=samples, generator=generator).sum()
        spread.add(torch.autograd.grad(total, leaf)[0])
    return spread


def accuracy(exact: Tensor, spread: Spread) -> dict[str, float]:
    """Return how near the mean of some draws is to the exact gradient.

    Args:
        exact: the exact gradient, any shape.
        spread: the draws, of that shape.

    Returns:
        "cosine" of the two; "error/exact" and "error/mean", the norm of their difference in parts
        of the norm of either; "std/mean", the standard deviation of one draw. "corrected cosine"
        and "bias" are "cosine" and "error/exact" without what the noise that is left in the mean
        adds on average; the first may pass 1, and the second is 0 where that is all there is. A
        number whose divisor is zero is left out, and so is the corrected cosine where the noise is
        larger than the mean.
    """
    mean, left = spread.mean, spread.variance / spread.count
    size, reach, error = (math.sqrt(float(v.square().sum())) for v in (exact, mean, mean - exact))
    inner = float((mean * exact).sum())
    found: dict[str, float] = {}
    if size > 0:
        found["error/exact"] = error / size
        found["bias"] = math.sqrt(max(error**2 - left, 0.0)) / size
    if reach > 0:
        found["error/mean"] = error / reach
        found["std/mean"] = math.sqrt(spread.variance) / reach
    if size > 0 and reach > 0:
        found["cosine"] = inner / (size * reach)
    if size > 0 and spread.square > 0:
        found["corrected cosine"] = inner / (size * math.sqrt(spread.square))
    return found
