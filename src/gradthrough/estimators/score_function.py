"""REINFORCE, with and without a baseline."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from .._errors import BackendError, ConfigError, DomainError, ShapeError, UnsupportedError
from .._random import antithetic
from .._types import compute_dtype
from ..controls import Critic, MovingAverage
from ..laws.base import Distribution
from ..laws.convert import as_distribution
from ..laws.law import Law
from .base import ANY, AbstractScore, Draw, Estimate, Traits, learning_signal, send_score
from .checks import check_switch

Baseline = float | Tensor | Callable[[Any], Tensor]


@dataclass(frozen=True, eq=False)
class Reinforce(AbstractScore):
    r"""REINFORCE, the score-function estimator: unbiased for every f.

    ``(f(z) - c) d log p(z) / d theta``, averaged over samples, c a baseline that does not look
    at z. With a proposal r, z ~ r and every term is weighted by p(z)/r(z), the value too.

    Args:
        baseline: c: a number, a tensor that broadcasts to (N, \*batch), or a callable that takes
            the distribution, expanded to (N, \*batch), and returns such a tensor, for instance a
            module of ``gradthrough.controls``. It must not depend on the sample. Where it needs a
            gradient, ``Estimate.tuning_loss`` trains it on the mean of (f - c)^2. With
            "self_critical", c is f at the most probable point, for one more evaluation.
        variance: v, like a baseline: the learning signal f - c is divided by max(1, sqrt(v)).
            That rescales the gradient. Where v needs a gradient, ``tuning_loss`` trains it on the
            mean of (v - (f - c)^2)^2.
        proposal: a distribution (or logits) of the shape of the target to draw from instead. It
            must reach every point that the target can take.
        antithetic: draw uniforms in pairs u, 1 - u; `samples` is then even.

    Raises:
        DomainError: antithetic with an odd number of samples.
        ShapeError: a baseline that does not broadcast, a proposal of another shape.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: z.argmax(-1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.Reinforce(baseline=1.0), samples=8).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Williams, Machine Learning 8, 1992; learned baseline: Mnih, Gregor, ICML 2014,
        arXiv:1402.0030.
    """

    baseline: Baseline | Literal["self_critical"] | None = None
    variance: Baseline | None = None
    proposal: object = None
    antithetic: bool = False

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=ANY,
        reference="Williams, Machine Learning, 1992",
        exact_for="all",
        many_draws=True,
    )

    def __post_init__(self) -> None:
        check_switch("antithetic", self.antithetic)
        if isinstance(self.baseline, str) and not self._self_critical:
            raise ConfigError(
                f"the baseline is {self.baseline!r}, but the only one with a name is "
                "'self_critical'. Otherwise give a number, a tensor or a callable."
            )

    @property
    def _self_critical(self) -> bool:
        return isinstance(self.baseline, str) and self.baseline == "self_critical"

    def evaluations(self, dist: Law, samples: int) -> int:
        """Return how often f is evaluated: once more for a self-critical baseline."""
        return samples + self._self_critical

    def learned(self, dist: Law) -> tuple[Self, nn.Module]:
        """Return a copy whose baseline learns, and the module that it is.

        A module stays; a number becomes a running mean that starts there; where there is no
        baseline, a critic of the logits is made.

        Raises:
            UnsupportedError: the baseline is a tensor, a callable or "self_critical".
        """
        c = self.baseline
        if isinstance(c, nn.Module):
            return self, c
        if isinstance(c, int | float):
            mean = MovingAverage(c).to(dist.device)
            return replace(self, baseline=mean), mean
        if c is not None:
            raise UnsupportedError(
                f"Reinforce has nothing to learn: its baseline is {c!r}. Leave it out, or give a "
                "number or a module of gradthrough.controls."
            )
        if not isinstance(dist, Distribution):
            raise UnsupportedError(
                f"Reinforce makes a critic of logits, but a {type(dist).__name__} has none. Give a "
                "number, for a running mean, or a module that takes the law as its baseline."
            )
        lead = len(dist.batch_shape)
        critic = Critic(math.prod(dist.logits.shape[lead:])).to(dist.logits.device)
        return replace(self, baseline=critic), critic

    def noise_shape(self, dist: Law) -> tuple[int, ...]:
        r"""Return (samples, \*batch, \*event), half the samples when antithetic."""
        samples, *rest = super().noise_shape(dist)
        if not self.antithetic:
            return (samples, *rest)
        if samples % 2:
            raise DomainError(
                f"antithetic draws come in pairs, but samples={samples} is odd. Ask for "
                f"samples={samples + 1}."
            )
        return (samples // 2, *rest)

    def draw(self, dist: Law, noise: Tensor) -> Draw:
        """Draw samples, from the proposal where there is one, and the mode where f is a critic."""
        if self._self_critical and not isinstance(dist, Distribution):
            raise UnsupportedError(
                f"a self-critical baseline is f at the most probable class, but a "
                f"{type(dist).__name__} has no classes. Use gradthrough.RLOO()."
            )
        one = self._draw(dist, noise)
        if not isinstance(dist, Distribution) or not self._self_critical:
            return one
        return one._replace(points=torch.cat((one.points, dist.row.mode().unsqueeze(0))))

    def _draw(self, dist: Law, noise: Tensor) -> Draw:
        if self.antithetic:
            noise = torch.cat((noise, antithetic(noise)))
        if self.proposal is None:
            return super().draw(dist, noise)
        source = self._source(dist).detached().expand(dist.variables[0])
        one = super().draw(source, noise)
        points = one.points if one.inner is None else one.inner
        target = dist.detached()  # no_grad would let forward mode through
        log_weight = target.precise_log_prob(points) - source.precise_log_prob(points)
        return one._replace(dist=dist, aux=(log_weight.exp(),))

    def _source(self, dist: Law) -> Law:
        """Return the proposal for a row, as a law of the target's kind."""
        given, row = self.proposal, dist.row
        # Bare logits are of the target's own family.
        bare = isinstance(given, Tensor) and given.ndim == row.parameters[0].ndim
        source = row.with_parameters(given) if bare else as_distribution(given)  # pyright: ignore[reportArgumentType]
        wants, has = ([tuple(x.shape) for x in law.parameters] for law in (row, source))
        if type(source) is not type(row) or has != wants:
            raise ShapeError(
                f"the proposal must be {_named(row)}, but is {_named(source)}: it must be of the "
                "target's kind and have its shape."
            )
        if source.device != row.device:
            raise BackendError(
                f"the proposal lives on {source.device}, but the {row.names[0]} on {row.device}. "
                "Move it to their device."
            )
        return row.with_parameters(*source.parameters)

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send (f - c) times the score to every latent."""
        if self.proposal is not None and len(draws) > 1:
            raise UnsupportedError(
                f"a proposal belongs to one latent, but this program has {len(draws)}. Give the "
                "latents an Estimate each by nesting expect, or leave the proposal out."
            )
        n = draws[0].dist.variables[0]
        draws = [one._replace(points=one.points[:n]) for one in draws]
        values, critical = values[:n], values[n:]
        signal = learning_signal(values)
        losses: list[Tensor] = []
        if self._self_critical:
            c = learning_signal(critical)
        else:
            c = self._number("baseline", draws[0].dist, values)
        if c is not None:
            if c.requires_grad:
                losses.append((signal - c).square().mean())
            signal = signal - c.detach()
        v = self._number("variance", draws[0].dist, values)
        if v is not None:
            if v.requires_grad:
                losses.append((v - signal.square()).square().mean())
            signal = signal / v.detach().clamp_min(1.0).sqrt()
        tuning = torch.stack(losses).sum() if losses else None
        for weight in draws[0].aux:
            # Where the target cannot be, f does not count, whatever it is there.
            possible = weight > 0
            signal = torch.where(possible, signal, 0.0) * weight
            values = torch.where(possible, values, 0.0) * weight.to(values.dtype)
        return Estimate(send_score(draws, values, signal), tuning)

    def _number(self, name: str, dist: Law, values: Tensor) -> Tensor | None:
        r"""Return the baseline or the variance, (N, \*batch), with its own graph."""
        c = getattr(self, name)
        if c is None:
            return None
        if callable(c):
            # Without the graph of the logits: the tuning loss trains the baseline alone.
            c = c(dist.detached())
        dtype = compute_dtype(values.dtype)
        if isinstance(c, int | float) and not isinstance(c, bool):
            if not math.isfinite(c):
                raise DomainError(f"the {name} must be finite, but is {c}.")
            c = torch.full((), c, dtype=dtype, device=values.device)
        if not isinstance(c, Tensor):
            raise UnsupportedError(
                f"the {name} must be a number, a tensor or a callable that returns a tensor, but "
                f"a {type(c).__name__} came."
            )
        if c.device != values.device:
            raise BackendError(
                f"the {name} lives on {c.device}, but the values of f on {values.device}. "
                "Move it to their device."
            )
        c = c.to(dtype)
        try:
            return c.expand(values.shape)
        except RuntimeError:
            raise ShapeError(
                f"the {name} has shape {tuple(c.shape)}, which does not broadcast to the values "
                f"{tuple(values.shape)} = (N, *batch)."
            ) from None


def _named(law: Law) -> str:
    names = " and ".join(law.names)
    return f"{law.family} with {names} of shape {tuple(law.parameters[0].shape)}"
