"""The pathwise kernels in plain torch: the specification of every other backend.

Every pathwise estimator is one sample D and one surrogate whose derivatives D is given. All
published surrogates are sums of softmaxes with constants inside,

    sum_m  w_m softmax((theta + c_m) / tau_m),    w_m, c_m held constant,

so a kernel says how D is drawn and lists the terms (p_m, w_m, tau_m) with p_m the value of the
m-th softmax. Its n-th derivative is sum_m w_m / tau_m^n * d^n softmax(p_m): backward, forward
mode, double backward and Hessian need nothing else from a kernel.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .._random import CounterExponentials, gumbels
from .._types import NoiseKind, compute_dtype
from .softmax import centre, inverse_cdf, normalise, one_hot, softmax
from .softmax import derivative as softmax_derivative

Term = tuple[Tensor, Tensor | float, float]
"""(value p of the softmax, its weight, its temperature)."""


class Launched(NamedTuple):
    """What a backend's forward gives."""

    z: Tensor  # (*rows, C), the sample in the dtype of the logits
    # (*rows), the class drawn, in any integer dtype. With a sample, and of a kernel that is not
    # `conditional`, it may be any class.
    chosen: Tensor
    total: Tensor  # one number for each row, finite only where the row of logits was sound
    saved: tuple[Tensor, ...]  # what the backward needs of it


class Kept(NamedTuple):
    """What a backward starts from."""

    logits: Tensor  # (*rows, C)
    chosen: Tensor  # (*rows), the class drawn, int64; any class if not kernel.conditional
    noise: Tensor  # of a kernel with a counter, else any tensor
    inner: Tensor  # Exp(1) draws (*rows, K, C), or empty
    saved: tuple[Tensor, ...]  # what else the forward left

    def draws(self, count: int, points: int = 0, dim: int = -1) -> Iterator[Tensor]:
        r"""Give new tensors of inner Exp(1) draws, those prescribed or those of the counter.

        Args:
            count: how many to take of the counter.
            points: as CounterExponentials has it.
            dim: that of the classes, -1 for (\*rows, C) or 0 for (C, \*rows).
        """
        dtype = compute_dtype(self.logits.dtype)
        if self.inner.numel() == 0:
            classes = self.logits.shape[-1]
            draw = CounterExponentials(self.noise[..., 1], classes, dtype, dim=dim, points=points)
            yield from (draw(k) for k in range(count))
        else:
            for e in self.inner.unbind(-2):
                yield e.movedim(-1, dim).to(dtype, copy=True)


class Drawn(NamedTuple):
    """What a kernel's forward leaves behind."""

    chosen: Tensor  # (*rows), index of the class drawn
    total: Tensor  # (*rows, 1), finite only where the row of logits was sound
    saved: tuple[Tensor, ...]  # what `terms` needs of it


class AbstractKernel:
    r"""A way to draw a sample from logits (\*rows, C), and the surrogate that it is given.

    Logits come in float32 or better, and so shifted that the maximum of a row is 0.
    """

    noise: ClassVar[NoiseKind] = "variable"
    soft: ClassVar[bool] = False  # True: the sample itself is the first saved tensor
    conditional: ClassVar[bool] = True  # whether `terms` looks at the class drawn

    @property
    def law(self) -> float:
        """The temperature of the softmax that D is drawn from."""
        return 1.0

    def forward(self, logits: Tensor, noise: Tensor) -> Drawn:
        """Draw D from softmax(logits / law)."""
        p, total = normalise(logits / self.law)
        u = noise[..., 0] if self.noise == "variable+seed" else noise
        return Drawn(inverse_cdf(p, u), total, ())

    def terms(self, kept: Kept) -> Iterable[Term]:
        """List the surrogate's softmaxes."""
        raise NotImplementedError


@dataclass(frozen=True)
class Exact(AbstractKernel):
    """A draw from softmax(theta) with no surrogate: for estimators that look at f's values."""

    def terms(self, kept: Kept) -> Iterable[Term]:
        return ()


@dataclass(frozen=True)
class StraightThrough(AbstractKernel):
    """softmax(theta / tau), with `importance` times 1 / (N pi_D), N the classes not masked."""

    tau: float
    importance: bool = False

    def terms(self, kept: Kept) -> Iterable[Term]:
        weight = importance(kept.logits, kept.chosen) if self.importance else 1.0
        return ((softmax(kept.logits / self.tau), weight, self.tau),)


def importance(logits: Tensor, index: Tensor) -> Tensor:
    r"""Return 1 / (N pi_D), (\*rows, 1), N the classes not masked."""
    alive = (logits > -torch.inf).sum(-1, keepdim=True)
    drawn = softmax(logits).gather(-1, index.unsqueeze(-1)).clamp_min(1e-12)
    return 1.0 / (alive * drawn)


@dataclass(frozen=True)
class DecoupledStraightThrough(AbstractKernel):
    """softmax(theta / tau_backward), with D drawn from softmax(theta / tau_forward)."""

    tau_forward: float
    tau_backward: float

    @property
    def law(self) -> float:
        """The temperature of the softmax that D is drawn from."""
        return self.tau_forward

    def terms(self, kept: Kept) -> Iterable[Term]:
        return ((softmax(kept.logits / self.tau_backward), 1.0, self.tau_backward),)


