"""Estimators at the discrete sites of Pyro programs, which stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch.distributions as td
from torch import Tensor

try:
    import pyro.distributions as pd
    from pyro import poutine
    from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
    from pyro.infer.reparam.reparam import Reparam, ReparamMessage, ReparamResult
except ImportError as error:
    raise ImportError("gradthrough.pyro needs Pyro. Install it: pip install pyro-ppl.") from error

from ._errors import UnsupportedError
from .distributions import bernoulli, one_hot
from .distributions.base import check_hard
from .estimators.base import AbstractEstimator
from .estimators.pathwise import AbstractPathwise
from .laws.bernoulli import Bernoulli as BernoulliLaw
from .laws.convert import as_discrete

Program = TypeVar("Program", bound=Callable[..., Any])


class _Sampled:
    """A law that is sampled with an estimator, and not enumerated as well.

    TraceEnum_ELBO takes the weights of what it enumerates from the score function, which a sample
    that carries its gradient does not have: it would count every class alike.
    """

    has_enumerate_support = False

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Refuse."""
        raise UnsupportedError(
            "a site that is sampled with an estimator cannot be enumerated too. Drop its "
            'infer={"enumerate": ...}, or leave it out of the reparam: TraceEnum_ELBO sums over '
            "its classes exactly."
        )


class OneHotCategorical(_Sampled, one_hot.OneHotCategorical, pd.OneHotCategorical):
    """`gradthrough.distributions.OneHotCategorical` for ``pyro.sample``."""


class Bernoulli(_Sampled, bernoulli.Bernoulli, pd.Bernoulli):  # pyright: ignore[reportUntypedBaseClass]
    """`gradthrough.distributions.Bernoulli` for ``pyro.sample``."""


class EstimatorReparam(Reparam):
    r"""Sample a discrete site of a Pyro program with an estimator.

    The site's law becomes the `OneHotCategorical` or `Bernoulli` of this module with its logits;
    dims that are events, masks and expansions stay. A relaxed law becomes the discrete one with its
    logits, whatever its temperature. An observed site is left alone.

    Give it to the model and to the guide: the gradient of the guide's sample goes on through the
    model's ``log_prob``, and Pyro's own stops it there. `reparam` does both.

    Args:
        estimator: one whose sample is hard and carries the gradient.

    Raises:
        UnsupportedError: an estimator whose sample carries no gradient or is relaxed; when the
            program runs, a site of another kind.

    Example:
        >>> import gradthrough as gt, pyro, torch
        >>> def guide():
        ...     return pyro.sample("z", pyro.distributions.OneHotCategorical(logits=logits))
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> sites = {"z": gt.pyro.EstimatorReparam(gt.ReinMax())}
        >>> pyro.poutine.reparam(guide, config=sites)().requires_grad
        True
    """

    def __init__(self, estimator: AbstractEstimator) -> None:
        self.estimator = _check_estimator(estimator)

    def apply(self, msg: ReparamMessage) -> ReparamResult:
        """Replace the law of a latent site."""
        fn, observed = cast(Any, msg["fn"]), bool(msg["is_observed"])
        new = fn if observed else self._replace(msg["name"], fn)
        return {"fn": new, "value": msg["value"], "is_observed": observed}

    def _replace(self, name: str, fn: Any) -> Any:  # noqa: ANN401 - Pyro's laws have no types
        if isinstance(fn, td.Independent):
            whole = cast(Any, fn)
            base = self._replace(name, whole.base_dist)
            return base.to_event(whole.reinterpreted_batch_ndims)
        if isinstance(fn, MaskedDistribution):
            masked = cast(Any, fn)
            return self._replace(name, masked.base_dist).mask(masked._mask)
        if isinstance(fn, ExpandedDistribution):
            narrow = cast(Any, fn)
            return self._replace(name, narrow.base_dist).expand(narrow.batch_shape)
        law = as_discrete(_discrete(name, fn))
        kind = Bernoulli if isinstance(law, BernoulliLaw) else OneHotCategorical
        validates = fn._validate_args
        return kind(logits=law.logits, estimator=self.estimator, validate_args=validates)


def reparam(
    model: Program, guide: Program, estimators: Mapping[str, AbstractEstimator]
) -> tuple[Program, Program]:
    r"""Sample discrete sites of a Pyro model and of its guide with estimators.

    ``poutine.reparam`` with an `EstimatorReparam` for each site, on both programs.

    Args:
        model: a Pyro program.
        guide: its guide.
        estimators: for each site by its name, an estimator whose sample is hard and carries the
            gradient. A name that no site has does nothing.

    Returns:
        The model and the guide to give to ``pyro.infer.SVI``.

    Raises:
        UnsupportedError: an estimator whose sample carries no gradient or is relaxed; when a
            program runs, a site of another kind.

    Example:
        >>> import gradthrough as gt, pyro, torch
        >>> def program():
        ...     return pyro.sample("z", pyro.distributions.Bernoulli(logits=logits))
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> model, guide = gt.pyro.reparam(program, program, {"z": gt.ReinMax()})
        >>> guide().requires_grad
        True
    """
    config = {name: EstimatorReparam(one) for name, one in estimators.items()}
    wrap = cast(Any, poutine).reparam
    return wrap(model, config=config), wrap(guide, config=config)


def _discrete(name: str, fn: object) -> td.Distribution:
    """Return the discrete law of a site, or say which sites can be served."""
    if isinstance(fn, td.OneHotCategorical | td.Bernoulli):
        return fn
    if isinstance(fn, td.RelaxedOneHotCategorical):
        return td.OneHotCategorical(logits=fn.logits, validate_args=False)
    if isinstance(fn, td.RelaxedBernoulli):
        return td.Bernoulli(logits=fn.logits, validate_args=False)
    remedy = (
        " Sample the one-hot vector z of a OneHotCategorical, and replace an index by a product "
        "with z: table[i] by z @ table."
        if isinstance(fn, td.Categorical)
        else " Leave the site out."
    )
    raise UnsupportedError(
        f"the site {name!r} samples from {type(fn).__name__}, but EstimatorReparam serves "
        "OneHotCategorical, Bernoulli, their straight-through and relaxed forms, and these with "
        f"to_event, mask or expand.{remedy}"
    )


def _check_estimator(estimator: object) -> AbstractPathwise:
    if isinstance(estimator, AbstractEstimator) and not estimator.traits.pathwise:
        raise UnsupportedError(
            f"{type(estimator).__name__} has no sample that carries a gradient, as a site of Pyro "
            "needs. Take a pathwise estimator, gradthrough.ReinMax() say, or leave the site out: "
            "there, Trace_ELBO does REINFORCE itself, TraceGraph_ELBO adds baselines to it, and "
            "TraceEnum_ELBO sums over the classes."
        )
    return check_hard(estimator)
