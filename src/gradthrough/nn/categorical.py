"""A linear layer whose output is drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._errors import ShapeError
from ..estimators.base import AbstractEstimator
from ..estimators.checks import check_count
from ..estimators.reinmax import ReinMax
from ..laws.categorical import Categorical
from ..sampling import sample
from .checks import check_mask, project
from .temperature import Schedule, Temperature, at_temperature, check_tempered


class CategoricalLayer(nn.Module):
    r"""A linear layer, and a sample of the categorical law whose logits it puts out.

    ``logits = x W^T + b``; in ``train()`` ``z ~ softmax(logits)`` with the estimator's gradient,
    in ``eval()`` the one-hot of the most probable class, with no noise and no gradient.

    ``layer(x)`` is ``layer.draw(layer.law(x))``. With the two in hand, the KL divergence, an
    entropy or ``gt.expect`` cost no second forward.

    Args:
        in_features: size of the input.
        classes: C, of each variable.
        variables: how many variables one row has, an event dim of the law; None: one, and no such
            dim.
        estimator: a pathwise one, whose sample carries the gradient; None: ``gt.ReinMax()``. A soft
            one, such as ``gt.GumbelSoftmax()``, gives soft samples in ``train()``.
        tau: the temperature in place of the estimator's own: a number, a callable from steps to a
            number, or a `Temperature`, which several layers may share. ``layer.tau`` is the
            `Temperature`; count its steps with `step_temperatures`.
        bias: learn b.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigError: tau for an estimator that has none.
        DomainError: a size below 1, a temperature not above 0.
        UnsupportedError: an estimator whose sample carries no gradient.

    Example:
        >>> import torch, gradthrough as gt
        >>> layer = gt.nn.CategoricalLayer(16, 8, variables=4, tau=1.3)
        >>> x = torch.randn(32, 16)
        >>> q = layer.law(x)
        >>> z = layer.draw(q)  # (32, 4, 8), one-hot; also layer(x)
        >>> loss = z[..., 0].square().sum(-1) - 0.1 * q.entropy()
        >>> loss.mean().backward()
        >>> z.shape, layer.linear.weight.grad.shape
        (torch.Size([32, 4, 8]), torch.Size([32, 16]))
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        *,
        variables: int | None = None,
        estimator: AbstractEstimator | None = None,
        tau: Schedule | Temperature | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_count("in_features", in_features, 1)
        self.classes = check_count("classes", classes, 1)
        self.variables = None if variables is None else check_count("variables", variables, 1)
        chosen = ReinMax() if estimator is None else estimator
        self.estimator, self.tau = check_tempered(chosen, tau)
        out = classes * (variables or 1)
        self.linear = nn.Linear(in_features, out, bias=bias, device=device, dtype=dtype)

    def law(self, x: Tensor, *, mask: Tensor | None = None) -> Categorical:
        r"""Return the law of z for inputs.

        Args:
            x: (\*batch, in_features).
            mask: bool, True where a class may be drawn, broadcasts with the logits.

        Returns:
            The law, logits (\*batch, [variables,] C), with the variables of a row as its event.

        Raises:
            ShapeError: another number of features, a mask that does not broadcast.
            UnsupportedError: a mask that is not bool.
        """
        logits = project(self.linear, x)
        if self.variables is None:
            return Categorical(_masked(logits, mask))
        logits = logits.reshape(*x.shape[:-1], self.variables, self.classes)
        return Categorical(_masked(logits, mask), event_dims=1)

    def draw(
        self,
        law: Categorical,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        r"""Draw z from a law: a sample in ``train()``, the mode in ``eval()``.

        Args:
            law: of `law`, or any other.
            generator: source of the noise; not looked at in ``eval()``.
            noise: the noise instead, as for ``gt.sample``; not looked at in ``eval()``.

        Returns:
            Shape and dtype of the logits.

        Raises:
            DomainError: unsound logits, a row with every class masked.
            ShapeError, UnsupportedError, ConfigError, BackendError: as ``gt.sample``.
        """
        if not self.training:
            return law.mode()
        estimator = at_temperature(self.estimator, self.tau)
        return sample(law.logits, estimator, generator=generator, noise=noise)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        r"""Return ``draw(law(x, mask=mask), ...)``, (\*batch, [variables,] C)."""
        return self.draw(self.law(x, mask=mask), generator=generator, noise=noise)

    def extra_repr(self) -> str:
        """Return the sizes and the estimator."""
        variables = "" if self.variables is None else f"variables={self.variables}, "
        return (
            f"in_features={self.in_features}, classes={self.classes}, {variables}"
            f"estimator={self.estimator!r}"
        )


def _masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return logits
    check_mask(mask, logits)
    lead = mask.ndim - logits.ndim
    shape = (1,) * -min(lead, 0) + tuple(mask.shape)
    if lead > 0 or any(m not in (1, n) for m, n in zip(shape, logits.shape, strict=True)):
        raise ShapeError(
            f"mask must broadcast with logits of shape {tuple(logits.shape)}, but has "
            f"{tuple(mask.shape)}: one entry for each class, True where it may be drawn."
        )
    return logits.masked_fill(~mask, -torch.inf)