@dataclass(frozen=True)
class GumbelSoftmax(AbstractKernel):
    """softmax((theta + G) / tau): D is its argmax (straight-through), or, soft, itself."""

    tau: float
    noise: ClassVar[NoiseKind] = "class"
    conditional: ClassVar[bool] = False

    def forward(self, logits: Tensor, noise: Tensor) -> Drawn:
        perturbed = logits + gumbels(noise, logits.dtype)
        relaxed, total = normalise(centre(perturbed) / self.tau)
        return Drawn(perturbed.argmax(-1), total, (relaxed,))

    def terms(self, kept: Kept) -> Iterable[Term]:
        return ((kept.saved[0], 1.0, self.tau),)


@dataclass(frozen=True)
class SoftGumbelSoftmax(GumbelSoftmax):
    """Gumbel-Softmax whose sample is the relaxed point."""

    soft: ClassVar[bool] = True


@dataclass(frozen=True)
class GumbelRao(AbstractKernel):
    """1/K sum_k softmax((theta + G_k) / tau), G_k drawn given that argmax(theta + G_k) = D.

    With `qmc` the G_k are not independent, but spread evenly.
    """

    tau: float
    k: int
    qmc: bool = False
    noise: ClassVar[NoiseKind] = "variable+seed"

    @property
    def points(self) -> int:
        """How many inner draws are spread evenly among themselves; 0: they are independent."""
        return self.k if self.qmc else 0

    def terms(self, kept: Kept) -> Iterator[Term]:
        """List the surrogate's softmaxes."""
        p = softmax(kept.logits)
        for e in kept.draws(self.k, self.points):
            yield conditional_relaxation(p, kept.chosen, e, self.tau), 1.0 / self.k, self.tau


@dataclass(frozen=True)
class ExactGumbelRao(AbstractKernel):
    """Gumbel-Rao for two classes, averaged over all inner noise by quadrature.

    A relaxation given D depends on the ratio of two exponentials alone, v = E_D / (E_D + E_i),
    which is uniform: the pair (v, 1 - v) stands for all pairs of that ratio.
    """

    tau: float
    noise: ClassVar[NoiseKind] = "variable+seed"  # so that all Gumbel-Raos share their noise

    def terms(self, kept: Kept) -> Iterator[Term]:
        """List the surrogate's softmaxes."""
        p = softmax(kept.logits)
        at = kept.chosen.unsqueeze(-1)
        for weight, v, rest in NODES:
            e = torch.full_like(p, rest).scatter(-1, at, v)
            yield conditional_relaxation(p, kept.chosen, e, self.tau), weight, self.tau


def _nodes() -> Iterator[tuple[float, float, float]]:
    """Give (weight, v, 1 - v) of the double exponential rule on (0, 1), and no digit cancelled.

    At both ends derivatives grow without bound, at v = 1 within a layer as thin as the other
    class is rare, and this rule puts its nodes there. With these 77 the error stays below 1e-7 of
    the largest possible value for tau from 0.02 up.
    """
    step = 0.09
    for i in range(-38, 39):
        x = math.pi / 2.0 * math.sinh(i * step)
        v, rest = 1.0 / (1.0 + math.exp(-2.0 * x)), 1.0 / (1.0 + math.exp(2.0 * x))
        yield step * math.pi * math.cosh(i * step) * v * rest, v, rest


NODES = tuple(_nodes())


def conditional_relaxation(p: Tensor, index: Tensor, e: Tensor, tau: float) -> Tensor:
    """Return softmax(X / tau) for perturbed logits X whose argmax is known to be `index`.

    With E ~ Exp(1), X_D = -log E_D and X_i = -log(E_i / pi_i + E_D). Relative to the winner,
    exp(X_i - X_D) = pi_i E_D / (E_i + pi_i E_D), in [0, 1]: no overflow, no maximum to find, and
    a class of probability 0 stays at 0.
    """
    at = index.unsqueeze(-1)
    race = p * e.gather(-1, at)
    ratio = race / (e + race)
    relative = ratio if type(tau) is float and tau == 1.0 else ratio ** (1.0 / tau)
    drawn = p.gather(-1, at)
    relative = relative.scatter(-1, at, drawn / drawn)  # 1, or NaN in an unsound row
    return relative / relative.sum(-1, keepdim=True)


@dataclass(frozen=True)
class GappedStraightThrough(AbstractKernel):
    """softmax((theta + m1 - m2) / tau): D lifted to the maximum, the others pushed below it.

    m1 = (max theta - theta_D) D and m2 = relu(theta - max theta + gap) (1 - D), both constants.
    """

    tau: float
    gap: float | Literal["p"]

    def terms(self, kept: Kept) -> Iterable[Term]:
        logits, at = kept.logits, kept.chosen.unsqueeze(-1)
        gap: Tensor | float
        if self.gap == "p":
            # Conditional mean of the gap between winner and runner-up under Gumbel noise; the
            # guard keeps it finite where pi_D rounds to 1.
            drawn = softmax(logits).gather(-1, at).clamp_min(1e-20) * (1.0 - 1e-5)
            gap = -torch.log1p(-drawn) / drawn
        else:
            gap = self.gap
        pushed = logits.minimum(-torch.as_tensor(gap, dtype=logits.dtype, device=logits.device))
        drawn = logits.gather(-1, at)
        lifted = pushed.scatter(-1, at, drawn - drawn)  # 0, or NaN in an unsound row
        return ((softmax(lifted / self.tau), 1.0, self.tau),)


