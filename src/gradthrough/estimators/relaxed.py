"""REBAR and RELAX: control variates on a relaxation of the sample."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from .._errors import ConfigError, ShapeError, UnsupportedError
from .._slope import in_transform, value_and_slope
from .._types import compute_dtype
from ..controls import Control
from ..kernels.dispatch import launch_indexed, probabilities
from ..kernels.eager import GumbelSoftmax as Kernel
from ..kernels.relaxation import Relaxed, jacobian, relax
from ..laws.base import Distribution
from .base import DISCRETE, AbstractEstimator, Draw, Estimate, Traits, send, spread
from .checks import Scalar, check_scalar, scalar_like


class _AbstractRelaxed(AbstractEstimator):
    """(f(b) - c(z~)) score + d c(z)/d theta - d c(z~)/d theta, c on relaxed points."""

    @abc.abstractmethod
    def _settings(self) -> tuple[Scalar, Scalar, Callable[[Tensor], Tensor] | None]:
        """Return eta, tau and the free control variate."""

    @property
    def _uses_f(self) -> bool:
        eta = self._settings()[0]
        return isinstance(eta, Tensor) or eta != 0.0

    def evaluations(self, dist: Distribution, samples: int) -> int:
        """Return how often f is evaluated: three times for each sample, once if eta is 0."""
        return samples * (3 if self._uses_f else 1)

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw samples b; add the relaxed points of z, then those of z~."""
        logits = dist.class_logits().detach()
        z, index = launch_indexed(Kernel(1.0), logits, noise[..., 0], given=False)
        if not self._uses_f:
            return Draw(dist.from_classes(z), dist, (noise, index))
        relaxed = self._relax(logits, index, noise)
        soft = torch.cat((relaxed.free, relaxed.tied)).detach().to(z.dtype)
        points = dist.from_classes(torch.cat((z, soft)))
        wanted = "graph" if relaxed.tau.requires_grad else "values"
        return Draw(points, dist, (noise, index), wanted)

    def _relax(self, logits: Tensor, index: Tensor, noise: Tensor) -> Relaxed:
        tau = scalar_like(self._settings()[1], probabilities(logits))
        # Inside a transform a part of its gradient would be missing: better none.
        return relax(logits, index, noise, tau.detach() if in_transform() else tau)

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send the three terms; where the temperature is learned, differentiate them in it."""
        (one,) = draws
        noise, index = one.aux
        n, dist = noise.shape[0], one.dist
        value = values[:n].mean(0)
        if self._uses_f and point_gradients is None:
            return Estimate(value)
        logits = dist.class_logits().detach()
        relaxed = self._relax(logits, index, noise)
        control = self._control(dist, relaxed, n)
        numbers = values.to(compute_dtype(values.dtype))
        slopes = None
        if point_gradients is not None:
            slopes = dist.class_gradient(point_gradients.to(relaxed.free.dtype))

        def gradient(f: Tensor, slope: Tensor | None) -> Tensor:
            return self._gradient(dist, one.points[:n], relaxed, control, f, slope)

        constant = None if slopes is None else slopes.detach()
        out = send(one, value, gradient(numbers.detach(), constant))
        if one.gradients != "graph" or slopes is None:
            return out
        # The temperature also moves the points where f was asked: the chain through them, cut
        # before it reaches what f itself uses.
        loss = gradient(numbers, slopes).square().mean()
        (pull,) = torch.autograd.grad(loss, one.points, retain_graph=True)
        soft = dist.from_classes(torch.cat((relaxed.free, relaxed.tied)))
        through = (pull[n:].to(soft.dtype) * soft).sum()
        tuning = through - through.detach()
        direct = 0.0 if out.tuning_loss is None else out.tuning_loss
        return out._replace(tuning_loss=direct + tuning)

    def _control(
        self, dist: Distribution, relaxed: Relaxed, n: int
    ) -> tuple[Tensor, Tensor] | None:
        """Return the free control variate's values at z~, and its gradient at z and z~."""
        control = self._settings()[2]
        if control is None:
            return None
        points = dist.from_classes(torch.cat((relaxed.free, relaxed.tied)))
        want = (2 * n, *dist.batch_shape[1:])

        def checked(x: Tensor) -> Tensor:
            c = control(x)
            if not isinstance(c, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UnsupportedError(
                    f"the control must return a tensor of shape {want}, but returned a "
                    f"{type(c).__name__}."
                )
            if tuple(c.shape) != want:
                raise ShapeError(
                    f"the control was given points of shape {tuple(x.shape)} and must return "
                    f"{want}, one for each, but returned {tuple(c.shape)}."
                )
            return c

        fixed = not points.requires_grad and not in_transform()
        points = points.requires_grad_() if fixed else points
        c, slope = value_and_slope(checked, points, graph=True)
        if fixed and slope is not None and not _has_other_leaf(c, points):
            c, slope = c.detach(), slope.detach()  # there is nothing to tune
        if slope is None and torch.is_grad_enabled():
            raise UnsupportedError(
                "the control must depend differentiably on its points, but its values do not (an "
                "argmax, an index, a detach or a comparison in it?): its part in the gradient "
                "would not cancel on average. Make it a smooth function, such as "
                "gradthrough.controls.Control(shape)."
            )
        slope = torch.zeros_like(points) if slope is None else slope
        return c[n:].to(relaxed.free.dtype), dist.class_gradient(slope.to(relaxed.free.dtype))

    def _gradient(
        self,
        dist: Distribution,
        points: Tensor,
        relaxed: Relaxed,
        control: tuple[Tensor, Tensor] | None,
        f: Tensor,
        slope: Tensor | None,
    ) -> Tensor:
        n = points.shape[0]
        tau, free, tied, moves = relaxed
        p = probabilities(dist.class_logits().detach())
        c, g_free, g_tied = torch.zeros_like(f[:n]), torch.zeros_like(p), torch.zeros_like(p)
        if slope is not None:
            eta = scalar_like(self._settings()[0], p)
            c = c + eta * f[2 * n :]
            g_free, g_tied = g_free + eta * slope[n : 2 * n], g_tied + eta * slope[2 * n :]
        if control is not None:
            c = c + control[0]
            g_free, g_tied = g_free + control[1][:n], g_tied + control[1][n:]
        score = dist.to_classes(points).detach().to(p.dtype) - p
        signal = spread(f[:n].detach() - c, dist.event_dims + 1)
        along = jacobian(tied, g_tied) / tau * moves
        along = along - p * along.sum(-1, keepdim=True)  # from log pi to the logits
        out = signal * score + jacobian(free, g_free) / tau - along
        return dist.from_classes(out.mean(0))


def _has_other_leaf(x: Tensor, leaf: Tensor) -> bool:
    """Return whether the graph of x leads to another tensor that is to be trained."""
    seen: set[object] = set()
    todo = [x.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if getattr(node, "variable", leaf) is not leaf:
                return True
            todo += [parent for parent, _ in node.next_functions]
    return False


@dataclass(frozen=True, eq=False)
class Rebar(_AbstractRelaxed):
    r"""REBAR: REINFORCE with f at relaxed points as control variate. Unbiased.

    With z = theta + Gumbel noise, b = argmax z, z~ drawn again given b, and
    ``c(z) = eta f(softmax(z / tau))``:
    ``(f(b) - c(z~)) d log p(b) / d theta + d c(z) / d theta - d c(z~) / d theta``. Each of the N
    samples takes three evaluations, two of them off the corners. f must be continuous there, and
    its backward the derivative of its forward: with a straight-through step inside f, or a biased
    estimator nested in it, the terms in c no longer cancel and the gradient is biased.

    Args:
        eta: scale of the control variate; 0 is REINFORCE.
        tau: temperature of the relaxation, > 0. Both are numbers or tensors of one number (a
            tensor below 0.01 counts as 0.01), which ``Estimate.tuning_loss`` then trains. A
            learned tau needs second derivatives of f; inside ``torch.func`` transforms and
            ``torch.compile`` it is held constant.

    Raises:
        DomainError: tau is not above 0.
        UnsupportedError: f does not depend differentiably on its points.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1) ** 2
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.Rebar(tau=0.5)).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein, NeurIPS 2017, arXiv:1703.07370.
    """

    eta: Scalar = 1.0
    tau: Scalar = 0.5

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=DISCRETE,
        reference="Tucker et al., NeurIPS 2017, arXiv:1703.07370",
        exact_for="all",
        noise="class2",
        needs_point_gradients=True,
        needs_relaxed_points=True,
        scalars=("eta", "tau"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", check_scalar("eta", self.eta))
        object.__setattr__(self, "tau", check_scalar("tau", self.tau, positive=True))

    def _settings(self) -> tuple[Scalar, Scalar, Callable[[Tensor], Tensor] | None]:
        return self.eta, self.tau, None


@dataclass(frozen=True, eq=False)
class Relax(_AbstractRelaxed):
    r"""RELAX: REINFORCE with a free function of relaxed points as control variate. Unbiased.

    The formula of `Rebar` with ``c(z) = eta f(softmax(z / tau)) + r(softmax(z / tau))``, r any
    function, in general a network that learns. With eta = 0, f is evaluated at the N samples
    alone, and may be any program; otherwise three times for each, with what `Rebar` asks of f.

    Args:
        control: r, a callable like f: points (N, \*batch, \*event[, C]), here off the corners, to
            (N, \*batch), for instance a ``gradthrough.controls.Control``. None: r = 0.
        eta: scale of f in the control variate.
        tau: temperature of the relaxation, > 0. Numbers or tensors of one number (a tensor below
            0.01 counts as 0.01). ``Estimate.tuning_loss`` trains whatever of control, eta and tau
            needs a gradient; tau is held constant inside ``torch.func`` transforms and
            ``torch.compile``.

    Raises:
        ConfigError: eta = 0 without a control, which would be REINFORCE.
        DomainError: tau is not above 0.
        UnsupportedError: f does not depend differentiably on its points, and eta is not 0.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: z.argmax(-1).float()  # with eta = 0, no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> control = gt.controls.Control((3,))
        >>> out = gt.estimate(f, logits, gt.Relax(control, eta=0.0))
        >>> (out.value.mean() + out.tuning_loss).backward()

    Reference:
        Grathwohl, Choi, Wu, Roeder, Duvenaud, ICLR 2018, arXiv:1711.00123.
    """

    control: Callable[[Tensor], Tensor] | None = None
    eta: Scalar = 1.0
    tau: Scalar = 0.5

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=DISCRETE,
        reference="Grathwohl et al., ICLR 2018, arXiv:1711.00123",
        exact_for="all",
        noise="class2",
        needs_point_gradients=True,
        needs_relaxed_points=True,
        scalars=("eta", "tau"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", check_scalar("eta", self.eta))
        object.__setattr__(self, "tau", check_scalar("tau", self.tau, positive=True))
        if self.control is not None and not callable(self.control):
            raise UnsupportedError(
                f"the control must be a callable of points, but a {type(self.control).__name__} "
                "came."
            )
        if self.control is None and not self._uses_f:
            raise ConfigError(
                "Relax with eta=0 and no control is REINFORCE. Pass control=, for instance "
                "gradthrough.controls.Control(shape), or use gradthrough.Reinforce()."
            )

    def _settings(self) -> tuple[Scalar, Scalar, Callable[[Tensor], Tensor] | None]:
        return self.eta, self.tau, self.control

    def learned(self, dist: Distribution) -> tuple[Self, nn.Module]:
        """Return a copy with learned scales and control, a fresh network if none was given."""
        names = ("eta", "tau") if self._uses_f else ("tau",)
        scaled, owner = self._with_scalars(dist, names)
        net = self.control
        if net is None:
            shape = tuple(dist.logits.shape[len(dist.batch_shape) :])
            net = Control(shape).to(dist.logits.device)
        if not isinstance(net, nn.Module):  # any callable, which has no parameters to own
            return scaled, owner
        return replace(scaled, control=net), nn.ModuleDict({"scales": owner, "control": net})
