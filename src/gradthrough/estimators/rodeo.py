"""RODEO: control variates from discrete Stein operators."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from .._errors import ShapeError, UnsupportedError
from ..controls import Surrogate
from ..kernels.dispatch import probabilities
from ..laws.base import Distribution
from .base import (
    BERNOULLI,
    AbstractScore,
    Draw,
    Estimate,
    Traits,
    learning_signal,
    leave_one_out,
    send,
    spread,
    total,
)
from .checks import Scalar, check_scalar, scalar_like


@dataclass(frozen=True, eq=False)
class Rodeo(AbstractScore):
    r"""RODEO: RLOO with Stein control variates made from surrogates of f. Unbiased for every f.

    The Gibbs operator ``(A h)(x) = sum_i P(flip i)(h(x with i flipped) - h(x))``, with
    P(flip i) = p_i (1 - x_i) + (1 - p_i) x_i, has E (A h)(x) = 0 for every h. The gradient in the
    Bernoulli logits is, s(x) = x - p,
    ``1/N sum_k (f_k - mean of f_j + alpha (A h0_j)(x_j), j != k) s(x_k) + beta (A h1_k s)(x_k)``.
    The surrogates h0_k, h1_k look at the other samples alone: at y, the mean over j != k of
    ``H(f'(x_j) . (y - p), f(x_j) + f'(x_j) . (p - x_j))``, the two parts of the Taylor expansion
    of f around x_j. f is evaluated N times; the sum over the d flips costs O(d) evaluations of H
    for each pair of samples. (The paper divides the operator by d, and splits the expansion at x_j
    instead of p; this way alpha and beta do not depend on d, and the first part alone, which needs
    no training, is already a good surrogate.)

    Args:
        alpha: scale of the control variate in the baseline.
        beta: scale of the one beside the score. Both numbers or tensors of one number, which
            ``Estimate.tuning_loss`` then trains; alpha = beta = 0 is RLOO.
        surrogate: H, a callable (..., 2) -> (..., 2), also trained, for instance a
            ``gradthrough.controls.Surrogate``. None: the first part, ``f'(x_j) . (y - p)``, for
            both.

    Raises:
        DomainError: fewer than 2 samples.
        UnsupportedError: f does not depend differentiably on its points.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> q = gt.Bernoulli(logits, event_dims=1)
        >>> gt.expect(lambda b: b.sum(-1) ** 2, q, gt.Rodeo(), samples=2).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Shi, Zhou, Hwang, Titsias, Mackey, NeurIPS 2022, arXiv:2202.09497.
    """

    alpha: Scalar = 1.0
    beta: Scalar = 0.5
    surrogate: Callable[[Tensor], Tensor] | None = None

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=BERNOULLI,
        reference="Shi et al., NeurIPS 2022, arXiv:2202.09497",
        exact_for="all",
        min_samples=2,
        needs_point_gradients=True,
        scalars=("alpha", "beta"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_scalar("alpha", self.alpha))
        object.__setattr__(self, "beta", check_scalar("beta", self.beta))
        if self.surrogate is not None and not callable(self.surrogate):
            raise UnsupportedError(
                "the surrogate must be a callable (..., 2) -> (..., 2), for instance a "
                f"gradthrough.controls.Surrogate(), but a {type(self.surrogate).__name__} came."
            )

    def learned(self, dist: Distribution) -> tuple[Self, nn.Module]:
        """Return a copy with learned scales and surrogate, a fresh network if none was given."""
        scaled, owner = super().learned(dist)
        net = self.surrogate
        if net is None:
            net = Surrogate().to(dist.logits.device)
        if not isinstance(net, nn.Module):  # any callable, which has no parameters to own
            return scaled, owner
        return replace(scaled, surrogate=net), nn.ModuleDict({"scales": owner, "surrogate": net})

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw samples; the gradient of f is wanted at each."""
        p = probabilities(dist.row.class_logits().detach())
        return super().draw(dist, noise)._replace(aux=(p,), gradients="values")

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send the corrected leave-one-out signal times the score, and the Stein term."""
        (one,) = draws
        (p,) = one.aux
        if point_gradients is None:
            return Estimate(values.mean(0))
        dims, f = one.dist.event_dims, learning_signal(values)
        x = one.points.to(p.dtype)
        score = x - p[..., 0]
        at_x, flipped = self._surrogates(x, p[..., 0], f, point_gradients.to(p.dtype), dims)
        flip = torch.where(x > 0.5, p[..., 1], p[..., 0])
        change = flip.unsqueeze(-1) * (flipped - at_x.reshape(*f.shape, *(1,) * dims, 2))
        change = total(change.movedim(-1, 0), dims).movedim(0, -1)  # (A h0)(x), (A h1)(x)
        # s changes in the coordinate that is flipped and nowhere else: the d-fold sum is O(d).
        stein = spread(change[..., 1], dims) * score + flip * flipped[..., 1] * (1.0 - 2.0 * x)
        corrected = f + scalar_like(self.alpha, p) * change[..., 0]
        signal = spread(f - leave_one_out(corrected), dims)
        gradient = signal * score + scalar_like(self.beta, p) * stein
        return send(one, values.mean(0), gradient.mean(0))

    def _surrogates(
        self, x: Tensor, p: Tensor, f: Tensor, slope: Tensor, dims: int
    ) -> tuple[Tensor, Tensor]:
        r"""Return (h0, h1) at every sample, (N, \*batch, 2), and with each variable flipped."""
        n, step, away = x.shape[0], 1.0 - 2.0 * x, x - p
        if self.surrogate is None:
            others = leave_one_out(slope)
            at_x = total(others * away, dims)
            flipped = spread(at_x, dims) + others * step
            return torch.stack((at_x, at_x), -1), torch.stack((flipped, flipped), -1)
        index = torch.arange(n, device=x.device).repeat(n, 1)
        index = index[~torch.eye(n, dtype=torch.bool, device=x.device)].reshape(n, n - 1)
        mean = f - total(slope * away, dims)  # of f, as each sample sees it to first order
        taylor = total(slope[index] * away.unsqueeze(1), dims)  # (N, N - 1, *batch)
        moved = spread(taylor, dims) + slope[index] * step.unsqueeze(1)
        level = mean[index]
        at_x = self._ask(torch.stack((taylor, level), -1))
        flipped = self._ask(torch.stack((moved, spread(level, dims).expand_as(moved)), -1))
        return at_x.mean(1), flipped.mean(1)

    def _ask(self, x: Tensor) -> Tensor:
        out = self.surrogate(x) if self.surrogate is not None else x
        if not isinstance(out, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnsupportedError(
                f"the surrogate must return a tensor of shape {tuple(x.shape)}, but returned a "
                f"{type(out).__name__}."
            )
        if out.shape != x.shape:
            raise ShapeError(
                f"the surrogate was given {tuple(x.shape)} and must return that shape, (h0, h1) "
                f"in the last dim, but returned {tuple(out.shape)}."
            )
        return out
