"""Conversion to our distributions: from bare logits and from torch.distributions."""

import math
from typing import Any, cast

import torch
import torch.distributions as td
from torch import Tensor

from .._errors import UnsupportedError
from .base import Distribution
from .bernoulli import Bernoulli
from .categorical import Categorical


def as_distribution(x: object) -> Distribution:
    r"""Turn logits or a torch distribution into one of ours.

    A tensor is the logits of ``Categorical(x)``. ``td.Categorical``, ``td.OneHotCategorical``
    (also straight-through), ``td.Bernoulli``, those of ``gradthrough.distributions`` and
    ``td.Independent`` of these keep their graph; reinterpreted batch dims become event dims.

    Args:
        x: Tensor (\*batch, C), a Distribution, or one of torch.distributions.

    Returns:
        The distribution. Points of a categorical are one-hot, also where torch's are indices.

    Raises:
        UnsupportedError: anything else, with what could be given instead.

    Example:
        >>> import torch, gradthrough as gt
        >>> base = torch.distributions.OneHotCategorical(logits=torch.zeros(32, 4, 8))
        >>> gt.as_distribution(torch.distributions.Independent(base, 1))
        Categorical(logits=(32, 4, 8), event_dims=1)
    """
    if isinstance(x, Distribution):
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
    if isinstance(base, td.Categorical | td.OneHotCategorical):
        return Categorical(**_given(getattr(base, "_categorical", base)), event_dims=event_dims)
    if isinstance(base, td.Bernoulli):
        return Bernoulli(**_given(base), event_dims=event_dims)
    raise UnsupportedError(
        f"expected logits or a discrete distribution, but a {type(base).__name__} came. Wanted: a "
        "Tensor of logits, gradthrough.Categorical, gradthrough.Bernoulli, or "
        "torch.distributions.Categorical, OneHotCategorical, Bernoulli, Independent of these."
    )


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
