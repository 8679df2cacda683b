"""Conversion to our laws: from bare logits and from torch.distributions."""

import math
from typing import Any, cast

import torch
import torch.distributions as td
from torch import Tensor

from .._errors import UnsupportedError
from .base import Distribution
from .bernoulli import Bernoulli
from .categorical import Categorical
from .continuous import Cauchy, Exponential, Gumbel, Laplace, LogNormal, Normal, Uniform
from .counts import Binomial, Geometric, Poisson, logits_of
from .implicit import Beta, Dirichlet, Gamma, StudentT
from .law import Law
from .parametric import Parametric


def as_distribution(x: object) -> Law:
    r"""Turn logits or a torch distribution into a law that `expect` takes.

    A tensor is the logits of ``Categorical(x)``. ``td.Categorical``, ``td.OneHotCategorical``
    (also straight-through), ``td.Bernoulli``, those of ``gradthrough.distributions`` and
    ``td.Independent`` of these keep their graph; reinterpreted batch dims become event dims.

    So do the laws that are no choice among classes. Continuous: ``td.Normal``, ``LogNormal``,
    ``Laplace``, ``Gumbel``, ``Cauchy``, ``Exponential``, ``Uniform``, ``Gamma``, ``Chi2``,
    ``Beta``, ``Dirichlet``, ``StudentT`` and ``gradthrough.distributions.Logistic``. Counts:
    ``td.Poisson``, ``Geometric``, ``Binomial``.

    Args:
        x: Tensor (\*batch, C), a Law, or one of torch.distributions.

    Returns:
        The law. Points of a categorical are one-hot, also where torch's are indices.

    Raises:
        UnsupportedError: anything else, with what could be given instead.

    Example:
        >>> import torch, gradthrough as gt
        >>> base = torch.distributions.OneHotCategorical(logits=torch.zeros(32, 4, 8))
        >>> gt.as_distribution(torch.distributions.Independent(base, 1))
        Categorical(logits=(32, 4, 8), event_dims=1)
        >>> gt.as_distribution(torch.distributions.Normal(torch.zeros(3), 1.0))
        Normal(loc=(3,), scale=(3,), event_dims=0)
    """
    if isinstance(x, Law):
        return x
    if isinstance(x, Tensor):
        return Categorical(x)
    event_dims = 0
    base = x
    while isinstance(base, td.Independent):
        whole = cast(Any, base)
        event_dims += int(whole.reinterpreted_batch_ndims)
        base = cast(object, whole.base_dist)
    law = getattr(base, "_law", None)
    if isinstance(law, Categorical | Bernoulli):  # one of gradthrough.distributions holds it
        return type(law)(law.logits, event_dims=event_dims)
    if isinstance(law, Parametric):
        return type(law)(law.parameters, event_dims)
    if isinstance(base, td.Categorical | td.OneHotCategorical):
        return Categorical(**_given(getattr(base, "_categorical", base)), event_dims=event_dims)
    if isinstance(base, td.Bernoulli):
        return Bernoulli(**_given(base), event_dims=event_dims)
    for kind, ours in _HELD.items():
        if isinstance(base, kind):
            _check_unchanged(base, kind, ours)
            return ours(tuple(getattr(base, n) for n in ours.names), event_dims)
    if isinstance(base, td.Geometric | td.Binomial):
        return _of_odds(base, event_dims)
    raise UnsupportedError(
        f"expected logits or a distribution, but {type(base).__name__} came. Wanted: a Tensor of "
        "logits, gradthrough.Categorical, gradthrough.Bernoulli, gradthrough.distributions."
        "Logistic, or of torch.distributions Categorical, OneHotCategorical, Bernoulli, "
        f"{', '.join(kind.__name__ for kind in _HELD)}, Geometric, Binomial, Independent of these."
        f"{_remedy(base)}"
    )


def _remedy(base: object) -> str:
    """Return how to serve a law that is a function of one that is served."""
    if isinstance(base, td.MultivariateNormal | td.LowRankMultivariateNormal):
        return (
            " Take standard normals, torch.distributions.Independent(Normal(zeros, ones), 1), as "
            "z, and f(loc + scale_tril @ z): gradthrough.Pathwise() serves loc and scale_tril, "
            "which are then parameters of f."
        )
    inner = cast(object, getattr(base, "base_dist", None))
    while isinstance(inner, td.Independent):
        inner = cast(object, cast(Any, inner).base_dist)
    if isinstance(inner, tuple(_HELD)):
        return (
            " Take its base distribution, and put its transforms into f: they are then part of f, "
            "and their parameters get the gradient of f."
        )
    return ""


def _check_unchanged(base: object, kind: type, ours: type[Parametric]) -> None:
    """Refuse a subclass whose samples or densities are its own, such as a truncated normal."""
    if ours.family != "continuous":  # Pyro has other densities of the same counts
        return
    for name in ("sample", "rsample", "log_prob"):
        if getattr(type(base), name) is not getattr(kind, name):
            raise UnsupportedError(
                f"{type(base).__name__} is a {kind.__name__} with a {name} of its own, so another "
                f"law, which would be taken for a {kind.__name__}. Pass a torch.distributions."
                f"{kind.__name__}, and put what differs into f."
            )


def as_discrete(x: object) -> Distribution:
    """Turn logits or a torch distribution into one over classes: see `as_distribution`.

    Raises:
        UnsupportedError: a continuous law, a law of counts, or no law at all.
    """
    law = as_distribution(x)
    if not isinstance(law, Distribution):
        raise UnsupportedError(
            f"expected a discrete distribution, but a {type(law).__name__} came, which is "
            f"{law.family}. gradthrough.expect, gradthrough.estimate and gradthrough.Rollout "
            "serve it; this serves laws over classes."
        )
    return law


# By the names of their parameters, which the classes of torch have as attributes.
_HELD: dict[type, type[Parametric]] = {
    td.Normal: Normal,
    td.LogNormal: LogNormal,
    td.Laplace: Laplace,
    td.Gumbel: Gumbel,
    td.Cauchy: Cauchy,
    td.Exponential: Exponential,
    td.Uniform: Uniform,
    td.Gamma: Gamma,
    td.Beta: Beta,
    td.Dirichlet: Dirichlet,
    td.StudentT: StudentT,
    td.Poisson: Poisson,
}


def _of_odds(base: td.Geometric | td.Binomial, event_dims: int) -> Law:
    # torch keeps the one it was given first, and derives the other, moved away from 0 and 1.
    name, given = next((n, x) for n, x in vars(base).items() if n in ("logits", "probs"))
    logits = logits_of(given) if name == "probs" else given
    if isinstance(base, td.Geometric):
        return Geometric((logits,), event_dims, given.dtype)
    return Binomial((logits,), event_dims, cast(Any, base).total_count, given.dtype)


def _given(base: Any) -> dict[str, Tensor]:  # noqa: ANN401 - any of torch's
    found: dict[str, Tensor] = {n: vars(base)[n] for n in ("logits", "probs") if n in vars(base)}
    if len(found) < 2:
        return found
    # torch keeps the one it was given and the one it derived, and derives logits from probs by
    # moving them away from 0, to the step of rounding. A class of probability 0 stays masked; not
    # one whose logit was given, so far below that its probability was rounded to 0.
    logits, probs = found["logits"], found["probs"]
    clamped = logits > 2.0 * math.log(torch.finfo(logits.dtype).eps)
    return {"logits": logits.masked_fill((probs == 0) & clamped, -torch.inf)}
