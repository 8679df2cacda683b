"""Every estimator, in one table."""

import difflib
from dataclasses import fields, is_dataclass

from .._errors import ConfigError
from .base import AbstractEstimator as AbstractEstimator
from .base import Draw as Draw
from .base import Estimate as Estimate
from .base import Traits as Traits
from .enumeration import Enumerate as Enumerate
from .gapped import GappedStraightThrough as GappedStraightThrough
from .gapped import gapped_straight_through as gapped_straight_through
from .gumbel_rao import GumbelRao as GumbelRao
from .gumbel_rao import gumbel_rao as gumbel_rao
from .gumbel_softmax import GumbelSoftmax as GumbelSoftmax
from .gumbel_softmax import StraightThroughGumbelSoftmax as StraightThroughGumbelSoftmax
from .gumbel_softmax import gumbel_softmax as gumbel_softmax
from .gumbel_softmax import straight_through_gumbel_softmax as straight_through_gumbel_softmax
from .reinmax import ReinMax as ReinMax
from .reinmax import reinmax as reinmax
from .score_function import RLOO as RLOO
from .score_function import Reinforce as Reinforce
from .straight_through import StraightThrough as StraightThrough
from .straight_through import straight_through as straight_through

ESTIMATORS: dict[str, type[AbstractEstimator]] = {
    "enumerate": Enumerate,
    "gumbel_softmax": GumbelSoftmax,
    "st": StraightThrough,
    "stgs": StraightThroughGumbelSoftmax,
    "gumbel_rao": GumbelRao,
    "gst": GappedStraightThrough,
    "reinmax": ReinMax,
    "reinforce": Reinforce,
    "rloo": RLOO,
}


def estimator(key: str, **options: object) -> AbstractEstimator:
    """Build an estimator by its key.

    Args:
        key: one of ``ESTIMATORS``.
        options: fields of its class, such as tau or k.

    Returns:
        The estimator.

    Raises:
        ConfigError: unknown key (the nearest ones are named) or unknown option.

    Example:
        >>> import gradthrough as gt
        >>> gt.estimator("reinmax", tau=1.3)
        ReinMax(tau=1.3)
    """
    if key not in ESTIMATORS:
        near = difflib.get_close_matches(str(key), ESTIMATORS, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ConfigError(f"unknown estimator {key!r}.{hint} Known: {', '.join(ESTIMATORS)}.")
    kind = ESTIMATORS[key]
    known = [f.name for f in fields(kind)] if is_dataclass(kind) else []
    unknown = [name for name in options if name not in known]
    if unknown:
        has = f"its options are {', '.join(known)}" if known else "it has no options"
        raise ConfigError(f"{kind.__name__} has no option {', '.join(map(repr, unknown))}: {has}.")
    return kind(**options)
