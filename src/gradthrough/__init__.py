"""gradthrough: train through discrete random choices."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from . import controls as controls
from . import schedules as schedules
from . import structured as structured
from ._errors import BackendError as BackendError
from ._errors import ConfigError as ConfigError
from ._errors import DomainError as DomainError
from ._errors import GradthroughError as GradthroughError
from ._errors import ShapeError as ShapeError
from ._errors import UnsupportedError as UnsupportedError
from ._random import generator as generator
from ._random import preserve as preserve
from .auditing.audit import audit as audit
from .auditing.audit import audit_model as audit_model
from .auditing.recommend import Recommendation as Recommendation
from .auditing.report import AuditReport as AuditReport
from .auditing.rows import AuditRow as AuditRow
from .bounds import vargrad as vargrad
from .bounds import vimco as vimco
from .embedding import embed as embed
from .estimators import ARM as ARM
from .estimators import ARMS as ARMS
from .estimators import ARSM as ARSM
from .estimators import CARMS as CARMS
from .estimators import ESTIMATORS as ESTIMATORS
from .estimators import RLOO as RLOO
from .estimators import AbstractEstimator as AbstractEstimator
from .estimators import Coupled as Coupled
from .estimators import DecoupledStraightThrough as DecoupledStraightThrough
from .estimators import DisARM as DisARM
from .estimators import DoubleCV as DoubleCV
from .estimators import Draw as Draw
from .estimators import Enumerate as Enumerate
from .estimators import Estimate as Estimate
from .estimators import GappedStraightThrough as GappedStraightThrough
from .estimators import GumbelRao as GumbelRao
from .estimators import GumbelSoftmax as GumbelSoftmax
from .estimators import LocalExpectation as LocalExpectation
from .estimators import MeasureValued as MeasureValued
from .estimators import MuProp as MuProp
from .estimators import Pathwise as Pathwise
from .estimators import Rebar as Rebar
from .estimators import ReDGE as ReDGE
from .estimators import ReinDGE as ReinDGE
from .estimators import Reinforce as Reinforce
from .estimators import ReinMax as ReinMax
from .estimators import ReinMaxCV as ReinMaxCV
from .estimators import ReinMaxRao as ReinMaxRao
from .estimators import Relax as Relax
from .estimators import Rodeo as Rodeo
from .estimators import StraightThrough as StraightThrough
from .estimators import StraightThroughGumbelSoftmax as StraightThroughGumbelSoftmax
from .estimators import SumAndSample as SumAndSample
from .estimators import Traits as Traits
from .estimators import UnorderedSet as UnorderedSet
from .estimators import VarGrad as VarGrad
from .estimators import decoupled_straight_through as decoupled_straight_through
from .estimators import estimator as estimator
from .estimators import gapped_straight_through as gapped_straight_through
from .estimators import gumbel_rao as gumbel_rao
from .estimators import gumbel_softmax as gumbel_softmax
from .estimators import redge as redge
from .estimators import reindge as reindge
from .estimators import reinmax as reinmax
from .estimators import reinmax_cv as reinmax_cv
from .estimators import reinmax_rao as reinmax_rao
from .estimators import straight_through as straight_through
from .estimators import straight_through_gumbel_softmax as straight_through_gumbel_softmax
from .expect import estimate as estimate
from .expect import expect as expect
from .expect import fold as fold
from .kernels.validation import set_validation as set_validation
from .laws import Bernoulli as Bernoulli
from .laws import Categorical as Categorical
from .laws import Distribution as Distribution
from .laws import Law as Law
from .laws import as_distribution as as_distribution
from .monitoring.illnesses import MonitorWarning as MonitorWarning
from .monitoring.monitor import Monitor as Monitor
from .rollout import Bound as Bound
from .rollout import Rollout as Rollout
from .routing import Routed as Routed
from .routing import load_balance as load_balance
from .routing import sparsemixer as sparsemixer
from .routing import sparsemixer_v2 as sparsemixer_v2
from .sampling import sample as sample
from .swapping import Swap as Swap
from .swapping import SwapWarning as SwapWarning
from .swapping import swap as swap

if TYPE_CHECKING:
    from . import distributions as distributions
    from . import lightning as lightning
    from . import nn as nn
    from . import pyro as pyro
    from . import transformers as transformers

# Loaded when first asked for: `distributions` adds to torch's table of KL divergences, and the last
# three need packages that the library does without.
_LAZY = ("distributions", "nn", "pyro", "lightning", "transformers")


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


try:
    __version__ = version("gradthrough")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
