"""Every estimator, in one table."""

import difflib
from dataclasses import fields, is_dataclass

from .._errors import ConfigError
from .antithetic import ARM as ARM
from .antithetic import DisARM as DisARM
from .arms import ARMS as ARMS
from .arsm import ARSM as ARSM
from .base import AbstractEstimator as AbstractEstimator
from .base import Draw as Draw
from .base import Estimate as Estimate
from .base import Traits as Traits
from .carms import CARMS as CARMS
from .coupled import Coupled as Coupled
from .decoupled import DecoupledStraightThrough as DecoupledStraightThrough
from .decoupled import decoupled_straight_through as decoupled_straight_through
from .double_cv import DoubleCV as DoubleCV
from .enumeration import Enumerate as Enumerate
from .gapped import GappedStraightThrough as GappedStraightThrough
from .gapped import gapped_straight_through as gapped_straight_through
from .gumbel_rao import GumbelRao as GumbelRao
from .gumbel_rao import gumbel_rao as gumbel_rao
from .gumbel_softmax import GumbelSoftmax as GumbelSoftmax
from .gumbel_softmax import StraightThroughGumbelSoftmax as StraightThroughGumbelSoftmax
from .gumbel_softmax import gumbel_softmax as gumbel_softmax
from .gumbel_softmax import straight_through_gumbel_softmax as straight_through_gumbel_softmax
from .leave_one_out import RLOO as RLOO
from .leave_one_out import VarGrad as VarGrad
from .local_expectation import LocalExpectation as LocalExpectation
from .measure_valued import MeasureValued as MeasureValued
from .muprop import MuProp as MuProp
from .redge import ReDGE as ReDGE
from .redge import ReinDGE as ReinDGE
from .redge import redge as redge
from .redge import reindge as reindge
from .reinmax import ReinMax as ReinMax
from .reinmax import reinmax as reinmax
from .reinmax_cv import ReinMaxCV as ReinMaxCV
from .reinmax_cv import reinmax_cv as reinmax_cv
from .reinmax_rao import ReinMaxRao as ReinMaxRao
from .reinmax_rao import reinmax_rao as reinmax_rao
from .relaxed import Rebar as Rebar
from .relaxed import Relax as Relax
from .reparameterization import Pathwise as Pathwise
from .rodeo import Rodeo as Rodeo
from .score_function import Reinforce as Reinforce
from .straight_through import StraightThrough as StraightThrough
from .straight_through import straight_through as straight_through
from .without_replacement import SumAndSample as SumAndSample
from .without_replacement import UnorderedSet as UnorderedSet

ESTIMATORS: dict[str, type[AbstractEstimator]] = {
    "enumerate": Enumerate,
    "gumbel_softmax": GumbelSoftmax,
    "st": StraightThrough,
    "stgs": StraightThroughGumbelSoftmax,
    "gumbel_rao": GumbelRao,
    "gst": GappedStraightThrough,
    "reinmax": ReinMax,
    "reinmax_rao": ReinMaxRao,
    "reinmax_cv": ReinMaxCV,
    "decoupled_st": DecoupledStraightThrough,
    "redge": ReDGE,
    "reindge": ReinDGE,
    "reinforce": Reinforce,
    "rloo": RLOO,
    "vargrad": VarGrad,
    "muprop": MuProp,
    "rebar": Rebar,
    "relax": Relax,
    "arm": ARM,
    "disarm": DisARM,
    "arms": ARMS,
    "arsm": ARSM,
    "coupled": Coupled,
    "carms": CARMS,
    "double_cv": DoubleCV,
    "rodeo": Rodeo,
    "sum_and_sample": SumAndSample,
    "unordered_set": UnorderedSet,
    "leg": LocalExpectation,
    "pathwise": Pathwise,
    "measure_valued": MeasureValued,
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