@dataclass(frozen=True)
class ReinMax(AbstractKernel):
    """2 softmax(theta + c) - 1/2 softmax(theta), the first at the value (D + pi_tau) / 2.

    The derivative is 2 J((D + pi_tau)/2) - 1/2 J(pi), with no factor 1/tau. At tau = 1 it equals
    1/2 [J(pi) + (D - pi)(D - pi)^T], Heun's rule between the drawn class and the mean.
    """

    tau: float

    def terms(self, kept: Kept) -> Iterable[Term]:
        p = softmax(kept.logits)
        one = type(self.tau) is float and self.tau == 1.0  # `tempered` has a tensor there
        smooth = p if one else softmax(kept.logits / self.tau)
        return ((halfway(smooth, kept.chosen), 2.0, 1.0), (p, -0.5, 1.0))


def halfway(p: Tensor, index: Tensor) -> Tensor:
    """Return the point in the middle of p and the corner of the class drawn."""
    half = p * 0.5
    return half.scatter_add(-1, index.unsqueeze(-1), torch.full_like(half[..., :1], 0.5))


@dataclass(frozen=True)
class ReinMaxRao(AbstractKernel):
    """ReinMax with J((D + pi) / 2) smoothed: Gumbel-Rao there, given that its argmax is D.

    2/K sum_k softmax((theta_D + G_k) / tau) - 1/2 softmax(theta), theta_D = log((D + pi) / 2).
    """

    tau: float
    k: int
    noise: ClassVar[NoiseKind] = "variable+seed"

    def terms(self, kept: Kept) -> Iterator[Term]:
        p = softmax(kept.logits)
        middle = halfway(p, kept.chosen)
        for e in kept.draws(self.k):
            yield conditional_relaxation(middle, kept.chosen, e, self.tau), 2.0 / self.k, self.tau
        yield p, -0.5, 1.0


@dataclass(frozen=True)
class ReinMaxCV(AbstractKernel):
    """ReinMax plus eta times (Gumbel-Rao - one more draw of its law), both at (D + pi) / 2.

    The inner draws are K that are averaged, and the one more as the last.
    """

    tau: float
    k: int
    eta: float
    tau_cv: float
    noise: ClassVar[NoiseKind] = "variable+seed"

    def terms(self, kept: Kept) -> Iterator[Term]:
        yield from ReinMax(self.tau).terms(kept)
        if self.eta == 0.0:
            return
        middle = halfway(softmax(kept.logits), kept.chosen)
        for k, e in enumerate(kept.draws(self.k + 1)):
            weight = self.eta / self.k if k < self.k else -self.eta
            yield conditional_relaxation(middle, kept.chosen, e, self.tau_cv), weight, self.tau_cv


def contract(terms: Iterable[Term], directions: tuple[Tensor, ...]) -> Tensor:
    """Sum the surrogate's derivative of order ``len(directions)``, one term at a time."""
    out: Tensor | None = None
    for p, weight, tau in terms:
        share = softmax_derivative(p, directions) * (weight * tau ** -len(directions))
        out = share if out is None else out + share
    return torch.zeros_like(directions[0]) if out is None else out


def forward(kernel: AbstractKernel, logits: Tensor, noise: Tensor, dense: bool = True) -> Launched:
    r"""Draw for logits (\*rows, C) of any dtype; an unsound row has a total of NaN.

    Without `dense` no sample is made, only its class.
    """
    drawn = kernel.forward(centre(logits.to(compute_dtype(logits.dtype))), noise)
    if kernel.soft:
        z = drawn.saved[0].to(logits.dtype, copy=True)  # `saved` is kept, z may be written to
    else:
        z = one_hot(drawn.chosen, logits.shape[-1] if dense else 0, logits.dtype)
    return Launched(z, drawn.chosen, drawn.total.squeeze(-1), drawn.saved)


def derivative(kernel: AbstractKernel, kept: Kept, directions: Sequence[Tensor]) -> Tensor:
    r"""Differentiate the surrogate along directions (\*rows, C), in the dtype of the logits."""
    dtype = compute_dtype(kept.logits.dtype)
    terms = kernel.terms(kept._replace(logits=centre(kept.logits.to(dtype))))
    return contract(terms, tuple(d.to(dtype) for d in directions)).to(kept.logits.dtype)


def backward(kernel: AbstractKernel, kept: Kept, g: Tensor) -> Tensor:
    r"""Return the first derivative along g (\*rows, C), in the dtype of the logits."""
    return derivative(kernel, kept, (g,))
